"""Logging of a run: metric files, terminal output, TensorBoard and Weights & Biases."""
