"""Notebook 4 teaches what it says: asserted from the notes and records of a run, and from what was recorded."""

import pytest

from helpers.scoreboard import MEASUREMENTS, TECHNIQUES, expand, read_records, table_of

HEAD, PROMPT = 12 * 385, 20 * 384


@pytest.fixture(scope="module")
def recorded():
    """Mean accuracy in percent over the recorded seeds of the runs that have these settings."""
    rows = expand(read_records(MEASUREMENTS))
    rows = rows[rows["notebook"].eq("04_prompt_tuning") & rows["metric"].eq("accuracy")]

    def mean(split="test", **columns):
        found = rows[rows["split"].eq(split)]
        for name, value in columns.items():
            found = found[found[name].eq(value)]
        assert sorted(found["seed"]) == [0, 1, 2], (split, columns, len(found))
        return 100 * found["value"].mean()

    mean.rows = rows
    return mean


def test_hard_prompts_hang_on_the_order_of_the_examples(fourth):
    hard = [r for r in fourth.records if r["technique"] == "hard_prompt" and r["split"] == "test"]
    accuracies = [record["value"] for record in hard if record["metric"] == "accuracy"]
    assert len(accuracies) == 9 and max(accuracies) < 0.3, "the model is too small to know a topic"
    assert fourth.notes["orders agree"] < 0.75
    assert {record["settings"]["graded"] for record in hard} == {60}


def test_the_own_prompt_equals_pefts(fourth):
    for name in ("output", "gradient"):
        largest, gap = fourth.notes[f"{name}: largest, and difference to PEFT"]
        assert gap < 1e-4 and largest > 0.1, "zeros would prove nothing"
    assert 0 < fourth.notes["the prompt moved by"] < 1, "that nothing else has moved is asserted in the notebook"


def test_a_rate_that_suits_weights_teaches_a_prompt_nothing(fourth, recorded):
    gains = fourth.notes["gain by rate"]
    assert gains["5e-05"] < 3 and gains["0.05"] > gains["5e-05"] + 4, gains
    swept = {"split": "validation", "head": "label words", "length": 20, "start": "vocabulary"}
    assert recorded(rate=5e-5, **swept) < recorded(rate=5e-2, **swept) - 8


def test_the_heads_merit_is_kept_apart_from_the_prompts(fourth):
    runs = {r["variant"]: r for r in fourth.records if r["split"] == "test" and r["metric"] == "accuracy"}
    trained = {name: run["trainable_parameters"] for name, run in runs.items() if run["settings"].get("head")}
    assert trained["head only"] == trained["probe only"] == HEAD
    assert trained["20 vectors and head"] == trained["20 vectors under the probe"] == PROMPT + HEAD
    assert runs["20 vectors under the probe"]["adapter_bytes"] == 4 * (PROMPT + HEAD)
    probe = fourth.value("feature_extraction", variant="probe only")
    assert fourth.value("prompt_tuning", variant="20 vectors under the probe") > probe - 0.06, "it must not ruin a head"


def test_what_was_learned_is_no_word(fourth):
    closeness, lengths = fourth.notes["closeness"], fourth.notes["lengths"]
    assert closeness["learned to word"] < closeness["word to word"]
    assert lengths["learned"] > 2 * lengths["start"]


def test_a_mixed_batch_answers_like_each_task_alone(fourth):
    mixed = fourth.notes["mixed batch"]
    assert mixed["same"] == mixed["of"] == 12 and mixed["tokens"] > 24
    assert fourth.notes["same without the cache"] == 4


def test_a_prompt_is_small_and_comes_back_as_it_was(fourth):
    prompt, lora, full = fourth.notes["bytes to ship"].values()
    assert 4 * 20 * 320 <= prompt < 26 * 1024 and lora > 40 * prompt and full > 1_000 * prompt
    assert max(fourth.notes["difference when loaded"].values()) < 1e-3
    for kind in ("topics", "replies"):
        assert (fourth.folder / "adapters" / "04_prompt_tuning" / kind / "trained_on.json").exists()


def test_few_parameters_do_not_mean_little_memory(fourth):
    kept = {name: parts["activations"] for name, parts in fourth.notes["step MiB"].items()}
    assert kept["head only"] < 1 < 0.9 * kept["LoRA"] < kept["prompt of 20"]
    assert kept["prompt of 100"] > 2 * kept["prompt of 20"]
    steps = {r["variant"]: r["step_mib"] for r in fourth.records}
    assert steps["20 vectors under the probe"] > 2 * steps["probe only"]


def test_topics_are_written_and_replies_get_likelier(fourth):
    assert fourth.notes["written topics on the list"] > 0.9
    perplexity = fourth.notes["perplexity"]
    assert perplexity["with"] < 0.9 * perplexity["without"]
    first, last = fourth.notes["loss at both ends, topics"]
    assert last < 0.5 * first


def test_over_three_seeds_a_prompt_gains_where_no_head_is_trained(recorded):
    """Beside a trained head it gains nothing on this encoder, and the notebook says so."""
    hard = recorded.rows[recorded.rows["technique"].eq("hard_prompt") & recorded.rows["split"].eq("test")]
    hard = 100 * hard.groupby("variant")["value"].mean()
    assert len(hard) == 9 and recorded(trained_on="topics") > hard.max() + 5
    probe, long = recorded(head="probe", steps=0), recorded.rows["steps"].max()
    assert abs(recorded(head="probe", length=20) - probe) < 2
    alone = recorded(head="trained", steps=long, technique="feature_extraction")
    assert abs(recorded(head="trained", steps=long, length=20) - alone) < 2
    assert recorded(technique="prefix_tuning", head="probe") > probe + 2, "prefix tuning does gain"


def test_the_exercise_finds_the_bug(fourth):
    buggy, repaired = fourth.notes["padding gap"]
    assert repaired < 1e-3 < 0.1 < buggy


def test_the_scoreboard_is_complete(first, second, third, fourth, tmp_path):
    (tmp_path / "records").mkdir()
    for run in (first, second, third, fourth):
        (tmp_path / "records" / run.result.records.name).write_bytes(run.result.records.read_bytes())
    table = table_of(tmp_path)
    assert list(table.index) == list(TECHNIQUES.values()) and len(table) <= 12
    assert not table["variant"].str.contains("not run").any() and not table["variant"].str.contains("recorded").any()
    assert set(table["texts"]) == {384} and table["test"].notna().all()
    assert not table["variant"].str.contains(", rate ").any(), "sweeps are judged on validation only"


def test_prompt_tuning_on_your_own_file_works_unedited(own_fourth):
    on_test = [r for r in own_fourth.records if r["split"] == "test" and r["backbone"] != "data/language_model"]
    assert {record["task"] for record in on_test} == {"own"}
    assert own_fourth.value("prompt_tuning", variant="20 vectors under the probe") > 1 / 6 + 0.2
