"""Fonts for text in any script: the names of classes may be Korean, Arabic or Hindi."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Common fonts of Linux, macOS and Windows for scripts that matplotlib's own font lacks.
OTHERS = (
    *("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR", "NanumGothic", "UnDotum"),
    *("Apple SD Gothic Neo", "Hiragino Sans", "Malgun Gothic", "Microsoft YaHei", "Yu Gothic", "WenQuanYi Zen Hei"),
    *("Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Arial Unicode MS", "Unifont"),
)


@contextmanager
def fonts_for_any_script() -> Iterator[None]:
    """Lets matplotlib take each character from the first font of `families` that has it.

    If none has a character, matplotlib draws a box. Then this prints one line, once per process.
    """
    import matplotlib as mpl  # Late import: it takes 0.5 s, and a run needs it only at its end.

    with mpl.rc_context({"font.family": families()}), warnings.catch_warnings():
        warnings.filterwarnings("always", message="Glyph .* missing from")
        shown = warnings.showwarning

        def show(message: Any, *arguments: Any, **options: Any) -> None:
            if str(message).startswith("Glyph "):
                _print_note()
            else:
                shown(message, *arguments, **options)

        warnings.showwarning = show
        yield


@cache
def families() -> list[str]:
    """Returns matplotlib's own font and the installed ones of `OTHERS`."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHERS if name in installed)]


@cache
def _print_note() -> None:
    import matplotlib as mpl

    print(
        "note: the fonts that w2jax tries lack some characters of the class names, so pictures show boxes. Install a "
        "Noto Sans font for your writing system (CJK for Chinese, Japanese and Korean), then delete matplotlib's list "
        f"of fonts in {mpl.get_cachedir()}",
        file=sys.stderr,
    )
