"""The benchmark: both sides of a row do the same work, ours is the notebooks', and the page is what was recorded."""

import inspect
import json

import pandas as pd
import pytest
import torch

import benchmarks
import helpers
from benchmarks import limits, ours, page, peers, run
from helpers.hub import ENCODER

ABOUT = {"date": "2026-01-02", "hardware": "a box, 2 cores"}
ONE = "generate, one by one"


def test_both_sides_of_a_row_have_the_same_texts_and_steps():
    found, only_theirs = {}, {"style", "iterations", "rate"}
    for (row, _, pair), module, function, told in run.jobs(False):
        inspect.signature(getattr(getattr(benchmarks, module), function)).bind({}, benchmarks.Clock(), **told)
        if module != "limits":
            shared = {name: value for name, value in told.items() if name not in only_theirs}
            assert found.setdefault((row, pair), shared) == shared
        assert "rate" in told or module != "peers" or "steps" not in told
    assert [who[1:] for who, *_ in run.jobs(False) if who[0] == "generation"] == [
        ("ours", 0), (ONE, 0), (ONE, 1), ("ours", 1), ("memory", 0)
    ]  # fmt: skip
    assert {who[0] for who, *_ in run.jobs(True)} == {who[0] for who, *_ in run.jobs(False)}


def test_a_measurement_is_made_once(tmp_path, monkeypatch):
    asked = []

    def start(module, function, options):
        asked.append(function)
        if function == "prepare":
            (tmp_path / "data.json").write_text("{}")
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"seconds": 1.5}

    monkeypatch.setattr(run, "start", start)
    monkeypatch.setattr(run, "make_peers", lambda: None)
    monkeypatch.setattr(benchmarks, "FOLDER", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.bench(True, "generation")
    for _ in range(2):
        run.bench(True, "generation")
    assert asked == ["prepare", *["generation"] * 3, "reading"]  # the second of the three was interrupted
    lines = [json.loads(line) for line in (tmp_path / "measured.jsonl").read_text().splitlines()]
    assert [line["module"] for line in lines] == ["ours", "peers", "limits"]


def recorded():
    def measured(row, side, pair, module="limits", rate=None, **found):
        rows.append(ABOUT | {"row": row, "side": side, "pair": pair, "module": module, "rate": rate, **found})

    rows, good = [], {"measure": "accuracy", "validation": 60.0, "test": 60.0}
    for row, theirs in {"A": 9.0, "B": -9.0}.items():  # points by which theirs is ahead on test, at the chosen rate
        for pair, (one, two) in enumerate([(2.0, 5.0), (1.0, 4.0)]):
            measured(row, "ours", pair, "ours", seconds=one, peak_mib=900.0, added_mib=50.0, **good)
            score = {"measure": "accuracy", "validation": 50.0 + 9 * pair, "test": (95.0, 60.0 + theirs)[pair]}
            measured(
                row, "them", pair, "peers", (1e-3, 1e-2)[pair], seconds=two, peak_mib=950.0, added_mib=70.0, **score
            )
    for row, seconds, size in (("C", 1.5, 6.0), ("D", 6.0, 4.0)):
        same = {"added_mib": 2.0, "measure": "answers"}
        measured(row, "ours", 0, "ours", seconds=3.0, peak_mib=5.0, answers=[1, 2], **same)
        measured(row, "them", 0, "peers", seconds=seconds, peak_mib=size, answers=[1, 3], **same)
        measured(row, "them", 1, "peers", seconds=99.0, peak_mib=size, answers=[1, 3], **same)  # its pair is not made
    for row in rows:
        if row["row"] == "D":
            row["hardware"] = "another box"
    measured("A", "matrix products", 0, seconds=2.0, least=1.0, told="aten::mm 75")
    for pair, seconds in enumerate((1.25, 2.0, 1.0)):
        measured("a busy machine", "alone", pair, least=1.0, seconds=seconds, told="")
    measured("growth", "tokens", 0, growth={"step, s": [[1, 1.0], [10, 100.0]], "MiB": [[1, 1.0], [10, 10.0]]})
    return rows


def test_the_page_says_first_where_ours_is_behind_and_names_what_is_not_at_equal_accuracy(tmp_path):
    text = page.page(recorded())
    first, rest = text.split("## Where it is not")
    quality = "accuracy 60.0 / 69.0 (rate 0.01)"  # the rate that is better on validation, though worse on test
    costs = "3.25 (2.50 to 4.00) | 1.5 / 4.5"
    assert f"| A | them | {costs} | {quality} | 900 (+50) / 950 (+70) | 2 | less accurate |" in first
    assert (
        "| C | them | 0.50 (0.50 to 0.50) | 3.0 / 1.5 | 50 % the same answers | 5 (+2) / 6 (+2) | 1 | slower |" in first
    )
    assert "on a box, 2 cores. Each" in first and "†: measured on another box, 2026-01-02." in first
    assert "| D † | them |" in first and "| 5 (+2) / 4 (+2) | 1 | more memory |" in first
    assert "| B | them | 3.25 " in rest and "| theirs is less accurate: no ratio at equal accuracy |" in rest
    assert "| A | matrix products | 1.00 | 2.00 | 50.00 (50.00 to 50.00) | aten::mm 75 |" in rest
    assert "| a busy machine | alone | 1.00 | 1.25 | 80.00 (50.00 to 100.00) |" in rest
    assert rest.endswith("by an exponent above 1.2: step, s by tokens 2.00.\n")
    page.draw(pd.DataFrame(recorded()), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_page_in_docs_is_the_recorded_one():
    if not (run.ROOT / "benchmarks" / "measured.json").exists():
        pytest.skip("the benchmark has not been recorded yet")
    rows = json.loads((run.ROOT / "benchmarks" / "measured.json").read_text(encoding="utf-8"))
    assert (run.ROOT / "docs" / "speed.md").read_text(encoding="utf-8") == page.page(rows)


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(helpers, "load_docstrings", helpers.load_docstrings)  # `cells` replaces it
    pairs = [(f"def add_{i}(one, other):", "Add two.\n\nArgs:\n    one: A.\n    other: B.") for i in range(8)]
    drawn = {split: [["some text", "a longer other text"], [0, 1]] for split in ("train", "validation", "test")}
    models = {"language_model": str(helpers.hub.LANGUAGE_MODEL), "encoder": str(helpers.hub.find_model(ENCODER)[0])}
    return {"docstrings": dict.fromkeys(drawn, pairs), "topics": {"some 2 0": drawn}} | models


def test_both_sides_train(data):
    clock, told = benchmarks.Clock(), {"technique": "lora", "steps": 1, "seed": 0}
    for found in (ours.language(data, clock, **told), peers.language(data, clock, **told, style="Trainer", rate=1e-3)):
        assert found["measure"] == "perplexity" and 1 < found["test"] < 1000
    found = peers.topics(data, clock, **told, task="some", train_examples=2, style="PEFT", rate=1e-3)
    assert found["measure"] == "accuracy" and found["test"] in (0, 50, 100) and 0 < clock.found["seconds"] < 60
    _, words = helpers.load_language_model(quiet=True)
    short, long = (peers.ids_of(words, data["docstrings"]["test"][0], length) for length in (None, 64))
    assert {len(ids) for ids in long.values()} == {64} and sum(long["attention_mask"]) == len(short["labels"]) < 64
    assert words.decode([token for token in long["labels"] if token != -100]).startswith("Add two.")


def test_features_are_fitted(data):
    found = ours.features(data, benchmarks.Clock(), task="helpdesk", train_examples=96, seed=0)
    assert found["measure"] == "accuracy" and 35 < found["test"] < 65


def test_limits_are_below_what_is_measured(data):
    for side, told in {"products": {"side": "language", "technique": "lora", "steps": 1}, "reading": {}}.items():
        clock = benchmarks.Clock()
        found = getattr(limits, side)(data, clock, **told)
        assert 0 < found["least"] < clock.found["seconds"], found
    batches = min(4, torch.get_num_threads())  # `generate` writes so many at a time, each with steps of its own
    assert 95 * batches <= int(found["told"].split()[0]) <= 96 * batches
