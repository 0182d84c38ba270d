"""The course's LSTM classifier in PyTorch, and its parameters in our layout."""

import jax.numpy as jnp
from torch import nn
from torch_recurrent import our_params


class TorchLSTMClassifier(nn.Module):
    def __init__(self, width, hidden, layers, classes, proj_size=0):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, proj_size=proj_size)
        self.linear = nn.Linear(proj_size or hidden, classes)

    def forward(self, x):
        """x [B, T, I]."""
        return self.linear(self.lstm(x)[0][:, -1])

    def our_params(self, gradients=False):
        """Returns the parameters, or gradients, in the layout of our LSTMClassifier."""
        weight, bias = ((x.grad if gradients else x).detach().numpy() for x in self.linear.parameters())
        head = {"kernel": jnp.array(weight.T), "bias": jnp.array(bias)}
        return {"lstm": our_params(self.lstm, gradients), "head": head}
