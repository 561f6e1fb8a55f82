"""The text that the small language model reads: documentation that lies on every reader's disk.

    python -m pretraining.corpus        counts it, by use and kind

Docstrings, signatures, prose comments and project descriptions of the packages pinned in requirements.txt, read from
where they are installed. Nothing of it is committed. The order is fixed: packages and files by name, texts by place in
the file; texts that say the same are kept once. Two whole packages are held out, and one docstring in a hundred of all
others.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from helpers.docstrings import UNSEEN, drop_self, python_files

ROOT = Path(__file__).resolve().parent.parent
# Chosen before any training: an interactive shell and a web server, of the larger packages whose docstrings do not
# repeat themselves (xz -9 packs them to 2.1 to 2.5 bits per byte) and of which no other pinned package carries a copy.
# The third is a parser that this project came to need after the first training.
HELD_OUT_PACKAGES = UNSEEN
HELD_OUT_SHARE = 100  # one docstring in so many, by the hash of its text
SHORTEST_DOCSTRING, SHORTEST_COMMENT = 20, 60  # characters
LONGEST = 20_000  # characters; what is longer is a data table more often than a text


@dataclass(frozen=True)
class Text:
    """One document of the corpus. `kind` is docstring, comment or description; `split` says what it is used for."""

    package: str
    kind: str
    text: str
    split: str  # train, held_out_docstrings or held_out_packages


def packages() -> list[metadata.Distribution]:
    """The pinned packages that are installed here, by name."""
    names = set()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"[A-Za-z0-9][\w.-]*(?===)", line):
            names.add(canonical(match[0]))
    found: dict[str, metadata.Distribution] = {}
    for package in metadata.distributions():
        if package.name:  # an interrupted pip leaves folders without a name
            found.setdefault(canonical(package.name), package)  # the first on the path is the one that is imported
    if absent := set(HELD_OUT_PACKAGES) - found.keys():
        raise SystemExit(f"{', '.join(sorted(absent))}: held out for validation, but not installed. Run `make setup`.")
    return [found[name] for name in sorted(names & found.keys())]


def digest(corpus: list[Text]) -> str:
    """SHA-256 over all texts and their use: equal if and only if two machines have the same corpus."""
    return hashlib.sha256("\0".join(t.split + t.text for t in corpus).encode()).hexdigest()


def read_corpus(only: Sequence[str] = ()) -> list[Text]:
    """Read, clean, deduplicate and divide the corpus, or that of a few packages; the whole takes minutes."""
    jobs = []
    for package in packages():
        if only and canonical(package.name) not in only:
            continue
        jobs.append((canonical(package.name), None, package.read_text("METADATA") or ""))
        jobs += [(canonical(package.name), str(file), "") for file in python_files(package)]
    with ProcessPoolExecutor() as pool:
        found = pool.map(_texts, *zip(*jobs), chunksize=64)
        return divide([text for texts in found for text in texts])


def divide(candidates: list[tuple[str, str, str, str]]) -> list[Text]:
    """Keep (package, kind, signature, text) once for each text, and say what it is used for."""
    # The held-out packages come first, so that a text that others copied from them stays out of training.
    first = sorted(candidates, key=lambda t: t[0] not in HELD_OUT_PACKAGES)
    seen: set[bytes] = set()
    corpus = []
    for package, kind, signature, text in first:
        key = hashlib.sha256(" ".join(text.split()).lower().encode()).digest()
        if key in seen:
            continue
        seen.add(key)
        number = int.from_bytes(key[:8], "big")
        if package in HELD_OUT_PACKAGES:
            split = "held_out_packages"
        elif kind == "docstring" and number % HELD_OUT_SHARE == 0:
            split = "held_out_docstrings"
        else:
            split = "train"
            if signature:
                text = f"{signature}\n{text}"
        if split == "train" or kind == "docstring":
            corpus.append(Text(package, kind, text, split))
    return corpus


def _texts(package: str, file: str | None, description: str) -> list[tuple[str, str, str, str]]:
    """(package, kind, signature, text) for every text of one file, or for a package's description."""
    if file is None:
        body = description.partition("\n\n")[2].strip()
        # A description is long; its sections are documents of their own.
        sections = re.split(r"\n(?=#+ )|\n(?=[^\n]+\n[=-]{4,}\n)", body)
        return [(package, "description", "", s.strip()) for s in sections if len(s.strip()) > SHORTEST_COMMENT]
    try:
        source = Path(file).read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, OSError, ValueError, RecursionError):  # broken on purpose, or a template
        return []
    texts = [(package, "docstring", signature, text) for signature, text in _docstrings(tree)]
    return texts + [(package, "comment", "", text) for text in _comments(source)]


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        drop_self(node)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = (ast.get_docstring(node) or "").strip()
        if not SHORTEST_DOCSTRING <= len(text) <= LONGEST or not _is_prose(text, least=0.5):
            continue
        yield _signature(node), text


def _signature(node: ast.AST) -> str:
    """The first line of a class or function as it is written."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))}):"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){returns}:"
    return ""


def _comments(source: str) -> Iterator[str]:
    """Runs of comment lines that stand alone, joined to one text when they read like prose."""
    block: list[str] = []
    last = (-1, -1)
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
                continue
            here = token.start
            if here != (last[0] + 1, last[1]):
                yield from _joined(block)
                block = []
            block.append(token.string.lstrip("#!:").rstrip())
            last = here
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass
    yield from _joined(block)


def _joined(block: list[str]) -> Iterator[str]:
    text = inspect.cleandoc("\n".join(block)).strip()
    if SHORTEST_COMMENT <= len(text) <= LONGEST and _is_prose(text, least=0.75):
        yield text


def _is_prose(text: str, *, least: float) -> bool:
    """At least a share of letters and blanks, at least four words, and no licence text (the same in every file)."""
    letters = sum(c.isalpha() or c in " \n" for c in text)
    if letters < least * len(text) or len(text.split()) < 4:
        return False
    start = text[:2000].lower()
    return not any(s in start for s in ("licensed under", "copyright", "all rights reserved", "spdx-license"))


def canonical(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    corpus = read_corpus()
    for split in ("train", "held_out_docstrings", "held_out_packages"):
        for kind in ("docstring", "comment", "description"):
            texts = [t.text for t in corpus if (t.split, t.kind) == (split, kind)]
            if texts:
                print(f"{split:22}{kind:14}{len(texts):>8,} texts {sum(len(t.encode()) for t in texts) / 1e6:8.2f} MB")
    print(f"sha256 {digest(corpus)}")


if __name__ == "__main__":
    main()
