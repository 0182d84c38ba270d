"""No line of the project unpickles a file, runs text as code, calls a shell, or listens on the network.

Only `train/report/serve.py` and `train/demo/serve.py` listen, by default to programs of the same machine
(`tests/train/report/test_serve.py`, `tests/train/demo/test_program.py`).

`ruff check` finds most such lines by its rules S and TID251 (pyproject.toml); `UNSAFE` finds the others.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Loading without the argument that forbids pickles, builtins that run text as code, and disabled ruff rules.
UNSAFE = re.compile(
    r"\bnp\.load\((?!.*allow_pickle=False)|\btorch\.load\((?!.*weights_only=True)|allow_pickle=(?!False)"
    r"|weights_only=(?!True)|(?<![\w.])(compile|__import__)\(|noqa:.*\b(S\d|TID)"
)
DANGEROUS = [
    *("pickle.load(f)", "pickle.loads(b)", "from pickle import loads", "pickle.Unpickler(f).load()", "import dill"),
    *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "os.system(x)", "os.popen(x)"),
    *("subprocess.run(x, shell=True)", "subprocess.Popen(x, shell=y)", "tempfile.mktemp()", "tar.extractall(x)"),
    *("import yaml", "from yaml import load", "np.load(x)", "np.load(x, allow_pickle=True)", "torch.load(x)"),
    *("torch.load(x, weights_only=False)", "read_array(f, allow_pickle=True)", "import http.server"),
    *("socket.socket()", "socket.create_server(x)", "from http import server", "from socket import create_server"),
]
HARMLESS = ["re.compile(x)", "lowered.compile()", "np.load(x, allow_pickle=False)", "torch.load(x, weights_only=True)"]


def test_no_file_has_an_unsafe_line():
    files = [path for folder in ("w2jax", "configs", "train") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50 and not [path for path in files if UNSAFE.search(path.read_text())]


def test_ruff_or_the_pattern_finds_each_dangerous_line():
    text = "\n".join(["import os, pickle, socket, subprocess, tarfile, tempfile", *DANGEROUS])
    command = [sys.executable, "-m", "ruff", "check", "--select", "S,TID251", "--output-format", "json"]
    command += ["--stdin-filename", "train/x.py", "-"]
    result = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
    by_ruff = {problem["location"]["row"] for problem in json.loads(result.stdout)}
    assert not [line for row, line in enumerate(DANGEROUS, 2) if row not in by_ruff and not UNSAFE.search(line)]
    assert not UNSAFE.search("\n".join(HARMLESS))
