"""Writes report.html: one self-contained page that shows a run or compares several, made from files in run folders."""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from train.config.flat import flatten
from train.report.metric_descriptions import METRIC_DESCRIPTIONS
from train.report.mistakes import precision_and_recall, read_mistakes
from train.report.pictures import class_colors, picture_path, read_pictures
from train.report.reproduce import commands
from train.run.atomic import write_atomic
from train.run.files import format_duration, is_number, read_run_file
from train.run.folder import read_image_info
from train.run.record import RunRecord, read_record
from w2jax.text import one_line

REPORT = "report.html"
_ASSETS = Path(__file__).parent / "assets"
_REFRESH_SECONDS = 15  # interval at which a browser reloads the page of an unfinished run
_MAX_POINTS = 2000  # per curve; longer curves are subsampled
_MAX_MATRIX_CLASSES = 30  # a larger confusion matrix is unreadable
_MAX_PAIRS = 20  # number of confused pairs that are listed instead

_SPLIT_COLORS = {"train": "#f58a1f", "test": "#2f6de1"}


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
    results = _results(run, run.test_metrics if evaluated is None else evaluated.metrics)
    shown = folder if evaluated is None else evaluated.folder
    state = "Stopped early" if run.stopped_early else "Finished" if run.is_finished else "Not finished"
    of_total = "" if run.total_steps is None else f" of {run.total_steps:,}"
    subject = " on ".join(filter(None, (run.model_class, run.dataset)))
    charts = _Charts(_descriptions([run]))
    curves = [
        charts.add_curve(name, [(split, color, False, run.lines, split) for split, color in _SPLIT_COLORS.items()])
        for name in _metric_names(run.lines)
    ]
    throughput = [("train", _SPLIT_COLORS["train"], False, run.timing, None)]
    curves.append(charts.add_curve("examples_per_second", throughput))
    body = (
        f"<p class=soft>{_escaped(subject)}. {state}: step {run.logged_step:,}{of_total}.</p>"
        + (f"<p class=soft>Initial weights: {_escaped(adapted)}.</p>" if (adapted := run.task_info.adapted) else "")
        + _reproduction(run)
        + ("" if evaluated is None else f"<p>Results, mistakes and pictures of {_escaped(evaluated.note)}:</p>")
        + f"<div class=results>{_table(results)}</div>"
        + _curves(
            curves,
            "A train value is the mean over the training batches since the previous point, after any augmentation.",
        )
        + _mistakes(shown)
        + "".join(_picture(shown, name, entry, charts) for name, entry in read_pictures(shown).items())
        + "<details><summary>Config</summary>"
        + _table({name: (str(value), "") for name, value in flatten(run.config).items()})
        + "</details>"
    )
    return _page(run.name, body, charts, refresh=not run.is_finished and evaluated is None)


def comparison(folders: Sequence[Path]) -> str:
    """Returns the page that compares several runs: their results, the differences of their configs, and their curves.

    Raises:
        UserError: a folder is not a run folder, or one of its files is damaged.
    """
    runs = [read_record(folder) for folder in folders]
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    styled = list(zip(runs, labels, class_colors(len(runs)), strict=True))
    charts = _Charts(_descriptions(runs))
    curves = [
        charts.add_curve(
            name,
            [
                (f"{label} {split}", color, split == "train", run.lines, split)
                for run, label, color in styled
                for split in _SPLIT_COLORS
            ],
        )
        for name in _metric_names([line for run in runs for line in run.lines])
    ]
    throughput = [(label, color, False, run.timing, None) for run, label, color in styled]
    curves.append(charts.add_curve("examples_per_second", throughput))
    results = [_results(run, run.test_metrics) for run in runs]
    rows = list(dict.fromkeys(name for result in results for name in result))
    configs = [flatten(run.config) for run in runs]
    shared = set.intersection(*map(set, configs)) - {"run.dir"}
    changed = {
        name: [str(config[name]) for config in configs]
        for name in sorted(shared)
        if any(config[name] != configs[0][name] for config in configs)
    }
    models = [run.model_class or "" for run in runs]
    if len(set(models)) > 1:
        changed = {"model": models} | changed
    body = (
        "<h2>Results</h2>"
        + _columns(labels, {name: [result.get(name, ("", ""))[0] for result in results] for name in rows})
        + "<h2>Config differences</h2>"
        + (_columns(labels, changed) if changed else "<p>None, except for the run folder.</p>")
        + _curves(curves, "Dashed lines: training batches. Solid lines: test images, or training throughput.")
    )
    return _page(" · ".join(labels), body, charts, refresh=False)


class _Charts:
    """The charts of a page. The page's script draws them."""

    def __init__(self, descriptions: Mapping[str, str]):
        """`descriptions` are the descriptions of metrics, by name."""
        self.curves: list[dict[str, Any]] = []
        self.planes: list[dict[str, Any]] = []
        self._descriptions = descriptions

    def add_curve(
        self, name: str, series: Sequence[tuple[str, str, bool, Sequence[Mapping[str, Any]], str | None]]
    ) -> str:
        """Adds a chart of a metric over the steps, and returns its HTML element.

        Each series is (label, color, is dashed, rows of metrics, split or None for all rows). The result is "" if every
        series has fewer than two points, because the table shows single values.
        """
        found = []
        for label, color, dashed, lines, split in series:
            points = {
                line["step"]: line[name]
                for line in lines
                if is_number(line.get(name)) and (split is None or line.get("split") == split)
            }
            if points:
                found.append((label, color, dashed, _thinned(points)))
        if not any(len(points) > 1 for *_, points in found):
            return ""
        steps = sorted({step for *_, points in found for step in points})
        self.curves.append(
            {
                "labels": [label for label, *_ in found],
                "colors": [color for _, color, *_ in found],
                "dashed": [dashed for *_, dashed, _ in found],
                "data": [steps, *([points.get(step) for step in steps] for *_, points in found)],
            }
        )
        words = self._descriptions.get(name)
        about = "" if words is None else f"<p class=about>{_escaped(words)}</p>"
        chart = f"<div data-curve={len(self.curves) - 1}></div>"
        return f"<div class=chart><h3>{_escaped(_spaced(name))}</h3>{about}{chart}</div>"

    def add_plane(self, entry: Mapping[str, Any], label_names: Sequence[str]) -> str:
        """Adds a chart of the points over a plane, and returns its HTML element."""
        drawn = {name: entry[name] for name in ("rows", "columns", "points", "labels")}
        colors = class_colors(max(len(label_names), max(drawn["labels"], default=0) + 1))
        self.planes.append({**drawn, "names": list(label_names), "colors": colors})
        return f"<div class=chart data-plane={len(self.planes) - 1}></div>"


def _thinned(points: dict[int, float]) -> dict[int, float]:
    """Subsamples to at most `_MAX_POINTS` points, including the last point."""
    every = -(-len(points) // _MAX_POINTS)
    return dict(list(points.items())[::-1][::every][::-1])


def _descriptions(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Returns the descriptions of the metrics of these runs."""
    return METRIC_DESCRIPTIONS | {
        name: words for run in runs for name, words in run.task_info.metric_descriptions.items()
    }


def _metric_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the metrics in these rows, with the metrics of the test split first."""
    tested = {name for line in lines if line.get("split") == "test" for name in line}
    names = {name for line in lines for name in line} - {"step", "split"}
    return sorted(names, key=lambda name: (name not in tested, name))


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


def _results(run: RunRecord, metrics: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the rows of a run's table by title, each with a value and a description.

    `metrics` are the metrics of the test split.
    """
    words = _descriptions([run])
    rows = {
        f"test {_spaced(name)}": (f"{value:.4f}", words.get(name, ""))
        for name, value in metrics.items()
        if is_number(value)
    }
    rows["steps"] = f"{run.logged_step:,}", ""
    speeds = [line["examples_per_second"] for line in run.timing if is_number(line.get("examples_per_second"))]
    if speeds and run.seconds is not None:
        rows["examples per second"] = f"{median(speeds):,.0f}", f"median {words['examples_per_second']}"
        rows["devices"] = str(run.timing[-1].get("devices", "")), ""
        rows["time to the last step"] = format_duration(run.seconds), "wall time in h:min:s"
    return rows


def _curves(curves: Sequence[str], about: str) -> str:
    """Returns the section with all curves."""
    if not any(curves):
        return ""
    legend = f"<p class=soft>{about} Move the pointer over a curve to read its values.</p>"
    return f"<h2>Curves</h2>{legend}<div class=charts>{''.join(curves)}</div>"


def _picture(folder: Path, name: str, entry: Mapping[str, Any], charts: _Charts) -> str:
    """Returns the section of a picture. A plane also has an interactive chart."""
    caption = _escaped(entry["caption"])
    kind = " class=on-white" if entry.get("on_white") else ""
    content = base64.b64encode(read_run_file(picture_path(folder, name))).decode()
    image = f"<img{kind} alt='{caption}' src='{_png(content)}'>"
    if "points" in entry:
        chart = charts.add_plane(entry, read_image_info(folder).label_names)
        image = f"<div class=plane>{chart}<canvas class=decoded></canvas>{image}</div>"
    title = _escaped(_spaced(name).capitalize())
    return f"<h2>{title}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _mistakes(folder: Path) -> str:
    """Returns the sections with a classifier's confusion matrix and its most confident mistakes."""
    mistakes = read_mistakes(folder)
    if mistakes is None:
        return ""
    names = read_image_info(folder).label_names

    def label_name(label: int) -> str:
        return _escaped(names[label] if label < len(names) else str(label))

    confusion = mistakes["confusion"]
    count = len(confusion)
    if count <= _MAX_MATRIX_CLASSES:
        shown = "<h2>Confusion matrix</h2>" + _matrix(confusion, label_name)
    else:
        shown = "<h2>Most confused classes</h2>" + _confused_pairs(confusion, label_name)
    shown += "<h2>Precision and recall of each class</h2>" + _by_class(np.array(confusion), label_name)
    worst = "".join(
        f"<figure><img alt='test image {mistake['example']}' src='{_png(mistake['png'])}'>"
        f"<figcaption>true {label_name(mistake['label'])}, predicted {label_name(mistake['predicted'])} "
        f"({100 * mistake['probability']:.0f}&nbsp;%)</figcaption></figure>"
        for mistake in mistakes["worst"]
    )
    total = sum(map(sum, confusion))
    wrong = total - sum(confusion[label][label] for label in range(count))
    about = f"{wrong:,} of {total:,} test images are misclassified."
    if worst:
        about += " The percentage is the probability of the predicted class."
    return (
        f"{shown}<h2>Misclassified images, most confident first</h2>"
        f"<p class=soft>{about}</p><div class=mistakes>{worst}</div>"
    )


def _matrix(confusion: Sequence[Sequence[int]], label_name: Callable[[int], str]) -> str:
    """Returns the confusion matrix, with a row for each true label."""
    labels = range(len(confusion))

    def cell(label: int, predicted: int) -> str:
        times = confusion[label][predicted]
        part = 100 * sqrt(times / max(1, sum(confusion[label])))  # The square root makes small counts visible too.
        return f"<td{' class=right' if predicted == label else ''} style='--part:{part:.1f}'>{times or ''}"

    head = "".join(f"<th>{label_name(label)}" for label in labels)
    rows = "".join(
        f"<tr><th>{label_name(label)}" + "".join(cell(label, predicted) for predicted in labels) for label in labels
    )
    return f"<div class='scroll confusion'><table><tr><th>true&nbsp;↓, predicted&nbsp;→{head}{rows}</table></div>"


def _confused_pairs(confusion: Sequence[Sequence[int]], label_name: Callable[[int], str]) -> str:
    """Returns a table of the pairs of classes that are most often confused."""
    labels = range(len(confusion))
    pairs = [(confusion[a][b], a, b) for a in labels for b in labels if a != b and confusion[a][b]]
    most = sorted(pairs, key=lambda pair: -pair[0])[:_MAX_PAIRS]
    cells = "".join(f"<tr><td>{label_name(a)}<td>{label_name(b)}<td>{times}" for times, a, b in most)
    return f"<div class=scroll><table><tr><th>true<th>predicted<th>test images{cells}</table></div>"


def _by_class(confusion: np.ndarray, label_name: Callable[[int], str]) -> str:
    """Returns a table of the precision and recall of each class, or of the classes with the lowest recall."""
    precision, recall = precision_and_recall(confusion)
    order = range(len(confusion))
    about = "Precision: fraction of the images with this prediction that have this class. "
    about += "Recall: fraction of the images of this class that have this prediction."
    if len(confusion) > _MAX_MATRIX_CLASSES:
        order = [int(label) for label in np.argsort(recall, kind="stable")[:_MAX_PAIRS]]  # NaN comes last.
        about += f" These are the {_MAX_PAIRS} classes with the lowest recall."

    def cell(value: float) -> str:
        return "<td>" if np.isnan(value) else f"<td>{value:.3f}"

    rows = "".join(
        f"<tr><td>{label_name(k)}{cell(precision[k])}{cell(recall[k])}<td>{confusion[k].sum():,}" for k in order
    )
    head = "<tr><th>class<th>precision<th>recall<th>test images"
    return f"<p class=soft>{about}</p><div class=scroll><table>{head}{rows}</table></div>"


def _page(title: str, body: str, charts: _Charts, refresh: bool) -> str:
    """Returns the HTML document. It loads no other files and runs only its two scripts, even if a text has HTML."""
    library, script = ((_ASSETS / name).read_text() for name in ("uPlot.iife.min.js", "page.js"))
    style = (_ASSETS / "uPlot.min.css").read_text() + (_ASSETS / "page.css").read_text()
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (library, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Otherwise "</script>" in a text would end the data.
    values = json.dumps({"curves": charts.curves, "planes": charts.planes}).replace("<", "\\u003c")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        "<meta name=viewport content='width=device-width'>"
        + (f"<meta http-equiv=refresh content={_REFRESH_SECONDS}>" if refresh else "")
        + f"<title>{_escaped(title)}</title><style>{style}</style><h1>{_escaped(title)}</h1>{body}"
        f"<script type=application/json id=data>{values}</script>"
        f"<script>{library}</script><script>{script}</script></html>\n"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _table(rows: Mapping[str, tuple[str, str]]) -> str:
    """Returns a table with a row for each name, with its value and its description."""
    cells = "".join(
        f"<tr><td>{_escaped(name)}<td>{_escaped(value)}<td class=about>{_escaped(about)}"
        for name, (value, about) in rows.items()
    )
    return f"<div class=scroll><table>{cells}</table></div>"


def _columns(labels: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Returns a table with a column for each label."""
    head = "".join(f"<th>{_escaped(label)}" for label in labels)
    cells = "".join(
        f"<tr><td>{_escaped(name)}" + "".join(f"<td>{_escaped(value)}" for value in values)
        for name, values in rows.items()
    )
    return f"<div class='scroll results'><table><tr><th>{head}{cells}</table></div>"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _command(words: str) -> str:
    """Formats a command so that its lines break before an option, not inside its dashes."""
    first, *options = words.split(" --")
    return " ".join([_escaped(first), *(f"<span>--{_escaped(option)}</span>" for option in options)])


def _escaped(text: str) -> str:
    """Escapes text for HTML, between tags or in an attribute."""
    return html.escape(one_line(text))


def _png(content: str) -> str:
    """Returns the data URL of a PNG file, from its base64 text."""
    return f"data:image/png;base64,{content}"
