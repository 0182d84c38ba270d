"""Writes the table of formats in docs/convert.md, from the tables of the converter and the files of other libraries.

python -m benchmarks.makers.formats_table
"""

from pathlib import Path

import numpy as np

from benchmarks.pages import with_table
from w2jax.convert.files import read_weights
from w2jax.convert.layouts import Format
from w2jax.convert.load_save import describe, parameters_in
from w2jax.convert.schema import module_leaves
from w2jax.convert.state_dict import format_of
from w2jax.convert.vit_architecture import recognize
from w2jax.convert.vit_tables import FORMATS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "convert.md"
FIXTURES = ROOT / "tests" / "fixtures" / "vit"


def table() -> str:
    """Returns the table in Markdown: one row for each format of `--format`, in the converter's order."""
    read = {form.family: 0 for form in FORMATS}
    stored = dict.fromkeys(read, 0)
    folders = sorted(FIXTURES.iterdir())
    for folder in folders:
        form, _ = recognize(parameters_in(read_weights(folder).tensors)[0])
        read[form.family] += 1
        # The names do not depend on the number of heads, which some files do not contain.
        size = tuple(np.load(folder / "io.npz")["images"].shape[1:3])
        module, _ = describe(folder, num_heads=1, image_size=size)
        leaves = module_leaves(module)
        for family in stored:
            try:
                format_of(module, leaves, family)
            except ValueError:
                continue
            stored[family] += 1
    lines = [
        f"| `--format` | variants | files read | models stored, of {len(folders)} | activation and epsilon |",
        "|---|---|---|---|---|",
    ]
    for family in read:
        forms = [form for form in FORMATS if form.family == family]
        variants = ", ".join(f"`{form.name}`" for form in forms if form.name != family)
        lines.append(f"| `{family}` | {variants} | {read[family]} | {stored[family]} | {_defaults(forms)} |")
    return "\n".join(lines)


def _defaults(forms: list[Format]) -> str:
    defaults = dict.fromkeys(f"`{form.assumed['activation']}` {form.assumed['norm_eps']:g}" for form in forms)
    return " or ".join(defaults)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), "of formats", table()))
