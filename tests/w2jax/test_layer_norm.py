"""LayerNorm and RMSNorm against torch: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from w2jax.layer_norm import LayerNorm, RMSNorm

X, G = (np.random.default_rng(seed).normal(3.0, 2.0, (2, 3, 7)).astype(np.float32) for seed in range(2))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_values_and_gradients_are_torchs():
    theirs = torch.nn.LayerNorm(7, eps=1e-3)
    scale, bias = np.linspace(0.5, 2, 7, dtype=np.float32), np.linspace(-1, 1, 7, dtype=np.float32)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(scale))
        theirs.bias.copy_(torch.from_numpy(bias))
    x = torch.from_numpy(X).requires_grad_()
    out = theirs(x)
    out.backward(torch.from_numpy(G))
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    ours, back = jax.vjp(lambda params, x: LayerNorm(1e-3).apply({"params": params}, x), params, jnp.asarray(X))
    gradients, in_x = back(jnp.asarray(G))
    close(ours, out.detach().numpy())
    close(in_x, x.grad.numpy())
    close(gradients["scale"], theirs.weight.grad.numpy())
    close(gradients["bias"], theirs.bias.grad.numpy())


def test_values_and_gradients_of_rms_norm_are_torchs():
    theirs = torch.nn.RMSNorm(7, eps=1e-1)
    scale = np.linspace(0.5, 2, 7, dtype=np.float32)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(scale))
    x = torch.from_numpy(X).requires_grad_()
    out = theirs(x)
    out.backward(torch.from_numpy(G))
    params = {"scale": jnp.asarray(scale)}
    ours, back = jax.vjp(lambda params, x: RMSNorm(1e-1).apply({"params": params}, x), params, jnp.asarray(X))
    gradients, in_x = back(jnp.asarray(G))
    close(ours, out.detach().numpy())
    close(in_x, x.grad.numpy())
    close(gradients["scale"], theirs.weight.grad.numpy())
    half = RMSNorm(1e-1, dtype="bfloat16").apply({"params": params}, jnp.asarray(X, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), ours, rtol=1e-2, atol=1e-2)


def test_in_bfloat16_the_statistics_are_exact():
    x = jnp.asarray(100.0 + X, jnp.bfloat16)
    module = LayerNorm(1e-6, dtype="bfloat16")
    variables = module.init(jax.random.key(0), x)
    out = module.apply(variables, x)
    exact = torch.nn.functional.layer_norm(torch.from_numpy(np.array(x, np.float32)), (7,), eps=1e-6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), exact.numpy(), rtol=1e-2, atol=1e-3)
