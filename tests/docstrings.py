"""Real text for tests without a network: docstrings of the installed packages, labelled by where they stand."""

import ast
import csv
import random
import sysconfig
import threading
import warnings
from collections import defaultdict
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
PACKAGES = ("numpy", "sklearn", "scipy", "pandas", "matplotlib", "torch")
FILES = 120  # of each package: enough text, and read in seconds


_parsing = threading.Lock()  # notebooks are tested side by side, and one parse is enough for all


@lru_cache
def _paragraphs() -> list[tuple[tuple[str, ...], str]]:
    """First paragraphs of 5 to 60 words of all docstrings, each with the parts of its module's name."""
    found = []
    for package in PACKAGES:
        for path in sorted((SITE_PACKAGES / package).rglob("*.py"))[:FILES]:
            parts = path.relative_to(SITE_PACKAGES).with_suffix("").parts
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
                except SyntaxError:  # a file for a newer Python
                    continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                    if 5 <= len(text.split()) <= 60:
                        found.append((parts, text))
    return found


def write_csv(path: Path, *, rows: int, labels: int, depth: int) -> None:
    """Write `rows` rows of the `labels` most frequent labels in turns: the first `depth` parts of a module's name."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    with _parsing:
        paragraphs = _paragraphs()
    for parts, text in paragraphs:
        found[".".join(parts[:depth])][text] = None
    order, chosen = random.Random(0), {}
    largest = sorted(found, key=lambda label: -len(found[label]))[:labels]
    queues = [[(text, label) for text in order.sample([*found[label]], len(found[label]))[::-1]] for label in largest]
    for text, label in (pair for turn in zip_longest(*queues) for pair in turn if pair):
        chosen.setdefault(text, label)
    assert len(chosen) >= rows
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *islice(chosen.items(), rows)])
