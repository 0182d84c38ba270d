"""Finds the tensors of one model in a file, which may have other tensors, and names with the prefixes of wrappers."""

from collections import Counter
from collections.abc import Iterable, Mapping

from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.text import count_of, first_few, shorten

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch.compile, FSDP and activation checkpointing add to a name, at any place."""

_TRAINING = ("criterion.", "loss.", "loss_fn.", "n_averaged")
"""Names that belong to a training and not to its model."""

_MAX_PREFIXES, _MAX_LETTERS = 50, 100  # only prefixes within these limits are tried


def without_wrappers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Remove the parts that wrappers add to the names.

    Raises:
        ValueError: two tensors get the same name.
    """
    found: dict[str, LazyTensor] = {}
    names: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = key
        if any(wrapper in key for wrapper in _WRAPPERS):
            name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in found:
            raise ValueError(
                f"two tensors must not have the same name without {', '.join(sorted(_WRAPPERS))}, got "
                f"{shorten(names[name])} and {shorten(key)}. Remove one of them"
            )
        found[name], names[name] = tensor, key
    return found


def under(tensors: Mapping[str, LazyTensor], prefix: str) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the tensors under a prefix, without it, and notes for the user about the others.

    Raises:
        ValueError: no tensor has the prefix.
    """
    inside = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if prefix and not inside:
        some = ", ".join(map(shorten, list(tensors)[:3]))
        raise ValueError(f'prefix must be the start of a tensor\'s name, got "{prefix}". The first tensors are {some}')
    others = [key for key in tensors if not key.startswith(prefix)]
    if not prefix:
        others = [key for key in inside if key.startswith(_TRAINING)]
        inside = {key: tensor for key, tensor in inside.items() if not key.startswith(_TRAINING)}
    if not others:
        return inside, []
    where = f'not under "{prefix}"' if prefix else "not part of a model"
    return inside, [f"left out {count_of(len(others), 'tensor')} ({where}): {first_few([*map(shorten, others)])}"]


def prefixes(keys: Iterable[str], name: str, separator: str) -> list[str]:
    """Return the prefixes of the keys that end with `name`."""
    found = [key[: len(key) - len(name)] for key in keys if key.endswith(name)]
    return [prefix for prefix in found if not prefix or prefix.endswith(separator)][:_MAX_PREFIXES]


def parents(keys: Iterable[str]) -> list[str]:
    """Return the prefixes of the keys that end with a dot, the most common first."""
    counts = Counter(key[: end + 1] for key in keys for end, letter in enumerate(key[:_MAX_LETTERS]) if letter == ".")
    return [prefix for prefix, _ in counts.most_common(_MAX_PREFIXES)]


def check_single(models: Iterable[str]) -> None:
    """Raise a ValueError if there is more than one prefix of a model."""
    models = list(models)
    if len(models) > 1:
        named = " and ".join(f'"{shorten(prefix)}"' for prefix in models[:5])
        raise ValueError(
            f"the file has {len(models)} models, with the prefixes {named}. Choose one: pass prefix to "
            "w2jax.convert.load, or --prefix to python -m w2jax.convert"
        )
