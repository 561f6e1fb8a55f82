"""Executes the notebooks strictly and asserts what was learned, not only that they ran."""

import ast
import json
import re
import threading
from pathlib import Path

import nbformat
import psutil
import pytest
from docstrings import write_csv

from tools.run_notebooks import run_notebook

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "notebooks" / "01_feature_extraction.ipynb"


class Run:
    """An executed notebook: its records, what its cells printed, and the most memory it held."""

    def __init__(self, notebook: Path, folder: Path, **parameters):
        peak, done = [0], threading.Event()

        def watch():
            while not done.wait(0.2):
                total = 0
                for child in psutil.Process().children(recursive=True):
                    try:
                        total += child.memory_info().rss
                    except psutil.Error:
                        continue
                peak[0] = max(peak[0], total)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            self.result = run_notebook(
                notebook, output_dir=folder / "executed", results_dir=folder, parameters=parameters
            )
        finally:
            done.set()
            watcher.join()
        self.peak_gib = peak[0] / 2**30
        self.records = json.loads(self.result.records.read_text())
        cells = nbformat.read(self.result.executed, as_version=4).cells
        self.printed = {
            cell.id: "".join(output.get("text", "") for output in cell.outputs)
            for cell in cells
            if cell.cell_type == "code"
        }
        self.pictures = {
            cell.id
            for cell in cells
            if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs)
        }

    def value(self, technique, variant="", split="test", metric="accuracy"):
        """The one record that fits; `variant` may be a part of the name."""
        found = [
            record["value"]
            for record in self.records
            if (record["technique"], record["split"], record["metric"]) == (technique, split, metric)
            and variant in record["variant"]
        ]
        assert len(found) == 1, f"{technique}, {variant}: {len(found)} records"
        return found[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return Run(FIRST, tmp_path_factory.mktemp("first"))


def test_baselines_are_where_they_must_be(first):
    assert first.value("majority") == pytest.approx(1 / 12, abs=1e-4)
    assert first.value("random_init") < first.value("tfidf") - 0.15, "the architecture alone must clearly fail"
    assert first.value("feature_extraction", "joined") > first.value("random_init") + 0.2


def test_the_model_was_frozen_and_read_once(first):
    assert "fingerprint unchanged" in first.printed["cache-gain"]
    assert "0 of 22,713,216 parameters are trained" in first.printed["freeze"]
    assert int(re.search(r"(\d+) times as fast", first.printed["cache-gain"])[1]) >= 2


def test_few_labels_are_where_pretraining_pays_most(first):
    gaps = ast.literal_eval(re.search(r"\{.*\}", first.printed["few-figure"])[0])
    assert gaps[2] > 5 and gaps[8] > 5, gaps
    assert gaps[8] > gaps[100], gaps


def test_only_what_is_trainable_moves_and_the_first_loss_is_known(first):
    expected, measured = re.findall(r"\d\.\d{3}", first.printed["smoke"])[:2]
    assert expected == "2.485" and abs(float(measured) - 2.485) < 0.01
    assert "what is frozen has not moved, what is trainable has" in first.printed["smoke"]


def test_padding_is_masked_and_saved(first):
    assert "[[ 2., 20.]]" in first.printed["mean-pool"]
    tokens = [int(number.replace(",", "")) for number in re.findall(r"([\d,]{5,})\n", first.printed["padding-bill"])]
    real, sorted_batches, unsorted, fixed = tokens
    assert real <= sorted_batches < unsorted < fixed and sorted_batches < 1.1 * real


def test_adapting_beats_the_frozen_last_layer(first):
    frozen = first.value("feature_extraction", "last layer, mean")
    values = {
        record["variant"].removesuffix(", 150 steps"): record["value"]
        for record in first.records
        if record["technique"].endswith("fine_tuning") and record["split"] == "test" and record["metric"] == "accuracy"
    }
    assert set(values) == {"last block", "last 2 blocks", "last 3 blocks", "everything", "probe, then everything"}
    assert values["everything"] > frozen + 0.02


def test_counts_are_exact(first):
    trained = {
        record["variant"].removesuffix(", 150 steps"): record["trainable_parameters"] for record in first.records
    }
    block, width, labels = 1_774_464, 384, 12
    head = labels * (width + 1)
    assert trained["last block"] == block + head and trained["last 3 blocks"] == 3 * block + head
    assert trained["everything"] == 22_713_216 + head
    assert trained["last layer, mean"] == trained["random weights, last layer, mean"] == head


def test_the_head_that_starts_from_the_probe_answers_like_it(first):
    assert float(re.search(r"([\d.]+)%", first.printed["lpft-head"])[1]) > 99


def test_both_tests_both_metrics_and_the_costs_are_recorded(first):
    kinds = {(record["split"], record["metric"]) for record in first.records}
    assert kinds == {(split, metric) for split in ("test", "test_shifted") for metric in ("accuracy", "macro_f1")}
    for record in first.records:
        if record["technique"].endswith("fine_tuning"):
            assert record["train_seconds"] > 1 and record["peak_mib"] > 10
    assert {"map", "layer-figure", "few-figure", "curves", "depth-figure", "confusion", "records"} <= first.pictures


def test_no_cell_warned(first):
    noisy = {cell: text for cell, text in first.printed.items() if re.search(r"[Ww]arning|Traceback", text)}
    assert not noisy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "labels", "depth", "train_examples"), [(5_000, 6, 1, 0), (10_000, 77, 3, 1_540)], ids=["6", "77"]
)
def test_your_own_file_works_unedited(tmp_path, rows, labels, depth, train_examples):
    """Real text of public style; fewer steps, draws and training examples than by default keep `make test` short."""
    write_csv(tmp_path / "own.csv", rows=rows, labels=labels, depth=depth)
    run = Run(
        FIRST,
        tmp_path,
        task=str(tmp_path / "own.csv"),
        fine_tuning_steps=10,
        draws=1,
        train_examples=train_examples,
    )
    assert {record["task"] for record in run.records} == {"own"}
    assert {record["split"] for record in run.records} == {"test"}
    assert run.value("feature_extraction", "joined") > run.value("majority") + 0.2
    assert run.peak_gib < 6
