"""Computes the final metrics of an adversarial autoencoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from configs.aae import Config
from train.data import Source
from train.evaluation.aae_apply import apply_eval, pixels_to_model_range, sample_images
from train.evaluation.clusters import clustering_error
from train.evaluation.frechet import digit_features, frechet_distance
from train.evaluation.mmd import mmd
from train.evaluation.parzen import parzen
from train.evaluation.probe import probe_accuracy
from train.task import State

METRIC_DESCRIPTIONS = {
    "discriminator": "cross-entropy in nats, summed over the discriminators; guessing gives ln 2 = 0.69 for each",
    "generator": "adversarial loss of the encoder in nats, summed over the discriminators; lower is better for it",
    "discriminator_accuracy": "fraction of codes and prior samples that are classified correctly; guessing gives 0.5",
    "head_distance_loss": "mean of max(0, --head-distance − distance) over pairs of cluster heads; lower is better",
    "classification": "cross-entropy of the encoder's categories in nats, plus any consistency term; lower is better",
    "parzen": "mean log-likelihood of a test image in nats, by a Parzen window over samples; higher is better",
    "parzen_standard_error": "standard error of parzen, in nats",
    "parzen_sigma": "width of the Parzen window (pixels in 0..1), chosen on the validation split",
    "parzen_of_training_images": "parzen with training images instead of samples, for comparison",
    "mmd": "squared maximum mean discrepancy between test codes and prior; 0 if they match, lower is better",
    "mmd_of_prior": "mmd between two sets of samples of the prior, for comparison",
    "frechet": "Fréchet distance between samples and test images, in features of a digit classifier; lower is better",
    "frechet_of_training_images": "frechet between training and test images, for comparison",
    "probe_accuracy": "accuracy of a linear classifier on the test codes, from 0 to 1; higher is better",
    "clustering_error": "fraction of test images whose cluster has the wrong label, from 0 to 1; lower is better",
}
"""Descriptions of the autoencoder's own metrics."""

MIN_EXAMPLES = 2  # smallest number of images of a split; the discrepancies compare pairs
MAX_CODES = 4_000  # largest number of codes to compare with the prior
DIGITS = ("mnist", "mnist_sample")  # the datasets that `digit_features` was trained for


def make_final_metrics(config: Config, train: Source) -> Callable[[State, Source], dict[str, float]]:
    """Returns `final_metrics(state, test)`, which measures a trained autoencoder and returns the metrics by name.

    `METRIC_DESCRIPTIONS` explains the metrics. `frechet` is computed only for digits, and `clustering_error` only if
    labels did not supervise the categories. `config.metric_examples` is the number of samples, and the largest number
    of images used from each split.

    Raises:
        UserError: if `config.validation_split` does not exist.
    """
    model, num_classes, count = config.model, train.num_classes, config.metric_examples
    validation = train.open_split(config.validation_split)

    @jax.jit
    def encode(state: State, pixels: Array) -> tuple[Array, Array]:
        code = apply_eval(model, state, lambda aae: aae.encode(pixels_to_model_range(aae, pixels)))
        return code.z, jnp.zeros((len(pixels), 0)) if code.logits is None else code.logits

    @jax.jit
    def sample(state: State, key: Array) -> Array:
        return sample_images(config, num_classes, state, count, key)

    @jax.jit
    def sample_codes(state: State, key: Array) -> Array:
        return apply_eval(model, state, lambda aae: aae.sample_codes(2 * MAX_CODES), key)

    def final_metrics(state: State, test: Source) -> dict[str, float]:
        key, prior_key = jax.random.split(jax.random.key(config.run.seed))
        train_set, validation_set, test_set = (_spread_examples(split, count) for split in (train, validation, test))
        (z, logits), (_, validation_logits), (test_z, test_logits) = (
            map(np.asarray, encode(state, split["image"])) for split in (train_set, validation_set, test_set)
        )
        samples = np.asarray(sample(state, key))

        images = {
            split: _flat(examples["image"] / 255.0)
            for split, examples in (("train", train_set), ("validation", validation_set), ("test", test_set))
        }
        window = parzen(_flat(samples), images["validation"], images["test"])
        values = {
            "parzen": window.log_likelihood,
            "parzen_standard_error": window.standard_error,
            "parzen_sigma": window.sigma,
            "parzen_of_training_images": parzen(*images.values()).log_likelihood,
        }
        prior, prior_again = np.split(np.asarray(sample_codes(state, prior_key)), 2)
        spread = float(prior.std())
        values |= {"mmd": mmd(test_z[:MAX_CODES], prior, spread), "mmd_of_prior": mmd(prior_again, prior, spread)}
        if train.name in DIGITS:
            # Both distances use equally many images, because the distance of finite sets depends on their size.
            size = min(len(train_set["image"]), len(test_set["image"]))
            pixels = [split["image"][:size].astype(np.float32) / 255.0 for split in (train_set, test_set)]
            train_features, test_features, sample_features = map(digit_features, (*pixels, samples[:size]))
            values |= {
                "frechet": frechet_distance(sample_features, test_features),
                "frechet_of_training_images": frechet_distance(train_features, test_features),
            }
        values["probe_accuracy"] = probe_accuracy(
            np.hstack([z, _softmax(logits)]),
            train_set["label"],
            np.hstack([test_z, _softmax(test_logits)]),
            test_set["label"],
            num_classes,
        )
        if model.encoder.categories and config.labels != "categories":
            values["clustering_error"] = clustering_error(
                _softmax(validation_logits), validation_set["label"], _softmax(test_logits), test_set["label"]
            )
        return values

    return final_metrics


def _spread_examples(source: Source, limit: int) -> dict[str, np.ndarray]:
    """Returns at most `limit` examples, evenly spaced over the split."""
    return source.gather(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax in float64. In float32 many probabilities would round to 1, so the most probable image of a
    category would be ambiguous.
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)
