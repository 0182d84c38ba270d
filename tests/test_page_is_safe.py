"""report.html shows every text as it is, loads nothing and runs nothing, whatever the texts hold."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from configs.vit import PRESETS
from train.report.page import write_page
from train.report.pictures import png, write_pictures
from train.run_folder import RunFolder
from train.task import Grid, Scatter

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
MEANT |= {"details", "summary"}


def seen(text):
    """The text as a page has it: what cannot be seen by its number."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and the text in each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)


def run_folder(path, **data):
    tiny = PRESETS["tiny"]
    run = dataclasses.replace(tiny.run, dir=str(path))
    return RunFolder(dataclasses.replace(tiny, run=run, data=dataclasses.replace(tiny.data, **data)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder and the page of a run in which those texts stand wherever a text can stand."""
    name = re.sub("[/\0]", "|", "".join(HOSTILE))[:200]
    folder = run_folder(tmp_path_factory.mktemp("runs") / name, name="".join(HOSTILE))
    line = dict.fromkeys(HOSTILE, 1.5)
    lines = [{"step": step, "split": split} | line for step in (2, 4) for split in ("train", "test")]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = np.zeros((1, 1, 4, 4), np.float32)
    pictures = {f"cells_{i}": Grid(cells, text) for i, text in enumerate(HOSTILE)}
    write_pictures(folder, pictures, HOSTILE)
    write_page(folder, pictures)
    return folder, Page(folder.report.read_text(encoding="utf-8"))


def test_a_text_is_shown_as_it_is_wherever_it_stands(written):
    folder, page = written
    assert {tag for tag, _ in page.tags} == MEANT
    assert page.texts["h1"] == page.texts["title"] == [seen(folder.path.name)]
    assert page.texts["figcaption"] == [seen(text) for text in HOSTILE if text]
    assert {f"test {seen(text)}" for text in HOSTILE} <= set(page.texts["td"])
    assert page.texts["td"].count(seen("".join(HOSTILE))) == 1  # the dataset's name in the config
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    curves, captions = alts[: len(HOSTILE)], alts[len(HOSTILE) :]
    assert sorted(curves) == sorted(f"{seen(text)} by step" for text in HOSTILE)
    assert captions == [seen(text) for text in HOSTILE]


def test_a_page_forbids_and_asks_for_nothing_but_its_own_pictures(written):
    folder, page = written
    allowed = {"alt", "src", "class", "lang", "charset", "http-equiv", "content", "name"}
    assert {name for _, attributes in page.tags for name in attributes} <= allowed
    addresses = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(addresses) == 2 * len(HOSTILE)
    assert all(re.fullmatch(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+", address) for address in addresses)
    assert not re.search(r"url\(|@import|expression", "".join(page.texts["style"]))
    assert [tag for tag, _ in page.tags[:4]] == ["html", "meta", "meta", "meta"]
    policy = page.tags[2][1]  # it counts for what stands behind it
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules.pop("default-src") == "'none'" and rules.pop("img-src") == "data:"
    assert rules == {"style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'"}
    assert sorted(path.stem for path in folder.pictures.iterdir()) == sorted(f"cells_{i}" for i in range(len(HOSTILE)))


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".", "", "a\\b", "a.b", "a\0b", "x" * 300, "<b>"])
def test_a_pictures_name_leads_nowhere_else(tmp_path, name):
    folder = run_folder(tmp_path / "run")
    folder.pictures.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="a picture is named by"):
        write_pictures(folder, {name: Grid(np.zeros((1, 1, 4, 4), np.float32), "Cells.")}, [])
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_classes_leave_a_picture_its_size(tmp_path):
    labels = np.arange(len(HOSTILE))
    points = np.stack([labels, labels**2], axis=1).astype(np.float32)
    plain, hostile = (
        np.asarray(Image.open(io.BytesIO(png(Scatter(points, labels, points, None, ""), names))).convert("RGB"))
        for names in (["a"] * len(HOSTILE), HOSTILE)
    )
    assert hostile.shape == plain.shape and hostile.std() > 1
