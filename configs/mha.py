"""Multi-head attention over the rows of images; each preset's measured results stand in the README."""

from dataclasses import dataclass

from configs.base import ADAMW, CLOTHES, DIGITS, ClassifierConfig, Data, Optim, Run
from w2jax.sequence_classifiers import AttentionClassifier

SMALL = AttentionClassifier(10, embed_dim=64, depth=4, num_heads=4, mlp_dim=128)


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """Multi-head attention over the rows of an image, to classify it."""

    model: AttentionClassifier = SMALL


PRESETS = {
    "tiny": Config(
        model=AttentionClassifier(10, embed_dim=32, depth=2, num_heads=2, mlp_dim=64),
        optim=Optim(learning_rate=3e-3),
        run=Run(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
    ),
    "sample": Config(
        optim=ADAMW, augment=DIGITS, run=Run(steps=1000, batch_size=100, log_every=100, eval_every=500, save_every=500)
    ),
    "mnist": Config(
        data=Data("mnist"),
        optim=ADAMW,
        augment=DIGITS,
        run=Run(steps=5000, batch_size=100, log_every=200, eval_every=1000, save_every=1000),
    ),
    "fashion_mnist": Config(
        data=Data("fashion_mnist"),
        optim=Optim(learning_rate=2e-3, ema=0.998),
        augment=CLOTHES,
        label_smoothing=0.1,
        run=Run(steps=12_000, batch_size=100, log_every=200, eval_every=2400, save_every=2400),
    ),
    "best": Config(
        data=Data("mnist"),
        optim=ADAMW,
        augment=DIGITS,
        run=Run(steps=21_000, batch_size=100, log_every=200, eval_every=3000, save_every=3000),
    ),
}

# For `--help`: what each preset is, and how long it takes on two CPU cores where that was measured.
ABOUT = {
    "tiny": "to see that all works; 10 s",
    "sample": "98 % of real digits, 45 s",
    "mnist": "99.35 %, 22 min",
    "fashion_mnist": "clothes, augmented",
    "best": "four times as long as mnist",
}
