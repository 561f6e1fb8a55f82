"""Counting, fingerprints, seconds and memory, device and precision, records and scoreboard, plots."""

import dataclasses
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from cards import fake_cuda
from torch import nn

import helpers
from helpers.records import FIELDS, TECHNIQUES

matplotlib.use("Agg")


def test_import_touches_nothing():
    """No GPU, no network, no global style, no heavy library: only names.

    The guards of `Trainer` come last: with PEFT installed, transformers' own callbacks load
    PEFT, and that loads bitsandbytes. Nothing else may do so.
    """
    code = """
import socket, sys
socket.socket.connect = lambda *a: sys.exit("network")
import helpers
heavy = {"torch", "transformers", "datasets", "matplotlib", "bitsandbytes"} & set(sys.modules)
assert not heavy, heavy
guards = {"LossWatch", "group_by_length"}
for name in set(helpers.__all__) - guards:
    getattr(helpers, name)
assert "bitsandbytes" not in sys.modules
for name in guards:
    getattr(helpers, name)
import matplotlib, torch
assert not torch.cuda.is_initialized()
assert {k: v for k, v in matplotlib.rcParams.items() if k != "backend"} == {
    k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_parameters_are_counted_once_and_by_hand():
    layer = nn.Linear(10, 4)  # 44 parameters
    head = nn.Linear(4, 3)  # 15
    head.weight.requires_grad_(False)
    both = helpers.count_parameters(nn.Sequential(layer, layer), head)
    assert (both.total, both.trainable) == (59, 47)
    assert str(both) == "47 of 59 parameters are trained (79.66%)"


def test_four_bit_weights_count_with_their_true_number():
    packed = nn.Linear(1, 32, bias=False)
    packed.weight.quant_state = SimpleNamespace(shape=torch.Size([8, 8]))
    assert helpers.count_parameters(packed).total == 64


def test_fingerprint_notices_one_bit_and_only_what_it_should():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    everything, frozen = helpers.fingerprint(model), helpers.fingerprint(model, only_frozen=True)
    with torch.no_grad():
        model[1].bias[0] += 1
    assert helpers.fingerprint(model) != everything
    assert helpers.fingerprint(model, only_frozen=True) == frozen
    bits = model[0].weight.data.view(torch.int32)
    bits[0, 0] ^= 1
    assert helpers.fingerprint(model, only_frozen=True) != frozen


def test_fingerprint_reads_half_precision():
    assert helpers.fingerprint(nn.Linear(3, 3).bfloat16()) != helpers.fingerprint(nn.Linear(3, 3).bfloat16())


def test_measure_sees_seconds_and_a_peak_that_is_gone_again():
    with helpers.measure() as cost:
        block = torch.ones(64 * 2**20)  # 256 MiB
        time.sleep(0.5)  # long enough to be sampled on a busy machine
        del block
        time.sleep(0.1)
    assert 0.6 <= cost.seconds < 4
    assert 250 <= cost.peak_mib < 330
    with helpers.measure() as cost, pytest.raises(ValueError):
        raise ValueError
    assert cost.peak_mib < 50


# ---------------------------------------------------------------- device and precision


def test_a_card_without_kernels_is_not_chosen(monkeypatch):
    fake_cuda(monkeypatch, (6, 0), ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"])
    machine = helpers.choose_machine()
    assert machine.device == "cpu"
    assert "a card (sm_60) has no kernels in this PyTorch" in str(machine)
    with pytest.raises(helpers.DeviceError, match=r"sm_60.*Use device='cpu'"):
        helpers.choose_machine(device="cuda")


def test_bfloat16_only_from_capability_8(monkeypatch):
    fake_cuda(monkeypatch, (7, 5), ["sm_75", "sm_90"])
    machine = helpers.choose_machine()
    assert (machine.device, machine.precision) == ("cuda", torch.float32)
    assert str(machine).startswith("cuda, float32 (") and "\n" not in str(machine)
    with pytest.raises(helpers.DeviceError, match=r"capability 7\.5.*float16"):
        helpers.choose_machine(precision="bfloat16")
    fake_cuda(monkeypatch, (8, 6), ["sm_80"])  # runs kernels built for 8.0
    assert helpers.choose_machine().precision == torch.bfloat16


def test_kernels_of_two_digit_generations(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_90a", "sm_100", "sm_120", "compute_120"])
    fits = [(9, 0), (10, 0), (10, 3), (12, 0)]
    assert [helpers.machine.has_kernels(*card) for card in fits] == [True] * 4
    assert not any(helpers.machine.has_kernels(*card) for card in [(1, 0), (8, 9), (11, 0)])


def test_unknown_names_are_refused():
    with pytest.raises(helpers.ParameterError, match="device='gpu': expected auto, cpu"):
        helpers.choose_machine(device="gpu")
    with pytest.raises(helpers.ParameterError, match="precision='half'"):
        helpers.choose_machine(precision="half")


def test_precision_follows_the_processor(monkeypatch):
    monkeypatch.setattr("helpers.machine._cpu_features", lambda: set())
    machine = helpers.choose_machine(device="cpu")
    assert machine.precision == torch.float32
    with machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setattr("helpers.machine._cpu_features", lambda: {"avx512_bf16"})
    with helpers.choose_machine(device="cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


# ---------------------------------------------------------------- records and scoreboard


@pytest.fixture(scope="module")
def task():
    return helpers.load_task()


def run(task, technique="tfidf", variant="words", seed=0, value=0.5, split="test", **more):
    return helpers.record(
        notebook="note", technique=technique, variant=variant, backbone="none", task=task, split=split, seed=seed,
        metrics={"accuracy": value, "macro_f1": value / 2}, **more,
    )  # fmt: skip


def test_records_have_the_agreed_fields_and_are_finite(task):
    first, second = run(task)
    assert (first.metric, second.metric) == ("accuracy", "macro_f1") and second.value == 0.25
    agreed = (
        "notebook technique variant backbone task task_fingerprint split seed metric value trainable_parameters "
        "total_parameters adapter_bytes train_seconds peak_mib device versions"
    )
    assert agreed.split() == list(FIELDS)
    assert first.versions["torch"] == torch.__version__
    with pytest.raises(helpers.ParameterError, match=r"accuracy of tfidf .* is nan"):
        run(task, value=float("nan"))
    with pytest.raises(helpers.ParameterError, match=r"technique='magic': expected one of majority"):
        run(task, technique="magic")


def test_scoreboard_joins_seeds_and_shows_what_was_not_run(task, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.records.MEASUREMENTS", tmp_path / "none")
    records = [r for seed, value in enumerate((0.6, 0.7, 0.8)) for r in run(task, seed=seed, value=value)]
    records += run(task, value=0.4, split="test_shifted")
    path = helpers.write_records(records, notebook="note", results_dir=str(tmp_path))
    assert path.name == "note.json" and len(json.loads(path.read_text())) == 8
    table = helpers.scoreboard(str(tmp_path))
    row = table[table["technique"] == "tfidf"].iloc[0]
    assert row["test"] == pytest.approx(70) and row["spread"] == pytest.approx(10) and row["seeds"] == 3
    assert row["test_shifted"] == pytest.approx(40)
    assert list(table["technique"]) == list(TECHNIQUES)
    assert (table[table["technique"] != "tfidf"]["variant"] == "not run").all()


def test_recorded_runs_stand_beside_live_ones_and_are_marked(task, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.records.MEASUREMENTS", tmp_path / "recorded")
    helpers.write_records(run(task), notebook="note", results_dir=str(tmp_path))
    (tmp_path / "records").rename(tmp_path / "recorded")
    helpers.write_records(run(task, value=0.9), notebook="note", results_dir=str(tmp_path))
    table = helpers.scoreboard(str(tmp_path)).set_index("source")
    assert (table.loc["this run", "test"], table.loc["recorded", "test"]) == (90, 50)


def test_scoreboard_keeps_backbones_apart_and_knows_its_metrics(task, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.records.MEASUREMENTS", tmp_path / "none")
    other = [dataclasses.replace(record, backbone="other", value=0.9) for record in run(task)]
    helpers.write_records([*run(task), *other], notebook="note", results_dir=str(tmp_path))
    table = helpers.scoreboard(str(tmp_path))
    assert sorted(table[table["technique"] == "tfidf"]["test"]) == [50, 90]
    with pytest.raises(helpers.ParameterError, match="metric='f1': the records have accuracy, macro_f1"):
        helpers.scoreboard(str(tmp_path), metric="f1")


def test_a_broken_records_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("[{]")
    with pytest.raises(helpers.DataError, match=r"bad\.json, line 1: not valid JSON"):
        helpers.read_records(tmp_path)
    (tmp_path / "bad.json").write_text('[{"notebook": "x"}]')
    with pytest.raises(helpers.DataError, match=r"bad\.json, record 1: no field 'technique'"):
        helpers.read_records(tmp_path)


# ---------------------------------------------------------------- plots


def test_plots_draw_on_the_axes_they_are_given_and_return_them():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    _, ax = plt.subplots()
    lines = helpers.plot_lines({"a": {1: [1, 3], 2: [4]}, "b": {1: [2], 2: [2]}}, xlabel="x", ylabel="y (%)", ax=ax)
    assert lines is ax and ax.get_lines()[0].get_ydata().tolist() == [2, 4]
    styles = {(line.get_marker(), line.get_linestyle()) for line in ax.get_lines()}
    assert len(styles) == 2, "series must differ by more than colour"
    scores = helpers.plot_scores({"one": {"test": [50.0], "test_shifted": [40.0]}}, xlabel="accuracy (%)")
    assert scores.get_xlabel() == "accuracy (%)"
    helpers.plot_learning_curves({"run": [3.0, 2.0, 1.0]})
    dots = helpers.plot_map(np.zeros((30, 2)), list(range(15)) * 2, [f"label {i}" for i in range(15)])
    assert len(dots.get_legend().get_texts()) == 13  # twelve labels and the rest
    matrix = helpers.plot_confusion([0, 0, 1], [0, 1, 1], ["x", "y"])
    assert matrix.images[0].get_array().tolist() == [[1, 1], [0, 1]]
    assert dict(matplotlib.rcParams) == before
    plt.close("all")
