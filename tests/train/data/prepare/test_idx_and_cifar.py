"""Readers of raw files return what was stored, or name the file and the error."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from archives import idx_bytes, link, tar
from hypothesis import given
from hypothesis import strategies as st

from train.data.prepare.idx_and_cifar import RawFiles, check_labels, parse_cifar, parse_idx, parse_label_names
from train.process.errors import UserError

SHAPE = (5, 3, 2)


IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def test_an_idx_file_is_read_unchanged() -> None:
    np.testing.assert_array_equal(parse_idx("file", idx_bytes(IMAGES), SHAPE), IMAGES)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "must be an idx file of bytes, but it begins with nothing"),
        (b"<html>", "must be an idx file of bytes, but it begins with 3c 68 74 6d"),
        (idx_bytes(IMAGES)[:9], "must be an idx file of shape 5 x 3 x 2, got 5 x 0 x 0"),
        (idx_bytes(IMAGES.transpose()), "must be an idx file of shape 5 x 3 x 2, got 2 x 3 x 5"),
        (idx_bytes(IMAGES.ravel()), "must be an idx file of shape 5 x 3 x 2, got 30"),
        (idx_bytes(IMAGES)[:-1], "must have 30 values after the header, got 29. Download it again"),
        (idx_bytes(IMAGES) + b"\0", "must have 30 values after the header, got 31"),
    ],
)
def test_a_file_that_is_not_the_expected_idx_is_named(content: bytes, wrong: str) -> None:
    with pytest.raises(UserError, match=rf"^file {wrong}"):
        parse_idx("file", content, SHAPE)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail),
        st.tuples(st.binary(min_size=0, max_size=40), st.sampled_from([0, 1, 2, 3])).map(
            lambda drawn: b"\0\0\x08" + bytes([drawn[1]]) + np.array((5, 3, 2)[: drawn[1]], ">u4").tobytes() + drawn[0]
        ),
    ),
    st.sampled_from([(), (5,), (5, 3), SHAPE]),
)
def test_any_bytes_give_the_expected_shape_or_are_refused(content: bytes, shape: tuple[int, ...]) -> None:
    try:
        values = parse_idx("file", content, shape)
    except UserError as error:
        assert str(error).startswith("file")
    else:
        assert values.shape == shape
        assert idx_bytes(values) == content


def test_a_cifar_file_reads_as_planes_of_red_green_and_blue() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 256, (7, 2), np.uint8)
    records = [
        label.tobytes() + image.transpose(2, 0, 1).tobytes() for label, image in zip(labels, images, strict=True)
    ]
    found_images, found_labels = parse_cifar("file", b"".join(records), 7, 2)
    np.testing.assert_array_equal(found_images, images)
    np.testing.assert_array_equal(found_labels, labels)
    for content, count in ((b"".join(records)[:-1], 7), (b"".join(records), 6)):
        with pytest.raises(UserError, match=f"file must have {count} records of 3074 bytes, got {len(content)} bytes"):
            parse_cifar("file", content, count, 2)


def test_a_label_out_of_range_is_named() -> None:
    check_labels(np.array([0, 9]), "file", 10)
    with pytest.raises(UserError, match=r"file, record 1: the label must be in 0..9, got 10"):
        check_labels(np.array([0, 10, 11]), "file", 10)


def test_label_names_must_have_the_expected_number_and_differ() -> None:
    assert parse_label_names("file", b"cat\ndog\n\n", 2) == ["cat", "dog"]
    for content in (b"cat\n", b"cat\ncat\n", b"cat\ndog\nfox"):
        with pytest.raises(UserError, match="file must have 2 different label names"):
            parse_label_names("file", content, 2)
    with pytest.raises(UserError, match="file must be a UTF-8 text file of label names"):
        parse_label_names("file", b"\xff\xfe", 2)


def test_raw_files_are_read_from_a_folder_and_from_an_archive(tmp_path: Path) -> None:
    """In the folder they may be gzipped or not."""
    (tmp_path / "plain").write_bytes(b"one")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"two"))
    raw = RawFiles(tmp_path)
    assert raw.read("absent", "plain", max_bytes=9000) == (str(tmp_path / "plain"), b"one")
    assert raw.read("packed.gz", max_bytes=9000)[1] == b"two"
    assert (
        RawFiles(tar(tmp_path / "a.tar.gz", {"in/file": b"three"})).read("file", "in/file", max_bytes=9000)[1]
        == b"three"
    )
    with pytest.raises(UserError, match=r"has no file absent or none\. Set --from to the folder of the raw files"):
        raw.read("absent", "none", max_bytes=9000)


def test_a_truncated_or_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(range(256)) * 9)
    for content in (packed[:-20], packed[:40] + b"\0\0\0\0" + packed[44:]):
        (tmp_path / "images.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"images.gz is damaged .*\. Download it again"):
            RawFiles(tmp_path).read("images.gz", max_bytes=9000)


def test_a_folder_in_an_archive_is_not_a_file(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("file")
    folder.type = tarfile.DIRTYPE
    with pytest.raises(UserError, match="has no file"):
        RawFiles(tar(tmp_path / "a.tar.gz", {"file": folder})).read("file", max_bytes=9000)


def test_an_archive_writes_nothing_and_its_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    place = tmp_path / "archives"
    place.mkdir()
    archive = tar(
        place / "evil.tar.gz",
        {"../evil": b"evil", "/tmp/evil": b"evil", "file": link("file", "../secret"), "in": link("in", str(tmp_path))},
    )
    raw = RawFiles(archive)
    for name in ("file", "in/secret", "in"):
        with pytest.raises(UserError, match="has no file"):
            raw.read(name, max_bytes=9000)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archives", "evil.tar.gz", "secret"]


def test_a_path_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar.gz", {"file": np.random.default_rng(0).bytes(9000)}).read_bytes()
    for content in (b"text", b"", whole[:-4000]):
        (tmp_path / "b.tar.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"b.tar.gz must be a complete tar archive, but cannot be read"):
            RawFiles(tmp_path / "b.tar.gz").read("file", max_bytes=9000)
    with pytest.raises(UserError, match=r"--from must be a folder or a .tar.gz file, but .*absent does not exist"):
        RawFiles(tmp_path / "absent")
