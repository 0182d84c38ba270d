"""The facts at the top of a report, and the results of a run."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from train.report.curves import descriptions
from train.report.document import escaped, spaced
from train.run.files import format_duration, is_number
from train.run.record import RunRecord


def facts_table(run: RunRecord) -> str:
    """Returns a table of what is known about a run: its progress, model, data, devices, time and versions."""
    rows = {
        "status": status(run),
        "model": _with_count(run.model_class or "", run.task_info.facts.parameters, "parameters"),
        "data": _data(run),
        "initial weights": run.task_info.adapted,
        "started": started(run),
        **{name: value for name, (value, _) in speed(run).items()},
        "time by phase": _phases(run.task_info.facts.phases),
        "versions": ", ".join(f"{name} {version}" for name, version in run.task_info.facts.versions.items()),
    }
    cells = "".join(f"<tr><th>{name}<td>{escaped(value)}" for name, value in rows.items() if value)
    return f"<div class='scroll facts'><table>{cells}</table></div>"


def status(run: RunRecord) -> str:
    """Returns in words how far a run is."""
    done, total = f"{run.logged_step:,}", "?" if run.total_steps is None else f"{run.total_steps:,}"
    if run.stopped_early:
        return f"Stopped early: step {done} of {total}"
    if run.is_finished:
        return f"Finished: {done} of {total} steps"
    return f"Not finished: step {done} of {total}"


def started(run: RunRecord) -> str:
    """Returns the time when the first process of a run started; "" if it is not known."""
    return f"{run.task_info.facts.started} UTC" if run.task_info.facts.started else ""


def results(run: RunRecord, metrics: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns a row for each metric of the test split by title, with a value and a description."""
    words = descriptions([run])
    return {
        f"test {spaced(name)}": (f"{value:.4f}", words.get(name, ""))
        for name, value in metrics.items()
        if is_number(value)
    }


def speed(run: RunRecord) -> dict[str, tuple[str, str]]:
    """Returns the devices, the throughput and the wall time of a run, each with a description."""
    speeds = [row["examples_per_second"] for row in run.timing if is_number(row.get("examples_per_second"))]
    if not speeds or run.seconds is None:
        return {}
    return {
        "devices": (str(run.timing[-1].get("devices", "")), ""),
        "examples per second": (f"{median(speeds):,.0f}", f"median {descriptions([run])['examples_per_second']}"),
        "time to the last step": (format_duration(run.seconds), "wall time in h:min:s"),
    }


def _with_count(name: str, count: int | None, noun: str) -> str:
    return ", ".join(filter(None, (name, "" if count is None else f"{count:,} {noun}")))


def _data(run: RunRecord) -> str:
    examples = run.task_info.facts.examples
    counts = [f"{examples[key]:,} {word}" for key, word in (("train", "training"), ("test", "test")) if key in examples]
    return ", ".join(filter(None, (run.dataset, f"{' and '.join(counts)} images" if counts else "")))


def _phases(seconds: Mapping[str, float]) -> str:
    """Returns the phases from the longest to the shortest, without those below a tenth of a second."""
    shown = sorted(seconds.items(), key=lambda phase: -phase[1])
    return ", ".join(f"{name} {_brief(value)}" for name, value in shown if value >= 0.1)


def _brief(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else format_duration(seconds)
