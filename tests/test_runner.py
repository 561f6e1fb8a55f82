"""What papermill calls a success, but a reader would not, must fail in `tools.run_notebooks`."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from helpers.records import FIELDS
from tools import run_notebooks as runner
from tools.run_notebooks import ROOT, NotebookError, RunResult, run_notebook

# Made up, and put together here so that no scanner takes this file for a leak.
FAKE_TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "1234"

MARKER = "from pathlib import Path\nPath({!r}).touch()"
PARAMETERS = "seed = 0\nlearning_rate = 0.001\ntask = 'helpdesk'\nuse_bias = False\nresults_dir = 'results'"
WRITE_RECORDS = """import json, pathlib
records = pathlib.Path(results_dir, "records", "{name}.json")
records.parent.mkdir(parents=True, exist_ok=True)
records.write_text(json.dumps({records}))"""


def good_record(name: str, **changes: Any) -> dict[str, Any]:
    return dict.fromkeys(FIELDS, "x") | {"notebook": name, "value": 0.5} | changes


class Workplace:
    """A folder with one notebook, and the files that a run of it leaves."""

    def __init__(self, folder: Path, name: str = "01_small") -> None:
        self.folder, self.name = folder, name
        self.notebook = folder / f"{name}.ipynb"
        self.results = folder / "results"
        self.executed = self.results / "executed" / f"{name}.ipynb"
        self.html = self.executed.with_suffix(".html")
        self.failed = self.results / "executed" / f"{name}.failed.ipynb"
        self.records = self.results / "records" / f"{name}.json"
        self.marker = folder / "kernel-started"

    def write(
        self, *cells: str, tags: dict[int, list[str]] | None = None, parameters: str | None = PARAMETERS,
        last: str | None = None,
    ) -> Workplace:  # fmt: skip
        """A notebook of: a cell that leaves a marker, the parameters, `cells`, and one that writes the records."""
        write_records = WRITE_RECORDS.format(name=self.name, records=[good_record(self.name)])
        code = [nbformat.v4.new_code_cell(MARKER.format(str(self.marker)), id="marker")]
        if parameters is not None:
            code.append(nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
        for number, text in enumerate(cells):
            metadata = {"tags": (tags or {}).get(number, [])}
            code.append(nbformat.v4.new_code_cell(text, id=f"cell-{number}", metadata=metadata))
        code.append(nbformat.v4.new_code_cell(write_records if last is None else last, id="records"))
        nbformat.write(nbformat.v4.new_notebook(cells=code), self.notebook)
        return self

    def run(self, **options: Any) -> RunResult:
        defaults = {"output_dir": self.results / "executed", "results_dir": self.results, "cwd": self.folder}
        return run_notebook(self.notebook, **{**defaults, "cell_timeout": 60, "notebook_timeout": 60, **options})

    def fails(self, match: str, **options: Any) -> NotebookError:
        """The run fails in the kernel, and leaves neither an executed copy nor records."""
        with pytest.raises(NotebookError, match=match) as caught:
            self.run(**options)
        assert self.marker.exists()
        assert not self.executed.exists() and not self.html.exists() and not self.records.exists()
        return caught.value

    def is_refused(self, match: str, **options: Any) -> NotebookError:
        """The run is refused before a kernel starts, and earlier results stay."""
        self.records.parent.mkdir(parents=True)
        self.records.write_text("earlier")
        with pytest.raises(NotebookError, match=match) as caught:
            self.run(**options)
        assert not self.marker.exists()
        assert self.records.read_text() == "earlier"
        return caught.value


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


# A run that passes


def test_a_good_notebook_passes(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    hijack = place.folder / "jupyter" / "kernels" / "python3"  # a kernelspec of the user that starts something else
    hijack.mkdir(parents=True)
    spec = {"argv": ["no-such-python", "{connection_file}"], "display_name": "x", "language": "python"}
    (hijack / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(place.folder / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    place.write(
        "import os, sys, importlib.util\n"
        "print(sys.executable, os.environ['MPLBACKEND'], importlib.util.find_spec('helpers').origin)\n"
        "print('torch' in sys.modules, 'helpers' in sys.modules)\n"
        "print(seed, learning_rate, task, use_bias, results_dir)",
        "raise ValueError('skipped')",
        "text = '!false'  # no shell command",
        tags={1: ["skip-execution"]},
    )
    place.failed.parent.mkdir(parents=True)
    place.failed.touch()
    progress = io.StringIO()
    given = {"seed": 3, "learning_rate": 1, "task": "123", "use_bias": True}
    result = place.run(parameters=given, progress=progress)

    assert (result.notebook, result.executed, result.html) == (place.notebook, place.executed, place.html)
    assert result.records == place.records and json.loads(place.records.read_text())
    assert result.cells == 5 and 0 < result.seconds < 60
    executed = nbformat.read(place.executed, as_version=4)
    code = {cell.id: cell for cell in executed.cells if "injected-parameters" not in cell.metadata.tags}
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3, 4, None, 5, 6]
    printed = code["cell-0"].outputs[0].text.splitlines()
    assert printed[0].startswith(sys.executable + " ") and "matplotlib_inline" in printed[0] and str(ROOT) in printed[0]
    assert printed[1:] == ["False False", "3 1 123 True results"]
    assert "input_path" not in executed.metadata.papermill and not place.failed.exists()
    page = place.html.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "matplotlib_inline" in page
    lines = progress.getvalue().splitlines()
    assert len(lines) == 5 and lines[0].split()[:4] == ["01_small", "cell", "1/6", "marker"]
    assert lines[-1].split()[2:4] == ["6/6", "records"]


# Runs that fail


def test_killed_kernel(place: Workplace) -> None:
    error = place.write("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nimport time; time.sleep(9)").fails(
        "died"
    )
    assert (error.cell, error.number) == ("cell-0", 3)


def test_cell_timeout(place: Workplace) -> None:
    place.write("import os, time\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    error = place.fails("longer than 2 s", cell_timeout=2)
    assert error.cell == "cell-0"
    assert not psutil.pid_exists(int((place.folder / "pid").read_text()))


@pytest.mark.skipif(os.name == "nt", reason="hangs by the C library of POSIX")
def test_notebook_timeout_ends_a_kernel_that_hangs_in_native_code(place: Workplace) -> None:
    # PyDLL keeps the interpreter's lock: no thread of the kernel can notice anything.
    place.write(
        "import ctypes, os, subprocess, sys\n"
        "orphan = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "Path('pids').write_text(f'{os.getpid()} {orphan.pid}')\n"
        "ctypes.PyDLL(None).sleep(600)"
    )
    progress = io.StringIO()
    started = time.monotonic()
    error = place.fails("longer than 10 s", notebook_timeout=10, progress=progress)
    assert time.monotonic() - started < 20
    assert error.cell == "cell-0" and progress.getvalue().rstrip().endswith("FAILED")
    for pid in (place.folder / "pids").read_text().split():
        assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_sys_exit_with_zero(place: Workplace) -> None:
    error = place.write("import sys\nsys.exit(0)").fails(r"sys\.exit\(0\)")
    assert error.cell == "cell-0"


def test_exception_in_a_thread(place: Workplace) -> None:
    error = place.write("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()").fails(
        "ended a thread .*ZeroDivisionError"
    )
    assert error.cell == "cell-0"


def test_exception_in_a_thread_after_the_last_cell(place: Workplace) -> None:
    # Nobody reads the kernel's stderr any more.
    write_records = WRITE_RECORDS.format(name=place.name, records=[good_record(place.name)])
    late = "import threading, time\ndef late():\n    time.sleep(0.5)\n    1 / 0\nthreading.Thread(target=late).start()"
    place.write(last=f"{write_records}\n{late}").fails("ended a thread .*ZeroDivisionError")


def test_printed_token_is_kept_nowhere(place: Workplace) -> None:
    place.write(
        f"half = '{FAKE_TOKEN[:12]}'",
        f"import sys\nprint(half, end='', flush=True)\nprint('x', file=sys.stderr)\nprint('{FAKE_TOKEN[12:]}')",
    )
    error = place.fails("Hugging Face token")
    assert error.cell == "cell-1" and FAKE_TOKEN not in str(error)
    written = [path for path in place.results.rglob("*") if path.is_file()]
    assert not any(FAKE_TOKEN in path.read_text(encoding="utf-8", errors="replace") for path in written)


def test_token_in_the_message_of_an_exception(place: Workplace) -> None:
    error = place.write(f"half = '{FAKE_TOKEN[:12]}'\nraise ValueError(half + '{FAKE_TOKEN[12:]}')").fails("token")
    assert FAKE_TOKEN not in str(error) and not place.failed.exists()


def test_records_not_written(place: Workplace) -> None:
    place.records.parent.mkdir(parents=True)
    place.records.write_text(json.dumps([good_record(place.name)]))  # of an earlier run
    place.write(last="1 + 1").fails("did not write records/01_small.json")


def test_stale_records_put_back(place: Workplace) -> None:
    write_records = WRITE_RECORDS.format(name=place.name, records=[good_record(place.name)])
    place.write(last=f"{write_records}\nimport os\nos.utime(records, (10**9, 10**9))").fails(
        "not written during this run"
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "no list of records"),
        ('{"notebook": "01_small"}', "no list of records"),
        ("[{", "not JSON"),
        ("[1]", "record 1 .* lacks notebook"),
        (json.dumps([good_record("01_small"), {"notebook": "01_small"}]), "record 2 .* lacks technique"),
        (json.dumps([good_record("02_lora")]), "of the notebook '02_lora'"),
        (json.dumps([good_record("01_small", value=float("nan"))]), "nan, not a finite number"),
        (json.dumps([good_record("01_small", value="0.5")]), "not a finite number"),
    ],
)
def test_bad_records(tmp_path: Path, content: str, match: str) -> None:
    records = tmp_path / "01_small.json"
    records.write_text(content)
    with pytest.raises(NotebookError, match=match):
        runner._check_records(Path("01_small.ipynb"), records, 0)


def test_counts_are_checked_whatever_the_status_says(place: Workplace) -> None:
    source = runner.load_notebook(place.write("1", "2", tags={1: ["skip-execution"]}).notebook)

    def check(*counts: int | None) -> None:
        executed = nbformat.from_dict(source)
        for cell, count in zip(executed.cells, counts, strict=True):
            cell.execution_count = count
            cell.metadata.papermill = {"status": "completed"}
        runner._check_cells(place.notebook, source, executed, "")

    check(1, 2, 3, None, 4)
    for wrong in [(1, 2, 3, None, None), (1, 2, 3, None, 5), (1, 3, 2, None, 4), (1, 2, 3, 4, 5)]:
        with pytest.raises(NotebookError, match="execution count"):
            check(*wrong)


# Refused before a kernel starts


def test_unknown_parameter(place: Workplace) -> None:
    place.write().is_refused(
        "unknown parameter 'sede'. Did you mean seed\\? Known: seed, learning", parameters={"sede": 1}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "abc"), ("seed", 1.5), ("seed", True), ("task", 123), ("use_bias", 1), ("use_bias", "True"),
        ("learning_rate", "0.1"), ("learning_rate", False), ("learning_rate", float("nan")), ("seed", None),
    ],
)  # fmt: skip
def test_wrong_type_of_a_parameter(place: Workplace, name: str, value: Any) -> None:
    place.write().is_refused(f"parameter {name} is .* like its default", parameters={name: value})


def test_token_as_a_parameter(place: Workplace) -> None:
    place.write().is_refused("task looks like a Hugging Face token", parameters={"task": FAKE_TOKEN})


def test_results_dir_as_a_parameter(place: Workplace) -> None:
    place.write().is_refused("set by the runner", parameters={"results_dir": "elsewhere"})


def test_no_cell_tagged_parameters(place: Workplace) -> None:
    place.write("results_dir = 'results'", parameters=None).is_refused("0 cells are tagged `parameters`")


def test_two_cells_tagged_parameters(place: Workplace) -> None:
    place.write("seed = 1", tags={0: ["parameters"]}).is_refused("2 cells are tagged .*parameters, cell-0")


def test_computed_default(place: Workplace) -> None:
    place.write(parameters="seed = 1\nrate = 1 / seed").is_refused("literal values")


def test_raises_exception_tag(place: Workplace) -> None:
    error = place.write("1 / 0", tags={0: ["raises-exception"]}).is_refused("raises-exception")
    assert (error.cell, error.number) == ("cell-0", 3)


@pytest.mark.parametrize(
    "source",
    [
        "!false", "x = 1\nif x:\n    !nosuchcommand", "files = !ls", "!!ls", "%%bash\nfalse", "%%sh\nfalse", "%sx ls",
        "%%script false\n1", "%pip install nothing", "%time !false", "%%time\n!false", "import os\nos.system('false')",
        "get_ipython().system('false')",
    ],
)  # fmt: skip
def test_shell_command(place: Workplace, source: str) -> None:
    error = place.write(source).is_refused("is a shell command")
    assert error.cell == "cell-0" and "check=True" in str(error)


@pytest.mark.parametrize(
    "source", ["x = 1\nx != 2", "print('''\n!ls\n''')", "# !ls", "%matplotlib inline", "%%time\nsum([1])", "await x"]
)
def test_no_shell_command(source: str) -> None:
    assert list(runner._shell_commands(source)) == []


def test_empty_code_cell(place: Workplace) -> None:
    place.write(" \n").is_refused("empty")


def test_token_in_the_source(place: Workplace) -> None:
    error = place.write(f"token = '{FAKE_TOKEN}'").is_refused("Hugging Face token")
    assert FAKE_TOKEN not in str(error)


def test_executed_copy_as_source(place: Workplace) -> None:
    place.write("seed = 1", tags={0: ["injected-parameters"]}).is_refused("papermill executed")


def test_output_folder_that_holds_the_notebook(place: Workplace) -> None:
    place.write().is_refused("would replace", output_dir=place.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}', "\x00"])
def test_broken_notebook(place: Workplace, content: str) -> None:
    place.notebook.write_text(content)
    place.is_refused("not a valid notebook")


def test_missing_notebook(place: Workplace) -> None:
    place.is_refused("no file")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (FAKE_TOKEN, "a Hugging Face token"), (f"a\n{FAKE_TOKEN}", "a Hugging Face token"),
        ("gh" + "p_" + "a1" * 18, "a GitHub token"), ("sk" + "-" + "a1" * 16, "an API key"),
        ("sk" + "-proj-" + "a1_-" * 6, "an API key"), ("hf_hub_download", None), ("task-" + "a1" * 16, None),
        ("sk-toggleable__label-arrow", None), ("sk-estimator-doc-link", None), ("iVBORw0KGgoAAAANSUhEUgAA" * 9, None),
    ],
)  # fmt: skip
def test_shapes_of_secrets(text: str, kind: str | None) -> None:
    assert runner._secret_in({"outputs": [{"text": text}]}) == kind
    assert (runner.scrub(text) == text) == (kind is None)


# The command


def test_command_line_values_take_the_types_of_the_defaults(place: Workplace) -> None:
    source = runner.load_notebook(place.write().notebook)
    given = {"seed": "7", "learning_rate": "1", "task": "123", "use_bias": "true"}
    parsed = runner.parse_parameters(place.notebook, source, given)
    assert parsed == {"seed": 7, "learning_rate": 1.0, "task": "123", "use_bias": True}
    for name, text in [("seed", "abc"), ("seed", "1.5"), ("use_bias", "1"), ("learning_rate", "inf")]:
        with pytest.raises(NotebookError, match=f"parameter {name} is"):
            runner.parse_parameters(place.notebook, source, {name: text})


def test_command_runs_the_rest_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Workplace(tmp_path, "01_bad").write("1 / 0", parameters="seed = 0\nresults_dir = 'results'")
    good = Workplace(tmp_path, "02_good").write("print(task)")
    monkeypatch.setattr(runner, "write_scoreboard", lambda results_dir: ("the table", [results_dir / "scoreboard.csv"]))
    command = [str(bad.notebook), str(good.notebook), "-p", "task", "mine", "--results-dir", str(good.results)]
    monkeypatch.chdir(tmp_path)
    assert runner.main(command) == 1
    out, err = capsys.readouterr()
    assert "01_bad  (has no parameter task)" in out and "02_good  passed: 4 cells" in out and "the table" in out
    assert str(Path("results", "executed", "02_good.html")) in out and "01_bad.html" not in out
    assert "ZeroDivisionError" in err and "1 of 2 notebooks failed: 01_bad" in err and "Traceback" not in err
    assert "01_bad.failed.ipynb" in err and "Traceback" in bad.failed.read_text()
    assert not bad.records.exists() and not bad.executed.exists() and good.executed.exists() and good.records.exists()


def test_command_refuses_before_the_first_notebook(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.write()
    command = [str(place.notebook), "--results-dir", str(place.results), "-p"]
    assert runner.main([*command, "sede", "1"]) == 1
    assert runner.main([*command, "seed", "abc"]) == 1
    assert runner.main([str(place.notebook), "absent.ipynb"]) == 1
    assert not place.marker.exists()
    out, err = capsys.readouterr()
    assert (
        "Did you mean seed?" in err
        and "parameter seed is 'abc' (str)" in err
        and "there is no file absent.ipynb" in err
    )
    assert "Traceback" not in err and not out


def test_scoreboard_is_printed_aligned_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    import helpers

    rows = [("lora", "r=8", 91.2345, 11520.0), ("majority", "not run", None, None)]
    table = pd.DataFrame(rows, columns=["technique", "variant", "test", "trained"])

    def plot(shown: pd.DataFrame) -> object:
        from matplotlib.figure import Figure

        return Figure().subplots(1, 2)

    monkeypatch.setattr(helpers, "scoreboard", lambda results_dir: table, raising=False)
    monkeypatch.setattr(helpers, "plot_scoreboard", plot, raising=False)
    text, files = runner.write_scoreboard(tmp_path)
    assert text.splitlines() == [
        "technique  variant  test  trained",
        "lora       r=8      91.2   11,520",
        "majority   not run     -        -",
    ]
    assert [path.name for path in files] == ["scoreboard.csv", "scoreboard.png"]
    assert all(path.stat().st_size for path in files)
