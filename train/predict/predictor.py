"""The function of images that a trained model is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from train.config.tasks import task_maker, task_names, task_of
from train.data.crops import Box, central_box
from train.data.decode import IMAGE_ERRORS, MODES, decode, read_image_bytes
from train.data.open import resizing_spec
from train.data.source import AbstractSource, Source
from train.process.errors import UserError
from train.run.folder import ImageInfo
from train.task import State, Task
from w2jax.image_spec import ImageSpec

_AT_ONCE = 256  # images
_MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class Predictor:
    """A trained model as a function of images."""

    task: Task
    config: Any
    """The run's config, of the type of its task."""
    image_shape: tuple[int, int, int]
    """(h, w, C) of the input images."""
    label_names: list[str]
    """The name of each class."""
    note: str
    """Describes which parameters of the run `state` contains."""
    state: State
    """The parameters that the run used for evaluation, without the optimizer's state."""
    spec: ImageSpec | None = None
    """How `read` resizes and cuts images. None: as the options of a run without `--data.resize` say."""

    @property
    def classifies(self) -> bool:
        """True if a call returns probabilities, False if it returns reconstructions."""
        return self.task.probabilities is not None

    @property
    def apply(self) -> Callable[[State, Any], Any]:
        """(state, uint8 [B, h, w, C]) -> the outputs of a call, as a function that can be jitted.

        Raises:
            UserError: the model neither classifies nor reconstructs images.
        """
        probabilities, apply = self.task.probabilities, self.task.reconstruct
        if probabilities is not None:
            return lambda state, images: probabilities(state, {"image": images})
        if apply is None:
            hint = ". Use --sample N to generate images" if self.task.sample else ""
            raise UserError(f"this model cannot run on images alone{hint}")
        return apply

    def __call__(self, images: UInt8[np.ndarray, "B h w C"]) -> Float[np.ndarray, "B ..."]:
        """Returns probabilities [B, V], or an autoencoder's reconstructions [B, h, w, C] in [0, 1].

        Raises:
            ValueError: the images have a different shape or dtype.
            UserError: the model neither classifies nor reconstructs images.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"images must be uint8 [B, *{self.image_shape}], got {images.dtype} {images.shape}")
        parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
        return np.concatenate([np.asarray(self._compiled(self.state, part)) for part in parts])

    @cached_property
    def _compiled(self) -> Callable[[State, Any], Any]:
        """`apply`, compiled once for each number of images."""
        return jax.jit(self.apply)

    def sample(self, count: int, seed: int = 0) -> Float[np.ndarray, "B h w C"]:
        """Samples `count` images in [0, 1] from a generative model.

        Raises:
            UserError: the model is not generative, or `count` is not positive.
        """
        if self.task.sample is None:
            raise UserError(f"sample needs a generative model, such as a run of train.aae, got {kind_of(self.config)}")
        if not 1 <= count <= _MOST_SAMPLES:
            raise UserError(f"--sample must be from 1 to {_MOST_SAMPLES}, got {count}")
        return np.asarray(self.task.sample(self.state, jax.random.key(seed), count))

    def read(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "B h w C"]:
        """Reads image files of any size and mode, and converts them like the images of the evaluation.

        Raises:
            UserError: a file cannot be read as an image.
        """
        images = []
        for path in paths:
            try:
                images.append(self.decode(read_image_bytes(path, MODES[self.image_shape[-1]])))
            except IMAGE_ERRORS as error:
                raise UserError(f"{path} cannot be read as an image ({error})") from error
        return np.stack(images)

    def decode(self, encoded: bytes) -> UInt8[np.ndarray, "h w C"]:
        """Decodes the bytes of an image file, and resizes and cuts the image as `read` does.

        Raises:
            ValueError: as in `train.data.decode.decode`.
        """
        height, width, channels = self.image_shape
        data = self.config.data
        part = None if data.crop is None else partial(central_box, size=(height, width))
        return decode(encoded, channels, (height, width), part, data.interpolation or "bilinear", self.spec)[0]

    def box(self, height: int, width: int) -> Box:
        """Returns which part of an upright image `read` keeps: (left, top, right, bottom) in pixels of the image.

        The part extends beyond the image where the model's input is black.
        """
        if self.spec is not None:
            return self.spec.source_box(height, width)
        if self.config.data.crop is None:
            return 0.0, 0.0, float(width), float(height)
        return central_box(width, height, self.image_shape[:2])


def make_predictor(config: Any, images: ImageInfo, variables: Mapping[str, Any], note: str) -> Predictor:
    """Makes a predictor from a task's config, the description of its images, and variables.

    Raises:
        UserError: the config does not belong to a task.
    """
    variables = jax.device_put(variables)  # Done once here instead of in every call.
    state = State(jnp.zeros((), jnp.int32), variables["params"], None, None, variables.get("batch_stats", {}))
    spec = resizing_spec(config.data, images.image_shape)
    return Predictor(make_task(config, images), config, *images, note, state, spec)


def make_task(config: Any, images: ImageInfo) -> Task:
    """Makes the task of a config, without images.

    Raises:
        UserError: the config does not belong to a task.
    """
    name = task_of(config)
    if name is None:
        raise UserError(f"{type(config).__module__} is not the file of a task. Choose one of {', '.join(task_names())}")
    return task_maker(name)(config, _abstract(config, images))


def _abstract(config: Any, images: ImageInfo) -> Source:
    shape, labels = images
    source = AbstractSource(
        config.data.name, "train", shape, len(labels), labels, count=1, open_split=lambda split: source
    )
    return source


def kind_of(config: Any) -> str:
    """Returns the class of the config's model with its article, such as "a ViT"."""
    name = type(config.model).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
