"""What a task is: pure functions. The loop knows nothing else of a task; a task knows nothing of the loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from configs.base import Optim
from train.data import Source

Batch = Mapping[str, Array]
Params = PyTree[Array]
Metrics = dict[str, Array]  # a number each, but for NOT_FINITE
Loss = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]

NONFINITE = "not_finite"
"""Among a step's metrics: for each parameter, in the order of its leaves, whether its gradient is NaN or infinite."""


class State(struct.PyTreeNode):
    """All that training changes, and so all that a checkpoint holds."""

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree  # of the optimizer, or of several by name
    ema: Params | None = None  # average of the parameters, if the optimizer's config asks for one
    batch_stats: PyTree | None = None  # running statistics of batch norm, if the model has any

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the average where there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What a Linen module is applied with to evaluate it."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}


class Grid(struct.PyTreeNode):
    """A picture of cells in rows and columns."""

    cells: Float[Array, "rows columns h w"] | Float[Array, "rows columns h w 3"]
    """Gray, from 0, black, to 1, white; or red, green and blue."""
    caption: str = struct.field(pytree_node=False)
    """Says what is seen, as a sentence."""


class Scatter(struct.PyTreeNode):
    """A picture of points in the plane, coloured by label. A point that is NaN is not drawn."""

    points: Float[Array, "N 2"]
    labels: Int[Array, "N"]
    background: Float[Array, "M 2"]
    """Samples of a prior, light gray behind the points."""
    marks: Float[Array, "K 2"] | None
    """Black crosses over the points, such as the heads of clusters."""
    caption: str = struct.field(pytree_node=False)
    """Says what is seen, as a sentence."""


class Plane(struct.PyTreeNode):
    """A picture of images all over a rectangle, to be looked at by moving over it, and of labelled points in it."""

    images: Float[Array, "rows columns h w"]
    """Gray, from 0, black, to 1, white; the first row is the rectangle's uppermost."""
    points: Float[Array, "N 2"]
    """Both coordinates from -1 to 1 in the rectangle. A point that is NaN is not drawn."""
    labels: Int[Array, "N"]
    caption: str = struct.field(pytree_node=False)
    """Says what is seen, as a sentence."""


Picture = Grid | Scatter | Plane


class Start(NamedTuple):
    """What a fresh run begins with."""

    params: Mapping[str, Any]
    """Parameters by their first name, on the host; `init` makes the others."""
    note: str
    """Says where they are from, in one line."""


@dataclass(frozen=True)
class Task:
    """A model with its loss, as four pure functions that jit and shard.

    Batches hold what `train.data` gives: "image" uint8 [B, h, w, C], "label" int32 [B]; in training also "index"
    int32 [B], the example's number in the split; in evaluation and for figures "mask" bool [B], False at examples that
    only fill up the batch.
    """

    init: Callable[..., State]
    """`init()` is the State before the first step; or `init(start().params)`, where the task has a start."""
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """One optimizer step. Everything random in it follows from the seed and `state.step`. Its metrics are scalars, and
    bool [P] under `NONFINITE`."""
    evaluate: Callable[[State, Batch], dict[str, Float[Array, "B"]]]
    """One value per example and metric; the loop averages over the split."""
    figures: Callable[[State, Batch], Mapping[str, Picture]]
    """What the report draws, by a short name that can name a file."""
    best: str = "accuracy"
    """Metric of `evaluate` that the best checkpoint is kept by."""
    best_mode: Literal["max", "min"] = "max"
    """Whether that metric is better when it is high or low."""
    assess: Callable[[State, Source], dict[str, float]] | None = None
    """Metrics of a trained model that no mean over examples gives, from the test split; taken after the last step."""
    figure_examples: int = 8
    """Test images that `figures` is given at least."""
    probabilities: Callable[[State, Array], Float[Array, "B V"]] | None = None
    """Of each class, of images uint8 [B, h, w, C]; None: the model does not classify."""
    start: Callable[[], Start] | None = None
    """Reads what `init` is given by a fresh run; None: nothing."""


def init_state(params: Params, optimizer: optax.GradientTransformation, config: Optim) -> State:
    """The State before the first step."""
    ema = None if config.ema is None else jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: Optim,
    seed: int,
    augment: Callable[[Batch, Key[Array, ""]], Batch] = lambda batch, key: batch,
    micro_batch: int | None = None,
):
    """`step` of a task with one loss: gradient, update, average.

    Args:
        loss: `loss(params, batch, key)` returns the mean over the batch and metrics, likewise means.
        optimizer: what updates the parameters.
        config: into how many parts a batch is cut, and whether parameters are averaged.
        seed: of all that is random.
        augment: `augment(batch, key)` changes a batch before `loss` is given it, or parts of it.
        micro_batch: examples, about, that each takes at a time where a CPU counts as several devices; None: all.
    """

    def gradient(params: Params, batch: Batch, key: Key[Array, ""]):
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return {"loss": value, **metrics}, gradients

    def of_batch(params: Params, batch: Batch, key: Key[Array, ""]):
        augment_key, loss_key = jax.random.split(key)
        return _in_micro_batches(gradient, params, augment(batch, augment_key), loss_key, micro_batch)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        metrics, gradients = _accumulated(of_batch, state.params, batch, key, config.accumulate)
        squares = squared_norms(gradients)
        metrics["grad_norm"] = jnp.sqrt(sum(jax.tree.leaves(squares)))
        metrics[NONFINITE] = nonfinite(squares)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, update_ema(state, params, config.ema)), metrics

    return step


def squared_norms(gradients: Params) -> PyTree[Float[Array, ""]]:
    """The sum of the squares of each leaf. It is not finite if one of its values is not, or too large to be squared."""
    return jax.tree.map(lambda x: jnp.sum(jnp.square(x)), gradients)


def nonfinite(values: PyTree[Float[Array, ""]]) -> Bool[Array, "P"]:
    """For each leaf, a scalar, whether it is NaN or infinite."""
    return ~jnp.isfinite(jnp.stack(jax.tree.leaves(values)))


def nonfinite_leaves(tree: PyTree[Array]) -> Bool[Array, "L"]:
    """For each leaf, whether one of its values is NaN or infinite."""
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def skip_nonfinite(
    step: Callable[[State, Batch], tuple[State, Metrics]],
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`step`, but where a gradient, metric or new parameter is not finite, only the state's number changes."""

    def careful(state: State, batch: Batch) -> tuple[State, Metrics]:
        after, metrics = step(state, batch)
        broken = metrics[NONFINITE] | nonfinite_leaves(after.params)
        scalars = jnp.stack([value for name, value in metrics.items() if name != NONFINITE])
        good = ~broken.any() & jnp.isfinite(scalars).all()
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return kept.replace(step=after.step), {**metrics, NONFINITE: broken}

    return careful


def leaf_name(path: tuple[Any, ...]) -> str:
    """The place of a leaf in a tree, as encoder/mlp/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their places, in their order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def update_ema(state: State, params: Params, decay: float | None) -> Params | None:
    """The average of the parameters after the step from `state` to `params`."""
    if decay is None or state.ema is None:
        return None
    # The early average follows closely, or it would long remember the initial parameters.
    decay_now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.ema, 1.0 - decay_now)


# (parameters, batch, key) -> means over the batch: metrics with "loss", gradients.
Gradient = Callable[[Params, Batch, Key[Array, ""]], tuple[Metrics, Params]]


def _accumulated(gradient: Gradient, params: Params, batch: Batch, key: Key[Array, ""], parts: int):
    """`gradient` of a batch by way of `parts` equal parts of it."""
    if parts == 1:
        return gradient(params, batch, key)
    # Each part takes every parts-th example, so that a batch split over devices stays where it is.
    split = jax.tree.map(lambda x: rearrange(x, "(b p) ... -> p b ...", p=parts), dict(batch))
    return _mean(gradient, params, split, jax.random.split(key, parts))


def _in_micro_batches(gradient: Gradient, params: Params, batch: Batch, key: Key[Array, ""], size: int | None):
    """`gradient` of a batch; where a CPU counts as several devices each takes about `size` of its examples at a time.

    What so few leave for the backward pass stays in a core's cache, and the devices wait for each other but once, to
    average. Only on a mesh (`jax.sharding.use_abstract_mesh`) whose devices have copies of all parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if size is None or mesh.size < 2 or mesh.abstract_device.device_kind != "cpu" or mesh.shape["data"] != mesh.size:
        return gradient(params, batch, key)
    examples = jax.tree.leaves(batch)[0].shape[0] // mesh.size
    fitting = (count for count in range(1, examples + 1) if examples % count == 0)
    count = min(fitting, key=lambda count: abs(math.log(examples / count / size)))
    if count == 1:
        return gradient(params, batch, key)
    copied, cut = PartitionSpec(), PartitionSpec("data")

    # Not checked, or JAX would sum over the devices whenever a gradient of copied parameters is taken.
    @partial(jax.shard_map, in_specs=(copied, cut, cut), out_specs=copied, check_vma=False)
    def on_each_device(params, batch, keys):
        split = jax.tree.map(lambda x: rearrange(x, "(p b) ... -> p b ...", p=count), batch)
        return jax.lax.pmean(_mean(gradient, params, split, keys), "data")

    return on_each_device(params, dict(batch), jax.random.split(key, mesh.size * count))


def _mean(gradient: Gradient, params: Params, parts: Batch, keys: Key[Array, "P"]):
    """The mean of `gradient` over equal parts of a batch [P, ...], one after the other."""
    gradient = jax.jit(gradient, inline=True)  # so that it is traced once for both, its shapes and the loop
    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], (parts, keys)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, gradient(params, *inputs)), None

    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return jax.tree.map(lambda x: x / len(keys), total)
