"""The course's adversarial autoencoder in PyTorch, and its parameters in our layout."""

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn


def hidden(width, sizes, dropout, batch_norm=()):
    layers = []
    for i, size in enumerate(sizes):
        norm = [nn.BatchNorm1d(size)] if i in batch_norm else []
        layers += [nn.Linear(width, size), *norm, nn.Dropout(dropout), nn.ReLU()]
        width = size
    return layers


class TorchEncoder(nn.Module):
    def __init__(self, pixels, sizes, latent, dropout=0.2):
        super().__init__()
        self.hidden = nn.Sequential(*hidden(pixels, sizes, dropout))
        self.mean, self.log_variance = nn.Linear(sizes[-1], latent), nn.Linear(sizes[-1], latent)

    def forward(self, images):
        x = self.hidden(images.flatten(1))
        return self.mean(x), self.log_variance(x)


def torch_decoder(latent, sizes, pixels, dropout=0.2):
    return nn.Sequential(*hidden(latent, sizes, dropout, batch_norm=(1,)), nn.Linear(sizes[-1], pixels), nn.Tanh())


def torch_discriminator(latent, sizes, dropout=0.2):
    return nn.Sequential(*hidden(latent, sizes, dropout), nn.Linear(sizes[-1], 1), nn.Sigmoid())


def our_params(module, names, gradients=False):
    """Returns the parameters, or gradients, of the linear and norm layers under our `names`, in order."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
    params = {}
    for name, layer in zip(names, layers, strict=True):
        weight, bias = (x.grad if gradients else x for x in (layer.weight, layer.bias))
        kernel = "kernel" if isinstance(layer, nn.Linear) else "scale"
        params[name] = {kernel: jnp.array(weight.detach().numpy().T), "bias": jnp.array(bias.detach().numpy())}
    return params


ENCODER = ("hidden_0", "hidden_1", "mean", "log_variance")
DECODER = ("hidden_0", "hidden_1", "norm_1", "output")
DISCRIMINATOR = ("hidden_0", "hidden_1", "output")


def our_statistics(decoder):
    """Returns the running statistics of the decoder's batch norm in our layout."""
    (norm,) = (layer for layer in decoder if isinstance(layer, nn.BatchNorm1d))
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return {"norm_1": {"mean": jnp.array(mean.numpy()), "var": jnp.array(var.numpy()), "count": jnp.int32(int(count))}}


def images_of(x):
    """Converts our images [B, h, w, 1] to torch's [B, 1, h, w]."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
