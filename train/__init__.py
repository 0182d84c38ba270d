"""The training programs: `python -m train.vit` and its siblings."""

from train.allocator import begin_with_huge_pages

begin_with_huge_pages()
