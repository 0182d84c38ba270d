"""TAB completion of `python -m train.vit` and the other programs."""
