"""Tokens to tokens with the Transformer (Vaswani et al. 2017, "Attention Is All You Need", sections 3.4 and 3.5).

Axis names: B batch, S source length, T target length, D width, V vocabulary, H heads.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from w2jax.blocks import Activation
from w2jax.module import Inputs, Size, abstract, submodule
from w2jax.transformer import Transformer


class Seq2Seq(nn.Module):
    """Embed → Transformer → logits, with embeddings times √D, positions and tied output as in sections 3.4 and 3.5.

    Raises:
        ValueError: if there are more tokens than `max_length`.
    """

    vocab_size: int  # V, of the target, and of the source too unless source_vocab_size is given
    embed_dim: int  # D, width of every token
    num_heads: int  # attention heads; must divide embed_dim
    mlp_dim: int  # hidden width of each block's MLP
    encoder_depth: int = 6  # number of encoder blocks
    decoder_depth: int = 6  # number of decoder blocks
    max_length: int = 512  # tokens at most, of a source and of a target
    source_vocab_size: int | None = None  # of a separate source embedding; None: the source shares the target's
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"  # fixed waves, or a learned table
    tie_output: bool = True  # the output layer is the target's embedding, without bias
    dropout: float = 0.1  # on embeddings and wherever `Transformer` has it
    activation: Activation = "relu"  # of the MLPs
    pre_norm: bool = False  # norms before the branches; False: behind the sums
    norm_eps: float = 1e-5  # of every LayerNorm
    use_bias: bool = True  # in the layers and in the norms
    dtype: str = "float32"  # of the computation; parameters and logits are float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time
    scan_layers: bool = False  # one compiled block a stack, parameters stacked along depth

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        # The standard deviation 1/√D becomes 1 by the factor √D, and tied logits start small.
        embed = partial(
            nn.Embed, features=self.embed_dim, embedding_init=nn.initializers.normal(self.embed_dim**-0.5), dtype=dtype
        )
        self.embedding = embed(self.vocab_size)
        self.source_embedding = self.embedding if self.source_vocab_size is None else embed(self.source_vocab_size)
        if self.positions == "learned":
            shape, init = (self.max_length, self.embed_dim), nn.initializers.normal(0.02)
            self.source_positions = self.param("source_positions", init, shape)
            self.target_positions = self.param("target_positions", init, shape)
        else:
            self.source_positions = self.target_positions = sinusoidal_positions(self.max_length, self.embed_dim)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.transformer = submodule(Transformer, self)
        if not self.tie_output:
            self.head = nn.Dense(self.vocab_size, use_bias=self.use_bias, dtype=dtype)

    def __call__(
        self,
        source_tokens: Int[Array, "B S"],
        target_tokens: Int[Array, "B T"],
        source_lengths: Int[Array, " B"] | None = None,
        target_lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, list[Float[Array, "B H _ _"]]] | None]:
        """Logits of the token behind each position of the target, and attention weights as `Transformer` returns them.

        Tokens behind `source_lengths` and `target_lengths` are padding. With `train`, needs the rng "dropout".
        """
        memory, encoder = self.encode(source_tokens, source_lengths, train, return_attention)
        logits, decoder = self.decode(
            target_tokens, memory, source_lengths, target_lengths, train=train, return_attention=return_attention
        )
        return logits, {"encoder": encoder, **decoder} if encoder is not None and decoder is not None else None

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; no size depends on the inputs."""
        return abstract(1, 1, dtype=jnp.int32), abstract(1, 1, dtype=jnp.int32)

    def encode(
        self,
        source_tokens: Int[Array, "B S"],
        source_lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B S D"], list[Float[Array, "B H S S"]] | None]:
        """The memory of a source, and with `return_attention` each block's weights."""
        x = self._embed(self.source_embedding, self.source_positions, source_tokens, 0, train)
        return self.transformer.encode(x, source_lengths=source_lengths, train=train, return_attention=return_attention)

    def decode(
        self,
        target_tokens: Int[Array, "B T"],
        memory: Float[Array, "B S D"] | None,
        source_lengths: Int[Array, " B"] | None = None,
        target_lengths: Int[Array, " B"] | None = None,
        start: int | Int[Array, ""] = 0,
        cache: bool = False,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, list[Float[Array, "B H T _"]]] | None]:
        """Logits for a target given the memory of its source.

        With `cache` the target comes in parts, as in `Transformer.decode`; `start` is the position of the part's first
        token. Where a traced `start` leads past `max_length`, which cannot raise, the logits are NaN.
        """
        x = self._embed(self.embedding, self.target_positions, target_tokens, start, train)
        x, attentions = self.transformer.decode(
            x,
            memory,
            source_lengths=source_lengths,
            target_lengths=target_lengths,
            cache=cache,
            train=train,
            return_attention=return_attention,
        )
        logits = self.embedding.attend(x) if self.tie_output else self.head(x)
        return logits.astype(jnp.float32), attentions

    def generate(
        self,
        variables: Mapping[str, Any],
        source_tokens: Int[Array, "B S"],
        start_token: int | Int[Array, "*B"],
        length: int,
        end_token: int | Int[Array, ""] | None = None,
        source_lengths: Int[Array, " B"] | None = None,
    ) -> Int[Array, "B {length}"]:
        """Greedy decoding: `length` tokens, each the likeliest after `start_token` and the tokens before it.

        Each step decodes one token with cached keys and values; the loop ends early once all rows have ended. Compile
        it as `jax.jit(model.generate, static_argnames="length")`.

        Args:
            variables: from `init`, or trained.
            source_tokens: the source.
            start_token: the token before the first, one for all rows or one for each.
            length: number of tokens to generate.
            end_token: ends a row, and fills the rest of it; None: no row ends early.
            source_lengths: tokens of each source; the rest is padding.

        Raises:
            ValueError: if `length` is below 1 or above `max_length`.
        """
        if not 1 <= length <= self.max_length:
            raise ValueError(f"length must be from 1 to max_length {self.max_length}, got {length}")
        batch = source_tokens.shape[0]
        memory, _ = self.apply(variables, source_tokens, source_lengths, method="encode")
        decode = partial(self.apply, source_lengths=source_lengths, cache=True, method="decode", mutable=["cache"])

        def step(tokens, done, last, cache, memory, i):
            """Writes token i, decoded from `last`, token i - 1."""
            (logits, _), state = decode({**variables, "cache": cache}, last[:, None], memory, start=i)
            last = logits[:, -1].argmax(-1).astype(jnp.int32)
            if end_token is not None:
                last = jnp.where(done, jnp.asarray(end_token, jnp.int32), last)
                done = last == end_token
            return tokens.at[:, i].set(last), done, last, state["cache"]

        def unfinished(carry):
            i, _, done, *_ = carry
            return (i < length) & ~done.all()

        init_cache = partial(self.init, cache=True, method="decode")
        tokens = jnp.full((batch, length), 0 if end_token is None else end_token, jnp.int32)
        last = jnp.broadcast_to(jnp.asarray(start_token, jnp.int32), (batch,))
        cache = jax.eval_shape(init_cache, jax.random.key(0), tokens, memory)["cache"]
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)
        # The first step precedes the loop: it alone needs the memory, whose keys and values it leaves in the cache.
        carry = 1, *step(tokens, jnp.zeros(batch, bool), last, cache, memory, 0)
        carry = jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, *step(*carry[1:], None, carry[0])), carry)
        return carry[1]

    def _embed(self, embedding: nn.Embed, positions: Array, tokens: Array, start, train: bool) -> Array:
        length = tokens.shape[1]
        end = length if isinstance(start, Tracer) else int(start) + length
        if end > self.max_length:
            raise ValueError(
                f"tokens must end at max_length {self.max_length}, got a position {end}. Cut them or raise max_length."
            )
        x = embedding(tokens) * self.embed_dim**0.5
        positions = positions.astype(x.dtype).at[start + jnp.arange(length)].get(mode="fill", fill_value=jnp.nan)
        return self.embedding_dropout(x + positions, deterministic=not train)


def sinusoidal_positions(length: int, dim: int) -> Float[Array, "{length} {dim}"]:
    """PE[t, 2i] = sin(t / 10,000^(2i/dim)) and PE[t, 2i+1] = cos of the same (section 3.5).

    An odd `dim` ends with a sine.
    """
    # In float64 on the host: in float32 the angle at position 10,000 would be off by up to 0.0005.
    angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, dim, 2) / dim)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)
    return jnp.asarray(waves[:, :dim], jnp.float32)
