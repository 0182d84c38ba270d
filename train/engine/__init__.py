"""The training loop and its parts: setup, steps, evaluation, publishing, checkpoints, sharding."""
