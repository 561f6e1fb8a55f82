"""Loads a text-classification task and refuses bad rows by file, line and column."""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from .errors import DataError, OfflineError, ParameterError
from .hub import DATA, fetch_dataset, missing_parts

HELPDESK = DATA / "helpdesk"
SPLITS = ("train", "validation", "test")
# What pandas reads as "no value": a tool further down the line would lose such a row in silence.
MISSING = {"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA", "-nan", "-NaN"}
MISSING |= {"#N/A N/A"}


@dataclass(frozen=True)
class Row:
    """One example with the place it came from; `columns` are the names of its text and its label."""

    file: Path
    line: int
    values: dict[str, Any]
    columns: tuple[str, str]

    @property
    def text(self) -> Any:
        return self.values[self.columns[0]]

    @property
    def label(self) -> Any:
        return self.values[self.columns[1]]

    @property
    def wording(self) -> str:
        """What makes two texts equal: not blanks around them, not capitals."""
        return self.text.strip().lower()

    def error(self, column: str, message: str) -> DataError:
        return DataError(f"{self.file}, line {self.line}, column '{column}': {message}")

    def label_error(self, message: str) -> DataError:
        return self.error(self.columns[1], f"found {self.label!r}{message}")


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
    labels: Sequence[str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
) -> Task:
    """Load the shared task, your own file or folder, or a dataset of the Hugging Face Hub.

    Args:
        task: `"helpdesk"`; a CSV, TSV, JSONL or Parquet file (split 70/10/20, stratified, equal
            texts kept together); a folder with `train`, `validation` and `test` files (and
            `test_shifted`, if you have one); or a Hub dataset id, `"owner/name"` or
            `"owner/name@revision"`.
        train_examples: how many training examples to keep at most, drawn evenly from all labels with
            `seed`; 0 keeps all.
        labels: the allowed labels, in order; by default those of the training split, sorted.
        text_column, label_column: the names of the two columns in your files.

    Raises:
        DataError: a file, line or column is not usable. Nothing is dropped or repaired.
        ParameterError: `train_examples` is negative, or below one a label.
        OfflineError: the task is a Hub id, not in the local cache, and the Hub does not answer.

    Source: data/README.md (written for this project, CC0).
    """
    ours = task == "helpdesk"
    path = HELPDESK if ours else _find(task)
    files = {"train": [path]} if path.is_file() else _split_files(path)
    rows = {
        split: [row for one in paths for row in _read_file(one, (text_column, label_column))]
        for split, paths in files.items()
    }
    for members in rows.values():
        for row in members:
            _check_row(row, members[0])
    if ours and labels is None:
        labels = list(json.loads((HELPDESK / "topics.json").read_text(encoding="utf-8")))
    names = _label_names(rows, labels)
    if "validation" not in rows:
        rows = _split(rows["train"])
        names = _label_names(rows, labels)  # again: a label may have gone to the test split with all its texts
    index = {name: number for number, name in enumerate(names)}
    digest = hashlib.sha256()
    for split, members in rows.items():
        content = [split, [row.text for row in members], [index[str(row.label)] for row in members], names]
        digest.update(json.dumps(content).encode())
    if train_examples:
        rows["train"] = _draw(rows["train"], len(names), train_examples, seed)
    _print_notes(rows)
    splits = datasets.DatasetDict()
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    for split, members in rows.items():
        columns = {"text": [row.text for row in members], "label": [index[str(row.label)] for row in members]}
        splits[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    name = path.stem if path.is_file() else path.resolve().name
    return Task(name if Path(task).expanduser().exists() else task, names, splits, digest.hexdigest())


def _find(task: str) -> Path:
    path = Path(task).expanduser()
    if path.exists():
        return path
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", task)
    if path.suffix.lower() in _READERS or path.is_absolute() or not is_hub_id:
        raise DataError(
            f"task={task!r}: there is no such file or folder (looked in {Path.cwd()}). Give a path to a "
            f"{', '.join(_READERS)} file, a folder with train, validation and test files, a Hub dataset id such as "
            f"'owner/name', or 'helpdesk'."
        )
    try:
        return fetch_dataset(task)
    except OfflineError as error:
        raise OfflineError(
            f"{error} There is no file or folder {task!r} in {Path.cwd()} either; these, and task='helpdesk', need no "
            f"network."
        ) from None


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in the layouts train.csv and data/train-00000-of-00001.parquet."""
    # Hidden folders hold copies: JupyterLab keeps .ipynb_checkpoints/train-checkpoint.csv of every file it saves.
    found = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _READERS and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    by_split: dict[str, list[Path]] = {}
    for split in (*SPLITS, "test_shifted"):
        # "test", "test-0001", "test-00000-of-00002" and "test-00000-of-00002-1a2b3c4d5e6f7a8b" belong to test;
        # "test_shifted" and "test-old" do not.
        matching = [p for p in found if re.fullmatch(rf"{split}(-\d+(-of-\d+)?(-[0-9a-f]{{8,}})?)?", p.stem)]
        if len({(p.parent, p.suffix.lower(), "-" in p.stem) for p in matching}) > 1:
            raise DataError(
                f"{folder}: found {', '.join(str(p.relative_to(folder)) for p in matching)} for '{split}': copies of "
                f"each other, or different datasets. Keep one of them, or give the folder of one dataset."
            )
        if gap := missing_parts(matching):
            raise DataError(f"{folder}, split '{split}': found only {gap}. Copy or download the others too.")
        if matching:
            by_split[split] = matching
    if missing := [split for split in SPLITS if split not in by_split]:
        raise DataError(
            f"{folder}: found {', '.join(p.name for p in found) or 'no data files'}, but no file for "
            f"{', '.join(missing)}. Name them train, validation and test with one of the endings "
            f"{', '.join(_READERS)}; or give one single file, which is then split for you."
        )
    return by_split


def _read_file(path: Path, columns: tuple[str, str]) -> list[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: files ending in '{path.suffix}' are not read. Save it as one of {', '.join(_READERS)}."
        )
    rows = list(reader(path, columns))
    if not rows:
        raise DataError(f"{path}, line 2: there are columns, but not a single row. Save or copy it again.")
    return rows


def _check_columns(path: Path, line: int, found: Sequence[str], needed: Sequence[str]) -> None:
    for column in needed:
        if column not in found:
            spelled = {name.strip().lower(): name for name in found}
            close = difflib.get_close_matches(column.lower(), spelled, n=1)
            hint = f" Did you mean {spelled[close[0]]!r}?" if close else ""
            raise DataError(
                f"{path}, line {line}, column '{column}': missing; the columns are "
                f"{', '.join(map(repr, found))}.{hint} Name yours by the parameters text_column and label_column, or "
                f"rename them."
            )
        if list(found).count(column) > 1:
            raise DataError(
                f"{path}, line {line}, column '{column}': stands twice, and only one would be read. Rename or remove "
                f"one."
            )


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        raw = error.object  # without the byte order mark, which the positions do not count
        before = raw[: error.start]
        around = raw[max(0, error.start - 15) : error.start + 15].decode("latin-1")
        raise DataError(
            f"{path}, line {before.count(10) + 1}, column (byte) {error.start - before.rfind(10)}: found byte "
            f"0x{raw[error.start]:02x} near {around!r}, which is not UTF-8 (perhaps {encoding}). Save the file as "
            f"UTF-8 (in Excel: 'CSV UTF-8'), or convert it: iconv -f {encoding} -t UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path}, line 1: the file is empty ({len(raw)} bytes, no text). Save or copy it again.")
    return text


def _read_csv(path: Path, needed: tuple[str, str]) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(10_000_000)
    reader = csv.reader(io.StringIO(_decode(path), newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(reader)
        if len(header) == 1 and (mark := next((mark for mark in ";\t," if mark in header[0]), "")):
            raise DataError(
                f"{path}, line 1: found one single column {header[0]!r}; it looks separated by {mark!r}. "
                f"Save it with {delimiter!r} between the columns{' or name it .tsv' if mark == chr(9) else ''}."
            )
        _check_columns(path, 1, header, needed)
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, line {start}, column {min(len(fields), len(header)) + 1}: found {len(fields)} fields, "
                    f"the header has {len(header)}. Put texts that contain {delimiter!r} or line breaks in double "
                    f"quotes; remove blank lines."
                )
            yield Row(path, start, dict(zip(header, fields)), needed)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: not valid CSV ({error}). A double quote inside a text is written twice, "
            f"and the last quote of the file must be closed."
        ) from None


def _read_jsonl(path: Path, needed: tuple[str, str]) -> Iterator[Row]:
    names: list[str] = []

    def keep_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names[:] = [name for name, _ in pairs]  # the outermost object comes last
        return dict(pairs)

    for number, line in enumerate(_decode(path).rstrip().split("\n"), 1):
        try:
            values = json.loads(line, object_pairs_hook=keep_names)
            wrong = "" if isinstance(values, dict) else f": not an object, but a {type(values).__name__}"
        except json.JSONDecodeError as error:
            wrong = f", column (character) {error.colno}: not valid JSON ({error.msg}; was the file cut off?)"
        if wrong:
            raise DataError(
                f"{path}, line {number}{wrong}. Found {line[:40]!r}; every line is one object such as "
                f'{{"text": "...", "label": "..."}}.'
            )
        _check_columns(path, number, names, needed)
        yield Row(path, number, values, needed)


def _read_parquet(path: Path, needed: tuple[str, str]) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, 1, schema.names, needed)
            table = file.read(columns=list(needed))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}, line 1: not a complete Parquet file ({path.stat().st_size:,} bytes; "
            f"{str(error).splitlines()[0]}). Copy or download it again."
        ) from None
    # Hub datasets store labels as numbers and their names in the file's own metadata.
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][needed[1]]["names"]
    except (ValueError, LookupError, TypeError):
        names = None
    for number, values in enumerate(table.to_pylist(), 1):
        row = Row(path, number, values, needed)
        if names:
            if not isinstance(row.label, int) or not 0 <= row.label < len(names):
                raise row.label_error(f", but the file lists {len(names)} label names. Correct the label.")
            values[needed[1]] = names[row.label]
        yield row


_READERS = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _check_row(row: Row, first: Row) -> None:
    for column in row.columns:
        value = row.values[column]
        if str(value).strip() in MISSING:
            raise row.error(
                column,
                f"found {value!r}, which is blank, or read as 'no value' by most tools. Write it out (for example 'not "
                f"available' or 'Namibia') or remove the line.",
            )
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise row.error(
                column,
                f"found {value[:40]!r}, which holds half a character (a lone surrogate). Write the file again from the "
                f"original text, as UTF-8.",
            )
    if not isinstance(row.text, str):
        kind = type(row.text).__name__
        raise row.error(row.columns[0], f"found {row.text!r} ({kind}), expected text. Put it in quotes or correct it.")
    kind, expected = type(row.label), type(first.label)
    if kind not in (str, int):
        raise row.label_error(f" ({kind.__name__}), expected a name or a whole number, the same way in every line.")
    if kind is not expected:
        raise row.label_error(
            f" ({kind.__name__}), but {first.file}, line {first.line} has {first.label!r} ({expected.__name__}). Write "
            f"all labels the same way."
        )


def _label_names(rows: dict[str, list[Row]], allowed: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the labels in their order, if the training split can teach them and every row has one of them."""
    train = rows["train"]
    values = {row.label for row in train}
    if len(values) < 2:
        raise train[0].label_error(
            f" in all {len(train)} lines: one single label. A classifier needs at least two; is this the right column?"
        )
    if len(train) <= len(values):
        raise train[0].label_error(
            f"; {len(train)} training examples have {len(values)} labels, so no label has a second one. Is this the "
            f"right column? A label must repeat to be learned."
        )
    names = [str(name) for name in (allowed or sorted(values))]
    for members in rows.values():
        spelled: dict[str, Row] = {}
        for row in members:
            first = spelled.setdefault(" ".join(str(row.label).split()).casefold(), row)
            if allowed is None and first.label != row.label:  # but for blanks or capitals: not a label of its own
                raise row.label_error(
                    f", but {first.file}, line {first.line} has {first.label!r}. Write the label the same way in every "
                    f"line; if they are really different, say labels=[...] in load_task."
                )
            if str(row.label) not in names or (allowed is None and row.label not in values):
                close = difflib.get_close_matches(str(row.label), names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
                raise row.label_error(
                    f", which is not one of the {len(names)} labels ({shown}).{hint} Correct it, or give the label "
                    f"training examples."
                )
    return tuple(names)


def _split(rows: list[Row]) -> dict[str, list[Row]]:
    """70/10/20 by label, with equal texts in one split. Always the same, whatever the seed."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.wording].append(row)
    by_label: dict[Any, list[list[Row]]] = defaultdict(list)
    for group in groups.values():
        by_label[group[0].label].append(group)
    order = random.Random(0)
    result: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for members in by_label.values():
        if len(members) < 3:
            raise members[0][0].label_error(
                f" with {len(members)} different text(s) in the whole file; at least 3 are needed, one each for "
                f"training, validation and test. Add examples, merge the label with another, or remove it."
            )
        order.shuffle(members)
        test = max(1, round(0.2 * len(members)))
        validation = max(1, round(0.1 * len(members)))
        parts = (members[test + validation :], members[test : test + validation], members[:test])
        for split, part in zip(SPLITS, parts):
            result[split] += [row for group in part for row in group]
    return result


def _draw(rows: list[Row], classes: int, wanted: int, seed: int) -> list[Row]:
    if wanted < classes:
        raise ParameterError(
            f"train_examples={wanted}: expected 0 (all), or a number from {classes} (one for each label) up."
        )
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


def _print_notes(rows: dict[str, list[Row]]) -> None:
    labels_of: dict[str, set] = defaultdict(set)
    for row in (row for members in rows.values() for row in members):
        labels_of[row.wording].add(row.label)
    if torn := [wording for wording, found in labels_of.items() if len(found) > 1]:
        print(f"Careful: {len(torn)} texts stand there with more than one label, such as {torn[0][:60]!r}.")
    train = {row.wording for row in rows["train"]}
    for split, members in rows.items():
        if split != "train" and (shared := sum(row.wording in train for row in members)):
            print(f"Careful: {shared} of {len(members)} texts of '{split}' stand in 'train' too; scores on it flatter.")
