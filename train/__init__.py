"""The training programs, such as `python -m train.vit`, and the programs for trained models."""

from train.process.malloc import restart_with_huge_pages
from train.process.streams import open_closed_streams

open_closed_streams()
restart_with_huge_pages()
