"""How libraries name and lay out parameters in general; the tables of single models are in files of their own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from w2jax.convert.rules import Layout, Pair, Rule, Shape, Table, pairs

TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "count": "num_batches_tracked",
}
TORCH_RECURRENT = {
    "input_kernel": ("weight_ih", "(g h) i -> i g h"),
    "hidden_kernel": ("weight_hh", "(g h) p -> p g h"),
    "input_bias": ("bias_ih", "(g h) -> g h"),
    "hidden_bias": ("bias_hh", "(g h) -> g h"),
    "projection_kernel": ("weight_hr", "p h -> h p"),
}


def torch_layout(path: str, rank: int) -> tuple[str, str]:
    """torch.nn's names and layouts: Linear, Conv, norms, Embedding, LSTM, GRU, RNN; attention heads as one Linear."""
    *parents, name = path.split("/")
    if name in TORCH_RECURRENT:
        theirs, pattern = TORCH_RECURRENT[name]
        if parents:
            direction, layer = parents.pop().split("_")
            theirs += f"_l{layer}" + ("_reverse" if direction == "backward" else "")
        return ".".join([*parents, theirs]), pattern
    layer = parents[-1] if parents else ""
    heads = dict.fromkeys(("query", "key", "value"), "(h k) i -> i h k") | {"out": "o (h k) -> h k o"}
    patterns = {
        ("kernel", 2): "o i -> i o",
        ("kernel", 3): heads.get(layer, "o i p -> p i o"),
        ("kernel", 4): "o i p q -> p q i o",
        ("bias", 2): "(h k) -> h k",
    }
    return ".".join([*parents, TORCH_NAMES.get(name, name)]), patterns.get((name, rank), "")


def flax_layout(path: str, rank: int) -> tuple[str, str]:
    """Flax's own names and layouts, which are ours."""
    return path.replace("/", "."), ""


CONV = (Rule("weight", "kernel", "d c p1 p2 -> (p1 p2 c) d"), Rule("bias", "bias"))
QKV = (  # queries, keys and values as one Linear
    Rule("weight", "kernel", "(s h k) i -> s i h k"),
    Rule("bias", "bias", "(s h k) -> s h k"),
)
IN_PROJ_BIAS = Rule("in_proj_bias", "{query,key,value}/bias", "(s h k) -> s h k")
# torch.nn.MultiheadAttention: with equal widths of query, key and value, and with kdim or vdim.
MULTIHEAD = (
    Rule("in_proj_weight", "{query,key,value}/kernel", "(s h k) i -> s i h k"),
    IN_PROJ_BIAS,
    Rule("out_proj", "out"),
)
MULTIHEAD_SEPARATE = (
    Rule("q_proj_weight", "query/kernel", "(h k) i -> i h k"),
    Rule("k_proj_weight", "key/kernel", "(h k) i -> i h k"),
    Rule("v_proj_weight", "value/kernel", "(h k) i -> i h k"),
    IN_PROJ_BIAS,
    Rule("out_proj", "out"),
)
MARKED = {"in_proj_weight": MULTIHEAD, "q_proj_weight": MULTIHEAD_SEPARATE}


@dataclass(frozen=True)
class Format:
    """One library's way to write one kind of module."""

    name: str
    table: Table = (Rule("", ""),)
    family: str = ""
    """The name that variants of a library's format share; the first variant that fits is written. Default: `name`."""
    layout: Layout = torch_layout
    separator: str = "."
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the module that no tensor determines, with the defaults of that library's code."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of the module of which the library supports only some values, with those values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)

    def pairs(self, leaves: Mapping[str, Shape], keys: Collection[str] = (), rename: Table = ()) -> list[Pair]:
        """The name of each leaf; the rows of `rename` come before the format's own."""
        return pairs((*rename, *self.table), leaves, self.layout, self.separator, keys, MARKED if rename else None)
