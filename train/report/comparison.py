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
    differences = _differences(runs)
    groups = {
        "Results": [{name: value for name, (value, _) in results(run, run.test_metrics).items()} for run in runs],
        "Options that differ": differences,
        "Run": [_about(run) for run in runs],
    }
    none = "" if any(differences) else "<p>The configs do not differ, except for the run folder.</p>"
    body = f"<p class=soft>{about}</p>{_runs_table(labels, groups)}{none}" + curves_section(
        curves, "Dashed lines: training batches. Solid lines: test images, or training throughput."
    )
    return document(" · ".join(labels), body, charts.drawn, refresh=False)


def _about(run: RunRecord) -> dict[str, str]:
    """Returns what the table says about a run besides its results, by title."""
    parameters = run.task_info.facts.parameters
    return {
        "status": status(run),
        "parameters": "" if parameters is None else f"{parameters:,}",
        **{name: value for name, (value, _) in speed(run).items()},
        "started": started(run),
    }


def _differences(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Returns the options in which the configs differ, with the value of each run."""
    configs = [flatten(run.config) for run in runs]
    shared = set.intersection(*map(set, configs)) - {"run.dir"}
    changed = [name for name in sorted(shared) if any(config[name] != configs[0][name] for config in configs)]
    has_models = len({run.model_class for run in runs}) > 1
    return [
        ({"model": run.model_class or ""} if has_models else {}) | {name: str(config[name]) for name in changed}
        for run, config in zip(runs, configs, strict=True)
    ]


def _runs_table(labels: Sequence[str], groups: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """Returns a table with a row for each run.

    `groups` are the groups of columns by title. Each has the columns of each run, by their titles.
    """
    columns = {
        group: titles
        for group, of_runs in groups.items()
        if (titles := list(dict.fromkeys(title for row in of_runs for title, value in row.items() if value)))
    }
    head = "".join(f"<th colspan={len(titles)}>{group}" for group, titles in columns.items())
    head += "<tr><th>run" + "".join(f"<th>{escaped(title)}" for titles in columns.values() for title in titles)
    rows = "".join(
        f"<tr data-run={number}><td>{named(label)}"
        + "".join(
            f"<td>{escaped(groups[group][number].get(title, ''))}"
            for group, titles in columns.items()
            for title in titles
        )
        for number, label in enumerate(labels)
    )
    return f"<div class='scroll sortable runs'><table><thead><tr><td>{head}<tbody>{rows}</table></div>"
