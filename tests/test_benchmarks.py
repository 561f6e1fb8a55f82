"""The benchmark: both sides of a row do the same work, ours is the notebooks', and the page is what was recorded."""

import inspect
import json

import pytest

import benchmarks
import helpers
from benchmarks import limits, ours, page, peers, run
from benchmarks.run import ROOT

MODULES = {"benchmarks.ours": ours, "benchmarks.peers": peers, "benchmarks.limits": limits}
ABOUT = {"command": "make bench", "date": "2026-01-02", "hardware": "a box", "versions": {"torch": "1"}}


def measured(row, side, pair, **found):
    return {"who": {"row": row, "side": side, "pair": pair}, "options": {}, "found": found}


def test_both_sides_of_a_row_have_the_same_texts_and_steps():
    found, only_theirs = {}, {"style", "iterations"}
    for who, python, module, side, told, policy in run.jobs(False, 0):
        inspect.signature(MODULES[module].SIDES[side]).bind({}, benchmarks.Clock(), **told)
        assert (python == run.PEERS) == (module == "benchmarks.peers")
        assert policy == "PASSIVE" or who["row"] == "a busy machine"
        if module != "benchmarks.limits":
            shared = {name: value for name, value in told.items() if name not in only_theirs}
            assert found.setdefault((who["row"], who["pair"]), shared) == shared
    assert {row for row, _ in found} == set(run.ROWS)
    turns = [who["side"] for who, *_ in run.jobs(False, 0) if who["row"] == "features, topics"]
    one, two = turns[:2]
    assert turns == [one, two, two, one, one, two, two, one, one, two, "limit"] and one != two


def test_a_measurement_is_made_once(tmp_path, monkeypatch):
    asked = []

    def start(python, module, *told, policy="PASSIVE"):
        asked.append((module, *told))
        if told[0] == "prepare":
            (tmp_path / "data.json").write_text("{}")
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 'noise\n{"seconds": 1.5}\n'

    for name, value in {"start": start, "make_peers": lambda: None}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(benchmarks, "FOLDER", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.bench(True, "generation", 0)
    run.bench(True, "generation", 0)
    assert [module for module, *_ in asked] == [f"benchmarks.{n}" for n in ("ours", "ours", "peers", "peers", "limits")]
    lines = [json.loads(line) for line in (tmp_path / "measured.jsonl").read_text().splitlines()]
    assert [line["who"]["side"] for line in lines] == ["ours", "generate, one by one", "limit"]
    assert lines[0]["found"]["seconds"] == 1.5
    run.bench(True, "generation", 0)
    assert len(asked) == 5


def recorded():
    rows = [ABOUT]
    for pair, (one, two) in enumerate([(2.0, 5.0), (1.0, 4.0), (4.0, 8.0)]):
        rows.append(measured("A", "ours", pair, seconds=one, peak_mib=900.0, added_mib=50.0, test=60.0 + pair))
        rows.append(measured("A", "them", pair, seconds=two, peak_mib=800.0, added_mib=70.0, test=70.0))
    rows.append(measured("B", "ours", 0, seconds=3.0, peak_mib=5.0, added_mib=2.0, answers=[1, 2]))
    rows.append(measured("B", "them", 0, seconds=1.5, peak_mib=6.0, added_mib=2.0, answers=[1, 3]))
    rows.append(
        measured("B", "them", 1, seconds=1.5, peak_mib=6.0, added_mib=2.0, answers=[1, 3])
    )  # its pair is not finished
    limit = {"operations": 4e9, "rates": {"float32": 1e9, "bfloat16": 4e9}, "types": {"float32": 1, "bfloat16": 5}}
    limit |= {"products_seconds": 1.5, "profile": {"attention": 1.0, "matrix products": 3.0}}
    rows.append(measured("A", "limit", 0, seconds=2.0, peak_mib=1.0, **limit))
    reading = {"tokens": 100, "steps": 10, "weights_bytes": 3e6, "cache_bytes": 1e6, "bytes_a_second": 1e8}
    rows.append(measured("B", "limit", 0, seconds=0.8, peak_mib=1.0, **reading))
    rows += [
        measured("a busy machine", "PASSIVE", pair, alone=1.0, seconds=s) for pair, s in enumerate((1.25, 2.0, 1.0))
    ]
    points = {"step, s": [[1, 1.0], [10, 100.0]], "step, MiB": [[1, 1.0], [10, 10.0]]}
    return [*rows, measured("growth", "tokens", 0, growth=points)]


def test_the_page_says_what_was_recorded(tmp_path):
    text = page.page(recorded())
    first, table = text.split("## Beside what people run instead")
    assert "- A, beside them: 100 MiB more memory, -20 of it by what is measured.\n" in first
    assert "- B, beside them: 2.00 times the seconds.\n" in first and first.count("\n- ") == 3
    assert "- A, beside them: 9.0 points less on test.\n" in first
    assert (
        "| A | them | 2.0 | 5.0 | 2.50 (2.00 to 4.00) | test: 61.0 against 70.0 | 900 (+50) | 800 (+70) | 3 |" in table
    )
    assert "| B | them | 3.0 | 1.5 | 0.50 (0.50 to 0.50) | 50 % the same | 5 (+2) | 6 (+2) | 1 |" in table
    assert "| A | 4 | 4 | 2.00 | 1.00 | 1.50 | 50 | 75 | matrix products 75, attention 25 |" in table
    assert "all steps would take 0.4 s, 50 % of ours." in table.replace("\n", " ")
    assert "| PASSIVE | 1.0 | 1.2 | 80 (50 to 100) | 3 |" in table
    assert table.endswith("by an exponent above 1.2: step, s by tokens a text, 2.00.\n")
    page.draw(page.growth(recorded()[1:]), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_page_in_docs_is_the_recorded_one():
    if not (ROOT / "benchmarks" / "measured.json").exists():
        pytest.skip("the benchmark has not been recorded yet")
    rows = json.loads((ROOT / "benchmarks" / "measured.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "speed.md").read_text(encoding="utf-8") == page.page(rows)


def test_our_side_trains_with_the_cells_of_the_notebook(monkeypatch):
    monkeypatch.setattr(helpers, "load_docstrings", helpers.load_docstrings)  # `cells` replaces it
    pairs = [(f"def add_{i}(one, other):", "Add two.\n\nArgs:\n    one: A.\n    other: B.") for i in range(16)]
    data, clock = {"docstrings": {split: pairs for split in ("train", "validation", "test")}}, benchmarks.Clock()
    found = ours.language(data, clock, technique="lora", steps=1, seed=0)
    assert 1 < found["perplexity"] < 1000 and 0 < clock.found["seconds"] < 60 and clock.found["peak_mib"] > 100


def test_peers_pad_to_the_maximum_length_and_leave_the_prompt_out():
    _, words = helpers.load_language_model(quiet=True)
    row = peers.ids_of(words, ("def add(a):", "Add."), 32)
    assert {len(values) for values in row.values()} == {32}
    learned = [token for token in row["labels"] if token != -100]
    assert words.decode(learned) == f"Add.{words.eos_token}"
    assert sum(row["attention_mask"]) == len(words("def add(a):\n")["input_ids"]) + len(learned)


def test_products_are_counted_and_repeated():
    import torch

    one, two = torch.randn(2, 64, 64)
    with limits.Products() as products:
        for _ in range(3):
            one @ two
    assert sum(products.counts.values()) == 3 and len(products.counts) == 1 and products.seconds() > 0
