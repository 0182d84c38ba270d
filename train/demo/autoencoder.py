"""Images of an autoencoder: of codes, of samples of the prior, and on the way from one image to another."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from train.data import Source, open_source
from train.predict import Predictor
from train.process.errors import UserError
from train.report.pictures import to_pixels
from train.task import Latent

SAMPLES = 20
"""Number of images that are sampled at a time."""
_CODES = 2000  # samples of the prior, to know its range

Pixels = UInt8[np.ndarray, "h w C"]


class Autoencoder:
    """An autoencoder, each of whose functions is compiled once."""

    def __init__(self, predictor: Predictor):
        """Compiles nothing yet. `predictor` must not classify."""
        self.predictor, self.latent = predictor, predictor.task.latent
        if self.latent is not None:
            self._encode, self._decode = jax.jit(self.latent.encode), jax.jit(self.latent.decode)

    @property
    def reconstructs(self) -> bool:
        """Whether the model gives an image again without knowing its label."""
        return self.predictor.task.reconstruct is not None

    @property
    def needs_kind(self) -> bool:
        """Whether the decoder needs a label or category that the encoder does not compute."""
        return self.latent is not None and self.latent.num_kinds > 0 and not self.reconstructs

    def test_images(self) -> Source:
        """Opens the test split of the run.

        Raises:
            UserError: the dataset is not on this machine, or has images of another shape.
        """
        data = self.predictor.config.data
        source = open_source(data, data.test_split)
        if source.image_shape != self.predictor.image_shape:
            raise UserError(
                f"the images of dataset {data.name} must have the shape {self.predictor.image_shape}, got "
                f"{source.image_shape}. Use the dataset of the run"
            )
        return source

    def ranges(self) -> list[tuple[float, float]]:
        """The smallest and the largest value of each dimension of samples of the prior, rounded."""
        codes = np.asarray(self.codes.sample(jax.random.key(0), _CODES))
        return [
            (round(float(low), 1), round(float(high), 1)) for low, high in zip(codes.min(0), codes.max(0), strict=True)
        ]

    def decode(self, z: Sequence[float], kind: int | None = None) -> Pixels:
        """Decodes a code. `kind` is the number of the label or category, if there are any."""
        return self._decoded(jnp.asarray(z, jnp.float32)[None], self._one_hot(kind))

    def walk(self, first: Pixels, second: Pixels, shares: Sequence[float], kind: int | None = None) -> list[Pixels]:
        """Decodes codes at `shares` of the straight line from the code of the first image to that of the second.

        `kind` is the number of the label, if the encoder does not compute y.
        """
        (z, y), (other_z, other_y) = (self._encode(self.predictor.state, image[None]) for image in (first, second))

        def at(share: float) -> Pixels:
            kinds = self._one_hot(kind) if y is None else (1.0 - share) * y + share * other_y
            return self._decoded((1.0 - share) * z + share * other_z, kinds)

        return [at(share) for share in shares]

    def reconstruct(self, image: Pixels) -> Pixels:
        """Encodes and decodes an image."""
        if not self.reconstructs:
            raise UserError("the decoder must need no label to reconstruct an image. Use the tab Between two images")
        return to_pixels(self.predictor(image[None])[0])

    def sample(self, seed: int) -> list[Pixels]:
        """Samples images from the prior."""
        return [to_pixels(image) for image in self.predictor.sample(SAMPLES, seed)]

    def read(self, path: Path) -> Pixels:
        """Reads an image file as `Predictor.read`."""
        return self.predictor.read([path])[0]

    @property
    def codes(self) -> Latent:
        """The codes of the model.

        Raises:
            UserError: the model has none.
        """
        if self.latent is None:
            raise UserError("the codes of this model cannot be read. Use a run of train.aae")
        return self.latent

    def _one_hot(self, kind: int | None) -> Float[Array, "1 K"] | None:
        return jax.nn.one_hot(jnp.array([kind or 0]), self.codes.num_kinds) if self.codes.num_kinds else None

    def _decoded(self, z: Array, y: Array | None) -> Pixels:
        return to_pixels(np.asarray(self._decode(self.predictor.state, z, y))[0])
