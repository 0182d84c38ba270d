"""Several processes that run one training: how they connect, and how all of them end when one does."""

import ctypes
import importlib.util
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import jax

from configs.base import Distributed
from train.process.errors import UserError

# Seconds of silence after which a process counts as dead.
HEARTBEAT_TIMEOUT = 30
# Seconds that the first process waits for the last one to start.
START_TIMEOUT = 300

PROCESS_LOST = (
    "stopped: this process cannot continue, most likely because another process of the run ended, cannot be reached or "
    "has the same process id; its own output says why. Run the same command in every process to resume from the last "
    "checkpoint"
)


def connect(config: Distributed) -> None:
    """Connects to the other processes of this run, if there are any. Call it before JAX uses a device.

    The processes are those of `config`; without one, those of a TPU pod, Slurm or Open MPI, which JAX detects.

    Raises:
        UserError: `config` sets only some of its three options, or the coordinator does not answer.
    """
    options = (config.coordinator, config.num_processes, config.process_id)
    if options == (None, None, None):
        if jax.distributed.is_initialized() or not is_multi_process_launch(os.environ):
            return
    elif None in options:
        names = ("coordinator", "num-processes", "process-id")
        missing = [f"--distributed.{name}" for name, value in zip(names, options, strict=True) if value is None]
        raise UserError(
            f"the three options --distributed.* must be given together, got no {' and no '.join(missing)}. Add it"
        )
    else:
        _check(config)
    address = config.coordinator or "the launcher's address"
    print(f"connecting to the other processes at {address}, for up to {START_TIMEOUT} s", flush=True)
    _exit_cleanly_on_abort()
    try:
        jax.distributed.initialize(
            *options, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"cannot connect to the other processes ({str(error).splitlines()[0]}). Start all of them within "
            f"{START_TIMEOUT} s, each with --distributed.coordinator HOST:PORT (of process 0), "
            "--distributed.num-processes and its own --distributed.process-id"
        ) from error


def is_multi_process_launch(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX supports started this process as one of several."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True  # A step of srun; the batch script itself is one process.
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return True
    # A Cloud TPU machine may be one of a pod, which only its metadata server knows. Colab and Kaggle, whose machines
    # are single, disable that server by this variable.
    has_tpu = importlib.util.find_spec("libtpu") is not None and (
        Path("/dev/accel0").exists() or any(Path("/dev").glob("vfio/[0-9]*"))
    )
    return has_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def is_main_process() -> bool:
    """Whether this process writes the files that are written once per run."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have reached it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _exit_on_abort(_: int) -> None:
    os.write(2, f"{PROCESS_LOST}\n".encode())
    os._exit(1)


def _exit_cleanly_on_abort() -> None:
    """Makes SIGABRT print one line and exit with status 1.

    JAX aborts when another process does not start or a heartbeat fails. It does so from a C++ thread, so neither an
    exception nor a handler of Python's `signal` could catch it.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _exit_on_abort)


def _check(config: Distributed) -> None:
    count, index = config.num_processes or 0, config.process_id or 0
    host, _, port = (config.coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--distributed.coordinator must be HOST:PORT of process 0, got {config.coordinator}")
    if not 0 <= index < count:
        raise UserError(
            f"--distributed.process-id must be from 0 to below --distributed.num-processes, got {index} of {count}"
        )
