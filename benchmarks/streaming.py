"""Measures the streaming of photographs: JPEGs of 500 x 375 from a prepared dataset, random crops to 224 x 224.

    python -m benchmarks.streaming [--images 2000] [--batches 24] [--batch-size 256] [--workers 0 1 2] [--repeat 3]

The images are smooth random fields with a texture, about 100 kB each, in a temporary folder. The runs alternate between
the numbers of workers. Each run is a new process, and all runs must give the same bytes. The program prints the images
per second (without the first two batches) and the resident memory of the process with its workers: the peak, halfway,
and at the end.
"""

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from configs.base import Data
from train.data import batches, open_source

WIDTH, HEIGHT, CLASSES = 500, 375, 10
UNCOUNTED = 2


def texture(rng: np.random.Generator) -> np.ndarray:
    """Returns int16 [3 HEIGHT, 3 WIDTH, 3] in -128..127: a random field with shapes of all sizes."""
    field = np.zeros((3 * HEIGHT, 3 * WIDTH, 3))
    for cells, height in ((6, 60.0), (30, 30.0), (150, 15.0), (750, 20.0)):
        values = Image.fromarray(rng.integers(0, 256, (cells * HEIGHT // WIDTH + 1, cells + 1, 3), np.uint8))
        smooth = values.resize((3 * WIDTH, 3 * HEIGHT), Image.Resampling.BICUBIC)
        field += height * (np.asarray(smooth) / 127.5 - 1.0)
    return np.clip(field, -128, 127).astype(np.int16)


def photograph(rng: np.random.Generator, field: np.ndarray) -> bytes:
    """Returns a JPEG of the file size of a photograph: the sum of two windows of the field."""
    places = zip(rng.integers(0, 2 * HEIGHT, 2), rng.integers(0, 2 * WIDTH, 2), strict=True)
    one, other = (field[top : top + HEIGHT, left : left + WIDTH] for top, left in places)
    file = io.BytesIO()
    Image.fromarray(np.clip(one + other + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def prepare(folder: Path, count: int) -> int:
    """Writes the dataset `photographs` and returns the mean size of its files in bytes."""
    import tensorflow_datasets as tfds

    from train.data.prepare.tfds_writer import DatasetMetadata, Example, write

    tfds.disable_progress_bar()
    rng, sizes = np.random.default_rng(0), []
    field = texture(rng)

    def examples() -> Iterator[Example]:
        for index in range(count):
            encoded = photograph(rng, field)
            sizes.append(len(encoded))
            yield {"image": encoded, "label": index % CLASSES}

    shape = tfds.features.Image(shape=(None, None, 3))
    features = {"image": shape, "label": tfds.features.ClassLabel(num_classes=CLASSES)}
    write(DatasetMetadata("photographs", "1.0.0", features, "Random fields."), {"train": examples()}, folder)
    return round(statistics.mean(sizes))


def resident() -> float:
    """Returns the resident MiB of this process and its children. Shared memory counts once."""
    threads = Path("/proc/self/task").iterdir()
    children = [child for thread in threads for child in (thread / "children").read_text().split()]
    total = 0
    for process in ("self", *children):
        rollup = Path("/proc", process, "smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total / 1024


def measure(folder: str, workers: int, steps: int, batch_size: int) -> dict[str, float | str]:
    """Returns images per second, MiB and a digest of all bytes of one stream in this process."""
    source = open_source(Data("photographs", folder, image_size=(224, 224), crop=0.05), "train", train=True)
    digest, memory, start = hashlib.sha256(), [], 0.0
    # The stream is longer than the measurement, so that no worker ends before it.
    with closing(batches(source, batch_size, 0, 0, UNCOUNTED + steps + 10, workers=workers)) as feed:
        for step, batch in enumerate(islice(feed, UNCOUNTED + steps), 1):
            for name in ("image", "label", "index"):
                digest.update(batch[name])
            memory.append(resident())
            if step == UNCOUNTED:
                start = time.perf_counter()
        seconds = time.perf_counter() - start
    return {
        "speed": steps * batch_size / seconds,
        "digest": digest.hexdigest(),
        "peak": max(memory),
        "middle": memory[UNCOUNTED + steps // 2],
        "final": memory[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="number of images in the dataset (default: 2000)")
    parser.add_argument("--batches", type=int, default=24, help="number of measured batches in each run (default: 24)")
    parser.add_argument("--batch-size", type=int, default=256, help="images per batch (default: 256)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of worker processes (default: 0 1 2)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs for each number of workers (default: 3)")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, workers = options.child
        print(json.dumps(measure(folder, int(workers), options.batches, options.batch_size)))
        return
    runs: dict[int, list[dict]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        size = prepare(Path(folder), options.images)
        print(f"{options.images} images of {size / 1000:.0f} kB written in {time.perf_counter() - start:.0f} s")
        for _ in range(options.repeat):
            for workers, results in runs.items():
                command = [sys.executable, "-m", "benchmarks.streaming", *sys.argv[1:], "--child", folder, str(workers)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results.append(json.loads(run.stdout.splitlines()[-1]))
    for workers, results in runs.items():
        speeds = [run["speed"] for run in results]
        peak, middle, final = (max(run[key] for run in results) for key in ("peak", "middle", "final"))
        print(
            f"{workers} workers  {statistics.median(speeds):6.0f} images/s ({min(speeds):.0f}-{max(speeds):.0f})  "
            f"memory: peak {peak:5.0f} MiB, halfway {middle:5.0f} MiB, end {final:5.0f} MiB"
        )
    if len({run["digest"] for results in runs.values() for run in results}) > 1:
        sys.exit("all runs must give the same bytes, but their digests differ")
    print("all runs gave the same bytes")


if __name__ == "__main__":
    main()
