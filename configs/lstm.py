"""LSTMs that classify images, read row by row. Measured results: docs/results.md."""

from dataclasses import dataclass

from configs.base import ADAMW, CLOTHES, DIGITS, ClassifierConfig, Data, Optim, Preset, RunConfig
from w2jax.sequence_classifiers import LSTMClassifier

# The PyTorch course's model and optimizer for MNIST. Each training step is the same as in the course. Evaluation uses
# an average of the parameters (EMA), which improves accuracy at a constant learning rate.
COURSE = LSTMClassifier(10, hidden_size=256, num_layers=2)
ADAM = Optim(learning_rate=1e-3, warmup_fraction=0.0, final_lr_fraction=1.0, weight_decay=0.0, clip=None, ema=0.995)


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """An LSTM that classifies an image by reading it row by row."""

    model: LSTMClassifier = COURSE


PRESETS = {
    "tiny": Preset(
        Config(
            model=LSTMClassifier(10, hidden_size=64),
            optim=Optim(learning_rate=1e-2),
            run=RunConfig(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
        ),
        "accuracy 94 %, 6 s",
    ),
    "sample": Preset(
        Config(
            model=LSTMClassifier(10, hidden_size=128, num_layers=2),
            optim=ADAMW,
            augment=DIGITS,
            run=RunConfig(steps=1200, batch_size=100, log_every=100, eval_every=400, save_every=400),
        ),
        "accuracy 98.5 %, 35 s",
    ),
    "mnist": Preset(
        Config(
            data=Data("mnist"),
            optim=ADAM,
            run=RunConfig(steps=1175, batch_size=256, log_every=47, eval_every=235, save_every=235),
        ),
        "as in the course; 98.8 %, 27 min",
    ),
    "fashion_mnist": Preset(
        Config(
            data=Data("fashion_mnist"),
            optim=ADAMW,
            augment=CLOTHES,
            label_smoothing=0.1,
            run=RunConfig(steps=4700, batch_size=256, log_every=47, eval_every=470, save_every=470),
        ),
        "not trained to the end yet",
    ),
    "best": Preset(
        Config(
            data=Data("mnist"),
            optim=ADAMW,
            augment=DIGITS,
            run=RunConfig(steps=3525, batch_size=256, log_every=47, eval_every=705, save_every=705),
        ),
        "accuracy 99.5 %, 37 min",
    ),
}
