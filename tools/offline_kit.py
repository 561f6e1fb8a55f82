"""Writes a folder with which a laptop sets up and runs the notebooks without a network: `make offline-kit`.

    python -m tools.offline_kit [--folder offline-kit] [--check [NOTEBOOK ...]]

The kit holds the last commit, a wheel of every package of requirements.txt, and a start script for
Linux, macOS and Windows. The wheels fit one kind of machine: the system, processor and Python that
made them, which the folder's name says. The laptop needs that Python, and nothing else.

`--check` installs a copy of the kit and runs notebooks in it, where Linux allows it with no network
interface at all, elsewhere with pip's index switched off.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.links import address
from tools.run_notebooks import ROOT

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# The settings of a laptop's own pip (a company's index, say) must not get in the way, so its file is left out. The
# wheels are named from the repository, where pip runs: a whole path may hold a space, at which pip would cut it.
START_SH = """\
#!/bin/sh
# Sets up once, without a network, then opens JupyterLab. Or: ./{name} run, ./{name} test
cd "$(dirname "$0")/repository" || exit 1
export PIP_NO_INDEX=1 PIP_FIND_LINKS=../wheels PIP_CONFIG_FILE=/dev/null HF_HUB_OFFLINE=1
unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL
for python in python{python} python3 python; do
    if "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{python}")' 2>/dev/null; then
        if [ $# -eq 0 ]; then set -- lab; fi
        exec "$python" tools/project.py "$@"
    fi
done
echo "Stopped: this kit needs Python {python}, and none is on PATH. Install it, then start again." >&2
exit 1
"""
START_BAT = """\
@echo off
rem Sets up once, without a network, then opens JupyterLab. Or: start.bat run, start.bat test
cd /d "%~dp0repository" || exit /b 1
set PIP_NO_INDEX=1
set PIP_FIND_LINKS=..\\wheels
set PIP_CONFIG_FILE=nul
set PIP_INDEX_URL=
set PIP_EXTRA_INDEX_URL=
set HF_HUB_OFFLINE=1
set DO=%*
if "%DO%"=="" set DO=lab
py -{python} -c "" 2>nul
if errorlevel 1 (
    echo Stopped: this kit needs Python {python}. Install it with the py launcher, then start again.
    pause
    exit /b 1
)
py -{python} tools\\project.py %DO%
if errorlevel 1 pause
"""
READ_ME = """\
Fine-tuning techniques, hands on: the kit for a room without a network

For {machine} with Python {python}. Copy this folder to your disk, then start:

    Linux, macOS    sh start.sh          (macOS: or double-click start.command)
    Windows         start.bat

The first start sets up for a minute or two, and takes 2.2 GB more; then JupyterLab opens. "sh start.sh run" executes
all notebooks, "sh start.sh test" runs the tests. Nothing is fetched: the packages are in wheels/, the encoder is one
of them, the data and a small language model are in repository/.
"""


def machine() -> str:
    """The kind of machine that wheels fit: "linux-x86_64-python3.11"."""
    return f"{platform.system()}-{platform.machine()}-python{PYTHON}".lower()


def write_kit(folder: Path, root: Path = ROOT) -> Path:
    """Write the kit into a new folder below `folder`; an older one of the same name is replaced at the end.

    Raises:
        subprocess.CalledProcessError: git or pip failed; they said why.
    """
    kit = folder / f"fine-tuning-techniques-{address(root)[1]}-{machine()}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kit-") as scratch:
        draft = Path(scratch, kit.name)
        archive = subprocess.run(["git", "-C", str(root), "archive", "HEAD"], check=True, stdout=subprocess.PIPE)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(draft / "repository", filter="data")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        download += ["--only-binary", ":all:", "--dest", str(draft / "wheels")]
        subprocess.run([*download, "-r", str(draft / "repository" / "requirements.txt")], check=True)
        texts = {
            "start.sh": START_SH.format(name="start.sh", python=PYTHON),
            "start.command": START_SH.format(name="start.command", python=PYTHON),
            "start.bat": START_BAT.format(python=PYTHON).replace("\n", "\r\n"),
            "READ ME.txt": READ_ME.format(machine=f"{platform.system()} on {platform.machine()}", python=PYTHON),
        }
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8", newline="")
            (draft / name).chmod(0o755)
        shutil.rmtree(kit, ignore_errors=True)
        draft.rename(kit)
    return kit


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def no_network() -> list[str]:
    """The beginning of a command that runs the rest of it without any network interface but loopback; or nothing."""
    if os.name == "nt":
        return []
    # Loopback has to be up: Jupyter talks to its kernels over it.
    command = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


def check(kit: Path, arguments: Sequence[str]) -> int:
    """Start a copy of the kit without a network, with these arguments for its start script; its exit status."""
    alone = no_network()
    print("network: cut off (a namespace of its own)" if alone else "network: there, but pip's index is switched off")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "kit")
        shutil.copytree(kit, copy)
        start = [str(copy / "start.bat")] if os.name == "nt" else ["sh", str(copy / "start.sh")]
        began = time.monotonic()
        status = subprocess.run([*alone, *start, *arguments]).returncode
        print(f"exit status {status} after {time.monotonic() - began:.0f} s, set-up included")
        return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.offline_kit", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "offline-kit", help="default: offline-kit")
    parser.add_argument("--check", nargs="*", metavar="NOTEBOOK", help="install it and run these (default: all)")
    options = parser.parse_args()
    began = time.monotonic()
    kit = write_kit(options.folder)
    wheels = list((kit / "wheels").iterdir())
    print(f"{kit}\n{len(wheels)} wheels, {size_mb(kit):,.0f} MB in all, written in {time.monotonic() - began:.0f} s")
    return 0 if options.check is None else check(kit, ["run", *options.check])


if __name__ == "__main__":
    sys.exit(main())
