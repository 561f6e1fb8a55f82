"""Loads a text-classification task: its splits and labels, cut and ordered always the same, or refused by line."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from .errors import DataError, OfflineError, ParameterError
from .files import ENDINGS, Row, code_points, format_of, read_rows, visible
from .hub import DATA, fetch_dataset, missing_parts

HELPDESK = DATA / "helpdesk"
SPLITS = {"train": "train", "validation": "validation|valid|val|dev", "test": "test", "test_shifted": "test_shifted"}
SHARES = {"test": 0.2, "validation": 0.1}  # of the texts of each label, where a split must be cut from `train`
WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,300})(\.0+)?")
FEW = 3  # examples of a label, below which a curve over examples says nothing


@dataclass(frozen=True)
class Task:
    """A text-classification task.

    `splits` maps "train", "validation", "test" (and "test_shifted" where there is one) to a
    `datasets.Dataset` with the columns `text` (str) and `label` (int, an index into `labels`).
    `fingerprint` is a SHA-256 over all texts and labels of all splits, before `train_examples` were
    drawn: it names the data, not the draw.
    """

    name: str
    labels: tuple[str, ...]
    splits: datasets.DatasetDict
    fingerprint: str

    def texts(self, split: str) -> list[str]:
        return list(self.splits[split]["text"])

    def targets(self, split: str) -> list[int]:
        return list(self.splits[split]["label"])

    def rows(self, split: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 128) -> list[dict[str, Any]]:
        """Each text as `Trainer` wants it: `input_ids`, `attention_mask` (lists of one length, unpadded) and `labels`.

        Longer texts are cut to `max_tokens`. A collator such as `DataCollatorWithPadding` pads each batch.
        """
        found = tokenizer(self.texts(split), truncation=True, max_length=max_tokens)["input_ids"]
        return [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
            for ids, label in zip(found, self.targets(split))
        ]

    def judge(self, split: str, predicted: Any) -> dict[str, np.ndarray]:
        """Which of the predicted labels, (texts,), or logits, (texts, labels), are right: `accuracy`, (texts,)."""
        answers, targets = label_of(predicted), np.asarray(self.targets(split))
        if len(answers) != len(targets):
            raise ParameterError(f"{len(answers)} predictions for the {len(targets)} texts of {split!r}.")
        return {"accuracy": answers == targets}


def label_of(predicted: Any) -> np.ndarray:
    """Labels, (texts,), from labels or from logits, (texts, labels)."""
    predicted = np.asarray(predicted)
    return predicted.argmax(1) if predicted.ndim == 2 else predicted


def load_task(
    task: str = "helpdesk",
    *,
    train_examples: int = 0,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
) -> Task:
    """Load the shared task, your own file or folder, or a dataset of the Hugging Face Hub.

    Args:
        task: `"helpdesk"`; a CSV, TSV, JSONL, JSON (all also with .gz) or Parquet file (split 70/10/20,
            stratified, equal texts kept together); a folder with `train`, `validation` (or `dev`) and
            `test` files (and `test_shifted`, if you have one), of which what lacks is cut from `train`;
            or a Hub dataset id, `"owner/name"` or `"owner/name@revision"`.
        train_examples: how many training examples to keep at most, drawn evenly from all labels with
            `seed`, at least one of each; 0 keeps all.
        text_column, label_column: the names of the two columns in your files.

    Labels are those of the training split, sorted, numbers by size.

    Raises:
        DataError: a file, line or column is not usable. No row is dropped or repaired.
        ParameterError: `train_examples` is negative, or below one a label.
        OfflineError: the task is a Hub id, not in the local cache, and the Hub does not answer.

    Source: data/README.md (written for this project, CC0).
    """
    ours = task == "helpdesk"
    path = HELPDESK if ours else _find(task)
    files = {"train": [path]} if path.is_file() else _split_files(path)
    rows = {split: _read_split(split, paths, (text_column, label_column)) for split, paths in files.items()}
    rows = _name_labels({split: members for split, members in rows.items() if members})
    names = _label_names(rows)
    if ours:  # in the order of their definitions
        names = list(json.loads((HELPDESK / "topics.json").read_text(encoding="utf-8")))
    rows = _cut(rows)
    index = {name: number for number, name in enumerate(names)}
    digest = hashlib.sha256()
    for split, members in rows.items():
        content = [split, [row.text for row in members], [index[row.label] for row in members], names]
        digest.update(json.dumps(content).encode())
    if train_examples:
        rows["train"] = _draw(rows["train"], len(names), train_examples, seed)
    _print_notes(rows, names)
    splits = datasets.DatasetDict()
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    for split, members in rows.items():
        columns = {"text": [row.text for row in members], "label": [index[row.label] for row in members]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    name = format_of(path)[0] if path.is_file() else path.resolve().name
    return Task(name if Path(task).expanduser().exists() else task, tuple(names), splits, digest.hexdigest())


def _find(task: str) -> Path:
    path = Path(task).expanduser()
    if path.exists():
        return path
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", task)
    if format_of(path)[1] or path.is_absolute() or not is_hub_id:
        raise DataError(
            f"task={task!r}: there is no such file or folder (looked in {Path.cwd()}). Give a file ({ENDINGS}), a "
            f"folder with train, validation and test files, a Hub dataset id such as 'owner/name', or 'helpdesk'."
        )
    try:
        return fetch_dataset(task)
    except OfflineError as error:
        instead = f"There is no file or folder {task!r} in {Path.cwd()} either; these, and task='helpdesk', need no"
        raise OfflineError(f"{error} {instead} network.") from None


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in the layouts train.csv and data/train-00000-of-00001.parquet."""
    # Hidden folders hold copies: JupyterLab keeps .ipynb_checkpoints/train-checkpoint.csv of every file it saves.
    seen = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    found = sorted(p for p in seen if format_of(p)[1])
    by_split: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        # "test", "test-0001", "test-00000-of-00002" and "test-00000-of-00002-1a2b3c4d5e6f7a8b" belong to test;
        # "test_shifted" and "test-old" do not.
        pattern = re.compile(rf"({names})(-\d+(-of-\d+)?(-[0-9a-f]{{8,}})?)?", re.IGNORECASE)
        matching = {p: match for p in found if (match := pattern.fullmatch(format_of(p)[0]))}
        if len({(p.parent, p.suffix.lower(), m[1], m[2] is None) for p, m in matching.items()}) > 1:
            raise DataError(
                f"{folder}: found {', '.join(str(p.relative_to(folder)) for p in matching)} for '{split}': copies of "
                f"each other, or different datasets. Keep one of them, or give the folder of one dataset."
            )
        if gap := missing_parts(matching):
            raise DataError(f"{folder}, split '{split}': found only {gap}. Copy or download the others too.")
        if matching:
            by_split[split] = list(matching)
    if "train" not in by_split:
        raise DataError(
            f"{folder}: found {', '.join(p.name for p in found) or 'no data files'}, but no file for train. Name the "
            f"files train, validation and test, with the endings {ENDINGS}; or give one file, which is split for you."
        )
    used = [p for paths in by_split.values() for p in paths]
    if left := [p.name for p in found if p not in used and format_of(p)[1] != "json"]:  # .json often describes data
        took = ", ".join(p.name for p in used)
        print(f"Note: {folder}: the files of the splits are {took}; not read: {', '.join(left)}.")
    return by_split


def _read_split(split: str, paths: Iterable[Path], columns: tuple[str, str]) -> list[Row]:
    """The rows of one split; none for a test split without labels, which can grade nothing."""
    rows = [row for path in paths for row in read_rows(path, columns, unlabelled=split == "test")]
    if not rows:
        print(f"Note: {', '.join(map(str, paths))}: no labels in the column '{columns[1]}', so it is not used.")
    return rows


def _name_labels(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows with labels that are names: 1.0 and 1 are called '1' where all are whole numbers, True 'True'."""
    styles: dict[tuple[Path, bool], Row] = {}
    every = [row for members in rows.values() for row in members]
    whole = all(not isinstance(row.label, bool) and WHOLE.fullmatch(str(row.label)) for row in every)
    for row in every if whole else ():
        styles.setdefault((row.file, "." in str(row.label)), row)
        if other := styles.get((row.file, "." not in str(row.label))):
            told = f"{other.place} has {other.label!r}: two spellings of whole numbers, as in two exports joined"
            raise row.label_error(f", but {told}. Write all labels the same way.")

    def name(label: str | float | bool) -> str:
        label = int(label) if isinstance(label, float) else label
        return str(label).partition(".")[0] if whole else str(label)

    return {split: [replace(row, label=name(row.label)) for row in members] for split, members in rows.items()}


def _label_names(rows: dict[str, list[Row]]) -> list[str]:
    """The names of the labels in their order, if the training split can teach them and every row has one of them."""
    train = rows["train"]
    values = {row.label for row in train}
    if len(values) < 2:
        told = f"in all {len(train)} lines: one single label. A classifier needs two"
        raise train[0].label_error(f" {told}; is this the right column?")
    if len(train) <= len(values):
        told = f"{len(train)} training examples have {len(values)} labels. A label must repeat to be learned"
        raise train[0].label_error(f"; {told}; is this the right column?")
    whole = all(WHOLE.fullmatch(value) for value in values)
    names = sorted(values, key=int if whole else None)
    for members in rows.values():
        spelled: dict[str, Row] = {}
        for row in members:
            first = spelled.setdefault(_spelling(row.label), row)
            if first.label != row.label:  # but for blanks, capitals, or what nobody sees
                one, other = code_points(row.label, first.label), code_points(first.label, row.label)
                remedy = "Write the label the same way in every line, or other words for what is really different."
                raise row.label_error(f"{one}, but {first.place} has {first.label!r}{other}. {remedy}")
            if row.label not in values:
                alike = [name for name in names if _spelling(name) == _spelling(row.label)]
                close = alike or difflib.get_close_matches(row.label, names, n=1)
                hint = f" Did you mean {close[0]!r}{code_points(close[0], row.label)}?" if close else ""
                shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
                told = f"which is not one of the {len(names)} labels ({shown}).{hint}"
                unlike = code_points(row.label, "".join(names))
                raise row.label_error(f"{unlike}, {told} Correct it, or give the label training examples.")
    return names


@cache
def _spelling(label: str) -> str:
    """What makes two labels look the same: not blanks, capitals, Unicode forms or characters that nobody sees."""
    number = WHOLE.fullmatch(label)
    return number[1] if number else visible(label).casefold()


def _cut(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Cut the splits that lack from `train`, by label and with equal texts together. Always the same, for any seed."""
    shares = {split: share for split, share in SHARES.items() if split not in rows}
    if not shares:
        return rows
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows["train"]:
        groups[row.wording].append(row)
    of_label: dict[str, list[str]] = defaultdict(list)
    for wording, group in groups.items():
        for label in dict.fromkeys(row.label for row in group):
            of_label[label].append(wording)
    order, placed = random.Random(0), {}
    for label, wordings in sorted(of_label.items(), key=lambda item: len(item[1])):  # a text may have several labels
        if len(wordings) <= len(shares):
            row = next(row for row in rows["train"] if row.label == label)
            told = f"{len(wordings)} different text(s) for training, {' and '.join(sorted(shares))}; at least"
            remedy = "Add examples, merge the label with another, or remove it."
            raise row.label_error(f" with {told} {len(shares) + 1} are needed, one each. {remedy}")
        free = [wording for wording in wordings if wording not in placed]
        order.shuffle(free)
        for split, share in shares.items():
            there = sum(placed.get(wording) == split for wording in wordings)
            for _ in range(min(max(1, round(share * len(wordings))) - there, len(free) - 1)):
                placed[free.pop()] = split
        placed.update(dict.fromkeys(free, "train"))
    result = {
        split: [] if split in (*shares, "train") else rows[split] for split in SPLITS if split in {**rows, **shares}
    }
    for wording, split in placed.items():
        result[split] += groups[wording]
    sizes = ", ".join(f"{len(result[split])} for {split}" for split in result if split in ("train", *shares))
    file, count = rows["train"][0].file, len(rows["train"])
    print(f"Note: {file}: its {count} rows are cut into {sizes}; by label, equal texts together, always the same.")
    return result


def _draw(rows: list[Row], classes: int, wanted: int, seed: int) -> list[Row]:
    if wanted < classes:
        raise ParameterError(f"train_examples={wanted}: expected 0 (all), or a number from {classes}, one a label.")
    if wanted > len(rows):  # the notebooks' default must not refuse a small file
        print(f"Note: train_examples={wanted}, but there are {len(rows)} for training: all of them are used.")
    by_label: dict[Any, list[Row]] = defaultdict(list)
    for row in random.Random(seed).sample(rows, len(rows)):
        by_label[row.label].append(row)
    drawn: list[Row] = []
    wanted = min(wanted, len(rows))
    while len(drawn) < wanted:
        for members in by_label.values():
            if members and len(drawn) < wanted:
                drawn.append(members.pop())
    return drawn


def _print_notes(rows: dict[str, list[Row]], names: Sequence[str]) -> None:
    labels_of: dict[str, set] = defaultdict(set)
    for row in (row for members in rows.values() for row in members):
        labels_of[row.wording].add(row.label)
    if torn := [wording for wording, found in labels_of.items() if len(found) > 1]:
        print(f"Careful: {len(torn)} texts stand there with more than one label, such as {torn[0][:60]!r}.")
    train = {row.wording for row in rows["train"]}
    for split, members in rows.items():
        if split != "train" and (shared := sum(row.wording in train for row in members)):
            print(f"Careful: {shared} of {len(members)} texts of '{split}' stand in 'train' too; scores on it flatter.")
    found = {split: Counter(row.label for row in members) for split, members in rows.items()}
    for split, counts in found.items():
        if split != "train" and (absent := [name for name in names if not counts[name]]):
            print(f"Careful: no example in '{split}' for {_some(absent)}: scores on it say nothing about these.")
    if few := [name for name in names if found["train"][name] < FEW]:
        print(f"Careful: fewer than {FEW} examples in 'train' for {_some(few)}: hardly enough to learn from.")
    like_lists = _look_like_lists(names)
    if lists := [row for row in rows["train"] if row.label in like_lists]:
        print(
            f"Careful: {len(lists)} labels look like lists of labels, such as {lists[0].label!r} ({lists[0].place}). "
            f"Here each different list is one label; keep one label for each text if that is not meant."
        )


def _some(labels: Sequence[str]) -> str:
    return f"{len(labels)} label(s), {', '.join(map(repr, labels[:5]))}{' ...' if len(labels) > 5 else ''}"


def _look_like_lists(labels: Sequence[str]) -> set[str]:
    """Labels in brackets, and those that are made only of parts that other labels have too."""
    parts = {label: [part.strip() for part in re.split(r"[|;,]", label)] for label in labels}
    shared = Counter(part for found in parts.values() for part in set(found))
    made = {label for label, found in parts.items() if len(found) > 1 and all(shared[part] > 1 for part in found)}
    return made | {label for label in labels if re.fullmatch(r"\[.*\]|\{.*\}", label, re.DOTALL)}
