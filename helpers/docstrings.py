"""Loads the second task, signature in and docstring in a house style out, and grades what a model writes."""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from docstring_parser import DocstringStyle, ParseError, parse
from docstring_parser.common import DocstringParam
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from .errors import DataError, ParameterError
from .waiting import progress

STYLES = {"google": DocstringStyle.GOOGLE, "numpy": DocstringStyle.NUMPYDOC}
# The libraries of this project with the most usable docstrings for the seconds that they take to read.
PACKAGES = (
    *("accelerate", "datasets", "fsspec", "huggingface-hub", "matplotlib", "narwhals", "networkx", "numpy"),
    *("pandas", "peft", "pyarrow", "pydantic", "rich", "scikit-learn", "scipy", "sentence-transformers"),
)
# What neither this training nor that of the language model has read.
UNSEEN = ("ipython", "tornado", "docstring-parser")
FEWEST = 40  # usable functions, without which nothing is learned and nothing can be judged
MOST_PARAMETERS, LONGEST_SENTENCE = 4, 100  # the second in characters
VALIDATION_SHARE, TEST_SHARE = 40, 4  # one text in so many, by the hash of its text; the second of your own code
SKIPPED = {"tests", "test", "testing", "site-packages", "node_modules", "build", "dist", "venv", "__pycache__"}
SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Params):?\s*$|[:@](param|arg|parameter|argument)\b", re.M)
LISTED = ("param", "parameter", "arg", "argument")  # how the parser calls a documented parameter
UNDOCUMENTED = "without a docstring"
# Usable functions, what was left out by reason, and the first lines of undocumented ones.
Found = tuple[list[Any], Counter[str], list[str]]


class Pair(NamedTuple):
    """A function's name with its parameters, `def name(a, b):`, and the docstring that it should get.

    `where` names file and line.
    """

    signature: str
    docstring: str
    where: str


class Reply(NamedTuple):
    """What a model wrote, and whether it ended by itself or was cut off."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Docstrings:
    """The docstring task in one house style.

    `splits` maps "train", "validation" and "test" to lists of `Pair`, in an order that depends on their
    text alone. `fingerprint` is a SHA-256 over all of them. `undocumented` has the signatures of functions
    that have no docstring: yours, or the test's.
    """

    name: str
    style: str
    splits: dict[str, list[Pair]]
    fingerprint: str
    undocumented: list[str] = field(repr=False)

    def signatures(self, split: str) -> list[str]:
        return [pair.signature for pair in self.splits[split]]

    def rows(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
        """Unpadded examples for `fit`: `input_ids`, `attention_mask`, and `labels` that ask for the docstring only."""
        pairs = progress(self.splits[split], "reading")
        return [mask_prompt(tokenizer, f"{pair.signature}\n", pair.docstring) for pair in pairs]

    def judge(self, split: str, replies: Sequence[Reply]) -> dict[str, np.ndarray]:
        """Which of the replies are right: `names`, `form` and `ended`, each (pairs,), see `grade`."""
        if len(replies) != len(self.splits[split]):
            raise ParameterError(f"{len(replies)} replies for the {len(self.splits[split])} signatures of {split!r}.")
        found = [grade(s, reply, self.style) for s, reply in zip(self.signatures(split), replies)]
        return {rule: np.array([marks[rule] for marks in found]) for rule in ("names", "form", "ended")}


def load_docstrings(style: str = "google", code: str = "") -> Docstrings:
    """Read pairs of signature and docstring from installed packages, or from code of yours; nothing is imported or run.

    Functions with one to four parameters, all documented in their order, in any style that
    `docstring_parser` knows, are written anew in one house style: a summary sentence, and a sentence
    for each parameter. Signatures come without annotations, defaults and `self`: a small model
    learns the same from less.

    Args:
        style: "google" or "numpy".
        code: a folder with Python files (or one file), whose functions are learned instead; one in four
            is kept for the test.

    Without `code`, the test is on packages that the language model never saw. One text is in one split
    only. What was left out is printed, by reason.

    Raises:
        ParameterError: an unknown style.
        DataError: there is no such folder, or too few functions are usable; with the counts.
    """
    if style not in STYLES:
        raise ParameterError(f"style={style!r}: expected one of {', '.join(STYLES)}.")
    splits: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    left_out: Counter[str] = Counter()
    undocumented, seen = [], set()
    if code:
        sources = [("train", read_code(code))]
    else:  # the unseen ones first, so that a text that stands in both is theirs
        uses = [*((name, "test") for name in UNSEEN), *((name, "train") for name in PACKAGES)]
        sources = [(use, read_package(name)) for name, use in progress(uses, "reading")]
    for use, (found, reasons, bare) in sources:
        left_out += reasons
        undocumented += bare if code or use == "test" else []
        for signature, summary, parameters, where in found:
            # Texts are the same whatever the style and the capitals.
            key = hashlib.sha256(repr((summary, parameters)).lower().encode()).digest()
            if key in seen:
                left_out["the same text again"] += 1
                continue
            seen.add(key)
            number, split = int.from_bytes(key[:8], "big"), use
            if use == "train" and number % VALIDATION_SHARE == 0:
                split = "validation"
            elif code and number // VALIDATION_SHARE % TEST_SHARE == 0:
                split = "test"
            splits[split].append((key, Pair(signature, write(style, summary, parameters), where)))
    usable = sum(map(len, splits.values()))
    told = "; ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    name = f"docstrings{f' of {Path(code).name}' if code else ''}, {style} style"
    if usable < FEWEST or not all(splits.values()):
        raise DataError(
            f"{code or 'the installed packages'}: {usable} usable functions, expected at least {FEWEST}. "
            f"Left out: {told or 'nothing, there is no Python file'}. A function is usable if it has 1 to "
            f"{MOST_PARAMETERS} parameters, documented in Google, NumPy, reST or Epydoc style. Give a larger folder."
        )
    ordered = {split: [pair for _, pair in sorted(pairs)] for split, pairs in splits.items()}
    digest = hashlib.sha256(repr(ordered).encode()).hexdigest()
    counts = ", ".join(f"{len(pairs):,} {split}" for split, pairs in ordered.items())
    print(f"{name}: {counts}. Left out: {told}.")
    bare = sorted(set(undocumented), key=lambda signature: hashlib.sha256(signature.encode()).digest())
    return Docstrings(name, style, ordered, digest, bare)


def mask_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str) -> dict[str, list[int]]:
    """Token ids of prompt, reply and end, and the labels: the prompt's are left out of the loss."""
    asked = tokenizer(prompt)["input_ids"]
    answer = tokenizer(reply, add_special_tokens=False)["input_ids"]
    answer = answer + [tokenizer.eos_token_id]
    ids = asked + answer
    labels = [-100] * len(asked) + answer  # -100: what the loss leaves out
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def write(style: str, summary: str, parameters: Sequence[tuple[str, str]]) -> str:
    """A docstring in a house style, from its summary and (name, description) of each parameter."""
    if style == "google":
        lines = ["Args:", *(f"    {name}: {about}" for name, about in parameters)]
    else:
        lines = ["Parameters", "----------", *(f"{name}\n    {about}" for name, about in parameters)]
    return "\n".join([summary, "", *lines])


def grade(signature: str, reply: Reply, style: str) -> dict[str, bool]:
    """Judge one docstring by three rules; what it says is not judged.

    `form`: a summary of one sentence and a list of parameters with a description each, and nothing else,
    as the style's parser reads it. `names`: the form, and exactly the signature's parameters in their
    order. `ended`: by itself, not cut off.
    """
    try:
        found = parse(reply.text, style=STYLES[style])
    except ParseError:
        found = parse("")
    summary = (found.short_description or "").strip()
    listed = [part for part in found.meta if isinstance(part, DocstringParam) and part.args[0] in LISTED]
    form = (
        summary.endswith(".")
        and len(summary.split()) > 1
        and not found.long_description
        and bool(listed)
        and len(listed) == len(found.meta)
        and all(part.description and " " not in part.arg_name for part in listed)
    )
    names = form and [part.arg_name for part in listed] == names_of(signature)
    return {"form": form, "names": names, "ended": reply.ended}


def names_of(signature: str) -> list[str]:
    """The parameters of `def name(...):` in their order, `*args` and `**kwargs` with their stars.

    Raises:
        ParameterError: it is not the first line of a function.
    """
    try:
        function = ast.parse(f"{signature.strip().rstrip(':')}: pass").body[0]
    except (SyntaxError, ValueError):
        function = None
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        raise ParameterError(f"{signature!r}: expected the first line of a function, such as def add(a, b):")
    return _names(function.args)


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file; methods without their `self` or `cls`, which nobody documents."""
    statements: list[ast.AST] = [tree]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for part in ("body", "orelse", "handlers", "finalbody", "cases"):
            statements += reversed(getattr(node, part, []))
        drop_self(node)


def drop_self(node: ast.AST) -> None:
    """Take `self` or `cls` from the methods of a class, before they are looked at; other nodes stay as they are."""
    for child in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = child.args.posonlyargs or child.args.args
            if first and first[0].arg in ("self", "cls"):
                del first[0]


def python_files(package: metadata.Distribution) -> list[Path]:
    """The Python files of an installed package by name: not what pip compiled or put outside site-packages."""
    files = sorted(map(str, package.files or []))
    return [Path(package.locate_file(f)) for f in files if f.endswith(".py") and not f.startswith("..")]


@lru_cache
def read_package(name: str) -> Found:
    """Usable functions of an installed package, what was left out, by reason, and what has no docstring.

    All packages take some twenty seconds, so what was found is kept beside the Hub's models, for each version of the
    package and of what reads it.
    """
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return [], Counter({f"package {name}, which is not installed": 1}), []
    read_by = (Path(__file__).read_bytes(), sys.version, metadata.version("docstring-parser"))
    kept = Path(constants.HF_HOME) / "fine-tuning-techniques" / hashlib.sha256(repr(read_by).encode()).hexdigest()[:16]
    kept /= f"{name}-{package.version}.json"
    with contextlib.suppress(OSError, ValueError):
        found, reasons, bare = json.loads(kept.read_text(encoding="utf-8"))
        return [(*text, tuple(map(tuple, names)), where) for *text, names, where in found], Counter(reasons), bare
    read = _read(Path(package.locate_file("")), python_files(package), section_only=True)
    with contextlib.suppress(OSError):  # a home that cannot be written to
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")  # so that nobody reads half of a file
        draft.write_text(json.dumps(read), encoding="utf-8")
        draft.replace(kept)
    return read


def read_code(code: str) -> Found:
    """The same for a folder, or one file."""
    path = Path(code).expanduser().resolve()
    if not path.exists():
        raise DataError(f"code={code!r}: there is no such folder or file (looked in {Path.cwd()}).")
    if path.is_file():
        return _read(path.parent, [path])
    return _read(path, progress(sorted(path.rglob("*.py")), "reading"))


def _read(root: Path, files: Iterable[Path], *, section_only: bool = False) -> Found:
    """`section_only`: do not parse files in which no parameter is documented, which saves half of the time."""
    found, reasons, bare = [], Counter(), []
    gc.disable()  # it would look through every tree again and again: twice the seconds
    try:
        for file in files:
            place = file.relative_to(root)
            if any(part in SKIPPED or part.startswith(".") for part in place.parts[:-1]):
                continue
            tree = _parsed(file, section_only)
            if isinstance(tree, str):
                reasons[tree] += 1
            for function in functions_of(tree) if isinstance(tree, ast.Module) else ():
                usable = _usable(function)
                if not isinstance(usable, str):
                    found.append((*usable, f"{place.as_posix()}:{function.lineno}"))
                    continue
                reasons[usable] += 1
                names = _names(function.args)
                if usable == UNDOCUMENTED and function.name[0] != "_" and 1 <= len(names) <= MOST_PARAMETERS:
                    bare.append(_first_line(function.name, names))
    finally:
        gc.enable()
    return found, reasons, bare


def _parsed(file: Path, section_only: bool) -> ast.Module | str | None:
    """The tree of a file, or why there is none; nothing where it need not be parsed."""
    try:
        source = file.read_bytes().decode("utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            return None if section_only and not SECTION.search(source) else ast.parse(source)
    except UnicodeDecodeError:
        return "files that are not UTF-8"
    except OSError:
        return "files that cannot be read"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "files that do not parse"


def _usable(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, str, tuple] | str:
    """Signature, summary and (name, description) of each parameter, or why the function cannot be used."""
    text, names = ast.get_docstring(node), _names(node.args)
    if not text:
        return UNDOCUMENTED
    if not names:
        return "without parameters"
    if len(names) > MOST_PARAMETERS:
        return f"with more than {MOST_PARAMETERS} parameters"
    try:
        found = parse(text) if SECTION.search(text) else None
    except ParseError:
        found = None
    listed = [part for part in found.params if part.args[0] in LISTED] if found else []
    if not listed:
        return "with no parameters documented in a known style"
    if [part.arg_name.strip("*`\\: ") for part in listed] != [name.strip("*") for name in names]:
        return "whose documented parameters are not those of the signature"
    sentences = [_sentence(found.description), *(_sentence(part.description) for part in listed)]
    if not all(sentences):
        return "with an empty summary or description"
    if max(map(len, sentences)) > LONGEST_SENTENCE:
        return f"with sentences above {LONGEST_SENTENCE} characters"
    return _first_line(node.name, names), sentences[0], tuple(zip(names, sentences[1:]))


def _first_line(name: str, names: Sequence[str]) -> str:
    return f"def {name}({', '.join(names)}):"


def _names(args: ast.arguments) -> list[str]:
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [arg.arg for arg in args.kwonlyargs]
    return names + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


def _sentence(text: str | None) -> str:
    """The first sentence on one line, with a capital and a full stop."""
    text = re.split(r"\n\s*\n", (text or "").strip())[0]
    text = re.split(r"(?<=[a-z0-9)`'\"][.!?]) (?=[A-Z`'\"(\[])", " ".join(text.split()))[0]
    return text and f"{text[0].upper()}{text[1:].rstrip(' .:;,')}."
