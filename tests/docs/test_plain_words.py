"""Phrases that readers had to read twice do not come back in Markdown, notebooks and sources. Each has a plain form."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("w2jax", "train", "configs", "benchmarks", "docs", "notebooks", "tests")

# A pattern of a phrase, and what to write instead. Where such words are right, the pattern leaves them out: Python's
# None, the word "Worth" in the title of the ViT paper, and "made by hand" as test data.
PLAIN = {
    r"\b(is|are|was|were|be|been) told\b": "the active form: pass, log, get, report",
    r"told (the same|apart)": "logged too; distinguished",
    r"\b(is|are|was|were) (asked|given) (for|at)\b": "the active form: you request, you pass",
    r"\b(is|are) said to be\b": "is",
    r"\basks? for\b": "needs, requests, requires",
    r"\b(goes|go|going|went|gone) on\b": "resume, continue",
    r"\bgoes before\b": "overrides",
    r"\b(a|one|each|every|per|last|first) go\b": "call, pass",
    r"\b(by|takes?|in) turns\b": "alternating, in turn",
    r"beside other work": "on a busy machine",
    r"\bfor nothing\b": "has no effect",
    r"\bof (its|their) own\b": "its own X, a separate X",
    r"\b(is|are) (?-i:worth)\b": "name the metric",
    r"takes? it up\b": "continue, resume",
    r"\b(is|are) (?-i:none)\b(?! of)": "is not a valid X; there is no X",
    r"\b(lies|lie|lay) (in|on|at|under|below|beside|between|there|where|behind)\b": "is in, is stored in",
    r"\bstands? in\b": "is in, is written in",
    r"\b(but for|all else)\b": "except for; everything else",
    r"\bto the (bit|number|letter)\b": "bit for bit; exactly",
    r"\bwithout a word\b": "silently, without a message",
    r"\bin silence\b": "silently",
    r"\b(by|of) (itself|themselves)\b": "automatically; alone",
    r"\bneed not\b": "you do not need to",
    r"\bwants\b": "needs, expects",
    r"\b(held|holds?|holding) .{0,30}\bagainst\b": "compare with, check against",
    r"\bwhoever\b": "if you",
    r"\bsays? so\b": "reports this, prints a message",
    r"\bput aside\b": "moved to",
    r"\bas good as\b": "equivalent to",
    r"\bare as many\b": "there are as many X as Y",
    r"\bin the plane\b": "two-dimensional",
    r"'s sake\b": "for, so that",
    r"\bto not\b": "turn this off with X",
    r"\bthe house\b": "the project, the code",
    r"\b(leave|leaves|left) .{0,30}\balone\b": "do not change X",
    r"\b(looked|looks) at once\b": "checked once",
    r"\bno longer whole\b|\b(is|are) whole\b": "complete, valid",
    r"\b(source|sources|kernel|array|arrays) made by hand\b": "hand-made, built in Python",
    r"\bwalked\b": "visited, traversed",
    r"\bthe other way round\b": "reversed, in the other order",
    r"\bof old\b|\bof late\b": "earlier, recently",
    # American spelling, also in names. An old name of an option is in the table that renames it.
    r"\w*(colour|favour|behaviour|neighbour|centr(e|es|ed|ing)(?![a-z])|labell(ed|ing)(?![-_]batch)|signall(ed|ing)"
    r"|modell(ed|ing)|cancell(ed|ing)|licence|grey(?![a-z])|artefact|judgement)": "the American spelling",
    r"\w*(recogn|normal|initial|standard|penal|minim|maxim|optim|synchron|organ|general|serial|summar|visual|util|real"
    r"|parametr|quant|regular|special|token|vector|factor|final|random|local|custom)is(e|ed|es|er|ers|ing|ation)"
    r"(?![a-z])": "the American spelling, with z",
}
FOUND = [(re.compile(pattern, re.IGNORECASE), plain) for pattern, plain in PLAIN.items()]


def texts():
    """The name and the text of each file that people read. The text of a notebook is the source of its cells."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.md"))
    for path in sorted(set(paths) - {Path(__file__)}):
        name = str(path.relative_to(ROOT))
        if path.suffix in (".md", ".py"):
            yield name, path.read_text()
        elif path.suffix == ".ipynb":
            yield name, "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


@pytest.mark.parametrize(("name", "text"), [pytest.param(*found, id=found[0]) for found in texts()])
def test_a_text_has_only_plain_phrases(name, text):
    """A phrase may run over the end of a line."""
    joined = re.sub(r"\s*\n\s*(?:#+ |> |- |\* )?", " ", text)
    found = [
        f"{joined[max(0, phrase.start() - 30) : phrase.end() + 20]!r}: write {plain}"
        for pattern, plain in FOUND
        for phrase in pattern.finditer(joined)
    ]
    assert not found, "\n".join(found)
