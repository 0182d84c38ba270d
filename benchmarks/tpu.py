"""Compiles our train steps and those of stock Flax modules with the TPU compiler, and compares their costs.

    python -m benchmarks.tpu [--topology v5e:1x1] [--json FILE]

Needs libtpu (`pip install -e ".[tpu]"`), but no TPU. FLOPs and bytes are counted in the compiled program, and the body
of a loop counts as often as it runs (`train/dryrun/hlo.py`). Temporaries are the HBM bytes that the compiler reports.
"""

import os

os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # before jax is imported, because libtpu would wait for a TPU machine to answer

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks.baselines import flax_steps, ours
from benchmarks.cases import CASES
from benchmarks.inputs import write_inputs
from train.dryrun.hlo import count
from train.dryrun.target import open_target

# The largest allowed ratio of ours to Flax's.
GOALS = {"lstm": {"bytes": 0.7, "temporaries": 0.5}, "vit": {"bytes": 1.0, "temporaries": 1.0}}


def measure(training, device) -> dict[str, float]:
    """Returns the FLOPs, bytes and temporaries of one step on the device."""
    update, state, batch = training
    place = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (state, batch))
    compiled = jax.jit(update, donate_argnums=0).lower(*shapes).compile()
    counts = count(compiled.as_text(), devices=1)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return {"flops": counts.flops, "bytes": counts.bytes, "temporaries": temporaries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1", help="TPU topology to compile for (default: v5e:1x1)")
    parser.add_argument("--json", type=Path, help="file to which all figures are written")
    options = parser.parse_args()
    device, figures = open_target(options.topology).devices[0], {}
    for model, goals in GOALS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "inputs.npz")
            write_inputs(path, model, CASES[f"{model}_step"].batch_size)
            with np.load(path) as arrays:
                inputs = dict(arrays)
        steps = {
            who: getattr(module, f"{model}_training")(inputs) for who, module in (("ours", ours), ("flax", flax_steps))
        }
        figures[model] = {who: measure(step, device) for who, step in steps.items()}
        for who, of_step in figures[model].items():
            line = f"{model:<5} {who:<5} {of_step['flops'] / 1e9:7.1f} GFLOP"
            for name in ("bytes", "temporaries"):
                line += f" {of_step[name] / 2**20:9.1f} MiB {name}"
                if who == "ours":
                    ratio = of_step[name] / figures[model]["flax"][name]
                    line += f" ({ratio:.2f} times Flax's, goal {goals[name]})"
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
