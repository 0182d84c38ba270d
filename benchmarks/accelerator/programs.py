"""The parts that start programs: resuming, several steps per call, the export and the dry run.

A process may take most of a GPU's memory. So these parts use no device while a program runs.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.record import Figures, Recorder, Setting, Skipped, Wrong
from benchmarks.accelerator.values import DEFAULT, difference
from tests.helpers.tasks import TASKS, preset
from tests.stress.comparing import differences
from tests.stress.kill_storm import OPTIONS, resumed_from
from tests.stress.running import ROOT, Command, View, cleared, time_whole, wait

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CACHED = ("--run.compilation-cache", "on")


def resume(job: str, recorder: Recorder, setting: Setting) -> None:
    """Trains the presets `tiny`, again with a SIGKILL in the middle, and compares the results bit for bit.

    On NVIDIA GPUs each task runs twice: as usual, where XLA may choose algorithms whose sums have no fixed order, so
    other bits are no failure; and with DETERMINISTIC, where they are. The ratio of the times of a step is the cost.
    """
    jax.config.update("jax_platforms", "cpu")  # Orbax reads checkpoints with JAX.
    short = setting.small and setting.quick
    options = OPTIONS if short else ("--run.save-every", "40", *CACHED)  # The preset has 400 steps.
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()}
    for task in sorted(TASKS, key=lambda task: task != "lstm"):  # the LSTM first: it is the fastest on a CPU
        if short and task != "lstm":
            recorder.skip(task, "takes too long on a CPU with --quick")
            continue
        usual = recorder.row(task, partial(kill_and_resume, task, options, {}, not setting.is_nvidia))
        if setting.is_nvidia:
            milliseconds = usual.figures.get("ms per step")
            measure = partial(kill_and_resume, task, options, flags, True, milliseconds)
            recorder.row(f"{task}, deterministic", measure)
        else:
            recorder.skip(f"{task}, deterministic", "needs an NVIDIA GPU")


def kill_and_resume(
    task: str,
    options: tuple[str, ...],
    environment: Mapping[str, str],
    must_be_same: bool,
    usual: float | None = None,
) -> Figures:
    """Runs a task to its end, and again with SIGKILL after the first checkpoint. `usual` is the usual time of a step.

    Raises:
        Wrong: the run did not resume, or the results differ and `must_be_same`.
        Broken: a run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        command = Command(task, options, {**environment, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"})
        time_whole(command, whole)
        view = View(killed)
        process = command.start(killed)
        with cleared(process):
            if not wait(process, lambda: view.saved() > 0):
                errors = killed.with_suffix(".err").read_text()[-300:].strip()
                raise Wrong(f"the run ended before the signal, with status {process.returncode}: {errors}")
            process.send_group(signal.SIGKILL)
        step, last = view.saved(), View(whole).saved()
        time_whole(command, killed)
        if step >= last or not resumed_from(killed):
            raise Wrong(f"the run must resume between the steps 0 and {last}; it was stopped at step {step}")
        different = differences(whole, killed)
        if different and must_be_same:
            raise Wrong(f"these results of the resumed run differ: {', '.join(different)}")
        _, milliseconds = speed(whole)
    figures = {"killed at step": step, "same bits": not different, "ms per step": milliseconds}
    return figures | {"time / usual time": milliseconds / usual if usual else None}


def speed(folder: Path) -> tuple[float, float]:
    """Returns (examples/s, milliseconds of a step): the median over a run's rows, without the first, which compiles.

    They are in timing.jsonl, because metrics.jsonl has only what is the same in each run.
    """
    rows = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    examples = statistics.median(row["examples_per_second"] for row in rows[1:])
    batch_size = json.loads((folder / "config.json").read_text())["run"]["batch_size"]
    return examples, 1e3 * batch_size / examples


def steps_per_call(job: str, recorder: Recorder, setting: Setting) -> None:
    """Measures the speed of training programs with 1, 10 and 50 steps in a call of the device."""
    steps = 100 if setting.small else 2000
    for task in ("lstm",) if setting.small else ("lstm", "vit"):
        usual: dict[int, float] = {}
        for calls in (1, 10, 50):
            recorder.row(f"{task}, {calls} steps per call", partial(measure_calls, task, calls, steps, usual))


def measure_calls(task: str, calls: int, steps: int, usual: dict[int, float]) -> Figures:
    """Trains the preset `tiny`. `usual` gets the speed, and has that of one step per call."""
    options = [x for name in ("steps", "eval-every", "save-every") for x in (f"--run.{name}", str(steps))]
    options += ["--run.log-every", "50", "--run.steps-per-call", str(calls), *CACHED]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        time_whole(Command(task, tuple(options), {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}), run)
        examples, milliseconds = speed(run)
    usual[calls] = examples
    return {"examples/s": examples, "ms per step": milliseconds, "speed / speed of 1": examples / usual.get(1, np.nan)}


def start(module: str, *options: str) -> None:
    """Runs a program of the project to its end. Raises Wrong if it fails."""
    found = subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise Wrong(f"{module} ended with status {found.returncode}: {found.stderr.strip()[-300:]}")


def export(job: str, recorder: Recorder, setting: Setting) -> None:
    task = "lstm" if setting.small else "vit"
    recorder.row(f"{task} tiny", partial(export_and_run, task, setting))


def export_and_run(task: str, setting: Setting) -> Figures:
    """Trains the preset `tiny`, exports it, runs the program on the device and compares it with the predictor."""
    with tempfile.TemporaryDirectory() as folder:
        trained, out = Path(folder, "run"), Path(folder, "exported")
        time_whole(Command(task, OPTIONS if setting.small else CACHED), trained)
        start("train.export", str(trained), "--out", str(out))

        import jax.export

        from train.predict import load

        predictor, program = load(trained), (out / "model.stablehlo").read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (64, *predictor.image_shape), np.uint8)
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    output = call(images)
    if (platforms := {device.platform for device in output.devices()}) != {setting.platform}:
        raise Wrong(f"the exported program must run on {setting.platform}, it ran on {platforms}")
    bound = DEFAULT[setting.platform]
    if not (found := difference(output, predictor(images))) <= bound:
        raise Wrong(f"the exported program's outputs differ by {found:.1e}, bound {bound:.1e}")
    began = time.perf_counter()
    call(images).block_until_ready()
    return {"difference": found, "bound": bound, "ms for 64 images": 1e3 * (time.perf_counter() - began)}


def dryrun(job: str, recorder: Recorder, setting: Setting) -> None:
    """Compares what the dry run predicts for a program on one device with what is measured there."""
    reports: dict[str, Any] = {}
    tasks = ("lstm",) if setting.small else ("lstm", "vit")
    for task in tasks:
        recorder.row(f"{task} sample, predicted", partial(predict, task, setting, reports))
    for task in tasks:  # after all dry runs, which use a GPU too
        recorder.row(f"{task} sample, measured", partial(run_predicted, task, reports))


def predict(task: str, setting: Setting, reports: dict[str, Any]) -> Figures:
    """Runs the dry run and puts its report into `reports`."""
    from benchmarks.accelerator.steps import TPUS

    chip = TPUS.get(setting.kind)
    grid = {"v4": "1x1x1", "v5p": "1x1x1"}.get(chip or "", "1x1")
    topology = f"{chip}:{grid}" if chip else {"cpu": "cpu:1", "gpu": "gpu"}.get(setting.platform)
    if topology is None:
        raise Skipped(f"the dry run does not know the device {setting.kind}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        start("train.dryrun", task, "sample", "--topology", topology, "--mesh.data", "1", "--json", str(path))
        report = reports[task] = json.loads(path.read_text())
    least = report.get("roofline", {}).get("step_seconds")
    figures = {"GiB": report["memory"]["total"] / 2**30, "GFLOP": report["flops"] / 1e9}
    return {**figures, "least ms": least and 1e3 * least}


def run_predicted(task: str, reports: Mapping[str, Any]) -> Figures:
    """Measures the same program. GFLOP is XLA's own count, which counts each loop as one iteration."""
    from benchmarks.accelerator.steps import device_peak, timed
    from benchmarks.step import Step
    from configs.base import Mesh
    from train.data import abstract_source

    if task not in reports:
        raise Skipped("there is no prediction")
    config = replace(preset(task, "sample"), mesh=Mesh(1, 1, 1))
    before = device_peak()
    step = Step(task, config, abstract_source(config.data, config.data.train_split))
    seconds, after = min(timed(step, 0.3)), device_peak()
    memory = after if after and after != before else None
    cost: Any = step.compiled.cost_analysis() or {}
    figures = {"GiB": memory and memory / 2**30, "GFLOP": cost.get("flops", 0) / 1e9, "ms": 1e3 * seconds}
    return figures | {"memory / predicted": memory and memory / reports[task]["memory"]["total"]}
