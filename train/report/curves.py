"""The curves of a report. The page's script draws them with uPlot."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.report.document import escaped, spaced
from train.report.metric_descriptions import METRIC_DESCRIPTIONS
from train.report.pictures import class_colors
from train.run.files import is_number
from train.run.record import RunRecord

SPLIT_COLORS = {"train": "#f58a1f", "test": "#2f6de1"}
_MAX_POINTS = 2000  # per curve; longer curves are subsampled


class Series(NamedTuple):
    """A line of a chart."""

    label: str
    color: str
    dashed: bool
    rows: Sequence[Mapping[str, Any]]
    """Rows with "step" and the metric."""
    split: str | None = None
    """Use only the rows of this split; None: all rows."""
    run: int = 0
    """Number of the run on the page."""

    def points(self, name: str) -> dict[int, float]:
        """Returns the finite values of a metric by step."""
        return {
            row["step"]: row[name]
            for row in self.rows
            if is_number(row.get(name)) and (self.split is None or row.get("split") == self.split)
        }


class Charts:
    """The charts of a page. The page's script draws them."""

    def __init__(self, descriptions: Mapping[str, str]):
        """`descriptions` are the descriptions of metrics, by name."""
        self.drawn: dict[str, list[dict[str, Any]]] = {"curves": [], "planes": [], "matrices": []}
        self._descriptions = descriptions

    def add_curve(self, name: str, series: Sequence[Series]) -> str:
        """Adds a chart of a metric over the steps, and returns its HTML element.

        The result is "" if every series has fewer than two points, because the table shows single values.
        """
        found = [(one, points) for one in series if (points := _thinned(one.points(name)))]
        if not any(len(points) > 1 for _, points in found):
            return ""
        steps = sorted({step for _, points in found for step in points})
        self.drawn["curves"].append(
            {
                "labels": [one.label for one, _ in found],
                "colors": [one.color for one, _ in found],
                "dashed": [one.dashed for one, _ in found],
                "runs": [one.run for one, _ in found],
                "data": [steps, *([points.get(step) for step in steps] for _, points in found)],
            }
        )
        words = self._descriptions.get(name)
        about = "" if words is None else f"<p class=about>{escaped(words)}</p>"
        chart = f"<div data-curve={len(self.drawn['curves']) - 1}></div>"
        return f"<div class=chart><h3>{escaped(spaced(name))}</h3>{about}{chart}</div>"

    def add_plane(self, entry: Mapping[str, Any], label_names: Sequence[str]) -> str:
        """Adds a chart of the points over a plane, and returns its HTML element."""
        drawn = {name: entry[name] for name in ("rows", "columns", "points", "labels")}
        colors = class_colors(max(len(label_names), max(drawn["labels"], default=0) + 1))
        self.drawn["planes"].append({**drawn, "names": list(label_names), "colors": colors})
        return f"<div class=chart data-plane={len(self.drawn['planes']) - 1}></div>"

    def add_matrix(self, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
        """Adds a confusion matrix that is too large for a table, and returns its HTML element."""
        counts = [
            [label, predicted, count]
            for label, row in enumerate(confusion)
            for predicted, count in enumerate(row)
            if count
        ]
        self.drawn["matrices"].append({"names": list(names), "counts": counts})
        return f"<div class=matrix data-matrix={len(self.drawn['matrices']) - 1}></div>"


def _thinned(points: dict[int, float]) -> dict[int, float]:
    """Subsamples to at most `_MAX_POINTS` points, including the last point."""
    every = -(-len(points) // _MAX_POINTS)
    return dict(list(points.items())[::-1][::every][::-1]) if points else {}


def curves_section(curves: Sequence[str], about: str) -> str:
    """Returns the section with all curves."""
    if not any(curves):
        return ""
    legend = f"<p class=soft>{about} Move the pointer over a curve to read its values.</p>"
    return f"<h2>Curves</h2>{legend}<div class=charts>{''.join(curves)}</div>"


def descriptions(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Returns the descriptions of the metrics of these runs."""
    return METRIC_DESCRIPTIONS | {
        name: words for run in runs for name, words in run.task_info.metric_descriptions.items()
    }


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the metrics in these rows, with the metrics of the test split first."""
    tested = {name for row in rows if row.get("split") == "test" for name in row}
    names = {name for row in rows for name in row} - {"step", "split"}
    return sorted(names, key=lambda name: (name not in tested, name))
