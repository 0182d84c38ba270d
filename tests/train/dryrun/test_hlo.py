"""Counts of compiled programs, compared with arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train.dryrun.flops import flops_of
from train.dryrun.hlo import arrays, count, group_size
from w2jax.blocks import Mlp

STEPS, BATCH, WIDTH = 5, 6, 16


def mesh_of(devices):
    return jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def placed(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def compiled(function, mesh, out, *shapes):
    return jax.jit(function, out_shardings=NamedSharding(mesh, P(*out))).lower(*shapes).compile()


def counts(program):
    return count(program.as_text(), program.input_shardings[0][0].num_devices)


def chain(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scanned_product_counts_as_often_as_it_runs():
    mesh = mesh_of(1)
    program = compiled(chain, mesh, (), placed(mesh, (BATCH, WIDTH)), placed(mesh, (STEPS, WIDTH, WIDTH)))
    assert counts(program).flops == 2 * STEPS * BATCH * WIDTH**2
    assert program.cost_analysis()["flops"] < counts(program).flops  # XLA's own analysis counts the body once.


def test_nested_loops_multiply():
    def twice(x, weights):
        return jax.lax.scan(lambda x, _: (chain(x, weights), None), x, length=3)[0]

    mesh = mesh_of(1)
    program = compiled(twice, mesh, (), placed(mesh, (BATCH, WIDTH)), placed(mesh, (STEPS, WIDTH, WIDTH)))
    assert counts(program).flops == 3 * 2 * STEPS * BATCH * WIDTH**2


def test_a_loop_of_unknown_length_is_counted_once_and_reported():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 0.0, lambda x: x @ w, x)

    mesh = mesh_of(1)
    result = counts(compiled(until, mesh, (), placed(mesh, (BATCH, WIDTH)), placed(mesh, (WIDTH, WIDTH))))
    assert (result.flops, result.unknown_loops) == (2 * BATCH * WIDTH**2, 1)


@pytest.mark.parametrize(("padding", "meetings"), [("VALID", 3 * 3 * 4 * 2), ("SAME", (5 * 3 - 2) * (5 * 2 - 1))])
def test_a_convolution_counts_only_products_with_image_pixels(padding, meetings):
    # An image of 5×5 with a kernel of 3×2: VALID has 3×4 results. SAME has 5×5, and its edges use padding.
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    mesh = mesh_of(1)
    program = compiled(convolve, mesh, (), placed(mesh, (7, 5, 5, 11)), placed(mesh, (3, 2, 11, 13)))
    assert counts(program).flops == 2 * 7 * 11 * 13 * meetings


def test_model_flops_equal_those_of_the_program_without_recomputation():
    def loss(weights, x):
        return chain(x, weights).sum()

    mesh = mesh_of(1)
    shapes = placed(mesh, (STEPS, WIDTH, WIDTH)), placed(mesh, (BATCH, WIDTH))
    # The backward pass has two products for each forward product, also in the first step, because a scan is uniform.
    assert flops_of(jax.make_jaxpr(jax.grad(loss))(*shapes).jaxpr) == 3 * 2 * STEPS * BATCH * WIDTH**2
    assert counts(compiled(jax.grad(loss), mesh, (), *shapes)).flops == 3 * 2 * STEPS * BATCH * WIDTH**2


def test_collectives_in_a_loop_count_with_their_bytes_as_often_as_it_runs():
    # Each device has a part of every contraction: one all-reduce per step, of [BATCH, WIDTH] in float32.
    mesh = mesh_of(4)
    program = compiled(
        chain,
        mesh,
        (None, "x"),
        placed(mesh, (BATCH, WIDTH), None, "x"),
        placed(mesh, (STEPS, WIDTH, WIDTH), None, "x"),
    )
    result = counts(program)
    sums = result.collectives["all-reduce"]
    assert (sums.count, sums.bytes) == (STEPS, STEPS * 4 * BATCH * WIDTH)
    assert sums.sent == 2 * 3 / 4 * sums.bytes
    assert result.flops == 2 * STEPS * BATCH * WIDTH**2 / 4


def test_a_gathered_array_counts_with_its_full_size():
    mesh = mesh_of(4)
    result = counts(compiled(lambda x: x, mesh, (), placed(mesh, (8, 3), "x")))
    gather = result.collectives["all-gather"]
    assert (gather.count, gather.bytes, gather.sent) == (1, 4 * 8 * 3, 3 / 4 * 4 * 8 * 3)


def test_a_slice_reads_only_its_own_bytes():
    """Also inside a fusion within a fusion."""
    text = """
%inner (a: f32[9,5,7], i: s32[]) -> f32[1,5,7] {
  %i = s32[] parameter(1)
  %a = f32[9,5,7] parameter(0)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,5,7] dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,5,7}
}

%outer (j: s32[], b: f32[9,5,7]) -> f32[1,5,7] {
  %b = f32[9,5,7] parameter(1)
  %j = s32[] parameter(0)
  %part = f32[1,5,7] fusion(%b, %j), kind=kLoop, calls=%inner
  ROOT %negate = f32[1,5,7] negate(%part)
}

ENTRY %main (k: s32[], c: f32[9,5,7]) -> f32[1,5,7] {
  %k = s32[] parameter(0)
  %c = f32[9,5,7] parameter(1)
  ROOT %result = f32[1,5,7] fusion(%k, %c), kind=kLoop, calls=%outer
}
"""
    assert count(text, 1).bytes == 4 * (5 * 7 + 5 * 7) + 4  # bytes read, bytes written, and the index


def test_memory_traffic_of_a_slice_is_its_size():
    def rows(table):
        return jax.lax.scan(lambda total, i: (total + jax.lax.dynamic_slice(table, (i, 0), (1, WIDTH)), None),
                            jnp.zeros((1, WIDTH)), jnp.arange(100))[0]  # fmt: skip

    mesh = mesh_of(1)
    few = counts(compiled(rows, mesh, (), placed(mesh, (100, WIDTH)))).bytes
    assert few == counts(compiled(rows, mesh, (), placed(mesh, (1000, WIDTH)))).bytes


# As the TPU compiler writes it: no known trip count, tiles, on-chip memory, one collective shared by two fusions.
TPU = """
%spread_1 (a: f32[2,256]) -> f32[8,256] {
  %a = f32[2,256]{1,0:T(8,128)} parameter(0)
  ROOT %gather.1 = f32[8,256]{1,0:T(8,128)} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%spread_2 (b: f32[2,256]) -> f32[8,256] {
  %b = f32[2,256]{1,0:T(8,128)} parameter(0)
  ROOT %gather.2 = f32[8,256]{1,0:T(8,128)} all-gather(%b), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (p: (s32[], f32[2,256])) -> (s32[], f32[2,256]) {
  %p = (s32[]{:T(128)}, /*index=1*/f32[2,256]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[2,256]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %f.1 = f32[8,256]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%spread_1
  %f.2 = f32[8,256]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%spread_2
  ROOT %t = (s32[]{:T(128)}, f32[2,256]{1,0:T(8,128)}) tuple(%i, %x)
}

%condition (q: (s32[], f32[2,256])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %q = (s32[]{:T(128)}, f32[2,256]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (s: (s32[], f32[2,256])) -> (s32[], f32[2,256]) {
  %s = (s32[]{:T(128)}, f32[2,256]{1,0:T(8,128)}) parameter(0)
  ROOT %while = (s32[]{:T(128)}, f32[2,256]{1,0:T(8,128)}) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_its_condition_allows():
    """A collective that is split into start and done counts once."""
    result = count(TPU, devices=4)
    gather = result.collectives["all-gather"]
    # [2, 256] is stored in tiles of 8×128, so each device sends 8 rows.
    assert (gather.count, gather.bytes) == (3, 3 * 4 * (8 * 256 * 4))


def test_on_chip_memory_costs_no_traffic():
    traffic = count(TPU, devices=4).bytes
    assert count(TPU.replace("S(1)", ""), devices=4).bytes == traffic + 3 * 2 * 8 * 256 * 4


def test_memory_traffic_is_counted_by_module_and_direction():
    """Three products: `fc1` is constant, so the backward pass only computes the gradient of the kernel of `fc2`."""
    mesh, mlp, x = mesh_of(1), Mlp(300, activation="relu"), placed(mesh_of(1), (200, 100))
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: placed(mesh, leaf.shape), shapes)

    @jax.grad
    def gradient(fc2, fc1, x):
        return (mlp.apply({"params": {"fc1": fc1, "fc2": fc2}}, x) ** 2).sum()

    result = count(jax.jit(gradient).lower(params["fc2"], params["fc1"], x).compile().as_text(), devices=1)
    assert result.bytes == sum(result.traffic.values())
    product = 4 * (200 * 100 + 100 * 300 + 200 * 300)  # reads two of these arrays and writes the third
    for part in ("fc1 forward", "fc2 forward", "fc2 backward"):
        assert product <= result.traffic.get(part, 0) < 2 * product
    assert "fc1 backward" not in result.traffic


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[32,10]{0,1:T(8,128)(2,1)S(1)}", 2 * 16 * 128),  # dimension 0 is the fastest
        ("f32[64,17,3]{2,0,1:T(8,128)}", 4 * 17 * 64 * 128),
        ("f32[5,3]{1,0}", 60),
        ("pred[7]{0:T(1024)}", 7),
        ("s32[]", 4),
        ("token[]", 0),
    ],
)
def test_an_array_takes_all_tiles_that_it_touches(shape, size):
    assert [array.bytes for array in arrays(shape)] == [size]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2,4},{1,3,5}}", 3),
        ("[2,3]<=[3,2]T(1,0)", 3),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=3] {'axis_2'}", 3),
        ("mesh['axis_0'=2,'axis_1'=3] {'axis_0','axis_1'}", 6),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=3], device_ids=([3,2]T(1,0)) {'axis_0','axis_1'}", 2),
        ("{}", 6),
    ],
)
def test_the_size_of_a_group_is_read_in_each_notation(groups, size):
    assert group_size(f"channel_id=1, replica_groups={groups}, dimensions={{0}}", devices=6) == size
