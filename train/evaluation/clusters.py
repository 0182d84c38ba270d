"""The error rate of unsupervised clustering by a categorical code, as measured for adversarial autoencoders.

Makhzani et al. 2015, "Adversarial Autoencoders" (arXiv 1511.05644), section 6.
"""

import numpy as np
from jaxtyping import Float, Int

from train.evaluation.arrays import HostOrDevice, check_labels, check_points


def cluster_labels(probabilities: Float[HostOrDevice, "V K"], labels: Int[HostOrDevice, "V"]) -> Int[np.ndarray, "K"]:
    """Gives each cluster i the label of the validation image x_n with the highest q(y_i | x_n).

    If several images have the same value, the first one decides. This is the paper's rule. It needs one label for each
    cluster, but a majority vote would need all labels.

    Args:
        probabilities: q(y_i | x_n) of image n and cluster i. Compute the softmax in float64: in float32 many
            probabilities of a trained network round to 1 and are equal.
        labels: labels of the images.

    Raises:
        ValueError: if there are no images, or shapes do not fit each other.
    """
    values = check_points("probabilities", probabilities)
    return check_labels("labels", labels, len(values))[values.argmax(axis=0)]


def clustering_error(
    validation_probabilities: Float[HostOrDevice, "V K"],
    validation_labels: Int[HostOrDevice, "V"],
    test_probabilities: Float[HostOrDevice, "N K"],
    test_labels: Int[HostOrDevice, "N"],
) -> float:
    """Returns the fraction of test images, from 0 to 1, whose most probable cluster has the wrong label.

    The validation images determine the labels of the clusters (see `cluster_labels`).

    Raises:
        ValueError: if there are no images, or shapes do not fit each other.
    """
    named = cluster_labels(validation_probabilities, validation_labels)
    values = check_points("test_probabilities", test_probabilities)
    if values.shape[1] != len(named):
        raise ValueError(f"test_probabilities must have {len(named)} clusters, got {values.shape[1]}")
    return float((named[values.argmax(axis=1)] != check_labels("test_labels", test_labels, len(values))).mean())
