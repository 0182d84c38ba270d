"""Multi-process training: connects the processes, and ends all of them if one ends."""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import signal
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jax

from configs.base import Distributed
from train.process.errors import UserError

# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_TIMEOUT = 30
# Seconds that each process waits for the others to start.
START_TIMEOUT = 300

PROCESS_LOST = (
    "stopped: this process cannot continue, most likely because another process of the run ended, is unreachable or "
    "has the same process id. Check the output of the other processes. To resume from the last checkpoint, run the "
    "same command in every process"
)


def connect(config: Distributed) -> None:
    """Connects to the other processes of this run, if any. Call this before JAX uses a device.

    `config` names the processes. If it is empty, JAX detects the processes of a TPU pod, Slurm or Open MPI.

    Raises:
        UserError: if `config` sets only some of its three options, another process on this machine has the same id, or
            the coordinator does not answer.
    """
    options = (config.coordinator, config.num_processes, config.process_id)
    if options == (None, None, None):
        if jax.distributed.is_initialized() or not is_multi_process_launch(os.environ):
            return
    elif None in options:
        names = ("coordinator", "num-processes", "process-id")
        missing = [f"--distributed.{name}" for name, value in zip(names, options, strict=True) if value is None]
        raise UserError(
            f"the three --distributed.* options must be set together, got no {' and no '.join(missing)}. Set all three"
        )
    else:
        _check(config)
        _reserve_id(str(config.coordinator), config.process_id or 0)
    address = config.coordinator or "the launcher's address"
    print(f"connecting to the other processes at {address} (timeout {START_TIMEOUT} s)", flush=True)
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
    """Returns whether a launcher that JAX supports started this process as one of several."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True  # This is a step of srun. The batch script itself is a single process.
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return True
    # A Cloud TPU machine may be part of a pod, and only its metadata server knows that. Colab and Kaggle use single
    # machines and disable that server with this variable.
    has_tpu = importlib.util.find_spec("libtpu") is not None and (
        Path("/dev/accel0").exists() or any(Path("/dev").glob("vfio/[0-9]*"))
    )
    return has_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def is_main_process() -> bool:
    """Returns whether this is the process that writes the files of the run and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes call this function with the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def in_every_process(value: bool) -> bool:
    """Returns whether `value` is True in every process. All processes must call this function."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(value).all())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _exit_on_abort(_: int) -> None:
    os.write(2, f"{PROCESS_LOST}\n".encode())
    os._exit(1)


def _exit_cleanly_on_abort() -> None:
    """Makes SIGABRT print one line and exit with status 1.

    JAX aborts when another process does not start or a heartbeat fails. The abort comes from a C++ thread, so neither
    an exception handler nor a handler of Python's `signal` module can catch it.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _exit_on_abort)


def _check(config: Distributed) -> None:
    count, index = config.num_processes or 0, config.process_id or 0
    host, _, port = (config.coordinator or "").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"--distributed.coordinator must be HOST:PORT of process 0, got {config.coordinator}. Choose a free port "
            "from 1 to 65535"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--distributed.process-id must be from 0 to below --distributed.num-processes, got {index} of {count}. "
            "Count the processes from 0"
        )


@cache
def _reserve_id(coordinator: str, process_id: int) -> None:
    """Reserves a process id on this machine until this process ends.

    JAX would wait for the missing process until `START_TIMEOUT`, or end all processes of the run.

    Raises:
        UserError: if another process has reserved it.
    """
    digest = hashlib.sha256(f"{coordinator} {process_id}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"w2jax-{os.getuid()}-{digest}.lock")
    try:
        # The file is never closed: the system frees the lock when this process ends.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            "--distributed.process-id must be different in each process of a run, but another process on this machine "
            f"has {process_id} too, with the coordinator {coordinator}. Give each process its own id"
        ) from None
    except OSError:
        pass  # No temporary folder can be written or locked, so the id is not checked.
