"""The program that made the language model: what goes into the corpus, what is held out, and that it can be resumed."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from helpers import choose_machine, fingerprint
from helpers.hub import LANGUAGE_MODEL
from pretraining import corpus, report, train
from pretraining.ngrams import Trigram, windows

SOURCE = '''
# Copyright of somebody, all rights reserved, and more words of a licence that nobody reads.

# The harbour is asked first, because a ferry
# does not know which of its piers are free.
def moor(ferry, pier: int = 0) -> bool:
    """Tie the ferry to a pier and say whether it held."""
    x = 1  # a remark behind code is not a text of its own, however long it may be
    # x = compute(y[0], z={1: 2}) + f(3) * (4 - g(5)) // h[6:7] ** 8
    return True


class Harbour(Place):
    """All piers of one town, with the ferries that are moored there."""

    def lonely(self):
        """Short one."""
'''


def test_texts_of_a_file(tmp_path):
    file = tmp_path / "harbour.py"
    file.write_text(SOURCE)
    about = "All piers of one town, with the ferries that are moored there."
    remark = "The harbour is asked first, because a ferry\ndoes not know which of its piers are free."
    assert [found[1:] for found in corpus._texts("town", str(file), "")] == [
        ("docstring", "def moor(ferry, pier: int=0) -> bool:", "Tie the ferry to a pier and say whether it held."),
        ("docstring", "class Harbour(Place):", about),
        ("comment", "", remark),
    ]
    file.write_text("def broken(:\n")
    assert corpus._texts("town", str(file), "") == []


def test_texts_are_kept_once_and_held_out_packages_stay_out_of_training():
    held_out = corpus.HELD_OUT_PACKAGES[0]
    shared = "Say how many ferries are moored here."
    found = corpus.divide(
        [
            ("town", "docstring", "", shared),
            ("town", "comment", "", "A remark on the tides, and on the moon."),
            ("village", "comment", "", "A  remark on the TIDES,\nand on the moon."),
            (held_out, "docstring", "", shared),
            (held_out, "comment", "", "A comment of a package that is held out."),
        ]
    )
    assert [(t.package, t.split) for t in found] == [(held_out, "held_out_packages"), ("town", "train")]


def test_one_docstring_in_a_hundred_is_held_out_and_all_others_follow_their_signature():
    found = corpus.divide([("town", "docstring", "def f():", f"Return the ferry number {i}.") for i in range(20_000)])
    held_out = [t for t in found if t.split == "held_out_docstrings"]
    signed = [t for t in found if t.text.startswith("def f():\n")]
    assert 150 < len(held_out) < 250 and len(signed) == 20_000 - len(held_out)
    assert not set(held_out) & set(signed), "a held-out text must not show its signature"
    again = corpus.divide([("village", "docstring", "", t.text.upper()) for t in found])
    assert {t.text.lower() for t in again if t.split == "held_out_docstrings"} >= {t.text.lower() for t in held_out}


def test_corpus_is_of_pinned_packages_in_a_fixed_order(monkeypatch):
    names = [corpus.canonical(package.name) for package in corpus.packages()]
    assert {"torch", "transformers", "numpy", "ipython", "tornado"} <= set(names)
    assert "fine-tuning-techniques" not in names and "pip" not in names
    assert names == sorted(set(names))
    monkeypatch.setattr(corpus, "HELD_OUT_PACKAGES", ("ipython", "harbour-tools"))
    with pytest.raises(SystemExit, match="harbour-tools: held out for validation, but not installed"):
        corpus.packages()


def test_trigram_probabilities_sum_to_one_and_follow_the_counts():
    ids = np.array([0, 1, 2, 0, 1, 2, 0, 1, 3, 4], dtype=np.uint16)
    model = Trigram(ids, vocabulary=6)
    for context in ([0, 1], [4, 4], [1, 5]):
        p = [model.probabilities(np.array([*context, token]))[0] for token in range(6)]
        assert sum(p) == pytest.approx(1) and min(p) > 0
    # By hand: 0 1 was followed by 2 twice and by 3 once; 1 by 2 twice and by 3 once; 2 was seen twice in ten.
    unigram = (2 + 1) / (10 + 6)
    bigram = (2 - 0.75) / 3 + 0.75 * 2 / 3 * unigram
    assert model.probabilities(np.array([0, 1, 2]))[0] == pytest.approx((2 - 0.75) / 3 + 0.75 * 2 / 3 * bigram)


def test_windows_find_what_two_texts_share():
    one, other = np.arange(100, dtype=np.uint16), np.arange(90, 190, dtype=np.uint16)
    assert len(windows(one, 5)) == len(set(windows(one, 5))) == 96
    assert np.isin(windows(other, 5), windows(one, 5)).sum() == 6
    assert [len(windows(one[:n], 5)) for n in range(7)] == [0, 0, 0, 0, 0, 1, 2]


def test_stream_reads_each_epoch_once_in_another_order():
    tokens, starts = np.arange(60, dtype=np.uint16), np.array([0, 10, 25, 40, 60])
    stream = train.Stream(tokens, starts, seed=0)
    first, second = stream.read(0, 60).tolist(), stream.read(60, 60).tolist()
    assert sorted(first) == sorted(second) == tokens.tolist() and first != second
    assert stream.read(50, 20).tolist() == first[50:] + second[:10]
    assert stream.read(0, 60).tolist() == first


def test_the_recorded_recipe_is_the_preset_and_its_rate_and_length_follow_the_run():
    log = json.loads((LANGUAGE_MODEL / "training_log.json").read_text(encoding="utf-8"))
    recipe = train.PRESETS["cpu"]
    assert train.Recipe(**report.runs_of(log)[0]["recipe"]) == recipe
    rates, lengths = ([at(step, recipe) for step in range(recipe.steps)] for at in (train.rate_at, train.length_at))
    assert rates[0] < 0.05 and max(rates) == 1 and 0 < rates[-1] < 0.01
    assert lengths == sorted(lengths) and lengths[0] == 256 and lengths[-1] == 1024


@pytest.fixture
def tiny_recipe(tmp_path, monkeypatch):
    """A recipe for a very small model, which reads a few sentences in place of the corpus."""
    texts = [corpus.Text("town", "docstring", f"Return ferry {i} of {i * i}.", "train") for i in range(400)]
    tokenizer = train.train_tokenizer(texts, 300)
    tokens, starts = train.encode(tokenizer, [t.text for t in texts])
    prepared = tokenizer, train.Stream(tokens, starts, 0), ["Return ferry 9999 of 1."]
    monkeypatch.setattr(train, "_prepare", lambda recipe, cache, start: prepared)
    monkeypatch.setattr(train, "choose_machine", lambda: choose_machine(device="cpu"))
    recipe = train.Recipe(
        width=64, layers=1, mlp_width=128, vocabulary=300, steps=8, tokens_per_step=1024, micro_batch_tokens=512
    )
    return recipe


def weights_of(folder):
    return fingerprint(train.LlamaForCausalLM.from_pretrained(folder))


def test_stopped_and_started_again_gives_the_same_weights(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "PRINT_EVERY", 2)
    monkeypatch.setattr(train, "EVALUATE_EVERY", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.train(tiny_recipe, whole, tmp_path, compiled=False)
    train.train(tiny_recipe, parts, tmp_path, compiled=False, stop_at=5)
    assert [file.name for file in parts.iterdir()] == ["checkpoint.pt"]
    with pytest.raises(SystemExit, match="another recipe"):
        train.train(dataclasses.replace(tiny_recipe, steps=9), parts, tmp_path, compiled=False)
    train.train(tiny_recipe, parts, tmp_path, compiled=False)
    said = capsys.readouterr().out
    assert "goes on from step 4" in said and "tokens/s" in said
    assert weights_of(parts) == weights_of(whole)
    assert not (parts / "checkpoint.pt").exists()
    curve = json.loads((parts / "training_log.json").read_text())["curve"]
    assert [e["step"] for e in curve] == [2, 4, 6, 8]
    assert curve[-1]["held_out_loss"] < curve[1]["held_out_loss"] < math.log(300)
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert AutoTokenizer.from_pretrained(parts).eos_token == "<|end|>"


def test_a_run_can_go_on_from_a_model(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "PRINT_EVERY", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    train.train(tiny_recipe, first, tmp_path, compiled=False)
    train.train(tiny_recipe, second, tmp_path, compiled=False, start=first)
    logs = [json.loads((folder / "training_log.json").read_text()) for folder in (first, second)]
    losses = [log["curve"][0]["train_loss"] for log in logs]
    assert losses[1] < losses[0] - 0.5, "it begins where the first run ended"
    assert report.runs_of(logs[1]) == [{k: v for k, v in logs[0].items() if k != "before"}, logs[1]]
    tokens = [entry["tokens"] for entry in report.whole_curve(logs[1])]
    assert tokens == sorted(tokens) and tokens[-1] == 2 * tiny_recipe.steps * tiny_recipe.tokens_per_step


def test_muon_in_float32_is_that_of_pytorch():
    """PyTorch's computes in bfloat16, which has three digits."""
    torch.manual_seed(0)
    for shape in ((48, 16), (16, 48)):
        grad, options = torch.randn(shape), ((3.4445, -4.775, 2.0315), 5, 1e-7)
        theirs = torch.optim._muon._zeropower_via_newtonschulz(grad, *options).float()
        ours = train.orthogonal(grad, *options)
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_a_loss_that_is_not_finite_stops_the_run(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "next_token_loss", lambda model, ids: model.lm_head.weight.sum() * float("nan"))
    with pytest.raises(SystemExit, match="step 0: the loss is nan"):
        train.train(tiny_recipe, tmp_path / "never", tmp_path, compiled=False)
    assert not list((tmp_path / "never").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "--width 100"),
        ({"tokens_per_step": 1000}, "--tokens-per-step 1000: expected a multiple of 1024"),
        ({"warmup": 0.0}, "--warmup"),
        ({"steps": 0}, "--steps"),
    ],
)
def test_a_recipe_that_would_fail_after_hours_is_refused_at_once(tiny_recipe, tmp_path, change, message):
    with pytest.raises(SystemExit, match=message):
        train.train(dataclasses.replace(tiny_recipe, **change), tmp_path / "never", tmp_path, compiled=False)
    assert not (tmp_path / "never").exists()
