"""A program continues without a reader of its output, and reports output that it cannot write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.process.errors import RunStopped
from train.process.streams import lasting

PROGRAM = """
import sys
from train.config.cli import run_main
def main():
    for line in range(20_000):
        print(line)
    open(sys.argv[1], "w").write("done")
run_main(main)
"""


def run(tmp_path, **streams):
    return subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "result")], **streams)


@pytest.mark.slow
def test_a_program_whose_reader_is_gone_ends_normally(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = run(tmp_path, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.slow
def test_a_program_that_cannot_write_its_output_says_so(tmp_path):
    with Path("/dev/full").open("wb") as full:
        process = run(tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == 1
    assert process.stderr == b"stopped: cannot write the output: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, closed):
    """Otherwise what a library prints would be written into that file."""
    module = "import os, sys\nfd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
    module += "print('out'); print('err', file=sys.stderr); os.write(fd, b'%d' % fd)"
    (tmp_path / "train_stub.py").write_text(module)
    command = f"{sys.executable} -c 'import train, train_stub' {tmp_path / 'file'} {closed}"
    subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})
    assert int((tmp_path / "file").read_text()) > 2


def test_a_training_loses_its_log_if_it_cannot_be_written(tmp_path):
    """The inner stream, which `run_main` made, would end the program."""
    with Path("/dev/full").open("w") as full:
        log = lasting(lasting(full), discard=True)
        log.write("text")
        log.flush()
        log.write("more")
        log.flush()


def test_output_that_is_incomplete_is_an_error_once(tmp_path):
    with Path("/dev/full").open("w") as full:
        output = lasting(full)
        output.write("text")
        with pytest.raises(RunStopped, match="cannot write the output: No space left on device"):
            output.flush()
        output.flush()
