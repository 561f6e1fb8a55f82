"""Writes docs/architectures.md from the table that `tests/test_architectures.py` holds true."""

import sys
from typing import Any

from .results import ROOT, markdown

PAGE = ROOT / "docs" / "architectures.md"
HEAD = """\
# Which models can be brought

Written by `python -m tools.architectures` from the table in `tests/tiny.py`, and held true by
`tests/test_architectures.py`: tiny models with random weights, in the Hub's layout, go through what the notebooks do,
or are refused with the words below. What works is that the code runs, learns and comes back from a saved adapter
without a difference. How well a model answers is not in it.

- LoRA: load, find the blocks, train adapters in all linear layers, save, load onto a fresh base, merge.
- 4 bits: the same over NF4 weights, without merging.
- soft prompt, prefix: train, save and load; before an encoder with `**prompt_shape(model)`.
- bill: the weights of the memory bill are to the byte those that are loaded.
- as an encoder: a language model as the backbone of a classifier, with LoRA.
"""


def page() -> str:
    """The text of docs/architectures.md."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    parts = [HEAD]
    for title, (models, trials) in tiny.TRIALS.items():
        lines = [[model.name, *(_cell(model, trial) for trial in trials)] for model in models]
        parts.append(f"## {title}\n\n{markdown(['architecture', *trials], lines)}")
    folders = [[name, f"{model}: {said}"] for name, (model, _, said) in tiny.FOLDERS.items()]
    return "\n".join(
        [*parts, f"## Folders that are refused\n\n{markdown(['what is in it', 'words of the error'], folders)}"]
    )


def _cell(model: Any, trial: str) -> str:
    reason = model.why_not(trial)
    return "works" if reason is None else f"refused: {reason}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
