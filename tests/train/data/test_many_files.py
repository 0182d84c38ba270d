"""A dataset of more files than a process may open is read, and an error names the limit if even that is not enough."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tiny import COUNTS, prepare

from configs.base import Data
from train.data import open_source

FILES, LIMIT = 90, 48

# Reads a split in a process that may open `LIMIT` files. Prints the sum of its pixels, each weighted by its position.
READ = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
import json
import numpy as np
from configs.base import Data
from train.data import eval_batches, open_source
if __name__ == "__main__":
    source = open_source(Data(**json.loads(sys.argv[2])), "train")
    (batch,) = eval_batches(source, len(source), workers=int(sys.argv[3]))
    print(type(source).__name__, [int(x) for x in batch["image"].reshape(len(source), -1) @ np.arange(11 * 7 * 3)])
"""

# Opens a split. Then it allows no more open files than now.
REFUSE = """
import json, os, resource, sys
import numpy as np
from configs.base import Data
from train.data import open_source
from train.process.errors import UserError
source = open_source(Data(**json.loads(sys.argv[1])), "train")
source.gather(np.arange(5))
limit = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    source.gather(np.arange(5, 9))
except UserError as error:
    print(limit, error)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Config of the small dataset with `FILES` files of one training example each."""
    data_dir = tmp_path_factory.mktemp("many")
    folder = prepare(data_dir)
    (whole,) = folder.glob("*train*")
    reader = ArrayRecordReader(str(whole))
    records = [reader.read([index])[0] for index in range(COUNTS["train"])]
    reader.close()
    whole.unlink()
    for index in range(FILES):
        writer = ArrayRecordWriter(str(folder / f"tiny-train.array_record-{index:05}-of-{FILES:05}"), "group_size:1")
        writer.write(records[index % len(records)])
        writer.close()
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = ["1"] * FILES
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return Data(name="tiny", dir=str(data_dir))


def printed(program: Path | str, *arguments: object) -> str:
    root = Path(__file__).parents[3]
    words = ["-c", program] if isinstance(program, str) else [str(program)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, *words, *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory_limit", "workers", "kind"),
    [(1024, 0, "InMemorySource"), (0, 0, "StreamingSource"), (0, 2, "StreamingSource")],
)
def test_more_files_than_a_process_may_open_are_read(
    many: Data, tmp_path: Path, memory_limit: int, workers: int, kind: str
) -> None:
    images = open_source(many, "train").gather(np.arange(FILES))["image"]
    wanted = [int(x) for x in images.reshape(FILES, -1) @ np.arange(11 * 7 * 3)]
    (tmp_path / "read.py").write_text(READ)  # Worker processes import the program from its file.
    options = json.dumps(asdict(many) | {"memory_limit": memory_limit})
    assert printed(tmp_path / "read.py", LIMIT, options, workers) == f"{kind} {wanted}\n"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files in /proc")
def test_a_limit_that_is_too_low_is_named(many: Data) -> None:
    limit, error = printed(REFUSE, json.dumps(asdict(many) | {"memory_limit": 0})).strip().split(" ", 1)
    assert error == (
        f"dataset tiny, split train: the limit of open files must be higher, got {limit}. "
        f"Raise the hard limit: ulimit -Hn {4 * int(limit)}"
    )
