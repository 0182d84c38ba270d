"""No line of the project unpickles a file, runs text as code, calls a shell, or listens on the network."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("w2jax", "configs", "train") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {"dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "socketserver", "http.server", "xmlrpc.server"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"system", "popen", "mktemp", "extractall", "read_pickle", "Unpickler"}
LOADS = {"load": "pickle", "loads": "pickle", "socket": "socket", "create_server": "socket"}
# Called with anything else than these, they take a file's word for code or a text for a shell's.
MUST = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
MAY = {"shell": "False", "allow_pickle": "False"}


def problems(text):
    """What a text of Python does that no line here may do."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for name in (alias.name for alias in node.names):
                if {module, name, f"{module}.{name}"} & MODULES or LOADS.get(name, " ") == module or name in CALLS:
                    yield f"import {module} {name}"
        if isinstance(node, ast.Call):
            *owner, called = ast.unparse(node.func).split(".")
            if called in (CALLS if owner else BUILTINS) or owner == [LOADS.get(called)]:
                yield ast.unparse(node)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            name, value = MUST.get(ast.unparse(node.func), (None, None))
            if (name and options.get(name) != value) or any(options.get(n, v) != v for n, v in MAY.items()):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_project_does_what_a_hostile_file_could_use(path):
    assert list(problems(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        *("pickle.load(f)", "pickle.loads(b)", "from pickle import loads", "pickle.Unpickler(f).load()", "import dill"),
        *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "os.system(x)", "os.popen(x)"),
        *("subprocess.run(x, shell=True)", "subprocess.Popen(x, shell=y)", "tempfile.mktemp()", "tar.extractall(x)"),
        *("import yaml", "from yaml import load", "np.load(x)", "np.load(x, allow_pickle=True)", "torch.load(x)"),
        *("torch.load(x, weights_only=False)", "read_array(f, allow_pickle=True)", "import http.server"),
        *("socket.socket()", "socket.create_server(x)", "from http import server", "from socket import create_server"),
    ],
)
def test_such_a_line_is_found(line):
    assert list(problems(line))


def test_their_harmless_kin_are_not():
    harmless = [
        *("re.compile(x)", "lowered.compile()", "model.eval()", "json.loads(x)", "np.load(x, allow_pickle=False)"),
        *("run(x, shell=False)", "import pickle", "torch.load(x, weights_only=True)", "socket.gethostname()"),
    ]
    assert not list(problems("\n".join(harmless)))
