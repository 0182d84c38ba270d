"""What the metrics are, in words, for those who read a page without knowing the code."""

METRIC_DESCRIPTIONS = {
    "accuracy": "share of images whose likeliest class is the right one",
    "loss": "cross-entropy, in nats",
    "grad_norm": "length of the gradient, before it is clipped",
    "skipped": "steps that were left out, as they were not finite",
    "reconstruction": "mean squared error of a pixel",
    "discriminator": "its cross-entropy; ln 2 = 0.69 is a guess",
    "generator": "cross-entropy of the encoder's codes with being the prior's",
    "discriminator_accuracy": "share that the discriminator tells right; 0.5 is a guess",
    "head_distance_loss": "by how much cluster heads are closer than they should be",
    "parzen": "log-likelihood of the test images in nats, by a Parzen window over samples",
    "parzen_standard_error": "of that mean",
    "parzen_sigma": "width of that window",
    "parzen_of_training_images": "what real images get instead of samples",
    "mmd": "how far the test codes are from the prior: squared maximum mean discrepancy",
    "mmd_of_prior": "what other samples of the prior get",
    "frechet": "distance of samples from test images, in the features of a digit classifier",
    "frechet_of_training_images": "what real images get instead of samples",
    "probe_accuracy": "of a linear classifier on the test codes",
    "clustering_error": "share of images that are not of their cluster's class",
    "examples_per_second": "while it trains: evaluations and checkpoints are not counted",
}
"""By the metric's name in metrics.jsonl; one of a task that is not here stands without words."""
