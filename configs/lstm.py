"""LSTMs that read images row by row; each preset's measured results stand in the README."""

from dataclasses import dataclass

from configs.base import ADAMW, CLOTHES, DIGITS, ClassifierConfig, Data, Optim, Run
from w2jax.sequence_classifiers import LSTMClassifier

# The PyTorch course's model and optimizer for MNIST. Training is the course's step for step; what is evaluated is the
# average of the parameters on the way, which a constant learning rate profits from.
COURSE = LSTMClassifier(10, hidden_size=256, num_layers=2)
ADAM = Optim(learning_rate=1e-3, warmup=0.0, final=1.0, weight_decay=0.0, clip=None, ema=0.995)


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """An LSTM that reads an image row by row, to classify it."""

    model: LSTMClassifier = COURSE


PRESETS = {
    "tiny": Config(
        model=LSTMClassifier(10, hidden_size=64),
        optim=Optim(learning_rate=1e-2),
        run=Run(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
    ),
    "sample": Config(
        model=LSTMClassifier(10, hidden_size=128, num_layers=2),
        optim=ADAMW,
        augment=DIGITS,
        run=Run(steps=1200, batch_size=100, log_every=100, eval_every=400, save_every=400),
    ),
    "mnist": Config(
        data=Data("mnist"),
        optim=ADAM,
        run=Run(steps=1175, batch_size=256, log_every=47, eval_every=235, save_every=235),
    ),
    "fashion_mnist": Config(
        data=Data("fashion_mnist"),
        optim=ADAMW,
        augment=CLOTHES,
        label_smoothing=0.1,
        run=Run(steps=4700, batch_size=256, log_every=47, eval_every=470, save_every=470),
    ),
    "best": Config(
        data=Data("mnist"),
        optim=ADAMW,
        augment=DIGITS,
        run=Run(steps=3525, batch_size=256, log_every=47, eval_every=705, save_every=705),
    ),
}

# For `--help`: what each preset is, and how long it takes on two CPU cores where that was measured.
ABOUT = {
    "tiny": "to see that all works; 6 s",
    "sample": "98.5 % of real digits, 35 s",
    "mnist": "the course's; 98.8 %, 27 min",
    "fashion_mnist": "clothes, augmented",
    "best": "MNIST, 99.5 %, 37 min",
}
