"""The program that made the language model: what goes into the corpus, what is held out, and that it can be resumed."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from helpers import choose_machine, fingerprint
from helpers.hub import LANGUAGE_MODEL
from pretraining import corpus, helpdesk, train
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
    assert corpus._texts("town", str(file), "") == [
        (
            "town",
            "docstring",
            "def moor(ferry, pier: int=0) -> bool:",
            "Tie the ferry to a pier and say whether it held.",
        ),
        (
            "town",
            "docstring",
            "class Harbour(Place):",
            "All piers of one town, with the ferries that are moored there.",
        ),
        (
            "town",
            "comment",
            "",
            "The harbour is asked first, because a ferry\ndoes not know which of its piers are free.",
        ),
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


def test_one_docstring_in_a_hundred_is_held_out_and_one_in_four_has_its_signature():
    found = corpus.divide([("town", "docstring", "def f():", f"Return the ferry number {i}.") for i in range(20_000)])
    held_out = [t for t in found if t.split == "held_out_docstrings"]
    signed = [t for t in found if t.text.startswith("def f():\n")]
    assert 150 < len(held_out) < 250 and 4700 < len(signed) < 5200
    assert not {t.text for t in held_out} & {t.text.removeprefix("def f():\n") for t in found if t.split == "train"}
    assert not set(held_out) & set(signed)


def test_corpus_is_of_pinned_packages_in_a_fixed_order():
    names = [package.name.lower() for package in corpus.packages()]
    assert {"torch", "transformers", "numpy", "ipython", "tornado"} <= set(names)
    assert "fine-tuning-techniques" not in names and "pip" not in names
    assert names == [package.name.lower() for package in corpus.packages()]


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
    assert len(windows(one[:4], 5)) == 0


def test_stream_reads_each_epoch_once_in_another_order():
    tokens, starts = np.arange(60, dtype=np.uint16), np.array([0, 10, 25, 40, 60])
    stream = train.Stream(tokens, starts, seed=0)
    first, second = stream.read(0, 60).tolist(), stream.read(60, 60).tolist()
    assert sorted(first) == sorted(second) == tokens.tolist() and first != second
    assert stream.read(50, 20).tolist() == first[50:] + second[:10]
    assert stream.read(0, 60).tolist() == first


def test_learning_rate_and_length_over_the_run():
    recipe = train.PRESETS["cpu"]
    rates = [train.rate_at(step, recipe) for step in range(recipe.steps)]
    assert rates[0] < 0.05 and max(rates) == 1 and 0 < rates[-1] < 0.01
    lengths = [train.length_at(step, recipe) for step in range(recipe.steps)]
    assert lengths == sorted(lengths) and lengths[0] == 256 and lengths[-1] == 1024
    assert all(recipe.tokens_per_step % length == 0 for length in lengths)


def test_the_recorded_recipe_is_the_preset():
    log = json.loads((LANGUAGE_MODEL / "training_log.json").read_text(encoding="utf-8"))
    assert train.Recipe(**log["recipe"]) == train.PRESETS["cpu"]


@pytest.fixture
def prepared(tmp_path):
    """A cache as `train` makes it, of a few sentences, and a recipe for a very small model."""
    cache = tmp_path / "cache"
    cache.mkdir()
    texts = [corpus.Text("town", "docstring", f"Return ferry {i} of {i * i}.", "train") for i in range(400)]
    tokenizer = train.train_tokenizer(texts, 300)
    train.save_tokenizer(tokenizer, cache / "tokenizer")
    tokens, starts = train.encode(tokenizer, [t.text for t in texts])
    np.savez(cache / "tokens.npz", tokens=tokens, starts=starts)
    (cache / "held_out.json").write_text(json.dumps(["Return ferry 9999 of 1."]))
    recipe = train.Recipe(
        width=64, layers=1, mlp_width=128, vocabulary=300, steps=8, tokens_per_step=1024, micro_batch_tokens=512
    )
    return cache, recipe


def weights_of(folder):
    return fingerprint(train.LlamaForCausalLM.from_pretrained(folder))


def test_stopped_and_started_again_gives_the_same_weights(prepared, tmp_path, monkeypatch, capsys):
    cache, recipe = prepared
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "PRINT_EVERY", 2)
    monkeypatch.setattr(train, "EVALUATE_EVERY", 4)
    train.train(recipe, tmp_path / "whole", cache, compiled=False)
    train.train(recipe, tmp_path / "parts", cache, compiled=False, stop_at=5)
    assert not (tmp_path / "parts").exists() and (cache / "checkpoint.pt").exists()
    with pytest.raises(SystemExit, match="another recipe"):
        train.train(train.Recipe(steps=9), tmp_path / "parts", cache, compiled=False)
    train.train(recipe, tmp_path / "parts", cache, compiled=False)
    said = capsys.readouterr().out
    assert "goes on from step 4" in said and "tokens/s" in said
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    assert not (cache / "checkpoint.pt").exists()
    curve = json.loads((tmp_path / "parts" / "training_log.json").read_text())["curve"]
    assert [e["step"] for e in curve] == [2, 4, 6, 8]
    assert curve[-1]["held_out_loss"] < curve[1]["held_out_loss"] < math.log(300)
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert AutoTokenizer.from_pretrained(tmp_path / "parts").eos_token == "<|end|>"


def test_a_loss_that_is_not_finite_stops_the_run(prepared, tmp_path, monkeypatch):
    cache, recipe = prepared
    monkeypatch.setattr(train, "next_token_loss", lambda model, ids: model.lm_head.weight.sum() * float("nan"))
    with pytest.raises(SystemExit, match="step 0: the loss is nan"):
        train.train(recipe, tmp_path / "never", cache, compiled=False)
    assert not (tmp_path / "never").exists()


# ---------------------------------------------------------------- the helpdesk comparison


def test_helpdesk_loss_is_on_the_reply_only_and_the_end_is_learned():
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    pair = helpdesk.read_pairs("train")[0]
    ids, labels = helpdesk.encode_pair(tokenizer, pair)
    counted = labels != helpdesk.IGNORED
    assert tokenizer.decode(ids[~counted], skip_special_tokens=True) == helpdesk.prompt_of(pair.question)
    assert tokenizer.decode(ids[counted]) == f" {pair.reply}<|end|>"
    assert torch.equal(ids[counted], labels[counted])


def test_fine_tuning_teaches_replies_that_end_by_themselves():
    """Eight questions learned by heart: every reply word for word, each with its end."""
    from helpers import load_language_model

    machine = choose_machine()
    model, tokenizer = load_language_model(quiet=True)
    pairs = helpdesk.read_pairs("train")[:8]
    questions = [pair.question for pair in pairs]
    before = helpdesk.grade(pairs, helpdesk.answer(model, tokenizer, questions, machine))
    helpdesk.fine_tune(model, tokenizer, pairs, machine, epochs=30, batch=8)
    after = helpdesk.grade(pairs, helpdesk.answer(model, tokenizer, questions, machine))
    assert before["exact_match"] == 0
    assert after["exact_match"] >= 7 / 8 and after["topic_accuracy"] >= 7 / 8 and after["ended"] == 1


def test_grade_knows_right_near_and_wrong_replies():
    pair, same_topic, other = (helpdesk.read_pairs("train")[i] for i in (0, 1, 2))
    assert pair.topic == same_topic.topic != other.topic and pair.reply != same_topic.reply
    cut = pair.reply[: int(len(pair.reply) * 0.8)]
    replies = [
        (pair.reply, True),
        (cut, False),
        (same_topic.reply, True),
        (other.reply, True),
        ("nothing at all", True),
    ]
    assert helpdesk.grade([pair] * 5, replies) == {"exact_match": 0.2, "topic_accuracy": 0.6, "ended": 0.8}
