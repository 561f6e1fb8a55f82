"""What a maintainer's commands write: recorded measurements, docs/results.md, the offline kit, platforms."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import nbformat
import pytest
from executed import repository

from helpers import plots
from helpers.scoreboard import TECHNIQUES
from tools import drawings, measure, new_notebook, offline_kit, pages, platforms, results
from tools.run import ROOT, RunResult, check_parameters


def record(**changes):
    fields = {"technique": "lora", "variant": "r=8", "settings": {"train_examples": 8}, "backbone": "b", "task": "t"}
    fields |= {"split": "test", "seed": 0, "metric": "accuracy", "value": 0.5, "trainable_parameters": 1234}
    fields |= {"step_mib": None, "train_seconds": 2.5, "command": "make x", "date": "2026-01-02", "hardware": "a box"}
    return fields | changes


def test_measurements_are_recorded_once_and_resumed(tmp_path, monkeypatch):
    asked, threads = [], []

    def run(path, *, output_dir, results_dir, parameters, cell_timeout, environment):
        asked.append(parameters)
        threads.append(environment.get("OMP_NUM_THREADS"))
        rows = [record(seed=parameters["seed"], settings={"train_examples": n}) for n in (8, parameters["n"])]
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "records.json").write_text(json.dumps(rows))
        return RunResult(path, path, output_dir / "records.json", 1.0)

    monkeypatch.setattr(measure, "run_notebook", run)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "FULL_SIZE", {"01_x": [{"n": 32}, {"n": 100}]})
    rows = measure.measure("01_x")
    assert asked == [{"seed": seed, "n": n} for n in (32, 100) for seed in (0, 1, 2)]
    shown = [(row["seed"], row["settings"]["train_examples"]) for row in rows]
    assert len(shown) == len(set(shown)) == 9, "a record that two sets of parameters share is kept once"
    assert rows[0]["command"] == "python -m tools.measure 01_x" and "cores" in rows[0]["hardware"] and rows[0]["date"]
    assert measure.measure("01_x", resume=True) == rows and len(asked) == 6
    shutil.rmtree(tmp_path / "results" / "measure" / "01_x" / "1-2")
    assert measure.measure("01_x", resume=True) == rows and asked[6:] == [{"seed": 2, "n": 100}]
    assert threads == [None] * 7
    together = measure.measure("01_x", at_once=1000)
    told = {"command": "python -m tools.measure 01_x --at-once 1000", "hardware": together[0]["hardware"]}
    assert together == [row | told for row in rows]
    assert threads[7:] == ["1"] * 6 and together[0]["hardware"].endswith(", 1000 runs at once of 1 threads")
    measure.write_rows(tmp_path / "rows.json", rows)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert len((tmp_path / "rows.json").read_text().splitlines()) == 11 and len(list(tmp_path.glob("rows*"))) == 1


def test_every_set_of_parameters_fits_its_notebook():
    assert {*measure.FULL_SIZE, "02_lora"} <= {*measure.NOTEBOOKS}
    assert measure.sets_of("02_lora") == [{"full_size": True}] and len(measure.sets_of("01_feature_extraction")) == 3
    for notebook in measure.NOTEBOOKS:
        for parameters in measure.sets_of(notebook):
            check_parameters(ROOT / "notebooks" / f"{notebook}.ipynb", {"seed": 0, **parameters})


PAGES = {results.PAGE: results.page, **pages.PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_what_its_command_writes(path):
    assert path.read_text(encoding="utf-8") == PAGES[path](), "run `make results` and `python -m tools.pages`"


DRAWN = {
    "lora": ("02_lora", "LoRA"),
    "qlora": ("03_qlora", "QLoRA"),
    "prompt_tuning": ("04_prompt_tuning", "soft prompt"),
}


@pytest.mark.parametrize("path", drawings.PAGES, ids=lambda path: path.stem)
def test_a_drawing_is_shown_in_its_notebook_as_it_is_and_tells_what_recorded_runs_stored(path):
    """The picture in the page is the file; who does not see it is told the same."""
    (notebook,) = (ROOT / "notebooks").glob(f"*_{path.stem}.ipynb")
    assert f'helpers.plots.drawing(\\"{path.stem}\\")' in notebook.read_text(encoding="utf-8")
    picture = ElementTree.fromstring(plots.drawing(path.stem).data.replace('auto">', 'auto"/>'))
    svg = base64.b64decode(picture.get("src").partition("base64,")[2])
    assert svg == path.read_bytes() and len(svg) < 10_000
    title, told, *_ = (element.text for element in ElementTree.fromstring(svg))
    assert picture.get("alt") == f"{title}. {told}"
    if path.stem in DRAWN:
        stem, variant = DRAWN[path.stem]
        rows = json.loads((ROOT / "data" / "measurements" / f"{stem}.json").read_text(encoding="utf-8"))
        stored = {row["adapter_bytes"] for row in rows if row["variant"] == variant}
        assert [drawings.size(count) in told for count in stored] == [True]


def test_a_new_notebook_is_the_template_with_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setitem(TECHNIQUES, "ia3", "IA3")
    path = new_notebook.new_notebook("05_ia3", "Scale it", tmp_path)
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    text = "\n".join(cell.source for cell in cells)
    assert cells[0].source.startswith("# Scale it\n") and "template" not in text and '"lora"' not in text
    assert 'helpers.Scoreboard("05_ia3"' in text and 'train("ia3"' in text and "notebooks/05_ia3.ipynb" in text
    assert [cell.id for cell in cells] == [cell.id for cell in nbformat.read(new_notebook.TEMPLATE, 4).cells]
    check_parameters(path, {"seed": 1})
    for name, title, said in (
        ("05_ia3", "Again", "a new name"), ("ia3", "T", "a new name"), ("06_ia3", "", "a title"), ("05_x", "T", "row")
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=said):
            new_notebook.new_notebook(name, title, tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["05_ia3.ipynb"]


def test_what_the_readme_shows_of_a_run_is_kept(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell("", metadata={"papermill": {"duration": s}}) for s in (61.2, 0.4, None)]
    six = [["def f(a):", "before", "after"]]
    for folder in ("executed", "notes"):
        (tmp_path / folder).mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "executed" / "02_lora.ipynb")
    (tmp_path / "notes" / "02_lora.json").write_text(json.dumps({"six": six}))
    monkeypatch.setattr(results, "NOTEBOOKS", ["02_lora"])
    kept = results.run_of_all(tmp_path)
    assert kept["minutes"]["seconds"] == {"02_lora": 62} and kept["docstrings"]["six"] == six
    page = results.before_and_after(**kept["docstrings"])
    assert "def f(a):\n\n  before  before\n\n  after   after\n" in page and kept["minutes"]["hardware"] in page


def test_tables_show_means_over_seeds():
    rows = [record(seed=seed, value=0.5 + seed / 10, train_seconds=seed) for seed in (0, 1, 2)]
    rows += [record(split="test_shifted", value=0.25), record(split="validation", metric="loss", value=1.23456)]
    scores, others = results.of_notebook(rows).split("Other metrics")
    assert "Recorded by `make x`, 2026-01-02, on a box." in scores
    assert "| lora | r=8 | 8 | 60.0 ± 10.0 | 25.0 | 1,234 | - | 1 ± 1 | 3 |" in scores
    assert "| lora | r=8 | 8 | loss | validation | 1.23 | 1 |" in others and "accuracy" not in others


@pytest.mark.skipif(os.name == "nt", reason="starts the kit's shell script")
def test_offline_kit_installs_and_runs_without_a_network(tmp_path):
    """The real kit with a small list of packages: all packages take minutes (`make offline-kit`)."""
    root = tmp_path / "repository"
    for name in ("helpers", "data/language_model", "tools"):
        (root / name).mkdir(parents=True)
    repository(root)
    for name in ("helpers/__init__.py", "tools/__init__.py", "README.md", "data/language_model/config.json"):
        (root / name).touch()
    (root / "tools" / "run.py").write_text("import six, sys, helpers\nprint('ran', helpers.__file__, sys.argv[1:])\n")
    (root / "requirements.txt").write_text(re.search("^six==.*", (ROOT / "requirements.txt").read_text(), re.M)[0])
    for path in (ROOT / "pyproject.toml", *ROOT.glob("LICENSE*")):
        shutil.copy(path, root)
    kit = offline_kit.write_kit(tmp_path / "kits to carry", root)
    assert kit.name.endswith(f"python{sys.version_info.major}.{sys.version_info.minor}")
    for name in ("workshop.sh", "workshop.command", "workshop.bat"):  # a double click opens what students get
        opened = re.search(r"start\.(?:sh|bat)\"\)?\"? -m jupyterlab (\S+)", (kit / name).read_text())[1].replace(
            "\\", "/"
        )
        assert len([*(kit / opened).glob("*.ipynb")]) == len([*(kit / "workshop" / "instructor").iterdir()]) == 4
    assert {"plan.md", "workshop.md", "cheatsheet.md"} <= {path.name for path in (kit / "workshop").iterdir()}
    assert {path.name.split("-")[0] for path in (kit / "wheels").iterdir()} == {"six", "fine_tuning_techniques"}
    lonely = ["unshare", "--net", "--map-root-user"]  # no network interface at all, where this machine can do that
    can = shutil.which("unshare") and subprocess.run([*lonely, "true"], capture_output=True).returncode == 0
    command = [*(lonely if can else []), "sh", str(kit / "start.sh"), "-m", "tools.run", "a b"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and f"ran {kit / '.venv'}" in run.stdout and "['a b']" in run.stdout, run.stderr
    next((kit / "wheels").glob("six*")).unlink()
    shutil.rmtree(kit / ".venv")
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode, "a missing wheel must not be fetched"


def test_platforms_list_what_the_notebooks_import_and_all_learned_the_same():
    rows = json.loads(platforms.RESULTS.read_text(encoding="utf-8"))
    lists = {path.stem: path.read_text(encoding="utf-8") for path in platforms.RESULTS.parent.glob("*.txt")}
    newest = set(re.findall(r"^[a-z-]+", lists["newest"], re.MULTILINE))
    assert re.search(r"^torch==.*", lists["newest"], re.MULTILINE)[0] + " " in (ROOT / "requirements.txt").read_text()
    for name, text in lists.items():
        listed = set(re.findall(r"^[a-z0-9-]+", text, re.MULTILINE))
        assert newest - listed == set() and "bitsandbytes" not in listed, (name, newest - listed)
        assert re.search(r"^# python 3\.1[123]$", text, re.MULTILINE)
    ran = {row["notebook"] for row in rows}
    assert {(row["platform"], row["notebook"]) for row in rows} == {(p, n) for p in lists for n in ran}
    # Another version may round differently, and must not learn something else.
    for notebook in ran:
        learned = [row["accuracy"] for row in rows if row["notebook"] == notebook and "accuracy" in row]
        assert max(learned) - min(learned) < 0.04, (notebook, learned)
