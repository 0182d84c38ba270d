"""Makes a picture of docs/aae.md: the codes of test digits for each prior, without and with labels.

    python -m benchmarks.results aae-gaussian aae-gaussian-labels --seeds 0  # and so on, for all four priors
    python -m benchmarks.makers.priors_picture runs/results docs/priors.png

It needs the run folders of the eight rows.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from PIL import Image

PRIORS = ("gaussian", "mixture", "swiss_roll", "uniform")


def main(runs: Path, out: Path, /) -> None:
    """Puts the latent spaces of eight runs side by side.

    Args:
        runs: Folder of the runs with seed 0, as benchmarks.results writes them.
        out: PNG file to write.
    """
    figure, rows = plt.subplots(2, len(PRIORS), figsize=(16, 7.2), layout="constrained")
    for row, labels in zip(rows, ("", "_labels"), strict=True):
        for axes, prior in zip(row, PRIORS, strict=True):
            preset = prior + labels
            axes.imshow(Image.open(runs / f"aae-{preset.replace('_', '-')}-0" / "pictures" / "latent.png"))
            axes.set_title(preset)
            axes.axis("off")
    figure.savefig(out, dpi=80, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    tyro.cli(main)
