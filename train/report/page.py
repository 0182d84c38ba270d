"""Writes report.html: one self-contained page that shows a run, made from the files in its folder."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.config.flat import flatten
from train.report.classes import classes_sections
from train.report.curves import SPLIT_COLORS, Charts, Series, curves_section, descriptions, metric_names
from train.report.document import document, escaped, png_address, spaced, table
from train.report.facts import facts_table, results
from train.report.mistakes import read_mistakes
from train.report.pictures import class_colors, picture_path, read_pictures
from train.report.reproduce import commands
from train.report.schedule import learning_rates
from train.run.atomic import write_atomic
from train.run.files import read_run_file
from train.run.folder import read_image_info
from train.run.record import RunRecord, read_record

REPORT = "report.html"


class Evaluated(NamedTuple):
    """A checkpoint that was evaluated again."""

    note: str
    """Which parameters, of which step."""
    metrics: dict[str, float]
    """The metrics of the test split."""
    folder: Path
    """A folder with the mistakes and pictures."""


def write_report(folder: Path) -> None:
    """Writes `report.html` into a run folder, from its metrics, pictures and mistakes."""
    write_atomic(folder / REPORT, run_page(folder))


def run_page(folder: Path, evaluated: Evaluated | None = None) -> str:
    """Returns the page of one run. Its results, mistakes and pictures are those of the last evaluation.

    If `evaluated` is given, they are those of this checkpoint.

    Raises:
        UserError: `folder` is not a run folder, or one of its files is damaged.
    """
    run = read_record(folder)
    shown = folder if evaluated is None else evaluated.folder
    metrics = run.test_metrics if evaluated is None else evaluated.metrics
    charts, mistakes = Charts(descriptions([run])), read_mistakes(shown)
    body = (
        facts_table(run)
        + _reproduction(run)
        + ("" if evaluated is None else f"<p>Results, mistakes and pictures of {escaped(evaluated.note)}:</p>")
        + f"<div class=results>{table(results(run, metrics))}</div>"
        + _curves(run, charts)
        + ("" if mistakes is None else classes_sections(mistakes, read_image_info(shown).label_names, charts))
        + "".join(_picture(shown, name, entry, charts) for name, entry in read_pictures(shown).items())
        + "<details><summary>Config</summary>"
        + table({name: (str(value), "") for name, value in flatten(run.config).items()})
        + "</details>"
    )
    return document(run.name, body, charts.drawn, refresh=not run.is_finished and evaluated is None)


def _reproduction(run: RunRecord) -> str:
    """Returns the section with the commands that reproduce a run."""
    shell_commands = commands(run.config)
    if not shell_commands:
        return ""
    about = "Command to reproduce this run:"
    if extensions := run.config.get("extensions", []):
        moments = ", ".join(f"at step {entry['done']:,} of {entry['steps']:,}" for entry in extensions)
        about = f"This run was extended {moments}. Commands to reproduce it:"
    lines = "\n".join(map(_command, shell_commands))
    return f"<p>{about}</p><pre>{lines}</pre>"


def _command(words: str) -> str:
    """Formats a command so that its lines break before an option, not inside its dashes."""
    first, *options = words.split(" --")
    return " ".join([escaped(first), *(f"<span>--{escaped(option)}</span>" for option in options)])


def _curves(run: RunRecord, charts: Charts) -> str:
    """Returns the section with the metrics over the steps, the learning rate and the throughput."""
    curves = [
        charts.add_curve(name, [Series(split, color, False, run.lines, split) for split, color in SPLIT_COLORS.items()])
        for name in metric_names(run.lines)
    ]
    rates = learning_rates(run.config, run.logged_step)
    colors = class_colors(len(rates)) if len(rates) > 1 else [SPLIT_COLORS["train"]]
    scheduled = [
        Series(name or "train", color, False, rows) for (name, rows), color in zip(rates.items(), colors, strict=False)
    ]
    curves.append(charts.add_curve("learning_rate", scheduled))
    curves.append(charts.add_curve("examples_per_second", [Series("train", SPLIT_COLORS["train"], False, run.timing)]))
    return curves_section(
        curves, "A train value is the average over the batches since the previous point, after any augmentation."
    )


def _picture(folder: Path, name: str, entry: Mapping[str, Any], charts: Charts) -> str:
    """Returns the section of a picture. A plane also has an interactive chart."""
    caption = escaped(entry["caption"])
    kind = " class=on-white" if entry.get("on_white") else ""
    content = base64.b64encode(read_run_file(picture_path(folder, name))).decode()
    image = f"<img{kind} alt='{caption}' src='{png_address(content)}'>"
    if "points" in entry:
        chart = charts.add_plane(entry, read_image_info(folder).label_names)
        image = f"<div class=plane>{chart}<canvas class=decoded></canvas>{image}</div>"
    else:
        image = _labeled(image, entry.get("column_labels", []), entry.get("row_labels", []))
    title = escaped(spaced(name).capitalize())
    return f"<h2>{title}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _labeled(image: str, columns: list[str], rows: list[str]) -> str:
    """Returns a picture of cells with a label above each column and left of each row."""

    def labels(names: list[str], kind: str) -> str:
        words = "".join(f"<span>{escaped(name)}</span>" for name in names)
        return f"<div class={kind} style='--count:{len(names)}'>{words}</div>" if names else ""

    if not columns and not rows:
        return image
    corner = "<span></span>" if columns and rows else ""
    kind = "labeled beside" if rows else "labeled"
    return f"<div class='{kind}'>{corner}{labels(columns, 'columns')}{labels(rows, 'rows')}{image}</div>"
