"""Lists the programs of this package: python -m train"""

import ast
import re
import sys
from pathlib import Path

from train.config.cli import run_main
from train.config.tasks import task_names
from train.process.errors import UserError
from w2jax.text import nearest

_FOLDER = Path(__file__).parent


def programs() -> dict[str, str]:
    """What each program does, by its name after `python -m train.`. The programs that train come first."""
    files = {path.stem: path for path in _FOLDER.glob("[a-z]*.py") if '__name__ == "__main__"' in path.read_text()}
    files |= {path.parent.name: path for path in _FOLDER.glob("*/__main__.py")}
    tasks = task_names()
    return {name: _about(files[name]) for name in [*tasks, *sorted(files.keys() - tasks)]}


def _about(path: Path) -> str:
    """The first sentence of the file's docstring, without the command."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0].split())
    sentence = re.sub(r"^python -m .*?: |: python -m .*", "", text).split(". ")[0].rstrip(".")
    return sentence[:1].upper() + sentence[1:]


def main() -> None:
    """Prints the list.

    Raises:
        UserError: there is an argument, such as the name of a program.
    """
    names = programs()
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        close = nearest(sys.argv[1], names)
        hint = f"Run python -m train.{close[0]}" if close else "Run python -m train for the list of programs"
        raise UserError(f"the program must be written as train.PROGRAM, got the argument {sys.argv[1]!r}. {hint}")
    width = max(map(len, names))
    print("usage: python -m train.PROGRAM [ARGUMENTS]\n")
    print("\n".join(f"  {name:{width}}  {about}" for name, about in names.items()))
    print("\nEach program explains its arguments: python -m train.PROGRAM --help")
    print("To convert weights of other libraries: python -m w2jax.convert --help")


if __name__ == "__main__":
    run_main(main)
