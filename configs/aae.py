"""Adversarial autoencoder. Measured results: docs/results.md."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from configs.base import DIGITS, AdamW, Augment, Data, Preset, RunConfig
from configs.base import Config as BaseConfig
from configs.options import Count, Decay, Natural, NonNegative, Rule
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
    ema: Annotated[Decay | None, Rule.COMMON] = None
    """Decay of an average of the parameters, which is then what is evaluated; None: no average."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """Adversarial autoencoder: images to codes that follow a prior, and back."""

    model: AAE = AAE()
    optim: Phases = Phases()
    labels: Annotated[Literal["unused", "prior", "decoder", "categories"], Rule.COMMON] = "unused"
    """How labels are used. prior: each class gets its own region of the prior; decoder: the decoder is conditioned on
    the label; categories: labels supervise the encoder's categories."""
    num_labels: Annotated[Natural | None, Rule.COMMON] = None
    """Training images whose label is known, as many of each class; None: all."""
    consistency: NonNegative = 0.0
    """Weight of the cross-entropy between an image's categories and those of the image augmented; not in the paper."""
    augment: Augment = Augment()
    """Of the images that categories are taught on."""
    labelled_batch_size: Count = 100
    """Labelled examples a step, where not all are."""
    category_noise: NonNegative = 0.0
    """Standard deviation of noise on the categories, real and fake, that their discriminator sees."""
    head_distance: NonNegative = 0.0
    """Cluster heads that are closer to each other are pushed apart."""
    validation_split: str = "train[90%:]"
    """Images that the window of the Parzen likelihood and the clusters' labels are chosen on."""
    metric_examples: Count = 10_000
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
    run=RunConfig(steps=4000, batch_size=100, log_every=200, eval_every=2000, save_every=2000),
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
    run=RunConfig(steps=6000, batch_size=128, log_every=200, eval_every=2000, save_every=2000),
)
CLUSTERS = replace(TAUGHT, model=with_categories(30, 5), labels="unused", num_labels=None)


def in_plane(prior: Prior, labelled: bool) -> Config:
    """A prior in the plane; labelled: each class has its part of it, and a third of the labels are known."""
    known: dict[str, Any] = {"labels": "prior", "num_labels": 3000} if labelled else {}
    return replace(PLANE, model=PLANE.model.clone(prior=prior), **known)


PRESETS = {
    "tiny": Preset(
        Config(
            data=COURSE,
            model=AAE(
                AAEEncoder(3, hidden_sizes=(64, 64)),
                AAEDecoder(hidden_sizes=(64, 64)),
                AAEDiscriminator(hidden_sizes=(64, 32)),
            ),
            optim=Phases(replace(ADAM, learning_rate=3e-3)),
            metric_examples=1000,
            run=RunConfig(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
        ),
        "to see that all works; 20 s",
    ),
    "sample": Preset(
        Config(data=COURSE, run=RunConfig(steps=6000, batch_size=64, log_every=200, eval_every=2000, save_every=2000)),
        "the course's network; 104 s",
    ),
    "mnist": Preset(
        Config(
            data=replace(MNIST, image_size=(32, 32)),
            validation_split="train[50000:]",
            run=RunConfig(steps=20_000, batch_size=64, log_every=500, eval_every=5000, save_every=5000),
        ),
        "the same on all of MNIST",
    ),
    "paper": Preset(
        Config(
            data=MNIST,
            model=paper(8, 1000, prior_scale=5.0),
            # So large a discriminator must learn slower than the encoder: else it wins, and codes drift off the prior.
            optim=Phases(ADAM, replace(GAME, learning_rate=1e-4), replace(GAME, learning_rate=4e-4), ema=0.999),
            validation_split="train[50000:]",
            run=RunConfig(steps=10_000, batch_size=100, log_every=500, eval_every=2500, save_every=2500),
        ),
        "the paper's likelihood; 13 min",
    ),
    "gaussian": Preset(in_plane("gaussian", False), "a prior in the plane"),
    "mixture": Preset(in_plane("mixture", False), "ten petals"),
    "swiss_roll": Preset(in_plane("swiss_roll", False), "a spiral"),
    "uniform": Preset(in_plane("uniform", False), "a square"),
    "gaussian_labels": Preset(in_plane("gaussian", True), "each class has its part of it"),
    "mixture_labels": Preset(in_plane("mixture", True), "a petal for each class; 2 min"),
    "swiss_roll_labels": Preset(in_plane("swiss_roll", True), "the spiral in ten pieces"),
    "uniform_labels": Preset(in_plane("uniform", True), "the square in ten pieces"),
    # A small code and a fast game, so that z keeps little of what the label says.
    "supervised": Preset(
        replace(PLANE, model=normalized(4), optim=Phases(ADAM, FASTER_GAME, FASTER_GAME, ema=0.998), labels="decoder"),
        "the code keeps the style",
    ),
    "semi_100": Preset(replace(TAUGHT, run=replace(TAUGHT.run, steps=10_000)), "100 labels: 1.8 % wrong; 10 min"),
    "semi_1000": Preset(replace(TAUGHT, num_labels=1000), "1,000 labels: 1.8 %, 6 min"),
    "clusters_16": Preset(replace(CLUSTERS, model=with_categories(16, 5)), "no labels, 16 clusters; 6 min"),
    "clusters_30": Preset(CLUSTERS, "no labels, 30 clusters; 6 min"),
    "reduction": Preset(
        replace(
            TAUGHT,
            data=SAMPLE,
            model=with_categories(10, 2, cluster_heads=True),
            head_distance=4.0,
            run=replace(TAUGHT.run, steps=4000),
            validation_split="train[90%:]",
        ),
        "ten clusters in the plane",
    ),
}
