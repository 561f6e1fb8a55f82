"""Writes docs/faults.md and docs/architectures.md from what the tests try, the tables of docs/scale.md from memory
bills, and data/drawings/*.svg.

All of them: `python -m tools.pages`; some: `python -m tools.pages lora qlora`.
"""

import sys
import tempfile
from collections import Counter

from helpers.errors import DeviceError
from helpers.memory import CARDS, GIB, MemoryBill, memory_bill, require_fit

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


METHODS = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}
MODELS = {"7B": "Llama-2-7B", "13B": "Llama-2-13B", "70B": "Llama-2-70B"}
STEP = {"rank": 16, "length": 512, "gradient_checkpointing": True}
SETUPS = {"one card": (1, "none"), "DDP, any number": (2, "none")}
END = "\n<!-- end -->"  # of a table
SETUPS |= {f"FSDP, {number}": (number, "full") for number in (2, 4, 8)}


def scale() -> str:
    """The page as it is, with its two tables computed again."""
    memory, traffic = [], []
    for size, model in MODELS.items():
        for method, called in METHODS.items():
            bills = [memory_bill(model, method=method, processes=n, sharding=s, **STEP) for n, s in SETUPS.values()]
            memory.append([size, called, *(f"{bill.needs() / GIB:.1f}, {_smallest(bill)}" for bill in bills)])
            sent = (moved(bills[0], 8, sharded) / GIB for sharded in (False, True))
            traffic.append([size, called, *(f"{gib:.2f}" for gib in sent)])
    tables = {"memory": markdown(["model", "trained", *SETUPS], memory)}
    tables["traffic"] = markdown(["model", "trained", "DDP", "FSDP"], traffic)
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for name, table in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n\n")
        text = f"{before}{mark}{table}{''.join(rest.partition(END)[1:])}"
    return text


def _smallest(bill: MemoryBill) -> str:
    """The smallest card that it fits, as it is called without its memory; PyTorch has given up the P100."""
    for name, gib in sorted(CARDS.items(), key=lambda card: card[1]):
        try:
            require_fit(bill, gib)
        except DeviceError:
            continue
        if "P100" not in name:
            return name.removesuffix(" GB")
    return "none"


def moved(bill: MemoryBill, cards: int, sharded: bool, itemsize: int = 2) -> float:
    """Bytes that each card sends in a step, round a ring; `bill` is of one card, `itemsize` of the compute type.

    DDP sums the gradients and hands the sum round. FSDP gathers all weights on the way there and once more on the
    way back, and scatters the gradients of what is trained.
    """
    passed = (cards - 1) / cards
    if not sharded:
        return 2 * passed * bill.gradients
    adapters = bill.trainable_parameters if bill.adapters else 0
    base = bill.total_parameters - adapters
    # Over four bits half a byte a number, and the rest, which the bill has in 32 bits, in the compute type.
    rest = (bill.weights - base / 2) / 3.5 if bill.constants else base
    weights = (base - rest) / 2 + itemsize * (rest + adapters)
    return passed * (2 * weights + itemsize * bill.trainable_parameters)


PAGES = {ROOT / "docs" / f"{page.__name__}.md": page for page in (faults, architectures, scale)} | drawings.PAGES

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    for path, text in PAGES.items():
        if path.stem in (sys.argv[1:] or [path.stem]):
            path.write_text(text(), encoding="utf-8", newline="\n")
