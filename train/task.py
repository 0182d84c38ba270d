"""What a task is: pure functions. The loop knows nothing else of a task; a task knows nothing of the loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from train.data import Source

Batch = Mapping[str, Array]
Params = PyTree[Array]
Metrics = dict[str, Array]  # scalars, except for NONFINITE

NONFINITE = "nonfinite"
"""A step's metrics under this name: bool [P], for each parameter in the order of its leaves, whether its gradient is
NaN or infinite."""


class State(struct.PyTreeNode):
    """Everything that training changes, and so everything that a checkpoint holds."""

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree  # of the optimizer, or of several by name
    ema: Params | None = None  # moving average of the parameters, if the optimizer's config has one
    batch_stats: PyTree | None = None  # running statistics of batch norm, if the model has any

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the moving average if there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """The variables to apply a Linen module with in evaluation."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}


class Grid(struct.PyTreeNode):
    """A picture of cells in rows and columns."""

    cells: Float[Array, "rows columns h w"] | Float[Array, "rows columns h w 3"]
    """Gray, from 0, black, to 1, white; or red, green and blue."""
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""


class Scatter(struct.PyTreeNode):
    """A picture of points in the plane, coloured by label. A point that is NaN is not drawn."""

    points: Float[Array, "N 2"]
    labels: Int[Array, "N"]
    background: Float[Array, "M 2"]
    """Samples of a prior, light gray behind the points."""
    marks: Float[Array, "K 2"] | None
    """Black crosses over the points, such as the heads of clusters."""
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""


class Plane(struct.PyTreeNode):
    """A picture of images all over a rectangle, explored with the pointer, and of labelled points in it."""

    images: Float[Array, "rows columns h w"]
    """Gray, from 0, black, to 1, white; the first row is the top of the rectangle."""
    points: Float[Array, "N 2"]
    """Both coordinates from -1 to 1 in the rectangle. A point that is NaN is not drawn."""
    labels: Int[Array, "N"]
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""


Picture = Grid | Scatter | Plane


class InitialParams(NamedTuple):
    """Parameters that a new run starts from, such as those of a file."""

    params: Mapping[str, Any]
    """Sub-trees of the parameters by their first name, on the host; `Task.init` makes the others."""
    note: str
    """Where they come from, in one line."""


@dataclass(frozen=True)
class Task:
    """A model with its loss, as pure functions that can be jitted and sharded.

    Batches hold what `train.data` yields: "image" uint8 [B, h, w, C], "label" int32 [B]; in training also "index" int32
    [B], the example's number in the split; in evaluation and for figures "mask" bool [B], False at examples that only
    fill up the batch.
    """

    init: Callable[..., State]
    """`init()` is the State before the first step; or `init(initial_params().params)`, if the task has those."""
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """One training step. Everything random in it depends on the seed and `state.step` only. Its metrics are scalars,
    and bool [P] under `NONFINITE`."""
    evaluate: Callable[[State, Batch], dict[str, Float[Array, "B"]]]
    """One value per example and metric; the loop averages over the split."""
    figures: Callable[[State, Batch], Mapping[str, Picture]]
    """The pictures of the report, by a short name that can name a file."""
    best: str = "accuracy"
    """Metric of `evaluate` that decides which checkpoint is best."""
    best_mode: Literal["max", "min"] = "max"
    """Whether a high or a low value of that metric is better."""
    final_metrics: Callable[[State, Source], dict[str, float]] | None = None
    """Metrics of the trained model on the test split that are not means over examples; computed after the last step."""
    metric_descriptions: Mapping[str, str] = field(default_factory=dict)
    """What the task's own metrics mean, for the report; `train.report.metric_descriptions` has the common ones."""
    figure_examples: int = 8
    """Smallest number of test images that `figures` needs."""
    probabilities: Callable[[State, Array], Float[Array, "B V"]] | None = None
    """Class probabilities of images uint8 [B, h, w, C]; None: the model does not classify."""
    reconstruct: Callable[[State, Array], Float[Array, "B h w C"]] | None = None
    """Images uint8 [B, h, w, C] after an autoencoder, in [0, 1]; None: the model does not reconstruct."""
    sample: Callable[[State, Key[Array, ""], int], Float[Array, "B h w C"]] | None = None
    """(state, key, count) -> images drawn from a generative model, in [0, 1]; None: the model does not generate."""
    overlay: Callable[[State, Array], Float[Array, "B h w 3"]] | None = None
    """Images uint8 [B, h, w, C] with the model's attention in red, in [0, 1]; None: the model has none to show."""
    initial_params: Callable[[], InitialParams] | None = None
    """Reads what `init` receives in a new run; None: nothing."""


def leaf_name(path: tuple[Any, ...]) -> str:
    """The place of a leaf in a tree, as encoder/mlp/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their places, in their order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
