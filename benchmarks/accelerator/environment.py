"""Describes the machine: its devices, drivers, and the versions of the libraries."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.accelerator.record import Setting

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "torch", "w2jax")


def print_devices() -> None:
    """Prints a line of JSON about the devices. This initializes them, so it runs in its own process."""
    import jax

    devices = jax.devices()
    torch_cuda = False
    if devices[0].platform == "gpu" and importlib.util.find_spec("torch"):
        import torch

        torch_cuda = torch.cuda.is_available()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    is_nvidia = devices[0].platform == "gpu" and "rocm" not in devices[0].client.platform_version.lower()
    found = {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
    print(json.dumps(found | {"bytes_limit": memory, "torch_cuda": torch_cuda, "is_nvidia": is_nvidia}))


def describe() -> dict[str, Any]:
    """Returns the devices and versions of this machine. JAX runs in another process.

    Raises:
        SystemExit: JAX finds no device.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator", "--devices"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"JAX must find a device, got this error:\n{found.stderr.strip()}")
    return {
        **json.loads(found.stdout.splitlines()[-1]),
        "driver": nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").splitlines()[:1],
        "cuda": [line.split("CUDA Version:")[1].split()[0] for line in nvidia_smi().splitlines() if "CUDA V" in line],
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES},
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def setting_of(environment: dict[str, Any], quick: bool) -> Setting:
    """Returns what the parts know about the machine."""
    names = ("platform", "kind", "count", "torch_cuda", "is_nvidia")
    has_torch = importlib.util.find_spec("torch") is not None
    return Setting(**{name: environment[name] for name in names}, quick=quick, torch=has_torch)


def nvidia_smi(*options: str) -> str:
    """Returns the output of nvidia-smi; "" if there is no such program or it fails."""
    program = shutil.which("nvidia-smi")
    return "" if program is None else subprocess.run([program, *options], capture_output=True, text=True).stdout


def version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
