"""The table of formats in the guide is the one that its program makes."""

import pytest

from benchmarks.makers.formats_table import PAGE, table
from benchmarks.pages import with_table


@pytest.mark.slow
def test_the_guide_has_the_table_that_the_program_makes():
    page = PAGE.read_text()
    assert page.count("| `open_clip` |") == 1
    assert page == with_table(page, "of formats", table())
