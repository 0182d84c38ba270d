"""The training programs, such as `python -m train.vit`, and the programs for trained models."""

from w2jax.interrupt import exit_on_interrupt

exit_on_interrupt("train")  # before the imports, which take time

from train.process.malloc import restart_with_huge_pages  # noqa: E402
from train.process.streams import open_closed_streams  # noqa: E402

open_closed_streams()
restart_with_huge_pages()
