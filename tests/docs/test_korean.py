"""The Korean pages have the same code, tables, numbers and links as the English pages."""

import re
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "README.ko.md", "docs/from-the-course.md": "docs/ko/from-the-course.md"}
ENGLISH = {korean: english for english, korean in PAGES.items()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"(?:^|[ \t]+)#(.*)", re.MULTILINE)
PAIRS = pytest.mark.parametrize("pages", [pytest.param(pair, id=pair[1]) for pair in PAGES.items()])


def both(pages, read):
    return [read((ROOT / page).read_text(), page) for page in pages]


def numbers(text):
    return sorted(re.findall(r"\d[\d,.]*\d|\d", text.replace("10억", "1 billion")))


def blocks(text, _):
    """The language, the code without comments, and the numbers in the comments of each block."""
    return [
        (language, COMMENT.sub("", code), [numbers(comment) for comment in COMMENT.findall(code)])
        for language, code in FENCE.findall(text)
    ]


def rows(text, _):
    return [numbers(row) for row in re.findall(r"^\|.*\|$", FENCE.sub("", text), re.MULTILINE)]


def sections(text, _):
    """The level of each heading, and the numbers in the prose below it."""
    prose = re.sub(r"\]\([^)]*\)|<https?:[^>]*>", "", FENCE.sub("", text))
    return [
        (len(level), set(numbers(below))) for level, below in re.findall(r"^(#+) (.*?)(?=^#|\Z)", prose, re.M | re.S)
    ]


def spans(text, _):
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def links(text, page):
    """The targets of all links, as paths from the root of the repository. A Korean page counts as its English page."""
    found = set(re.findall(r"\]\(([^)]+)\)|<(https?:[^>]+)>", FENCE.sub("", text)))
    targets = {link or bare for link, bare in found}
    paths = {target if "://" in target else normpath(join(dirname(page), target)) for target in targets}
    return {ENGLISH.get(path, path) for path in paths}


@PAIRS
@pytest.mark.parametrize("read", [blocks, rows, sections, spans, links])
def test_the_korean_page_has_what_the_english_page_has(pages, read):
    english, korean = both(pages, read)
    assert english
    assert korean == english


@PAIRS
def test_each_page_links_to_the_other_language_at_its_top(pages):
    english, korean = pages
    for page, other, name in ((english, korean, "한국어"), (korean, english, "English")):
        top = (ROOT / page).read_text().split("\n\n")[1]
        (target,) = re.findall(rf"\[{name}\]\(([^)]+)\)", top)
        assert normpath(join(dirname(page), target)) == other


@PAIRS
def test_every_paragraph_of_the_korean_page_is_korean(pages):
    """Headings, which may be a name, and the links at the top are not checked."""
    prose = FENCE.sub("", (ROOT / pages[1]).read_text())
    paragraphs = [p for p in prose.split("\n\n")[2:] if not re.match(r"\s*(#|</?details|!?\[!?\[|$)", p)]
    assert paragraphs and [p for p in paragraphs if not re.search("[가-힣]", p)] == []
