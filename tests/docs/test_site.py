"""The docs site builds without warnings, loads nothing from other servers, and documents all of w2jax."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import griffe
import pytest

import w2jax
from benchmarks.makers.report_picture import CHROMIUM

ROOT = Path(__file__).parents[2]
# The public modules of w2jax. The names that `w2jax.convert` exports are added below.
ROOMS = (
    "aae",
    "attention",
    "blocks",
    "image_spec",
    "kernels.attention",
    "kernels.layer_norm",
    "kernels.lstm",
    "layer_norm",
    "lstm",
    "module",
    "pretrained",
    "priors",
    "recurrent",
    "rnn",
    "seq2seq",
    "sequence_classifiers",
    "transformer",
    "vit",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return site


@pytest.fixture(scope="module")
def library():
    return griffe.load(
        "w2jax",
        search_paths=[ROOT],
        docstring_parser="google",
        extensions=griffe.load_extensions(str(ROOT / "docs" / "_site" / "fields.py")),
    )


def public(place):
    """Yields the public members defined in a module or class, including `__call__` of Flax modules."""
    for name, member in place.members.items():
        if not member.is_alias and (not name.startswith("_") or name == "__call__") and name not in ("setup", "logger"):
            yield member
            if member.is_class:
                yield from public(member)


def fields(library, path):
    """Returns the fields in the table of a class's docstring, by name."""
    sections = library[path].docstring.parsed
    (table,) = [section for section in sections if section.title == "Fields:"]
    return {field.name: field for field in table.value}


def test_pages_load_nothing_from_other_servers(site):
    loaded = set()
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            loaded |= set(re.findall(r'(?:src|href)="([^"]+)"', tag))
    assert any("bundle" in place for place in loaded)
    assert [place for place in loaded if re.match(r"(https?:)?//", place)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text()), sheet


def test_links_of_the_readme_lead_to_the_site_or_the_repository(site):
    """Links lead to a page of the site if it exists, otherwise to the repository."""
    links = set(re.findall(r'href="([^"]+)"', (site / "index.html").read_text()))
    assert {"convert.html", "results.html", "benchmarks.html", "contributing.html", "use.html#the-run-folder"} <= links
    assert "https://github.com/w2jax/w2jax/blob/main/notebooks/quickstart.ipynb" in links
    assert 'src="report.png"' in (site / "index.html").read_text()
    assert 'href="scale.html"' in (site / "benchmarks.html").read_text()


def test_the_korean_pages_are_on_the_site(site):
    """Links to pages that are only in English lead there."""
    links = set(re.findall(r'href="([^"]+)"', (site / "ko" / "index.html").read_text()))
    assert {"from-the-course.html", "../index.html", "../convert.html", "../use.html#the-run-folder"} <= links
    assert 'href="../from-the-course.html"' in (site / "ko" / "from-the-course.html").read_text()
    assert 'href="ko/from-the-course.html"' in (site / "from-the-course.html").read_text()
    assert 'href="ko/index.html"' in (site / "index.html").read_text()


def test_solutions_are_folded_and_highlighted(site):
    for page in (site / "from-the-course.html", site / "ko" / "from-the-course.html"):
        solutions = re.findall(r"<details>(.*?)</details>", page.read_text(), re.DOTALL)
        assert len(solutions) == 13
        assert sum('class="highlight"' in solution for solution in solutions) == 12


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
@pytest.mark.parametrize(("words", "page"), [("stochastic depth", "DropPath"), ("어텐션", "수업 코드에서")])
def test_the_search_finds_pages_that_are_opened_from_disk(site, browser, words, page):
    """It loads nothing from other servers."""
    tab, elsewhere = browser.new_page(), []
    tab.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto((site / "index.html").as_uri())
    tab.locator(".md-search__input").click()
    tab.keyboard.type(words + " ")  # The theme waits for a key. Playwright inserts Korean letters without one.
    tab.locator(".md-search-result__item", has_text=page).first.wait_for()
    assert not elsewhere
    tab.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
def test_no_page_and_no_code_is_wider_than_a_phone(site, browser):
    tab, wide = browser.new_page(viewport={"width": 390, "height": 800}), []
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    for page in pages:
        tab.goto(page.as_uri())
        if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(page.name)
        codes = "[...document.querySelectorAll('pre > code')].filter(code => code.scrollWidth > code.clientWidth + 1)"
        wide += tab.evaluate(f"{codes}.map(code => code.innerText)")
    tab.close()
    assert len(pages) > 20 and wide == []


def test_the_reference_lists_everything_public(site, library):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    named = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    wanted = {f"w2jax.{name}" for name in w2jax.__all__ if name != "convert"}
    wanted |= {f"w2jax.convert.{name}" for name in w2jax.convert.__all__}
    wanted |= {thing.path for room in ROOMS for thing in public(library[room]) if not thing.is_attribute}
    assert len(wanted) > 60
    assert wanted - named == set()


def test_every_public_function_class_and_field_is_documented(library):
    silent = []
    for room in ROOMS:
        for thing in public(library[room]):
            if thing.is_class or thing.is_function:
                silent += [] if thing.docstring else [thing.path]
            if thing.is_class and (tables := [x for x in thing.docstring.parsed if x.title == "Fields:"]):
                silent += [f"{thing.path}.{field.name}" for field in tables[0].value if not field.description]
    assert silent == []


def test_the_table_of_fields_includes_inherited_fields(library):
    """The table has their types, defaults and comments."""
    lstm = fields(library, "lstm.LSTM")
    assert list(lstm)[:2] == ["hidden_size", "num_layers"] and list(lstm)[-1] == "proj_size"
    assert lstm["dropout"].description == "Dropout rate on the output of every layer except the last."
    assert (str(lstm["dropout"].annotation), str(lstm["dropout"].value)) == ("float", "0.0")
    assert lstm["hidden_size"].value is None
    assert "y" not in fields(library, "aae.Code") and "z" in fields(library, "aae.Code")
    assert fields(library, "convert.load_save.Loaded")["notes"].description == "Other messages for the user."
