"""The rule that maps a parameter's path and shape to its sharding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs.base import Mesh, Optim
from configs.vit import PRESETS
from train.data.source import AbstractSource
from train.engine.placement import placements, show_placement
from train.engine.program import Program
from train.engine.sharding import make_mesh, partition_spec, state_sharding
from train.engine.step import init_state, make_train_step
from train.process.errors import UserError
from train.task import State, Task

ALL = {"data": 1, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("params/encoder/block_0/attention/query/kernel", (256, 4, 64), P("fsdp", "tensor", None)),
        ("opt_state/0/mu/encoder/block_0/attention/query/kernel", (256, 4, 64), P("fsdp", "tensor", None)),
        ("params/encoder/blocks/attention/query/kernel", (6, 256, 4, 64), P(None, "fsdp", "tensor", None)),
        ("params/encoder/block_0/attention/value/bias", (4, 64), P("tensor", None)),
        ("params/encoder/block_0/attention/out/kernel", (4, 64, 256), P("tensor", None, "fsdp")),
        ("params/encoder/block_0/mlp/fc1/kernel", (256, 512), P("fsdp", "tensor")),
        ("params/encoder/block_0/mlp/fc2/kernel", (512, 256), P("tensor", "fsdp")),
        (
            "params/encoder/block_0/attention/query/kernel",
            (256, 3, 64),
            P("fsdp", None, None),
        ),  # 3 heads over 2: not cut
        ("params/lstm/forward_0/input_kernel", (256, 4, 128), P("fsdp", None, "tensor")),
        ("opt_state/0/nu/lstm/backward_1/hidden_kernel", (256, 4, 128), P("fsdp", None, "tensor")),
        ("params/lstm/forward_0/hidden_bias", (4, 128), P(None, "tensor")),
        ("params/lstm/forward_0/projection_kernel", (256, 128), P("tensor", "fsdp")),
        ("opt_state/generator/0/mu/encoder/hidden_0/kernel", (1024, 512), P("fsdp", "tensor")),
        ("params/category_discriminator/hidden_1/kernel", (512, 256), P("tensor", "fsdp")),
        ("params/decoder/hidden_1/bias", (512,), P(None)),
        ("params/encoder/hidden_12/kernel", (512, 256), P("fsdp", "tensor")),  # the axis alternates by layer
        ("params/discriminator/hidden_3/kernel", (512, 256), P("tensor", "fsdp")),
        ("params/transformer/decoder/block_5/cross_attention/key/kernel", (256, 4, 64), P("fsdp", "tensor", None)),
        (
            "params/transformer/decoder/blocks/self_attention/out/kernel",
            (6, 4, 64, 256),
            P(None, "tensor", None, "fsdp"),
        ),
        # The stack's depth is not sharded. A layer in a stack counts as small where it would count as small alone.
        ("params/encoder/blocks/mlp/fc1/kernel", (512, 129, 255), P(None, None, None)),
        ("params/encoder/blocks/norm1/scale", (512, 256), P(None, None)),
        ("opt_state/0/mu/gru/forward_0/input_kernel", (255, 3, 128), P(None, None, ("tensor", "fsdp"))),  # both
        ("params/lstm/forward_0/input_kernel", (255, 3, 130), P(None, None, "tensor")),  # 130 / 2 is odd
        ("params/embedding/embedding", (1000, 512), P("fsdp", None)),
        ("params/head/kernel", (255, 1001), P(None, None)),  # no mesh axis divides the sizes
        ("params/norm/scale", (256,), P(None)),  # small, so it is copied
        ("step", (), P()),
    ],
)
def test_the_rule_shards_heads_and_widths_by_tensor_the_rest_by_fsdp(name, shape, expected):
    """fsdp shards the largest axis that tensor does not."""
    assert partition_spec(name, shape, ALL) == expected


def test_minus_one_uses_the_remaining_devices():
    assert dict(make_mesh(Mesh(-1, 2, 1)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert make_mesh(Mesh(1, 1, 2)).size == 2


@pytest.mark.parametrize("sizes", [(3, -1, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1), (-2, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused_with_its_sizes(sizes):
    with pytest.raises(UserError, match=f"got --mesh.data {sizes[0]}, --mesh.fsdp {sizes[1]}, --mesh.tensor 1"):
        make_mesh(Mesh(*sizes))
    assert len(jax.devices()) == 8


def test_the_table_counts_the_bytes_on_each_device(capsys):
    params = {"mlp": {"fc1": {"kernel": jnp.ones((256, 130)), "bias": jnp.ones(130)}}, "norm": {"scale": jnp.ones(3)}}
    state = State(jnp.zeros((), jnp.int32), params, optax.adam(1e-3).init(params), ema=params, batch_stats={})
    placed = jax.device_put(state, state_sharding(make_mesh(Mesh(1, 4, 2)), state))
    rows, rest = placements(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed))

    def held(*trees):
        return sum(leaf.addressable_shards[-1].data.nbytes for leaf in jax.tree.leaves(trees))

    moments = placed.opt_state[0]
    bias, kernel, scale = rows
    for row, part in ((bias, "bias"), (kernel, "kernel")):
        leaves = [tree["mlp"]["fc1"][part] for tree in (placed.params, placed.ema, moments.mu, moments.nu)]
        assert (row.name, row.device_bytes, row.device_state_bytes) == (
            f"mlp/fc1/{part}",
            held(leaves[0]),
            held(leaves),
        )
    assert (kernel.device_bytes, bias.device_bytes, scale.device_state_bytes) == (4 * 256 * 130 // 8, 4 * 65, 4 * 4 * 3)
    assert sum(row.device_state_bytes for row in (*rows, rest)) == held(placed)
    assert sum(row.total_state_bytes for row in (*rows, rest)) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    show_placement(placed)
    text = capsys.readouterr().out
    assert "256/fsdp×130/tensor" in text and "33,413 parameters" in text


class Chip:
    """The attributes that JAX reports for a TPU chip in one of several slices of 2×2."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, i):
        self.id, self.slice_index, self.process_index = i, i // 4, i // 4
        self.coords = (i % 2, i // 2 % 2, 0)


def test_slices_are_along_the_data_axis_only():
    chips = [Chip(i) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    mesh = make_mesh(Mesh(4, 2, 1), chips)
    slices = [[[chip.slice_index for chip in row] for row in part] for part in mesh.devices]
    assert slices == [[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]
    for sizes in (Mesh(1, 8, 1), Mesh(1, 4, 2), Mesh(2, 3, 1)):
        with pytest.raises(
            UserError, match=r"--mesh.data must be a multiple of 2, the number of slices, and the mesh must use all 8"
        ):
            make_mesh(sizes, chips)


def test_every_process_has_a_device_of_the_mesh():
    devices = [SimpleNamespace(platform="cpu", process_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match=r"mesh must use all 8 devices of the 2 processes, got --mesh.data 4"):
        make_mesh(Mesh(4, 1, 1), devices)


@pytest.mark.parametrize(("groups", "is_refused"), [(1, False), (3, True)])
def test_grouped_convolutions_are_refused_on_a_tensor_axis(groups, is_refused):
    """XLA would multiply the gradients of their kernels by the size of that axis, at least on CPU."""
    config = PRESETS["tiny"].config

    def loss(params, batch, key):
        images = jnp.repeat(batch["image"] / 255.0, 3, axis=-1)
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            images, params["kernel"], (1, 1), "SAME", feature_group_count=groups, dimension_numbers=dimensions
        )
        return jnp.square(y).mean(), {}

    def make(mesh):
        source = AbstractSource("none", "train", (8, 8, 1), 10, [], count=64)
        step = make_train_step(loss, optax.sgd(0.1), Optim(), 0)
        params = {"kernel": jnp.ones((3, 3, 3 // groups, 6))}
        task = Task(lambda: init_state(params, optax.sgd(0.1), Optim()), step, lambda *_: {}, lambda *_: {})
        return Program(config, task, source, make_mesh(mesh))

    make(Mesh(4, 2, 1))
    if is_refused:
        with pytest.raises(UserError, match=r"--mesh\.tensor must be 1 for a model with grouped convolutions, got 2"):
            make(Mesh(2, 2, 2))
    else:
        make(Mesh(2, 2, 2))
