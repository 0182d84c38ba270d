"""Metrics of a generative autoencoder's codes and samples: pure functions of arrays. `aae_*` apply them to the AAE."""
