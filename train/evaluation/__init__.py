"""What a generative autoencoder's codes and samples are worth: pure functions of arrays, in no need of its model."""
