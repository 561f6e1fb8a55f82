"""Shows how far something is that takes longer than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from IPython import get_ipython
from tqdm import tqdm


def progress(items: Iterable | None = None, what: str = "", *, total: int | None = None) -> tqdm:
    """Go through `items` behind a bar, which appears after a second and is gone at the end.

    Without items, `update()` moves it and `close()` takes it away. It is text: of a bar made of widgets the saved
    notebook keeps a dead view and its state. On stdout: what is written to stderr counts as a fault.
    """
    # At one place: a bar within a bar would move the cursor up, which no notebook can.
    options = {"leave": False, "file": sys.stdout, "delay": 1, "mininterval": 0.5, "position": 0}
    return tqdm(items, what, total, disable=_answers_a_widget(), **options)


def _answers_a_widget() -> bool:
    """Whether a box or a button asked, and not a cell.

    Of text below a widget JupyterLab tells the kernel, which takes that in a second thread (ipykernel 7) and then shows
    every figure that it finds, half drawn as it may be.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(kernel) and kernel.get_parent().get("header", {}).get("msg_type") == "comm_msg"
