"""Metrics in words, for readers of a report who do not know the code."""

METRIC_DESCRIPTIONS = {
    "accuracy": "share of images whose most probable class is the right one",
    "loss": "cross-entropy, in nats",
    "grad_norm": "norm of the gradient, before clipping",
    "skipped": "steps left out because a value was NaN or infinite",
    "reconstruction": "mean squared error per pixel",
    "examples_per_second": "training throughput; evaluations and checkpoints are not counted",
}
"""By name in metrics.jsonl, for the metrics that several tasks share. `Task.metric_descriptions` has a task's own."""
