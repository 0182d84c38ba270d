"""Layer normalization (Ba, Kiros & Hinton 2016, "Layer Normalization", arXiv 1607.06450), over the last axis.

Axis names: D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.kernels.layer_norm import standardize


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · scale + bias, as torch.nn.LayerNorm; statistics in float32 at least.

    Equation 3 of the paper: mean and biased variance of the vector's own values. Parameters: `scale` [D], and `bias`
    [D] with `use_bias`, as in flax.linen.LayerNorm.
    """

    eps: float  # added to the variance
    use_bias: bool = True  # a learned bias beside the learned scale
    dtype: str = "float32"  # of the result; parameters are float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Each vector normalised by itself."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = standardize(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.eps) * scale
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(self.dtype)
