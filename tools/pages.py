"""Writes docs/faults.md and docs/architectures.md from what the tests try, and data/drawings/*.svg.

All of them: `python -m tools.pages`; some: `python -m tools.pages lora qlora`.
"""

import sys
import tempfile
from collections import Counter

from . import drawings
from .results import ROOT, markdown

FAULTS = """\
# Faults tried

Written by `python -m tools.pages`, never by hand. The counts are of a run: what ends neither as it was meant nor in a
refusal by name is silent.

## Files that readers bring

From `tests/cases.py`. `tests/test_cases.py` gives each of these to `load_task`: all its rows must be read as they were
meant, with the note that belongs to it, or the refusal must hold the words given here.
"""
REFUSED = """\
## Adapters, models and settings that cannot work

From `tests/refusals.py`. `tests/test_refusals.py` tries each; the error must hold these words.
"""
ARCHITECTURES = """\
# Which models can be brought

Written by `python -m tools.pages` from the table in `tests/tiny.py`, and held true by
`tests/test_architectures.py`: tiny models with random weights, in the Hub's layout, go through what the notebooks do,
or are refused with the words below. What works is that the code runs, learns and comes back from a saved adapter
without a difference. How well a model answers is not in it.

- LoRA: load, find the blocks, train adapters in all linear layers, save, load onto a fresh base, merge.
- 4 bits: the same over NF4 weights, without merging.
- soft prompt, prefix: train, save and load; before an encoder with `**prompt_shape(model)`.
- bill: the weights of the memory bill are to the byte those that are loaded.
- as an encoder: a language model as the backbone of a classifier, with LoRA.

Which folders are refused whatever the architecture, such as those with pickles: [faults.md](faults.md).
"""


def faults() -> str:
    """A count, and the table kind, before, now."""
    from cases import CASES

    with tempfile.TemporaryDirectory() as scratch:
        found = Counter((case.tried(scratch)[0], bool(case.said)) for case in CASES)
    read, refused, silent = (found[how, False] + found[how, True] for how in ("read", "refused", "silent"))
    before = sum(case.before.startswith("silent") for case in CASES)
    count = (
        f"Tried: {len(CASES)}. Read as meant: {read}, {found['read', True]} of them with a note. Refused by name: "
        f"{refused}. Silent: {silent} (before: {before})."
    )
    rows = [(case.kind, case.before, case.now) for case in CASES]
    return "\n".join([FAULTS, f"{count}\n", markdown(["kind", "before", "now"], rows), _refused()])


def _refused() -> str:
    from refusals import REFUSALS, tried

    silent = sum(tried(refusal) is None for refusal in REFUSALS)
    count = f"Tried: {len(REFUSALS)}. Refused by name: {len(REFUSALS) - silent}. Silent: {silent}."
    rows = [(refusal.kind, refusal.name, " ... ".join(refusal.said)) for refusal in REFUSALS]
    return "\n".join([REFUSED, f"{count}\n", markdown(["kind", "fault", "words of the error"], rows)])


def architectures() -> str:
    """A table for each kind of model, what was tried with it, and what is refused."""
    import tiny

    parts = [ARCHITECTURES]
    for title, (models, trials) in tiny.TRIALS.items():
        reasons = [[model.name, *map(model.why_not, trials)] for model in models]
        rows = [[name, *(f"refused: {why}" if why else "works" for why in found)] for name, *found in reasons]
        parts.append(f"## {title}\n\n{markdown(['architecture', *trials], rows)}")
    return "\n".join(parts)


PAGES = {ROOT / "docs" / "faults.md": faults, ROOT / "docs" / "architectures.md": architectures} | drawings.PAGES

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    for path, text in PAGES.items():
        if path.stem in (sys.argv[1:] or [path.stem]):
            path.write_text(text(), encoding="utf-8", newline="\n")
