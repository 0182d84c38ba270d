"""Adversarial autoencoder. Measured results: docs/results.md."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from configs.base import DIGITS, AdamW, Augment, Data, Preset, RunConfig
from configs.base import Config as BaseConfig
from configs.options import Count, Decay, Natural, NonNegative, Range, Rule
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.priors import Prior

ADAM = AdamW(weight_decay=0.0, clip=None)
# The adversarial phases use a smaller β₁ (Radford et al. 2016): encoder and discriminator change in every step, so old
# gradients mislead.
GAME = replace(ADAM, learning_rate=5e-4, b1=0.5)


@dataclass(frozen=True)
class Phases:
    """One AdamW optimizer for each phase of a training step."""

    reconstruction: AdamW = ADAM
    """Optimizer of the encoder and decoder, which minimize the squared reconstruction error."""
    discriminator: AdamW = GAME
    """Optimizer of the discriminators, which learn to separate samples of the prior from codes of the encoder."""
    generator: AdamW = GAME
    """Optimizer of the encoder in the adversarial phase, in which its codes try to fool the discriminators."""
    classification: AdamW = ADAM
    """Optimizer of the encoder in the classification phase (cross-entropy with labels, --consistency)."""
    ema: Annotated[Decay | None, Rule.COMMON] = None
    """Evaluate an exponential moving average of the parameters with this decay rate; None: no average."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """Adversarial autoencoder: an autoencoder whose codes follow a given prior."""

    model: AAE = AAE()
    optim: Phases = Phases()
    labels: Annotated[Literal["unused", "prior", "decoder", "categories"], Rule.COMMON] = "unused"
    """How labels are used: unused, prior, decoder or categories.
    prior: each class gets its own region of the prior; decoder: the decoder gets the label as input;
    categories: labels supervise the encoder's categories."""
    num_labels: Annotated[Natural | None, Rule.COMMON] = None
    """Total number of labeled training images, divided equally among the classes; None: all."""
    consistency: NonNegative = 0.0
    """Weight of the loss that requires the same category for an image and its augmented copy (cross-entropy).
    This loss is not in the paper. 0: off."""
    augment: Augment = Augment()
    """Random augmentation of images in the classification phase. 0 or False turns a change off."""
    labeled_batch_size: Count = 100
    """Labeled examples per step if --num-labels is set; otherwise all examples of the batch are labeled."""
    category_noise: NonNegative = 0.0
    """Standard deviation of the noise on the category discriminator's inputs (prior samples and codes). 0: off."""
    head_distance: NonNegative = 0.0
    """Minimum distance between cluster heads. Closer heads are pushed apart. 0: off."""
    validation_split: str = "train[90%:]"
    """Validation split, in TFDS notation. It selects the Parzen window width and each cluster's label."""
    metric_examples: Annotated[int, Range(2, 2**31 - 1)] = 10_000
    """Number of samples drawn for the final metrics, and the maximum number of images used from each split."""


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
    """The paper's networks with batch norm in the encoder: the codes match the prior sooner."""
    model = paper(latent_size, **fields)
    return model.clone(encoder=model.encoder.clone(batch_norm=(0, 1)))


def with_categories(categories: int, latent_size: int, **fields) -> AAE:
    """`normalized` with a categorical code. Batch norm of its logits keeps every category in use."""
    model = normalized(latent_size, **fields)
    encoder = model.encoder.clone(categories=categories, normalize_categories=True)
    # Flax would share the parameters of a single instance.
    of_z, of_y = AAEDiscriminator((256, 256), dropout=0.0), AAEDiscriminator((256, 256), dropout=0.0)
    return model.clone(encoder=encoder, discriminator=of_z, category_discriminator=of_y)


FAST_GAME, FASTER_GAME = replace(GAME, learning_rate=1e-3), replace(GAME, learning_rate=3e-3)
# A 2-D code, so that it can be plotted.
PLANE = Config(
    data=SAMPLE,
    model=normalized(2),
    optim=Phases(ADAM, FAST_GAME, FAST_GAME, ema=0.998),
    run=RunConfig(steps=4000, batch_size=100, log_every=200, eval_every=2000, save_every=2000),
)
# Augmented digits keep their class, so augmentation helps the categories to match the classes.
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


def in_plane(prior: Prior, labeled: bool) -> Config:
    """A 2-D code with this prior. If `labeled`, each class gets its own region and a third of the labels are known."""
    known: dict[str, Any] = {"labels": "prior", "num_labels": 3000} if labeled else {}
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
        "quick check; 20 s",
    ),
    "sample": Preset(
        Config(data=COURSE, run=RunConfig(steps=6000, batch_size=64, log_every=200, eval_every=2000, save_every=2000)),
        "the course's networks; 104 s",
    ),
    "mnist": Preset(
        Config(
            data=replace(MNIST, image_size=(32, 32)),
            validation_split="train[50000:]",
            run=RunConfig(steps=20_000, batch_size=64, log_every=500, eval_every=5000, save_every=5000),
        ),
        "sample's networks, all of MNIST",
    ),
    "paper": Preset(
        Config(
            data=MNIST,
            model=paper(8, 1000, prior_scale=5.0),
            # The discriminator is large, so it must learn slower than the encoder; otherwise the codes leave the prior.
            optim=Phases(ADAM, replace(GAME, learning_rate=1e-4), replace(GAME, learning_rate=4e-4), ema=0.999),
            validation_split="train[50000:]",
            run=RunConfig(steps=10_000, batch_size=100, log_every=500, eval_every=2500, save_every=2500),
        ),
        "the paper's networks; 17 min",
    ),
    "gaussian": Preset(in_plane("gaussian", False), "2-D Gaussian prior"),
    "mixture": Preset(in_plane("mixture", False), "2-D prior of ten Gaussians"),
    "swiss_roll": Preset(in_plane("swiss_roll", False), "2-D spiral prior"),
    "uniform": Preset(in_plane("uniform", False), "2-D uniform prior"),
    "gaussian_labels": Preset(in_plane("gaussian", True), "gaussian, one region per class"),
    "mixture_labels": Preset(in_plane("mixture", True), "one Gaussian per class; 2 min"),
    "swiss_roll_labels": Preset(in_plane("swiss_roll", True), "swiss_roll, one part per class"),
    "uniform_labels": Preset(in_plane("uniform", True), "uniform, one region per class"),
    # A small code and a high adversarial learning rate: z then contains little information about the label.
    "supervised": Preset(
        replace(PLANE, model=normalized(4), optim=Phases(ADAM, FASTER_GAME, FASTER_GAME, ema=0.998), labels="decoder"),
        "the decoder also gets the label",
    ),
    "semi_100": Preset(replace(TAUGHT, run=replace(TAUGHT.run, steps=10_000)), "100 labels: 1.7 % error, 9 min"),
    "semi_1000": Preset(replace(TAUGHT, num_labels=1000), "1,000 labels: 1.8 % error, 6 min"),
    "clusters_16": Preset(replace(CLUSTERS, model=with_categories(16, 5)), "16 clusters, no labels; 6 min"),
    "clusters_30": Preset(CLUSTERS, "30 clusters, no labels; 6 min"),
    "reduction": Preset(
        replace(
            TAUGHT,
            data=SAMPLE,
            model=with_categories(10, 2, cluster_heads=True),
            head_distance=4.0,
            run=replace(TAUGHT.run, steps=4000),
            validation_split="train[90%:]",
        ),
        "2-D code with ten clusters",
    ),
}
