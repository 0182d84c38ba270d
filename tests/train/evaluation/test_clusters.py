"""Clusters are labeled by the paper's rule, which is not the majority vote."""

import numpy as np
import pytest

from train.evaluation.clusters import cluster_labels, clustering_error

# Cluster 0 has three images: two are sevens, but the most probable one is a five. Cluster 2 has no image; the image
# with the highest probability for cluster 2 is a two.
VALIDATION = np.array(
    [[0.95, 0.03, 0.02], [0.90, 0.06, 0.04], [0.85, 0.05, 0.10], [0.10, 0.80, 0.10], [0.30, 0.37, 0.33]]
)
LABELS = np.array([5, 7, 7, 3, 2])
TEST = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])


def test_a_cluster_gets_the_label_of_its_most_probable_image():
    assert cluster_labels(VALIDATION, LABELS).tolist() == [5, 3, 2]


def test_the_error_counts_test_images_whose_cluster_has_another_label():
    assert clustering_error(VALIDATION, LABELS, TEST, np.array([5, 7, 3, 2])) == 0.25
    assert clustering_error(VALIDATION, LABELS, TEST, np.array([7, 7, 2, 3])) == 1.0


def test_permuted_clusters_keep_their_labels_and_the_error():
    order = [2, 0, 1]
    assert cluster_labels(VALIDATION[:, order], LABELS).tolist() == [2, 5, 3]
    labels = np.array([5, 7, 3, 2])
    assert clustering_error(VALIDATION[:, order], LABELS, TEST[:, order], labels) == 0.25


def test_float64_separates_probabilities_near_one_and_ties_go_to_the_first():
    unsure = np.array([[2e-9, 1], [1e-13, 0], [1, 0]])
    labels = np.array([1, 2, 3])
    assert cluster_labels(1 - unsure, labels).tolist() == [2, 2]
    assert cluster_labels(np.float32(1 - unsure), labels).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VALIDATION[0], LABELS, TEST, LABELS[:4]), r"probabilities must be floats \[N, D\], got float64 \[3\]"),
        ((VALIDATION[:0], LABELS[:0], TEST, LABELS[:4]), "probabilities must have 1 or more rows, got 0"),
        ((VALIDATION, LABELS[:4], TEST, LABELS[:4]), r"labels must be integers \[5\], got int64 \[4\]"),
        ((VALIDATION, LABELS, TEST[:, :2], LABELS[:4]), "test_probabilities must have 3 clusters, got 2"),
        ((VALIDATION, LABELS, TEST, LABELS), r"test_labels must be integers \[4\], got int64 \[5\]"),
    ],
)
def test_mismatched_inputs_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        clustering_error(*arguments)
