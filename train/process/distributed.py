"""Several processes as one program: how they find each other, and how all of them end when one does."""

import ctypes
import importlib.util
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import jax

from configs.base import Distributed
from train.process.errors import UserError

# A process that is silent for so long is taken for dead, in seconds.
HEARTBEAT_TIMEOUT = 30
# How long the first processes wait for the last to start, in seconds.
START_TIMEOUT = 300


def connect(config: Distributed) -> None:
    """Joins the other processes of this run, if there are any; to be called before JAX looks for devices.

    They are those of `config`, or of a TPU pod, Slurm or Open MPI, which JAX asks by itself.

    Raises:
        UserError: if `config` names some of the processes' options without the others, or no coordinator answers.
    """
    given = (config.coordinator, config.num_processes, config.process_id)
    if given == (None, None, None):
        if jax.distributed.is_initialized() or not launched_as_many(os.environ):
            return
    elif None in given:
        names = ("coordinator", "num-processes", "process-id")
        missing = [f"--distributed.{name}" for name, value in zip(names, given, strict=True) if value is None]
        raise UserError(f"several processes need all three options --distributed.*, got no {' and no '.join(missing)}")
    else:
        _check(config)
    where = config.coordinator or "the address that the launcher gives"
    print(f"meeting the other processes at {where}, for up to {START_TIMEOUT} s", flush=True)
    _say_when_aborted()
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"this process found no others ({reason}); start all of them within {START_TIMEOUT} s, each with "
            "--distributed.coordinator HOST:PORT (of process 0), --distributed.num-processes and its own "
            "--distributed.process-id"
        ) from error


def launched_as_many(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True  # In a step of srun; the batch script itself is one process.
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return True
    # A Cloud TPU machine, which may be one of a pod, tells by its metadata server. Where that server is not to be
    # asked (Colab and Kaggle say so by this variable), the machine stands alone.
    has_tpu = importlib.util.find_spec("libtpu") is not None and (
        Path("/dev/accel0").exists() or any(Path("/dev").glob("vfio/[0-9]*"))
    )
    return has_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def is_main_process() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


LOST = (
    "stopped: this process cannot go on, most likely because another one of the run ended, cannot be reached or has "
    "the same process id; its own output says why. The same command in every process goes on from the last checkpoint"
)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    os.write(2, f"{LOST}\n".encode())
    os._exit(1)


def _say_when_aborted() -> None:
    """Ends an abort, by which JAX leaves when others do not start or a heartbeat fails, with our line and status 1.

    The abort comes from a thread of C++, so no exception and no handler of Python's `signal` ever sees it.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)


def _check(config: Distributed) -> None:
    count, index = config.num_processes or 0, config.process_id or 0
    host, _, port = (config.coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--distributed.coordinator is HOST:PORT of process 0, got {config.coordinator}")
    if not 0 <= index < count:
        raise UserError(
            f"--distributed.process-id is from 0 to below --distributed.num-processes, got {index} of {count}"
        )
