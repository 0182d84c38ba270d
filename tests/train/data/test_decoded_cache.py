"""A decoded split is not decoded again, and is never used for a different split."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import COUNTS, prepare

from configs.base import Data
from train.data import decoded_cache, open_source, source
from train.process.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the cache folder, and enables the cache for quickly decoded splits too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decoded_cache, "_MIN_SECONDS", 0.0)
    return tmp_path / "w2jax" / "decoded"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that collects the file size in bytes of each image decoded from now on."""
    sizes: list[int] = []
    decode = source.decode
    monkeypatch.setattr(source, "decode", lambda image, *rest: sizes.append(len(image)) or decode(image, *rest))
    return sizes


def read(config: Data, split: str = "train") -> dict[str, np.ndarray]:
    opened = open_source(config, split)
    return opened.gather(np.arange(len(opened)))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in ("image", "label"))


def streamed(config: Data, split: str = "train") -> dict[str, np.ndarray]:
    return read(replace(config, memory_limit=0), split)


def test_a_second_opening_gives_the_same_bits_and_decodes_nothing(tiny: Data, decoded: list[int]) -> None:
    first = read(tiny)
    assert len(decoded) == COUNTS["train"]
    decoded.clear()
    assert same(read(tiny), first) and not decoded
    assert same(first, streamed(tiny))


def test_other_records_and_other_sizes_have_their_own_entries(tiny: Data) -> None:
    asked = [(tiny, "train"), (tiny, "test"), (tiny, "train[:9]"), (tiny, "train[3:12]"), (tiny, "train+test[:2]")]
    asked += [(replace(tiny, image_size=(5, 13)), "train"), (replace(tiny, image_size=(13, 5)), "train")]
    small = replace(tiny, image_size=(5, 4))
    asked += [(small, "train"), (replace(small, resize=6), "train"), (replace(small, resize=(6, 7)), "train")]
    asked += [(replace(small, interpolation="nearest"), "train")]
    for _ in range(2):
        assert all(same(read(config, split), streamed(config, split)) for config, split in asked)


def test_a_file_with_other_content_is_decoded_again(tmp_path: Path) -> None:
    """Even if its name, size and time are the same."""
    config = Data(name="tiny", dir=str(tmp_path))
    (file,) = prepare(tmp_path, labels={4: 50}).glob("*train*")
    stat, first = file.stat(), read(config)
    prepare(tmp_path / "other", labels={4: 51})
    file.write_bytes((tmp_path / "other" / file.relative_to(tmp_path)).read_bytes())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert {50, 51}.intersection(first["label"]) == {50}
    assert {50, 51}.intersection(read(config)["label"]) == {51}


def test_with_any_damaged_cache_entry_the_values_are_right(tiny: Data, folder: Path) -> None:
    right = read(tiny)
    (entry,) = folder.iterdir()
    whole, rng = entry.read_bytes(), np.random.default_rng(0)
    damages = [whole[:0], whole[:9], whole[: len(whole) // 2], whole[:-1], b"\x93NUMPY" + whole[6:], b"<html>" * 999]
    for position in [*range(0, len(whole), 97), *range(40), *range(len(whole) - 150, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= rng.integers(1, 256)
        damages.append(bytes(flipped))
    for damage in damages:
        entry.write_bytes(damage)
        assert same(read(tiny), right)


def test_a_split_is_read_where_the_cache_cannot_be_written(tiny: Data, folder: Path) -> None:
    folder.parent.write_text("in the way")
    assert same(read(tiny), streamed(tiny))


def test_the_least_recently_used_entry_goes_first(tiny: Data, folder: Path, monkeypatch, decoded: list[int]) -> None:
    entries = {}
    for split in ("train[:4]", "train[4:8]"):
        read(tiny, split)
        (entries[split],) = set(folder.iterdir()) - set(entries.values())
    for time, entry in enumerate(entries.values(), 1):
        os.utime(entry, (time, time))
    read(tiny, "train[:4]")
    monkeypatch.setattr(decoded_cache, "_MAX_BYTES", 2 * entries["train[:4]"].stat().st_size)
    read(tiny, "train[8:12]")
    assert not entries["train[4:8]"].exists() and len(list(folder.iterdir())) == 2
    decoded.clear()
    read(tiny, "train[:4]")
    assert not decoded
    read(tiny, "train[4:8]")
    assert len(decoded) == 4


def test_a_label_that_a_changed_description_forbids_is_refused(tmp_path: Path) -> None:
    """Even if the decoded split is in the cache."""
    config, features = Data(name="tiny", dir=str(tmp_path)), prepare(tmp_path, labels={17: 99}) / "features.json"
    assert 99 in read(config)["label"]
    features.write_text(features.read_text().replace('"100"', '"4"'))
    with pytest.raises(UserError, match=r"the label must be in 0\.\.3, got 99"):
        read(config)


def test_a_split_that_is_decoded_quickly_is_not_cached(tiny: Data, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(decoded_cache, "_MIN_SECONDS", 60.0)
    assert same(read(tiny), streamed(tiny)) and not folder.exists()
