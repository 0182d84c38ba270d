"""Multi-head attention over the rows of images, for classification. Measured results: docs/results.md."""

from dataclasses import dataclass

from configs.base import ADAMW, CLOTHES, DIGITS, ClassifierConfig, Data, Optim, Preset, RunConfig
from w2jax.sequence_classifiers import AttentionClassifier

SMALL = AttentionClassifier(10, embed_dim=64, depth=4, num_heads=4, mlp_dim=128)


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """Multi-head attention over the rows of an image, for classification."""

    model: AttentionClassifier = SMALL


PRESETS = {
    "tiny": Preset(
        Config(
            model=AttentionClassifier(10, embed_dim=32, depth=2, num_heads=2, mlp_dim=64),
            optim=Optim(learning_rate=3e-3),
            run=RunConfig(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
        ),
        "accuracy 89 %, 11 s",
    ),
    "sample": Preset(
        Config(
            optim=ADAMW,
            augment=DIGITS,
            run=RunConfig(steps=1000, batch_size=100, log_every=100, eval_every=500, save_every=500),
        ),
        "accuracy 97.9 %, 47 s",
    ),
    "mnist": Preset(
        Config(
            data=Data("mnist"),
            optim=ADAMW,
            augment=DIGITS,
            run=RunConfig(steps=5000, batch_size=100, log_every=200, eval_every=1000, save_every=1000),
        ),
        "accuracy 99.35 %, 22 min",
    ),
    "fashion_mnist": Preset(
        Config(
            data=Data("fashion_mnist"),
            optim=Optim(learning_rate=2e-3, ema=0.998),
            augment=CLOTHES,
            label_smoothing=0.1,
            run=RunConfig(steps=12_000, batch_size=100, log_every=200, eval_every=2400, save_every=2400),
        ),
        "not trained to the end yet",
    ),
    "best": Preset(
        Config(
            data=Data("mnist"),
            optim=ADAMW,
            augment=DIGITS,
            run=RunConfig(steps=21_000, batch_size=100, log_every=200, eval_every=3000, save_every=3000),
        ),
        "4× the steps; not trained yet",
    ),
}
