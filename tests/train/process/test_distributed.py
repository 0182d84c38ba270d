"""Several real processes: they give one process's results, save together, and none keeps running after another ends."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.base import Data, Distributed, Mesh
from configs.vit import PRESETS
from train.data import open_source
from train.engine.checkpoint import Checkpoints
from train.engine.loop import fit
from train.engine.program import Program
from train.engine.sharding import make_mesh
from train.process.distributed import _reserve_id, connect, is_multi_process_launch
from train.process.errors import UserError
from train.vit import make_task

ROOT = Path(__file__).parents[3]
TINY = PRESETS["tiny"].config
CONFIG = replace(
    TINY,
    data=Data(train_split="train[:300]", test_split="test[:100]"),
    optim=replace(TINY.optim, accumulate=2, ema=0.9),
    run=replace(TINY.run, steps=6, batch_size=48, log_every=1, eval_every=3, save_every=3),
)
OPTIONS = [
    *("--data.train-split", "train[:300]", "--data.test-split", "test[:100]"),
    *("--optim.accumulate", "2", "--optim.ema", "0.9", "--run.batch-size", "48"),
    *("--run.log-every", "1", "--run.eval-every", "3", "--run.save-every", "3"),
]


def start(folder, *options, second=()):
    """Starts two processes with two devices each; the second process gets its own options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "train.vit", "tiny", *OPTIONS, "--run.dir", str(folder), *options]
    among = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", "2"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    return [
        subprocess.Popen(
            [*command, *among, "--distributed.process-id", str(index), *(second if index else ())],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Returns the run folder of two processes with fsdp 2 across them, and what each process printed."""
    folder = tmp_path_factory.mktemp("several") / "run"
    processes = start(folder, "--run.steps", "6", "--mesh.data", "2", "--mesh.fsdp", "2")
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return folder, outputs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process on one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    fit(replace(CONFIG, run=replace(CONFIG.run, dir=str(folder)), mesh=Mesh(1, 1, 1)), make_task)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_log_the_losses_of_one(of_two, alone):
    folder, _ = of_two
    several, one = lines(folder), lines(alone)
    assert [(line["step"], line["split"]) for line in several] == [(line["step"], line["split"]) for line in one]
    for ours, expected in zip(several, one, strict=True):
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-4)
        # An example near the decision boundary may get the other class.
        assert abs(ours["accuracy"] - expected["accuracy"]) < 0.022


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "told"), [("1024", "computed once"), ("0", "each step computes all layers")])
def test_two_processes_probe_like_one_although_one_has_a_lower_memory_limit(limit, told, tmp_path):
    """If the features do not fit in one process, no process stores them. Otherwise the processes would wait forever."""
    probe = ["--run.steps", "3", "--mesh.data", "2", "--mesh.fsdp", "2", "--optim.freeze", "all-but-head"]
    processes = start(tmp_path / "two", *probe, second=("--data.memory-limit", limit))
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert told in outputs[0]
    run, optim = (
        replace(CONFIG.run, steps=3, dir=str(tmp_path / "one")),
        replace(CONFIG.optim, freeze=("all-but-head",)),
    )
    fit(replace(CONFIG, run=run, optim=optim, mesh=Mesh(1, 1, 1)), make_task)
    for ours, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.slow
def test_only_the_main_process_prints_and_writes(of_two):
    folder, (first, second) = of_two
    assert "4 CPU devices of 2 processes (mesh: data 2, fsdp 2)" in first
    assert "step" in first and "step" not in second and "test" not in second
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 6
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_process_that_cannot_save_ends_the_run_soon(tmp_path):
    """Orbax alone would wait for it for 20 minutes."""
    processes = start(tmp_path / "run", "--run.steps", "60", "--run.eval-every", "60")
    size = 20_000  # bytes; enough for config.json and too few for the arrays of a checkpoint
    resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (size, size))
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "stopped: could not write the checkpoint of step 3 to " in outputs[0]
    assert "File too large" in outputs[0] and "No checkpoint in " in outputs[0]
    assert not any("Traceback" in output for output in outputs)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_the_same_on_any_devices(of_two):
    folder, _ = of_two
    source = open_source(CONFIG.data, CONFIG.data.train_split)
    task, states = make_task(CONFIG, source), []
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for sizes in (Mesh(1, 1, 1), Mesh(4, 2, 1), Mesh(1, 1, 2)):
            program = Program(CONFIG, task, source, make_mesh(sizes))
            state, _ = checkpoints.restore(3, program.state_shapes)
            assert jax.tree.map(lambda x: x.sharding, state) == program.places
            states.append(jax.device_get(state))
    assert int(states[0].step) == 3
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, state, states[0])


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_one_and_reports_it(of_two, tmp_path, capsys):
    folder, _ = of_two
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    fit(replace(CONFIG, run=replace(CONFIG.run, dir=str(tmp_path / "run")), mesh=Mesh(8, 1, 1)), make_task)
    assert (
        f"Resumed from step 3 in {tmp_path / 'run'}; the checkpoint was saved on 4 CPU devices of 2 processes "
        "(mesh: data 2, fsdp 2)\n" in capsys.readouterr().out
    )
    expected = lines(folder)
    for ours, theirs in zip(lines(tmp_path / "run"), expected, strict=True):
        assert ours["step"] == theirs["step"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@contextmanager
def training_pair(folder, *options):
    """Two processes that have written the first row of a run without end."""
    processes = start(folder, "--run.steps", "1000000", *options)
    metrics = folder / "metrics.jsonl"
    try:
        waited = time.monotonic()
        while not metrics.exists() or not metrics.read_text():
            assert time.monotonic() - waited < 300 and processes[0].poll() is None
            time.sleep(0.1)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_dies_the_other_reports_it_and_ends_in_a_minute(tmp_path, victim):
    with training_pair(tmp_path / "run") as processes:
        processes[victim].send_signal(signal.SIGKILL)
        output, _ = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode == 1
    # JAX 0.7 ends the process itself if process 0 dies.
    ours = "stopped: this process cannot continue, most likely because another process"
    theirs = "Terminating process because the JAX distributed service detected fatal errors"
    lines = output.splitlines()
    assert lines[-1].startswith(ours) or (
        jax.version.__version_info__ < (0, 8) and any(theirs in line for line in lines)
    )


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_step(tmp_path):
    """All of them save first."""
    with training_pair(tmp_path / "run", "--run.save-every", "1000000") as processes:
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    for output in outputs:
        assert f"interrupted by SIGTERM. Last checkpoint: step {int(saved.name):,} in {tmp_path / 'run'}. Run" in output


@pytest.mark.slow
def test_processes_with_different_options_report_it_and_end(tmp_path):
    first, second = start(tmp_path / "run", second=("--mesh.tensor", "2", "--data.workers", "0"))
    (words, _), (others, _) = (process.communicate(timeout=120) for process in (second, first))
    assert (first.returncode, second.returncode) == (2, 2)
    assert "error: process 1 of 2 must have the same options as process 0; its output lists the differences" in others
    ours = (
        "error: process 1 must have the same options as process 0: --mesh.tensor is 2 here, but 1 in process 0. Start"
    )
    assert ours in words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the batch script itself, outside srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
    ids=str,
)
def test_a_launcher_is_detected_from_its_environment(environment, several):
    assert is_multi_process_launch(environment) is several


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Distributed("host:1234", 2), "got no --distributed.process-id"),
        (Distributed(None, 2, 1), "got no --distributed.coordinator"),
        (Distributed("host", 2, 1), "HOST:PORT of process 0, got host"),
        (Distributed("host:1234", 2, 2), "got 2 of 2"),
        (Distributed("host:1234", 2, -1), "got -1 of 2"),
    ],
    ids=str,
)
def test_options_of_an_impossible_process_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        connect(config)


def test_a_second_process_with_the_same_id_is_refused_at_once(tmp_path):
    """Until the first process ends. Another id or coordinator is free."""
    place = f"{tmp_path}:9"  # Other tests may run at the same time.
    reserve = (
        "import sys, train.process.distributed as d; d._reserve_id(sys.argv[1], 1); print('done'); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", reserve, place], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "done\n"
        with pytest.raises(UserError, match=r"another process on this machine has 1 too, .*:9\. Give each"):
            connect(Distributed(place, 2, 1))
        _reserve_id(place, 0)
        _reserve_id(f"{place}0", 1)
    finally:
        first.kill()
        first.communicate()
    _reserve_id(place, 1)
    _reserve_id(place, 1)  # the same process again
