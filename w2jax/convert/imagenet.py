"""The names of ImageNet's classes, in the order of published models: WordNet's words for each class."""

import gzip
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_FILES = {1000: "imagenet_1k.txt", 21843: "imagenet_21k.txt.gz"}
_TAGS = {1000: re.compile(r"(.*_)?in1k"), 21843: re.compile(r"(.*_)?in21k")}  # timm's tags end with the last dataset


@cache
def imagenet_names(count: int) -> tuple[str, ...] | None:
    """Return the names of the 1,000 or 21,843 classes; None for another number."""
    if count not in _FILES:
        return None
    content = files("w2jax.convert").joinpath(_FILES[count]).read_bytes()
    content = gzip.decompress(content) if _FILES[count].endswith(".gz") else content
    return tuple(content.decode().splitlines())


def names_of_tag(config: Mapping[str, Any], stated: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Return ImageNet's names if timm's config.json, of which `stated` is a part, says that these are the classes."""
    tag = stated.get("tag") or str(config.get("architecture")).partition(".")[2]
    is_imagenet = count in _TAGS and isinstance(tag, str) and _TAGS[count].fullmatch(tag)
    return imagenet_names(count) if is_imagenet else None
