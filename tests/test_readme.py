"""What the README and the pages beside it show works."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


BLOCKS = python_blocks("README.md")
SHAPES = re.compile(r"^(\w+), (\w+) = .*#.*?\[([\d, ]+)\](?:, (\d × )?\[([\d, ]+)\])?", re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_python_block_runs_and_gives_the_shapes_it_says(block):
    names: dict = {}
    exec(block, names)
    said = SHAPES.findall(block)
    assert said
    for first, second, first_shape, times, second_shape in said:
        assert str(list(names[first].shape)) == f"[{first_shape}]"
        value = names[second]
        if times:
            assert len(value) == int(times[0])
            value = value[0]
        assert str(list(value.shape)) == f"[{second_shape}]"


def test_the_page_on_weights_carries_the_courses_vit_over_as_it_says():
    names: dict = {}
    for block in python_blocks("docs/convert.md"):
        exec(block, names)
    np.testing.assert_allclose(names["logits"], names["expected"], rtol=1e-5, atol=1e-5)
    assert np.ptp(names["expected"]) > 0.1


def test_every_promise_of_the_page_on_reliability_is_held_by_a_test_that_exists():
    rows = re.findall(
        r"^\| (?!promise|---)(.*) \| (.*) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 30
    for promise, holders in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", holders)
        assert named, promise
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
