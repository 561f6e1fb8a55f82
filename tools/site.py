"""Builds the site of the lessons from executed notebooks: `make site`.

    python -m tools.site [--executed DIR] [--output DIR]

Sphinx reads a folder that is written here: the pages of docs/ and data/, and the executed notebooks. A line stands in
these for each widget, which would ask a network for its scripts; the plain cell beside it says the same.
"""

import argparse
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat

from tools.run import ROOT, notebooks_of

WIDGET = "application/vnd.jupyter.widget-view+json"
IN_ITS_PLACE = "*Here the notebook has a box to type into, or sliders to move.*"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
TO_RUN = f"This page shows one run. To run it, change it and type into its boxes: [the notebook]({REPOSITORY})."


def stage(executed: Path, folder: Path) -> None:
    """Write into `folder` what Sphinx reads; refuses a notebook that was not executed, or a figure without words."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*"), *ROOT.glob("data/**/*")]:
        if path.suffix in {".md", ".png", ".svg"}:
            to = folder / (path.name if path.name == "index.md" else path.relative_to(ROOT))
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    for path in notebooks_of():
        if not (executed / path.name).exists():
            sys.exit(f"Stopped: {executed / path.name} is missing: make run ARGS=notebooks/{path.name}")
        notebook = prepared(nbformat.read(executed / path.name, as_version=4), path.name)
        for cell in notebook.cells:
            if cell.id == "guide-text":  # which technique when: on the front page too
                guide = re.search(r"\|.*\|", cell.source, re.DOTALL)[0]
                (folder / "guide.md").write_text(f"{guide}\n", encoding="utf-8")
        (folder / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, folder / "notebooks" / path.name)


def prepared(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """An executed notebook for a page: without widgets, with the words of its figures, solutions folded away."""
    notebook.metadata.pop("widgets", None)
    notebook.cells[0].source += f"\n\n{TO_RUN}"
    # The cell that the runner adds says nothing, unless the run had other parameters than the notebook.
    notebook.cells = [
        cell for cell in notebook.cells if not re.fullmatch(r"# Parameters\nresults_dir = .*\n?", cell.source)
    ]
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-cell")
        bundles = [output for output in cell.get("outputs", ()) if "data" in output]
        for output in (output for output in bundles if WIDGET in output.data):
            output.data = nbformat.from_dict({"text/markdown": IN_ITS_PLACE})
        figures = [output for output in bundles if "image/png" in output.data]
        words = [figure.metadata.get("image/png", {}).get("alt", "") for figure in figures]
        if not all(words):
            sys.exit(f"Stopped: the figure of cell {cell.id} has no words: make run ARGS=notebooks/{name}")
        if figures:
            cell.metadata["mystnb"] = {"image": {"alt": " ".join(words)}}
    return notebook


def build(executed: Path, output: Path) -> int:
    """Build the site into `output`; any warning of Sphinx is a failure, of which the return value tells."""
    from sphinx.cmd.build import main as sphinx  # here: a notebook that is missing is refused at once

    source, read = (output.with_name(f"{output.name}-{kind}") for kind in ("source", "read"))
    stage(executed, source)
    shutil.rmtree(output, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-E", "-d", read, "-c", ROOT / "docs", source, output]
    done = sphinx([str(option) for option in options])
    if not done:
        print(f"Open {output / 'index.html'}")
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__.partition("\n")[0])
    parser.add_argument("--executed", type=Path, default=ROOT / "results" / "executed", metavar="DIR")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site", metavar="DIR")
    options = parser.parse_args()
    sys.exit(build(options.executed, options.output))
