"""Names and layouts that libraries use for parameters. The tables of single models are in other files."""

from collections.abc import Collection, Iterable, Mapping
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
    """Return (name, pattern) in torch.nn: Linear, Conv, norms, Embedding, LSTM, GRU, RNN; all heads in one Linear."""
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
    """Return (name, pattern) in Flax, which has the same names and layouts as w2jax."""
    return path.replace("/", "."), ""


CONV = (Rule("weight", "kernel", "d c p1 p2 -> (p1 p2 c) d"), Rule("bias", "bias"))
QKV = (  # queries, keys and values in one Linear
    Rule("weight", "kernel", "(s h k) i -> s i h k"),
    Rule("bias", "bias", "(s h k) -> s h k"),
)
IN_PROJ_BIAS = Rule("in_proj_bias", "{query,key,value}/bias", "(s h k) -> s h k")
# torch.nn.MultiheadAttention: first with equal widths of query, key and value, then with kdim or vdim.
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
MARKED: dict[str, Table] = {"in_proj_weight": MULTIHEAD, "q_proj_weight": MULTIHEAD_SEPARATE}


@dataclass(frozen=True)
class Format:
    """A format: the tensor names and layouts of one library for one kind of module."""

    name: str
    """The name of the format."""
    table: Table = (Rule("", ""),)
    """The rules: names in the library and paths in w2jax. Default: every parameter keeps its path."""
    family: str = ""
    """The common name of all variants of a library's format; the first variant that fits is used. Default: `name`."""
    layout: Layout = torch_layout
    """Names and layouts of parameters for rules that have no pattern."""
    separator: str = "."
    """The separator between the parts of a tensor name."""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the module that no tensor determines, with the default values in the library's code."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of the module for which the library supports only some values, with these values."""
    ignored: tuple[str, ...] = ()
    """Starts of names of tensors that the module does not need, although they are part of the library's model."""
    beside: str = ""
    """A tensor outside the model that only this library's files have. It tells libraries apart."""
    huggingface: tuple[str, str] | None = None
    """"model_type" and the architecture in Hugging Face's config.json; None for other libraries."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)

    def count_ignored(self, keys: Iterable[str]) -> int:
        """Count the tensors in `keys` that the module does not need."""
        return sum(key.startswith(self.ignored) for key in keys)

    def pairs(self, leaves: Mapping[str, Shape], keys: Collection[str] = (), rename: Table = ()) -> list[Pair]:
        """Return the names of all leaves. The rules in `rename` are tried before the rules of the format."""
        return pairs((*rename, *self.table), leaves, self.layout, self.separator, keys, MARKED if rename else None)
