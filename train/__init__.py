"""The training programs, such as `python -m train.vit`, and the programs for trained models."""

from train.process.malloc import restart_with_huge_pages

restart_with_huge_pages()
