"""A metrics file never loses, duplicates or truncates a row."""

import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.loggers.jsonl import JsonLines, checksum
from train.process.errors import UserError
from train.run.files import read_lines


def test_a_file_resumed_at_a_step_drops_later_and_incomplete_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path, 0) as lines:
        for step in (1, 2, 3):
            lines.write(step=step, loss=1 / step)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    with JsonLines(path, 2) as lines:
        lines.write(step=3, loss=0.5)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.5}\n'


MANY_LISTS = '{"step": 1, "a": [' + "[]," * 200 + "[]]}"


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"split": "test"}', '{"step": "3"}', '{"step": true}', "\x00", "[" * 10**5, MANY_LISTS]
)
def test_an_invalid_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 must be a JSON object with a step"):
        read_lines(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(content)
        try:
            lines = read_lines(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(lines) == content.count(b"\n") and all(isinstance(line["step"], int) for line in lines)


def test_rows_that_a_full_disk_rejects_are_written_later(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonLines(tmp_path / "metrics.jsonl", 0) as lines:
        lines.write(step=1, x=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))  # the limit is inside the second row
        try:
            lines.write(step=2, x=2.0)
            lines.write(step=3, x=3.0)
            with pytest.raises(OSError):
                lines.sync()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lines.sync()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.replace(path.with_name("moved"))])
def test_a_file_that_someone_deletes_or_moves_is_written_again(tmp_path, harm):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path, 0) as lines:
        lines.write(step=1, x=1.0)
        lines.sync()
        harm(path)
        lines.write(step=2, x=2.0)
        lines.sync()
        lines.write(step=3, x=3.0)
        expected = lines.checksum
    rows = read_lines(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert checksum(rows) == expected == JsonLines(path, 3, writes=False).checksum
    assert checksum([*rows[:2], {"step": 3, "x": 3.5}]) != expected


def test_a_file_is_cut_only_when_it_is_opened_for_writing(tmp_path):
    """So a run that refuses timing.jsonl has not changed metrics.jsonl."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    lines = JsonLines(path, 1)
    assert lines.count == 1 and len(read_lines(path)) == 2
    with lines:
        assert len(read_lines(path)) == 1
