"""A small repository whose notebooks count as executed: each cell took a second, and nothing was run."""

import shutil
from pathlib import Path

import nbformat

from tools.run import ROOT, notebooks_of


def repository(root: Path) -> Path:
    """What tools/workshop.py reads, copied into `root`, with made-up executions."""
    for name in ("notebooks", "docs", "tools"):
        shutil.copytree(ROOT / name, root / name, dirs_exist_ok=True)
    folder = root / "results" / "executed"
    folder.mkdir(parents=True)
    for path in notebooks_of(root):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.metadata.papermill = {"duration": 1.0}
                cell.outputs = [nbformat.v4.new_output("stream", text="said")]
        injected = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(6, injected)
        nbformat.write(notebook, folder / path.name)
    return root
