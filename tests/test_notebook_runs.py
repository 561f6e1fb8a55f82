"""What holds for the runs of all notebooks: your own data, one scoreboard, and no secret in what they leave."""

import os
import subprocess
import sys

import nbformat
import pytest
from conftest import AT_A_TIME, EVERY_PAIR, LONG, NAMES, OWN_FILE_ALONE, RUNS
from safetensors.torch import load_file

from helpers.scoreboard import TECHNIQUES, table_of
from tools.run import ROOT

BUDGET = {"01_feature_extraction": 40_000, "02_lora": 45_000, "03_qlora": 35_000, "04_prompt_tuning": 70_000}


def test_your_own_file_works_unedited(own_first):
    assert {r["task"] for r in own_first.records} == {"own"}
    assert own_first.value("feature_extraction", variant="frozen, last layer", per_label=2) > 3 / 77
    assert own_first.notes["loaded classifier agrees"] == 1.0
    assert {r["technique"] for r in own_first.records} >= {"tfidf", "partial_fine_tuning", "full_fine_tuning"}


@pytest.mark.slow
@pytest.mark.parametrize(("run", "classifiers"), [("own_second", 4), ("own_third", 1), ("own_fourth", 2)])
def test_your_own_file_code_and_models_work_unedited(started, run, classifiers):
    """The models are random ones of RoBERTa and GPT-2, DistilBERT and Llama 3, MPNet and Qwen 2.5."""
    records = started[run].result().records
    judged = [record["task"] for record in records if (record["split"], record["metric"]) == ("test", "accuracy")]
    assert judged == ["own"] * classifiers
    written = {record["task"] for record in records if record["metric"] == "form"}
    assert written == {"docstrings of rich, google style", "docstrings of rich, numpy style"}


@pytest.mark.slow
@pytest.mark.parametrize(("run", "notebook"), [("own_second", "02_lora"), ("own_third", "03_qlora")])
def test_the_recipe_that_a_notebook_wrote_runs_as_it_is(started, run, notebook):
    """And it gives the adapter that the notebook trained."""
    folder = started[run].result().folder
    recipe = folder / "recipes" / f"{notebook}.yaml"
    threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // AT_A_TIME))}  # as the notebook had
    subprocess.run([sys.executable, "scale/train.py", recipe], cwd=ROOT, env=os.environ | threads, check=True)
    adapters = [folder / "adapters" / name for name in (f"{notebook}/google", f"scale_{notebook}")]
    theirs, ours = (load_file(adapter / "adapter_model.safetensors") for adapter in adapters)
    assert theirs.keys() == ours.keys() and all(theirs[name].equal(ours[name]) for name in theirs)


def test_every_notebook_says_what_it_found_about_its_technique(every):
    for name, run in zip(NAMES, every):
        assert run.notes["headline"]
        assert name[3:] in {record["technique"] for record in run.records if record["split"] == "test"}, name


@pytest.mark.parametrize("run", OWN_FILE_ALONE)
def test_your_own_file_works_in_any_notebook(started, run):
    """The template is one; so is what `make notebook` makes of it."""
    of_run = started[run].result()
    technique = "lora" if run == "own template" else RUNS[run][0][3:]
    assert (technique, "own") in {(record["technique"], record["task"]) for record in of_run.records}


@pytest.mark.skipif(not LONG, reason="twenty runs take six minutes: LONG=1 make test")
@pytest.mark.parametrize("run", EVERY_PAIR)
def test_what_people_use_most_goes_through_every_notebook(started, run):
    assert started[run].result().records


@pytest.mark.slow
def test_no_notebook_takes_longer_than_its_budget(every, record_property):
    """In reference products (`conftest.REFERENCE`); twice what was measured, so that a busy machine passes."""
    efforts = {run.result.executed.stem: run.effort() for run in every}
    record_property("efforts", efforts)
    over = {name: f"{effort:,.0f}" for name, effort in efforts.items() if effort > BUDGET.get(name, 40_000)}
    assert not over, f"{over}; the slowest cells: make run names them"


def test_the_scoreboard_is_complete(every, tmp_path):
    (tmp_path / "records").mkdir()
    for run in every:
        (tmp_path / "records" / run.result.records.name).write_bytes(run.result.records.read_bytes())
    table = table_of(tmp_path)
    assert list(table.index) == list(TECHNIQUES.values()) and len(table) <= 12
    assert not table["variant"].str.contains("not run").any()
    # Training every weight on docstrings takes a reader too long.
    assert not table.drop("everything")["variant"].str.contains("recorded").any()
    docstrings = ("prompt in words", "everything", "LoRA", "QLoRA", "soft prompt", "prefix tuning")
    assert all(table.loc[name, "form"] != "" for name in docstrings)
    assert not table["variant"].str.contains("rate ").any(), "sweeps are judged on validation only"


def test_no_secret_of_the_environment_is_in_what_a_run_leaves(started):
    """Executed copies, HTML pages, records, notes, adapters; that kernels see it is held by the runner's tests."""
    secret = os.environ["HF_TOKEN"].encode()
    folders = [run.result().folder for run in started.values()] or pytest.skip("no notebook was run")
    files = [path for folder in (*folders, ROOT / "docs") for path in folder.rglob("*") if path.is_file()]
    assert {".ipynb", ".html", ".json", ".md"} <= {path.suffix for path in files}
    assert [str(path) for path in files if secret in path.read_bytes()] == []


def test_every_figure_says_in_words_what_it_shows(every):
    for run in every:
        cells = nbformat.read(run.result.executed, as_version=4).cells
        bundles = [
            output for cell in cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
        ]
        words = [bundle.metadata["image/png"]["alt"] for bundle in bundles]
        assert words and min(map(len, words)) > 30, words
