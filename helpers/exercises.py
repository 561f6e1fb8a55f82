"""Checks what a reader writes into a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def check(answer: Any, right: Any | Callable[[Any], bool], hint: str) -> None:
    """Say whether an answer is right; three dots are no answer yet, so that the notebook runs as it is.

    Args:
        right: the right value (numbers up to rounding in the third digit), or a function that says
            whether the answer is right.
        hint: what to think about when it is not.

    Raises:
        AssertionError: with the hint.
    """
    if answer is ...:
        print("Your turn: replace the three dots, then run this cell again.")
        return
    if callable(right):
        good = right(answer)
    elif isinstance(right, str | tuple):
        good = answer == right
    else:
        good = np.allclose(answer, right, rtol=1e-2)
    assert good, f"Not yet. {hint}"
    print("Right.")
