"""Makes the README's picture: parts of a run's report side by side, as Chromium shows them.

    python -m train.vit
    python -m benchmarks.makers.report_picture runs/vit-sample docs/report.png

It needs the extra "test" (playwright) and Chromium on the PATH.
"""

import shutil
from pathlib import Path

import tyro

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# The page's sections by column, each named by the start of its title. "" is the beginning of the page.
_COLUMNS = [["", "Curves"], ["Confusion matrix", "Misclassified images"], ["Attention"]]
_FACTS = ["status", "model", "data", "devices", "versions"]  # the others depend on how busy the machine was
_ARRANGE = """([columns, facts]) => {
  const sections = [[]];
  for (const element of [...document.body.children]) {
    if (element.tagName === "H2") sections.push([]);
    sections.at(-1).push(element);
  }
  const title = section => section[0].tagName === "H2" ? section[0].textContent : "";
  document.body.replaceChildren(...columns.map(starts => {
    const div = document.createElement("div");
    for (const start of starts) {
      div.append(...sections.find(section => start ? title(section).startsWith(start) : !title(section)));
    }
    return div;
  }));
  for (const row of document.querySelectorAll(".facts tr")) row.hidden = !facts.includes(row.cells[0].textContent);
}"""
_STYLE = """
body { max-width: none; margin: 0; padding: 1rem 1.5rem; display: flex; gap: 2.5rem; }
body > div { flex: 1 1 0; min-width: 0; } h2 { margin-top: 1.2rem; } h2:first-child { margin-top: .6rem; }
.facts td, .facts th { padding-right: .6rem; } h2 + .soft:not(:has(+ .mistakes)) { display: none; }
.charts { grid-template-columns: 1fr; } .chart:nth-child(n + 2), .about, .results td:last-child { display: none; }
.mistakes { grid-template-columns: repeat(6, 1fr); } .mistakes figure:nth-child(n + 13) { display: none; }
figure img { max-height: 44rem; }
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
        page = browser.new_page(viewport={"width": 1560, "height": 900}, device_scale_factor=1.25)
        page.goto((run_dir.resolve() / "report.html").as_uri())
        page.evaluate(_ARRANGE, [_COLUMNS, _FACTS])
        page.add_style_tag(content=_STYLE)
        page.wait_for_timeout(500)
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    tyro.cli(main)
