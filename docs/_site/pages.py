"""An mkdocs hook that adds Markdown files outside docs/ as pages. Their links work as on GitHub."""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    "README.md": "index.md",
    "README.ko.md": "ko/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files, config):
    """Adds the files outside docs/ as pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replaces each link to a file of the repository by a link to its page, or to GitHub if it has no page."""
    here = page.file.src_uri
    folder = dirname(SOURCES.get(here, f"docs/{here}"))

    def place(match):
        target = normpath(join(folder, match[1]))
        if not (ROOT / target).exists():
            return match[1]
        if target in PAGES or target.startswith("docs/"):
            return relpath(PAGES.get(target, target.removeprefix("docs/")), dirname(here) or ".")
        return f"{config.extra['repository']}/blob/main/{target}"

    return LINK.sub(place, markdown)
