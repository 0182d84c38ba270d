"""The settings that a program makes before JAX starts."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.base import Mesh, RunConfig
from configs.vit import PRESETS
from train.config.checks import check_ranges
from train.process.errors import UserError

# Simulates three cores. Prints, for each pair of CPU devices and batch size, the number of devices that JAX has.
PROGRAM = """
import json, os, sys
os.sched_getaffinity = lambda _: {0, 1, 2}
import jax
from configs.base import Config, Mesh, RunConfig
from train.process.setup import split_cpu_into_devices
for devices, size in json.loads(sys.argv[1]):
    split_cpu_into_devices(Config(mesh=Mesh(cpu_devices=devices), run=RunConfig(batch_size=size)))
    print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("settings", "environment", "devices"),
    [
        ([(2, 100)], {}, [2]),
        ([(8, 99)], {}, [3]),  # as many as there are cores
        ([(3, 100)], {}, [2]),  # 3 does not divide 100
        ([(1, 100), (2, 100)], {}, [1, 1]),  # JAX has already started
        ([(2, 100)], {"JAX_NUM_CPU_DEVICES": "5"}, [5]),
        ([(2, 100)], {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, [4]),
    ],
)
def test_the_cpu_is_split_into_the_requested_devices(settings, environment, devices):
    """The cores, the batch size and JAX must allow it."""
    outer = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, env=outer | environment, stdout=subprocess.PIPE, text=True, check=True)
    assert [int(line) for line in result.stdout.split()] == devices


PREPARE = """
import logging, resource, sys, threading
from dataclasses import replace
import jax
from configs.base import Config, Mesh, Optim, RunConfig
from configs.vit import PRESETS
from train.process.setup import prepare_process
config = replace(
    PRESETS["tiny"].config,
    mesh=Mesh(cpu_devices=2),
    optim=Optim(accumulate=int(sys.argv[1])),
    run=RunConfig(batch_size=6, compilation_cache="on"),
)
before = threading.excepthook
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
prepare_process(config)


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()


before_block = resident()
block = b"1" * 2**27
del block
print(resident() - before_block > 2**26)
print(jax.device_count(), jax.config.jax_compilation_cache_dir, logging.getLogger("orbax").level)
print(threading.excepthook is before, resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


@pytest.mark.parametrize(("accumulate", "devices"), [(1, 2), (2, 1), (3, 2)])  # 2 × 2 does not divide 6
def test_a_program_prepares_its_process_by_one_call(tmp_path, accumulate, devices):
    """malloc keeps freed memory only if the CPU is one device."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "JAX", "GLIBC"))}
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core is one device")
    command = [sys.executable, "-c", PREPARE, str(accumulate)]
    outer["XDG_CACHE_HOME"] = str(tmp_path)
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, env=outer, stdout=subprocess.PIPE, text=True, check=True)
    keeps, count, folder, level, same_hook, raised_limit = result.stdout.split()
    assert keeps == str(devices == 1 and "glibc" in platform.libc_ver()[0])
    assert (int(count), int(level), same_hook, raised_limit) == (devices, 50, "False", "True")
    assert Path(folder).parent == tmp_path / "w2jax"


def test_without_any_device_there_is_an_error():
    config = replace(PRESETS["tiny"].config, mesh=Mesh(cpu_devices=0), run=RunConfig())
    with pytest.raises(UserError, match=r"--mesh\.cpu-devices must be from 1 to 2147483647, got 0"):
        check_ranges(config)
