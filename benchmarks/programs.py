"""Whole programs, cold start to final accuracy: one epoch of MNIST by `python -m train.TASK` and by PyTorch.

    python -m benchmarks.programs [TASK ...] [--repeat 1] [--json FILE]

MNIST is looked for as `python -m train.vit mnist` does. Ours decodes its PNGs, compiles, trains, evaluates, writes
checkpoints and the report; PyTorch's reads arrays that are decoded already, trains and evaluates.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.torch_program import BATCH_SIZES
from configs.base import Data
from train.data import open_source

EXAMPLES = 60_000
GOALS = {"loader": 0.6, "memory": 1.0}
# The models and optimizers of `benchmarks.given`, as options.
PLAIN = ["--optim.learning-rate", "1e-3", "--optim.warmup", "0", "--optim.final", "1", "--optim.clip", "None"]
CLASSIFIER = [*PLAIN, "--optim.ema", "None", "--augment.shift", "0", "--augment.rotate", "0"]
CLASSIFIER += ["--augment.scale", "0", "--augment.shear", "0", "--optim.weight-decay"]
OPTIONS = {
    "lstm": [*CLASSIFIER, "0"],
    "mha": [*CLASSIFIER, "0.01"],
    "vit": [*CLASSIFIER, "0.01", "--model.patch-size", "4", "--model.mlp-dim", "256", "--model.pool", "cls"],
    "aae": ["--data.train-split", "train", "--metric-examples", "100"],
}
OPTIONS["vit"] += ["--model.class-token"]


def ours(task: str, folder: str) -> list[str]:
    steps = str(EXAMPLES // BATCH_SIZES[task])
    rhythm = [option for name in ("steps", "eval-every", "save-every") for option in (f"--run.{name}", steps)]
    size = ["--run.batch-size", str(BATCH_SIZES[task]), "--run.dir", f"{folder}/run"]
    return [sys.executable, "-m", f"train.{task}", "mnist", *OPTIONS[task], *rhythm, *size]


def timed(command: list[str]) -> tuple[float, float, str]:
    """(wall seconds, peak MiB, what it printed) of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(BATCH_SIZES)} (default: all)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each program (default: 1)")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(BATCH_SIZES):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(BATCH_SIZES)}")
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = f"{folder}/mnist.npz"
        sources = {split: open_source(Data("mnist"), split) for split in ("train", "test")}
        held = {split: source.gather(np.arange(len(source))) for split, source in sources.items()}
        np.savez(images, **{f"{split}_{name}": x[name] for split, x in held.items() for name in ("image", "label")})
        del sources, held
        for task in options.tasks or BATCH_SIZES:
            peer = [sys.executable, "-m", "benchmarks.peers.torch_program", task, images]
            commands = {"ours": ours(task, folder), "memory": peer, "loader": [*peer, "--loader"]}
            figures = {who: {"seconds": [], "peak": [], "score": []} for who in commands}
            for _ in range(options.repeat):
                for who, command in commands.items():
                    with tempfile.TemporaryDirectory() as own:
                        command = [word.replace(f"{folder}/run", f"{own}/run") for word in command]
                        seconds, peak, printed = timed(command)
                        if who == "ours":
                            last = json.loads(Path(own, "run", "metrics.jsonl").read_text().splitlines()[-1])
                            score = last["reconstruction" if task == "aae" else "accuracy"]
                        else:
                            score = float(printed)
                    for name, value in (("seconds", seconds), ("peak", peak), ("score", score)):
                        figures[who][name].append(value)
            found[task] = figures
            for who, x in figures.items():
                line = f"{task:<5} {who:<7} {statistics.median(x['seconds']):7.1f} s {max(x['peak']):6.0f} MiB"
                line += "  score " + ", ".join(f"{score:.4f}" for score in x["score"])
                if who != "ours":
                    ratio = statistics.median(figures["ours"]["seconds"]) / statistics.median(x["seconds"])
                    line += f"  ours / theirs {ratio:.2f} (goal {GOALS[who]})"
                print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
