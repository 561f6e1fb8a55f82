"""Writes the repository's address into the notebooks and the README: `make links`.

pyproject.toml is the one place where the address and the release are written. From there they go into
each notebook's badges and first cell, and into the README's table; `outdated()` tells what differs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGE_LINE = r"\[!\[Open (?:this notebook )?in .*"  # a line of badges

# Fetches no more than it must: on Colab a notebook is opened alone, on Kaggle perhaps without a network.
FIRST_CELL = """
import sys
from pathlib import Path
from urllib.request import urlopen

REPOSITORY, TAG = "{repository}", "{tag}"
near = [folder / "start_notebook.py" for folder in (Path.cwd(), *Path.cwd().parents)]
program = next((path for path in near if path.exists()), None)
program = program or next(Path("/kaggle/input").rglob("start_notebook.py"), near[0])
if not program.exists():  # only this notebook is here: fetch one small file, which fetches the rest
    url = f"https://raw.githubusercontent.com/{{REPOSITORY}}/{{TAG}}/start_notebook.py"
    try:
        program.write_bytes(urlopen(url, timeout=20).read())
    except OSError as error:
        advice = "No network? On Kaggle turn on Internet, or use Add Input with a dataset that holds the repository; "
        advice += "on a laptop open the notebook inside the repository or the offline kit."
        advice = "There is no such repository or release." if getattr(error, "code", 0) == 404 else advice
        raise RuntimeError(f"{{url}}: {{error}}. {{advice}}") from None
sys.path.insert(0, str(program.parent))

import start_notebook

root = start_notebook.start(REPOSITORY, TAG)
""".strip()


def address(root: Path = ROOT) -> tuple[str, str]:
    """ "owner/name" of the repository on GitHub, and the tag of the release, from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", project["urls"]["Repository"])
    if repository is None:
        raise ValueError(f"{root / 'pyproject.toml'}: Repository must be https://github.com/owner/name.")
    return repository[1], f"v{project['version']}"


def badges(notebook: str, repository: str, tag: str, *, what: str = "this notebook") -> str:
    """One line of Markdown: the badges of Colab, Kaggle (with a T4 chosen) and Binder for `notebooks/<notebook>`."""
    path = f"{repository}/blob/{tag}/notebooks/{notebook}"
    links = {
        f"Open {what} in Colab": (
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{path}",
        ),
        f"Open {what} in Kaggle": (
            "https://kaggle.com/static/images/open-in-kaggle.svg",
            f"https://kaggle.com/notebooks/welcome?src=https://github.com/{path}&accelerator=nvidiaTeslaT4",
        ),
        f"Open {what} in Binder": (
            "https://mybinder.org/badge_logo.svg",
            f"https://mybinder.org/v2/gh/{repository}/{tag}?labpath=notebooks/{notebook}",
        ),
    }
    return " ".join(f"[![{alt}]({image})]({link})" for alt, (image, link) in links.items())


def linked(path: Path, repository: str, tag: str) -> str:
    """The text that the file should have."""
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        title = re.sub(rf"^{BADGE_LINE}\n\n", "", notebook.cells[0].source, flags=re.MULTILINE)
        heading, rest = title.split("\n\n", 1)
        notebook.cells[0].source = f"{heading}\n\n{badges(path.name, repository, tag)}\n\n{rest}"
        setup = next(cell for cell in notebook.cells if cell.id == "setup")
        setup.source = FIRST_CELL.format(repository=repository, tag=tag)
        return nbformat.writes(notebook) + "\n"
    text = path.read_text(encoding="utf-8")

    def row(match: re.Match) -> str:
        name = match[1]
        return (
            f"| [{name}](notebooks/{name}.ipynb) | {match[2]} | {badges(f'{name}.ipynb', repository, tag, what=name)} |"
        )

    return re.sub(r"^\| \[(0\d_\w+)\]\(notebooks/\S+\) \| ([^|]+) \| .* \|$", row, text, flags=re.MULTILINE)


def outdated(root: Path = ROOT) -> dict[Path, str]:
    """Each file that does not say what pyproject.toml says, with the text it should have."""
    repository, tag = address(root)
    paths = [*sorted((root / "notebooks").glob("[0-9]*.ipynb")), root / "README.md"]
    wanted = {path: linked(path, repository, tag) for path in paths}
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}


def main() -> int:
    for path, text in outdated().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
