"""Strict JSON, files that are read only if they are regular, and files with either their old or their new content."""

import errno
import io
import os
import re
from pathlib import Path

import pytest

from w2jax.files import is_temporary, json_object, read_json, read_regular, write_files_atomic


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


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    def fill(file: io.BufferedWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    with pytest.raises(OSError, match=r"No space left on device: '.*/a'$"):
        write_files_atomic({tmp_path / "a": fill})


def test_leftovers_of_a_killed_write_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As editors on Windows write it."""
    (tmp_path / "a.json").write_bytes('{"name": "caf\xe9"}'.encode("utf-8-sig"))
    assert read_json(tmp_path / "a.json") == {"name": "caf\xe9"}


def test_a_file_has_a_maximum_length(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345678")
    assert read_regular(tmp_path / "a", 8) == b"12345678"
    with pytest.raises(ValueError, match="a must have at most 7 bytes, got more"):
        read_regular(tmp_path / "a", 7)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_pipes_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(ValueError, match=f"{path} must be a regular file"):
            read_regular(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a permission to create links")
def test_a_link_is_followed_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "link") == b"1"
    with pytest.raises(OSError):
        read_regular(tmp_path / "link", follow_links=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a permission to create links")
def test_writing_replaces_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_files_atomic({tmp_path / "link": lambda file: file.write(b"new")})
    assert (tmp_path / "target").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new" and not (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Without this rule, `--out /dev/stdout` would replace the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not a regular file"):
            write_files_atomic({tmp_path / name: lambda file: file.write(b"new")})
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("depth", "valid"), [(100, True), (101, False), (900, False)])
def test_json_has_a_maximum_depth(depth: int, valid: bool) -> None:
    content = b'{"a":' * depth + b"1" + b"}" * depth
    if valid:
        assert json_object("", content)
        return
    with pytest.raises(ValueError, match="must be valid JSON: lists and objects must nest at most 100 levels"):
        json_object("x", content)
