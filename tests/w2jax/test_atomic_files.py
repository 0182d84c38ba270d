"""Strict JSON, and files that contain either their old content or their new content."""

import io
import os
import re
from pathlib import Path

import pytest

from w2jax.files import is_temporary, json_object, read_json, write_files_atomic


def fail(file: io.BufferedWriter) -> None:
    file.write(b"half")
    raise RuntimeError


def test_files_are_written_together_in_new_folders(tmp_path: Path) -> None:
    write_files_atomic({tmp_path / "a" / "b": lambda file: file.write(b"1"), tmp_path / "c": lambda f: f.write(b"2")})
    assert (tmp_path / "a" / "b").read_bytes() + (tmp_path / "c").read_bytes() == b"12"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]


def test_if_writing_one_file_fails_all_keep_their_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError):
        write_files_atomic({tmp_path / "a": lambda file: file.write(b"new"), tmp_path / "b": fail})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_leftovers_of_a_killed_write_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # simulates a process that ends here
    with pytest.raises(RuntimeError):
        write_files_atomic({tmp_path / "config.json": fail})
    (leftover,) = tmp_path.iterdir()
    assert is_temporary(leftover.name) and leftover.read_bytes() == b"half"
    for name in ("config.json", ".tmp", "a.tmp", ".hidden", f"a{leftover.name}", f"{leftover.name}.npz"):
        assert not is_temporary(name)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open folders")
def test_content_and_folder_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink().name))
    write_files_atomic({tmp_path / "a": lambda file: file.write(b"1")})
    assert is_temporary(synced[0]) and synced[1:] == [tmp_path.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must be a JSON object, got a list"),
        (b'{"a": 1, "a": 2}', "must be valid JSON: duplicate key 'a'"),
        (b'{"a": {"b": 1, "b": 2}}', "must be valid JSON: duplicate key 'b'"),
        (b"{", "must be valid JSON: "),
        (b"\xff", "must be valid JSON: "),
        (b"[" * 100_000, "must be valid JSON: "),
    ],
)
def test_json_that_is_not_an_object_of_unique_keys_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"a.json {message}")):
        read_json(tmp_path / "a.json")


def test_json_has_a_maximum_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2jax.files.MAX_JSON", 8)
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == json_object("", b'{"a": 1}') == {"a": 1}
    (tmp_path / "a.json").write_bytes(b'{"a": 12}')
    with pytest.raises(ValueError, match="must be a JSON file of at most 8 bytes"):
        read_json(tmp_path / "a.json")
