"""The encoder of the Vision Transformer (Dosovitskiy et al. 2021, section 3.1), and the encoder and decoder of
"Attention Is All You Need" (Vaswani et al. 2017, section 3.1) as `torch.nn.Transformer` has them.

Axis names: B batch, N tokens, S source length, T target length, D width, H heads.
"""

from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from w2jax.blocks import Activation, DecoderBlock, EncoderBlock, is_valid, layer_norm
from w2jax.module import Inputs, Size, abstract, submodule


class TransformerEncoder(nn.Module):
    """`depth` copies of `block`, each with its own parameters.

    Parameters are under `block_0` … `block_{depth-1}`, or, with `scan`, under `blocks` with the depth as first axis:
    the same values, one compiled block. The rate of DropPath grows linearly from 0 at the first block to `drop_path`.
    """

    block: EncoderBlock  # what is copied
    depth: int  # how often
    drop_path: float = 0.0  # stochastic depth: rate of the last block, 0 at the first
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan: bool = False  # one compiled block, parameters stacked along depth

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "..."] | None = None,
        lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B N D"], list[Float[Array, "B H N N"]] | None]:
        """All blocks, with `return_attention` each one's weights too; `mask` and `lengths` as in a block."""
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.drop_path > 0.0 else None

        def run(block, x, rate):
            return block(x, rate, mask, lengths, train, return_attention)

        x, attentions = _layers(run, self.block, self.depth, x, rates, self.remat, self.scan)
        return x, attentions if return_attention else None


class TransformerDecoder(nn.Module):
    """`depth` copies of `block`, each with its own parameters, at the same paths as in `TransformerEncoder`."""

    block: DecoderBlock  # what is copied
    depth: int  # how often
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan: bool = False  # one compiled block, parameters stacked along depth

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
        """All blocks, with `return_attention` each one's weights on the target and on the memory.

        Arguments as in `Transformer.decode`, without the prefixes "target_" and "source_".
        """

        def run(block, x, _):
            return block(x, memory, mask, memory_mask, lengths, memory_lengths, causal, cache, train, return_attention)

        x, attentions = _layers(run, self.block, self.depth, x, None, self.remat, self.scan)
        return x, attentions if return_attention else None


class Transformer(nn.Module):
    """The encoder–decoder of "Attention Is All You Need" (section 3) on embedded tokens, as `torch.nn.Transformer`.

    LayerNorm follows every residual sum, or precedes every branch with `pre_norm`; one more follows the encoder and
    the decoder in either case, as in torch. Unlike in torch, the target is causal by default, and `source_lengths`
    hides the padding of the memory too.
    """

    num_heads: int  # must divide the inputs' width
    mlp_dim: int  # hidden width of each block's MLP
    encoder_depth: int = 6  # number of encoder blocks
    decoder_depth: int = 6  # number of decoder blocks
    dropout: float = 0.1  # on attention weights, behind the activation, and on every residual branch
    activation: Activation = "relu"  # of the MLPs
    pre_norm: bool = False  # norms before the branches; False: behind the sums
    norm_eps: float = 1e-5  # of every LayerNorm
    use_bias: bool = True  # in the layers and in the norms
    dtype: str = "float32"  # of the computation; parameters are float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan_layers: bool = False  # one compiled block a stack, parameters stacked along depth

    def setup(self):
        encoder_block = submodule(EncoderBlock, self, attention_dropout=self.dropout, parent=None)
        decoder_block = submodule(DecoderBlock, self, attention_dropout=self.dropout, parent=None)
        scan, depths = self.scan_layers, (self.encoder_depth, self.decoder_depth)
        self.encoder = submodule(TransformerEncoder, self, block=encoder_block, depth=depths[0], scan=scan)
        self.encoder_norm = layer_norm(self)
        self.decoder = submodule(TransformerDecoder, self, block=decoder_block, depth=depths[1], scan=scan)
        self.decoder_norm = layer_norm(self)

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
        """The decoder's output for every position of the target.

        Args:
            source: embedded tokens to read.
            target: embedded tokens written so far; the output at position t predicts the token behind it.
            source_mask: True = attend, as in every mask here; broadcastable to [B, H, S, S].
            target_mask: broadcastable to [B, H, T, T]; combined with `causal`.
            memory_mask: which positions of the source each position of the target attends to; broadcastable to
                [B, H, T, S].
            source_lengths: tokens of each source; the rest is padding, which neither stack attends to.
            target_lengths: the same for the target.
            causal: a position of the target attends to itself and those before it.
            train: dropout draws from the "dropout" rng.
            return_attention: return attention weights too.

        Returns:
            (output, weights): weights under "encoder", "decoder" and "cross", each a list over the blocks; None
            without `return_attention`. Outputs behind `target_lengths` are meaningless. NaN in padding reaches no
            other position and no gradient.
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
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
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
        """The memory of a source, and with `return_attention` each block's weights; arguments as in a call."""
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
        """The output for a target given the memory of its source; arguments as in a call.

        With `cache`, `init` on a target of full length creates the collection "cache", and `apply` with that collection
        mutable takes the target in consecutive parts. Only the first part needs the memory, whose keys and values stay
        in the cache; pass None afterwards. Masks are then as wide as the cache, and `target_lengths` must be None.
        """
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


def _layers(run: Callable, block: nn.Module, depth: int, x, per_layer, remat: bool, scan: bool) -> tuple[Array, list]:
    """Calls run(block, x, per_layer[i]) → (x, attention) for `depth` copies of `block`; the last x, all attentions."""
    if remat:
        run = nn.remat(run)
    if scan:
        layers = nn.scan(
            run,
            variable_axes={"params": 0, "cache": 0},
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


def _without_broken_padding(x: Float[Array, "B N D"], lengths: Int[Array, " B"] | None) -> Float[Array, "B N D"]:
    """`x` with NaN and infinities behind `lengths` replaced by 0: 0 · NaN would be NaN in the layers' gradients."""
    if lengths is None:
        return x
    return jnp.where(is_valid(lengths, x.shape[1])[..., None] | jnp.isfinite(x), x, 0)
