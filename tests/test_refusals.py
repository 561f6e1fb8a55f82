"""What cannot work is refused by name, with words that help: each line of refusals.py."""

from collections import Counter

import pytest
from refusals import REFUSALS, tried


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.kind}-{refusal.name}")
def test_it_is_refused_by_name(refusal):
    message, place = tried(refusal), 0
    assert message is not None, "nothing was refused"
    for words in refusal.said:
        place = message.find(words, place)
        assert place >= 0, f"{words!r} is not in: {message}"
    assert len(message.splitlines()) == 1


def test_no_two_lines_have_the_same_name():
    assert max(Counter((refusal.kind, refusal.name) for refusal in REFUSALS).values()) == 1
