"""Real text for tests without a network: docstrings of the installed packages, labelled by where they stand."""

import ast
import csv
import random
import sysconfig
import warnings
from collections import defaultdict
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
PACKAGES = ("torch", "transformers", "sklearn", "scipy", "pandas", "matplotlib")


def collect(depth: int) -> dict[str, list[str]]:
    """First paragraphs of 5 to 60 words of all docstrings, by the first `depth` parts of their module's name."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for package in PACKAGES:
        for path in sorted((SITE_PACKAGES / package).rglob("*.py")):
            label = ".".join(path.relative_to(SITE_PACKAGES).with_suffix("").parts[:depth])
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
                        found[label][text] = None
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
