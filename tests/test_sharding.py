"""The rule from a parameter's path and shape to its place."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from configs.base import Mesh
from train.errors import UserError
from train.sharding import make_mesh, partition_spec

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
        ("params/head/kernel", (255, 1001), P(None, None)),  # nothing divides
        ("params/norm/scale", (256,), P(None)),  # small: copied
        ("step", (), P()),
    ],
)
def test_the_rule_cuts_heads_and_widths_by_tensor_and_the_largest_other_axis_by_fsdp(name, shape, expected):
    assert partition_spec(name, shape, ALL) == expected


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(Mesh(-1, 2, 1)).shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert make_mesh(Mesh(1, 1, 2)).size == 2


@pytest.mark.parametrize("sizes", [(3, -1, 1), (-1, -1, 1), (0, 1, 1), (8, 1, 1), (-2, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused_with_its_sizes(sizes):
    with pytest.raises(UserError, match=f"got --mesh.data {sizes[0]}, --mesh.fsdp {sizes[1]}, --mesh.tensor 1"):
        make_mesh(Mesh(*sizes))
    assert len(jax.devices()) == 4
