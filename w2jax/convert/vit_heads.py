"""Classifiers that users put in the place of a Vision Transformer's own."""

from collections.abc import Iterable, Mapping
from typing import Literal

from w2jax.convert.layouts import Format
from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.text import first_few, shorten

Head = Literal["drop", "reinit"] | None
"""What to do with the classifier; see `load`."""
FileHead = Head | Literal["if_linear"]
"""What to do with the classifier in a file; see `load_described`."""

_LEAVES = {"head/kernel": (1, 1), "head/bias": (1,), "pre_logits/kernel": (1, 1), "pre_logits/bias": (1,)}


def with_usual_head(
    form: Format, tensors: Mapping[str, LazyTensor], head: FileHead
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Give a replaced classifier its usual names, or leave it out: return (tensors, notes for the user).

    A replaced classifier has other names under the name of the classifier, such as "head.1.weight" for
    `Sequential(Dropout, Linear)`. It is kept if it has a single linear layer and `head` is None or "if_linear".

    Raises:
        ValueError: `head` is None and the replaced classifier has more than one linear layer.
    """
    usual = _usual_names(form)
    others = replaced_head(form, tensors)
    if not others:
        return dict(tensors), []
    left_out = set(others)
    rest = {key: tensor for key, tensor in tensors.items() if key not in left_out}
    parents = {key.rpartition(form.separator)[0] for key in others}
    parts = {key.rpartition(form.separator)[2]: key for key in others}
    is_linear = len(parents) == 1 and "weight" in parts and parts.keys() <= {"weight", "bias"}
    is_linear = is_linear and len(tensors[parts["weight"]].shape) == 2 and usual["head/kernel"] not in tensors
    if head in ("drop", "reinit") or (head == "if_linear" and not is_linear):
        return rest, [f"left out a replaced classifier: {first_few([*map(shorten, others)])}"]
    if not is_linear:
        raise ValueError(
            f"the classifier must be one linear layer, got the tensors {first_few([*map(shorten, others)])}. "
            'Leave it out: pass head="drop" to w2jax.convert.load, or --head drop to python -m w2jax.convert'
        )
    paths = {"weight": "head/kernel", "bias": "head/bias"}
    renamed = {usual[paths[part]]: tensors[key] for part, key in parts.items()}
    return rest | renamed, [f"the classifier was read from {min(parents)}"]


def replaced_head(form: Format, keys: Iterable[str]) -> list[str]:
    """Return the keys under the first part of the classifier's name that are not usual names."""
    usual = _usual_names(form)
    if "head/kernel" not in usual:
        return []
    root = usual["head/kernel"].split(form.separator)[0] + form.separator
    return [key for key in keys if key.startswith(root) and key not in usual.values()]


def _usual_names(form: Format) -> dict[str, str]:
    """Return the usual names of the classifier and of the pre-logits, by path."""
    return {path: pair.theirs for pair in form.pairs(_LEAVES) for path in pair.ours}
