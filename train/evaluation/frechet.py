"""The Fréchet distance (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6), on digits.

Inception's features are made for photographs and say little about handwriting. These features come from a small
classifier of MNIST, whose weights are in digit_features.npz. So distances are comparable with each other, and not with
any published FID.
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
    """Two convolutions and a hidden layer.

    With the shipped weights (`benchmarks.makers.digit_features`) its accuracy on MNIST's test images is 99.27 %.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "B 28 28 1"]) -> tuple[Float[Array, "B 10"], Float[Array, "B 64"]]:
        """(logits, activations of the last hidden layer) of images in [0, 1]."""
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv_1")(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2, name="conv_2")(x))
        features = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(features), features


@cache
def load_weights(path: Path = WEIGHTS) -> dict[str, Any]:
    """DigitNet's parameters, float32, from an npz file of them by their paths, such as "conv_1/kernel"."""
    with np.load(path, allow_pickle=False) as file:
        return unflatten_dict({name: file[name].astype(np.float32) for name in file.files}, sep="/")


@jax.jit
def classify(
    weights: dict[str, Any], images: Float[Array, "N h w 1"]
) -> tuple[Float[Array, "N 10"], Float[Array, "N 64"]]:
    """(logits, features) of any number of images in [0, 1], resized to 28×28 bilinearly and without aliasing."""

    def one(image: Float[Array, "h w 1"]):
        resized = jax.image.resize(image, (SIDE, SIDE, 1), "linear")
        return jax.tree.map(lambda x: x[0], DigitNet().apply({"params": weights}, resized[None]))

    return jax.lax.map(one, images, batch_size=_BATCH_SIZE)


def digit_features(images: Float[HostOrDevice, "N h w 1"]) -> Float[np.ndarray, "N 64"]:
    """The features of images: the activations, none negative, of the last hidden layer of a classifier of MNIST.

    Args:
        images: in [0, 1], a digit bright on 0; other sizes than 28×28 are resized.

    Raises:
        ValueError: if `images` are not floats of that shape.
    """
    if images.ndim != 4 or images.shape[-1] != 1 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats [N, h, w, 1] in [0, 1], got {images.dtype} {list(images.shape)}")
    return np.asarray(classify(load_weights(), jnp.asarray(images, jnp.float32))[1])


def frechet_distance(x: Float[HostOrDevice, "N F"], y: Float[HostOrDevice, "M F"]) -> float:
    """Squared Wasserstein-2 distance of the normal distributions that have the means and covariances of x and y.

    |m_x - m_y|² + Tr(S_x + S_y - 2 (S_x S_y)^½), in the square of the features' unit; 0 for equal sets. Two finite
    sets of one distribution have a distance of about 1/N, so compare values of the same N and M only. With
    `digit_features`, 10,000 training images of MNIST have a distance of 0.74 to 10,000 others and of 1.87 to its test
    images, which have 18.6 to blurred ones (each pixel averaged with two neighbours) and 910 to noise.

    Raises:
        ValueError: if x or y are not at least 2 points with the same number of features.
    """
    x, y = check_points("x", x, minimum=2), check_points("y", y, minimum=2)
    check_same_width(x=x, y=y)
    (mean_x, covariance_x), (mean_y, covariance_y) = _moments(x), _moments(y)
    # (S_x S_y)^½ has the eigenvalues of (S_x^½ S_y S_x^½)^½, which is symmetric, so no complex parts arise.
    values, vectors = np.linalg.eigh(covariance_x)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    both = np.linalg.eigvalsh(root @ covariance_y @ root)
    shared = 2 * np.sqrt(np.maximum(both, 0)).sum()
    distance = ((mean_x - mean_y) ** 2).sum() + np.trace(covariance_x) + np.trace(covariance_y) - shared
    return max(float(distance), 0.0)


def _moments(x: Float[np.ndarray, "N F"]) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F F"]]:
    """Mean and unbiased covariance in float64: the distance is a small difference of traces."""
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)
