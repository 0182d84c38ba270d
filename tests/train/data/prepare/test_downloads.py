"""Published datasets are prepared from their raw files with TFDS's features, names, splits and addresses."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import RNG, idx_bytes, mnist, mnist_folder, tar
from tensorflow_datasets.core.download import checksums

from configs.base import Data
from train.data import open_source
from train.data.dataset_info import PUBLISHED
from train.data.prepare.downloads import DOWNLOADS, open_raw_files, read_cifar
from train.data.prepare.idx_and_cifar import RawFiles
from train.data.prepare.tfds_writer import download, write
from train.process.errors import RunStopped, UserError

FILES = {"train": {"one.bin": 7, "two.bin": 4}, "test": {"test.bin": 3}}
LABELS = {"coarse_label": ("coarse.txt", 5), "label": ("fine.txt", 9)}
cifar100 = partial(read_cifar, name="cifar100", description="", folder="inner", files=FILES, labels=LABELS)


def cifar_members() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Returns the raw files by name, and for each split a table of coarse label, label, pixels."""
    members = {"coarse.txt": "\n".join("vwxyz").encode(), "fine.txt": "\n".join("abcdefghi").encode()}
    tables = {}
    for split, files in FILES.items():
        parts = []
        for name, count in files.items():
            labels = np.stack([RNG.integers(0, 5, count), RNG.integers(0, 9, count)], 1)
            parts.append(np.concatenate([labels, RNG.integers(0, 256, (count, 3072))], 1).astype(np.uint8))
            members[name] = parts[-1].tobytes()
        tables[split] = np.concatenate(parts)
    return members, tables


def pairs(images: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def test_mnist_raw_files_become_an_unchanged_source(tmp_path: Path) -> None:
    held = mnist_folder(tmp_path)
    write(*mnist(RawFiles(tmp_path)), tmp_path / "prepared")
    for split, (images, labels) in held.items():
        source = open_source(Data(name="mnist", dir=str(tmp_path / "prepared")), split)
        batch = source.gather(np.arange(len(source)))
        assert pairs(batch["image"], batch["label"]) == pairs(images, labels)
        assert source.label_names[7] == "digit 7"


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_raw_files_become_an_unchanged_dataset(tmp_path: Path, packed: bool) -> None:
    members, tables = cifar_members()
    if packed:
        raw = RawFiles(tar(tmp_path / "a.tar.gz", {f"inner/{name}": content for name, content in members.items()}))
    else:
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
        raw = RawFiles(tmp_path)
    builder = tfds.builder_from_directory(write(*cifar100(raw), tmp_path / "prepared"))
    assert builder.info.features["coarse_label"].names == list("vwxyz")
    assert builder.info.features["label"].names == list("abcdefghi")
    for split, table in tables.items():
        found = {example["id"].decode(): example for example in builder.as_data_source(split)}
        assert len(found) == len(table)
        for index, (coarse, label, *pixels) in enumerate(table):
            example = found[f"{split}_{index:05d}"]
            assert (example["coarse_label"], example["label"]) == (coarse, label)
            np.testing.assert_array_equal(example["image"].transpose(2, 0, 1).ravel(), pixels)


def test_a_raw_file_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    mnist_folder(tmp_path)
    labels = tmp_path / "t10k-labels.idx1-ubyte"
    for content, wrong in (
        (labels.read_bytes()[:-2], "must have 6 values after the header, got 4"),
        (labels.read_bytes()[:-1] + b"\x0a", "record 5: the label must be in 0..9, got 10"),
        (None, "has no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or t10k-labels.idx1-ubyte"),
    ):
        labels.unlink() if content is None else labels.write_bytes(content)
        with pytest.raises(UserError, match=wrong):
            mnist(RawFiles(tmp_path))


def test_a_cifar_file_with_a_label_out_of_range_is_named(tmp_path: Path) -> None:
    members, _ = cifar_members()
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "two.bin").write_bytes(members["two.bin"][:3074] + b"\4\x09" + members["two.bin"][3076:])
    with pytest.raises(UserError, match=r"two.bin, record 1: the label must be in 0..8, got 9"):
        cifar100(RawFiles(tmp_path))


@pytest.mark.parametrize("name", DOWNLOADS)
def test_features_and_addresses_are_those_of_tfds(name: str, tmp_path: Path) -> None:
    published = DOWNLOADS[name]
    assert set(published.urls) <= checksums.get_all_url_infos().keys()
    wanted = tfds.builder_cls(name)(data_dir=str(tmp_path))
    images = PUBLISHED[name].splits
    if "mnist" in name:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(
                idx_bytes(np.zeros((images[split], 28, 28), np.uint8))
            )
            (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(images[split], np.uint8)))
    else:
        record = 3073 if name == "cifar10" else 3074
        files = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"] if name == "cifar10" else ["test.bin"]
        for file in files:
            (tmp_path / file).write_bytes(bytes(10000 * record))
        if name == "cifar100":
            (tmp_path / "train.bin").write_bytes(bytes(50000 * record))
        for file, count in (("batches.meta.txt", 10), ("coarse_label_names.txt", 20), ("fine_label_names.txt", 100)):
            (tmp_path / file).write_text("\n".join(map(str, range(count))))
    metadata, splits = published.read(open_raw_files(published, tmp_path, tmp_path))
    assert (metadata.name, metadata.version) == (wanted.name, str(wanted.version))
    assert repr(tfds.features.FeaturesDict(metadata.features)) == repr(wanted.info.features)
    assert splits.keys() == images.keys()
    if name == "fashion_mnist":
        assert metadata.features["label"].names == wanted.info.features["label"].names


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Returns the URL of a file `raw.gz` on this machine that contains b"content"."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(b"content")

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/raw.gz"
        running.shutdown()


@pytest.mark.parametrize("content", [b"content", b"another"])
def test_a_download_is_kept_only_with_the_registered_checksum(
    server: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = checksums.UrlInfo(checksum=hashlib.sha256(content).hexdigest(), size=7, filename="raw.gz")
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {server: info})
    if content == b"content":
        assert download([server], tmp_path)["raw.gz"].read_bytes() == b"content"
    else:
        with pytest.raises(
            RunStopped,
            match=rf"{server} cannot be downloaded .*checksum.*\. "
            "Download the raw files yourself and pass --from DIR",
        ):
            download([server], tmp_path)


def test_an_unreachable_host_is_a_one_line_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(
        RunStopped,
        match=r"http://127.0.0.1:9/raw.gz cannot be downloaded .*\. "
        "Download the raw files yourself and pass --from DIR",
    ) as caught:
        download(["http://127.0.0.1:9/raw.gz"], tmp_path)
    assert "\n" not in str(caught.value)
