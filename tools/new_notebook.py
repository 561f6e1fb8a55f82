"""Writes a notebook from tools/template.ipynb, itself a notebook that runs: `make notebook NAME=05_ia3 TITLE="..."`."""

import re
import sys
from pathlib import Path

import nbformat

from tools.run import ROOT

TEMPLATE = ROOT / "tools" / "template.ipynb"


def new_notebook(name: str, title: str, folder: Path = ROOT / "notebooks") -> Path:
    """Write `folder/name.ipynb` with this title, its technique and name put in; an existing one is left as it is."""
    from helpers.scoreboard import TECHNIQUES

    path, technique = folder / f"{name}.ipynb", name[3:]
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name) or not title or path.exists():
        sys.exit(f"Stopped: {path.name!r}, title {title!r}: expected a new name like 05_ia3, and a title.")
    if technique not in TECHNIQUES:
        sys.exit(f"Stopped: give {technique!r} its row first, a line of TECHNIQUES in helpers/scoreboard.py.")
    notebook = nbformat.read(TEMPLATE, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("# Title", f"# {title}").replace('"lora"', f'"{technique}"')
        cell.source = re.sub(r"\btemplate\b", name, cell.source)
    nbformat.write(notebook, path)
    return path


if __name__ == "__main__":
    print(f"{new_notebook(*(sys.argv[1:] + ['', ''])[:2])}: CONTRIBUTING.md says what comes next.")
