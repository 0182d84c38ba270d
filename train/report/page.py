"""report.html: one self-contained page that shows a run, or compares several, made from what lies in their folders."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from train.config.flat import flatten
from train.report.metric_descriptions import METRIC_DESCRIPTIONS
from train.report.mistakes import read_mistakes
from train.report.pictures import class_colors, picture_path, read_pictures
from train.report.reproduce import command
from train.run.atomic import write_atomic
from train.run.files import METRICS, TIMING, format_duration, is_number, read_config_tree, read_lines
from train.run.folder import read_image_info
from w2jax.text import one_line

REPORT = "report.html"
_ASSETS = Path(__file__).parent / "assets"
_REFRESH = 15  # seconds after which a browser reads the page of a run that goes on again
_MOST = 2000  # points of a curve; of more, every so many are shown
_CLASSES = 30  # a confusion matrix of more cannot be read
_PAIRS = 20  # then these are listed instead

# The splits' colours on a run's own page.
_SPLITS = {"train": "#f58a1f", "test": "#2f6de1"}


class Run(NamedTuple):
    """What there is to show of a run folder."""

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    timing: list[dict[str, Any]]

    @property
    def steps(self) -> tuple[int, Any]:
        """(done, in all)."""
        run = self.config.get("run")
        total = run.get("steps") if isinstance(run, dict) else None
        return max((line["step"] for line in self.lines), default=0), total

    @property
    def model(self) -> str:
        """What kind of model it is."""
        model = self.config.get("model")
        return str(model.get("class", "")) if isinstance(model, dict) else ""

    @property
    def dataset(self) -> str:
        """What it is trained on."""
        data = self.config.get("data")
        return str(data.get("name", "")) if isinstance(data, dict) else ""

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        tests = [line for line in self.lines if line.get("split") == "test"]
        return {name: value for name, value in tests[-1].items() if name not in ("step", "split")} if tests else {}

    @property
    def is_finished(self) -> bool:
        """Whether its last step has been evaluated."""
        tests = [line["step"] for line in self.lines if line.get("split") == "test"]
        return bool(tests) and tests[-1] == self.steps[1]


def read_run(folder: Path) -> Run:
    """The run in that folder.

    Raises:
        UserError: if it is no run folder, or what it holds is damaged.
    """
    name = folder.resolve().name
    return Run(name, read_config_tree(folder), read_lines(folder / METRICS), read_lines(folder / TIMING))


def write_report(folder: Path) -> None:
    """Writes `report.html` into a run folder, from the metrics, pictures and mistakes that lie there."""
    write_atomic(folder / REPORT, run_page(folder))


def run_page(folder: Path) -> str:
    """The page of one run."""
    run = read_run(folder)
    done, total = run.steps
    state = "Finished" if run.is_finished else f"At step {done:,}"
    told = command(run.config)
    data = _Data()
    curves = [
        data.curve(name, [(split, color, False, run.lines, split) for split, color in _SPLITS.items()])
        for name in _names(run.lines)
    ]
    speed = [("train", _SPLITS["train"], False, run.timing, None)]
    curves.append(data.curve("examples_per_second", speed))
    body = (
        f"<p class=soft>{_text(f'{run.model} on {run.dataset}')}. "
        f"{state}{f' of {total:,} steps' if isinstance(total, int) else ''}.</p>"
        + ("" if told is None else f"<p>The command that makes it again:</p><pre>{_command(told)}</pre>")
        + f"<div class=results>{_table(_results(run))}</div>"
        + _charts(curves, "Train: means over the steps since the point before, on images as they are trained on.")
        + _mistakes(folder)
        + "".join(_picture(folder, name, about, data) for name, about in read_pictures(folder).items())
        + "<details><summary>Config</summary>"
        + _table({name: (str(value), "") for name, value in flatten(run.config).items()})
        + "</details>"
    )
    return _page(run.name, body, data, refresh=not run.is_finished)


def comparison(folders: Sequence[Path]) -> str:
    """A page that lays the curves of several runs over each other, and says in what their configs differ."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    colors = class_colors(len(runs))
    data = _Data()
    curves = [
        data.curve(
            name,
            [
                (f"{label} {split}", color, split == "train", run.lines, split)
                for run, label, color in zip(runs, labels, colors, strict=True)
                for split in _SPLITS
            ],
        )
        for name in _names([line for run in runs for line in run.lines])
    ]
    speed = [(label, color, False, run.timing, None) for run, label, color in zip(runs, labels, colors, strict=True)]
    curves.append(data.curve("examples_per_second", speed))
    results = [_results(run) for run in runs]
    configs = [flatten(run.config) for run in runs]
    shared = set.intersection(*map(set, configs)) - {"run.dir"}
    changed = {
        name: [str(config[name]) for config in configs]
        for name in sorted(shared)
        if any(config[name] != configs[0][name] for config in configs)
    }
    models = [run.model for run in runs]
    if len(set(models)) > 1:
        changed = {"model": models} | changed
    body = (
        "<h2>Results</h2>"
        + _columns(labels, {name: [one.get(name, ("", ""))[0] for one in results] for name in _in_order(results)})
        + "<h2>What differs</h2>"
        + (_columns(labels, changed) if changed else "<p>Nothing but the folder.</p>")
        + _charts(curves, "Dashed: on training batches. Solid: on the test images, and throughput.")
    )
    return _page(" · ".join(labels), body, data, refresh=False)


class _Data:
    """What the page's script draws."""

    def __init__(self):
        self.curves: list[dict[str, Any]] = []
        self.planes: list[dict[str, Any]] = []

    def curve(self, name: str, series: Sequence[tuple[str, str, bool, Sequence[Mapping[str, Any]], str | None]]) -> str:
        """A chart of a metric over the steps, each series by (label, color, is dashed, lines, split); "" if none is
        seen twice: one point is no curve, it stands in the table.
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
        about = f"<p class=about>{METRIC_DESCRIPTIONS[name]}</p>" if name in METRIC_DESCRIPTIONS else ""
        chart = f"<div data-curve={len(self.curves) - 1}></div>"
        return f"<div class=chart><h3>{_text(_words(name))}</h3>{about}{chart}</div>"

    def plane(self, about: Mapping[str, Any], names: Sequence[str]) -> str:
        """A chart of the points over a plane."""
        shown = {name: about[name] for name in ("rows", "columns", "points", "labels")}
        colors = class_colors(max(len(names), max(shown["labels"], default=0) + 1))
        self.planes.append({**shown, "names": list(names), "colors": colors})
        return f"<div class=chart data-plane={len(self.planes) - 1}></div>"


def _thinned(points: dict[int, float]) -> dict[int, float]:
    """At most `_MOST` of the points, the last among them."""
    every = -(-len(points) // _MOST)
    return dict(list(points.items())[::-1][::every][::-1])


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that stand in the lines, first those of the test split."""
    tested = {name for line in lines if line.get("split") == "test" for name in line}
    names = {name for line in lines for name in line} - {"step", "split"}
    return sorted(names, key=lambda name: (name not in tested, name))


def _results(run: Run) -> dict[str, tuple[str, str]]:
    """The table of a run: by what a row is called its value, and what that is in words."""
    rows = {
        f"test {_words(name)}": (f"{value:.4f}", METRIC_DESCRIPTIONS.get(name, ""))
        for name, value in run.scores.items()
        if is_number(value)
    }
    rows["steps"] = f"{run.steps[0]:,}", ""
    speeds, seconds = (
        [line[name] for line in run.timing if is_number(line.get(name))] for name in ("examples_per_second", "seconds")
    )
    if speeds and seconds:
        rows["examples per second"] = f"{median(speeds):,.0f}", METRIC_DESCRIPTIONS["examples_per_second"]
        rows["devices"] = str(run.timing[-1].get("devices", "")), ""
        rows["time to the last step"] = format_duration(seconds[-1]), "h:min:s"
    return rows


def _in_order(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows that any of the tables has."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _charts(curves: Sequence[str], about: str) -> str:
    if not any(curves):
        return ""
    told = f"<p class=soft>{about} Move over a curve to read it.</p>"
    return f"<h2>Curves</h2>{told}<div class=charts>{''.join(curves)}</div>"


def _picture(folder: Path, name: str, about: Mapping[str, Any], data: _Data) -> str:
    """A picture under its name; over a plane one moves."""
    caption = _text(about["caption"])
    kind = " class=on-white" if about.get("on_white") else ""
    content = base64.b64encode(picture_path(folder, name).read_bytes()).decode()
    image = f"<img{kind} alt='{caption}' src='{_png(content)}'>"
    if "points" in about:
        chart = data.plane(about, read_image_info(folder).label_names)
        image = f"<div class=plane>{chart}<canvas class=decoded></canvas>{image}</div>"
    return f"<h2>{_text(_words(name).capitalize())}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _mistakes(folder: Path) -> str:
    """The confusion matrix, or of many classes the pairs most often confused; and the worst mistakes."""
    found = read_mistakes(folder)
    if found is None:
        return ""
    known = read_image_info(folder).label_names

    def called(label: int) -> str:
        return _text(known[label] if label < len(known) else str(label))

    confusion = found["confusion"]
    count = len(confusion)
    if count <= _CLASSES:
        head = "".join(f"<th>{called(label)}" for label in range(count))

        def cell(label: int, said: int) -> str:
            times = confusion[label][said]
            part = 100 * sqrt(times / max(1, sum(confusion[label])))  # The root, so that a few can be seen too.
            return f"<td{' class=right' if said == label else ''} style='--part:{part:.1f}'>{times or ''}"

        rows = "".join(
            f"<tr><th>{called(label)}" + "".join(cell(label, said) for said in range(count)) for label in range(count)
        )
        shown = f"<div class='scroll confusion'><table><tr><th>is&nbsp;↓ said&nbsp;→{head}{rows}</table></div>"
    else:
        pairs = [(confusion[a][b], a, b) for a in range(count) for b in range(count) if a != b and confusion[a][b]]
        most = sorted(pairs, key=lambda pair: -pair[0])[:_PAIRS]
        cells = "".join(f"<tr><td>{called(a)}<td>{called(b)}<td>{times}" for times, a, b in most)
        shown = f"<div class=scroll><table><tr><th>is<th>said<th>times{cells}</table></div>"
    worst = "".join(
        f"<figure><img alt='test image {mistake['example']}' src='{_png(mistake['png'])}'>"
        f"<figcaption>is {called(mistake['label'])}, said {called(mistake['said'])} "
        f"({mistake['probability']:.0%})</figcaption></figure>"
        for mistake in found["worst"]
    )
    wrong = sum(map(sum, confusion)) - sum(confusion[label][label] for label in range(count))
    return (
        f"<h2>Confusion</h2>{shown}<h2>Worst mistakes</h2>"
        f"<p class=soft>{wrong:,} of {sum(map(sum, confusion)):,} test images are taken for another class"
        f"{'; the surest of them:' if worst else '.'}</p><div class=mistakes>{worst}</div>"
    )


def _page(title: str, body: str, data: _Data, refresh: bool) -> str:
    """The whole document. Nothing is loaded, and nothing runs but its own two scripts, whatever a text holds."""
    library, script = ((_ASSETS / name).read_text() for name in ("uPlot.iife.min.js", "page.js"))
    style = (_ASSETS / "uPlot.min.css").read_text() + (_ASSETS / "page.css").read_text()
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (library, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # "</script>" in a text must not end the data.
    values = json.dumps({"curves": data.curves, "planes": data.planes}).replace("<", "\\u003c")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        "<meta name=viewport content='width=device-width'>"
        + (f"<meta http-equiv=refresh content={_REFRESH}>" if refresh else "")
        + f"<title>{_text(title)}</title><style>{style}</style><h1>{_text(title)}</h1>{body}"
        f"<script type=application/json id=data>{values}</script>"
        f"<script>{library}</script><script>{script}</script></html>\n"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _table(rows: Mapping[str, tuple[str, str]]) -> str:
    """A row a name, with its value and what is to be said of it."""
    cells = "".join(
        f"<tr><td>{_text(name)}<td>{_text(value)}<td class=about>{_text(about)}"
        for name, (value, about) in rows.items()
    )
    return f"<div class=scroll><table>{cells}</table></div>"


def _columns(labels: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table with a column for each label."""
    head = "".join(f"<th>{_text(label)}" for label in labels)
    cells = "".join(f"<tr><td>{_text(k)}" + "".join(f"<td>{_text(v)}" for v in vs) for k, vs in rows.items())
    return f"<div class='scroll results'><table><tr><th>{head}{cells}</table></div>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _command(words: str) -> str:
    """A command in which a line ends before an option, not within its dashes."""
    first, *options = words.split(" --")
    return " ".join([_text(first), *(f"<span>--{_text(option)}</span>" for option in options)])


def _text(text: str) -> str:
    """Text of the user's as HTML, between tags or in an attribute."""
    return html.escape(one_line(text))


def _png(content: str) -> str:
    """A picture, in base 64, as an address that holds all of it."""
    return f"data:image/png;base64,{content}"
