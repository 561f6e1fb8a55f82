"""Executes notebooks strictly: what papermill calls a success, but a reader would not, is a failure here.

    python -m tools.run [NOTEBOOK ...] [-p NAME VALUE]... [--results DIR] [--output DIR]

The `status` in papermill's metadata is never looked at: it says "completed" of cells that never ran.
"""

import argparse
import ast
import contextlib
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import write_kernel_spec
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
SHELL = re.compile(r"^\s*(?:!|%%(?:!|bash|cmd|script|sh|sx)\b)|=\s*!|\bos\.system\(", re.MULTILINE)


class NotebookError(Exception):
    """A notebook was refused before a kernel started, or its run failed."""

    def __init__(self, path: Path, what: str, cell: Any = None) -> None:
        super().__init__(f"{path.name}{f', cell {cell.id}' if cell else ''}: {what}")


class RunResult(NamedTuple):
    """What a run left that passed every check: the executed notebook, its HTML page, its records."""

    executed: Path
    page: Path
    records: Path
    seconds: float


def run_notebook(
    path: Path, *, output_dir: Path, results_dir: Path, parameters: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None, cell_timeout: int = 900, notebook_timeout: float = 0,
    python: str | Path = sys.executable, cwd: Path = ROOT,
) -> RunResult:  # fmt: skip
    """Execute a notebook, check that it really ran, and write it as .ipynb and .html into `output_dir`.

    `python`, `cwd` and `environment` are the kernel's; `results_dir` reaches the notebook as its parameter. Time-outs
    are in seconds, by default four times a cell's for the notebook. What an earlier run left is removed first; a run
    that fails leaves `<name>.failed.ipynb` and the records that it wrote as `<name>.failed`, and raises a NotebookError
    that names the cell.
    """
    output_dir, results_dir, cwd = (Path(folder).resolve() for folder in (output_dir, results_dir, cwd))
    values = check_parameters(path, parameters or {})
    if output_dir == path.resolve().parent:
        raise NotebookError(path, "the executed copy would replace it. Choose another output folder.")
    # Relative where possible: no folder of this machine in the executed copy.
    results = results_dir.relative_to(cwd) if results_dir.is_relative_to(cwd) else results_dir
    executed, failed, page = (output_dir / f"{path.stem}{end}" for end in (".ipynb", ".failed.ipynb", ".html"))
    records, notes = (results_dir / kind / f"{path.stem}.json" for kind in ("records", "notes"))
    aside = records.with_suffix(".failed")
    for old in (executed, failed, page, records, notes, aside):
        old.unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    job = {"input_path": str(path), "output_path": str(failed), "cwd": str(cwd), "progress_bar": {"desc": path.stem}}
    job |= {"parameters": {**values, "results_dir": results.as_posix()}, "execution_timeout": cell_timeout}
    began = time.time()
    try:
        check_cells(path, failed, execute(job, notebook_timeout or 4 * cell_timeout, str(python), environment or {}))
        check_records(path, records, began)
    except BaseException:  # an interruption too
        if records.exists():  # not read as results, and not lost: it may have taken an hour
            records.replace(aside)
        raise
    failed.replace(executed)
    page.write_text(HTMLExporter().from_filename(executed)[0], encoding="utf-8")
    return RunResult(executed, page, records, time.time() - began)


def check_parameters(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The values for a notebook, each of the type of its literal default; texts of a command line become such."""
    try:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        known = {name: ast.literal_eval(p["default"]) for name, p in papermill.inspect_notebook(str(path)).items()}
    except Exception as error:  # each kind of damage has a type of its own
        raise NotebookError(path, f"{path} is no notebook with literal parameters ({error!r:.200}).") from None
    tagged = [cell.id for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(path, f"{len(tagged)} code cells are tagged `parameters` {tagged}, expected one.")
    for cell in (cell for cell in cells if SHELL.search(cell.source)):
        raise NotebookError(path, "Jupyter hides a shell's failure: use subprocess.run([...], check=True).", cell)
    values = dict(given)
    for name, value in given.items():
        if name not in known or name == "results_dir":
            raise NotebookError(path, f"unknown parameter {name!r}. Known: {', '.join(known)} (results_dir: --results)")
        kind = type(known[name])
        if isinstance(value, str) and kind is not str:
            with contextlib.suppress(ValueError, SyntaxError):  # refused below, as the text that it is
                value = ast.literal_eval(value)
        values[name] = value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise NotebookError(path, f"{name} is {value!r}, expected {kind.__name__}, like {known[name]!r}.")
    return values


def _work(job: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    papermill.execute_notebook(**job)


def execute(job: dict[str, Any], timeout: float, python: str, environment: dict[str, str]) -> BaseException | None:
    """Run papermill in a process of its own, then end it and its kernel; returns what papermill raised."""
    with tempfile.TemporaryDirectory() as scratch:
        # The user's kernelspec may start another Python, the start-up files and the backend are not a reader's.
        env = {"OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        write_kernel_spec(Path(scratch, "kernels", "python3"), overrides={"argv": argv})
        job |= {"kernel_name": "python3", "language": "python", "start_timeout": 120}
        job |= {"coalesce_streams": True}  # else a bar that grows is saved as twenty outputs
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            worker = psutil.Process(pool.submit(os.getpid).result())
            future = pool.submit(_work, job, {"JUPYTER_PATH": scratch, "IPYTHONDIR": scratch, **env})
            try:
                wait([future], timeout)
                return future.exception() if future.done() else TimeoutError(f"it took longer than {timeout:g} s.")
            finally:
                for process in worker.children(recursive=True):  # the kernel, which is in no process group of ours
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                if wait([future], 60).not_done:  # papermill has 60 s to notice
                    worker.kill()


def check_cells(path: Path, executed: Path, error: BaseException | None) -> None:
    """Refuse an executed notebook by its outputs and counts; `error` is what papermill raised."""
    notebook = nbformat.read(executed, as_version=4) if executed.exists() else nbformat.v4.new_notebook()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [(cell, output) for cell in cells for output in cell.outputs]
    failed = [(cell, o) for cell, o in outputs if o.output_type == "error" and o.ename != "KeyboardInterrupt"]
    troubles = [(cell, "it failed", "\n".join(output.traceback)) for cell, output in failed]
    if error:  # it may be a time-out, which leaves a KeyboardInterrupt behind
        begun = [None, *(cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time"))]
        troubles.append((begun[-1], type(error).__name__, f"{error}\nA smaller model, or --timeout, may help."))
    troubles += [(cell, "it wrote to stderr", o.text) for cell, o in outputs if o.get("name") == "stderr"]
    for count, cell in enumerate((c for c in cells if "skip-execution" not in c.metadata.get("tags", [])), 1):
        if cell.execution_count != count:
            troubles.append((cell, "it did not run in its turn", f"count {cell.execution_count}, expected {count}"))
    for cell, what, said in troubles[:1]:
        last = re.sub(r"\x1b\[[0-9;]*m", "", said).strip().splitlines()[-6:]
        raise NotebookError(path, "\n  ".join([f"{what}, see {executed.name}:", *last]), cell)
    for cell in cells:  # a bar that is gone has left blanks
        cell.outputs = [output for output in cell.outputs if output.get("text", "text").strip()]
    notebook.metadata.pop("papermill", None)  # it names folders of this machine
    nbformat.write(notebook, executed)


def check_records(path: Path, records: Path, began: float) -> None:
    """Refuse records that the notebook did not write since `began`, or that are not as they should be."""
    from helpers.scoreboard import FIELDS  # here, because it loads torch: parameters are refused at once

    def good(record: Any) -> bool:
        whole = isinstance(record, dict) and {*FIELDS} <= {*record} and record["notebook"] == path.stem
        return whole and type(record["value"]) in (int, float) and math.isfinite(record["value"])

    try:
        found = json.loads(records.read_text(encoding="utf-8")) if records.stat().st_mtime >= began else "not new"
    except (OSError, ValueError) as error:
        found = repr(error)
    bad = [record for record in found if not good(record)][:1] if isinstance(found, list) else [found]
    if bad or not found:
        wanted = f"records of this notebook with {', '.join(FIELDS)} and a finite value, written by the last cell"
        raise NotebookError(path, f"records/{records.name}: expected {wanted}, found {bad[0] if bad else 'none'}.")


def notebooks_of(root: Path = ROOT) -> list[Path]:
    """The notebooks of a repository, in their order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def seconds_of(cell: nbformat.NotebookNode) -> float:
    """What an executed cell took."""
    return cell.metadata.get("papermill", {}).get("duration") or 0.0


def slowest(executed: Path, count: int = 3) -> dict[str, float]:
    """The cells of an executed notebook that took longest, with their seconds."""
    cells = nbformat.read(executed, as_version=4).cells
    seconds = {cell.id: seconds_of(cell) for cell in cells}
    return dict(sorted(seconds.items(), key=lambda item: -item[1])[:count])


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks named on the command line, or all, and show the scoreboard; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tools.run", description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=notebooks_of(), help="default: all in notebooks/")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="default: results")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for executed notebooks, default: RESULTS/executed")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for a cell (900); a notebook has four times")
    options = parser.parse_args(arguments)
    folders = {"output_dir": options.output or options.results / "executed", "results_dir": options.results}
    try:  # all are checked before the first one starts: an hour later is too late for a misspelt name
        plan = {path: check_parameters(path, dict(options.parameters)) for path in options.notebooks}
    except NotebookError as error:
        sys.exit(str(error))
    pages = []
    for path, values in plan.items():
        try:
            result = run_notebook(path, parameters=values, cell_timeout=options.timeout, **folders)
        except NotebookError as error:
            print(f"FAILED  {error}\n", file=sys.stderr)
            continue
        notes = options.results / "notes" / f"{path.stem}.json"
        headline = json.loads(notes.read_text(encoding="utf-8")).get("headline", "") if notes.exists() else ""
        print(f"{path.stem}  {result.seconds:.0f} s  {headline}", flush=True)
        print("  slowest cells: " + ", ".join(f"{cell} {s:.0f} s" for cell, s in slowest(result.executed).items()))
        pages.append(str(result.page))
    from helpers.scoreboard import table_of

    print(f"\n{table_of(options.results).to_string()}\n")
    print(f"{len(pages)} of {len(plan)} notebooks passed. Open:", *pages, sep="\n  ")
    return 0 if len(pages) == len(plan) else 1


if __name__ == "__main__":
    sys.exit(main())
