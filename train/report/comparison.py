"""The page that compares several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from train.config.flat import flatten
from train.report.curves import SPLIT_COLORS, Charts, Series, curves_section, descriptions, metric_names
from train.report.document import document, escaped, named
from train.report.facts import results, speed, started, status
from train.report.pictures import class_colors
from train.run.record import RunRecord, read_record


def comparison(folders: Sequence[Path]) -> str:
    """Returns the page that compares several runs: their results, the differences of their configs, and their curves.

    Raises:
        UserError: a folder is not a run folder, or one of its files is damaged.
    """
    runs = [read_record(folder) for folder in folders]
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    charts = Charts(descriptions(runs))
    styled = list(zip(runs, labels, class_colors(len(runs)), strict=True))
    curves = [
        charts.add_curve(
            name,
            [
                Series(f"{label} {split}", color, split == "train", run.lines, split, number)
                for number, (run, label, color) in enumerate(styled)
                for split in SPLIT_COLORS
            ],
        )
        for name in metric_names([line for run in runs for line in run.lines])
    ]
    throughput = [
        Series(label, color, False, run.timing, None, number) for number, (run, label, color) in enumerate(styled)
    ]
    curves.append(charts.add_curve("examples_per_second", throughput))
    about = "One row per run. Click on a column's title to sort. To filter, type a part of a name or a value."
    body = (
        f"<p class=soft>{about}</p>"
        + _runs_table(labels, [_results(run) for run in runs], _differences(runs))
        + curves_section(curves, "Dashed lines: training batches. Solid lines: test images, or training throughput.")
    )
    return document(" · ".join(labels), body, charts.drawn, refresh=False)


def _results(run: RunRecord) -> dict[str, str]:
    """Returns the columns of a run by title."""
    rows = results(run, run.test_metrics) | speed(run)
    parameters = run.task_info.facts.parameters
    return {
        **{name: value for name, (value, _) in rows.items()},
        "parameters": "" if parameters is None else f"{parameters:,}",
        "started": started(run),
        "status": status(run),
    }


def _differences(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Returns the options in which the configs differ, with the value of each run."""
    configs = [flatten(run.config) for run in runs]
    shared = set.intersection(*map(set, configs)) - {"run.dir"}
    changed = {
        name: [str(config[name]) for config in configs]
        for name in sorted(shared)
        if any(config[name] != configs[0][name] for config in configs)
    }
    models = [run.model_class or "" for run in runs]
    return {"model": models} | changed if len(set(models)) > 1 else changed


def _runs_table(
    labels: Sequence[str], results: Sequence[Mapping[str, str]], differences: Mapping[str, Sequence[str]]
) -> str:
    """Returns a table with a row for each run, and columns for its results and for the options that differ."""
    titles = [
        name for name in dict.fromkeys(name for result in results for name in result) if _has_value(results, name)
    ]
    groups = f"<tr><td><th colspan={len(titles)}>Results"
    if differences:
        groups += f"<th colspan={len(differences)}>Options that differ"
    head = "".join(f"<th>{escaped(title)}" for title in ("run", *titles, *differences))
    rows = "".join(
        f"<tr data-run={k}><td>{named(label)}"
        + "".join(f"<td>{escaped(results[k].get(title, ''))}" for title in titles)
        + "".join(f"<td>{escaped(values[k])}" for values in differences.values())
        for k, label in enumerate(labels)
    )
    none = "" if differences else "<p>The configs do not differ, except for the run folder.</p>"
    table = f"<table><thead>{groups}<tr>{head}<tbody>{rows}</table>"
    return f"<div class='scroll sortable runs'>{table}</div>{none}"


def _has_value(results: Sequence[Mapping[str, str]], name: str) -> bool:
    """Returns whether a run has a value in a column."""
    return any(result.get(name) for result in results)
