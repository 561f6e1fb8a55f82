"""What notebook 1 teaches: where pretraining pays, what training costs, and that the saved file is the classifier."""

import math
from itertools import pairwise

import numpy as np
import pytest

TRAINED = {"last block": 1_779_084, "last 3 blocks": 5_328_012, "everything": 22_717_836}


def test_few_labels_are_where_pretraining_pays_most(first, recorded):
    def curve(technique):
        options = {"metric": "accuracy", "technique": technique, "curve": True}
        return np.array([recorded("01_feature_extraction", per_label=n, **options) for n in (8, 32, 100)])

    frozen, words, everything, _ = map(
        curve, ("feature_extraction", "tfidf", "full_fine_tuning", "partial_fine_tuning")
    )
    gaps = frozen - words
    assert gaps[0] > 8 and gaps[0] > gaps[1] + 4 and gaps[0] > gaps[2] + 4
    assert first.notes["lead with few labels"] > 4 and not first.notes["lead with few labels is a tie"]
    assert everything[2] > frozen[2]


def test_random_weights_prove_nothing_about_pretraining(first):
    control = first.value("random_init")
    assert 1.5 / 12 < control < first.value("feature_extraction", variant="frozen, last layer", per_label=32) - 0.15
    assert first.value("majority") == pytest.approx(1 / 12, abs=1e-6)


def test_only_what_is_trainable_is_trained_and_the_first_loss_is_known(first):
    counts = {r["variant"]: r["trainable_parameters"] for r in first.records if r["variant"] in TRAINED}
    assert counts == TRAINED
    assert first.notes["first loss"] == pytest.approx(math.log(12), abs=1e-3)


def test_the_memory_of_a_step_grows_with_the_trained_blocks(first):
    assert len(first.notes["step MiB by depth"]) == 4
    assert all(after > before + 20 for before, after in pairwise(first.notes["step MiB by depth"]))
    recorded = {r["variant"]: r["step_mib"] for r in first.records if r["variant"] in TRAINED}
    assert [recorded[name] for name in TRAINED] == pytest.approx(first.notes["step MiB by depth"][1:], rel=1e-3)


def test_adapting_learns_and_the_file_is_the_classifier(first):
    frozen = first.value("feature_extraction", variant="frozen, last layer", per_label=32)
    assert first.value("full_fine_tuning") > frozen
    assert first.notes["loaded classifier agrees"] == 1.0
    assert (first.folder / "classifiers" / "helpdesk.safetensors").stat().st_size < 25_000


def test_every_run_is_judged_on_both_tests_and_on_validation(first):
    runs = {(r["technique"], r["variant"], r["settings"]["per_label"]) for r in first.records}
    for split in ("test", "test_shifted", "validation"):
        scored = {
            (r["technique"], r["variant"], r["settings"]["per_label"]) for r in first.records if r["split"] == split
        }
        assert scored >= {run for run in runs if run[0] != "majority"}, split
    assert {r["metric"] for r in first.records} == {"accuracy", "macro_f1"}
    assert "ahead of counted words" in first.notes["headline"]
