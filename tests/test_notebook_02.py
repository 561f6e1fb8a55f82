"""Notebook 2 teaches what it says: asserted from the notes and records of a run, and from what was recorded."""

import ast
import inspect
import math
from pathlib import Path

import nbformat
import pytest

from helpers import training
from helpers.scoreboard import MEASUREMENTS, expand, read_records

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "02_lora.ipynb"


def plain(source, name):
    """The code of one function without docstring, annotations and formatting."""
    found = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == name)
    for node in ast.walk(found):
        if isinstance(node, ast.arg):
            node.annotation = None
    found.returns = None
    found.body = found.body[1:] if ast.get_docstring(found) else found.body
    return ast.unparse(found)


@pytest.mark.parametrize("name", ["trainer_settings", "parameter_groups", "refuse_infinite", "fit"])
def test_the_cells_that_show_the_training_are_the_helpers_code(name):
    """Notebooks 3 and 4 call what this one shows."""
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    assert plain(cells[name.replace("_", "-")], name) == plain(inspect.getsource(training), name)


def test_the_counts_of_llama_are_exact(second):
    """Published sizes of the bases; what LoRA adds follows from the shapes."""
    assert second.notes["llama"] == {
        "7B, everything": [6_738_415_616, 6_738_415_616],
        "7B, r=8, q,v": [4_194_304, 6_742_609_920],
        "7B, r=8, all linear": [19_988_480, 6_758_404_096],
        "13B, everything": [13_015_864_320, 13_015_864_320],
        "13B, r=8, q,v": [6_553_600, 13_022_417_920],
        "13B, r=8, all linear": [31_293_440, 13_047_157_760],
    }


def test_the_own_layer_passes_the_checks_and_equals_pefts(second):
    first = second.notes["first gradients"]
    assert list(first) == ["A", "B"] and first["A"] == 0 < first["B"], "A must wait for B"
    *kept, beyond = second.notes["singular values"]
    assert len(kept) == 8 and min(kept) > 1e-3 and beyond < 1e-5
    assert second.notes["own layer, merged"] < 1e-4
    assert second.notes["trained by ours and PEFT"] == [6 * 2 * 2 * 8 * 384 + 12 * 385] * 2
    steps = second.notes["ours and PEFT's"]
    assert len({step.pop("loss of ours") for step in steps}) == 3, "weights that do not move prove nothing"
    assert all(set(step) == {"loss", "gradients", "weights after the step"} for step in steps)
    assert max(gap for step in steps for gap in step.values()) < 1e-5


def test_training_starts_where_it_must_and_a_loss_that_is_not_finite_is_refused(second):
    assert second.notes["first loss"] == pytest.approx(math.log(12), abs=0.01)
    assert second.notes["frozen"] is True
    assert "the loss is nan at step" in second.notes["refused loss"] and "a third" in second.notes["refused loss"]


def test_memory_falls_where_it_is_said_to_fall(second):
    head, two, linear, everything = second.notes["memory"].values()
    total = [sum(parts.values()) for parts in (head, two, linear, everything)]
    assert total == sorted(total)
    assert linear["gradients"] + linear["optimiser state"] < 0.02 * everything["weights"] * 3
    assert linear["activations"] > 0.9 * everything["activations"] > 100 * head["activations"]
    sizes = {record["variant"]: record for record in second.records}
    assert sizes["r=8, q,v"]["trainable_parameters"] == 78_348
    assert sizes["r=8, all linear"]["trainable_parameters"] == 336_396
    assert all(sizes[name]["adapter_bytes"] == 4 * sizes[name]["trainable_parameters"] for name in sizes)
    assert sizes["r=8, all linear"]["step_mib"] == pytest.approx(total[2], abs=1)


def test_lora_comes_close_to_full_fine_tuning(second):
    """One seed, 32 texts a topic; one standard error of a difference on `test` is about two points."""
    head, everything = second.value("feature_extraction"), second.value("full_fine_tuning", steps=150)
    adapted = second.value("lora", variant="r=8, all linear")
    assert everything > head
    assert abs(adapted - everything) < 0.06


def test_over_three_seeds_lora_is_within_a_point_and_a_half():
    past = expand(read_records(MEASUREMENTS))
    past = past[past["notebook"].eq("02_lora") & past["metric"].eq("accuracy") & past["split"].eq("test")]
    past = past[past["steps"].eq(150) & past["relative"].fillna("LoRA").eq("LoRA")].fillna({"targets": "head"})
    assert set(past["seed"]) == {0, 1, 2}
    mean = 100 * past.groupby("targets")["value"].mean()
    assert mean["all linear"] > mean["everything"] - 1.5 and mean["head"] < mean["all linear"] - 3


def test_sweeps_are_judged_on_validation_only(second):
    swept = [record for record in second.records if record["settings"].get("sweep") and record["metric"] == "accuracy"]
    assert len(swept) == 8 and {record["split"] for record in swept} == {"validation"}
    too_far = [record["value"] for record in swept if record["settings"]["rate"] == 2e-2]
    assert max(too_far) < 1 / 12 + 0.06, "with ten times the rate nothing is learned"


def test_few_directions_of_the_full_change_are_enough(second):
    kept = second.notes["validation accuracy of the cut change"]
    assert kept["rank 0"] < kept["all of it"] - 3, "without the change of the linear layers the gain is gone"
    assert kept["rank 64"] > kept["all of it"] - 5


def test_forgetting_is_measured_and_the_head_alone_forgets_nothing(second):
    loss = second.notes["forgotten"]
    assert loss["head only"] == pytest.approx(loss["pretrained"], rel=1e-6)
    assert loss["pretrained"] + 0.2 < loss["everything"] < math.log(32)
    assert loss["pretrained"] < 2, "the measurement must be something that the model can do"
    kept = second.value("lora", "python reference", "matching_loss", variant="r=8, all linear")
    assert kept == pytest.approx(loss["all linear"], abs=1e-6)


def test_the_adapter_is_the_same_wherever_it_is_loaded_and_refused_where_it_must_be(second):
    gaps = second.notes["largest differences of logits"]
    assert gaps.pop("merged") < 1e-3 and max(gaps.values()) < 1e-5
    assert set(gaps) == {"fresh model", "fresh process", "q,v, switched in", "all linear, switched in"}
    expected = ("another base of the same shape", "same labels in the same order", "the head included")
    assert all(part in told for part, told in zip(expected, second.notes["refused adapters"], strict=True))
    assert (second.folder / "adapters" / "02_lora" / "all-linear" / "trained_on.json").exists()


def test_the_model_learns_to_answer_and_to_stop(second):
    for metric in ("exact_match", "topic_accuracy"):
        before, after = second.value("hard_prompt", metric=metric), second.value("lora", metric=metric)
        assert before <= 0.01 and after > before + 0.02, metric
    assert second.value("lora", metric="topic_accuracy") > 1 / 12 + 0.04, "guessing a topic: 1 in 12"
    assert second.value("lora", metric="ended") > 0.99
    perplexity = [second.value(technique, "validation", "perplexity") for technique in ("lora", "hard_prompt")]
    assert perplexity[0] < 2 < perplexity[1]


def test_the_exercise_shows_both_bugs(second):
    assert second.notes["wrong script trains"] == 1.0 and second.notes["wrong script loses"] == 2


@pytest.mark.slow
def test_lora_on_your_own_file_works_unedited(own_second):
    on_test = [r for r in own_second.records if (r["split"], r["metric"]) == ("test", "accuracy")]
    assert len(on_test) == 4 and {record["task"] for record in on_test} == {"own"}
    assert own_second.value("lora", variant="r=8, all linear") > 1 / 6 + 0.13, "guessing: 1 in 6"
