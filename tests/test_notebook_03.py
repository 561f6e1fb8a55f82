"""Notebook 3 teaches what it says: asserted from the notes and records of a run, and from what was recorded."""

from collections import Counter

import pytest

from helpers.scoreboard import MEASUREMENTS, expand, read_records

FORMATS = ("32 bits", "int8", "fp4", "nf4")
BASES = {"lora": "32 bits", "qlora": "nf4, double"}


def test_the_four_bit_format_is_the_librarys(third):
    assert max(third.notes[f"{kind} levels differ by"] for kind in ("nf4", "fp4")) < 1e-6
    differ = third.notes["bytes that differ"]
    assert differ.pop("of") == 9_117_696
    assert differ["your table"] <= 20 and differ["the library's table"] <= 2, "only weights between two levels may"


def test_nf4_has_the_smallest_error_and_double_quantisation_adds_none(third):
    errors = third.notes["errors"]
    for model in ("encoder", "language model"):
        assert 8 < errors["nf4"][model] < min(errors["int4"][model], errors["fp4"][model]), model
    assert third.notes["bits of the scales"] == pytest.approx([0.5, 0.127], abs=1e-3)
    double = third.notes["double"]
    assert double["same codes"] > 0.99
    assert double["errors"][0] == pytest.approx(double["errors"][1], abs=0.05)


def test_what_became_four_bit_is_counted_truly(third):
    found = third.notes["parameters"]
    assert found["numel"] < 0.8 * found["true"] and found["true"] == 22_717_836
    assert 0.25 < found["share of 16 bits"] < 0.30


def test_quantisation_alone_costs_in_the_order_of_its_error(third):
    perplexity = {name: third.notes["quantised only"][name]["perplexity"] for name in FORMATS}
    assert perplexity["32 bits"] <= perplexity["int8"] + 0.2 < perplexity["fp4"]
    assert perplexity["32 bits"] < perplexity["nf4"] < perplexity["fp4"]
    same, other = third.notes["cosine"]
    assert same > 0.9 > 0.5 > other


def test_qlora_learns_over_a_base_that_does_not_move(third):
    """That it does not move is asserted in the notebook, to the bit."""
    runs = {r["technique"]: r for r in third.records if r["settings"].get("targets") and r["metric"] == "accuracy"}
    assert set(runs) == {"lora", "qlora"}
    for run in runs.values():
        assert (run["trainable_parameters"], run["total_parameters"]) == (336_396, 23_054_232)
        assert run["adapter_bytes"] == 4 * run["trainable_parameters"]
    assert runs["qlora"]["step_mib"] < runs["lora"]["step_mib"] - 30, "weights in four bits"
    assert min(third.value(technique, base=base) for technique, base in BASES.items()) > 0.5, "guessing: 1 in 12"
    found = third.notes["QLoRA against LoRA"]
    assert abs(found["points"]) < 1.5 + 2.5 * found["error"], "recorded over three seeds: one point"


def test_over_three_seeds_qlora_is_within_two_points_of_lora():
    rows = expand(read_records(MEASUREMENTS))
    rows = rows[(rows["notebook"] == "03_qlora") & (rows["split"] == "test") & (rows["metric"] == "accuracy")]
    runs = rows.groupby("technique")
    assert {name: sorted(seeds) for name, seeds in runs["seed"]} == {key: [0, 1, 2] for key in BASES}
    mean = 100 * runs["value"].mean()
    assert mean["qlora"] > mean["lora"] - 2


def test_each_trick_shrinks_its_own_part(third):
    steps = third.notes["step MiB"]
    names = ("LoRA", "QLoRA", "QLoRA, 8-bit AdamW", "QLoRA, checkpointing")
    parts = {part: [steps[name][part] for name in names] for part in steps["LoRA"]}
    weights, state, activations = (parts[part] for part in ("weights", "optimiser state", "activations"))
    assert weights[1] < 0.7 * weights[0] and weights[1] == weights[2] == weights[3]
    assert len(set(parts["gradients"])) == 1
    assert state[2] < 0.8 * state[1] == 0.8 * state[3]
    assert activations[3] < 0.2 * activations[1]
    assert third.notes["adapters that learn, with the hook and without"] == [[36, 36], [0, 36]]


def test_the_four_bit_model_learns_to_answer_and_to_stop(third):
    about = {"split": "test", "variant": "replies, over 4 bits"}
    before = {m: third.value("hard_prompt", metric=m) for m in ("exact_match", "topic_accuracy")}
    after = {m: third.value("qlora", metric=m, **about) for m in (*before, "ended")}
    assert max(before.values()) <= 0.02 and after["exact_match"] > 0.02
    assert after["topic_accuracy"] > 1 / 12, "guessing a topic"
    assert after["ended"] > 0.95
    perplexity = [third.value(t, split="validation", metric="perplexity") for t in ("hard_prompt", "qlora")]
    assert perplexity[1] < 2 < perplexity[0]


def test_adapters_switch_and_add_up_exactly(third):
    assert third.notes["switched"]["gap"] < 1e-3 < 1 < third.notes["switched"]["effect"]
    assert third.notes["half and half"]["cat"] < 1e-3 < 1 < third.notes["half and half"]["linear"]
    replies, manual = third.notes["mixed"]["replies"], third.notes["mixed"]["manual"]
    assert replies[-1] < replies[0] and manual[0] < manual[-1]
    for name in ("replies", "manual"):
        assert (third.folder / "adapters" / "03_qlora" / name / "trained_on.json").exists()


def test_only_the_merge_into_the_dequantised_base_is_exact(third):
    about = {"split": "validation", "metric": "largest_difference"}
    gap = {base: third.value("qlora", merged=base, **about) for base in ("4-bit", "dequantised", "original")}
    assert gap["dequantised"] < 1e-2 < 0.1 < min(gap["4-bit"], gap["original"]), gap


def test_the_bill_is_shown_to_be_true(third):
    off = third.notes["bill is off by percent"]
    assert off.pop("activations") < 1 and max(off.values()) < 1e-3 and len(off) == 3
    assert third.notes["LLaMA-65B, GB"]["full"] > 780 and third.notes["LLaMA-65B, GB"]["QLoRA"] < 48
    assert third.notes["plan fits, without checkpointing and with it"] == [False, True]
    assert third.notes["Llama-2-7B fits on a T4"] == [True] * 3


def test_every_run_is_judged_on_both_tests_and_on_validation(third):
    judged = Counter(r["split"] for r in third.records if r["metric"] == "accuracy" and r["technique"] in BASES)
    assert judged == dict.fromkeys(("test", "test_shifted", "validation"), 2)
    assert "r=8 over nf4" in third.notes["headline"]


def test_your_own_file_works_unedited(own_third):
    on_test = [r for r in own_third.records if r["split"] == "test" and r["metric"] == "accuracy"]
    assert {record["task"] for record in on_test} == {"own"}
    assert own_third.value("qlora") > 1 / 6
