"""The Vision Transformer (ViT), with learned or fixed positions and three kinds of pooling.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 <https://arxiv.org/abs/2010.11929>.

Axis names: B batch, h image height, w image width, C channels, N tokens, D width, H heads, V classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.attention import MultiHeadAttention
from w2jax.blocks import Activation, EncoderBlock, Mlp, layer_norm
from w2jax.module import (
    Dtype,
    Inputs,
    Size,
    abstract,
    at_least_float32,
    check_mesh,
    check_rates,
    check_sizes,
    compute_dtype,
    submodule,
)
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
"""Published sizes: (width, depth, heads, MLP width) by name.

B, L and H are from table 1 of the ViT paper, Ti and S from table 1 of DeiT <https://arxiv.org/abs/2012.12877>, g and G
from table 2 of "Scaling Vision Transformers" <https://arxiv.org/abs/2106.04560>.
"""


PatchSize = int | tuple[int, int]
"""The side of square patches in pixels, or (height, width) of a patch."""


def patch_sides(patch_size: PatchSize) -> tuple[int, int]:
    """Return (height, width) of a patch in pixels."""
    return patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)


def patch_grid(image_size: tuple[int, ...], patch_size: PatchSize) -> tuple[int, int]:
    """Return (rows, columns) of the complete patches in an image of `image_size`, (height, width) in pixels."""
    height, width = patch_sides(patch_size)
    return image_size[0] // height, image_size[1] // width


class PatchEmbed(nn.Module):
    """Split images into patches, row by row, and project each patch to a token (equation 1 of the ViT paper)."""

    patch_size: PatchSize  # Side or (height, width) of a patch in pixels; must divide height and width of the image.
    embed_dim: int  # D, width of every token.
    use_bias: bool = True  # Add a learned bias to the projection.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, images: Float[Array, "B h w C"]) -> Float[Array, "B N D"]:
        """Return one token per patch; N = h · w / (height · width of a patch)."""
        check_mesh(images)
        height, width = patch_sides(self.patch_size)
        patches = rearrange(images, "b (n p1) (m p2) c -> b (n m) (p1 p2 c)", p1=height, p2=width)
        dense = nn.Dense(self.embed_dim, use_bias=self.use_bias, dtype=compute_dtype(self.dtype), name="projection")
        return dense(patches)


class AttentionPool(nn.Module):
    """Attention pooling: one learned query attends to all tokens, followed by a residual MLP.

    This is the "MAP" head of Zhai et al. 2022, "Scaling Vision Transformers" <https://arxiv.org/abs/2106.04560>.
    """

    num_heads: int  # Number of attention heads; must divide D.
    mlp_dim: int  # Hidden width of the MLP.
    activation: Activation = "gelu"  # Activation function of the MLP.
    norm_eps: float = 1e-6  # Epsilon of the LayerNorm, added to the variance.
    rms_norm: bool = False  # RMSNorm instead of the LayerNorm.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """Pool the tokens of each example to one vector."""
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, tokens.shape[-1]))
        probe = repeat(probe.astype(tokens.dtype), "1 1 d -> b 1 d", b=tokens.shape[0])
        x, _ = submodule(MultiHeadAttention, self, name="attention")(probe, tokens)
        x = x + submodule(Mlp, self, name="mlp")(layer_norm(self, "norm")(x))
        return rearrange(x, "b 1 d -> b d")


class ViT(nn.Module):
    """A Vision Transformer: patch embedding → encoder → pool → LayerNorm → head (equations 1 to 4 of the paper).

    The images at `init` determine the image size. The tokens are in the order class token, registers, patches (row by
    row).
    """

    num_classes: int  # V, number of classes; 0: return the pooled features instead of logits.
    patch_size: PatchSize  # Side or (height, width) of a patch in pixels; must divide the image (see partial_patches).
    embed_dim: int  # D, width of every token.
    depth: int  # Number of encoder blocks.
    num_heads: int  # Number of attention heads; must divide embed_dim.
    mlp_dim: int  # Hidden width of the MLP in each block.
    pool: Literal["cls", "gap", "cls_gap", "map"] = "cls"  # Class token, mean of the patches, both, attention pooling.
    pool_prefix: bool = False  # Pools gap and map read the class token and the registers too.
    norm_after_pool: bool = False  # Apply the last LayerNorm after pooling (timm's fc_norm); False: before pooling.
    final_norm: bool = True  # Apply a last LayerNorm; False: no such norm, as in RADIO.
    head_bias: bool = True  # Add a bias to the classifier; False for the projection of CLIP.
    distilled: bool = False  # DeiT: a classifier on the first register too; the logits are the mean of both.
    class_token: bool = True  # Add a learned class token; False is possible only with pool gap or map.
    positions: Literal["learned", "sincos2d"] = "learned"  # Learned, or fixed sines and cosines of row and column.
    class_position: bool = True  # Learned position for the class token; big_vision's models have False.
    num_registers: int = 0  # Number of extra learned tokens ("registers", arXiv:2309.16588); 0: none.
    register_positions: bool = False  # Learned positions for the registers, stored after that of the class token.
    partial_patches: Literal["error", "drop"] = "error"  # If patch_size does not divide the image; drop: cut the image.
    patch_bias: bool = True  # Add a bias to the patch projection.
    embed_norm: bool = False  # LayerNorm before the first block, as in CLIP.
    dropout: float = 0.0  # Dropout rate on embeddings, on attention outputs and in the MLPs.
    attention_dropout: float = 0.0  # Dropout rate on the attention weights.
    drop_path: float = 0.0  # Stochastic depth rate of the last block; the rate grows linearly from 0 at the first.
    layer_scale: float | None = None  # Initial factor of LayerScale on each residual branch; None: no LayerScale.
    qkv_bias: bool = True  # Biases of queries, keys and values in the blocks.
    qk_norm: bool = False  # LayerNorm on queries and keys.
    attention_scale: float | None = None  # Factor of the attention logits; None: 1/√(head width).
    res_post_norm: bool = False  # LayerNorm on each residual branch's output instead of its input (arXiv:2111.09883).
    sub_norm: bool = False  # LayerNorms also before the last layers of attention and MLP (arXiv:2210.06423).
    residual_from_norm: bool = False  # Add the attention output to LN(z) instead of z, as in the course's code.
    pre_logits_dim: int | None = None  # Width of an extra tanh layer before the head; None: no such layer.
    activation: Activation = "gelu"  # Activation of the MLPs: gelu, gelu_tanh, quick_gelu, relu or swiglu.
    norm_eps: float = 1e-6  # Epsilon of every LayerNorm, added to the variance.
    rms_norm: bool = False  # RMSNorm (arXiv:1910.07467) instead of every LayerNorm.
    dtype: Dtype = "float32"  # Data type of activations and products; parameters stay float32.
    remat: bool = False  # Recompute each block in the backward pass, which saves memory and costs time.
    scan_layers: bool = False  # Compile one block and scan over depth; parameters are stacked along depth.

    @classmethod
    def named(cls, name: str, num_classes: int, **options: Any) -> "ViT":
        """Create a ViT of a published size.

        Args:
            name: a size (Ti, S, B, L, H, g or G), a slash and the patch size in pixels, such as "B/16".
            num_classes: number of classes; 0 returns the pooled features instead of logits.
            **options: other fields of `ViT`.

        Raises:
            ValueError: the name does not have this form.
        """
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit() or int(patch) == 0:
            raise ValueError(
                f'name must be a size ({", ".join(SIZES)}), "/" and a patch size, such as "B/16", got "{name}"'
            )
        embed_dim, depth, num_heads, mlp_dim = SIZES[size]
        return cls(num_classes, int(patch), embed_dim, depth, num_heads, mlp_dim, **options)

    @nn.compact
    def __call__(
        self, images: Float[Array, "B h w C"], train: bool = False, return_attention: bool = False
    ) -> tuple[Float[Array, "B V"], list[Float[Array, "B H N N"]] | None]:
        """Classify images.

        Args:
            images: images with the size of the images at `init`. Any range of pixel values works, but use the same
                range as in training.
            train: use dropout and stochastic depth, drawn from the rng "dropout" (not needed if all rates are 0).
            return_attention: also return the attention weights.

        Returns:
            (logits [B, V] in float32 or wider, attention weights [B, H, N, N] of each block or None). With
            `num_classes` 0, the pooled features [B, D] replace the logits.

        Raises:
            ValueError: the options do not fit each other or the image size.
        """
        self._check(images)
        dtype = compute_dtype(self.dtype)

        height, width = patch_sides(self.patch_size)
        grid = patch_grid(images.shape[1:3], self.patch_size)
        images = images[:, : grid[0] * height, : grid[1] * width]
        x = submodule(PatchEmbed, self, use_bias=self.patch_bias, name="patch_embed")(images)
        x = self._prepend_and_position(x, grid)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.embed_norm:
            x = layer_norm(self, "embed_norm")(x)

        block = submodule(EncoderBlock, self, parent=None)
        encoder = submodule(TransformerEncoder, self, block=block, scan=self.scan_layers, name="encoder")
        x, attentions = encoder(x, train=train, return_attention=return_attention)

        patches = slice(self.class_token + self.num_registers, None)
        if self.pool == "cls":
            x = x[:, : 1 + self.distilled]
        elif self.pool != "cls_gap" and not self.pool_prefix:
            x = x[:, patches]
        if self.final_norm and not self.norm_after_pool:
            x = layer_norm(self, "norm")(x)
        distilled = x[:, 1] if self.distilled else None
        if self.pool == "cls":
            x = x[:, 0]
        elif self.pool == "cls_gap":
            x = jnp.concatenate([x[:, 0], x[:, patches].mean(axis=1)], axis=-1)
        else:
            x = submodule(AttentionPool, self, name="pool")(x) if self.pool == "map" else x.mean(axis=1)
        if self.final_norm and self.norm_after_pool:
            x = layer_norm(self, "pool_norm")(x)
        if self.pre_logits_dim is not None:
            x = jnp.tanh(nn.Dense(self.pre_logits_dim, dtype=dtype, name="pre_logits")(x))
        zeros = nn.initializers.zeros
        heads = partial(nn.Dense, self.num_classes, use_bias=self.head_bias, kernel_init=zeros, dtype=dtype)
        if self.num_classes:
            x = heads(name="head")(x)
        if distilled is not None:
            x = (x + (heads(name="head_distilled")(distilled) if self.num_classes else distilled)) / 2
        return at_least_float32(x), attentions

    def _prepend_and_position(self, x: Array, grid: tuple[int, int]) -> Array:
        """Add positions to the patches, and prepend the class token and the registers."""
        prefix = []  # (parameter [1, tokens, D], True if it has learned positions)
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
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        height, width = patch_sides(self.patch_size)
        patches = size("positions", 1, self.prefix_positions + 1) - self.prefix_positions
        channels = size("patch_embed/projection/kernel", 0, 3 * height * width) // (height * width)
        return (abstract(1, height, width * max(patches, 1), max(channels, 1)),)

    @property
    def prefix_positions(self) -> int:
        """Number of tokens before the patches (class token and registers) that have learned positions."""
        return self.class_token * self.class_position + self.num_registers * self.register_positions

    def _check(self, images: Array) -> None:
        if images.ndim != 4:
            raise ValueError(f"images must have the shape [B, height, width, C], got {images.shape}")
        patch = patch_sides(self.patch_size)
        for side in patch:
            check_sizes(patch_size=side)
        check_sizes(embed_dim=self.embed_dim, pre_logits_dim=self.pre_logits_dim)
        check_sizes(at_least=0, num_classes=self.num_classes, num_registers=self.num_registers, norm_eps=self.norm_eps)
        height, width = images.shape[1:3]
        is_partial = height % patch[0] or width % patch[1]
        if 0 in patch_grid((height, width), patch) or (is_partial and self.partial_patches == "error"):
            raise ValueError(
                f"patch_size must divide the image's height and width, got patch_size {self.patch_size} and an image "
                f'of {height}×{width} pixels. Resize the images, or set partial_patches to "drop"'
            )
        if self.distilled and (self.pool != "cls" or not self.num_registers or self.pre_logits_dim is not None):
            raise ValueError(
                'distilled needs pool "cls", at least one register and pre_logits_dim None, got '
                f'pool "{self.pool}", num_registers {self.num_registers} and pre_logits_dim {self.pre_logits_dim}'
            )
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        if self.pool in ("cls", "cls_gap") and not self.class_token:
            raise ValueError(
                f'class_token must be True for pool "{self.pool}", got False. Set it or choose pool "gap" or "map"'
            )
        if self.pool_prefix and self.pool not in ("gap", "map"):
            raise ValueError(f'pool_prefix needs pool "gap" or "map", got pool "{self.pool}"')
        if self.positions == "sincos2d" and self.embed_dim % 4:
            raise ValueError(f'embed_dim must be divisible by 4 for positions "sincos2d", got {self.embed_dim}')

    def features(
        self,
        variables: Mapping[str, Any],
        images: Float[Array, "B h w C"],
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
    ) -> list[Float[Array, "B N D"]]:
        """Return the tokens after some of the blocks, for example as features of each patch.

        Args:
            variables: variables of this model.
            images: as in `__call__`.
            blocks: numbers of the blocks, from 0; negative ones count from the last block.
            norm: apply the last LayerNorm to the tokens, if the model applies it before pooling.

        Returns:
            For each number in `blocks`, in this order, all tokens: class token, registers, patches (row by row).

        Raises:
            ValueError: the model has no block of this number.
        """
        if wrong := [i for i in blocks if not -self.depth <= i < self.depth]:
            raise ValueError(f"blocks must be from {-self.depth} to {self.depth - 1}, got {', '.join(map(str, wrong))}")

        def is_block(module: nn.Module, method: str) -> bool:
            return isinstance(module, EncoderBlock) and method == "__call__"

        _, captured = self.apply(variables, images, capture_intermediates=is_block, mutable=["intermediates"])
        outputs: Any = captured["intermediates"]["encoder"]
        last_norm = layer_norm(self, parent=None)
        tokens = []
        for i in (i % self.depth for i in blocks):
            x = outputs["blocks" if self.scan_layers else f"block_{i}"]["__call__"][0][0]
            x = x[i] if self.scan_layers else x
            if norm and self.final_norm and not self.norm_after_pool:
                x = last_norm.apply({"params": variables["params"]["norm"]}, x)
            tokens.append(x)
        return tokens

    def head_inputs(
        self, variables: Mapping[str, Any], images: Float[Array, "B h w C"], train: bool = False
    ) -> Float[Array, "B K D"]:
        """Return what the classifier reads: the features of a linear probe.

        Args:
            variables: variables of this model.
            images: as in `__call__`.
            train: as in `__call__`. No rng is passed, so all rates must be 0.

        Returns:
            One vector per classifier, in float32 or wider. K is 2 if `distilled`, else 1. D is the width of the
            classifier's input: 2 · embed_dim for pool "cls_gap", `pre_logits_dim` if set, else embed_dim.

        Raises:
            ValueError: the model has no classifier.
            flax.errors.InvalidRngError: `train` is True and a rate is above 0.
        """
        if not self.num_classes:
            raise ValueError("num_classes must be at least 1, got 0: the model has no classifier")
        inputs = {}

        def keep(call, arguments, options, context):
            if context.module.name in self._heads and context.method_name == "__call__":
                inputs[context.module.name] = arguments[0]
            return call(*arguments, **options)

        with nn.intercept_methods(keep):
            self.apply(variables, images, train=train)
        return at_least_float32(jnp.stack([inputs[name] for name in self._heads], axis=1))

    def classify(self, variables: Mapping[str, Any], inputs: Float[Array, "B K D"]) -> Float[Array, "B V"]:
        """Return the logits that `__call__` returns for the images whose `head_inputs` are `inputs`.

        Only the classifier's parameters in `variables` are read.
        """
        head = nn.Dense(self.num_classes, use_bias=self.head_bias, dtype=compute_dtype(self.dtype), parent=None)
        params = [variables["params"][name] for name in self._heads]
        logits: list[Any] = [head.apply({"params": params[i]}, inputs[:, i]) for i in range(len(params))]
        total: Any = sum(logits)
        return at_least_float32(total / len(logits))

    @property
    def _heads(self) -> tuple[str, ...]:
        """The names of the classifiers."""
        return ("head", "head_distilled") if self.distilled else ("head",)

    def resize(
        self, variables: Mapping[str, Any], old_size: tuple[int, int], new_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Adapt variables that were trained on images of one size to images of another size.

        Learned positions are interpolated (section 3.2 of the paper). Fixed positions need no change.

        Args:
            variables: variables of this model.
            old_size: (height, width) of the training images, in pixels.
            new_size: (height, width) of the new images, in pixels.

        Returns:
            Variables for images of `new_size`.

        Raises:
            ValueError: the number of positions does not fit `old_size`.
        """
        if self.positions != "learned":
            return dict(variables)
        old_grid, new_grid = (patch_grid(size, self.patch_size) for size in (old_size, new_size))
        params = dict(variables["params"])
        params["positions"] = resize_positions(params["positions"], old_grid, new_grid, self.prefix_positions)
        return {**variables, "params": params}


def sincos2d_positions(grid: tuple[int, int], dim: int) -> Float[Array, "1 N D"]:
    """Return fixed positions for a grid of patches: sine and cosine of the column, then sine and cosine of the row.

    Each has dim/4 frequencies with base 10,000 (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"
    <https://arxiv.org/abs/2205.01580>).

    Args:
        grid: (rows, columns) of patches.
        dim: D, width of each position; must be divisible by 4.
    """
    rows, columns = jnp.mgrid[: grid[0], : grid[1]]
    omega = 10_000.0 ** -(jnp.arange(dim // 4) / (dim // 4 - 1))
    angles = [rearrange(axis, "n m -> (n m) 1") * omega for axis in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate(waves, axis=-1)[None]


def resize_positions(
    positions: Float[Array, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 0
) -> Float[Array, "1 M D"]:
    """Interpolate learned positions to another grid of patches, with antialiased bicubic interpolation.

    Args:
        positions: learned positions, first those of class token and registers, then those of the patches row by row.
        old_grid: (rows, columns) of patches in `positions`.
        new_grid: (rows, columns) of patches in the result.
        prefix: number of positions of class token and registers. They are not changed.

    Raises:
        ValueError: the number of positions is not `prefix` + rows · columns of `old_grid`.
    """
    rows, columns = old_grid
    if positions.shape[1] != prefix + rows * columns:
        raise ValueError(
            f"positions must have {prefix + rows * columns} entries ({prefix} for class token and registers, and "
            f"{rows}×{columns} for the patches), got {positions.shape[1]}"
        )
    if old_grid == new_grid:
        return positions
    grid = rearrange(positions[:, prefix:], "1 (n m) d -> n m d", n=rows)
    grid = jax.image.resize(grid, (*new_grid, positions.shape[-1]), method="cubic", antialias=True)
    return jnp.concatenate([positions[:, :prefix], rearrange(grid, "n m d -> 1 (n m) d")], axis=1)
