"""Runs notebooks strictly: what papermill calls a success, but a reader would not, is a failure here.

    python -m tools.run_notebooks [NOTEBOOK ...] [-p NAME VALUE]... [--results-dir results]

papermill executes each notebook in a process of its own. Parameters, tags and shell commands are
checked before a kernel starts; the executed notebook, the records and the outputs afterwards. The
`status` that papermill writes into a notebook is never looked at: it says "completed" of cells that
never ran.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from helpers.errors import TutorialError
from tools.notebook_process import THREAD_LOG

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent

# Shapes, so that the class names of scikit-learn (`sk-toggleable__label`) and base64 images are none.
SECRETS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "an API key": r"(?<![A-Za-z0-9_-])sk-(?:[A-Za-z0-9]{20,}|(?:proj|ant|or|svcacct)-[A-Za-z0-9_-]{20,})",
    "an AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a Google API key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "a Kaggle token": r"(?<![A-Za-z0-9])KGAT_[A-Za-z0-9]{30,}",
    "a Slack token": r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}

# Magics that hand a cell or a line to another program, and drop its exit status.
SHELL_MAGICS = {
    *("!", "!!", "sx", "sc", "system", "cmd", "bash", "sh", "script", "perl", "ruby"),
    *("python", "python2", "python3", "pypy", "pip", "conda", "mamba", "micromamba", "uv"),
}

RUN_MARK = "TUTORIAL_NOTEBOOK_RUN"  # environment variable by which the processes of a run are known
POLL_SECONDS = 0.1


class NotebookError(TutorialError):
    """A notebook was refused or its run failed; names notebook and cell, what happened and what to do.

    Attributes:
        notebook: the file.
        what: what happened, in one sentence.
        to_do: what to do about it.
        cell: id of the cell, or None when no single cell is at fault.
        number: position of that cell among the notebook's code cells, from 1, or None.
    """

    def __init__(
        self, notebook: Path, what: str, to_do: str, *, cell: str | None = None, number: int | None = None
    ) -> None:
        self.notebook, self.cell, self.number = notebook, cell, number
        # Whatever a notebook says about its failure may quote a token.
        self.what, self.to_do = scrub(what), scrub(to_do)
        place = notebook.name
        if cell is not None:
            place += f", code cell {number} ({cell})" if number else f", cell {cell}"
        super().__init__(f"{place}: {self.what} {self.to_do}")


@dataclass(frozen=True)
class RunResult:
    """A notebook that ran to its end and passed every check."""

    notebook: Path
    seconds: float
    cells: int  # code cells of the notebook that were executed, without the one that papermill injects
    executed: Path
    html: Path
    records: Path


def run_notebook(
    notebook: Path,
    *,
    output_dir: Path,
    results_dir: Path,
    parameters: dict[str, Any] | None = None,
    cell_timeout: int = 600,
    notebook_timeout: float = 3600,
    progress: TextIO | None = None,
    cwd: Path | None = None,
    python: Path | None = None,
    environment: dict[str, str] | None = None,
) -> RunResult:
    """Execute a notebook, check that it really ran, and write its executed copy as .ipynb and .html.

    The records, the executed copy and the page of an earlier run are removed before the start, and
    the records of a failed run after it, so that nothing stale passes for a result. Of a failed run
    the notebook as far as it came stays as `<name>.failed.ipynb`, unless it holds a secret. Secrets
    are known by their shape (Hugging Face, GitHub and similar tokens), not by their value.

    Args:
        notebook: the .ipynb file; it is not changed.
        output_dir: folder for the executed copy.
        results_dir: folder where the notebook leaves `records/<name>.json`. Given to the notebook as
            its parameter `results_dir`, if it has one.
        parameters: values for names that the cell tagged `parameters` assigns.
        cell_timeout: seconds that one cell may take.
        notebook_timeout: seconds that the whole run may take, the start of the kernel included.
        progress: stream for one line a cell, updated while the cell runs if it is a terminal.
        cwd: working directory of the kernel, by default the root of the repository.
        python: the Python that runs the kernel, by default the one that runs this.
        environment: environment variables of the kernel, besides the usual ones.

    Raises:
        NotebookError: refused before a kernel starts (unreadable; not exactly one cell tagged
            `parameters`; unknown parameter or wrong type; an empty code cell, a shell command or the
            tag `raises-exception`; a secret in the source), or failed in the run (an error,
            `sys.exit`, an exception in a thread, a time-out, a dead kernel, cells that did not run,
            records not written or incomplete, a secret in the output).
    """
    started, started_ns = time.monotonic(), time.time_ns()
    notebook, output_dir, results_dir = Path(notebook), Path(output_dir).resolve(), Path(results_dir).resolve()
    cwd = ROOT if cwd is None else Path(cwd).resolve()
    kernel = {"cwd": str(cwd), "python": str(python or sys.executable), "environment": environment or {}}
    values = dict(parameters or {})
    source = load_notebook(notebook)
    check_parameters(notebook, source, values)
    if output_dir == notebook.resolve().parent:
        raise NotebookError(notebook, "the executed copy would replace the notebook.", "Choose another output folder.")
    if "results_dir" in read_parameters(notebook, source):
        # A relative path where possible: no folder of this machine in the executed copy.
        inside = results_dir.is_relative_to(cwd)
        values["results_dir"] = (results_dir.relative_to(cwd) if inside else results_dir).as_posix()

    records = results_dir / "records" / f"{notebook.stem}.json"
    executed, html, failed = (output_dir / f"{notebook.stem}{end}" for end in (".ipynb", ".html", ".failed.ipynb"))
    for old in (records, executed, html, failed):
        old.unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    results_dir.mkdir(parents=True, exist_ok=True)

    try:
        # papermill writes here first: a secret in the output never reaches `output_dir`.
        with tempfile.TemporaryDirectory(prefix="notebook-", ignore_cleanup_errors=True) as scratch:
            failure = _execute(
                notebook, source, values, Path(scratch), kernel, cell_timeout, notebook_timeout, progress
            )
            result = _load_result(Path(scratch) / "output.ipynb")
            thread_errors = _read(Path(scratch) / "threads.log")
        if result is None:
            raise failure or NotebookError(notebook, "papermill left no executed notebook.", "Run it again.")
        _check_secrets(notebook, result, records)
        try:
            if failure:
                raise failure
            _check_cells(notebook, source, result, thread_errors)
            _check_records(notebook, records, started_ns)
        except NotebookError:
            _write_notebook(result, failed)
            raise
    except BaseException:  # an interruption too
        records.unlink(missing_ok=True)
        raise
    _write_notebook(result, executed)
    html.write_text(_html(result), encoding="utf-8")
    cells = sum(_runs(cell) for cell in _code_cells(source))
    return RunResult(notebook, time.monotonic() - started, cells, executed, html, records)


def load_notebook(notebook: Path) -> NotebookNode:
    """Read a notebook and refuse one whose failures Jupyter would not report.

    Raises:
        NotebookError: it is missing or no valid notebook, or a cell cannot be run strictly.
    """
    import nbformat

    try:
        source = nbformat.v4.upgrade(nbformat.read(notebook, as_version=4))
        nbformat.validate(source)
    except FileNotFoundError:
        raise NotebookError(notebook, f"there is no file {notebook}.", "Check the path.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).strip().splitlines()
        what = f"not a valid notebook ({reason[0] if reason else type(error).__name__})."
        raise NotebookError(notebook, what, "Restore the file.") from None

    def refuse(cell: NotebookNode, what: str, to_do: str) -> NoReturn:
        number = code.index(cell) + 1 if cell.cell_type == "code" else None
        raise NotebookError(notebook, what, to_do, cell=cell.id, number=number)

    code = _code_cells(source)
    tagged = [cell for cell in source.cells if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        names = f": {', '.join(cell.id for cell in tagged)}" if tagged else ""
        what = f"{len(tagged)} cells are tagged `parameters`{names}."
        raise NotebookError(notebook, what, "Tag exactly one code cell, near the top.")
    if tagged[0].cell_type != "code":
        refuse(tagged[0], "the cell tagged `parameters` is no code cell.", "Tag the code cell with the parameters.")
    for cell in source.cells:
        kind = _secret_in(cell)
        if kind:
            refuse(cell, f"the file holds what looks like {kind}.", "Remove it, and revoke it: it may have been read.")
    for cell in code:
        if "injected-parameters" in _tags(cell):
            refuse(cell, "this is a copy that papermill executed.", "Run the original notebook.")
        if "raises-exception" in _tags(cell):
            refuse(cell, "the tag `raises-exception` would hide a failure.", "Use try/except, and remove the tag.")
        if not cell.source.strip():
            refuse(cell, "the code cell is empty, so Jupyter does not count it.", "Delete the cell.")
        command = next(_shell_commands(cell.source), None)
        if command:
            to_do = "Use subprocess.run([...], check=True)."
            refuse(cell, f"`{command}` is a shell command, whose failure Jupyter does not report.", to_do)
    read_parameters(notebook, source)
    return source


def read_parameters(notebook: Path, source: NotebookNode) -> dict[str, Any]:
    """Return names and defaults from the cell tagged `parameters`.

    Raises:
        NotebookError: the cell holds something else than assignments of literal values.
    """
    code = _code_cells(source)
    number, cell = next((n, cell) for n, cell in enumerate(code, 1) if "parameters" in _tags(cell))
    found: dict[str, Any] = {}
    try:
        for statement in ast.parse(cell.source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if len(targets) != 1 or not isinstance(targets[0], ast.Name):
                raise ValueError(ast.unparse(statement))
            found[targets[0].id] = ast.literal_eval(statement.value)
    except (SyntaxError, ValueError, TypeError, AttributeError) as error:
        what = f"the cell tagged `parameters` holds more than names with literal values ({error})."
        to_do = "Move what is computed to the next cell."
        raise NotebookError(notebook, what, to_do, cell=cell.id, number=number) from None
    return found


def check_parameters(notebook: Path, source: NotebookNode, parameters: dict[str, Any]) -> None:
    """Compare parameters with the names and the types of the notebook's defaults.

    Raises:
        NotebookError: unknown name, wrong type, a number that is not finite, a secret, or `results_dir`.
    """
    known = read_parameters(notebook, source)
    for name, value in parameters.items():
        if name not in known:
            raise _unknown_parameter(notebook, name, known)
        if name == "results_dir":
            raise NotebookError(notebook, "`results_dir` is set by the runner.", "Use its own option for the folder.")
        if _secret_in(value):
            what = f"the value of {name} looks like {_secret_in(value)}."
            raise NotebookError(notebook, what, "Give it in the environment: parameters are saved in the output.")
        default = known[name]
        if not _fits(value, default):
            what = f"parameter {name} is {value!r} ({type(value).__name__})."
            kind = "a finite number" if isinstance(default, float) else f"a value of type {type(default).__name__}"
            to_do = f"Give {kind}, like its default {default!r}."
            raise NotebookError(notebook, what, to_do)


def parse_parameters(notebook: Path, source: NotebookNode, texts: dict[str, str]) -> dict[str, Any]:
    """Turn the texts of a command line into values of the types of the notebook's defaults.

    Raises:
        NotebookError: as `check_parameters`, or a text that cannot be read as that type.
    """
    known = read_parameters(notebook, source)
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in known:
            raise _unknown_parameter(notebook, name, known)
        default = known[name]
        try:
            if isinstance(default, str):
                values[name] = text
            elif isinstance(default, bool):
                values[name] = {"true": True, "false": False}[text.lower()]
            elif isinstance(default, int | float):
                values[name] = type(default)(text)
            else:
                values[name] = ast.literal_eval(text)
        except (ValueError, KeyError, SyntaxError):
            values[name] = text  # refused below, as a text that should be something else
    check_parameters(notebook, source, values)
    return values


def scrub(text: str) -> str:
    """Replace whatever has the shape of a token or a key."""
    for kind, shape in SECRETS.items():
        text = re.sub(shape, f"[{kind}, removed]", text)
    return text


def _execute(
    notebook: Path,
    source: NotebookNode,
    values: dict[str, Any],
    scratch: Path,
    kernel: dict[str, Any],
    cell_timeout: int,
    notebook_timeout: float,
    progress: TextIO | None,
) -> NotebookError | None:
    """Run papermill in a child process until it ends or its time is up, and end all that it started."""
    import nbformat

    nbformat.write(source, scratch / "input.ipynb")
    job = {"parameters": values, "cell_timeout": cell_timeout, **kernel}
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    mark = uuid.uuid4().hex
    events = _Events(notebook.stem, source, scratch / "events.jsonl", progress)
    with (scratch / "log.txt").open("w", encoding="utf-8") as log:
        deadline = time.monotonic() + notebook_timeout
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.notebook_process", str(scratch)],
            cwd=ROOT,
            env=_environment(scratch, mark),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends them all
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                events.follow()
                time.sleep(POLL_SECONDS)
            in_time = process.poll() is not None
        finally:
            _end_processes(process, mark)
    events.follow()
    if in_time and events.last.get("event") == "done":
        return None
    events.show_failure()

    message = _short(events.last.get("message", ""))
    match "outer" if not in_time else events.last.get("kind"):
        case "outer":
            what = f"the notebook took longer than {notebook_timeout:g} s and was ended."
            to_do = "Look at the cell that was running, or allow more time (--timeout)."
        case "time-out":
            what, to_do = (
                f"the cell took longer than {cell_timeout} s.",
                "Make it faster, or allow more (--cell-timeout).",
            )
        case "dead":
            what = "the kernel died."
            to_do = "Most often memory ran out: close other programs, or take fewer examples or a smaller model."
        case "code":
            what = f"the cell failed with {message}"
            to_do = f"The traceback is in {notebook.stem}.failed.ipynb in the output folder."
        case "other":
            what = f"it could not be executed ({message})."
            to_do = "Check the installation with `python -m pip check`."
        case _:
            tail = _short(_read(scratch / "log.txt")[-300:])
            what = f"the process that runs the notebook ended with status {process.returncode}. {tail}".strip()
            to_do = "Close other programs if memory ran out, and run it again."
    return NotebookError(notebook, what, to_do, cell=events.cell, number=events.numbers.get(events.cell))


def _environment(scratch: Path, mark: str) -> dict[str, str]:
    def path(first: Path, name: str) -> str:
        return os.pathsep.join(filter(None, (str(first), os.environ.get(name))))

    environment = {
        **os.environ,
        RUN_MARK: mark,
        THREAD_LOG: str(scratch / "threads.log"),
        "PYTHONPATH": path(ROOT, "PYTHONPATH"),
        "JUPYTER_PATH": path(scratch / "jupyter", "JUPYTER_PATH"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "IPYTHONDIR": str(scratch / "ipython"),  # no start-up files of the user
    }
    environment.pop("MPLBACKEND", None)  # or figures would not appear in the notebook
    return environment


class _Events:
    """Follows the file in which the child process says which cell runs, and shows it."""

    def __init__(self, name: str, source: NotebookNode, path: Path, progress: TextIO | None) -> None:
        self.name, self.path, self.progress = name, path, progress
        self.numbers = {cell.id: number for number, cell in enumerate(_code_cells(source), 1)}
        self.cell: str | None = None  # the one that runs now
        self.last: dict[str, Any] = {}
        self.seen = 0
        self.started = 0.0

    def follow(self) -> None:
        for text in _read(self.path).splitlines(keepends=True)[self.seen :]:
            if not text.endswith("\n"):
                break  # still being written
            self.seen += 1
            self.last = json.loads(text)
            if self.last["event"] == "start":
                self.cell, self.started = self.last["cell"], self.last["time"]
            elif self.last["event"] == "end":
                self._show(self.last["time"], final=True)
                self.cell = None
        self._show(time.time(), final=False)

    def show_failure(self) -> None:
        self._show(time.time(), final=True, end="  FAILED")

    def _show(self, now: float, *, final: bool, end: str = "") -> None:
        if self.progress is None or self.cell not in self.numbers:  # papermill's own cell is none of the reader's
            return
        number, total = self.numbers[self.cell], len(self.numbers)
        text = (
            f"{self.name}  cell {number:>{len(str(total))}}/{total}  {self.cell[:32]:<32} {now - self.started:7.1f} s"
        )
        if self.progress.isatty():
            text = text[: shutil.get_terminal_size().columns - len(end) - 1]
            self.progress.write(f"\r{text}{end}" + ("\n" if final else ""))
        elif final:
            self.progress.write(f"{text}{end}\n")
        self.progress.flush()


def _end_processes(process: subprocess.Popen[Any], mark: str) -> None:
    """Kill the child, its kernel and what they started; also on success, so that nothing lingers.

    A process group would not do: the kernel has a session of its own. So the descendants are
    killed, and those that lost their parent are known by the mark in their environment.
    """
    import psutil

    def marked(candidate: psutil.Process) -> bool:
        try:
            return candidate.environ().get(RUN_MARK) == mark
        except (psutil.Error, OSError):
            return False

    for _ in range(5):  # again, because a process may start another one while this looks
        found = [candidate for candidate in psutil.process_iter() if marked(candidate)]
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(process.pid).children(recursive=True)
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
        if process.poll() is None:
            process.kill()
        process.wait()
        if not found:
            return
        psutil.wait_procs(found, timeout=1)


def _check_cells(notebook: Path, source: NotebookNode, result: NotebookNode, thread_errors: str) -> None:
    """Raise for what is wrong with an executed notebook, seen from its counts and outputs alone."""
    numbers = {cell.id: number for number, cell in enumerate(_code_cells(source), 1)}

    def fail(cell: NotebookNode, what: str, to_do: str) -> NoReturn:
        raise NotebookError(notebook, what, to_do, cell=cell.id, number=numbers.get(cell.id))

    count = 0
    for cell in _code_cells(result):
        for output in cell.outputs:
            if output.output_type == "error" and output.ename == "SystemExit":
                to_do = "No cell after it ran. Raise an exception, or let the notebook reach its end."
                fail(cell, f"the cell called sys.exit({output.evalue}).", to_do)
            if output.output_type == "error":
                fail(cell, f"the cell failed with {output.ename}: {_short(output.evalue)}", "Mend the cell.")
            if output.output_type == "stream" and output.name == "stderr" and "Exception in thread" in output.text:
                what = f"an exception ended a thread ({_short(output.text.strip().splitlines()[-1])})."
                fail(cell, what, "Catch it in the thread and raise it in the cell.")
        count += _runs(cell)
        expected = count if _runs(cell) else None
        if cell.execution_count != expected:
            what = f"the execution count is {cell.execution_count}, not {expected}."
            fail(cell, what, "It did not run in its turn: see what stopped the cells before it.")
    if thread_errors:
        what = f"an exception ended a thread ({_short(thread_errors.splitlines()[0])})."
        raise NotebookError(
            notebook, what, "Join the thread in the cell that starts it, and raise the exception there."
        )


def _check_records(notebook: Path, records: Path, started_ns: int) -> None:
    """Raise for what is wrong with the records that the notebook's last cell should have written."""
    from helpers.records import FIELDS

    def fail(what: str) -> NoReturn:
        to_do = "The last cell must call helpers.write_records with the records of this run."
        raise NotebookError(notebook, what, to_do)

    name = f"records/{records.name}"
    if not records.is_file():
        fail(f"it did not write {name}.")
    if records.stat().st_mtime_ns < started_ns:
        fail(f"{name} was not written during this run.")
    try:
        found = json.loads(_read(records))
    except ValueError as error:
        fail(f"{name} is not JSON ({error}).")
    if not isinstance(found, list) or not found:
        fail(f"{name} holds no list of records.")
    for number, record in enumerate(found, 1):
        missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
        if missing:
            fail(f"record {number} in {name} lacks {', '.join(missing)}.")
        if record["notebook"] != notebook.stem:
            fail(f"record {number} in {name} is of the notebook {record['notebook']!r}.")
        value = record["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            fail(f"record {number} in {name} has the value {value!r}, not a finite number.")


def _check_secrets(notebook: Path, result: NotebookNode, records: Path) -> None:
    """Raise for a secret in the outputs, in the state of a widget or in the records."""
    for cell in _code_cells(result):
        # A failed cell's streams are not joined yet: a token may lie across two of them.
        streams = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        kind = _secret_in([cell, streams])
        if kind:
            what = f"the cell printed what looks like {kind}. Neither the executed copy nor the records were kept."
            raise NotebookError(notebook, what, "Do not print it; revoke it if others saw it.", cell=cell.id)
    for place, held in (("a widget", result.metadata), ("its records file", _read(records))):
        kind = _secret_in(held)
        if kind:
            what = f"{place} holds what looks like {kind}. Neither the executed copy nor the records were kept."
            raise NotebookError(notebook, what, "Keep it out of there; revoke it if others saw it.")


def _secret_in(value: Any) -> str | None:
    """Which kind of secret a text has in it, or a structure of texts."""
    if isinstance(value, str):
        return next((kind for kind, shape in SECRETS.items() if re.search(shape, value)), None)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((kind for kind in map(_secret_in, value) if kind), None)
    return None


def _shell_commands(source: str) -> Iterator[str]:
    """Yield what a cell hands to a shell, found in the Python that IPython makes of the cell."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except (SyntaxError, ValueError):
        return  # the kernel will report it
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if function in {"get_ipython().system", "get_ipython().getoutput", "os.system", "os.popen"}:
            yield f"!{texts[0]}" if texts else function
        elif function in {"get_ipython().run_line_magic", "get_ipython().run_cell_magic"} and texts:
            sign = "%%" if function.endswith("cell_magic") else "%"
            if texts[0] in SHELL_MAGICS:
                yield f"{sign}{texts[0]} {texts[1] if len(texts) > 1 else ''}".strip()
            else:  # `%%time` and others run Python, and that may hold a command
                yield from _shell_commands(texts[-1])


def _fits(value: Any, default: Any) -> bool:
    if default is None:
        return value is None or isinstance(value, str | int | float | list | dict)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))


def _unknown_parameter(notebook: Path, name: str, known: dict[str, Any]) -> NotebookError:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    return NotebookError(notebook, f"unknown parameter {name!r}.", f"{meant}Known: {', '.join(known) or 'none'}.")


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _code_cells(source: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in source.cells if cell.cell_type == "code"]


def _runs(cell: NotebookNode) -> bool:
    return "skip-execution" not in _tags(cell)


def _short(text: str, limit: int = 600) -> str:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return text if len(text) <= limit else f"{text[: limit - 100]} ... {text[-95:]}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _load_result(path: Path) -> NotebookNode | None:
    import nbformat

    try:
        result = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError):
        return None  # never written, or the process was killed while it wrote
    for key in ("input_path", "output_path"):  # folders of this machine
        result.metadata.get("papermill", {}).pop(key, None)
    return result


def _write_notebook(result: NotebookNode, path: Path) -> None:
    import nbformat

    nbformat.write(result, path)


def _html(result: NotebookNode) -> str:
    from nbconvert import HTMLExporter

    return HTMLExporter().from_notebook_node(result)[0]


def write_scoreboard(results_dir: Path) -> tuple[str, list[Path]]:
    """Return the scoreboard as text, and the table and the figure that were written of it."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import numpy as np

    import helpers

    table = helpers.scoreboard(str(results_dir))
    csv, png = results_dir / "scoreboard.csv", results_dir / "scoreboard.png"
    table.round(3).to_csv(csv, index=False)
    axes = np.ravel(np.asarray(helpers.plot_scoreboard(table), dtype=object))
    axes[0].figure.savefig(png, dpi=150, bbox_inches="tight")
    return _aligned(table), [csv, png]


def _aligned(table: pd.DataFrame) -> str:
    import pandas as pd

    formats = {"seeds": "{:.0f}", "trained": "{:,.0f}", "peak_mib": "{:,.0f}"}
    lines = [[""] * len(table.columns) for _ in range(len(table) + 1)]
    for place, name in enumerate(table.columns):
        numeric = pd.api.types.is_numeric_dtype(table[name])
        shape = formats.get(name, "{:.1f}") if numeric else "{}"
        texts = [name, *("-" if pd.isna(value) else shape.format(value) for value in table[name])]
        width = max(map(len, texts))
        for row, text in zip(lines, texts, strict=True):
            row[place] = text.rjust(width) if numeric else text.ljust(width)
    return "\n".join("  ".join(row).rstrip() for row in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the notebooks named on the command line, or all, and show the scoreboard; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", description="Run notebooks strictly.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all in notebooks/")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
        help="a parameter, given to every notebook that has it",
    )  # fmt: skip
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results", help="default: results")
    parser.add_argument("--cell-timeout", type=int, default=600, metavar="S", help="seconds for a cell (600)")
    parser.add_argument("--timeout", type=int, default=3600, metavar="S", help="seconds for a notebook (3600)")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console without a character must not end the run
    try:
        return _run_all(options)
    except KeyboardInterrupt:
        print("Interrupted. Every kernel was ended.", file=sys.stderr)
        return 130
    except (TutorialError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _run_all(options: argparse.Namespace) -> int:
    notebooks = options.notebooks or sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    if not notebooks:
        raise TutorialError("There is no notebook in notebooks/ to run. Name one.")
    if len({notebook.stem for notebook in notebooks}) < len(notebooks):
        raise TutorialError("Two notebooks have the same name, and one's results would replace the other's.")
    # All are checked before the first one starts: an hour later is too late for a misspelt name.
    sources = {notebook: load_notebook(notebook) for notebook in notebooks}
    known = {notebook: read_parameters(notebook, source) for notebook, source in sources.items()}
    given = dict(options.parameters)
    for name in given:
        if not any(name in names for names in known.values()):
            raise _unknown_parameter(notebooks[0], name, {n: d for names in known.values() for n, d in names.items()})
    values = {
        notebook: parse_parameters(notebook, source, {n: text for n, text in given.items() if n in known[notebook]})
        for notebook, source in sources.items()
    }

    results: list[RunResult] = []
    failures: list[str] = []
    for notebook in notebooks:
        absent = [name for name in given if name not in known[notebook]]
        print(f"{notebook.stem}" + (f"  (has no parameter {', '.join(absent)})" if absent else ""))
        try:
            result = run_notebook(
                notebook,
                output_dir=options.results_dir / "executed",
                results_dir=options.results_dir,
                parameters=values[notebook],
                cell_timeout=options.cell_timeout,
                notebook_timeout=options.timeout,
                progress=sys.stdout,
            )
            print(f"{notebook.stem}  passed: {result.cells} cells in {result.seconds:.0f} s\n")
            results.append(result)
        except NotebookError as error:
            print(f"{error}\n", file=sys.stderr)
            failures.append(notebook.stem)

    text, files = write_scoreboard(options.results_dir)
    print(f"{text}\n\nOpen:")
    for path in [*(result.html for result in results), *files]:
        print(f"  {os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else path}")
    if failures:
        print(f"\n{len(failures)} of {len(notebooks)} notebooks failed: {', '.join(failures)}.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernels are ended too
    sys.exit(main())
