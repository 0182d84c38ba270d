"""The version of the project is the same in every file that states it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_states_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (cited, changed and changed[1]) == ([version], version)
