"""Final metrics of an adversarial autoencoder."""

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
    "discriminator": "cross-entropy of the discriminator; ln 2 = 0.69 is guessing",
    "generator": 'cross-entropy of the encoder\'s codes with the answer "from the prior"',
    "discriminator_accuracy": "share of codes that the discriminator classifies correctly; 0.5 is guessing",
    "head_distance_loss": "mean distance by which pairs of cluster heads are too close",
    "classification": "cross-entropy of the encoder's categories",
    "parzen": "log-likelihood of the test images in nats, by a Parzen window over samples",
    "parzen_standard_error": "standard error of that mean",
    "parzen_sigma": "width of that window, chosen on the validation split",
    "parzen_of_training_images": "the same with training images instead of samples",
    "mmd": "squared maximum mean discrepancy between the test codes and the prior",
    "mmd_of_prior": "the same for two sets of samples of the prior",
    "frechet": "Fréchet distance between samples and test images, in the features of a digit classifier",
    "frechet_of_training_images": "the same for training images and test images",
    "probe_accuracy": "accuracy of a linear classifier on the test codes",
    "clustering_error": "share of images whose cluster has another class",
}
"""The autoencoder's own metrics in words."""

MAX_CODES = 4_000  # that are compared with the prior
DIGITS = ("mnist", "mnist_sample")  # the datasets that `digit_features` was trained for


def make_final_metrics(config: Config, train: Source) -> Callable[[State, Source], dict[str, float]]:
    """The function that measures a trained autoencoder: `final_metrics(state, test)` by name.

    `METRIC_DESCRIPTIONS` has them in words. frechet is measured on digits only, clustering_error only where labels did
    not supervise the categories. `config.metric_examples` is the number of samples, and the most images of a split.

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
            # Of the same number of images each: the distance of finite sets depends on their size.
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
    """At most `limit` examples, spread evenly over the split."""
    return source.gather(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """In float64: in float32 many probabilities round to 1, and no image would be a category's most probable one."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)
