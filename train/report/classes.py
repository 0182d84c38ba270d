"""What a report shows of a classifier: confusion matrix, precision and recall of each class, and the worst mistakes."""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from train.report.curves import Charts
from train.report.document import escaped, named, png_address, sortable
from train.report.mistakes import precision_and_recall

_MAX_TABLE = 30  # classes; a larger table is unreadable
_MAX_MATRIX = 200  # classes; a larger drawing has less than three pixels for each
_MAX_LETTERS = 3  # of a name above a column; longer names are written from top to bottom
_MAX_PAIRS = 20  # number of confused pairs that are listed

LabelName = Callable[[int], str]


def classes_sections(mistakes: Mapping[str, Any], names: Sequence[str], charts: Charts) -> str:
    """Returns the sections with a classifier's confusions and its most confident mistakes.

    Args:
        mistakes: what `read_mistakes` returned.
        names: the names of the classes. A class without a name has its number.
        charts: get the drawing of a large confusion matrix.
    """

    def label_name(label: int) -> str:
        return named(names[label] if label < len(names) else str(label))

    confusion = mistakes["confusion"]
    count = len(confusion)
    if count <= _MAX_TABLE:
        is_long = any(len(name) > _MAX_LETTERS for name in names)
        shown = "<h2>Confusion matrix</h2>" + _matrix(confusion, label_name, " names" if is_long else "")
    else:
        shown = ""
        if count <= _MAX_MATRIX:
            about = "Rows: true classes. Columns: predicted classes. Move the pointer over a cell to read it."
            all_names = [*names[:count], *map(str, range(len(names), count))]
            shown = f"<h2>Confusion matrix</h2><p class=soft>{about}</p>{charts.add_matrix(confusion, all_names)}"
        shown += "<h2>Most confused classes</h2>" + _confused_pairs(confusion, label_name)
    shown += "<h2>Precision and recall of each class</h2>" + _by_class(np.array(confusion), label_name)
    return shown + _worst(mistakes["worst"], confusion, label_name)


def _matrix(confusion: Sequence[Sequence[int]], label_name: LabelName, kind: str) -> str:
    """Returns the confusion matrix, with a row for each true label. `kind` is a class of the stylesheet."""
    labels = range(len(confusion))

    def cell(label: int, predicted: int) -> str:
        times = confusion[label][predicted]
        part = 100 * sqrt(times / max(1, sum(confusion[label])))  # The square root makes small counts visible too.
        return f"<td{' class=right' if predicted == label else ''} style='--part:{part:.1f}'>{times or ''}"

    head = "".join(f"<th>{label_name(label)}" for label in labels)
    rows = "".join(
        f"<tr><th>{label_name(label)}" + "".join(cell(label, predicted) for predicted in labels) for label in labels
    )
    return f"<div class='scroll confusion{kind}'><table><tr><th>true&nbsp;↓ predicted&nbsp;→{head}{rows}</table></div>"


def _confused_pairs(confusion: Sequence[Sequence[int]], label_name: LabelName) -> str:
    """Returns a table of the pairs of classes that are most often confused."""
    labels = range(len(confusion))
    pairs = [(confusion[a][b], a, b) for a in labels for b in labels if a != b and confusion[a][b]]
    most = sorted(pairs, key=lambda pair: -pair[0])[:_MAX_PAIRS]
    return sortable(
        ("true", "predicted", "test images"), [(label_name(a), label_name(b), f"{times:,}") for times, a, b in most]
    )


def _by_class(confusion: np.ndarray, label_name: LabelName) -> str:
    """Returns a table of the precision and recall of each class. Many classes are sorted by their recall."""
    precision, recall = precision_and_recall(confusion)
    about = "Precision: fraction of the images with this prediction that have this class. "
    about += "Recall: fraction of the images of this class that have this prediction."
    order, kind = range(len(confusion)), ""
    if len(confusion) > _MAX_TABLE:
        order, kind = [int(label) for label in np.argsort(recall, kind="stable")], "long"  # NaN comes last.
        about += " The lowest recall comes first. Click on a column's title to sort by it."

    def cell(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    rows = [(label_name(k), cell(precision[k]), cell(recall[k]), f"{confusion[k].sum():,}") for k in order]
    return f"<p class=soft>{about}</p>" + sortable(("class", "precision", "recall", "test images"), rows, kind)


def _worst(mistakes: Sequence[Mapping[str, Any]], confusion: Sequence[Sequence[int]], label_name: LabelName) -> str:
    """Returns the section with the most confident mistakes, each with its file, or else its number in the split."""

    def figure(mistake: Mapping[str, Any]) -> str:
        number = f"test image {mistake['example']:,}"
        return (
            f"<figure><img alt='{number}' src='{png_address(mistake['png'])}'>"
            f"<figcaption>true {label_name(mistake['label'])}, predicted {label_name(mistake['predicted'])} "
            f"({100 * mistake['probability']:.0f}&nbsp;%)"
            f"<span class=file><bdi dir=ltr>{escaped(mistake.get('file') or number)}</bdi></span></figcaption></figure>"
        )

    total = sum(map(sum, confusion))
    wrong = total - sum(confusion[label][label] for label in range(len(confusion)))
    about = f"{wrong:,} of {total:,} test images are misclassified."
    if mistakes:
        about += " The percentage is the probability of the predicted class. "
        about += (
            "Below it is the name of the file."
            if any("file" in mistake for mistake in mistakes)
            else "Below it is the number of the image in the test split, counted from 0."
        )
    return (
        f"<h2>Misclassified images, most confident first</h2><p class=soft>{about}</p>"
        f"<div class=mistakes>{''.join(map(figure, mistakes))}</div>"
    )
