"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1).

Axis names: B batch, h and w image height and width, C channels, N tokens, D width, V classes.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.attention import MultiHeadAttention
from w2jax.blocks import Activation, EncoderBlock, Mlp, layer_norm
from w2jax.module import Inputs, Size, abstract, check_rates, submodule
from w2jax.transformer import TransformerEncoder

SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}
"""Width, depth, heads and MLP width by name: table 1 of the ViT paper (B, L, H), of DeiT (Ti, S), and table 2 of
"Scaling Vision Transformers" (g, G)."""


class PatchEmbed(nn.Module):
    """Cuts images into square patches, row by row, and projects each (equation 1)."""

    patch_size: int  # pixels; must divide both sides of the image
    embed_dim: int  # D
    use_bias: bool = True  # of the projection
    dtype: str = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, images: Float[Array, "B h w C"]) -> Float[Array, "B N D"]:
        """One token for each patch; N = h · w / patch_size²."""
        patches = rearrange(images, "b (n p1) (m p2) c -> b (n m) (p1 p2 c)", p1=self.patch_size, p2=self.patch_size)
        dense = nn.Dense(self.embed_dim, use_bias=self.use_bias, dtype=jnp.dtype(self.dtype), name="projection")
        return dense(patches)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; a residual MLP follows.

    The "MAP" head of Zhai et al. 2022, "Scaling Vision Transformers" (arXiv 2106.04560).
    """

    num_heads: int  # must divide D
    mlp_dim: int  # hidden width of the MLP
    activation: Activation = "gelu"  # of the MLP
    norm_eps: float = 1e-6  # of the LayerNorm
    dtype: str = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """One vector for each example."""
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, tokens.shape[-1]))
        probe = repeat(probe.astype(tokens.dtype), "1 1 d -> b 1 d", b=tokens.shape[0])
        x, _ = submodule(MultiHeadAttention, self, name="attention")(probe, tokens)
        x = x + submodule(Mlp, self, name="mlp")(layer_norm(self, "norm")(x))
        return rearrange(x, "b 1 d -> b d")


class ViT(nn.Module):
    """Embed → encoder → pool → LayerNorm → head (equations 1 to 4 of the paper).

    The image size is that of the images at `init`. The order of tokens is class token, registers, patches row by row.
    """

    num_classes: int  # V; 0 returns the pooled features instead of logits
    patch_size: int  # pixels; must divide both sides of the image
    embed_dim: int  # D, width of every token
    depth: int  # number of encoder blocks
    num_heads: int  # attention heads; must divide embed_dim
    mlp_dim: int  # hidden width of each block's MLP
    pool: Literal["cls", "gap", "map"] = "cls"  # class token, mean of the patches, or attention to the patches
    norm_after_pool: bool = False  # the last LayerNorm is on the pooled features, not on the tokens (timm's fc_norm)
    class_token: bool = True  # False only with pool gap or map
    positions: Literal["learned", "sincos2d"] = "learned"  # learned, or fixed waves of row and column
    class_position: bool = True  # the class token has a learned position too (False: big_vision)
    num_registers: int = 0  # extra learned tokens (Darcet et al. 2024, "Vision Transformers Need Registers")
    register_positions: bool = False  # they have learned positions too, behind the class token's
    patch_bias: bool = True  # a bias in the patches' projection
    embed_norm: bool = False  # a LayerNorm before the first block (CLIP)
    dropout: float = 0.0  # on embeddings, attention output and MLP
    attention_dropout: float = 0.0  # on the attention weights
    drop_path: float = 0.0  # stochastic depth: rate of the last block, 0 at the first
    layer_scale: float | None = None  # initial factor of each residual branch; None: no LayerScale
    qkv_bias: bool = True  # biases of queries, keys and values in the blocks
    qk_norm: bool = False  # LayerNorm on queries and keys
    attention_scale: float | None = None  # of the logits; None: 1/√(head width)
    residual_from_norm: bool = False  # attention's residual adds the normalised input, as the PyTorch course's code
    pre_logits_dim: int | None = None  # width of a tanh layer before the head; None: no such layer
    activation: Activation = "gelu"  # of the MLPs: exact GELU, its tanh form, x·σ(1.702 x), or ReLU
    norm_eps: float = 1e-6  # of every LayerNorm
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan_layers: bool = False  # one compiled block, parameters stacked along depth

    @classmethod
    def named(cls, name: str, num_classes: int, **options) -> "ViT":
        """A published size: Ti, S, B, L, H, g or G, a slash, and the patch size, such as "B/16".

        Raises:
            ValueError: if the name is not of that form.
        """
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit() or int(patch) == 0:
            raise ValueError(
                f'name must be one of {", ".join(SIZES)}, "/" and a patch size, such as "B/16", got "{name}"'
            )
        embed_dim, depth, num_heads, mlp_dim = SIZES[size]
        return cls(num_classes, int(patch), embed_dim, depth, num_heads, mlp_dim, **options)

    @nn.compact
    def __call__(
        self, images: Float[Array, "B h w C"], train: bool = False, return_attention: bool = False
    ) -> tuple[Float[Array, "B V"], list[Float[Array, "B H N N"]] | None]:
        """Classify images.

        Args:
            images: in any range of values, the same as in training.
            train: dropout and stochastic depth are on; needs the rng "dropout" if any of their rates is above 0.
            return_attention: return attention maps too.

        Returns:
            (logits [B, V] in float32, each block's attention map [B, H, N, N] or None). With `num_classes` 0, the
            pooled features [B, D] take the place of the logits.

        Raises:
            ValueError: if options do not fit each other or the image size.
        """
        self._check(images)
        dtype = jnp.dtype(self.dtype)

        x = submodule(PatchEmbed, self, use_bias=self.patch_bias, name="patch_embed")(images)
        x = self._prepend_and_position(x, (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.embed_norm:
            x = layer_norm(self, "embed_norm")(x)

        block = submodule(EncoderBlock, self, parent=None)
        encoder = submodule(TransformerEncoder, self, block=block, scan=self.scan_layers, name="encoder")
        x, attentions = encoder(x, train=train, return_attention=return_attention)

        x = x[:, 0] if self.pool == "cls" else x[:, self.class_token + self.num_registers :]
        if not self.norm_after_pool:
            x = layer_norm(self, "norm")(x)
        if self.pool == "gap":
            x = x.mean(axis=1)
        elif self.pool == "map":
            x = submodule(AttentionPool, self, name="pool")(x)
        if self.norm_after_pool:
            x = layer_norm(self, "pool_norm")(x)
        if self.pre_logits_dim is not None:
            x = jnp.tanh(nn.Dense(self.pre_logits_dim, dtype=dtype, name="pre_logits")(x))
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=dtype, name="head")(x)
        return x.astype(jnp.float32), attentions

    def _prepend_and_position(self, x: Array, grid: tuple[int, int]) -> Array:
        """Adds positions and puts the class token and the registers in front."""
        prefix = []  # parameters [1, tokens, D], and whether they have positions
        if self.class_token:
            prefix.append((self.param("cls", nn.initializers.zeros, (1, 1, self.embed_dim)), self.class_position))
        if self.num_registers:
            shape = (1, self.num_registers, self.embed_dim)
            prefix.append((self.param("registers", nn.initializers.normal(0.02), shape), self.register_positions))
        if self.positions == "learned":
            shape = (1, self.prefix_positions + x.shape[1], self.embed_dim)
            positions = self.param("positions", nn.initializers.normal(0.02), shape)
            in_front, on_patches = jnp.split(positions, [self.prefix_positions], axis=1)
        else:
            in_front, on_patches = jnp.zeros((1, 0, 0)), sincos2d_positions(grid, self.embed_dim)
        x, tokens = x + on_patches.astype(x.dtype), []
        for token, has_position in prefix:
            token = token.astype(x.dtype)
            if has_position and self.positions == "learned":
                position, in_front = jnp.split(in_front, [token.shape[1]], axis=1)
                token = token + position.astype(x.dtype)
            tokens.append(repeat(token, "1 n d -> b n d", b=x.shape[0]))
        return jnp.concatenate([*tokens, x], axis=1)

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        patch = self.patch_size
        patches = size("positions", 1, self.prefix_positions + 1) - self.prefix_positions
        channels = size("patch_embed/projection/kernel", 0, 3 * patch**2) // patch**2
        return (abstract(1, patch, patch * max(patches, 1), max(channels, 1)),)

    @property
    def prefix_positions(self) -> int:
        """How many tokens in front of the patches have learned positions."""
        return self.class_token * self.class_position + self.num_registers * self.register_positions

    def _check(self, images: Array) -> None:
        if images.ndim != 4:
            raise ValueError(f"images must be [B, height, width, C], got the shape {images.shape}")
        _, height, width, _ = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size must divide the image, got patch_size {self.patch_size} and an image of {height}×{width}"
            )
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        if self.pool == "cls" and not self.class_token:
            raise ValueError('pool "cls" needs class_token True; without a class token choose pool "gap" or "map"')
        if self.positions == "sincos2d" and self.embed_dim % 4:
            raise ValueError(f"positions sincos2d need embed_dim divisible by 4, got {self.embed_dim}")

    def resize(
        self, variables: Mapping[str, Any], old_size: tuple[int, int], new_size: tuple[int, int]
    ) -> dict[str, Any]:
        """`variables` trained on images of `old_size` (height, width), made ready for images of `new_size`.

        Sizes are in pixels. Learned positions are interpolated (section 3.2 of the paper); fixed ones need nothing.

        Raises:
            ValueError: if the positions are not those of `old_size`.
        """
        if self.positions != "learned":
            return dict(variables)
        old_grid, new_grid = ((h // self.patch_size, w // self.patch_size) for h, w in (old_size, new_size))
        params = dict(variables["params"])
        params["positions"] = resize_positions(params["positions"], old_grid, new_grid, self.prefix_positions)
        return {**variables, "params": params}


def sincos2d_positions(grid: tuple[int, int], dim: int) -> Float[Array, "1 N D"]:
    """Fixed positions: sine and cosine of the column, then of the row, at dim/4 frequencies each, base 10,000
    (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k").
    """
    rows, columns = jnp.mgrid[: grid[0], : grid[1]]
    omega = 10_000.0 ** -(jnp.arange(dim // 4) / (dim // 4 - 1))
    angles = [rearrange(axis, "n m -> (n m) 1") * omega for axis in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate(waves, axis=-1)[None]


def resize_positions(
    positions: Float[Array, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 0
) -> Float[Array, "1 M D"]:
    """Learned positions for another grid of patches (rows, columns), by antialiased bicubic interpolation.

    The first `prefix` positions, of class token and registers, are kept as they are.

    Raises:
        ValueError: if the number of positions is not that of `prefix` and `old_grid`.
    """
    rows, columns = old_grid
    if positions.shape[1] != prefix + rows * columns:
        raise ValueError(
            f"{prefix} positions in front and a grid of {rows}×{columns} patches make {prefix + rows * columns}, "
            f"got {positions.shape[1]}"
        )
    if old_grid == new_grid:
        return positions
    grid = rearrange(positions[:, prefix:], "1 (n m) d -> n m d", n=rows)
    grid = jax.image.resize(grid, (*new_grid, positions.shape[-1]), method="cubic", antialias=True)
    return jnp.concatenate([positions[:, :prefix], rearrange(grid, "n m d -> 1 (n m) d")], axis=1)
