"""Real text for tests without a network: docstrings of the installed packages, labelled by where they stand."""

import ast
import csv
import random
import sysconfig
import threading
import warnings
from collections import defaultdict
from functools import lru_cache
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


def collect(depth: int) -> dict[str, list[str]]:
    """Each paragraph once, by the first `depth` parts of its module's name."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    with _parsing:
        paragraphs = _paragraphs()
    for parts, text in paragraphs:
        found[".".join(parts[:depth])][text] = None
    return {label: list(texts) for label, texts in found.items()}


def write_csv(path: Path, *, rows: int, labels: int, depth: int) -> None:
    """Write `rows` rows with the `labels` most frequent labels, as balanced as there is text for it."""
    found = collect(depth)
    largest = sorted(found, key=lambda label: -len(found[label]))[:labels]
    order = random.Random(0)
    queues = [(label, order.sample(found[label], len(found[label]))) for label in largest]
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    while len(chosen) < rows and any(texts for _, texts in queues):
        for label, texts in queues:
            if texts and len(chosen) < rows:
                text = texts.pop()
                if text not in seen:
                    seen.add(text)
                    chosen.append((text, label))
    assert len(chosen) == rows and len({label for _, label in chosen}) == labels
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *chosen])
