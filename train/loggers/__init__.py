"""What a run records while it trains: metrics, the terminal, TensorBoard and Weights & Biases."""
