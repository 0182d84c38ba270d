"""The encoder of the Vision Transformer (Dosovitskiy et al. 2021, section 3.1), and the encoder and decoder of
"Attention Is All You Need" (Vaswani et al. 2017, section 3.1) as `torch.nn.Transformer` has them.

Axis names: B batch, N tokens, S source length, T target length, D width, H heads.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from w2jax.blocks import Activation, DecoderBlock, EncoderBlock, inside, layer_norm


class TransformerEncoder(nn.Module):
    """`depth` copies of `block`, each with parameters of its own.

    Parameters lie under `block_0` … `block_{depth-1}`, or, with `scan`, under `blocks` with the depth as first axis:
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
        options = {"mask": mask, "lengths": lengths, "train": train, "return_attention": return_attention}

        def run(block, x, rate):
            return block(x, rate, **options)

        x, attentions = _layers(run, self.block, self.depth, x, rates, self.remat, self.scan)
        return x, attentions if return_attention else None


class TransformerDecoder(nn.Module):
    """`depth` copies of `block`, each with parameters of its own, which lie as a `TransformerEncoder`'s do."""

    block: DecoderBlock  # what is copied
    depth: int  # how often
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan: bool = False  # one compiled block, parameters stacked along depth

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | None,
        return_attention: bool = False,
        **options,
    ) -> tuple[Float[Array, "B T D"], list[tuple[Float[Array, "B H T _"], Float[Array, "B H T _"]]] | None]:
        """All blocks, with `return_attention` each one's weights on the target and on the memory.

        `options` are those of a block.
        """

        def run(block, x, _):
            return block(x, memory, return_attention=return_attention, **options)

        x, attentions = _layers(run, self.block, self.depth, x, None, self.remat, self.scan)
        return x, attentions if return_attention else None


class Transformer(nn.Module):
    """The encoder–decoder of "Attention Is All You Need" (section 3) on embedded tokens, as `torch.nn.Transformer`.

    LayerNorm stands behind every residual sum, or before every branch with `pre_norm`, and once more behind the
    encoder and behind the decoder, in both orders, as in torch. Unlike there, the target is causal unless told
    otherwise, and the memory is as long as its source, so that one argument hides the padding everywhere.
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
        block: dict[str, Any] = {
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "dropout": self.dropout,
            "attention_dropout": self.dropout,
            "activation": self.activation,
            "pre_norm": self.pre_norm,
            "norm_eps": self.norm_eps,
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "parent": None,
        }
        self.encoder = TransformerEncoder(
            EncoderBlock(**block), self.encoder_depth, remat=self.remat, scan=self.scan_layers
        )
        self.encoder_norm = layer_norm(self)
        self.decoder = TransformerDecoder(
            DecoderBlock(**block), self.decoder_depth, remat=self.remat, scan=self.scan_layers
        )
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
            source: what is read.
            target: what has been written, shifted so that position t is to predict what stands behind it.
            source_mask: True = attend, broadcastable to [B, H, S, S]; as all masks here.
            target_mask: broadcastable to [B, H, T, T]; together with `causal`.
            memory_mask: what each position of the target sees of the source, broadcastable to [B, H, T, S].
            source_lengths: tokens of each source; the rest is padding, which neither stack attends to.
            target_lengths: the same for the target.
            causal: a position of the target attends to itself and those before it.
            train: dropout draws from the "dropout" rng.
            return_attention: attention weights under "encoder", "decoder" and "cross", a list over the blocks each.

        Returns:
            (output, attentions). Outputs behind `target_lengths` mean nothing. NaN in padding reaches no other
            position and no gradient.
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

        With `cache`, `init` on a target of full length makes room in the collection "cache", and `apply` with that
        collection mutable takes the target in parts, each behind those before it. Only the first part needs the
        memory; its keys and values stay in the cache, and None stands for it afterwards. Masks are then as wide as the
        cache, and `target_lengths` have no meaning.
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
    """Runs `depth` copies of `block` by run(block, x, per_layer[i]) -> (x, beside); the last x and all `beside`."""
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
    all_beside = []
    for i in range(depth):
        x, beside = run(block.copy(name=f"block_{i}"), x, None if per_layer is None else per_layer[i])
        all_beside.append(beside)
    return x, all_beside


def _without_broken_padding(x: Float[Array, "B N D"], lengths: Int[Array, " B"] | None) -> Float[Array, "B N D"]:
    """`x` with 0 for NaN and infinities behind `lengths`: 0 · NaN would be NaN in the gradients of the layers."""
    if lengths is None:
        return x
    return jnp.where(inside(lengths, x.shape[1])[..., None] | jnp.isfinite(x), x, 0)
