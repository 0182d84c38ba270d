"""What a program sets before JAX starts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.base import Mesh, RunConfig
from configs.vit import PRESETS
from train.config.checks import check_ranges
from train.process.errors import UserError

# With three cores, whatever this machine has: in turn the devices asked for and the size of a batch, or "start".
PROGRAM = """
import json, os, sys
os.sched_getaffinity = lambda _: {0, 1, 2}
import jax
from configs.base import Config, Mesh, RunConfig
from train.process.setup import split_cpu_into_devices
for asked, size in json.loads(sys.argv[1]):
    split_cpu_into_devices(Config(mesh=Mesh(cpu_devices=asked), run=RunConfig(batch_size=size)))
    print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("asked", "environment", "devices"),
    [
        ([(2, 100)], {}, [2]),
        ([(8, 99)], {}, [3]),  # as many as there are cores
        ([(3, 100)], {}, [2]),  # a hundred cannot be cut in three
        ([(1, 100), (2, 100)], {}, [1, 1]),  # JAX has started
        ([(2, 100)], {"JAX_NUM_CPU_DEVICES": "5"}, [5]),
        ([(2, 100)], {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, [4]),
    ],
)
def test_a_cpu_counts_as_the_devices_asked_for_if_its_cores_the_batch_and_jax_allow(asked, environment, devices):
    outer = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    root = Path(__file__).parents[3]
    told = subprocess.run(command, cwd=root, env=outer | environment, stdout=subprocess.PIPE, text=True, check=True)
    assert [int(line) for line in told.stdout.split()] == devices


def test_no_device_at_all_is_a_mistake():
    config = replace(PRESETS["tiny"].config, mesh=Mesh(cpu_devices=0), run=RunConfig())
    with pytest.raises(UserError, match=r"--mesh\.cpu-devices must be at least 1, got 0"):
        check_ranges(config)
