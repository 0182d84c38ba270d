"""The adversarial autoencoder: encoder, decoder and discriminators.

Makhzani et al. 2015, "Adversarial Autoencoders" <https://arxiv.org/abs/1511.05644>. Adversarial training (Goodfellow et
al. 2014 <https://arxiv.org/abs/1406.2661>) makes the codes follow a prior distribution: a discriminator learns to
distinguish codes from samples of the prior, and the encoder learns to fool the discriminator. The training phases are
in `train/aae.py`.

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

from w2jax.module import (
    Dtype,
    Inputs,
    Size,
    abstract,
    at_least_float32,
    check_mesh,
    check_rates,
    check_sizes,
    compute_dtype,
)
from w2jax.priors import Prior, check_prior, sample_prior
from w2jax.recurrent import uniform_init


class Code(NamedTuple):
    """The output of an encoder: the code z, the parameters of its distribution, and the logits of the categories."""

    z: Float[Array, "B Z"]  # The code: a sample of q(z|x) in training if the encoder is stochastic, else the mean.
    mean: Float[Array, "B Z"]  # Mean of the Gaussian q(z|x); the code itself if the encoder is deterministic.
    log_variance: Float[Array, "B Z"] | None  # Log-variance of q(z|x); None: the encoder is deterministic.
    logits: Float[Array, "B K"] | None  # Logits of the categories; None: the encoder has no categories.

    @property
    def y(self) -> Float[Array, "B K"] | None:
        """Probability of each category, or None if the encoder has no categories."""
        return None if self.logits is None else nn.softmax(self.logits)


class AAEEncoder(nn.Module):
    """The encoder of an adversarial autoencoder: images → hidden layers (linear → dropout → ReLU) → code.

    A stochastic encoder computes mean and log-variance of a Gaussian q(z|x) (equation 1 of the paper). In training z is
    drawn with the reparameterisation of Kingma & Welling 2014 <https://arxiv.org/abs/1312.6114>.

    Parameters: `hidden_0`, `hidden_1` …, `mean`, `log_variance` and `logits`, each with a kernel and a bias.
    """

    latent_size: int  # Z, size of the code z: its number of dimensions.
    hidden_sizes: tuple[int, ...] = (512, 512)  # Number of units in each hidden layer.
    dropout: float = 0.2  # Dropout rate after each hidden layer.
    batch_norm: tuple[int, ...] = ()  # Indices of the hidden layers (from 0) that have batch normalization.
    stochastic: bool = True  # Draw z from a Gaussian in training; False: z depends only on the image.
    categories: int = 0  # K, number of categories of an additional categorical code; 0: no categorical code.
    normalize_categories: bool = False  # Batch normalization of the category logits, which keeps every category in use.
    dtype: Dtype = "float32"  # Data type of matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, images: Float[Array, "B h w C"], train: bool = False) -> Code:
        """Encode images.

        Args:
            images: images of any size; the images at `init` determine the size.
            train: use dropout (rng "dropout") and batch statistics, and draw z if `stochastic` (rng "sample").

        Raises:
            ValueError: an option is outside its range.
        """
        check_sizes(latent_size=self.latent_size)
        check_sizes(at_least=0, categories=self.categories)
        x = rearrange(images, "b h w c -> b (h w c)")
        x = hidden_layers(x, self.hidden_sizes, self.dropout, self.batch_norm, self.dtype, train)
        mean = at_least_float32(linear(x, self.latent_size, self.dtype, "mean"))
        z, log_variance, logits = mean, None, None
        if self.stochastic:
            log_variance = at_least_float32(linear(x, self.latent_size, self.dtype, "log_variance"))
            if train:
                z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(self.make_rng("sample"), mean.shape)
        if self.categories:
            logits = at_least_float32(linear(x, self.categories, self.dtype, "logits"))
            if self.normalize_categories:
                logits = BatchNorm(name="logits_norm")(logits, train)
        return Code(z, mean, log_variance, logits)

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        first = "hidden_0" if self.hidden_sizes else "mean"
        return (abstract(1, 1, 1, size(f"{first}/kernel", 0, 1)),)


class AAEDecoder(nn.Module):
    """The decoder of an adversarial autoencoder: code → hidden layers (linear → batch norm → dropout → ReLU) → image.

    Only the hidden layers in `batch_norm` have batch normalization. `activation` determines the range of the pixels.

    Parameters: `hidden_0`, `hidden_1` … and `output`; `norm_1` … for layers with batch normalization.
    """

    image_shape: tuple[int, int, int] = (32, 32, 1)  # Height, width (in pixels) and channels of an image.
    hidden_sizes: tuple[int, ...] = (512, 512)  # Number of units in each hidden layer.
    dropout: float = 0.2  # Dropout rate after each hidden layer.
    batch_norm: tuple[int, ...] = (1,)  # Indices of the hidden layers (from 0) that have batch normalization.
    activation: Literal["tanh", "sigmoid"] = "tanh"  # Output activation; tanh: pixels in [-1, 1]; sigmoid: in [0, 1].
    dtype: Dtype = "float32"  # Data type of matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B h w C"]:
        """Decode codes to images.

        Args:
            z: codes, or other inputs of the decoder.
            train: use dropout (rng "dropout") and batch statistics, and update the collection "batch_stats".

        Raises:
            ValueError: an option is outside its range.
        """
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape must be (height, width, channels), each at least 1, got {self.image_shape}")
        x = hidden_layers(z, self.hidden_sizes, self.dropout, self.batch_norm, self.dtype, train)
        x = at_least_float32(linear(x, prod(self.image_shape), self.dtype, "output"))
        height, width, channels = self.image_shape
        x = rearrange(x, "b (h w c) -> b h w c", h=height, w=width, c=channels)
        return nn.tanh(x) if self.activation == "tanh" else nn.sigmoid(x)

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        return (abstract(1, size(f"{first_layer(self)}/kernel", 0, 1)),)


class AAEDiscriminator(nn.Module):
    """The discriminator of an adversarial autoencoder: code → hidden layers (linear → dropout → ReLU) → logit.

    The sigmoid of the logit is the probability that the code is a sample of the prior. The discriminator has no batch
    normalization: batch statistics would mix prior samples with codes, and adversarial training could stall.
    """

    hidden_sizes: tuple[int, ...] = (512, 256)  # Number of units in each hidden layer.
    dropout: float = 0.2  # Dropout rate after each hidden layer.
    dtype: Dtype = "float32"  # Data type of matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B"]:
        """Compute the logit of each code. With `train`, dropout needs the rng "dropout".

        Raises:
            ValueError: an option is outside its range.
        """
        x = hidden_layers(z, self.hidden_sizes, self.dropout, (), self.dtype, train)
        return rearrange(at_least_float32(linear(x, 1, self.dtype, "output")), "b 1 -> b")

    def predict(self, z: Float[Array, "B Z"]) -> Float[Array, "B"]:
        """Return the probability that each code is a sample of the prior."""
        return nn.sigmoid(self(z))

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        return (abstract(1, size(f"{first_layer(self)}/kernel", 0, 1)),)


class AAE(nn.Module):
    """An adversarial autoencoder: an encoder, a decoder, discriminators, and the prior of the code z.

    The decoder's input depends on the variant in the paper:

    - z alone (basic autoencoder).
    - [y, z], where y is the label (supervised, section 4).
    - [y, z], where y is the encoder's categories (semi-supervised and clustering, sections 5 and 6).
    - W y + z, where W has a learned point (a cluster head) for each category (`cluster_heads`, section 7).
    """

    encoder: AAEEncoder = AAEEncoder(8)  # Encoder, from images to codes.
    decoder: AAEDecoder = AAEDecoder()  # Decoder, from codes to images. Its image_shape must be that of the dataset.
    discriminator: AAEDiscriminator = AAEDiscriminator()  # Discriminator of z (and of the label, if passed).
    category_discriminator: AAEDiscriminator = AAEDiscriminator()  # Discriminator of the encoder's categories.
    cluster_heads: bool = False  # Decode W y + z, where W has a learned point per category; False: decode [y, z].
    prior: Prior = "gaussian"  # Prior distribution of z.
    prior_scale: float = 1.0  # Size of the prior; for the Gaussian its standard deviation (see priors.place_codes).
    prior_classes: int = 10  # Number of regions of the prior, one per class; also the components of the mixture.

    def setup(self) -> None:
        check_prior(self.prior, self.encoder.latent_size, self.prior_scale, self.prior_classes)
        if self.cluster_heads and not self.encoder.categories:
            raise ValueError("encoder.categories must be above 0 for cluster_heads, got 0. Set encoder.categories")
        if self.cluster_heads:
            spread = nn.initializers.normal(self.prior_scale)
            self.heads: nn.Dense = nn.Dense(self.encoder.latent_size, use_bias=False, kernel_init=spread)

    def __call__(
        self,
        images: Float[Array, "B h w C"],
        y: Float[Array, "B K"] | None = None,
        condition: Float[Array, "B L"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B h w C"], Code, Float[Array, "B"]]:
        """Call every part once, so that `init` creates all parameters.

        Args:
            images: images of shape decoder.image_shape, with pixels in the range of the decoder's activation.
            y: input of the decoder: the probability of each category, or the one-hot label. None: the encoder's
                categories, if it has some.
            condition: one-hot label [B, L] for the discriminator, if each class has its own region of the prior.
            train: use dropout, batch statistics and sampling; needs the rngs "dropout" and "sample".

        Returns:
            (reconstructions [B, h, w, C], codes, logits [B] of the discriminator).

        Raises:
            ValueError: an option is outside its range, or the images do not have decoder.image_shape.
        """
        code = self.encode(images, train)
        if code.y is not None:
            self.discriminate_category(code.y, train)
        reconstruction = self.decode(code.z, code.y if y is None else y, train)
        return reconstruction, code, self.discriminate(code.z, condition, train)

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns.

        y has the input width of the decoder's first layer minus the width of z. The condition has the input width of
        the discriminator's first layer minus the width of z.
        """

        def excess(name: str, part: AAEDecoder | AAEDiscriminator) -> jax.ShapeDtypeStruct | None:
            width = size(f"{name}/{first_layer(part)}/kernel", 0, self.encoder.latent_size) - self.encoder.latent_size
            return abstract(1, width) if width > 0 else None

        y = None if self.encoder.categories else excess("decoder", self.decoder)
        return abstract(1, *self.decoder.image_shape), y, excess("discriminator", self.discriminator)

    def encode(self, images: Float[Array, "B h w C"], train: bool = False) -> Code:
        """Encode images.

        Raises:
            ValueError: the images do not have decoder.image_shape.
        """
        if images.shape[1:] != self.decoder.image_shape:
            raise ValueError(
                f"images must have the shape {self.decoder.image_shape} (decoder.image_shape), got {images.shape[1:]}"
            )
        return self.encoder(images, train)

    def decode(
        self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None, train: bool = False
    ) -> Float[Array, "B h w C"]:
        """Decode codes to images. y is the probability of each category, or the one-hot label."""
        return self.decoder(self.represent(z, y), train)

    def represent(self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None) -> Float[Array, "B R"]:
        """Return the decoder's input: z if y is None, else [y, z], or W y + z with `cluster_heads`."""
        if y is None:
            return z
        return self.heads(y) + z if self.cluster_heads else jnp.concatenate([y, z], axis=-1)

    def reconstruct(
        self, images: Float[Array, "B h w C"], y: Float[Array, "B K"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Encode and decode images. If `y` is given, it replaces the encoder's categories."""
        code = self.encode(images)
        return self.decode(code.z, code.y if y is None else y)

    def discriminate(
        self, z: Float[Array, "B Z"], condition: Float[Array, "B L"] | None = None, train: bool = False
    ) -> Float[Array, "B"]:
        """Return the logit for each z: high if z looks like a sample of the prior.

        `condition` is the one-hot label [B, L], if each class has its own region of the prior.
        """
        return self.discriminator(z if condition is None else jnp.concatenate([z, condition], axis=-1), train)

    def discriminate_category(self, y: Float[Array, "B K"], train: bool = False) -> Float[Array, "B"]:
        """Return the logit for each y: high if y looks like a one-hot sample of the categorical prior."""
        return self.category_discriminator(y, train)

    def sample_codes(self, count: int, classes: Int[Array, "B"] | None = None) -> Float[Array, "B Z"]:
        """Draw codes from the prior with `priors.sample_prior`. Needs the rng "sample"."""
        size, key = self.encoder.latent_size, self.make_rng("sample")
        return sample_prior(key, self.prior, count, size, self.prior_scale, classes, self.prior_classes)

    def sample(self, count: int, y: Float[Array, "B K"] | None = None) -> Float[Array, "B h w C"]:
        """Draw codes from the prior and decode them to images. Needs the rng "sample".

        Args:
            count: B, number of images.
            y: the probability of each category, or the one-hot label. None: if the encoder has categories, they are
                drawn uniformly.
        """
        if y is None and (categories := self.encoder.categories):
            y = nn.one_hot(jax.random.randint(self.make_rng("sample"), (count,), 0, categories), categories)
        return self.decode(self.sample_codes(count), y)


class BatchNorm(nn.Module):
    """Batch normalization, equal to torch.nn.BatchNorm1d (Ioffe & Szegedy 2015 <https://arxiv.org/abs/1502.03167>).

    A training batch is normalized with its biased variance, and the running variance is updated with the unbiased one
    (algorithm 1 of the paper). Flax's BatchNorm keeps a biased running variance instead, so weights from torch would
    train differently.

    The collection "batch_stats" has `mean`, `var` and `count` (torch's num_batches_tracked).
    """

    momentum: float = 0.1  # Weight of the new batch in the running statistics.
    eps: float = 1e-5  # Epsilon, added to the variance.

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], train: bool = False) -> Float[Array, "B D"]:
        """Normalize x with the batch statistics if `train`, else with the running statistics.

        With `train`, the collection "batch_stats" is updated.

        Raises:
            ValueError: `train` is True and the batch has a single example, whose variance is 0.
        """
        (count, width), x = x.shape, at_least_float32(x)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (width,))
        if self.is_initializing():
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        mean, variance = running_mean.value, running_variance.value
        if train and not self.is_initializing():
            if count < 2:
                raise ValueError("a training batch must have at least 2 examples for batch normalization, got 1")
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
    """Apply one hidden layer for each size: linear → batch norm (in the layers `batch_norm`) → dropout → ReLU.

    Call this function only inside a Flax `compact` method.

    Raises:
        ValueError: a size, the dropout rate or an index in `batch_norm` is outside its range.
    """
    check_mesh(x)
    for size in sizes:
        check_sizes(hidden_sizes=size)
    check_rates(dropout=dropout)
    if not set(batch_norm) <= set(range(len(sizes))):
        raise ValueError(
            f"batch_norm must be indices of hidden layers from 0 to {len(sizes) - 1}, got {tuple(batch_norm)}"
        )
    for layer, size in enumerate(sizes):
        x = linear(x, size, dtype, f"hidden_{layer}")
        if layer in batch_norm:
            x = BatchNorm(name=f"norm_{layer}")(x, train)
        x = nn.relu(nn.Dropout(dropout)(x, deterministic=not train))
    return x


def first_layer(module: AAEDecoder | AAEDiscriminator) -> str:
    """Return the name of the first layer."""
    return "hidden_0" if module.hidden_sizes else "output"


def linear(x: Float[Array, "B I"], features: int, dtype: str, name: str) -> Float[Array, "B O"]:
    """Apply a linear layer that is initialized as torch.nn.Linear: kernel and bias from U(−1/√I, 1/√I).

    Call this function only inside a Flax `compact` method.
    """
    init = uniform_init(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=compute_dtype(dtype), name=name)(x)
