"""Measures the memory and work of the compiled step, and prints them as a table."""

import re
import time
from dataclasses import replace
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from configs.base import Config
from train.config.flat import flatten
from train.config.tree import config_to_tree
from train.data import Source
from train.dryrun.flops import model_flops
from train.dryrun.hlo import Counts, count
from train.dryrun.target import GIB, Chip, Target
from train.engine.program import Program
from train.engine.sharding import batch_parts
from w2jax.text import format_bytes

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"

LARGEST = 5  # parts of the memory or of the memory traffic in the table
Report = dict[str, Any]
"""The content of the --json file. Sizes are bytes per chip, times are seconds."""


def measure(config: Config, make_task, source: Source, mesh: jax.sharding.Mesh, target: Target, limit: float | None):
    """Compiles the step and reports its memory and work per chip.

    `limit` is the memory of a chip in bytes; None if unknown.

    Raises:
        UserError: if the model, the optimizer, the images and the mesh do not work together.
    """
    task = make_task(config, source)
    program = Program(config, task, source, mesh)
    report: Report = {
        "topology": target.name,
        "slices": target.slices,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.run.batch_size,
        "batch_parts": batch_parts(mesh),
        "parameters": sum(x.size for x in jax.tree.leaves(program.state_shapes.params)),
    }
    started = time.perf_counter()
    try:
        compiled = program.lowered_step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report |= {"fits": False, "memory": refused(str(error)), "advice": advice(config, mesh)}
        return report | {"compile_seconds": time.perf_counter() - started}
    report["compile_seconds"] = time.perf_counter() - started
    report["memory"] = memory = memory_of(compiled, limit, target.chip is not None)
    report["fits"] = limit is None or memory["total"] <= limit
    if not report["fits"]:
        report["advice"] = advice(config, mesh)
    counts = count(compiled.as_text() or "", mesh.size)
    report |= {
        "model_flops": model_flops(without_remat(config), make_task, source, program) / mesh.size,
        "flops": counts.flops,
        "bytes": counts.bytes,
        "traffic": dict(sorted(counts.traffic.items(), key=lambda part: -part[1])),
        "collectives": {
            kind: {"count": part.count, "bytes": part.bytes, "sent": part.sent}
            for kind, part in sorted(counts.collectives.items())
        },
        "unknown_loops": counts.unknown_loops,
    }
    if target.chip is not None:
        report["roofline"] = roofline(counts, report["model_flops"], config.run.batch_size, target.chip)
    return report


def memory_of(compiled: jax.stages.Compiled, limit: float | None, is_tpu: bool) -> Report:
    """Returns the memory of a compiled step, by kind."""
    stats: Any = compiled.memory_analysis()
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.temp_size_in_bytes
    if is_tpu and (peak := getattr(stats, "peak_memory_in_bytes", 0)):
        # The sum includes temporaries that never exist at the same time. It can exceed the compiler's limit.
        temporaries = max(peak - arguments - outputs, 0)
    memory: Report = {
        "arguments": arguments,
        "temporaries": temporaries,
        "outputs": outputs,
        "code": stats.generated_code_size_in_bytes,
    }
    return memory | {"total": sum(memory.values()), "limit": limit}


def refused(message: str) -> Report:
    """Reads the memory of a program from the compiler's out-of-memory error message."""
    sizes = re.search(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    sizes = sizes or re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
    if sizes is None:
        return {"total": None, "limit": None, "largest": [], "message": message.splitlines()[0]}
    listed = re.findall(
        rf"Size: {_SIZE}\n(?:\s+Operator: op_name=\"([^\"]*)\".*\n)?\s+Shape: (\S+?)(?:\{{|\n)", message
    )
    largest = [{"bytes": _bytes(*size), "shape": shape, "of": name} for *size, name, shape in listed]
    return {"total": _bytes(sizes[1], sizes[2]), "limit": _bytes(sizes[3], sizes[4]), "largest": largest}


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def advice(config: Config, mesh: jax.sharding.Mesh) -> list[str]:
    """Returns options that would save memory and are not used yet, the cheapest first."""
    options = flatten(config_to_tree(config))
    tries = {
        "--model.dtype bfloat16": options.get("model.dtype") == "float32",
        "--mesh.fsdp -1 --mesh.data 1": mesh.shape["data"] > 1 and mesh.shape["fsdp"] == 1,
        "--model.scan-layers": options.get("model.scan_layers") is False,
        "--model.remat": options.get("model.remat") is False,
        f"--optim.accumulate {2 * options.get('optim.accumulate', 1)}": "optim.accumulate" in options,
        f"--run.batch-size {config.run.batch_size // 2}": config.run.batch_size > 1,
        "more chips": True,
    }
    return [option for option, helps in tries.items() if helps]


def without_remat(config: Any) -> Any:
    """Returns the config without recomputation in the backward pass (`remat`)."""
    return replace(config, model=config.model.clone(remat=False)) if getattr(config.model, "remat", False) else config


def roofline(counts: Counts, flops_of_model: float, batch_size: int, chip: Chip) -> Report:
    """Returns the minimum time of a step: the time of its busiest resource, if all resources work in parallel."""
    sent = sum(part.sent for part in counts.collectives.values())
    times = {
        "compute": counts.flops / chip.flops,
        "memory": counts.bytes / chip.bandwidth,
        "interconnect": sent / chip.interconnect,
    }
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    return {
        **{f"{name}_seconds": seconds for name, seconds in times.items()},
        "bound": bound,
        "step_seconds": step,
        "mfu": flops_of_model / chip.flops / step,
        "images_per_second": batch_size / step,
    }


def show(report: Report, console: Console) -> None:
    """Prints the table."""
    table = Table(
        show_header=False, title=f"{report['task']} {report['preset']} on {report['topology']}", title_justify="left"
    )
    for name, value in rows(report):
        table.add_row(name, value)
    console.print(table)
    if not report["fits"]:
        console.print(
            f"does not fit in memory. Try these options one after another: {'  '.join(report['advice'])}", markup=False
        )


def rows(report: Report) -> list[tuple[str, str]]:
    """Returns the rows of the table, as (name, text)."""
    memory = report["memory"]
    slices = f" in {report['slices']} slices" if report["slices"] > 1 else ""
    halves = " halves" if report["topology"].startswith("v7x") else ""
    mesh = "  ".join(f"{name} {size}" for name, size in report["mesh"].items())
    table = [
        ("chips", f"{report['chips']}{halves}{slices}: {mesh}"),
        ("batch size", f"{report['batch_size']:,} images, {report['batch_size'] / report['batch_parts']:g} per chip"),
        ("parameters", f"{report['parameters']:,}"),
    ]
    names = {"arguments": "state and batch", "temporaries": "temporaries", "outputs": "new outputs", "code": "program"}
    table += [(f"memory: {text}", format_bytes(memory[name])) for name, text in names.items() if name in memory]
    table.append(("memory per chip", fit(report)))
    table += [
        (f"  {format_bytes(part['bytes'])}", f"{part['shape']} {part['of']}")
        for part in memory.get("largest", [])[:LARGEST]
    ]
    if "flops" in report:
        table += [
            (
                "FLOPs per step and chip",
                f"{quantity(report['flops'])} (model FLOPs: {quantity(report['model_flops'])})",
            ),
            ("memory traffic per step and chip", format_bytes(report["bytes"])),
            *((f"  {part}", format_bytes(size)) for part, size in [*report["traffic"].items()][:LARGEST]),
        ]
        for kind, part in report["collectives"].items():
            table.append((kind, f"{part['count']:,.0f} per step, {format_bytes(part['bytes'])}"))
        if report["unknown_loops"]:
            table.append(("loops of unknown length", f"{report['unknown_loops']:.0f}; each counted as one iteration"))
    if bound := report.get("roofline"):
        parts = ", ".join(
            f"{name} {milliseconds(bound[f'{name}_seconds'])}" for name in ("compute", "memory", "interconnect")
        )
        between = " (the network between slices is not counted)" if report["slices"] > 1 else ""
        table += [
            (
                "minimum step time",
                f"{milliseconds(bound['step_seconds'])}, bound by {bound['bound']}: {parts}{between}",
            ),
            ("maximum throughput", f"{bound['images_per_second']:,.0f} images/s, MFU {100 * bound['mfu']:.1f} %"),
        ]
    if found := report.get("search"):
        above = "" if found["smallest_that_does_not"] is None else f"; {found['smallest_that_does_not']:,} does not"
        table.append(("largest batch size that fits", f"{found['largest_that_fits']:,}{above}"))
    return [*table, ("compile time", f"{report['compile_seconds']:.1f} s")]


def fit(report: Report) -> str:
    """Describes whether the step fits in memory, and by how much."""
    total, limit = report["memory"]["total"], report["memory"]["limit"]
    if total is None:
        return f"does not fit: {report['memory']['message']}"
    if limit is None:
        return format_bytes(total)
    verdict = "fits" if report["fits"] else "does not fit"
    difference = f"{format_bytes(abs(limit - total))} {'left' if total <= limit else 'too much'}"
    return f"{format_bytes(total)} of {format_bytes(limit)}: {verdict}, {difference}"


def quantity(count: float) -> str:
    """Formats a number of operations with four digits and a decimal unit: 1360000000 becomes "1.36 G"."""
    power = next(power for power in (15, 12, 9, 6, 0) if count >= 10**power or power == 0)
    return f"{count / 10**power:.4g}{ {15: ' P', 12: ' T', 9: ' G', 6: ' M', 0: ''}[power] }"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
