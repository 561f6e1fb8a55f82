"""The helpdesk as a generation task: questions with the canned replies they should get, and how answers are graded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ParameterError
from .tasks import HELPDESK, load_task

CLOSE = 0.6  # a reply that is no canned one word for word counts for the nearest, if it is at least so similar


@dataclass(frozen=True)
class Pair:
    """A question and the canned reply it should get."""

    question: str
    reply: str
    topic: str


def load_pairs(split: str) -> list[Pair]:
    """The questions of a split of `data/helpdesk`, in its order, each with its canned reply and the reply's topic.

    Raises:
        ParameterError: there is no such split.
    """
    lines = (HELPDESK / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    replies = {row["reply_id"]: row for row in map(json.loads, lines)}
    splits = load_task("helpdesk").splits
    if split not in splits:
        raise ParameterError(f"split={split!r}: expected one of {', '.join(splits)}.")
    return [
        Pair(row["text"], replies[row["reply_id"]]["text"], replies[row["reply_id"]]["label"]) for row in splits[split]
    ]


def grade_replies(pairs: Sequence[Pair], replies: Sequence[str]) -> dict[str, float]:
    """Shares of replies that are right word for word, and that belong to the right topic (0 to 1).

    A reply has the topic of the canned reply it equals, else of the one whose letters it resembles
    most (`difflib`), if by at least 0.6; else none.

    Raises:
        ParameterError: not one reply for each pair.
    """
    if not pairs or len(pairs) != len(replies):
        raise ParameterError(f"{len(replies)} replies for {len(pairs)} questions: give one reply for each.")
    topic_of = {pair.reply: pair.topic for pair in load_pairs("train")}

    def topic(text: str) -> str | None:
        if text in topic_of:
            return topic_of[text]
        # Without autojunk, which leaves frequent letters out of longer texts.
        similar = {reply: difflib.SequenceMatcher(None, text, reply, autojunk=False).ratio() for reply in topic_of}
        nearest = max(similar, key=similar.__getitem__)
        return topic_of[nearest] if similar[nearest] >= CLOSE else None

    return {
        "exact_match": sum(pair.reply == text for pair, text in zip(pairs, replies)) / len(pairs),
        "topic_accuracy": sum(pair.topic == topic(text) for pair, text in zip(pairs, replies)) / len(pairs),
    }
