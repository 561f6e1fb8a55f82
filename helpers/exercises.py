"""Checks what a reader writes into a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def check(answer: Any, right: Any | Callable[[Any], bool], hint: str) -> None:
    """Say whether an answer is right; three dots are no answer yet, so that the notebook runs as it is.

    Args:
        right: the right value (numbers up to rounding in the third digit, several as a tuple, list or
            array), or a function that says whether the answer is right.
        hint: what to think about when it is not.

    Raises:
        AssertionError: with the hint.
    """
    if answer is ...:
        print("Your turn: replace the three dots, then run this cell again.")
        return
    try:
        if callable(right):
            good = right(answer)
        elif isinstance(right, str):
            good = answer == right
        else:
            good = np.shape(answer) == np.shape(right) and np.allclose(answer, right, rtol=1e-2)
    except Exception as error:  # a text where a number belongs, or a function that fails: both are shown
        raise AssertionError(f"Not yet. {hint}") from error
    assert good, f"Not yet. {hint}"
    print("Right.")
