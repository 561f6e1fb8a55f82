"""What papermill calls a success, but a reader would not, must fail in `tools.run`."""

import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from helpers.scoreboard import FIELDS
from tools import run
from tools.run import NotebookError, run_notebook

PARAMETERS = "seed = 0\nlearning_rate = 0.001\ntask = 'helpdesk'\nuse_bias = False\nsizes = [1, 2]\nresults_dir = 'r'"
WRITE = """import json, pathlib
for kind, content in {{"records": {records}, "notes": {{"headline": "it learned"}}}}.items():
    file = pathlib.Path(results_dir, kind, "{name}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))"""


def record(name="01_small", **changes):
    return dict.fromkeys(FIELDS, "x") | {"notebook": name, "value": 0.5} | changes


class Place:
    """A folder with one notebook, and the files that a run of it leaves."""

    def __init__(self, folder, name="01_small"):
        self.folder, self.name, self.path = folder, name, folder / f"{name}.ipynb"
        self.output, self.records = folder / "results" / "executed", folder / "results" / "records" / f"{name}.json"
        self.marker = folder / "kernel-started"

    def write(self, *cells, tags=None, parameters=PARAMETERS, last=None):
        """A notebook of: a cell that leaves a marker, the parameters, `cells`, and one that writes the records."""
        sources = {"marker": f"from pathlib import Path\nPath({str(self.marker)!r}).touch()", "parameters": parameters}
        sources |= {f"cell-{number}": text for number, text in enumerate(cells)}
        sources["records"] = WRITE.format(name=self.name, records=[record(self.name)]) if last is None else last
        tags = {"parameters": ["parameters"], **(tags or {})}
        code = [
            nbformat.v4.new_code_cell(text, id=name, metadata={"tags": tags.get(name, [])})
            for name, text in sources.items()
            if text is not None
        ]
        spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=code, metadata={"kernelspec": spec}), self.path)
        return self

    def run(self, **options):
        folders = {"output_dir": self.output, "results_dir": self.folder / "results", "cwd": self.folder}
        return run_notebook(self.path, **{**folders, "cell_timeout": 60, **options})

    def fails(self, match, **options):
        """The run fails in the kernel, and leaves neither an executed copy nor records, but what it came to."""
        self.records.parent.mkdir(parents=True, exist_ok=True)
        self.records.write_text(json.dumps([record(self.name)]))  # of an earlier run
        with pytest.raises(NotebookError, match=match):
            self.run(**options)
        assert self.marker.exists() and not self.records.exists()
        assert [path.name for path in self.output.iterdir()] == [f"{self.name}.failed.ipynb"]

    def is_refused(self, match, **options):
        """The run is refused before a kernel starts, and earlier results stay."""
        self.records.parent.mkdir(parents=True)
        self.records.write_text("earlier")
        with pytest.raises(NotebookError, match=match):
            self.run(**options)
        assert not self.marker.exists() and self.records.read_text() == "earlier"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# ---------------------------------------------------------------- a run that passes


def test_a_good_notebook_passes(place, monkeypatch):
    hijack = place.folder / "jupyter" / "kernels" / "python3"  # a kernelspec of the user that starts something else
    hijack.mkdir(parents=True)
    spec = {"argv": ["no-such-python", "{connection_file}"], "display_name": "x", "language": "python"}
    (hijack / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(place.folder / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    place.write(
        "from os import environ\nimport sys\nprint(sys.executable, environ['MARK'], environ['OMP_WAIT_POLICY'])\n"
        "assert environ['HF_TOKEN'] == 'hf_' + 'Planted' * 5",
        "print(seed, learning_rate, task, use_bias, sizes, results_dir)",
        "raise ValueError('skipped')",
        "print('a bar', end='\\r     \\r')\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        tags={"cell-2": ["skip-execution"]},
    )
    given = {"seed": 3, "learning_rate": 1, "task": "123", "use_bias": True, "sizes": []}
    result = place.run(parameters=given, environment={"MARK": "x"})
    assert result.executed == place.output / "01_small.ipynb" and result.records == place.records
    assert 0 < result.seconds < 60 and result.page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    cells = nbformat.read(result.executed, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5, None, 6, 7]
    assert cells[3].outputs[0].text == f"{sys.executable} x PASSIVE\n"
    assert cells[4].outputs[0].text == "3 1.0 123 True [] results\n"
    assert [list(output.get("data", {})) for output in cells[6].outputs] == [["image/png", "text/plain"]], "and no bar"
    assert str(place.folder) not in result.executed.read_text(encoding="utf-8").replace(str(place.marker), "")


# ---------------------------------------------------------------- runs that fail


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("1 / 0", r"cell cell-0: it failed(.|\n)*1 / 0(.|\n)*ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)", r"cell cell-0: it failed(.|\n)*SystemExit"),
        ("import warnings\nwarnings.warn('old')", "cell cell-0: it wrote to stderr(.|\n)*UserWarning: old"),
        ("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", "ZeroDivisionError"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nimport time; time.sleep(9)", "cell-0: DeadKernel"),
        ("  ", r"cell cell-0: it did not run in its turn(.|\n)*count None, expected 4"),
    ],
    ids=["error", "exit", "warning", "thread", "killed", "empty"],
)
def test_what_fails_in_a_cell(place, cell, match):
    # A tag that would hide an error; a parameter, so that papermill puts a cell of its own before this one.
    place.write(cell, tags={"cell-0": ["raises-exception"]}).fails(match, parameters={"seed": 1})


def test_cell_timeout(place):
    place.write("import os, time\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    place.fails("cell cell-0: CellTimeoutError", cell_timeout=3)
    assert not psutil.pid_exists(int((place.folder / "pid").read_text()))


@pytest.mark.skipif(os.name == "nt", reason="hangs by the C library of POSIX")
def test_notebook_timeout_ends_a_kernel_that_hangs_in_native_code(place):
    # PyDLL keeps the interpreter's lock: no thread of the kernel can notice anything.
    place.write("import ctypes, os\nPath('pid').write_text(str(os.getpid()))\nctypes.PyDLL(None).sleep(600)")
    started = time.monotonic()
    place.fails("cell cell-0: TimeoutError(.|\n)*longer than 10 s", notebook_timeout=10)
    assert time.monotonic() - started < 60 and not psutil.pid_exists(int((place.folder / "pid").read_text()))


def test_cells_that_did_not_run_are_seen_whatever_the_status_says(place):
    source = nbformat.read(place.write("1", "2", tags={"cell-0": ["skip-execution"]}).path, as_version=4)
    executed = place.folder / "executed.ipynb"

    def check(*counts):
        for cell, count in zip(source.cells, counts, strict=True):
            cell.execution_count, cell.metadata.papermill = count, {"status": "completed"}
        nbformat.write(source, executed)
        run.check_cells(place.path, executed, None)

    check(1, 2, None, 3, 4)
    for wrong in [(1, 2, None, 3, None), (1, 2, None, 3, 5), (1, 3, None, 2, 4), (1, 2, 3, 4, 5)]:
        with pytest.raises(NotebookError, match="did not run in its turn"):
            check(*wrong)


def test_records_not_written_and_those_of_a_failed_run_set_aside_not_lost(place):
    place.write(last="1 + 1").fails("records/01_small.json: expected .* found FileNotFoundError")
    last = WRITE.format(name=place.name, records=[record(place.name)]) + "\nraise ValueError('too late')"
    place.write(last=last).fails("too late")
    assert json.loads(place.records.with_suffix(".failed").read_text()) == [record(place.name)]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "found none"), ('{"notebook": 1}', "found {"), ("[{", "found JSONDecodeError"), ("[1]", "found 1"),
        (json.dumps([record(), {"notebook": "01_small", "value": 1}]), "found {'notebook': '01_small', 'value': 1}"),
        (json.dumps([record("02_lora")]), "found .*02_lora"), (json.dumps([record(value="0.5")]), "found .*'0.5'"),
        (json.dumps([record(value=float("nan"))]), "found .*nan"), (json.dumps([record(value=True)]), "found .*True"),
    ],
)  # fmt: skip
def test_bad_records(tmp_path, content, match):
    records = tmp_path / "01_small.json"
    records.write_text(content)
    with pytest.raises(NotebookError, match=match):
        run.check_records(Path("01_small.ipynb"), records, 0)
    records.write_text(json.dumps([record()]))
    run.check_records(Path("01_small.ipynb"), records, 0)
    with pytest.raises(NotebookError, match="not new"):
        run.check_records(Path("01_small.ipynb"), records, time.time() + 1)


# ---------------------------------------------------------------- refused before a kernel starts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "abc"), ("seed", 1.5), ("seed", True), ("task", 123), ("use_bias", 1), ("use_bias", "true"),
        ("learning_rate", False), ("learning_rate", float("nan")), ("seed", None), ("sizes", 3), ("sizes", "3"),
    ],
)  # fmt: skip
def test_wrong_type_of_a_parameter(place, name, value):
    place.write().is_refused(f"{name} is .*, expected .*, like", parameters={name: value})


@pytest.mark.parametrize(
    ("written", "options", "match"),
    [
        ({}, {"parameters": {"sede": 1}}, "unknown parameter 'sede'. Known: seed, learning_rate, "),
        ({}, {"parameters": {"results_dir": "x"}}, "results_dir: --results"),
        ({"parameters": None}, {}, "0 code cells are tagged"),
        ({"tags": {"records": ["parameters"]}}, {}, "2 code cells are tagged .*'parameters', 'records'"),
        ({"parameters": "seed = 1\nrate = 1 / seed"}, {}, "no notebook with literal parameters"),
        ({"last": "!false"}, {}, "cell records: Jupyter hides a shell's failure"),
        ({"last": "%%bash\nfalse"}, {}, "hides"),
        ({"last": "files = !ls"}, {}, "hides"),
        ({"last": "import os\nos.system('false')"}, {}, "hides"),
    ],
)
def test_refused(place, written, options, match):
    place.write(**written).is_refused(match, **options)


def test_no_notebook_and_output_that_would_replace_it(place):
    place.is_refused("FileNotFoundError")
    place.path.write_text("{")
    with pytest.raises(NotebookError, match="is no notebook"):
        place.run()
    with pytest.raises(NotebookError, match="would replace it"):
        place.write().run(output_dir=place.folder)
    assert place.path.exists()


def test_what_is_no_shell_command():
    for source in ("x = 1\nx != 2", "# !ls", "%matplotlib inline", "%%time\nsum([1])", "    %pip install --quiet x"):
        assert not run.SHELL.search(source), source


# ---------------------------------------------------------------- the command


def test_command_runs_the_rest_after_a_failure(tmp_path, monkeypatch, capfd):
    bad = Place(tmp_path, "01_bad").write("1 / 0")
    good = Place(tmp_path, "02_good").write("print(task, seed)")
    table = pd.DataFrame({"test": [0.5]}, index=["LoRA"])
    monkeypatch.setattr("helpers.scoreboard.table_of", lambda folder: table, raising=False)
    parameters = ["-p", "task", "1", "-p", "seed", "7"]
    assert run.main([str(bad.path), str(good.path), "--results", str(tmp_path / "results"), *parameters]) == 1
    out, err = capfd.readouterr()
    assert os.environ["HF_TOKEN"] not in out + err
    lines = out.splitlines()
    assert lines[0].startswith("02_good  ") and lines[0].endswith(" s  it learned")
    assert re.fullmatch(r"  slowest cells: ([\w-]+ \d+ s, ){2}[\w-]+ \d+ s", lines[1])
    assert "LoRA" in out and "1 of 2 notebooks passed" in out and lines[-1].strip() == str(good.output / "02_good.html")
    assert "FAILED  01_bad.ipynb, cell cell-0" in err
    assert (bad.output / "01_bad.failed.ipynb").exists() and good.records.exists()
    executed = nbformat.read(good.output / "02_good.ipynb", as_version=4)
    assert executed.cells[3].outputs[0].text == "1 7\n"


def test_command_refuses_before_the_first_notebook(place):
    place.write()
    for more in (["-p", "sede", "1"], ["-p", "seed", "abc"], ["absent.ipynb"]):
        with pytest.raises(SystemExit, match=r"sede|abc|absent"):
            run.main([str(place.path), *more])
    assert not place.marker.exists()
