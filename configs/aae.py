"""Adversarial autoencoder; each preset's measured results stand in the README."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.base import DIGITS, AdamW, Augment, Data, Run
from configs.base import Config as BaseConfig
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.priors import Prior

ADAM = AdamW(weight_decay=0.0, clip=None)
# In the game, Adam's first moment forgets faster (Radford et al. 2016), so that neither side runs after an old other.
GAME = replace(ADAM, learning_rate=5e-4, b1=0.5)


@dataclass(frozen=True)
class Phases:
    """The optimizer of each phase of a step."""

    reconstruction: AdamW = ADAM
    """Of encoder and decoder, against the squared error of the image."""
    discriminator: AdamW = GAME
    """Of the discriminators, to tell the prior from the codes."""
    generator: AdamW = GAME
    """Of the encoder, against the discriminators."""
    classification: AdamW = ADAM
    """Of the encoder, to put labelled images into the category of their label, and all into a consistent one."""
    ema: float | None = None
    """Decay of an average of the parameters, which is then what is evaluated; None: no average."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """Adversarial autoencoder: images to codes that follow a prior, and back."""

    model: AAE = AAE()
    optim: Phases = Phases()
    labels: Literal["unused", "prior", "decoder", "categories"] = "unused"
    """What for: each class gets its part of the prior; the decoder is told them; the categories are taught them."""
    num_labels: int | None = None
    """Training images whose label is known, as many of each class; None: all."""
    consistency: float = 0.0
    """Weight of the cross-entropy between an image's categories and those of the image augmented; not in the paper."""
    augment: Augment = Augment()
    """Of the images that categories are taught on."""
    labelled_batch_size: int = 100
    """Labelled examples a step, where not all are."""
    category_noise: float = 0.0
    """Standard deviation of noise on the categories, real and fake, that their discriminator sees."""
    head_distance: float = 0.0
    """Cluster heads that are closer to each other are pushed apart."""
    validation_split: str = "train[90%:]"
    """Images that the window of the Parzen likelihood and the clusters' labels are chosen on."""
    metric_examples: int = 10_000
    """Samples drawn for the metrics at the end, and the most images of a split that they look at."""


COURSE = Data("mnist_sample", train_split="train[:90%]", image_size=(32, 32))
SAMPLE = replace(COURSE, image_size=None)
MNIST = Data("mnist", train_split="train[:50000]")


def paper(latent_size: int, width: int = 512, **fields) -> AAE:
    """The paper's networks: two hidden layers each, no dropout, a linear code, pixels in [0, 1]."""
    return AAE(
        AAEEncoder(latent_size, (width, width), dropout=0.0, stochastic=False),
        AAEDecoder((28, 28, 1), (width, width), dropout=0.0, batch_norm=(), activation="sigmoid"),
        AAEDiscriminator((width, width), dropout=0.0),
        **fields,
    )


def normalized(latent_size: int, **fields) -> AAE:
    """The same with batch norm in the encoder, which lets the game come to a draw sooner."""
    model = paper(latent_size, **fields)
    return model.clone(encoder=model.encoder.clone(batch_norm=(0, 1)))


def with_categories(categories: int, latent_size: int, **fields) -> AAE:
    """The same with a categorical code, normalised too, so that no category falls out of use."""
    model = normalized(latent_size, **fields)
    encoder = model.encoder.clone(categories=categories, normalize_categories=True)
    # Two instances: Flax would share the parameters of one.
    of_z, of_y = AAEDiscriminator((256, 256), dropout=0.0), AAEDiscriminator((256, 256), dropout=0.0)
    return model.clone(encoder=encoder, discriminator=of_z, category_discriminator=of_y)


FAST_GAME, FASTER_GAME = replace(GAME, learning_rate=1e-3), replace(GAME, learning_rate=3e-3)
# Two dimensions of code, so that it can be looked at.
PLANE = Config(
    data=SAMPLE,
    model=normalized(2),
    optim=Phases(ADAM, FAST_GAME, FAST_GAME, ema=0.998),
    run=Run(steps=4000, batch_size=100, log_every=200, eval_every=2000, save_every=2000),
)
# Augmentation teaches the categories what does not change a digit.
TAUGHT = Config(
    data=MNIST,
    model=with_categories(10, 10),
    optim=Phases(ema=0.998),
    labels="categories",
    num_labels=100,
    consistency=2.0,
    augment=DIGITS,
    category_noise=0.1,
    validation_split="train[50000:]",
    run=Run(steps=6000, batch_size=128, log_every=200, eval_every=2000, save_every=2000),
)
CLUSTERS = replace(TAUGHT, model=with_categories(30, 5), labels="unused", num_labels=None)


def in_plane(prior: Prior, labelled: bool) -> Config:
    """A prior in the plane; labelled: each class has its part of it, and a third of the labels are known."""
    known: dict[str, Any] = {"labels": "prior", "num_labels": 3000} if labelled else {}
    return replace(PLANE, model=PLANE.model.clone(prior=prior), **known)


PRESETS = {
    "tiny": Config(
        data=COURSE,
        model=AAE(
            AAEEncoder(3, hidden_sizes=(64, 64)),
            AAEDecoder(hidden_sizes=(64, 64)),
            AAEDiscriminator(hidden_sizes=(64, 32)),
        ),
        optim=Phases(replace(ADAM, learning_rate=3e-3)),
        metric_examples=1000,
        run=Run(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
    ),
    "sample": Config(data=COURSE, run=Run(steps=6000, batch_size=64, log_every=200, eval_every=2000, save_every=2000)),
    "mnist": Config(
        data=replace(MNIST, image_size=(32, 32)),
        validation_split="train[50000:]",
        run=Run(steps=20_000, batch_size=64, log_every=500, eval_every=5000, save_every=5000),
    ),
    "paper": Config(
        data=MNIST,
        model=paper(8, 1000, prior_scale=5.0),
        # So large a discriminator must learn slower than the encoder: else it wins, and the codes drift off the prior.
        optim=Phases(ADAM, replace(GAME, learning_rate=1e-4), replace(GAME, learning_rate=4e-4), ema=0.999),
        validation_split="train[50000:]",
        run=Run(steps=10_000, batch_size=100, log_every=500, eval_every=2500, save_every=2500),
    ),
    "gaussian": in_plane("gaussian", False),
    "mixture": in_plane("mixture", False),
    "swiss_roll": in_plane("swiss_roll", False),
    "uniform": in_plane("uniform", False),
    "gaussian_labels": in_plane("gaussian", True),
    "mixture_labels": in_plane("mixture", True),
    "swiss_roll_labels": in_plane("swiss_roll", True),
    "uniform_labels": in_plane("uniform", True),
    # A small code and a fast game, so that z keeps little of what the label says.
    "supervised": replace(
        PLANE, model=normalized(4), optim=Phases(ADAM, FASTER_GAME, FASTER_GAME, ema=0.998), labels="decoder"
    ),
    "semi_100": replace(TAUGHT, run=replace(TAUGHT.run, steps=10_000)),
    "semi_1000": replace(TAUGHT, num_labels=1000),
    "clusters_16": replace(CLUSTERS, model=with_categories(16, 5)),
    "clusters_30": CLUSTERS,
    "reduction": replace(
        TAUGHT,
        data=SAMPLE,
        model=with_categories(10, 2, cluster_heads=True),
        head_distance=4.0,
        run=replace(TAUGHT.run, steps=4000),
        validation_split="train[90%:]",
    ),
}

# For `--help`: what each preset is, and how long it takes on two CPU cores where that was measured.
ABOUT = {
    "tiny": "to see that all works; 20 s",
    "sample": "the course's network; 104 s",
    "mnist": "the same on all of MNIST",
    "paper": "the paper's likelihood; 13 min",
    "gaussian": "a prior in the plane",
    "mixture": "ten petals",
    "swiss_roll": "a spiral",
    "uniform": "a square",
    "gaussian_labels": "each class has its part of it",
    "mixture_labels": "a petal for each class; 2 min",
    "swiss_roll_labels": "the spiral in ten pieces",
    "uniform_labels": "the square in ten pieces",
    "supervised": "the code keeps the style",
    "semi_100": "100 labels: 1.8 % wrong; 10 min",
    "semi_1000": "1,000 labels: 1.8 %, 6 min",
    "clusters_16": "no labels, 16 clusters; 6 min",
    "clusters_30": "no labels, 30 clusters; 6 min",
    "reduction": "ten clusters in the plane",
}
