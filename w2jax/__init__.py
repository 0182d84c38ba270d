"""The models people learn in PyTorch, in JAX and Flax: attention and the Vision Transformer."""

from w2jax.attention import MultiHeadAttention, scaled_dot_product_attention
from w2jax.vit import ViT

__all__ = ["MultiHeadAttention", "ViT", "scaled_dot_product_attention"]
