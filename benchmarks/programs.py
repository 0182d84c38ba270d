"""Measures whole programs, from cold start to final test: one epoch of MNIST with `python -m train.TASK` and PyTorch.

    python -m benchmarks.programs [TASK ...] [--repeat 1] [--json FILE]

MNIST must be prepared as for `python -m train.vit mnist`. Our program compiles, trains, evaluates, and writes a
checkpoint and the report. Its first start also decodes the PNG files. The PyTorch program reads decoded arrays, trains
and evaluates.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.first_run import measure
from benchmarks.inputs import BATCH_SIZES

EXAMPLES = 60_000
GOALS = {"loader": 0.6, "memory": 1.0}
# Command-line options that give the models of `benchmarks.inputs` and their optimizers.
CLASSIFIER = [
    *(
        "--optim.learning-rate",
        "1e-3",
        "--optim.warmup-fraction",
        "0",
        "--optim.final-lr-fraction",
        "1",
        "--optim.clip",
        "None",
    ),
    *("--optim.ema", "None", "--augment.shift", "0", "--augment.rotate", "0", "--augment.scale", "0"),
    *("--augment.shear", "0", "--optim.weight-decay"),
]
OPTIONS = {
    "lstm": [*CLASSIFIER, "0"],
    "mha": [*CLASSIFIER, "0.01"],
    "vit": [
        *(*CLASSIFIER, "0.01", "--model.patch-size", "4", "--model.mlp-dim", "256"),
        *("--model.pool", "cls", "--model.class-token"),
    ],
    "aae": ["--data.train-split", "train", "--metric-examples", "100"],
}


def write_mnist(path: str) -> None:
    """Writes both splits of MNIST as arrays to one .npz file."""
    from configs.base import Data
    from train.data import open_source

    sources = {split: open_source(Data("mnist"), split) for split in ("train", "test")}
    held = {split: source.gather(np.arange(len(source))) for split, source in sources.items()}
    np.savez(path, **{f"{split}_{name}": x[name] for split, x in held.items() for name in ("image", "label")})


def run_ours(task: str, folder: str) -> tuple[float, float, float]:
    """Returns (wall seconds, peak MiB, score)."""
    steps, size = str(EXAMPLES // BATCH_SIZES[task]), str(BATCH_SIZES[task])
    rhythm = [option for name in ("steps", "eval-every", "save-every") for option in (f"--run.{name}", steps)]
    where = ["--run.batch-size", size, "--run.dir", f"{folder}/run"]
    seconds, peak = measure([sys.executable, "-m", f"train.{task}", "mnist", *OPTIONS[task], *rhythm, *where])
    last = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[-1])
    return seconds, peak, last["reconstruction" if task == "aae" else "accuracy"]


def run_torch(task: str, images: str, *options: str) -> tuple[float, float, float]:
    """Returns (wall seconds, peak MiB, score)."""
    with tempfile.TemporaryFile() as printed:
        command = [sys.executable, "-m", "benchmarks.baselines.torch_program", task, images, *options]
        seconds, peak = measure(command, printed)
        printed.seek(0)
        return seconds, peak, float(printed.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", choices=(*BATCH_SIZES, []), help="tasks to run (default: all)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each program (default: 1)")
    parser.add_argument("--json", type=Path, help="file to which all figures are written")
    options = parser.parse_args()
    figures: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = f"{folder}/mnist.npz"
        # In another process, because the memory of this process counts in the peak of every program.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_mnist, images).result()
        for task in options.tasks or BATCH_SIZES:
            runs = figures[task] = {"first": [], "ours": [], "memory": [], "loader": []}
            for _ in range(options.repeat):
                with tempfile.TemporaryDirectory() as cache:
                    os.environ["XDG_CACHE_HOME"] = cache  # Decoded splits are cached here.
                    for start in ("first", "ours"):
                        with tempfile.TemporaryDirectory() as own:
                            runs[start].append(run_ours(task, own))
                runs["memory"].append(run_torch(task, images))
                runs["loader"].append(run_torch(task, images, "--loader"))
            medians = {who: statistics.median(seconds for seconds, _, _ in of_who) for who, of_who in runs.items()}
            for who, of_who in runs.items():
                line = f"{task:<5} {who:<7} {medians[who]:7.1f} s {max(peak for _, peak, _ in of_who):6.0f} MiB"
                line += "  score " + ", ".join(f"{score:.4f}" for _, _, score in of_who)
                if who in GOALS:
                    line += f"  ours / theirs {medians['ours'] / medians[who]:.2f} (goal {GOALS[who]})"
                print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
