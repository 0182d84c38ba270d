"""Makes the picture of docs/demo.md: train.demo in Chromium, after a digit was drawn.

    python -m train.vit
    python -m benchmarks.makers.demo_picture runs/vit-sample docs/demo.png

It needs the extras "test" (playwright) and "demo", and Chromium on the PATH.
"""

import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks.makers.report_picture import CHROMIUM

# The corners of a 4, in a square of side 1: two lines.
_LINES = [[(0.42, 0.15), (0.28, 0.55), (0.72, 0.53)], [(0.6, 0.3), (0.56, 0.88)]]


def main(run_dir: Path, out: Path, /) -> None:
    """Draws a digit in the demo of a run, and takes a picture of the page.

    Args:
        run_dir: Folder of a finished run of a classifier of digits.
        out: PNG file to write.
    """
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "train.demo", str(run_dir), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program, sync_playwright() as playwright:
        address = (program.stdout.readline() if program.stdout else "").split()[1]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.goto(address)
        page.wait_for_selector(".drawing button:disabled")
        box = page.locator(".drawing canvas").bounding_box() or {}
        for (x, y), *others in _LINES:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.mouse.down()
            for x, y in others:
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=10)
            page.mouse.up()
            page.wait_for_timeout(1000)
        page.wait_for_selector(".classes")
        page.screenshot(path=out)
        browser.close()
        program.terminate()


if __name__ == "__main__":
    tyro.cli(main)
