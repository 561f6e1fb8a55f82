"""The shared task is what its datasheet says: counts, balance, lengths, overlaps, hashes."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest

from helpers.hub import DATA

HELPDESK = DATA / "helpdesk"
AT_LEAST = {"train": 1200, "validation": 240, "test": 480, "test_shifted": 240}


def read(name):
    return [json.loads(line) for line in (HELPDESK / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


SPLITS = {split: read(split) for split in AT_LEAST}
ROWS = [(split, row) for split, rows in SPLITS.items() for row in rows]
TOPICS = json.loads((HELPDESK / "topics.json").read_text(encoding="utf-8"))
TROUBLES = {f"{topic}-{number}" for topic in TOPICS for number in range(1, 6)}


def trigrams(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_sizes_balance_and_columns():
    assert len(TOPICS) == 12 and all({"definition", "not"} <= set(topic) for topic in TOPICS.values())
    for split, rows in SPLITS.items():
        assert len(rows) >= AT_LEAST[split]
        assert set(Counter(row["label"] for row in rows).values()) == {len(rows) // 12}, split
        assert len({row["trouble"] for row in rows}) >= 58, f"{split}: troubles without a message"
    assert {row["trouble"] for row in SPLITS["train"]} == {row["trouble"] for row in SPLITS["test"]} == TROUBLES
    assert len({row["id"] for _, row in ROWS}) == len(ROWS)
    for _, row in ROWS:
        assert list(row) == ["id", "text", "label", "trouble"]
        assert row["trouble"] in TROUBLES and row["trouble"].rsplit("-", 1)[0] == row["label"]
        assert row["text"] == " ".join(row["text"].split()), f"{row['id']}: line breaks or double spaces"
        assert 8 <= len(row["text"].split()) <= 45


def test_no_two_messages_overlap():
    """At most 0.35 of the word trigrams shared by any two messages, 0.2 between a test split and train."""
    grams = [trigrams(row["text"]) for _, row in ROWS]
    holders = defaultdict(list)
    for number, of_row in enumerate(grams):
        for gram in of_row:
            holders[gram].append(number)
    shared = Counter(pair for numbers in holders.values() for pair in combinations(numbers, 2))
    for (i, j), count in shared.items():
        overlap = count / len(grams[i] | grams[j])
        kinds = {ROWS[i][0], ROWS[j][0]}
        limit = 0.2 if "train" in kinds and kinds & {"test", "test_shifted"} else 0.35
        assert overlap <= limit, f"{ROWS[i][1]['id']} and {ROWS[j][1]['id']} share {overlap:.2f} of their trigrams"


def test_no_template_opens_many_messages():
    openings = Counter(" ".join(row["text"].lower().split()[:3]) for _, row in ROWS)
    assert openings.most_common(1)[0][1] <= 0.01 * len(ROWS), openings.most_common(3)


@pytest.mark.parametrize("path", sorted(HELPDESK.iterdir()), ids=lambda path: path.name)
def test_hashes_are_those_of_the_datasheet(path):
    sheet = (DATA / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"`{re.escape(path.name)}`.*`([0-9a-f]{{64}})`", sheet)
    assert found, f"data/README.md does not list {path.name}"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found[1], f"{path.name} is not the file of the datasheet"
