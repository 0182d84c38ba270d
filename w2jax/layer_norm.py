"""Layer normalization and RMS normalization over the last axis.

Ba, Kiros & Hinton 2016, "Layer Normalization" <https://arxiv.org/abs/1607.06450>, and Zhang & Sennrich 2019, "Root Mean
Square Layer Normalization" <https://arxiv.org/abs/1910.07467>.

Axis names: D width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.kernels.layer_norm import standardize
from w2jax.module import check_sizes


class LayerNorm(nn.Module):
    """Layer normalization, as in torch.nn.LayerNorm: (x − mean) / √(variance + eps) · scale + bias.

    Mean and biased variance are those of each vector's own values (equation 3 of the paper). They are computed in
    float32 or a wider type. Parameters: `scale` [D], and with `use_bias` also `bias` [D], as in flax.linen.LayerNorm.
    """

    eps: float  # Epsilon, added to the variance.
    use_bias: bool = True  # Add a learned bias.
    dtype: str = "float32"  # Data type of the result; parameters stay float32.

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalize each vector along the last axis."""
        check_sizes(at_least=0, eps=self.eps)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = standardize(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.eps) * scale
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """RMS normalization, as in torch.nn.RMSNorm: x / √(mean(x²) + eps) · scale (equation 4 of Zhang & Sennrich).

    The mean is computed in float32 or a wider type. Parameter: `scale` [D].
    """

    eps: float  # Epsilon, added to the mean square.
    dtype: str = "float32"  # Data type of the result; parameters stay float32.

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalize each vector along the last axis."""
        check_sizes(at_least=0, eps=self.eps)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps) * scale
        return y.astype(self.dtype)
