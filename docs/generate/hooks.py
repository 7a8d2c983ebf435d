"""What mkdocs makes beside the pages that are written: the home page from README.md, the reference from the code."""

import re
from pathlib import Path

import api_pages
import cli_pages
import config_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
CONTRIBUTING = "contributing.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation: the generated pages, and the page on contributing where it has been written."""
    pages = {"CLI": list(cli_pages.pages()), "Python": list(api_pages.pages())}
    for section in config.nav:
        for entries in section.values():
            for at, entry in enumerate(entries):
                for name in pages.keys() & (entry.keys() if isinstance(entry, dict) else ()):
                    entries[at] = {name: pages[name]}
    if (Path(config.docs_dir) / CONTRIBUTING).exists():
        config.nav.append({"Contributing": CONTRIBUTING})
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """Where a page names README.md, as a reader of the repository finds it, the site has its home page."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./README\.md", r"](\1index.md", markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {"index.md": home(), **config_page.pages(), **cli_pages.pages(), **api_pages.pages()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def home() -> str:
    """README.md, its links as seen from docs/."""
    return re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text(encoding="utf-8"))
