"""Converts parameters of torch's recurrent modules to ours, and ours to torch's."""

import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange

# torch's name, our name, and the einops pattern from torch's layout to ours
RULES = [
    ("weight_ih", "input_kernel", "(g h) i -> i g h"),
    ("weight_hh", "hidden_kernel", "(g h) p -> p g h"),
    ("bias_ih", "input_bias", "(g h) -> g h"),
    ("bias_hh", "hidden_bias", "(g h) -> g h"),
    ("weight_hr", "projection_kernel", "p h -> h p"),
]


def our_params(module, gradients=False):
    """Returns the parameters, or gradients, of a torch.nn.LSTM, GRU or RNN in our layout."""
    theirs = {name: (x.grad if gradients else x).detach().numpy() for name, x in module.named_parameters()}
    params = {}
    for layer in range(module.num_layers):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            group = {}
            for name, ours, pattern in RULES:
                value = theirs.pop(f"{name}_l{layer}{suffix}", None)
                if value is not None:
                    sizes = {"h": module.hidden_size} if "(g h)" in pattern else {}
                    group[ours] = jnp.asarray(rearrange(value, pattern, **sizes).copy())
            if group:
                params[f"{direction}_{layer}"] = group
    assert not theirs, f"left over: {sorted(theirs)}"
    return params


def to_torch(x):
    return torch.from_numpy(np.asarray(x).copy()).requires_grad_()
