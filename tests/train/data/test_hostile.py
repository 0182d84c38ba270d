"""Hostile files: nothing is written outside, expanded without limit, or run; a killed `prepare` leaves no dataset."""

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from archives import link, tar
from image_files import classes, save
from tiny import prepare

from configs.base import Data
from train.data import open_source
from train.data.decode import MAX_PIXELS, decode
from train.data.locate import locate_dataset
from train.data.prepare.idx_and_cifar import RawFiles
from train.data.prepare.image_folder import dataset, scan
from train.data.prepare.tfds_writer import write
from train.prepare import main
from train.process.errors import RunStopped, UserError


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG file of this size whose few pixels expand to almost nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("pixels", [MAX_PIXELS + 9_000, 3 * MAX_PIXELS])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, pixels: int) -> None:
    bomb = png_header(pixels // 9_000, 9_000)
    told = f"has {pixels // 9_000 * 9_000:,} pixels, but at most 89,478,485 are read, so make the image smaller"
    with pytest.raises(ValueError, match=f"^{told}$"):
        decode(bomb, 3)
    classes(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat/bomb.png").write_bytes(bomb)
    (error,) = scan(tmp_path, 0.5, 0).corrupt
    assert error == f"{tmp_path}/cat/bomb.png ({told})"


def test_no_file_is_expanded_beyond_its_limit(tmp_path: Path) -> None:
    expanded = 2**26
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(expanded), 1))
    (tmp_path / "plain").write_bytes(bytes(101))
    for name in ("bomb.gz", "plain"):
        with pytest.raises(UserError, match=rf"{name} must have at most 100 bytes, got more"):
            RawFiles(tmp_path).read(name, max_bytes=100)
    assert RawFiles(tmp_path).read("plain", max_bytes=101)[1] == bytes(101)
    inner = tar(tmp_path / "inner.tar.gz", {"file": (tmp_path / "bomb.gz").read_bytes()})
    with pytest.raises(UserError, match="file must have at most 100 bytes, got more"):
        RawFiles(inner).read("file", max_bytes=100)


def test_an_archive_that_expands_beyond_the_published_size_is_refused(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(2**20), 1)
    (tmp_path / "bomb.tar.gz").write_bytes(zeros * 257)  # the members of one gzip file: 257 MiB
    with pytest.raises(UserError, match=r"bomb.tar.gz must have at most 268,435,456 bytes, got more"):
        RawFiles(tmp_path / "bomb.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_member_that_claims_more_than_the_archive_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("file")
    info.type, info.size = kind, 2**40
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(2048))
    with pytest.raises(
        UserError, match=r"a.tar (must be a complete tar archive|has no file)|file (is damaged|must have)"
    ):
        RawFiles(tmp_path / "a.tar").read("file", max_bytes=2000)


def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path) -> None:
    """Nothing is written."""
    place = tmp_path / "archives"
    place.mkdir()
    device, hard = tarfile.TarInfo("device"), tarfile.TarInfo("hard")
    device.type, hard.type, hard.linkname = tarfile.CHRTYPE, tarfile.LNKTYPE, "real"
    members = {"real": b"real", "soft": link("soft", "real"), "self": link("self", "self"), "../up": b"up"}
    raw = RawFiles(tar(place / "evil.tar.gz", {**members, "device": device, "hard": hard, "/abs": b"abs"}))
    for name in ("soft", "self", "device", "hard", "up", "abs"):
        with pytest.raises(UserError, match="has no file"):
            raw.read(name, max_bytes=100)
    assert raw.read("real", max_bytes=100)[1] == b"real"
    assert [path.name for path in tmp_path.rglob("*")] == ["archives", "evil.tar.gz"]


def test_the_last_of_two_archive_members_with_one_name_is_used(tmp_path: Path) -> None:
    """As when tar extracts the archive."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"first", b"last!"):
            info = tarfile.TarInfo("file")
            info.size = 5
            archive.addfile(info, io.BytesIO(content))
    assert RawFiles(tmp_path / "a.tar").read("file", max_bytes=5)[1] == b"last!"


@pytest.mark.parametrize("linked", ["tiny", "tiny/1.0.0"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, linked: str) -> None:
    outside, data_dir = tmp_path / "outside", tmp_path / "data"
    kept = prepare(outside)
    (data_dir / linked).parent.mkdir(parents=True)
    (data_dir / linked).symlink_to(outside / linked)
    before = {path: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(UserError, match=rf"{linked} is a link. Remove it"):
        prepare(data_dir)
    assert {path: path.read_bytes() for path in kept.iterdir()} == before
    assert [path.name for path in outside.rglob("*")] == ["tiny", "1.0.0", *(path.name for path in before)]


def test_overwrite_does_not_follow_a_link_either(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/1.0.0").mkdir()
    (tmp_path / "precious/1.0.0/thesis").write_text("text")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/pets").symlink_to(tmp_path / "precious")
    command = ["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", str(tmp_path / "data")]
    with pytest.raises(UserError, match="pets is a link"):
        main([*command, "--overwrite"])
    assert (tmp_path / "precious/1.0.0/thesis").read_text() == "text"


def test_if_two_prepare_at_once_the_later_wins_and_both_are_complete(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 3, "dog": 3})
    metadata, splits = dataset("pets", scan(tmp_path / "raw", 0.5, 0))

    def meanwhile():
        yield from splits["train"]
        prepare(tmp_path / "data", "pets")  # another dataset with the same name, and with 23 examples
        assert len(open_source(Data(name="pets", dir=str(tmp_path / "data")), "train")) == 23

    write(metadata, {"train": meanwhile(), "test": splits["test"]}, tmp_path / "data")
    assert len(open_source(Data(name="pets", dir=str(tmp_path / "data")), "train")) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pets"]


def test_an_unusable_folder_is_reported(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    metadata, splits = dataset("pets", scan(tmp_path / "raw", 0.5, 0))

    def meanwhile():
        yield from splits["train"]
        (tmp_path / "pets").write_text("a file")

    with pytest.raises(RunStopped, match=r"pets/1.0.0 could not be replaced .*another process"):
        write(metadata, {"train": meanwhile(), "test": splits["test"]}, tmp_path)
    assert (tmp_path / "pets").read_text() == "a file"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_killed_prepare_leaves_the_old_dataset_or_none(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\nimport tiny"
        "\ndef slow(examples):\n for e in examples:\n  print('.', flush=True); time.sleep(60); yield e"
        "\nimport train.data.prepare.tfds_writer as b; real = b.write"
        "\ntiny.write = lambda metadata, splits, place: real(metadata, {k: slow(v) for k, v in splits.items()}, place)"
        "\ntiny.prepare(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[3]
    for before in (False, True):
        if before:
            kept = prepare(tmp_path)
            held = {path.name: path.read_bytes() for path in kept.iterdir()}
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests/helpers'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process:
            assert process.stdout is not None
            deadline = time.monotonic() + 60
            # TFDS's progress output is off, so the test looks at its working folder.
            while not list(tmp_path.glob(".tiny-*/tiny/*")) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert process.poll() is None and list(tmp_path.glob(".tiny-*/tiny/*"))
            process.send_signal(signal.SIGKILL)
        if before:
            assert {path.name: path.read_bytes() for path in locate_dataset("tiny", str(tmp_path)).iterdir()} == held
            assert len(open_source(Data(name="tiny", dir=str(tmp_path)), "train")) == 23
        else:
            with pytest.raises(UserError, match="there is no dataset tiny"):
                locate_dataset("tiny", str(tmp_path))


def test_file_names_stay_in_one_line_and_are_never_commands(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2})
    for name in ("a\nb.png", "$(touch evil).png", "; rm -rf *.jpg"):
        (tmp_path / "cat" / name).write_text("text")
    errors = scan(tmp_path, 0.5, 0).corrupt
    assert len(errors) == 3
    assert all(error.isprintable() for error in errors)
    assert any("a\\nb.png" in error for error in errors)


@pytest.mark.parametrize("name", ["a\nb", " cat", "cat ", "\x1b[2J", os.fsdecode(b"\xff")])
def test_a_class_name_that_is_not_one_line_of_text_is_refused(tmp_path: Path, name: str) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2})
    save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match="--from: class names must be one printable line") as caught:
        scan(tmp_path, 0.5, 0)
    assert str(caught.value).isprintable()


def test_a_link_to_an_image_is_read_and_a_broken_link_is_named(tmp_path: Path) -> None:
    """The user decides where their links lead: large folders of images often contain links."""
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    pixels = save(tmp_path / "elsewhere.png")
    (tmp_path / "raw/cat/linked.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "raw/dog/broken.png").symlink_to(tmp_path / "nothing.png")
    folder = scan(tmp_path / "raw", 0.5, 0)
    (error,) = folder.corrupt
    assert error.startswith(f"{tmp_path}/raw/dog/broken.png (")
    files = [path for part in folder.splits.values() for path, _ in part]
    linked = next(path for path in files if path.name == "linked.png")
    np.testing.assert_array_equal(decode(linked.read_bytes(), 3)[0], pixels)
