"""Writes docs/faults.md from the cases of tests/cases.py: `python -m tools.faults`."""

import sys
from pathlib import Path

from .results import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"
HEAD = """\
# Files that readers bring

Written by `python -m tools.faults` from `tests/cases.py`, never by hand. `tests/test_cases.py` gives each of these to
`load_task`: all its rows must be read as they were meant, or the refusal must hold the words given here.
"""


def page() -> str:
    """The page: a count, and the table kind, before, now."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cases import CASES

    refused = sum(bool(case.refused) for case in CASES)
    said = sum(bool(case.said) for case in CASES)
    silent = sum(case.before.startswith("silent") for case in CASES)
    count = (
        f"Tried: {len(CASES)}. Read as meant: {len(CASES) - refused}, {said} of them with a note. Refused by name: "
        f"{refused}. Silent: 0 (before: {silent})."
    )
    return f"{HEAD}\n{count}\n\n{markdown(['kind', 'before', 'now'], [(c.kind, c.before, c.now) for c in CASES])}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}.")
