"""Descriptions of metrics for readers of a report who do not know the code."""

METRIC_DESCRIPTIONS = {
    "accuracy": "fraction of images whose most probable class is correct, from 0 to 1; higher is better",
    "balanced_accuracy": "mean of the accuracies of the classes, so that each class counts the same, from 0 to 1; "
    "higher is better",
    "top5_accuracy": "fraction of images whose class is among the five most probable ones; higher is better",
    "loss": "cross-entropy in nats; lower is better",
    "grad_norm": "L2 norm of the gradient before clipping",
    "skipped": "number of training steps since the previous point that were skipped because of NaN or infinity",
    "reconstruction": "mean squared error per pixel, in the range of the decoder's output; lower is better",
    "learning_rate": "as the schedule sets it for each step, before any factors of layers",
    "examples_per_second": "training images per second, without the time for evaluations and checkpoints",
}
"""Descriptions of the metrics that several tasks share, by their names in metrics.jsonl. A task describes its other
metrics in `Task.metric_descriptions`."""
