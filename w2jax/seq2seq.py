"""A Transformer from source tokens to target tokens, with embeddings, positions and greedy decoding.

Vaswani et al. 2017, "Attention Is All You Need", sections 3.4 and 3.5 <https://arxiv.org/abs/1706.03762>.

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
from w2jax.module import Inputs, Size, abstract, at_least_float32, check_mesh, check_sizes, compute_dtype, submodule
from w2jax.transformer import Transformer


class Seq2Seq(nn.Module):
    """A sequence-to-sequence model: token embedding → `Transformer` → logits of the next token.

    As in sections 3.4 and 3.5 of the paper, embeddings are multiplied by √D, positions are added to them, and the
    output layer is the target embedding (unless `tie_output` is False).

    Raises:
        ValueError: a source or a target has more than `max_length` tokens.
    """

    vocab_size: int  # V, vocabulary size of the target; also of the source, unless source_vocab_size is set.
    embed_dim: int  # D, width of every token.
    num_heads: int  # Number of attention heads; must divide embed_dim.
    mlp_dim: int  # Hidden width of the MLP in each block.
    encoder_depth: int = 6  # Number of encoder blocks.
    decoder_depth: int = 6  # Number of decoder blocks.
    max_length: int = 512  # Maximum number of tokens in a source and in a target.
    source_vocab_size: int | None = None  # Vocabulary size of a separate source embedding; None: one shared embedding.
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"  # Fixed sines and cosines, or a learned table.
    tie_output: bool = True  # Use the target embedding as output layer, without bias; False: a separate linear layer.
    dropout: float = 0.1  # Dropout rate on the embeddings and inside the Transformer.
    activation: Activation = "relu"  # Activation function of the MLPs.
    pre_norm: bool = False  # LayerNorm before each residual branch; False: after each residual sum.
    norm_eps: float = 1e-5  # Epsilon of every LayerNorm, added to the variance.
    use_bias: bool = True  # Biases in the linear layers and in the LayerNorms.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters and logits stay float32 or wider.
    remat: bool = False  # Recompute each block in the backward pass, which saves memory and costs time.
    scan_layers: bool = False  # Compile one block per stack and scan over depth; parameters are stacked along depth.

    def setup(self) -> None:
        dtype = compute_dtype(self.dtype)
        # The factor √D scales the standard deviation 1/√D to 1. A tied output layer then starts with small logits.
        check_sizes(vocab_size=self.vocab_size, embed_dim=self.embed_dim, max_length=self.max_length)
        check_sizes(source_vocab_size=self.source_vocab_size)
        embed = partial(
            nn.Embed, features=self.embed_dim, embedding_init=nn.initializers.normal(self.embed_dim**-0.5), dtype=dtype
        )
        self.embedding: nn.Embed = embed(self.vocab_size)
        self.source_embedding: nn.Embed = (
            self.embedding if self.source_vocab_size is None else embed(self.source_vocab_size)
        )
        if self.positions == "learned":
            shape, init = (self.max_length, self.embed_dim), nn.initializers.normal(0.02)
            self.source_positions: Array = self.param("source_positions", init, shape)
            self.target_positions: Array = self.param("target_positions", init, shape)
        else:
            self.source_positions = self.target_positions = sinusoidal_positions(self.max_length, self.embed_dim)
        self.embedding_dropout: nn.Dropout = nn.Dropout(self.dropout)
        self.transformer: Transformer = submodule(Transformer, self)
        if not self.tie_output:
            self.head: nn.Dense = nn.Dense(self.vocab_size, use_bias=self.use_bias, dtype=dtype)

    def __call__(
        self,
        source_tokens: Int[Array, "B S"],
        target_tokens: Int[Array, "B T"],
        source_lengths: Int[Array, " B"] | None = None,
        target_lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, list[Float[Array, "B H _ _"]]] | None]:
        """Compute the logits of the next token at every position of the target.

        Args:
            source_tokens: token ids [B, S].
            target_tokens: token ids [B, T]; position t sees the target only up to position t.
            source_lengths: number of tokens in each source; later tokens are padding. None: no padding.
            target_lengths: number of tokens in each target; later tokens are padding. None: no padding.
            train: use dropout, drawn from the rng "dropout".
            return_attention: also return the attention weights.

        Returns:
            (logits [B, T, V] in float32 or wider, attention weights as `Transformer` returns them, or None).
        """
        memory, encoder = self.encode(source_tokens, source_lengths, train, return_attention)
        logits, decoder = self.decode(
            target_tokens, memory, source_lengths, target_lengths, train=train, return_attention=return_attention
        )
        return logits, {"encoder": encoder, **decoder} if encoder is not None and decoder is not None else None

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for `init`. No parameter shape depends on the inputs, so `size` is unused."""
        return abstract(1, 1, dtype=jnp.int32), abstract(1, 1, dtype=jnp.int32)

    def encode(
        self,
        source_tokens: Int[Array, "B S"],
        source_lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B S D"], list[Float[Array, "B H S S"]] | None]:
        """Encode a source: return (memory [B, S, D], attention weights of each block or None).

        The arguments are those of `__call__`.
        """
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
        """Compute the logits for a target, given the memory of its source.

        Args:
            target_tokens: token ids [B, T]; with `cache`, the next part of the target.
            memory: output of `encode` [B, S, D]; with `cache`, None from the second part on.
            source_lengths: number of tokens in each source; later tokens are padding. None: no padding.
            target_lengths: number of tokens in each target; must be None with `cache`.
            start: position of the first token in `target_tokens`.
            cache: process the target in consecutive parts, as in `Transformer.decode`.
            train: use dropout, drawn from the rng "dropout".
            return_attention: also return the attention weights.

        Returns:
            (logits [B, T, V] in float32 or wider, attention weights under "decoder" and "cross", or None). Under `jit`,
            where `start` is traced and no error can be raised, logits at positions past `max_length` are NaN.

        Raises:
            ValueError: the tokens end past `max_length`.
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
        return at_least_float32(logits), attentions

    def generate(
        self,
        variables: Mapping[str, Any],
        source_tokens: Int[Array, "B S"],
        start_token: int | Int[Array, "*B"],
        length: int,
        end_token: int | Int[Array, ""] | None = None,
        source_lengths: Int[Array, " B"] | None = None,
    ) -> Int[Array, "B {length}"]:
        """Generate target tokens by greedy decoding: each token is the most likely one after all previous tokens.

        Each step decodes one token and reuses cached keys and values. The loop stops early when all rows have ended.
        Compile this method with `jax.jit(model.generate, static_argnames="length")`.

        Args:
            variables: variables of the model, from `init` or from training.
            source_tokens: token ids of the source [B, S].
            start_token: token id before the first generated token: one for all rows, or one per row [B].
            length: number of tokens to generate.
            end_token: token id that ends a row; the rest of the row is filled with it. None: no row ends early.
            source_lengths: number of tokens in each source; later tokens are padding. None: no padding.

        Returns:
            Token ids [B, length], without `start_token`.

        Raises:
            ValueError: `length` is below 1 or above `max_length`.
        """
        if not 1 <= length <= self.max_length:
            raise ValueError(f"length must be from 1 to max_length {self.max_length}, got {length}")
        batch = source_tokens.shape[0]
        memory, _ = self.apply(variables, source_tokens, source_lengths, method="encode")
        decode = partial(self.apply, source_lengths=source_lengths, cache=True, method="decode", mutable=["cache"])

        def step(tokens, done, last, cache, memory, i):
            """Decode token i from `last`, which is token i - 1, and write it to `tokens`."""
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
        # Only the first step reads the memory and caches its keys and values, so this step is outside the loop.
        carry = 1, *step(tokens, jnp.zeros(batch, bool), last, cache, memory, 0)
        carry = jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, *step(*carry[1:], None, carry[0])), carry)
        return carry[1]

    def _embed(self, embedding: nn.Embed, positions: Array, tokens: Array, start, train: bool) -> Array:
        length = tokens.shape[1]
        end = length if isinstance(start, Tracer) else int(start) + length
        if end > self.max_length:
            raise ValueError(
                f"the tokens must have at most max_length {self.max_length} positions, got {end}. "
                "Shorten them or increase max_length"
            )
        check_mesh(tokens)
        x = embedding(tokens) * self.embed_dim**0.5
        positions = positions.astype(x.dtype).at[start + jnp.arange(length)].get(mode="fill", fill_value=jnp.nan)
        return self.embedding_dropout(x + positions, deterministic=not train)


def sinusoidal_positions(length: int, dim: int) -> Float[Array, "{length} {dim}"]:
    """Return fixed sine and cosine positions: the sinusoidal encoding of section 3.5 of the paper.

    PE[t, 2i] = sin(t / 10,000^(2i/dim)) and PE[t, 2i+1] = cos(t / 10,000^(2i/dim)). If `dim` is odd, the last column
    is a sine.

    Args:
        length: number of positions.
        dim: width of each position.
    """
    # Computed in float64 with NumPy: in float32 the angle at position 10,000 would be wrong by up to 0.0005.
    angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, dim, 2) / dim)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)
    return jnp.asarray(waves[:, :dim])  # float32, or float64 if jax_enable_x64 is on
