"""For any bytes, a reader returns what was stored or raises a one-line error."""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archives import idx_bytes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import prepare

from train.data.dataset_info import read_dataset_info
from train.data.decode import decode
from train.data.prepare.idx_and_cifar import RawFiles, parse_cifar, parse_idx, parse_label_names
from train.process.errors import UserError

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 3, 2), np.uint8)
CIFAR = RNG.bytes(2 * 3074)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Returns the content with a few bytes flipped, removed or inserted."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        cut = draw(st.sampled_from([0, 1, 4, 512, len(content)]))
        content = content[:at] + draw(st.binary(max_size=5)) + content[at + cut :]
    return content


def png_and_jpeg() -> list[bytes]:
    encoded = []
    kinds = [
        ("PNG", "RGB"),
        ("JPEG", "RGB"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
    ]
    for form, mode in kinds:
        file = io.BytesIO()
        Image.fromarray(RNG.integers(0, 256, (11, 7, 3), np.uint8)).convert(mode).save(file, form)
        encoded.append(file.getvalue())
    return encoded


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, headers in (("first", {"size": "5", "mtime": "1.5"}), ("file", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 5, headers
            made.addfile(info, io.BytesIO(b"12345"))
    return file.getvalue()


@FEW
@given(mutated(idx_bytes(IMAGES)))
@example(b"\0\0\x08\xff" + b"\xff" * 1020)
def test_a_changed_idx_file_is_the_expected_array_or_refused(content: bytes) -> None:
    try:
        values = parse_idx("file", content, IMAGES.shape)
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert idx_bytes(values) == content


@FEW
@given(st.one_of(mutated(CIFAR), st.binary(max_size=50)))
def test_a_changed_cifar_file_keeps_its_size_or_is_refused(content: bytes) -> None:
    try:
        images, labels = parse_cifar("file", content, 2, 2)
    except UserError as error:
        assert str(error).isprintable()
    else:
        planes = images.transpose(0, 3, 1, 2).reshape(2, -1)
        assert np.concatenate([labels, planes], axis=1).tobytes() == content


@FEW
@given(st.one_of(mutated(b"cat\ndog\n"), st.binary(max_size=20)))
def test_any_bytes_are_two_label_names_or_refused(content: bytes) -> None:
    try:
        found = parse_label_names("file", content, 2)
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert len(set(found)) == 2


@FEW
@given(mutated(archive()))
def test_a_changed_archive_gives_a_file_of_bounded_size_or_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    try:
        assert len(RawFiles(tmp_path / "a.tar").read("file", max_bytes=7)[1]) <= 7
    except UserError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("encoded", png_and_jpeg(), ids=["png", "jpeg", "palette", "gif", "bmp", "webp", "tiff"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # pytest resets the program's own filter
@FEW
@given(data=st.data())
def test_a_changed_image_is_an_image_or_refused(encoded: bytes, data: st.DataObject) -> None:
    content = data.draw(mutated(encoded))
    for size in (None, (4, 5)):
        try:
            image, _ = decode(content, 3, size)
        except ValueError:
            continue
        assert image.ndim == 3
        assert image.dtype == np.uint8
        assert size is None or image.shape == (4, 5, 3)


def test_a_format_whose_reader_runs_a_program_is_not_read() -> None:
    file = io.BytesIO()
    Image.new("RGB", (7, 11)).save(file, "EPS")  # Pillow gives it to Ghostscript.
    with pytest.raises(ValueError, match=r"is not a complete image \(unknown format\)"):
        decode(file.getvalue(), 3)


def test_a_name_in_a_description_stays_in_one_line(tmp_path: Path) -> None:
    file = prepare(tmp_path) / "features.json"
    file.write_text(json.dumps({"featuresDict": {"features": {"image": {}, "label": {}, "\x1f\n": None}}}))
    with pytest.raises(UserError) as caught:
        read_dataset_info("tiny", str(tmp_path))
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def described() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        yield Path(place)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@FEW
@given(data=st.data())
def test_any_description_is_accepted_or_refused(described: Path, name: str, data: st.DataObject) -> None:
    file = described / "tiny/1.0.0" / name
    whole = file.read_bytes()
    content = json.loads(whole)
    inner, key = {"it": content}, "it"
    while data.draw(st.booleans()) and isinstance(inner[key], dict | list) and inner[key]:
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    inner[key] = data.draw(JSON)
    try:
        changed = json.dumps(content).encode() if data.draw(st.booleans()) else data.draw(mutated(whole))
        file.write_bytes(changed)
        read_dataset_info("tiny", str(described))
    except UserError as error:
        assert str(error).isprintable()
    finally:
        file.write_bytes(whole)
