"""Writes a folder with which a laptop sets up and runs the notebooks without a network: `make offline-kit`.

The wheels in it fit one kind of machine: the system, processor and Python that made them, which its name says.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.run import ROOT, NotebookError
from tools.workshop import write_workshop

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
INSTALL = "-m pip --isolated install --no-index --find-links wheels -r requirements.txt fine-tuning-techniques"
START_SH = f"""\
#!/bin/sh
# Sets up once, without a network, then opens JupyterLab. Or: sh start.sh -m tools.run
cd "$(dirname "$0")" || exit 1
if [ ! -f .venv/.done ]; then
    python{PYTHON} -m venv .venv || {{ echo "This kit needs Python {PYTHON}: install it, start again." >&2; exit 1; }}
    .venv/bin/python {INSTALL} || exit 1
    touch .venv/.done
fi
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
[ $# -gt 0 ] || set -- -m jupyterlab notebooks
exec .venv/bin/python "$@"
"""
START_BAT = f"""\
@echo off
rem Sets up once, without a network, then opens JupyterLab. Or: start.bat -m tools.run
cd /d "%~dp0"
if exist .venv\\.done goto start
py -{PYTHON} -m venv .venv || (echo This kit needs Python {PYTHON} with its launcher. & pause & exit /b 1)
.venv\\Scripts\\python {INSTALL} || (pause & exit /b 1)
type nul > .venv\\.done
:start
set HF_HUB_OFFLINE=1
set OMP_WAIT_POLICY=PASSIVE
if "%~1"=="" (.venv\\Scripts\\python -m jupyterlab notebooks) else (.venv\\Scripts\\python %*)
"""
# For the room: a double click opens the student copies.
ROOM_SH = '#!/bin/sh\nexec sh "$(dirname "$0")/start.sh" -m jupyterlab workshop/student\n'
ROOM_BAT = '@"%~dp0start.bat" -m jupyterlab workshop\\student\n'


def build_wheel(folder: Path, root: Path = ROOT) -> Path:
    """Build the project's wheel into `folder`; of a copy, because setuptools packs what an older build/ left."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in (root / "pyproject.toml", *root.glob("LICENSE*")):
            shutil.copy(path, scratch)
        for name in ("helpers", "data"):
            shutil.copytree(root / name, Path(scratch, name), ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(folder), scratch], check=True)
    return next(folder.glob("fine_tuning_techniques-*.whl"))


def write_kit(folder: Path, root: Path = ROOT) -> Path:
    """Write the kit into `folder`, in place of an older one for the same kind of machine."""
    kit = folder / f"fine-tuning-techniques-{platform.system()}-{platform.machine()}-python{PYTHON}".lower()
    shutil.rmtree(kit, ignore_errors=True)
    for name in ("data", "notebooks", "tools"):
        shutil.copytree(root / name, kit / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for path in (root / "requirements.txt", root / "README.md", *root.glob("LICENSE*")):
        shutil.copy(path, kit)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    subprocess.run([*download, "--dest", str(kit / "wheels"), "-r", str(kit / "requirements.txt")], check=True)
    build_wheel(kit / "wheels", root)
    texts = {"start.sh": START_SH, "start.command": START_SH, "start.bat": START_BAT}
    try:
        write_workshop(kit / "workshop", root)
        texts |= {"workshop.sh": ROOM_SH, "workshop.command": ROOM_SH, "workshop.bat": ROOM_BAT}
    except NotebookError as error:  # the kit is whole for readers, and a host is told
        print(f"Without the copies for a workshop: {error}")
    for name, text in texts.items():
        (kit / name).write_text(text, encoding="utf-8", newline="\r\n" if name.endswith(".bat") else "\n")
        (kit / name).chmod(0o755)
    return kit


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.offline_kit", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "offline-kit", help="default: offline-kit")
    kit = write_kit(parser.parse_args().folder)
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file()) / 1e6
    print(f"{kit}\n{size:,.0f} MB. To check it, copy it and run there: sh start.sh -m tools.run")
