"""The pages of the documents, and what their readers read: notebooks have their prose in cells."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "nvflare" / "README.md",
    *sorted(
        page
        for kind in ("*.md", "*.ipynb")
        for page in DOCS.rglob(kind)
        if not {"_build", ".ipynb_checkpoints"} & set(page.parts)
    ),
]
"""The READMEs, the pages of the site and its notebooks."""

NOTEBOOKS = [page for page in PAGES if page.suffix == ".ipynb"]


def cells(notebook: Path, kind: str) -> list[str]:
    """The texts of the cells of one kind, ``"markdown"`` or ``"code"``."""
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def text_of(page: Path) -> str:
    """The Markdown of a page; of a notebook, that of its cells."""
    if page.suffix == ".ipynb":
        return "\n\n".join(cells(page, "markdown"))
    return page.read_text(encoding="utf-8")
