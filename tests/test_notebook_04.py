"""Notebook 4 teaches what it says: asserted from the notes and records of a run, and from what was recorded."""

import pytest

WORDS = ("as it is", "instruction", "two examples", "other order")


@pytest.fixture(name="recorded")
def of_this_notebook(recorded):
    return lambda variant, *columns, **more: recorded("04_prompt_tuning", *columns, variant=variant, **more)


def test_words_bring_a_part_of_the_form_and_no_names(fourth):
    for name in WORDS:
        assert fourth.value("hard_prompt", metric="form", variant=name) < 0.6
        assert fourth.value("hard_prompt", metric="names", variant=name) < 0.05
    assert fourth.notes["orders agree"] < 0.6, "the same examples in another order write something else"


def test_the_own_prompt_equals_pefts(fourth):
    gaps = fourth.notes["ours and PEFT's"]
    assert gaps.pop("largest") > 1e-4, "zeros would prove nothing"
    assert set(gaps) == {"gradient", "loss", "logits"} and max(gaps.values()) < 1e-4


def test_a_soft_prompt_is_ahead_of_all_words_by_more_than_twice_the_error(fourth, recorded):
    """That not one bit of the model has changed is asserted in the notebook, after each training."""
    ahead = fourth.notes["soft prompt ahead of words, form"]
    assert set(ahead) == set(WORDS)
    assert all(points > 2 * error for points, error in ahead.values()), ahead
    assert recorded("soft prompt") > 60 and recorded("soft prompt") > max(map(recorded, WORDS)) + 10
    assert all(r["adapter_bytes"] == 4 * 20 * 320 for r in fourth.records if r["variant"] == "soft prompt")


def test_the_rate_decides(fourth, recorded):
    names = ("rate 0.001", "soft prompt")
    failed, learned = (fourth.value("prompt_tuning", "validation", "form", variant=name) for name in names)
    assert learned > failed
    sweep = {name: recorded(name, split="validation") for name in (*names, "rate 0.1")}
    assert min(sweep["rate 0.1"], sweep["soft prompt"]) > sweep["rate 0.001"] + 20


def test_every_technique_has_its_place(fourth, recorded):
    soft, prefix, lora = ("soft prompt", "prefix tuning", "LoRA")
    assert recorded(soft) < recorded(prefix) and recorded(soft, "names") < recorded(prefix, "names")
    assert recorded(prefix, "names") < recorded(lora, "names") - 10
    assert fourth.value("prefix_tuning", metric="form") > 0.8
    assert fourth.value("lora", metric="names") > 0.55


def test_a_mixed_batch_answers_like_each_task_alone(fourth):
    assert fourth.notes["mixed batch"] == {"same": 12, "of": 12, "without cache": 4}


def test_a_prompt_is_small_and_comes_back_as_it_was(fourth):
    sizes = fourth.notes["bytes to ship"]
    assert sizes["soft prompt"] == 25_600 and sizes["LoRA"] > 40 * sizes["soft prompt"]
    assert fourth.notes["difference when loaded"] < 1e-3 and "another base" in fourth.notes["refused adapter"]
    for style in ("google", "numpy"):
        assert (fourth.folder / "adapters" / "04_prompt_tuning" / style / "trained_on.json").exists()


def test_what_was_learned_is_no_word(fourth):
    found = fourth.notes["closeness"]
    assert found["learned to word"] < found["word to word"]
    assert found["length, learned"] > 2 * found["length, words"]


def test_beside_a_trained_head_a_prompt_gains_nothing(fourth, recorded):
    assert recorded("prompt and head", "accuracy") < recorded("head only", "accuracy") + 2
    trained = {r["variant"]: r["trainable_parameters"] for r in fourth.records if r["metric"] == "accuracy"}
    assert trained == {"head only": 12 * 385, "prompt and head": 12 * 385 + 20 * 384}


def test_few_parameters_do_not_mean_little_memory(fourth):
    steps = fourth.notes["step MiB"]
    kept = {name: parts["activations"] for name, parts in steps.items()}
    assert kept["soft prompt of 100"] > 1.3 * kept["soft prompt of 20"] and kept["soft prompt of 20"] > kept["LoRA"] / 2
    assert steps["soft prompt of 20"]["optimiser state"] < steps["LoRA"]["optimiser state"] / 10


def test_the_exercise_finds_the_bug(fourth):
    buggy, repaired = fourth.notes["padding gap"]
    assert repaired < 1e-2 < 0.1 < buggy
