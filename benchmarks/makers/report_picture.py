"""Makes the README's picture: parts of a run's report side by side, as Chromium shows them.

    python -m train.vit
    python -m benchmarks.makers.report_picture runs/vit-sample docs/report.png

It needs the extra "test" (playwright) and Chromium on the PATH.
"""

import shutil
from pathlib import Path

import tyro

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# The page's sections (0: title and results, 1: curves, 2: confusion matrix, 3: mistakes, 4: attention) by column.
_ARRANGE = """() => {
  const sections = [[]];
  for (const element of [...document.body.children]) {
    if (element.tagName === "H2") sections.push([]);
    sections.at(-1).push(element);
  }
  document.body.replaceChildren(...[[0, 1], [2, 3], [4]].map(column => {
    const div = document.createElement("div");
    div.append(...column.flatMap(section => sections[section]));
    return div;
  }));
}"""
_STYLE = """
body { max-width: none; margin: 0; padding: 1rem 1.5rem; display: flex; gap: 2.5rem; }
body > div { flex: 1 1 0; min-width: 0; } h2 { margin-top: 1.2rem; } h2:first-child { margin-top: .6rem; }
.charts { grid-template-columns: 1fr; } .chart:nth-child(n + 2), .about, .results td:last-child { display: none; }
.mistakes { grid-template-columns: repeat(6, 1fr); } .mistakes figure:nth-child(n + 13) { display: none; }
figure img { max-height: 43rem; }
"""


def main(run_dir: Path, out: Path, /) -> None:
    """Draws the report of a run as one picture.

    Args:
        run_dir: Folder of a finished run, with its report.html.
        out: PNG file to write.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1560, "height": 846}, device_scale_factor=1.25)
        page.goto((run_dir.resolve() / "report.html").as_uri())
        page.evaluate(_ARRANGE)
        page.add_style_tag(content=_STYLE)
        page.wait_for_timeout(500)
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    tyro.cli(main)
