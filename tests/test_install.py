"""The wheel carries all that a notebook opened alone needs, without a network; the address stands in one place."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest

from tools.new_notebook import TEMPLATE
from tools.offline_kit import build_wheel
from tools.run import ROOT, notebooks_of

NOTEBOOKS = notebooks_of()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
BADGES = re.compile(r"https://(?:colab\.research\.google|kaggle|mybinder)\.\w+/[^)\s\"]+")


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder outside the repository with the wheel installed, and nothing with it."""
    folder = tmp_path_factory.mktemp("alone") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True)
    return folder


def run_cells(source, folder, site, **environment):
    """Run cells as IPython does, in a folder with nothing in it but them; returns the lines that were printed."""
    (folder / "cells.ipy").write_text(source, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "HF_"))}
    environment = {**kept, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", **environment}
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "cells.ipy"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout.splitlines()


def test_wheel_carries_helpers_and_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in (ROOT / "data").rglob("*") if path.is_file() and path.parent != ROOT / "data"]
    wanted = {f"helpers/{path.name}" for path in (ROOT / "helpers").glob("*.py")}
    wanted |= {f"helpers/data/{path.relative_to(ROOT / 'data').as_posix()}" for path in data}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"helpers/data/helpdesk/train.jsonl", "helpers/data/language_model/model.safetensors"} <= wanted
    assert wheel.stat().st_size < 25e6
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Requires-Dist" not in metadata, "it must not upgrade what Colab and Kaggle have loaded"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_opened_alone_finds_helpers_and_data(path, site, tmp_path):
    cells = code_cells(path)
    number = next(number for number, cell in enumerate(cells) if "load_task(" in cell.source)
    assert any("parameters" in cell.metadata.get("tags", []) for cell in cells[:number])
    sources = [cell.source for cell in cells[: number + 1]]
    sources.append("print(helpers.__file__, helpers.hub.DATA, sep='\\n')")
    *_, package, data = run_cells("\n\n".join(sources), tmp_path, site)
    assert Path(package) == site / "helpers" / "__init__.py", "helpers of the repository were imported"
    assert Path(data) == site / "helpers" / "data"
    assert {file.name for file in tmp_path.iterdir()} <= {"cells.ipy", "results"}


def test_first_cell_installs_an_attached_wheel(wheel, tmp_path):
    """As on Kaggle without a network: a dataset with the wheel is attached, and `helpers` is not there yet."""
    attached = tmp_path / "kaggle" / "input" / "a-dataset"
    attached.mkdir(parents=True)
    (attached / wheel.name).write_bytes(wheel.read_bytes())
    hide = "import sys\nsys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in repr(finder)]\n"
    cell = code_cells(NOTEBOOKS[0])[0].source
    assert '"/kaggle' in cell
    cell = cell.replace('"/kaggle', f'"{(tmp_path / "kaggle").as_posix()}')
    target = tmp_path / "target"
    target.mkdir()
    pip = {"PIP_TARGET": str(target), "PIP_NO_INDEX": "1"}
    printed = run_cells(f"{hide}{cell}\nprint(helpers.__file__)", tmp_path, target, **pip)
    assert Path(printed[-1]) == target / "helpers" / "__init__.py"


def test_first_cells_are_equal_short_and_name_the_release():
    cells = {code_cells(path)[0].source for path in (*NOTEBOOKS, TEMPLATE)}
    assert len(cells) == 1
    lines = [line for line in cells.pop().splitlines() if line.strip()]
    assert len(lines) <= 6 and lines[-1] == "import helpers"
    assert f'    release = "git+{ADDRESS}@{TAG}"' in lines


def test_badges_appear_with_a_real_address_only():
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    texts += [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    links = [link for text in texts for link in BADGES.findall(text)]
    if "your_account" in ADDRESS:
        assert not links, "these lead nowhere until pyproject.toml names a real address"
    place = f"{ADDRESS.removeprefix('https://github.com/')}/blob/{TAG}/"
    assert all(place in link or (link.endswith(".svg") or f"/{TAG}?" in link) for link in links), links
