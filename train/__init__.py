"""The training programs: `python -m train.vit` and its siblings."""

from train.process.malloc import restart_with_huge_pages

restart_with_huge_pages()
