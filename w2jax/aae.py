"""The adversarial autoencoder (Makhzani et al. 2015, arXiv 1511.05644): a code that is shaped after a prior by a game.

The game is that of Goodfellow et al. (2014, arXiv 1406.2661), between the encoder and a discriminator of codes. Its
phases are the task's (`train/aae.py`).

Axis names: B batch, Z latent size, K categories; images are B height width C.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from w2jax.priors import Prior, check_prior, sample_prior
from w2jax.recurrent import uniform_init


class Code(NamedTuple):
    """What an encoder makes of images."""

    z: Float[Array, "B Z"]  # the mean, or in training a sample around it
    mean: Float[Array, "B Z"]  # of the Gaussian q(z|x), or the code itself
    log_variance: Float[Array, "B Z"] | None  # None: the encoder is deterministic
    logits: Float[Array, "B K"] | None  # of the categories; None: there are none

    @property
    def y(self) -> Float[Array, "B K"] | None:
        """The probability of each category; None: there are none."""
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


class AAEDecoder(nn.Module):
    """Code → hidden layers (linear → batch norm where it is on → dropout → ReLU) → an image.

    Pixels lie in the range of the `activation`. Parameters `hidden_0`, `hidden_1` …, `output`; `norm_1` … where batch
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


class AAEDiscriminator(nn.Module):
    """Code → hidden layers (linear → dropout → ReLU) → the logit of having come from the prior.

    There is no batch norm to choose: it would see the prior and the codes mixed, and let the game stall.
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
        """The probability of having come from the prior."""
        return nn.sigmoid(self(z))


class AAE(nn.Module):
    """Encoder, decoder and discriminators, bound to one code and its prior.

    The decoder is given z; or [y, z] where there is a y: the encoder's categories (semi-supervised, clustering:
    sections 5 and 6 of the paper), or the label (supervised: section 4). With `cluster_heads` (section 7) it is given
    W·y + z, where W holds a point, learned too, for each category.
    """

    encoder: AAEEncoder = AAEEncoder(8)  # images to codes
    decoder: AAEDecoder = AAEDecoder()  # codes to images; its image_shape is that of the images
    discriminator: AAEDiscriminator = AAEDiscriminator()  # of z, and of the label if z is to follow it
    category_discriminator: AAEDiscriminator = AAEDiscriminator()  # of y, if the encoder has categories
    cluster_heads: bool = False  # each category is a learned point, which z is added to
    prior: Prior = "gaussian"  # of z
    prior_scale: float = 1.0  # standard deviation of the Gaussian; for the others see `priors.place_codes`
    prior_classes: int = 10  # parts of the prior, one a class; the components of the mixture

    def setup(self) -> None:
        check_prior(self.prior, self.encoder.latent_size, self.prior_scale, self.prior_classes)
        if self.cluster_heads and not self.encoder.categories:
            raise ValueError("cluster_heads are points of categories: set encoder.categories")
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
        """Everything once; `init` by it makes the parameters of all parts.

        Args:
            images: pixels in the range of the decoder's activation.
            y: what the decoder is told in place of the encoder's categories: a probability of each, or a label as
                one-hot.
            condition: the label as one-hot [B, L], where z is to follow it.
            train: dropout, batch norm and sampling are on; needs the rngs "dropout" and "sample".

        Returns:
            (reconstructions, codes, logits of the codes).

        Raises:
            ValueError: if an option is outside its range, or the images are not of the decoder's shape.
        """
        code = self.encode(images, train)
        if code.y is not None:
            self.discriminate_category(code.y, train)
        reconstruction = self.decode(code.z, code.y if y is None else y, train)
        return reconstruction, code, self.discriminate(code.z, condition, train)

    def encode(self, images: Float[Array, "B h w C"], train: bool = False) -> Code:
        """The code of each image.

        Raises:
            ValueError: if the images are not of the decoder's shape.
        """
        if images.shape[1:] != self.decoder.image_shape:
            raise ValueError(f"images are {self.decoder.image_shape} here, got {images.shape[1:]}")
        return self.encoder(images, train)

    def decode(
        self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None, train: bool = False
    ) -> Float[Array, "B h w C"]:
        """The image of each code; y is a probability of each category, or a label as one-hot."""
        return self.decoder(self.represent(z, y), train)

    def represent(self, z: Float[Array, "B Z"], y: Float[Array, "B K"] | None = None) -> Float[Array, "B R"]:
        """What the decoder is given of a code."""
        if y is None:
            return z
        return self.heads(y) + z if self.cluster_heads else jnp.concatenate([y, z], axis=-1)

    def reconstruct(
        self, images: Float[Array, "B h w C"], y: Float[Array, "B K"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Images after encoder and decoder; y, where given, stands for the encoder's."""
        code = self.encode(images)
        return self.decode(code.z, code.y if y is None else y)

    def discriminate(
        self, z: Float[Array, "B Z"], condition: Float[Array, "B L"] | None = None, train: bool = False
    ) -> Float[Array, "B"]:
        """Logits of z having come from the prior; `condition` is the label as one-hot, where z is to follow it."""
        return self.discriminator(z if condition is None else jnp.concatenate([z, condition], axis=-1), train)

    def discriminate_category(self, y: Float[Array, "B K"], train: bool = False) -> Float[Array, "B"]:
        """Logits of y being one of the categories alone."""
        return self.category_discriminator(y, train)

    def sample_codes(self, count: int, classes: Int[Array, "B"] | None = None) -> Float[Array, "B Z"]:
        """Codes from the prior, as `priors.sample_prior` draws them; needs the rng "sample"."""
        size, key = self.encoder.latent_size, self.make_rng("sample")
        return sample_prior(key, self.prior, count, size, self.prior_scale, classes, self.prior_classes)

    def sample(self, count: int, y: Float[Array, "B K"] | None = None) -> Float[Array, "B h w C"]:
        """Images of codes from the prior; needs the rng "sample".

        `y` is what `decode` takes; an encoder's categories are drawn evenly where it is not given.
        """
        if y is None and self.encoder.categories:
            kinds = self.encoder.categories
            y = nn.one_hot(jax.random.randint(self.make_rng("sample"), (count,), 0, kinds), kinds)
        return self.decode(self.sample_codes(count), y)


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm1d: normalised by the batch's biased variance; the unbiased one enters the running variance.

    Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1.

    Flax's own keeps the biased variance, so that converted weights would train on otherwise.
    "batch_stats" holds `mean`, `var`, and in `count` how many batches they have seen, which is for torch to know.
    """

    momentum: float = 0.1  # weight of the new batch in the running statistics
    eps: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], train: bool = False) -> Float[Array, "B D"]:
        """x, normalised by the batch with `train` (which changes "batch_stats"), else by the running statistics.

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
    """Linear → batch norm where it is on → dropout → ReLU, for each size, inside a compact method.

    Raises:
        ValueError: if a size or the dropout is outside its range, or a layer is to be normalised that does not exist.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(f"hidden_sizes must be at least 1, got {tuple(sizes)}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is a rate of at least 0 and below 1, got {dropout}")
    if not set(batch_norm) <= set(range(len(sizes))):
        raise ValueError(f"batch_norm counts hidden layers from 0 to {len(sizes) - 1}, got {tuple(batch_norm)}")
    for layer, size in enumerate(sizes):
        x = linear(x, size, dtype, f"hidden_{layer}")
        if layer in batch_norm:
            x = BatchNorm(name=f"norm_{layer}")(x, train)
        x = nn.relu(nn.Dropout(dropout)(x, deterministic=not train))
    return x


def linear(x: Float[Array, "B I"], features: int, dtype: str, name: str) -> Float[Array, "B O"]:
    """torch.nn.Linear, inside a compact method: kernel and bias from U(−1/√I, 1/√I)."""
    init = uniform_init(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=jnp.dtype(dtype), name=name)(x)
