"""Take out of the notebooks what running them put in: outputs, counts, and the metadata of whoever ran them.

`python scripts/strip_notebooks.py` does it in place, to all notebooks of the site or to those that are named.
"""

import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(text: str) -> str:
    """The text of a notebook as it is kept: its cells with their ids and sources, and no more."""
    content: dict[str, Any] = json.loads(text)
    for cell in content["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    content["metadata"] = METADATA
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(NOTEBOOKS.glob("*.ipynb")):
        file.write_text(stripped(file.read_text(encoding="utf-8")), encoding="utf-8")
