"""The notebooks run without changes, print true claims, and contain their cells' outputs."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
INSTALL = 2  # index of the install cell
SOLUTION = r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>\Z"

# For each number that a notebook prints: the text before the number, and its lower and upper bound.
CLAIMS = {
    "aae": [
        ("mean squared error of the reconstructions:", 0.0, 0.06),
        ("mean squared error of the mean image:", 0.065, 0.08),
        ("codes in the petal of their digit:", 0.7, 1.0),
    ],
    "attention": [
        ("largest difference from the equation:", 0.0, 1e-5),
        ("largest deviation of a row sum from 1:", 0.0, 1e-5),
        ("query 2 attends to no key, output: [", 0.0, 0.0),
        ("largest gradient from the future:", 0.0, 0.0),
        ("smallest gradient from the past:", 1e-4, 10.0),
        ("largest difference from torch:", 0.0, 1e-5),
        ("test accuracy │", 0.75, 1.0),
    ],
    "finetune": [
        ("step 350/350 test accuracy", 0.5, 1.0),
        ("step 100/100 test accuracy", 0.75, 1.0),
        ("largest difference from train.predict:", 0.0, 1e-5),
        ("test accuracy in JAX:", 0.6, 1.0),
        ("in torch:", 0.6, 1.0),
        ("largest difference of the losses:", 0.0, 1e-3),
    ],
    "from_pytorch": [
        ("largest difference of the outputs:", 0.0, 1e-5),
        ("largest difference of the weights:", 0.0, 1e-5),
        ("test accuracy in torch:", 0.6, 1.0),
        ("largest difference of the logits:", 0.0, 1e-4),
        ("test accuracy in torch, after training in JAX:", 0.88, 1.0),
    ],
    "lstm": [
        ("largest difference from the equations:", 0.0, 1e-5),
        ("largest difference from torch:", 0.0, 1e-5),
        ("right digit after  7 rows:", 0.05, 0.4),
        ("right digit after 28 rows:", 0.8, 1.0),
        ("test accuracy │", 0.88, 1.0),
    ],
    "quickstart": [
        ("test accuracy:", 0.75, 1.0),
        ("test accuracy by hand:", 0.7, 1.0),
        ("test accuracy │", 0.7, 1.0),
    ],
    "vit": [
        ("largest difference from the convolution:", 0.0, 1e-5),
        ("test accuracy:", 0.7, 1.0),
        ("logits with positions:", 0.1, 100.0),
        ("logits without positions:", 0.0, 1e-4),
    ],
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def committed(request):
    return request.param.stem, nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(outputs):
    encoded = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in encoded]


def kinds(cell):
    """Returns the type, stream name and MIME types of each output of a cell, in order."""
    return [[output.output_type, output.get("name"), sorted(output.get("data", {}))] for output in cell.outputs]


def exercises(cells):
    """Returns, for each exercise, the indices of its text, of the cell for the answer and of the check."""
    texts = [i for i, cell in enumerate(cells) if cell.source.startswith("### Exercise: ")]
    return [(text, text + 1, text + 2) for text in texts]


def with_solutions(cells):
    """Returns the cells and a set of indices: after each check, the solution of its exercise and the check again."""
    result, added, checks = [], set(), {check: text for text, _, check in exercises(cells)}
    for i, cell in enumerate(cells):
        result.append(cell)
        if i in checks:
            (solution,) = re.findall(SOLUTION, cells[checks[i]].source, re.DOTALL)
            result += [nbformat.v4.new_code_cell(source) for source in (solution, cell.source)]
            added |= {len(result) - 2, len(result) - 1}
    return result, added


def check_outputs(name, notebook):
    """Checks that pictures are not blank, printed numbers are within `CLAIMS`, and no cell failed or warned."""
    text = ""
    for cell in code_cells(notebook):
        drawn = pictures(cell.outputs)
        assert len(drawn) == len(re.findall(r"plt\.show\(|^Image\(", cell.source, re.MULTILINE)), cell.source
        for picture in drawn:
            assert np.asarray(picture.convert("L")).std() > 1, cell.source
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
        text += "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert any(pictures(cell.outputs) for cell in code_cells(notebook))
    for words, low, high in CLAIMS[name]:
        pattern = r"\s+".join(map(re.escape, words.split()))  # The columns of a table are padded.
        found = re.findall(pattern + r"\s*([\d.]+(?:e[+-]\d+)?)", text)
        assert found, words
        for number in found:
            assert low <= float(number) <= high, f"{words} {number}"


@pytest.mark.slow
def test_a_notebook_runs_and_gives_the_committed_outputs(committed, tmp_path):
    """Executes the notebook inside a clone. Its outputs must have the same types as the committed ones.

    A reader who copies the solutions into the notebook gets "correct" from each check.
    """
    name, notebook = committed
    for part in ("configs", "train", "w2jax"):  # a clone that the run folders are written to
        (tmp_path / part).symlink_to(ROOT / part)
    before = [kinds(cell) for cell in code_cells(notebook)]
    notebook.cells, added = with_solutions(notebook.cells)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"})
    answers = [notebook.cells.pop(i) for i in sorted(added, reverse=True)]
    assert [output.text for cell in answers for output in cell.outputs] == ["correct\n"] * (len(answers) // 2)
    check_outputs(name, notebook)
    assert notebook.cells[INSTALL].outputs == []
    assert [kinds(cell) for cell in code_cells(notebook)] == before


def test_the_committed_outputs_are_complete_and_true(committed):
    name, notebook = committed
    check_outputs(name, notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(not cell.metadata for cell in cells)


def test_the_exercises_have_a_solution_an_empty_answer_and_a_check(committed):
    _, notebook = committed
    found = exercises(notebook.cells)
    assert found
    assert sum("<details>" in cell.source for cell in notebook.cells) == len(found)
    for text, answer, check in found:
        (solution,) = re.findall(SOLUTION, notebook.cells[text].source, re.DOTALL)
        (defined,) = re.findall(r"^(?:def )?\w+", solution, re.MULTILINE)
        assert notebook.cells[answer].source.startswith(defined)
        (output,) = notebook.cells[check].outputs
        assert output.text.startswith("not yet: write your ")


@pytest.mark.parametrize("on_colab", [False, True])
def test_the_run_on_google_drive_is_in_its_folder_on_colab_only(on_colab, monkeypatch):
    """Runs the cell without its training, with a stand-in for Colab's module."""
    (cell,) = [
        cell for cell in nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", 4).cells if "/MyDrive" in cell.source
    ]
    mounted = []
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if on_colab:
        drive = SimpleNamespace(mount=mounted.append)
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    names = {"sys": sys, "Path": Path}
    exec(cell.source.replace("fit(kept, make_task);", ""), names)
    assert mounted == ["/content/drive"] * on_colab
    home = "/content/drive/MyDrive/w2jax" if on_colab else "runs"
    assert names["kept"].run.dir == f"{home}/kept"


def test_a_notebook_is_small(committed):
    name, _ = committed
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 400_000


def test_badge_and_clone_line_have_the_address_of_pyproject(committed):
    """All notebooks install the project in the same way."""
    name, notebook = committed
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    badge = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    assert f"({badge}/blob/main/notebooks/{name}.ipynb)" in notebook.cells[0].source
    install = notebook.cells[INSTALL].source
    assert re.findall(r"git clone .*(https://\S+) w2jax$", install, re.MULTILINE) == [address]
    assert install == nbformat.read(FILES[0], as_version=4).cells[INSTALL].source


RUN_CELL = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
done = InteractiveShell.instance().run_cell(sys.stdin.read())
print(json.dumps([os.getcwd(), type(done.error_in_exec).__name__]), file=sys.stderr)
"""


@pytest.mark.slow
def test_a_failed_install_is_tried_again_when_the_cell_runs_again(tmp_path):
    """On Colab, where the folder is empty at first. The first pip fails."""
    colab, programs = tmp_path / "colab", tmp_path / "programs"
    colab.mkdir()
    (programs / "pip").mkdir(parents=True)
    (programs / "pip" / "__init__.py").touch()
    (programs / "git").write_text("#!/bin/sh\nmkdir -p w2jax/train && touch w2jax/train/vit.py\n")
    (programs / "git").chmod(0o755)
    pip = "import os, sys\nos.getcwd() == {!r} and sys.argv[-1] == './w2jax[train]' or sys.exit(7)\nsys.exit({})"
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(programs)}
    environment |= {"IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONDONTWRITEBYTECODE": "1"}
    cell = nbformat.read(FILES[0], as_version=4).cells[INSTALL].source
    ends = []
    for status in (1, 1, 0):
        (programs / "pip" / "__main__.py").write_text(pip.format(str(colab), status))
        done = subprocess.run(
            [sys.executable, "-c", RUN_CELL],
            **{"cwd": colab, "env": environment, "input": cell, "capture_output": True, "text": True},
            check=True,
        )
        ends.append(json.loads(done.stderr.splitlines()[-1]))
    failed = [str(colab), "CalledProcessError"]
    assert ends == [failed, failed, [str(colab / "w2jax"), "NoneType"]]


def test_the_links_between_notebooks_lead_somewhere(committed):
    _, notebook = committed
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for linked in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (ROOT / "notebooks" / linked).is_file(), linked
