"""The Fréchet distance (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6) for digits.

Inception's features are made for photographs and say little about handwriting. This module uses features of a small
MNIST classifier, whose weights are in digit_features.npz. So you can compare these distances with each other, but not
with published FIDs.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from train.evaluation.arrays import HostOrDevice, check_points, check_same_width

WEIGHTS = Path(__file__).with_name("digit_features.npz")
SIDE = 28  # pixels of the classifier's images
_BATCH_SIZE = 256  # 5 MB of activations


class DigitNet(nn.Module):
    """A digit classifier with two convolutions and one hidden layer.

    With the included weights (made by `benchmarks.makers.digit_features`), its accuracy on MNIST's test images is
    99.27 %.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "B 28 28 1"]) -> tuple[Float[Array, "B 10"], Float[Array, "B 64"]]:
        """Returns (logits, activations of the last hidden layer) for images in [0, 1]."""
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv_1")(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2, name="conv_2")(x))
        features = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(features), features


@cache
def load_weights(path: Path = WEIGHTS) -> dict[str, Any]:
    """Loads DigitNet's parameters as float32. The npz file stores them by path, such as "conv_1/kernel"."""
    with np.load(path, allow_pickle=False) as file:
        return unflatten_dict({name: file[name].astype(np.float32) for name in file.files}, sep="/")


@jax.jit
def classify(
    weights: dict[str, Any], images: Float[Array, "N h w 1"]
) -> tuple[Float[Array, "N 10"], Float[Array, "N 64"]]:
    """Returns (logits, features) of images in [0, 1], after a bilinear resize to 28×28 with antialiasing."""

    def one(image: Float[Array, "h w 1"]):
        resized = jax.image.resize(image, (SIDE, SIDE, 1), "linear")
        return jax.tree.map(lambda x: x[0], DigitNet().apply({"params": weights}, resized[None]))

    return jax.lax.map(one, images, batch_size=_BATCH_SIZE)


def digit_features(images: Float[HostOrDevice, "N h w 1"]) -> Float[np.ndarray, "N 64"]:
    """Returns features of images: the activations (≥ 0) of the last hidden layer of an MNIST classifier.

    Args:
        images: pixels in [0, 1], a bright digit on a background of 0. Sizes other than 28×28 are resized.

    Raises:
        ValueError: `images` are not floats [N, h, w, 1].
    """
    if images.ndim != 4 or images.shape[-1] != 1 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats [N, h, w, 1] in [0, 1], got {images.dtype} {list(images.shape)}")
    return np.asarray(classify(load_weights(), jnp.asarray(images, jnp.float32))[1])


def frechet_distance(x: Float[HostOrDevice, "N F"], y: Float[HostOrDevice, "M F"]) -> float:
    """Returns the squared Wasserstein-2 distance of normal distributions with the means and covariances of x and y.

    This is |m_x - m_y|² + Tr(S_x + S_y - 2 (S_x S_y)^½), in the squared unit of the features. It is 0 for equal sets.
    Two finite sets from the same distribution have a distance of the order of 1/N, so only compare values with the
    same N and M.

    Examples with `digit_features`, for sets of 10,000 MNIST images:

    - training images and other training images: 0.74
    - training images and test images: 1.87
    - test images and blurred test images (each pixel averaged with two neighbors): 18.6
    - test images and noise: 910

    Raises:
        ValueError: x or y has fewer than 2 points, or they have different numbers of features.
    """
    x, y = check_points("x", x, minimum=2), check_points("y", y, minimum=2)
    check_same_width(x=x, y=y)
    (mean_x, covariance_x), (mean_y, covariance_y) = _moments(x), _moments(y)
    # (S_x S_y)^½ has the same eigenvalues as the symmetric matrix (S_x^½ S_y S_x^½)^½, which avoids complex numbers.
    values, vectors = np.linalg.eigh(covariance_x)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    both = np.linalg.eigvalsh(root @ covariance_y @ root)
    shared = 2 * np.sqrt(np.maximum(both, 0)).sum()
    distance = ((mean_x - mean_y) ** 2).sum() + np.trace(covariance_x) + np.trace(covariance_y) - shared
    return max(float(distance), 0.0)


def _moments(x: Float[np.ndarray, "N F"]) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F F"]]:
    """Returns the mean and unbiased covariance in float64, because the distance is a small difference of traces."""
    mean = x.mean(axis=0, dtype=np.float64)
    centered = x - mean
    return mean, centered.T @ centered / (len(x) - 1)
