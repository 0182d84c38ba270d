"""The encoder–decoder: torch's values and gradients, causality and padding, and decoding with the cache."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables, run

from w2jax.seq2seq import Seq2Seq, sinusoidal_positions
from w2jax.transformer import Transformer

B, S, T, D, H, F = 2, 7, 5, 12, 3, 20
ENCODERS, DECODERS = 1, 2
V, SOURCE_V, LENGTH = 11, 8, 9


def transformer(**options):
    return Transformer(H, F, ENCODERS, DECODERS, **{"dropout": 0.0, **options})


def inputs():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (B, S, D)), jax.random.normal(keys[1], (B, T, D))


def torchs(**options):
    """The encoder is built separately, because `torch.nn.Transformer` has no option to disable nested tensors."""
    options |= {"batch_first": True, "dropout": 0.0}
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(D, H, F, **options),
        ENCODERS,
        torch.nn.LayerNorm(D, options["layer_norm_eps"], bias=options["bias"]),
        enable_nested_tensor=False,
    )
    return torch.nn.Transformer(D, H, ENCODERS, DECODERS, F, custom_encoder=encoder, **options)


def state_dict(params):
    """Returns the parameters, or gradients, of our Transformer under torch's names."""
    out = {}

    def put(name, weight, bias=None):
        out[f"{name}.weight"] = weight
        if bias is not None:
            out[f"{name}.bias"] = bias

    for stack in ("encoder", "decoder"):
        norm = params[f"{stack}_norm"]
        put(f"{stack}.norm", norm["scale"], norm.get("bias"))
        for block, layers in params[stack].items():
            prefix = f"{stack}.layers.{block.removeprefix('block_')}."
            for name, layer in layers.items():
                if name.startswith("norm"):
                    put(prefix + name, layer["scale"], layer.get("bias"))
                elif name == "mlp":
                    for ours, theirs in (("fc1", "linear1"), ("fc2", "linear2")):
                        put(prefix + theirs, layer[ours]["kernel"].T, layer[ours].get("bias"))
                else:
                    name = prefix + {"cross_attention": "multihead_attn"}.get(name, "self_attn")
                    qkv = [layer[n] for n in ("query", "key", "value")]
                    out[f"{name}.in_proj_weight"] = np.concatenate([x["kernel"].reshape(D, D).T for x in qkv])
                    if "bias" in qkv[0]:
                        out[f"{name}.in_proj_bias"] = np.concatenate([x["bias"].reshape(D) for x in qkv])
                    put(f"{name}.out_proj", layer["out"]["kernel"].reshape(D, D).T, layer["out"].get("bias"))
    return {name: torch.from_numpy(np.array(x)) for name, x in out.items()}


MASKS = {
    "source_mask": jax.random.bernoulli(jax.random.key(1), 0.6, (S, S)).at[:, 0].set(True),
    "target_mask": jax.random.bernoulli(jax.random.key(2), 0.6, (T, T)).at[:, 0].set(True),
    "memory_mask": jax.random.bernoulli(jax.random.key(3), 0.6, (B, H, T, S)).at[..., 0].set(True),
    "source_lengths": jnp.array([4, 7]),
    "target_lengths": jnp.array([5, 2]),
}


def torch_masks():
    def hidden(mask):
        return ~torch.from_numpy(np.array(mask))

    def padding(lengths, size):
        return hidden(jnp.arange(size) < lengths[:, None])

    return {
        "src_mask": hidden(MASKS["source_mask"]),
        "tgt_mask": hidden(MASKS["target_mask"] & jnp.tril(jnp.ones((T, T), bool))),
        "memory_mask": hidden(MASKS["memory_mask"].reshape(B * H, T, S)),
        "src_key_padding_mask": padding(MASKS["source_lengths"], S),
        "tgt_key_padding_mask": padding(MASKS["target_lengths"], T),
        "memory_key_padding_mask": padding(MASKS["source_lengths"], S),
    }


@pytest.mark.parametrize(
    ("pre_norm", "activation", "bias", "eps", "masked"),
    [
        (False, "relu", True, 1e-5, True),
        (True, "gelu", True, 1e-2, True),
        (True, "relu", False, 1e-5, True),
        (False, "gelu", False, 1e-2, False),
    ],
)
def test_values_and_all_gradients_are_those_of_torch(pre_norm, activation, bias, eps, masked):
    model = transformer(pre_norm=pre_norm, activation=activation, use_bias=bias, norm_eps=eps)
    source, target = inputs()
    params = random_variables(model, source, target)["params"]
    weight = jax.random.normal(jax.random.key(4), (B, T, D))

    theirs = torchs(norm_first=pre_norm, activation=activation, bias=bias, layer_norm_eps=eps)
    theirs.load_state_dict(state_dict(params))
    theirs_in = [torch.from_numpy(np.array(x)).requires_grad_() for x in (source, target)]
    expected = theirs(*theirs_in, **(torch_masks() if masked else {}))
    (expected * torch.from_numpy(np.array(weight))).sum().backward()

    def loss(params, source, target):
        out, _ = model.apply({"params": params}, source, target, **(MASKS if masked else {}), causal=masked)
        return (out * weight).sum(), out

    (gradients, *to_inputs), out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, source, target)
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs_ in zip(to_inputs, theirs_in, strict=True):
        np.testing.assert_allclose(ours, theirs_.grad, rtol=1e-4, atol=1e-4)
    gradients, theirs_gradients = state_dict(gradients), dict(theirs.named_parameters())
    assert gradients.keys() == theirs_gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, theirs_gradients[name].grad, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_defaults_are_those_of_torch():
    ours, theirs = Transformer(H, F), inspect.signature(torch.nn.Transformer).parameters
    names = {
        "encoder_depth": "num_encoder_layers",
        "decoder_depth": "num_decoder_layers",
        "dropout": "dropout",
        "pre_norm": "norm_first",
        "norm_eps": "layer_norm_eps",
        "use_bias": "bias",
    }
    assert {n: getattr(ours, n) for n in names} == {n: theirs[name].default for n, name in names.items()}
    assert ours.activation == theirs["activation"].default.__name__


def test_an_output_depends_on_earlier_targets_and_the_full_source():
    model, (source, target) = transformer(), inputs()
    variables = random_variables(model, source, target)

    def by_position(source, target):
        return model.apply(variables, source, target)[0].sum((0, 2))

    on_source, on_target = jax.jit(jax.jacrev(by_position, argnums=(0, 1)))(source, target)
    seen = np.abs(on_target).sum((1, 3)) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T))))
    assert (np.abs(on_source).sum((1, 3)) > 0).all()


@pytest.mark.slow
def test_padding_changes_neither_outputs_nor_gradients():
    """Even if the padding is NaN."""
    model, (source, target) = transformer(), inputs()
    variables = random_variables(model, source, target)
    s, t = 4, 2

    def loss(variables, source, target, lengths):
        out, _ = model.apply(
            variables, source, target, source_lengths=lengths[0], target_lengths=lengths[1], causal=False
        )
        return (out[:, :t] ** 3).sum(), out[:, :t]

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    lengths = jnp.full(B, s), jnp.full(B, t)
    broken = source.at[:, s:].set(jnp.nan), target.at[:, t:].set(jnp.inf)
    (gradients, *to_inputs), out = grad(variables, *broken, lengths)
    (expected, *to_cut), expected_out = grad(variables, source[:, :s], target[:, :t], (None, None))
    np.testing.assert_allclose(out, expected_out, rtol=1e-4, atol=1e-5)
    for ours, cut in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, cut, rtol=1e-4, atol=1e-4)
    for ours, cut in zip(to_inputs, to_cut, strict=True):
        np.testing.assert_allclose(ours[:, : cut.shape[1]], cut, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(ours[:, cut.shape[1] :], 0)


def test_attention_weights_are_distributions_over_the_unmasked_keys():
    model, (source, target) = transformer(), inputs()
    variables = random_variables(model, source, target)
    _, attentions = run(model, variables, source, target, return_attention=True, **MASKS)
    inside_source, inside_target = (
        jnp.arange(n) < MASKS[name][:, None, None, None] for n, name in ((S, "source_lengths"), (T, "target_lengths"))
    )
    allowed = {
        "encoder": MASKS["source_mask"] & inside_source,
        "decoder": MASKS["target_mask"] & inside_target & jnp.tril(jnp.ones((T, T), bool)),
        "cross": MASKS["memory_mask"] & inside_source,
    }
    assert {name: len(blocks) for name, blocks in attentions.items()} == {
        "encoder": ENCODERS,
        "decoder": DECODERS,
        "cross": DECODERS,
    }
    for name, blocks in attentions.items():
        for weights in blocks:
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
            np.testing.assert_array_equal(weights > 0, jnp.broadcast_to(allowed[name], weights.shape))


def test_a_decoder_without_memory_raises():
    source, target = inputs()
    variables = random_variables(transformer(), source, target)
    with pytest.raises(ValueError, match="must be the encoder's output, got None"):
        transformer().apply(variables, target, None, method="decode")


def stacked(params):
    """Returns the parameters of unrolled stacks in the layout of scanned ones."""

    def stack(blocks):
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *(blocks[f"block_{i}"] for i in range(len(blocks))))}

    return {**params, "encoder": stack(params["encoder"]), "decoder": stack(params["decoder"])}


@pytest.mark.slow
def test_scanned_and_rematerialised_stacks_equal_unrolled_ones():
    plain, scanned = transformer(), transformer(remat=True, scan_layers=True)
    (source, target), lengths = inputs(), MASKS["source_lengths"]
    params = random_variables(plain, source, target)["params"]

    def loss(model, params):
        out, attentions = model.apply({"params": params}, source, target, source_lengths=lengths, return_attention=True)
        return (out**3).sum() + sum((x**2).sum() for x in jax.tree.leaves(attentions)), (out, attentions)

    expected = jax.jit(jax.grad(partial(loss, plain), has_aux=True))(params)
    got = jax.jit(jax.grad(partial(loss, scanned), has_aux=True))(stacked(params))
    expected = stacked(expected[0]), expected[1]
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "parts"),
    [({}, (1,) * T), ({"pre_norm": True}, (3, 2)), ({"scan_layers": True, "use_bias": False}, (1, 4))],
    ids=str,
)
def test_decoding_in_pieces_with_the_cache_equals_the_full_pass(options, parts):
    model, (source, target) = transformer(**options), inputs()
    params = random_variables(model, source, target)["params"]
    masks = {"source_lengths": MASKS["source_lengths"], "memory_mask": MASKS["memory_mask"][:, :, :1]}
    encode = jax.jit(partial(model.apply, method="encode"))
    memory, _ = encode({"params": params}, source, source_lengths=masks["source_lengths"])
    decode = partial(model.apply, method="decode", **masks)
    expected, _ = jax.jit(decode)({"params": params}, target, memory)

    room = partial(model.init, method="decode", cache=True)
    cache = jax.jit(room)(jax.random.key(0), target, memory)["cache"]
    step = jax.jit(partial(decode, cache=True, mutable=["cache"]))
    out, start = [], 0
    for size in parts:
        part = target[:, start : start + size]
        (y, _), state = step({"params": params, "cache": cache}, part, memory if start == 0 else None)
        cache, start = state["cache"], start + size
        out.append(y)
    np.testing.assert_allclose(jnp.concatenate(out, axis=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_acts_in_torchs_places_and_on_the_embeddings(monkeypatch):
    model = seq2seq(dropout=0.1)
    variables = random_variables(model, *tokens())

    def train(dropout_key):
        return model.apply(variables, *tokens(), train=True, rngs={"dropout": dropout_key})

    draws, draw = [], jax.random.bernoulli
    with monkeypatch.context() as patch:
        patch.setattr(
            jax.random, "bernoulli", lambda key, p, shape: draws.append((float(p), *shape)) or draw(key, p, shape)
        )
        jax.eval_shape(train, jax.random.key(0))
    in_encoder = [(B, H, S, S), (B, S, D), (B, S, F), (B, S, D)]
    in_decoder = [(B, H, T, T), (B, T, D), (B, H, T, S), (B, T, D), (B, T, F), (B, T, D)]
    assert sorted((p, *(n for n in shape if n > 1)) for p, *shape in draws) == sorted(
        (0.9, *shape) for shape in [(B, S, D), (B, T, D), *in_encoder * ENCODERS, *in_decoder * DECODERS]
    )

    train = jax.jit(train)
    first, again, other = (train(jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(run(model, variables, *tokens())[0], run(seq2seq(), variables, *tokens())[0])


def test_if_every_branch_is_dropped_only_the_last_norm_remains():
    model, (source, target) = transformer(dropout=1.0, pre_norm=True), inputs()
    variables = random_variables(model, source, target)
    out, _ = run(model, variables, source, target, train=True, rngs={"dropout": jax.random.key(0)})
    centered = target - target.mean(-1, keepdims=True)
    norm = variables["params"]["decoder_norm"]
    expected = centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def seq2seq(**options):
    options = {"dropout": 0.0, "max_length": LENGTH, **options}
    return Seq2Seq(V, D, H, F, ENCODERS, DECODERS, **options)


def tokens():
    keys = jax.random.split(jax.random.key(5))
    return jax.random.randint(keys[0], (B, S), 0, SOURCE_V), jax.random.randint(keys[1], (B, T), 0, V)


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": "learned", "source_vocab_size": SOURCE_V}, {"tie_output": False, "pre_norm": True}],
    ids=str,
)
def test_tokens_are_embedded_times_root_d_plus_positions(options):
    """The same embedding matrix computes the logits."""
    model, (source, target) = seq2seq(**options), tokens()
    params = random_variables(model, source, target)["params"]
    logits, _ = run(model, {"params": params}, source, target, source_lengths=MASKS["source_lengths"])

    def embed(tokens, embedding, positions):
        positions = params[positions] if positions in params else formula(LENGTH, D)
        return params[embedding]["embedding"][tokens] * np.sqrt(D) + positions[: tokens.shape[1]]

    x = embed(source, "source_embedding" if "source_vocab_size" in options else "embedding", "source_positions")
    y = embed(target, "embedding", "target_positions")
    inner = transformer(pre_norm=options.get("pre_norm", False))
    out, _ = run(inner, {"params": params["transformer"]}, x, y, source_lengths=MASKS["source_lengths"])
    if "tie_output" in options:
        expected = out @ params["head"]["kernel"] + params["head"]["bias"]
    else:
        expected = out @ params["embedding"]["embedding"].T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    named = {"embedding", "transformer", *(k for k in params if k.startswith(("source_", "target_")) or k == "head")}
    assert params.keys() == named


def greedy(model, variables, source, start, length, **options):
    """Greedy decoding: repeats full passes and appends the most probable token."""
    full = jax.jit(partial(model.apply, **options))
    written = np.full((B, length + 1), start)
    for i in range(length):
        # Outputs up to position i do not depend on tokens after i.
        written[:, i + 1] = full(variables, source, written[:, :-1])[0][:, i].argmax(-1)
    return written[:, 1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "factor", "start"),
    [({}, 1, 1), ({"positions": "learned", "pre_norm": True, "tie_output": False}, 3, 5)],
    ids=str,
)
def test_generating_with_the_cache_gives_the_tokens_of_full_passes(options, factor, start):
    model, (source, _) = seq2seq(**options), tokens()
    variables = jax.tree.map(lambda x: factor * x, random_variables(model, *tokens()))
    lengths = MASKS["source_lengths"]
    expected = greedy(model, variables, source, start, LENGTH, source_lengths=lengths)
    assert all(len(set(row)) > 1 for row in expected.tolist()), "these weights repeat one token, which proves little"

    generate = jax.jit(model.generate, static_argnames="length")
    np.testing.assert_array_equal(generate(variables, source, start, LENGTH, source_lengths=lengths), expected)
    end = expected[0, LENGTH // 2]
    ended = [[end if end in row[:i] else token for i, token in enumerate(row)] for row in expected.tolist()]
    np.testing.assert_array_equal(generate(variables, source, start, LENGTH, end, lengths), ended)


def test_more_tokens_than_max_length_are_an_error_or_nan():
    """NaN if the number is only known on the device."""
    model, (source, target) = seq2seq(max_length=S), tokens()
    variables = random_variables(model, source, target)
    longer = jnp.concatenate([source, source], axis=1)
    with pytest.raises(ValueError, match=f"tokens must have at most max_length {S} positions, got {2 * S}"):
        model.apply(variables, longer, target)
    with pytest.raises(ValueError, match=f"tokens must have at most max_length {S} positions, got {S + 1}"):
        memory = jnp.zeros((B, S, D))
        model.apply(variables, target, memory, start=S - T + 1, method="decode")
    with pytest.raises(ValueError, match=f"length must be from 1 to max_length {S}, got {S + 1}"):
        model.generate(variables, source, 1, S + 1)
    decode = jax.jit(partial(model.apply, method="decode"))
    logits, _ = decode(variables, target, memory, start=jnp.array(S - T + 1))
    np.testing.assert_array_equal(jnp.isnan(logits).any((0, 2)), np.arange(T) == T - 1)


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits():
    half, variables = seq2seq(dtype="bfloat16"), random_variables(seq2seq(), *tokens())
    shapes = jax.eval_shape(half.init, jax.random.key(0), *tokens())
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    logits, expected = run(half, variables, *tokens())[0], run(seq2seq(), variables, *tokens())[0]
    assert logits.dtype == jnp.float32 and not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.2)


def formula(length, dim):
    """Section 3.5 of the paper, for a single number."""
    waves = (math.sin, math.cos)
    return np.array([[waves[c % 2](t / 10_000 ** ((c - c % 2) / dim)) for c in range(dim)] for t in range(length)])


@pytest.mark.parametrize("dim", [2, 7, 12])
def test_sinusoidal_positions_are_the_papers_formula(dim):
    np.testing.assert_allclose(sinusoidal_positions(20, dim), formula(20, dim), atol=1e-6)
    np.testing.assert_allclose(sinusoidal_positions(10_001, dim)[-1], formula(10_001, dim)[-1], atol=1e-6)


def test_a_shift_of_sinusoidal_positions_is_one_rotation_for_all_of_them():
    positions, shift = sinusoidal_positions(50, D), 7
    sines, cosines = positions[:, ::2], positions[:, 1::2]
    angle = shift / 10_000 ** (np.arange(0, D, 2) / D)
    turned = sines * np.cos(angle) + cosines * np.sin(angle), cosines * np.cos(angle) - sines * np.sin(angle)
    np.testing.assert_allclose(np.stack(turned, -1).reshape(50, D)[:-shift], positions[shift:], atol=1e-5)
