"""The Fréchet distance (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6), on digits.

Inception's features, made for photographs, say little of handwriting. Here they come from a small classifier of MNIST
whose weights lie beside this file, so a distance is comparable with every other that is measured by these weights,
and with no published FID.
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

from train.evaluation.arrays import Anywhere, points, same_width

WEIGHTS = Path(__file__).with_name("digit_features.npz")
SIDE = 28  # pixels, of the images that the classifier knows
_IMAGES_AT_ONCE = 256  # 5 MB of activations


class DigitNet(nn.Module):
    """Two convolutions and a hidden layer.

    With the shipped weights (`benchmarks.makers.digit_features`) it is right about 99.27 % of MNIST's test images.
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

    return jax.lax.map(one, images, batch_size=_IMAGES_AT_ONCE)


def digit_features(images: Float[Anywhere, "N h w 1"]) -> Float[np.ndarray, "N 64"]:
    """What a classifier of MNIST's digits sees in images: the activations of its last hidden layer, none negative.

    Args:
        images: in [0, 1], a digit bright on 0; other sizes than 28×28 are resized.

    Raises:
        ValueError: if `images` are not floats of that shape.
    """
    if images.ndim != 4 or images.shape[-1] != 1 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: wanted floats [N, h, w, 1] in [0, 1], got {images.dtype} {list(images.shape)}")
    return np.asarray(classify(load_weights(), jnp.asarray(images, jnp.float32))[1])


def frechet_distance(x: Float[Anywhere, "N F"], y: Float[Anywhere, "M F"]) -> float:
    """Squared Wasserstein-2 distance of the normal distributions that have the means and covariances of x and y.

    |m_x - m_y|² + Tr(S_x + S_y - 2 (S_x S_y)^½), in the square of the features' unit; 0 for equal sets. Finite sets
    of one distribution are apart by something like 1/N, so compare numbers of the same N and M only. By
    `digit_features`, 10,000 training images of MNIST are 0.74 from 10,000 others and 1.87 from its test images, which
    are 18.6 from blurred ones (each pixel averaged with two neighbours) and 910 from noise.

    Raises:
        ValueError: if x or y are not at least 2 points of as many features.
    """
    x, y = points("x", x, least=2), points("y", y, least=2)
    same_width(x=x, y=y)
    (mean_x, covariance_x), (mean_y, covariance_y) = _moments(x), _moments(y)
    # (S_x S_y)^½ has the eigenvalues of (S_x^½ S_y S_x^½)^½, which is symmetric: no complex parts to throw away.
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
