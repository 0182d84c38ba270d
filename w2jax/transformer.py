"""Stacks of encoder and decoder blocks, and the Transformer with the architecture of torch.nn.Transformer.

Vaswani et al. 2017, "Attention Is All You Need", section 3.1 <https://arxiv.org/abs/1706.03762>. The Vision Transformer
uses the same encoder stack (Dosovitskiy et al. 2021, section 3.1 <https://arxiv.org/abs/2010.11929>).

Axis names: B batch, N tokens, S source length, T target length, D width, H heads.
"""

from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from w2jax.blocks import Activation, DecoderBlock, EncoderBlock, is_valid, layer_norm
from w2jax.layer_norm import LayerNorm, RMSNorm
from w2jax.masks import check_lengths, check_masks
from w2jax.module import MAX_LAYERS, Inputs, Size, abstract, check_mesh, check_sizes, submodule


class TransformerEncoder(nn.Module):
    """A stack of `depth` encoder blocks with the same options and separate parameters.

    Parameters are under `block_0` … `block_{depth-1}`. With `scan` they are under `blocks`, stacked along a first axis
    of size `depth`. The outputs are the same, but only one block is compiled.
    """

    block: EncoderBlock  # Block that is repeated.
    depth: int  # Number of blocks.
    drop_path: float = 0.0  # Stochastic depth rate of the last block; the rate grows linearly from 0 at the first.
    remat: bool = False  # Recompute each block in the backward pass, which saves memory and costs time.
    scan: bool = False  # Compile one block and scan over depth; parameters are stacked along depth.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "..."] | None = None,
        lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B N D"], list[Float[Array, "B H N N"]] | None]:
        """Apply all blocks: return (tokens, attention weights of each block or None).

        The arguments are those of `EncoderBlock`.
        """
        check_mesh(x)
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.drop_path > 0.0 else None

        def run(block, x, rate):
            return block(x, rate, mask, lengths, train, return_attention)

        x, attentions = _layers(run, self.block, self.depth, x, rates, self.remat, self.scan)
        return x, attentions if return_attention else None

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        width = _width(self.block, size)
        return (abstract(1, 1, width),)


class TransformerDecoder(nn.Module):
    """A stack of `depth` decoder blocks with the same options and separate parameters.

    The paths of the parameters are those of `TransformerEncoder`.
    """

    block: DecoderBlock  # Block that is repeated.
    depth: int  # Number of blocks.
    remat: bool = False  # Recompute each block in the backward pass, which saves memory and costs time.
    scan: bool = False  # Compile one block and scan over depth; parameters are stacked along depth.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | None,
        mask: Bool[Array, "..."] | None = None,
        memory_mask: Bool[Array, "..."] | None = None,
        lengths: Int[Array, " B"] | None = None,
        memory_lengths: Int[Array, " B"] | None = None,
        causal: bool = True,
        cache: bool = False,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T D"], list[tuple[Float[Array, "B H T _"], Float[Array, "B H T _"]]] | None]:
        """Apply all blocks: return (tokens, [(weights on the target, weights on the memory), …] or None).

        The arguments are those of `Transformer.decode` with shorter names: `target_lengths` is `lengths` here, and
        `source_lengths` is `memory_lengths`.
        """
        check_mesh(x)

        def run(block, x, _):
            return block(x, memory, mask, memory_mask, lengths, memory_lengths, causal, cache, train, return_attention)

        x, attentions = _layers(run, self.block, self.depth, x, None, self.remat, self.scan)
        return x, attentions if return_attention else None

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        width = _width(self.block, size)
        return abstract(1, 1, width), abstract(1, 1, width)


class Transformer(nn.Module):
    """The encoder–decoder Transformer of "Attention Is All You Need" (section 3), on embedded tokens.

    The architecture is that of torch.nn.Transformer
    (<https://docs.pytorch.org/docs/stable/generated/torch.nn.Transformer.html>), which has one more LayerNorm after the
    encoder and one after the decoder. There are two differences from torch: the target is causal by default, and
    `source_lengths` also masks the padding of the memory.
    """

    num_heads: int  # Number of attention heads; must divide the width of the inputs.
    mlp_dim: int  # Hidden width of the MLP in each block.
    encoder_depth: int = 6  # Number of encoder blocks.
    decoder_depth: int = 6  # Number of decoder blocks.
    dropout: float = 0.1  # Dropout rate on attention weights, after the activation, and on every residual branch.
    activation: Activation = "relu"  # Activation function of the MLPs.
    pre_norm: bool = False  # LayerNorm before each residual branch; False: after each residual sum.
    norm_eps: float = 1e-5  # Epsilon of every LayerNorm, added to the variance.
    use_bias: bool = True  # Biases in the linear layers and in the LayerNorms.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.
    remat: bool = False  # Recompute each block in the backward pass, which saves memory and costs time.
    scan_layers: bool = False  # Compile one block per stack and scan over depth; parameters are stacked along depth.

    def setup(self) -> None:
        encoder_block = submodule(EncoderBlock, self, attention_dropout=self.dropout, parent=None)
        decoder_block = submodule(DecoderBlock, self, attention_dropout=self.dropout, parent=None)
        scan, depths = self.scan_layers, (self.encoder_depth, self.decoder_depth)
        self.encoder: TransformerEncoder = submodule(
            TransformerEncoder, self, block=encoder_block, depth=depths[0], scan=scan
        )
        self.encoder_norm: LayerNorm | RMSNorm = layer_norm(self)
        self.decoder: TransformerDecoder = submodule(
            TransformerDecoder, self, block=decoder_block, depth=depths[1], scan=scan
        )
        self.decoder_norm: LayerNorm | RMSNorm = layer_norm(self)

    def __call__(
        self,
        source: Float[Array, "B S D"],
        target: Float[Array, "B T D"],
        source_mask: Bool[Array, "..."] | None = None,
        target_mask: Bool[Array, "..."] | None = None,
        memory_mask: Bool[Array, "..."] | None = None,
        source_lengths: Int[Array, " B"] | None = None,
        target_lengths: Int[Array, " B"] | None = None,
        causal: bool = True,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T D"], dict[str, list[Float[Array, "B H _ _"]]] | None]:
        """Compute the decoder's output at every position of the target.

        Args:
            source: embedded source tokens [B, S, D].
            target: embedded target tokens [B, T, D]. The output at position t predicts the token at t + 1.
            source_mask: True where a source token may attend to a source token; broadcastable to [B, H, S, S].
            target_mask: True where a target token may attend to a target token; broadcastable to [B, H, T, T]. It is
                combined with `causal`.
            memory_mask: True where a target token may attend to a source token; broadcastable to [B, H, T, S].
            source_lengths: number of tokens in each source; later tokens are padding, and neither encoder nor decoder
                attends to them. None: no padding.
            target_lengths: number of tokens in each target; later tokens are padding. None: no padding.
            causal: each target token attends only to itself and to earlier target tokens.
            train: use dropout, drawn from the rng "dropout".
            return_attention: also return the attention weights.

        Returns:
            (output [B, T, D], weights or None). The weights are lists with one entry per block, under the keys
            "encoder", "decoder" and "cross". Outputs after `target_lengths` have no meaning. NaN in the padding does
            not change other positions or gradients.

        Raises:
            ValueError: a mask is not bool, or lengths are not integers.
        """
        memory, encoder = self.encode(source, source_mask, source_lengths, train, return_attention)
        out, decoder = self.decode(
            target,
            memory,
            target_mask=target_mask,
            memory_mask=memory_mask,
            source_lengths=source_lengths,
            target_lengths=target_lengths,
            causal=causal,
            train=train,
            return_attention=return_attention,
        )
        return out, {"encoder": encoder, **decoder} if encoder is not None and decoder is not None else None

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        width = size("encoder_norm/scale", 0, self.num_heads)
        return abstract(1, 1, width), abstract(1, 1, width)

    def encode(
        self,
        source: Float[Array, "B S D"],
        source_mask: Bool[Array, "..."] | None = None,
        source_lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B S D"], list[Float[Array, "B H S S"]] | None]:
        """Encode a source: return (memory [B, S, D], attention weights of each block or None).

        The arguments are those of `__call__`.
        """
        check_masks(source_mask=source_mask)
        check_lengths(source_lengths=source_lengths)
        x = _without_broken_padding(source, source_lengths)
        x, attentions = self.encoder(x, source_mask, source_lengths, train, return_attention)
        return self.encoder_norm(x), attentions

    def decode(
        self,
        target: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | None,
        target_mask: Bool[Array, "..."] | None = None,
        memory_mask: Bool[Array, "..."] | None = None,
        source_lengths: Int[Array, " B"] | None = None,
        target_lengths: Int[Array, " B"] | None = None,
        causal: bool = True,
        cache: bool = False,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T D"], dict[str, list[Float[Array, "B H T _"]]] | None]:
        """Compute the output for a target, given the memory of its source.

        The arguments are those of `__call__`, and `memory`, the output of `encode`.

        With `cache` you can pass the target in consecutive parts:

        1. Call `init` with `cache=True` and a target of full length. It creates the collection "cache".
        2. Call `apply` with the first part of the target, the memory and `mutable=["cache"]`.
        3. Call `apply` with each later part and `memory=None`, because the cache contains the keys and values of the
           memory.

        With `cache`, masks must be as wide as the cache, and `target_lengths` must be None.

        Returns:
            (output [B, T, D], attention weights under "decoder" and "cross", or None).
        """
        check_masks(target_mask=target_mask, memory_mask=memory_mask)
        check_lengths(source_lengths=source_lengths, target_lengths=target_lengths)
        if not cache:
            target = _without_broken_padding(target, target_lengths)
        x, attentions = self.decoder(
            target,
            memory,
            return_attention=return_attention,
            mask=target_mask,
            memory_mask=memory_mask,
            lengths=target_lengths,
            memory_lengths=source_lengths,
            causal=causal,
            cache=cache,
            train=train,
        )
        if attentions is None:
            return self.decoder_norm(x), None
        return self.decoder_norm(x), {"decoder": [a for a, _ in attentions], "cross": [a for _, a in attentions]}


def _layers(
    run: Callable, block: EncoderBlock | DecoderBlock, depth: int, x, per_layer, remat: bool, scan: bool
) -> tuple[Array, list]:
    """Call run(block, x, per_layer[i]) → (x, attention) for `depth` copies of `block`: return (x, all attentions)."""
    check_sizes(at_least=0, at_most=MAX_LAYERS, depth=depth)
    if remat:
        run = nn.remat(run)
    if scan:
        # A scan cannot change the dtype of x, so x gets the dtype of a block's output here.
        adds_to_x = block.pre_norm and not getattr(block, "residual_from_norm", False)
        x = x.astype(jnp.promote_types(x.dtype, block.dtype) if adds_to_x else block.dtype)
        layers = nn.scan(
            run,
            variable_axes={"params": 0, "cache": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=depth,
        )
        x, stacked = layers(block.copy(name="blocks"), x, per_layer)
        return x, [jax.tree.map(itemgetter(i), stacked) for i in range(depth)]
    attentions = []
    for i in range(depth):
        x, attention = run(block.copy(name=f"block_{i}"), x, None if per_layer is None else per_layer[i])
        attentions.append(attention)
    return x, attentions


def _width(block: EncoderBlock | DecoderBlock, size: Size) -> int:
    """Return the width of the tokens, from the first block or from the stacked blocks."""
    return size("block_0/norm1/scale", 0, size("blocks/norm1/scale", 1, block.num_heads))


def _without_broken_padding(x: Float[Array, "B N D"], lengths: Int[Array, " B"] | None) -> Float[Array, "B N D"]:
    """Replace NaN and infinity in the padding after `lengths` by 0, because 0 · NaN would make gradients NaN."""
    if lengths is None:
        return x
    return jnp.where(is_valid(lengths, x.shape[1])[..., None] | jnp.isfinite(x), x, 0)
