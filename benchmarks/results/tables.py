"""The tables of docs/results.md and docs/aae.md, made from the JSON files of the results."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import aligned, with_table
from benchmarks.results.rows import ABLATION, AUTOENCODERS, CLASSIFIERS, COMPARED, IN_TORCH, ROWS, Metric, Row

ROOT = Path(__file__).parents[2]
MEASURED = Path(__file__).parent / "measured"
RESULTS, AAE = ROOT / "docs" / "results.md", ROOT / "docs" / "aae.md"

Record = dict[str, Any]  # what `measure` returns


def read_runs(name: str) -> list[Record]:
    """Returns the records of a row, by seed; [] if the row was never measured."""
    path = MEASURED / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def store_run(name: str, record: Record) -> None:
    """Adds a record to the file of a row. It replaces the record of the same seed."""
    runs = [run for run in read_runs(name) if run["seed"] != record["seed"]] + [record]
    MEASURED.mkdir(exist_ok=True)
    text = json.dumps(sorted(runs, key=lambda run: run["seed"]), indent=1)
    (MEASURED / f"{name}.json").write_text(text + "\n")


def pages_with_tables() -> dict[Path, str]:
    """Returns the text of each page, with tables that show the records."""
    tables = {
        RESULTS: {
            "classifiers": results_table(CLASSIFIERS),
            "autoencoders": results_table(AUTOENCODERS),
            "torch": torch_table(),
            "missing": missing_rows(),
            "machines": machines_table(),
        },
        AAE: {"ablation": ablation_table()},
    }
    pages = {}
    for page, of_page in tables.items():
        pages[page] = page.read_text()
        for name, table in of_page.items():
            pages[page] = with_table(pages[page], name, table)
    return pages


def write_pages() -> None:
    """Writes the tables of all pages."""
    for page, text in pages_with_tables().items():
        page.write_text(text)


def results_table(rows: Iterable[Row]) -> str:
    """Returns a table with one line for each row that was measured."""
    lines = [["command", "data", "metric", "each seed", "mean ± SD", "goal", "paper", "wall time", "peak memory"]]
    for row in rows:
        if not (runs := read_runs(row.name)):
            continue
        values = [shown_value(row.metric, run) for run in runs]
        peaks = [run["peak_mib"] for run in runs if run["peak_mib"] is not None]
        lines.append(
            [
                f"`python -m {row.command}`",
                data_of(runs[0]),
                row.metric.title,
                ", ".join(number(row.metric, value) for value in values),
                mean_and_spread(row.metric, values),
                goal(row, values),
                row.paper,
                wall_time(runs),
                f"{max(peaks):,} MiB" if peaks else "",
            ]
        )
    return aligned(lines)


def ablation_table() -> str:
    """Returns a table with the error of `semi_100` without each technique, for the rows that were measured."""
    lines = [["left out", "row", "test error of each seed, %", "mean ± SD", "wall time"]]
    for left_out, row in ABLATION.items():
        if runs := read_runs(row.name):
            values = [shown_value(row.metric, run) for run in runs]
            shown = ", ".join(number(row.metric, value) for value in values)
            lines.append([left_out, f"`{row.name}`", shown, mean_and_spread(row.metric, values), wall_time(runs)])
    return aligned(lines)


def torch_table() -> str:
    """Returns the table that compares the same recipe in w2jax and in PyTorch."""
    lines = [["recipe", "metric", "w2jax", "PyTorch", "difference", "its standard error", "wall time, w2jax : PyTorch"]]
    for row, twin in zip(COMPARED, IN_TORCH, strict=True):
        both = read_runs(row.name), read_runs(twin.name)
        if not all(len(runs) > 1 for runs in both):
            continue
        ours, theirs = ([shown_value(row.metric, run) for run in runs] for runs in both)
        error = sum(statistics.variance(values) / len(values) for values in (ours, theirs)) ** 0.5
        lines.append(
            [
                f"`{row.command}`",
                row.metric.title,
                mean_and_spread(row.metric, ours),
                mean_and_spread(row.metric, theirs),
                f"{statistics.mean(ours) - statistics.mean(theirs):+.{row.metric.digits}f}",
                number(row.metric, error),
                " : ".join(map(wall_time, both)),
            ]
        )
    return aligned(lines)


def missing_rows() -> str:
    """Returns a list of the rows of which at least one seed was not measured."""
    lines = []
    for name, row in ROWS.items():
        measured = {run["seed"] for run in read_runs(name)}
        if missing := [str(seed) for seed in row.seeds if seed not in measured]:
            lines.append([f"`{name}`", f"`python -m {row.command}`", ", ".join(missing)])
    return aligned([["row", "command", "seeds without a result"], *lines])


def machines_table() -> str:
    """Returns a table that tells where, when and with which versions each row was measured."""
    lines = [["row", "seeds", "machine", "date", "versions", "commit"]]
    for name in ROWS:
        groups: dict[tuple[str, ...], list[str]] = {}
        for run in read_runs(name):
            versions = ", ".join(f"{library} {number}" for library, number in run["versions"].items())
            groups.setdefault((run["machine"], run["date"], versions, run["commit"]), []).append(str(run["seed"]))
        lines += [[f"`{name}`", ", ".join(seeds), *where] for where, seeds in groups.items()]
    return aligned(lines)


def shown_value(metric: Metric, run: Record) -> float:
    """Returns the metric of a run in the unit of the table."""
    value = run["metrics"][metric.name]
    value = 1 - value if metric.subtract_from_one else value
    return 100 * value if metric.in_percent else value


def number(metric: Metric, value: float) -> str:
    return f"{value:.{metric.digits}f}"


def mean_and_spread(metric: Metric, values: Sequence[float]) -> str:
    """Returns the mean and the standard deviation of one run; "" for a single value."""
    if len(values) < 2:
        return ""
    return f"{number(metric, statistics.mean(values))} ± {number(metric, statistics.stdev(values))}"


def goal(row: Row, values: Sequence[float]) -> str:
    """Returns the goal, in bold if the mean misses it."""
    if row.goal is None:
        return ""
    mean = statistics.mean(values)
    met = mean >= row.goal if row.metric.higher_is_better else mean <= row.goal
    return f"{row.goal:g}" if met else f"**{row.goal:g}**"


def data_of(run: Record) -> str:
    """Returns the dataset and the number of epochs."""
    name = {"mnist_sample": "the sample", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[run["data"]]
    return f"{name}, {run['steps'] * run['batch_size'] / run['images']['train']:.3g} epochs"


def wall_time(runs: Sequence[Record]) -> str:
    """Returns the median and the range, with * if something else ran at the same time."""
    seconds = sorted(run["wall_seconds"] for run in runs)
    text = duration(statistics.median(seconds))
    if len(seconds) > 1:
        text += f" ({duration(seconds[0])} to {duration(seconds[-1])})"
    return text if all(run["alone"] for run in runs) else f"{text} *"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
