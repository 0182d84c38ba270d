import gzip
import io
import tarfile
from functools import partial
from pathlib import Path

import numpy as np

from train.data.prepare.downloads import read_mnist


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


RNG = np.random.default_rng(0)


COUNTS = {"train": 13, "test": 6}


mnist = partial(
    read_mnist,
    name="mnist",
    description="",
    homepage="",
    labels=[f"digit {digit}" for digit in range(10)],
    counts=COUNTS,
)


def mnist_folder(place: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes raw MNIST files, some gzipped, with both naming styles; returns images and labels for each split."""
    written = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = RNG.integers(0, 256, (COUNTS[split], 28, 28), np.uint8)
        labels = RNG.integers(0, 10, COUNTS[split]).astype(np.uint8)
        (place / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (place / f"{prefix}-labels.idx1-ubyte").write_bytes(idx_bytes(labels))
        written[split] = images, labels
    return written
