"""Helpers to apply a trained adversarial autoencoder to images and to samples of the prior."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from configs.aae import Config
from train.task import Latent, State
from w2jax.aae import AAE
from w2jax.priors import sample_prior

Images = Float[Array, "B h w C"]


def apply_eval(model: AAE, state: State, method: Callable[[AAE], Any], key: Key[Array, ""] | None = None) -> Any:
    """Calls `method(model)` with the trained parameters in evaluation mode. `key` seeds its random samples."""
    return model.apply(state.eval_variables, method=method, rngs=None if key is None else {"sample": key})


def pixels_to_model_range(aae: AAE, pixels: Array) -> Images:
    """Scales pixels from 0..255 to the range of the decoder's output: -1..1 for tanh, else 0..1."""
    return pixels / 127.5 - 1.0 if aae.decoder.activation == "tanh" else pixels / 255.0


def model_range_to_unit(aae: AAE, images: Images) -> Images:
    """Scales images from the range of the decoder's output to 0..1."""
    return (images + 1.0) / 2.0 if aae.decoder.activation == "tanh" else images


def sample_images(config: Config, num_classes: int, state: State, count: int, key: Key[Array, ""]) -> Images:
    """Decodes samples of the prior to pixels in 0..1. A decoder that needs labels gets each class in turn."""
    labels = jax.nn.one_hot(jnp.arange(count) % num_classes, num_classes) if config.labels == "decoder" else None
    return model_range_to_unit(
        config.model, apply_eval(config.model, state, lambda aae: aae.sample(count, labels), key)
    )


def make_latent(config: Config, label_names: Sequence[str]) -> Latent:
    """The codes of an autoencoder, whose images have labels with these names."""
    model, size = config.model, config.model.encoder.latent_size

    def encode(state: State, images: Array) -> tuple[Array, Array | None]:
        code = apply_eval(model, state, lambda aae: aae.encode(pixels_to_model_range(aae, images)))
        return code.z, code.y

    def decode(state: State, z: Array, y: Array | None) -> Images:
        return model_range_to_unit(model, apply_eval(model, state, lambda aae: aae.decode(z, y)))

    def sample(key: Key[Array, ""], count: int) -> Array:
        return sample_prior(key, model.prior, count, size, model.prior_scale, num_classes=model.prior_classes)

    are_labels = config.labels in ("decoder", "categories")
    names = tuple(label_names) if are_labels else ()
    return Latent(size, len(names) or model.encoder.categories, names, encode, decode, sample)
