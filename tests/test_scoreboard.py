"""The books of a notebook: what is measured, kept, compared, read back; figures and exercises."""

import json
import math
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from helpers import Scoreboard, check, choose_machine, load_task, plots
from helpers.errors import DataError, ParameterError
from helpers.hub import ENCODER
from helpers.scoreboard import FIELDS, TECHNIQUES, read_records, table_of

matplotlib.use("Agg")
TASK = load_task(train_examples=96)
MACHINE = choose_machine(device="cpu", precision="float32")
TRUTH = np.array(TASK.targets("test"))
GOOGLE = "docstrings, google style"


@pytest.fixture
def board(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.scoreboard.MEASUREMENTS", tmp_path / "recorded")
    return Scoreboard("note", TASK, backbone="tiny", seed=0, machine=MACHINE, results_dir=str(tmp_path))


def scored(board, technique="lora", label="r=8", wrong=120, splits=("test",), **settings):
    """A run of which the first `wrong` answers are wrong."""
    with board.run(technique, label, **settings) as run:
        pass
    for split in splits:
        truth = np.array(TASK.targets(split))
        run.score(split, np.where(np.arange(len(truth)) < wrong, (truth + 1) % 12, truth))
    return run


def record_what_was_kept(board, tmp_path):
    board.save(quiet=True)
    (tmp_path / "records").rename(tmp_path / "recorded")
    board.records.clear()


def test_a_run_is_measured_and_recorded_with_the_agreed_fields(board):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 12))
    model[0].requires_grad_(False)
    board.step_loss = lambda model: model(torch.ones(16, 4)).sum()
    with board.run("partial_fine_tuning", "last", depth=1) as run:
        run.model = model
    assert run.score("test", torch.eye(12)[torch.tensor(TRUTH)]) == 100 and run.seconds > 0
    assert (run.count.trainable, run.count.total, run.adapter_bytes) == (108, 148, 432)
    assert run.step_mib * 2**20 == pytest.approx(4 * (148 + 3 * 108) + 2 * 4 + 4 * 16 * 8)  # AdamW counts its steps
    accuracy, f1 = board.records
    assert set(accuracy) == set(FIELDS) and [accuracy["metric"], f1["metric"]] == ["accuracy", "macro_f1"]
    assert accuracy["settings"] == {"train_examples": 96, "per_label": 8, "depth": 1}
    assert accuracy["versions"]["torch"] == torch.__version__ and accuracy["task_fingerprint"] == TASK.fingerprint
    # An estimator counts with its weights and biases.
    probe = make_pipeline(StandardScaler(), LogisticRegression()).fit(np.eye(3), [0, 1, 2])
    with board.run("feature_extraction", "frozen") as run:
        run.model = [nn.Linear(2, 2).requires_grad_(False), probe]
    assert (run.count.trainable, run.count.total) == (12, 18)


def test_what_cannot_be_a_record_is_refused(board):
    with pytest.raises(ParameterError, match=r"technique='magic': expected one of majority"):
        board.run("magic", "x")
    with board.run("tfidf", "x") as run:
        pass
    with pytest.raises(ParameterError, match="accuracy of tfidf is nan"):
        run.keep("test", accuracy=math.nan)
    with pytest.raises(ParameterError, match="3 predictions for the 480 texts of 'test'"):
        run.score("test", [0, 1, 2])
    with pytest.raises(ZeroDivisionError), board.run("tfidf", "x") as run:
        1 / 0  # noqa: B018


def test_verdicts_are_words_and_ties_are_ties(board):
    good, same, bad = (scored(board, label=name, wrong=n) for name, n in {"a": 120, "b": 121, "c": 300}.items())
    difference = good.against(bad)
    gain = np.r_[np.zeros(120), np.full(180, 100.0), np.zeros(180)]
    assert difference.points == pytest.approx(37.5)
    assert difference.error == pytest.approx(gain.std(ddof=1) / math.sqrt(480))
    assert str(difference).startswith("a is ahead of c (test: +37.5 points, standard error 2.2")
    assert str(bad.against(good)).startswith("c is behind a") and str(good.against(same)).startswith("a and b are tied")
    assert good.against(good).is_tie


def test_live_and_recorded_points_stand_side_by_side(board, tmp_path):
    for seed, wrong in enumerate((48, 96, 144)):
        board.seed = seed
        scored(board, wrong=wrong, rank=8, targets="q,v")
    scored(board, wrong=0, rank=8, targets="other", sweep=True)
    record_what_was_kept(board, tmp_path)
    scored(board, wrong=240, rank=4, targets="q,v")
    found = board.lines(x="rank", series="targets", targets="q,v")
    assert found == {"q,v": {4: [50.0]}, "q,v (recorded)": {8: [90.0, 80.0, 70.0]}}
    assert list(board.lines(x="rank", series="technique", targets=["other"])) == ["LoRA (recorded)"]
    assert board.lines(x="rank", series="targets", split="validation") == {}
    assert len(board.recorded(rank=8, sweep=True)) == 2 and board.recorded(no_such_column=1).empty


@pytest.mark.parametrize(
    "numbers, wanted",
    [
        *(({"steps": wrong}, "a whole number from 1.") for wrong in (0, 2.0, True)),
        *(({"head_learning_rate": wrong}, "a finite number above 0.") for wrong in (0, math.nan, math.inf, True)),
        *(({"max_tokens": wrong}, "a whole number from 1 to 512.") for wrong in (0, 513)),
        ({"seed": -1}, "a whole number from 0."),
    ],
)
def test_a_number_that_cannot_work_is_refused_at_once(numbers, wanted):
    about = {"backbone": ENCODER, "machine": MACHINE, "seed": 0, "steps": 1, "rate": 1, "max_tokens": 512}
    Scoreboard("note", TASK, **about)
    with pytest.raises(ParameterError) as refusal:
        Scoreboard("note", TASK, **about | numbers)
    (name, value), *_ = numbers.items()
    assert str(refusal.value) == f"{name}={value!r}: expected {wanted}"


def test_the_table_takes_what_validation_prefers_and_says_what_was_not_run(board, tmp_path):
    both = ("test", "validation")
    scored(board, label="not judged", wrong=0)
    scored(board, label="chosen", wrong=100, splits=(*both, "test_shifted"))
    scored(board, label="better on test", wrong=50)
    board.records += [{**record, "split": "validation", "value": 0.1} for record in board.records[-2:]]
    scored(board, label="fewer texts", wrong=0, splits=both, train_examples=48)
    table = board.table()
    assert list(table.columns) == ["topics", "shifted", "form", "names", "trained", "variant"]
    assert list(table.index) == list(TECHNIQUES.values()) and len(table) <= 12
    found = [round(100 * 380 / 480, 1), round(100 * 140 / 240, 1)]
    assert list(table.loc["LoRA"]) == [*found, "", "", "0", "chosen"]
    assert (table.drop("LoRA")["variant"] == "not run").all()


def kept(
    board, variant, technique="lora", *, task=GOOGLE, trained=7, backbone="writer", notebook="note", **values
):  # fmt: skip
    """Records of docstrings: `test=(form, names)`, `validation=(form, names)`."""
    about = {"notebook": notebook, "technique": technique, "variant": variant, "settings": {"train_examples": 5}}
    about |= {"backbone": backbone, "task": task, "task_fingerprint": task, "seed": 0, "device": "cpu", "versions": {}}
    costs = {"trainable_parameters": trained, "total_parameters": 9, "adapter_bytes": 28, "train_seconds": 1.0}
    for split, pair in values.items():
        for metric, value in zip(("form", "names", "ended"), (*pair, 1.0)):
            found = {"split": split, "metric": metric, "value": value, "step_mib": 0.0}
            board.records.append(about | costs | found)


def test_both_tasks_stand_in_one_table(board):
    scored(board, label="on topics", wrong=120)
    board.records.append({**board.records[0], "task_fingerprint": "other topics", "value": 1.0})
    kept(board, "numpy", task="docstrings, numpy style", test=(0.1, 0.1))
    kept(board, "form alone", trained=12_345, test=(0.95, 0.1), validation=(1.0, 0.2))
    kept(board, "chosen", trained=12_345, test=(0.9, 0.6), validation=(0.8, 0.7))
    kept(board, "chosen, merged", trained=0, test=(0.9, 0.7), validation=(0.9, 0.7))
    kept(board, "one", "full_fine_tuning", trained=22_717_836, test=(0.5, 0.25))
    table = board.table()
    assert list(table.loc["LoRA"]) == [75.0, "", 90.0, 60.0, "0 / 12 k", "on topics / chosen"]
    assert list(table.loc["everything"]) == ["", "", 50.0, 25.0, "22.7 M", "one"]
    assert [plots.short(n) for n in (0, 7_680, 338_700, 999_600)] == ["0", "7,680", "339 k", "1.0 M"]


def test_what_was_recorded_is_marked_and_helps_to_choose(board, tmp_path):
    for label, right in {"a": 0.4, "b": 0.6}.items():
        scored(board, label=label, splits=("validation",))
        board.records[-2]["value"] = right  # accuracy
    scored(board, "qlora", "four bits", wrong=240)
    kept(board, "a", validation=(0.9, 0.9))
    kept(board, "b", validation=(0.1, 0.1))
    kept(board, "b", "full_fine_tuning", test=(0.5, 0.5))
    kept(board, "c", test=(1.0, 1.0))
    kept(board, "b", "prefix_tuning", test=(0.5, 0.5), backbone="another model")
    record_what_was_kept(board, tmp_path)
    alone = table_of(tmp_path)
    assert alone.loc["QLoRA", "variant"] == "four bits (recorded)" and alone.loc["prefix tuning", "names"] == 50
    for label in "abc":
        scored(board, label=label, wrong=120)
        kept(board, label, test=(0.7, 0.7))
    table = board.table()
    assert table.loc["LoRA", "variant"] == "b / a" and table.loc["QLoRA", "variant"] == "four bits (recorded)"
    assert table.loc["everything", "variant"] == "b (recorded)" and table.loc["everything", "form"] == 50
    assert table.loc["prefix tuning", "variant"] == "not run"
    kept(board, "b", validation=(1.0, 1.0))  # a value of today goes before the recorded one
    assert board.table().loc["LoRA", "variant"] == "b"


def test_one_name_in_two_notebooks_is_two_runs(board, tmp_path):
    kept(board, "LoRA", test=(0.9, 0.6), validation=(0.9, 0.6))
    kept(board, "LoRA", test=(0.7, 0.2), validation=(0.7, 0.2), notebook="another")
    kept(board, "only there", test=(0.1, 0.1), notebook="another")
    record_what_was_kept(board, tmp_path)
    found = board.recorded(task=SimpleNamespace(name=GOOGLE), split="test", metric="names")
    assert found.set_index("variant")["value"].to_dict() == {"LoRA": 0.6, "only there": 0.1}
    assert table_of(tmp_path).loc["LoRA", "names"] == 60
    kept(board, "LoRA", test=(0.9, 0.6), notebook="another")
    board.records[-1]["settings"] = board.records[-2]["settings"] = board.records[-3]["settings"] = {"curve": True}
    (tmp_path / "recorded" / "more.json").write_text(json.dumps(board.records), encoding="utf-8")
    board.records.clear()
    points = board.lines(x="notebook", metric="names", task=SimpleNamespace(name=GOOGLE), curve=True)
    assert points == {"LoRA (recorded)": {"another": [60.0]}}, "of what is asked for this notebook has none"


def test_docstrings_of_your_code_are_not_mixed_with_those_of_packages(board, tmp_path):
    kept(board, "packages", "full_fine_tuning", test=(0.9, 0.9))
    record_what_was_kept(board, tmp_path)
    assert board.table().loc["everything", "variant"] == "packages (recorded)"
    kept(board, "numpy", task="docstrings of mine, numpy style", test=(0.1, 0.1))
    assert board.table().loc["LoRA", "variant"] == "numpy"
    kept(board, "google", task="docstrings of mine, google style", test=(0.2, 0.2))
    table = board.table()
    assert table.loc["LoRA", "variant"] == "google" and table.loc["everything", "variant"] == "not run"


def test_the_figure_has_two_panels_with_the_names_at_their_points(board, tmp_path):
    kept(board, "b", "full_fine_tuning", trained=22_717_836, test=(0.5, 0.0))
    record_what_was_kept(board, tmp_path)
    scored(board, wrong=120, splits=("test", "test_shifted"))
    scored(board, "full_fine_tuning", "all", wrong=120)
    scored(board, "majority", "always the same", wrong=440)
    kept(board, "b", trained=12_345, test=(0.9, 0.6))
    figure = board.figure()
    figure.draw_without_rendering()
    topics, docstrings = figure.axes
    assert [label.get_text() for label in topics.get_yticklabels()] == ["most frequent label", "everything", "LoRA"]
    told = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert told[0][:2] == ["\u25cf topics", "\u25a0 shifted"] and told[1][:2] == ["\u25b2 form", "\u25c6 names"]
    assert told[0][3:] == ["0", "\u2190 topics 8.3", "0", "0"] and told[1][3:] == ["22.7 M", "12 k"]
    assert topics.get_xlim()[0] > 30 and docstrings.get_xlim() == (0, 100)
    drawn = [(line.get_xdata()[0], line.get_marker(), line.get_markerfacecolor()) for line in docstrings.get_lines()]
    green, pink = plots.COLOURS[2:4]
    assert drawn == [(50, "^", "white"), (0, "D", "white"), (90, "^", green), (60, "D", pink)]
    assert [line.get_markerfacecolor() != "white" for line in topics.get_lines()] == [True] * 3
    assert figure.get_supxlabel() == "filled: ran live; hollow: recorded"
    nothing = plots.scoreboard(table_of(tmp_path / "nothing", fingerprint="of no task").iloc[:0])
    assert "nothing was recorded" in [text.get_text() for text in nothing.axes[0].texts]
    plt.close("all")


def test_notes_and_records_are_written(board, tmp_path, capsys):
    scored(board)
    board.note("largest difference", np.float32(0.5))
    board.save()
    assert json.loads((tmp_path / "notes" / "note.json").read_text()) == {"largest difference": 0.5}
    assert len(read_records(tmp_path / "records")) == 2 and capsys.readouterr().out.startswith("2 records kept")
    for bad, said in {"[{]": ": line 1", '[{"notebook": "x"}]': "adapter_bytes", "3": "'int'", "[3]": "'int'"}.items():
        (tmp_path / "records" / "note.json").write_text(bad)
        with pytest.raises(DataError, match=rf"note\.json: no list of records \(.*{said}"):
            read_records(tmp_path / "records")


def test_plots_draw_on_the_axes_they_are_given_and_return_them():
    _, ax = plt.subplots()
    lines = plots.lines({"a": {1: [1, 3], 2: [4]}, "b (recorded)": {1: [2], 2: [2]}}, xlabel="x", ylabel="y", ax=ax)
    assert lines is ax and ax.get_lines()[0].get_ydata().tolist() == [2, 4]
    styles = {(line.get_marker(), line.get_linestyle(), line.get_markerfacecolor()) for line in ax.get_lines()}
    assert len(styles) == 2 and ax.get_lines()[1].get_markerfacecolor() == "white"
    assert "nothing was recorded" in plots.lines({}, xlabel="x", ylabel="y").texts[0].get_text()
    plots.scores({"one": {"test": [50.0], "test_shifted": [40.0]}, "two": {"test": [1.0]}}, xlabel="accuracy (%)")
    runs = plots.curves({"run": [3.0, 2.0, 1.0], "longer": [*range(12)]}).get_lines()
    assert [run.get_ydata().tolist()[-3:] for run in runs] == [[3.0, 2.5, 2.0], [4.5, 5.5, 6.5]]
    bill = SimpleNamespace(parts=lambda: {"weights": 50 * 2**30, "activations": 30 * 2**30})
    billed = plots.bills({"full": bill}, cards={"A": 60.0, "B": 66.0, "C": 70.0})  # B and C: 5 % of the axis apart
    assert [text.get_text() for text in billed.texts] == ["80.0", "A", "B, C"]
    assert plots.escape("label $") == r"label \$"
    bars = plots.parts({"one": {"weights": 1.0, "rest": 2.0}, "two": {"weights": 3.0, "rest": 4.0}}, xlabel="MiB")
    assert [text.get_text() for text in bars.texts] == ["3.0", "7.0"]
    colours = [patch.get_facecolor() for patch in plots.stack(6, 2).patches if hasattr(patch, "get_boxstyle")]
    assert len(colours) == 9 and len(set(colours[:5])) == 1 and colours[5] == colours[6] == colours[8] != colours[0]
    plt.close("all")


def test_an_exercise_accepts_what_is_right_and_invites_dots(capsys):
    check(..., 5, "hint")
    pairs = (8.33, 100 / 12), ((2, 20), (2, 20)), ([2.0, 20.0], (2, 20)), ("a", "a"), (abs, lambda f: f(-1) == 1)
    for answer, right in pairs:
        check(answer, right, "hint")
    assert capsys.readouterr().out.count("Right.") == len(pairs)
    wrong = (9, 100 / 12), (2, (2, 2)), ("b", "a"), (len, lambda f: False), ("8.33", 100 / 12), ("abs", lambda f: f(-1))
    for answer, right in wrong:
        with pytest.raises(AssertionError, match=r"Not yet\. think"):
            check(answer, right, "think")
