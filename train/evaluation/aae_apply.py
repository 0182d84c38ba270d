"""Applies a trained adversarial autoencoder: in evaluation mode, to pixels, and to samples of the prior."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from configs.aae import Config
from train.task import State
from w2jax.aae import AAE

Images = Float[Array, "B h w C"]


def apply_eval(model: AAE, state: State, method: Callable[[AAE], Any], key: Key[Array, ""] | None = None) -> Any:
    """`method(model)` with the trained parameters, in evaluation mode. `key` seeds what it samples."""
    return model.apply(state.eval_variables, method=method, rngs=None if key is None else {"sample": key})


def pixels_to_model_range(aae: AAE, pixels: Array) -> Images:
    """Pixels from 0 to 255 in the range of the decoder's output: -1 to 1 for tanh, else 0 to 1."""
    return pixels / 127.5 - 1.0 if aae.decoder.activation == "tanh" else pixels / 255.0


def model_range_to_unit(aae: AAE, images: Images) -> Images:
    """Images in the range of the decoder's output as pixels from 0 to 1."""
    return (images + 1.0) / 2.0 if aae.decoder.activation == "tanh" else images


def sample_images(config: Config, num_classes: int, state: State, count: int, key: Key[Array, ""]) -> Images:
    """Decoded samples of the prior, pixels from 0 to 1. A decoder that needs labels gets each class in turn."""
    labels = jax.nn.one_hot(jnp.arange(count) % num_classes, num_classes) if config.labels == "decoder" else None
    return model_range_to_unit(
        config.model, apply_eval(config.model, state, lambda aae: aae.sample(count, labels), key)
    )
