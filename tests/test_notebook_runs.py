"""What holds for the runs of all notebooks: your own data, one scoreboard, and no secret in what they leave."""

import os

import pytest
from conftest import ROOT

from helpers.scoreboard import TECHNIQUES, table_of


def test_your_own_file_works_unedited(own_first):
    assert {r["task"] for r in own_first.records} == {"own"}
    assert own_first.value("feature_extraction", variant="frozen, last layer", per_label=2) > 3 / 77
    assert own_first.notes["loaded classifier agrees"] == 1.0
    assert {r["technique"] for r in own_first.records} >= {"tfidf", "partial_fine_tuning", "full_fine_tuning"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_second", "own_third", "own_fourth"])
def test_your_own_file_and_your_own_code_work_unedited(started, name):
    records = started[name].result().records
    judged = [record["task"] for record in records if (record["split"], record["metric"]) == ("test", "accuracy")]
    assert judged == ["own"] * (4 if name == "own_second" else 2)
    written = {record["task"] for record in records if record["metric"] == "form"}
    assert written == {"docstrings of rich, google style", "docstrings of rich, numpy style"}


def test_the_scoreboard_is_complete(first, second, third, fourth, tmp_path):
    (tmp_path / "records").mkdir()
    for run in (first, second, third, fourth):
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
