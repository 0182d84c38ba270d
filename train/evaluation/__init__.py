"""Metrics of a generative autoencoder's codes and samples, as pure functions of arrays.

The modules `aae_*` apply them to the adversarial autoencoder.
"""
