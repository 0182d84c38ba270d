"""For any texts, report.html shows each text literally, loads nothing, and runs only its own scripts."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train.report
from configs.vit import PRESETS
from train.report.mistakes import Predictions, write_mistakes
from train.report.page import write_report
from train.report.pictures import encode_picture, write_pictures
from train.run.folder import ImageInfo, RunFolder
from train.task import Grid, Plane, Scatter

ASSETS = Path(train.report.__file__).parent / "assets"
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'\"><svg onload='alert(1)'>",
    "</title></style></table><base href=//evil.example/>",
    "& &lt; &#60; ]]> --> <!-- {{x}} ${x}",
    "javascript:alert(1)",
    "right\u202eleft",
    "two\nlines\r\0\x1b[2J",
    "\udcff",
    "$\\frac$ _x_ ^ \\",
    "x" * 5000,
    "\u200b",
    "",
]
MEANT = {"html", "meta", "title", "style", "h1", "h2", "div", "table", "tr", "td", "img", "figure", "figcaption"}
MEANT |= {"details", "summary", "script", "h3", "p", "pre", "canvas", "th", "span", "bdi", "thead", "tbody"}


def seen(text):
    """Returns the text as a page shows it, with invisible characters as escape codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Page(HTMLParser):
    """What a browser reads from a page: its tags with their attributes, and the text in each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], {}
        self.feed(text)
        self.data = json.loads(self.texts["script"][0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)


def run_folder(path, **data):
    tiny = PRESETS["tiny"].config
    run = dataclasses.replace(tiny.run, dir=str(path))
    return RunFolder(dataclasses.replace(tiny, run=run, data=dataclasses.replace(tiny.data, **data)))


class Images:
    """A split of black images, with one class per text."""

    num_classes = len(HOSTILE)

    def gather(self, indices):
        return {"image": np.zeros((len(indices), 4, 4, 1), np.uint8)}

    def read_file_names(self, indices):
        return [HOSTILE[index] for index in indices]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns the folder and the page of a run in which these texts are at every possible place."""
    name = re.sub("[/\0]", "|", "".join(HOSTILE))[:200]
    folder = run_folder(tmp_path_factory.mktemp("runs") / name, name="".join(HOSTILE))
    line = dict.fromkeys(HOSTILE, 1.5)
    lines = [{"step": step, "split": split} | line for step in (2, 4) for split in ("train", "test")]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.record_data(ImageInfo((4, 4, 1), HOSTILE), {})
    labels = np.arange(len(HOSTILE))
    write_mistakes(folder.path, Predictions(labels, np.roll(labels, 1), np.full(len(labels), 0.5)), Images())
    cells = np.zeros((1, 1, 4, 4), np.float32)
    pictures = {f"cells_{i}": Grid(cells, text, (text,), (text,)) for i, text in enumerate(HOSTILE)}
    pictures["plane"] = Plane(cells, np.stack([labels, labels], 1) / 20.0, labels, HOSTILE[0])
    write_pictures(folder.path, pictures, HOSTILE)
    write_report(folder.path)
    return folder, Page((folder.path / "report.html").read_text(encoding="utf-8"))


def test_every_text_is_shown_literally(written):
    folder, page = written
    assert {tag for tag, _ in page.tags} == MEANT
    assert page.texts["h1"] == page.texts["title"] == [seen(folder.path.name)]
    captions = [text for text in page.texts["figcaption"] if not text.startswith("true ")]
    assert captions == [*[seen(text) for text in HOSTILE if text], seen(HOSTILE[0])]
    assert {f"test {seen(text).replace('_', ' ')}" for text in HOSTILE} <= set(page.texts["td"])
    assert (
        page.texts["td"].count(seen("".join(HOSTILE))) == 2
    )  # the name of the dataset, in the facts and in the config
    titles = {seen(text).replace("_", " ") for text in HOSTILE if text}
    assert set(page.texts["h3"]) == titles | {"learning rate"}
    # Every class has its row and column in the confusion matrix and a row of its recall. Every mistake has its file.
    assert all(page.texts["bdi"].count(seen(text)) == 6 for text in HOSTILE if text)
    assert all(page.texts["span"].count(seen(text)) == 2 for text in HOSTILE if text)  # labels of a picture
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alts[len(HOSTILE) :] == [*[seen(text) for text in HOSTILE], seen(HOSTILE[0])]
    (plane,) = page.data["planes"]
    assert plane["names"] == HOSTILE


def test_a_page_loads_and_allows_only_its_own_pictures_and_scripts(written):
    folder, page = written
    allowed = {"alt", "src", "class", "lang", "charset", "http-equiv", "content", "name", "style", "id", "type", "dir"}
    assert {name for _, attributes in page.tags for name in attributes} <= allowed | {"data-curve", "data-plane"}
    addresses = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(addresses) == 2 * len(HOSTILE) + 1
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", address) for address in addresses)
    assert not re.search(r"url\(|@import|expression", "".join(page.texts["style"]))
    styles = [attributes["style"] for _, attributes in page.tags if "style" in attributes]
    assert all(re.fullmatch(r"--part:\d+\.\d|--count:\d+", style) for style in styles)
    assert [tag for tag, _ in page.tags[:4]] == ["html", "meta", "meta", "meta"]
    policy = page.tags[2][1]  # the policy applies to everything after this tag
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules.pop("default-src") == "'none'" and rules.pop("img-src") == "data:"
    ours = [hashlib.sha256((ASSETS / name).read_bytes()).digest() for name in ("uPlot.iife.min.js", "page.js")]
    assert rules.pop("script-src").split() == [f"'sha256-{base64.b64encode(one).decode()}'" for one in ours]
    assert rules == {"style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
        {},
    ]
    pictures = {path.stem for path in (folder.path / "pictures").glob("*.png")}
    assert pictures == {f"cells_{i}" for i in range(len(HOSTILE))} | {"plane"}


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".", "", "a\\b", "a.b", "a\0b", "x" * 300, "<b>"])
def test_a_pictures_name_cannot_point_to_another_file(tmp_path, name):
    folder = run_folder(tmp_path / "run")
    (folder.path / "pictures").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="a picture's name must be"):
        write_pictures(folder.path, {name: Grid(np.zeros((1, 1, 4, 4), np.float32), "Cells.")}, [])
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_classes_do_not_change_a_pictures_size(tmp_path):
    labels = np.arange(len(HOSTILE))
    points = np.stack([labels, labels**2], axis=1).astype(np.float32)
    plain, hostile = (
        np.asarray(
            Image.open(io.BytesIO(encode_picture(Scatter(points, labels, points, None, ""), names))).convert("RGB")
        )
        for names in (["a"] * len(HOSTILE), HOSTILE)
    )
    assert hostile.shape == plain.shape and hostile.std() > 1
