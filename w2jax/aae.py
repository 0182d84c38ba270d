"""The adversarial autoencoder (Makhzani et al. 2015, "Adversarial Autoencoders", arXiv 1511.05644).

An encoder and a discriminator of codes play the game of Goodfellow et al. (2014, arXiv 1406.2661), which shapes the
distribution of the codes after a prior. The training phases are in `train/aae.py`.

Axis names: B batch, Z latent size, K categories, L classes, R decoder input width; images are B height width C.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from w2jax.module import Inputs, Size, abstract, check_rates
from w2jax.priors import Prior, check_prior, sample_prior
from w2jax.recurrent import uniform_init


class Code(NamedTuple):
    """The output of an encoder."""

    z: Float[Array, "B Z"]  # the mean, or in training a sample of q(z|x)
    mean: Float[Array, "B Z"]  # of the Gaussian q(z|x), or the code itself
    log_variance: Float[Array, "B Z"] | None  # None: the encoder is deterministic
    logits: Float[Array, "B K"] | None  # of the categories; None: the encoder has none

    @property
    def y(self) -> Float[Array, "B K"] | None:
        """The probability of each category; None: the encoder has none."""
        return None if self.logits is None else nn.softmax(self.logits)


class AAEEncoder(nn.Module):
    """Images → hidden layers (linear → dropout → ReLU) → mean and log-variance, from which z is drawn in training.

    Equation 1 of the paper with a Gaussian q(z|x), by the reparameterisation of Kingma & Welling (2014, arXiv
    1312.6114). Parameters `hidden_0`, `hidden_1` …, `mean`, `log_variance`, `logits`: a kernel and a bias each.
    """

    latent_size: int  # Z
    hidden_sizes: tuple[int, ...] = (512, 512)  # units of each hidden layer
    dropout: float = 0.2  # after each hidden layer, in training
    batch_norm: tuple[int, ...] = ()  # hidden layers, counted from 0, that are normalised over the batch
    stochastic: bool = True  # False: z is a function of the image
    categories: int = 0  # K: with K > 0, logits of a categorical code too
    normalize_categories: bool = False  # batch norm of their logits, which keeps every category in use
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; parameters are float32

    @nn.compact
    def __call__(self, images: Float[Array, "B h w C"], train: bool = False) -> Code:
        """The code of each image; with `train`, needs the rngs "dropout" (if it is on) and "sample" (if stochastic).

        Raises:
            ValueError: if an option is outside its range.
        """
        if self.latent_size < 1 or self.categories < 0:
            raise ValueError(
                f"latent_size must be at least 1 and categories at least 0, got {self.latent_size}, {self.categories}"
            )
        x = rearrange(images, "b h w c -> b (h w c)")
        x = hidden_layers(x, self.hidden_sizes, self.dropout, self.batch_norm, self.dtype, train)
        mean = linear(x, self.latent_size, self.dtype, "mean").astype(jnp.float32)
        z, log_variance, logits = mean, None, None
        if self.stochastic:
            log_variance = linear(x, self.latent_size, self.dtype, "log_variance").astype(jnp.float32)
            if train:
                z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(self.make_rng("sample"), mean.shape)
        if self.categories:
            logits = linear(x, self.categories, self.dtype, "logits").astype(jnp.float32)
            if self.normalize_categories:
                logits = BatchNorm(name="logits_norm")(logits, train)
        return Code(z, mean, log_variance, logits)

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        first = "hidden_0" if self.hidden_sizes else "mean"
        return (abstract(1, 1, 1, size(f"{first}/kernel", 0, 1)),)


class AAEDecoder(nn.Module):
    """Code → hidden layers (linear → batch norm where it is on → dropout → ReLU) → an image.

    Pixels are in the range of the `activation`. Parameters `hidden_0`, `hidden_1` …, `output`; `norm_1` … where batch
    norm is on.
    """

    image_shape: tuple[int, int, int] = (32, 32, 1)  # height, width and channels of an image
    hidden_sizes: tuple[int, ...] = (512, 512)  # units of each hidden layer
    dropout: float = 0.2  # after each hidden layer, in training
    batch_norm: tuple[int, ...] = (1,)  # hidden layers, counted from 0, that are normalised over the batch
    activation: Literal["tanh", "sigmoid"] = "tanh"  # of the output: pixels in [-1, 1] or in [0, 1]
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; parameters are float32

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B h w C"]:
        """An image of each code; with `train`, needs the rng "dropout" (if it is on) and changes "batch_stats".

        Raises:
            ValueError: if an option is outside its range.
        """
        x = hidden_layers(z, self.hidden_sizes, self.dropout, self.batch_norm, self.dtype, train)
        x = linear(x, prod(self.image_shape), self.dtype, "output").astype(jnp.float32)
        height, width, channels = self.image_shape
        x = rearrange(x, "b (h w c) -> b h w c", h=height, w=width, c=channels)
        return nn.tanh(x) if self.activation == "tanh" else nn.sigmoid(x)

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        return (abstract(1, size(f"{first_layer(self)}/kernel", 0, 1)),)


class AAEDiscriminator(nn.Module):
    """Code → hidden layers (linear → dropout → ReLU) → the logit of the code being a sample of the prior.

    It has no batch norm, whose statistics would mix the prior's samples and the codes and let the game stall.
    """

    hidden_sizes: tuple[int, ...] = (512, 256)  # units of each hidden layer
    dropout: float = 0.2  # after each hidden layer, in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; parameters are float32

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B"]:
        """Logits; with `train`, needs the rng "dropout" (if it is on).

        Raises:
            ValueError: if an option is outside its range.
        """
        x = hidden_layers(z, self.hidden_sizes, self.dropout, (), self.dtype, train)
        return rearrange(linear(x, 1, self.dtype, "output").astype(jnp.float32), "b 1 -> b")

    def predict(self, z: Float[Array, "B Z"]) -> Float[Array, "B"]:
        """The probability that each code is a sample of the prior."""
        return nn.sigmoid(self(z))

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        return (abstract(1, size(f"{first_layer(self)}/kernel", 0, 1)),)


class AAE(nn.Module):
    """Encoder, decoder and discriminators with one code and its prior.

    The decoder's input is z, or [y, z] where there is a y: the encoder's categories (semi-supervised, clustering:
    sections 5 and 6 of the paper), or the label (supervised: section 4). With `cluster_heads` (section 7) it is
    W y + z, where W is a learned point for each category.
    """

    encoder: AAEEncoder = AAEEncoder(8)  # images to codes
    decoder: AAEDecoder = AAEDecoder()  # codes to images; its image_shape is that of the images
    discriminator: AAEDiscriminator = AAEDiscriminator()  # of z, and of the label if z is to follow it
    category_discriminator: AAEDiscriminator = AAEDiscriminator()  # of y, if the encoder has categories
    cluster_heads: bool = False  # each category is a learned point, to which z is added
    prior: Prior = "gaussian"  # of z
    prior_scale: float = 1.0  # standard deviation of the Gaussian; for the others see `priors.place_codes`
    prior_classes: int = 10  # parts of the prior, one for each class; components of the mixture

    def setup(self) -> None:
        check_prior(self.prior, self.encoder.latent_size, self.prior_scale, self.prior_classes)
        if self.cluster_heads and not self.encoder.categories:
            raise ValueError("cluster_heads needs categories, got encoder.categories 0. Set encoder.categories.")
        if self.cluster_heads:
            spread = nn.initializers.normal(self.prior_scale)
            self.heads = nn.Dense(self.encoder.latent_size, use_bias=False, kernel_init=spread)

    def __call__(
        self,
        images: Float[Array, "B h w C"],
        y: Float[Array, "B K"] | None = None,
        condition: Float[Array, "B L"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B h w C"], Code, Float[Array, "B"]]:
        """Calls every part once, so that `init` makes all parameters.

        Args:
            images: pixels in the range of the decoder's activation.
            y: for the decoder, instead of the encoder's categories: a probability of each, or the label as one-hot.
            condition: the label as one-hot [B, L] for the discriminator, if each class has its own part of the prior.
            train: dropout, batch norm and sampling are on; needs the rngs "dropout" and "sample".

        Returns:
            (reconstructions, codes, logits of the codes).

        Raises:
            ValueError: if an option is outside its range, or images and decoder.image_shape differ.
        """
        code = self.encode(images, train)
        if code.y is not None:
            self.discriminate_category(code.y, train)
        reconstruction = self.decode(code.z, code.y if y is None else y, train)
        return reconstruction, code, self.discriminate(code.z, condition, train)

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes.

        y and the condition are as wide as the first layer of decoder and discriminator exceeds z.
        """

        def excess(name: str, part: AAEDecoder | AAEDiscriminator) -> jax.ShapeDtypeStruct | None:
            width = size(f"{name}/{first_layer(part)}/kernel", 0, self.encoder.latent_size) - self.encoder.latent_size
            return abstract(1, width) if width > 0 else None

        y = None if self.encoder.categories else excess("decoder", self.decoder)
        return abstract(1, *self.decoder.image_shape), y, excess("discriminator", self.discriminator)

    def encode(self, images: Float[Array, "B h w C"], train: bool = False) -> Code:
        """The code of each image.

        Raises:
            ValueError: if images and decoder.image_shape differ.
        """
        if images.shape[1:] != self.decoder.image_shape:
            raise ValueError(f"images must have decoder.image_shape {self.decoder.image_shape}, got {images.shape[1:]}")
        return self.encoder(images, train)

    def decode(
        self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None, train: bool = False
    ) -> Float[Array, "B h w C"]:
        """The image of each code; y is a probability of each category, or a label as one-hot."""
        return self.decoder(self.represent(z, y), train)

    def represent(self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None) -> Float[Array, "B R"]:
        """The decoder's input: z, [y, z], or W y + z with `cluster_heads`."""
        if y is None:
            return z
        return self.heads(y) + z if self.cluster_heads else jnp.concatenate([y, z], axis=-1)

    def reconstruct(
        self, images: Float[Array, "B h w C"], y: Float[Array, "B K"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Images after encoder and decoder; `y` replaces the encoder's categories."""
        code = self.encode(images)
        return self.decode(code.z, code.y if y is None else y)

    def discriminate(
        self, z: Float[Array, "B Z"], condition: Float[Array, "B L"] | None = None, train: bool = False
    ) -> Float[Array, "B"]:
        """Logits of z being a sample of the prior; `condition` is the label as one-hot, if the prior depends on it."""
        return self.discriminator(z if condition is None else jnp.concatenate([z, condition], axis=-1), train)

    def discriminate_category(self, y: Float[Array, "B K"], train: bool = False) -> Float[Array, "B"]:
        """Logits of y being a one-hot sample of the categorical prior."""
        return self.category_discriminator(y, train)

    def sample_codes(self, count: int, classes: Int[Array, "B"] | None = None) -> Float[Array, "B Z"]:
        """Codes of the prior, by `priors.sample_prior`; needs the rng "sample"."""
        size, key = self.encoder.latent_size, self.make_rng("sample")
        return sample_prior(key, self.prior, count, size, self.prior_scale, classes, self.prior_classes)

    def sample(self, count: int, y: Float[Array, "B K"] | None = None) -> Float[Array, "B h w C"]:
        """Images of codes of the prior; needs the rng "sample".

        `y` is as in `decode`; when None, the categories of an encoder that has some are drawn uniformly.
        """
        if y is None and (categories := self.encoder.categories):
            y = nn.one_hot(jax.random.randint(self.make_rng("sample"), (count,), 0, categories), categories)
        return self.decode(self.sample_codes(count), y)


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm1d: x is normalised by the batch's biased variance, and the running variance is the unbiased.

    Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1. Flax's BatchNorm has a biased running variance, with which
    weights from torch would train differently. "batch_stats" has `mean`, `var` and `count`, torch's number of batches.
    """

    momentum: float = 0.1  # weight of the new batch in the running statistics
    eps: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], train: bool = False) -> Float[Array, "B D"]:
        """Normalises x by the batch's statistics with `train` (which changes "batch_stats"), else by running ones.

        Raises:
            ValueError: in training on a single example, whose variance is 0.
        """
        (count, width), x = x.shape, x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (width,))
        if self.is_initializing():
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        mean, variance = running_mean.value, running_variance.value
        if train and not self.is_initializing():
            if count < 2:
                raise ValueError("batch norm in training needs at least 2 examples, got 1")
            mean, variance = x.mean(axis=0), x.var(axis=0)
            unbiased = variance * count / (count - 1)
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_variance.value += self.momentum * (unbiased - running_variance.value)
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32).value += 1
        return (x - mean) * jax.lax.rsqrt(variance + self.eps) * scale + bias


def hidden_layers(
    x: Float[Array, "B I"],
    sizes: Sequence[int],
    dropout: float,
    batch_norm: Sequence[int],
    dtype: str,
    train: bool,
) -> Float[Array, "B D"]:
    """Linear → batch norm in the layers `batch_norm` → dropout → ReLU, for each size; for use in a compact method.

    Raises:
        ValueError: if a size, the dropout or an index of `batch_norm` is outside its range.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(f"hidden_sizes must be at least 1, got {tuple(sizes)}")
    check_rates(dropout=dropout)
    if not set(batch_norm) <= set(range(len(sizes))):
        raise ValueError(f"batch_norm must be hidden layers from 0 to {len(sizes) - 1}, got {tuple(batch_norm)}")
    for layer, size in enumerate(sizes):
        x = linear(x, size, dtype, f"hidden_{layer}")
        if layer in batch_norm:
            x = BatchNorm(name=f"norm_{layer}")(x, train)
        x = nn.relu(nn.Dropout(dropout)(x, deterministic=not train))
    return x


def first_layer(module: AAEDecoder | AAEDiscriminator) -> str:
    """The name of the layer that reads the input."""
    return "hidden_0" if module.hidden_sizes else "output"


def linear(x: Float[Array, "B I"], features: int, dtype: str, name: str) -> Float[Array, "B O"]:
    """torch.nn.Linear with kernel and bias from U(−1/√I, 1/√I); for use in a compact method."""
    init = uniform_init(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=jnp.dtype(dtype), name=name)(x)
