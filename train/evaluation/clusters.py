"""Unsupervised clustering by a categorical code, as adversarial autoencoders are measured by it.

Makhzani et al. 2015, "Adversarial Autoencoders" (arXiv 1511.05644), section 6.
"""

import numpy as np
from jaxtyping import Float, Int

from train.evaluation.arrays import Anywhere, classes, points


def cluster_labels(probabilities: Float[Anywhere, "V K"], labels: Int[Anywhere, "V"]) -> Int[np.ndarray, "K"]:
    """The label of each cluster i: that of the validation image x_n with the highest q(y_i | x_n), the first of equals.

    It is the paper's rule, and costs one look at an image for each cluster, where a majority would need all labels.

    Args:
        probabilities: q(y_i | x_n) of image n and cluster i. A trained network is so sure that in float32 many of them
            round to 1 and are equals; a softmax in float64 keeps them apart.
        labels: of the images.

    Raises:
        ValueError: if there are no images, or shapes do not fit each other.
    """
    values = points("probabilities", probabilities)
    return classes("labels", labels, len(values))[values.argmax(axis=0)]


def clustering_error(
    validation_probabilities: Float[Anywhere, "V K"],
    validation_labels: Int[Anywhere, "V"],
    test_probabilities: Float[Anywhere, "N K"],
    test_labels: Int[Anywhere, "N"],
) -> float:
    """Part of the test images, from 0 to 1, whose likeliest cluster has another label than they.

    The clusters are labelled by the validation images (`cluster_labels`).

    Raises:
        ValueError: if there are no images, or shapes do not fit each other.
    """
    named = cluster_labels(validation_probabilities, validation_labels)
    values = points("test_probabilities", test_probabilities)
    if values.shape[1] != len(named):
        raise ValueError(f"test_probabilities: wanted {len(named)} clusters, got {values.shape[1]}")
    return float((named[values.argmax(axis=1)] != classes("test_labels", test_labels, len(values))).mean())
