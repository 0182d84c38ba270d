"""Task: a model and its training as pure functions. The training loop uses only this interface."""

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
"""Name of the step metric that marks NaN or infinite gradients: bool [P], one value per parameter array, in the order
of the tree's leaves."""


class State(struct.PyTreeNode):
    """Everything that training changes, and therefore everything that a checkpoint contains."""

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree  # state of the optimizer, or of several optimizers by name
    ema: Params | None = None  # moving average of the parameters, if the optimizer's config has one
    batch_stats: PyTree | None = None  # running statistics of batch norm, if the model has any

    @property
    def eval_params(self) -> Params:
        """The parameters for evaluation: the moving average if there is one, otherwise `params`."""
        return self.params if self.ema is None else self.ema

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """The variables of the Linen module for evaluation."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}


class Grid(struct.PyTreeNode):
    """A picture of cells in rows and columns."""

    cells: Float[Array, "rows columns h w"] | Float[Array, "rows columns h w 3"]
    """Gray values from 0 (black) to 1 (white), or RGB values from 0 to 1."""
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""
    column_labels: tuple[str, ...] = struct.field(pytree_node=False, default=())
    """A short label for each column; () for a picture without labels."""
    row_labels: tuple[str, ...] = struct.field(pytree_node=False, default=())
    """A short label for each row; () for a picture without labels."""


class Scatter(struct.PyTreeNode):
    """A scatter plot of labeled points, colored by label. Points that are NaN are not drawn."""

    points: Float[Array, "N 2"]
    labels: Int[Array, "N"]
    background: Float[Array, "M 2"]
    """Samples of a prior, drawn in light gray behind the points."""
    marks: Float[Array, "K 2"] | None
    """Points drawn as black crosses, such as cluster heads."""
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""


class Plane(struct.PyTreeNode):
    """A rectangle of images with labeled points. Moving the pointer shows the image at each position."""

    images: Float[Array, "rows columns h w"]
    """Gray values from 0 (black) to 1 (white). The first row is the top of the rectangle."""
    points: Float[Array, "N 2"]
    """Both coordinates range from -1 to 1 in the rectangle. Points that are NaN are not drawn."""
    labels: Int[Array, "N"]
    caption: str = struct.field(pytree_node=False)
    """What the picture shows, as a sentence."""


Picture = Grid | Scatter | Plane


class InitialParams(NamedTuple):
    """Parameters that a new run starts from, for example from a weights file."""

    params: Mapping[str, Any]
    """Sub-trees of the parameters by top-level name, on the host. `Task.init` initializes all other sub-trees."""
    note: str
    """Where the parameters come from, in one line."""
    adapted: str = ""
    """How they were changed for images with another number of channels, in one line; "" if they were not."""


Features = Callable[[State, Array], Float[Array, "B K D"]]


@dataclass(frozen=True)
class Latent:
    """The codes of an autoencoder: z, and y for a decoder that also needs a label or a category."""

    size: int
    """Z, the number of dimensions of z."""
    num_kinds: int
    """K, the number of labels or categories of y; 0: the decoder needs only z."""
    label_names: tuple[str, ...]
    """The name of each label, or () if y is a category."""
    encode: Callable[[State, Array], tuple[Float[Array, "B Z"], Float[Array, "B K"] | None]]
    """(state, images uint8 [B, h, w, C]) -> z, and the probabilities y; None: the encoder does not compute y."""
    decode: Callable[[State, Float[Array, "B Z"], Float[Array, "B K"] | None], Float[Array, "B h w C"]]
    """(state, z, y) -> images in [0, 1]. y is None if K is 0."""
    sample: Callable[[Key[Array, ""], int], Float[Array, "B Z"]]
    """(key, count) -> z, sampled from the prior."""


@dataclass(frozen=True)
class Rollout:
    """Attention through all blocks of a ViT (Abnar & Zuidema 2020, <https://arxiv.org/abs/2005.00928>, equation 1)."""

    shares: Callable[[State, Array], Float[Array, "B n m"]]
    """(state, images uint8 [B, h, w, C]) -> the share of each patch in what the classifier reads. The shares of all
    tokens add up to 1. The class token and registers have the rest."""
    patch: tuple[int, int]
    """(height, width) of a patch in pixels. The first patch is at the top left."""


@dataclass(frozen=True)
class Task:
    """A model and its training as pure functions that can be jitted and sharded.

    Batches come from `train.data`:

    - "image": uint8 [B, h, w, C]
    - "features": float [B, K, D], instead of "image" if the run computes them once (`train.engine.features`)
    - "label": int32 [B]
    - "index": int32 [B], the example's number in the split; only in training
    - "mask": bool [B], False for examples that only pad the batch; only in evaluation and for figures
    """

    init: Callable[..., State]
    """Returns the State before the first step: `init()`, or `init(initial_params().params)` if that field is set."""
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """One training step. Its random numbers depend only on the seed and `state.step`. Its metrics are scalars, except
    for `NONFINITE`, which is bool [P]."""
    evaluate: Callable[[State, Batch], dict[str, Float[Array, "B"]]]
    """One value per metric and example. The training loop averages the values over the split."""
    figures: Callable[[State, Batch], Mapping[str, Picture]]
    """The pictures of the report, by a short name that is also valid as a file name."""
    best: str = "accuracy"
    """The metric of `evaluate` that selects the best checkpoint."""
    best_mode: Literal["max", "min"] = "max"
    """Whether a higher or a lower value of `best` is better."""
    final_metrics: Callable[[State, Source], dict[str, float]] | None = None
    """Metrics on the test split that are not means over examples, computed once, after the last step."""
    min_examples: int = 1
    """Minimum number of training examples, and of test examples, that `final_metrics` needs."""
    metric_descriptions: Mapping[str, str] = field(default_factory=dict)
    """Explanations of the task's own metrics for the report. `train.report.metric_descriptions` has the common ones."""
    figure_examples: int = 8
    """Minimum number of test images that `figures` needs."""
    probabilities: Callable[[State, Batch], Float[Array, "B V"]] | None = None
    """Class probabilities of the images of a batch; None: the model does not classify."""
    features: Features | None = None
    """What the classifier's heads read, for training images uint8 [B, h, w, C] without augmentation. `step`, `evaluate`
    and `probabilities` then also accept a batch with "features". None: they need images."""
    reconstruct: Callable[[State, Array], Float[Array, "B h w C"]] | None = None
    """Reconstructions in [0, 1] of images uint8 [B, h, w, C]; None: the model does not reconstruct."""
    sample: Callable[[State, Key[Array, ""], int], Float[Array, "B h w C"]] | None = None
    """(state, key, count) -> images in [0, 1], sampled from a generative model; None: the model does not generate."""
    latent: Latent | None = None
    """The codes of an autoencoder; None: the task does not describe any."""
    overlay: Callable[[State, Array], Float[Array, "B h w 3"]] | None = None
    """Images in [0, 1] with attention in red, from images uint8 [B, h, w, C]; None: the model has no attention."""
    rollout: Rollout | None = None
    """Attention from the classifier back to the patches; None: the model is not a ViT."""
    initial_params: Callable[[], InitialParams] | None = None
    """Reads the parameters that a new run passes to `init`; None: `init` gets no argument."""


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf in a tree as text, such as encoder/mlp/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, in the order of the tree."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def array_differences(found: PyTree, expected: PyTree) -> str | None:
    """Describes the arrays of two trees that differ in name, shape or dtype; None if none do. Lists at most six."""

    def arrays(tree: PyTree) -> dict[str, str]:
        return {
            name: f"{leaf.dtype} [{', '.join(map(str, leaf.shape))}]"
            for name, leaf in named_leaves(tree).items()
            if hasattr(leaf, "shape")
        }

    theirs, ours = arrays(found), arrays(expected)
    different = [
        f"{name} must be {ours.get(name, 'absent')}, got {theirs.get(name, 'none')}"
        for name in sorted(theirs.keys() | ours.keys(), key=lambda name: (not name.startswith("params/"), name))
        if theirs.get(name) != ours.get(name)
    ]
    more = f" and {len(different) - 6} more" if len(different) > 6 else ""
    return f"{'; '.join(different[:6])}{more}" if different else None
