"""What the README shows works."""

import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)
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
