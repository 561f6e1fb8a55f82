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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from .errors import DataError, OfflineError, ParameterError
from .hub import fetch_dataset, missing_parts

HELPDESK = Path(__file__).resolve().parent.parent / "data" / "helpdesk"
SPLITS = ("train", "validation", "test")
EXTRA_SPLITS = ("test_shifted",)
KEPT_COLUMNS = ("id", "reply_id")
# What pandas reads as "no value": a tool further down the line would lose such a row in silence.
MISSING = {"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA", "-nan", "-NaN", "#N/A N/A"}


@dataclass(frozen=True)
class Row:
    """One example with the place it came from."""

    file: str
    line: int
    values: dict[str, Any]

    def error(self, column: str, found: str, remedy: str) -> DataError:
        return DataError(f"{self.file}, line {self.line}, column '{column}': {found} {remedy}")


@dataclass(frozen=True)
class Task:
    """A text-classification task.

    `splits` maps "train", "validation", "test" (and "test_shifted" where there is one) to a
    `datasets.Dataset` with the columns `text` (str) and `label` (int, an index into `labels`).
    `fingerprint` is a SHA-256 over all texts and labels of all splits.
    """

    name: str
    labels: tuple[str, ...]
    splits: datasets.DatasetDict
    fingerprint: str

    def texts(self, split: str) -> list[str]:
        return list(self.splits[split]["text"])

    def targets(self, split: str) -> list[int]:
        return list(self.splits[split]["label"])


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
        train_examples: how many training examples to keep, drawn evenly from all labels with
            `seed`; 0 keeps all.
        labels: the allowed labels, in order; by default those of the training split, sorted.
        text_column, label_column: the names of the two columns in your files.

    Raises:
        DataError: a file, line or column is not usable. Nothing is dropped or repaired.
        ParameterError: `train_examples` is negative, too large, or below one a label.
        OfflineError: the task is a Hub id, not in the local cache, and the Hub does not answer.

    Source: data/README.md (written for this project, CC0).
    """
    rows, known = _read_task(task, text_column, label_column)
    if labels is None:
        labels = known
    for members in rows.values():
        _check_ids(members)
        if labels is None:
            _check_spelling(members, label_column)
    if "validation" not in rows:
        rows = _split(rows["train"], label_column, text_column)
    names = _label_names(rows, label_column, labels)
    if train_examples:
        rows["train"] = _draw(rows["train"], label_column, len(names), train_examples, seed)
    for note in _notes(rows, text_column, label_column):
        print(note)
    return _build(task, rows, names, text_column, label_column)


def _read_task(task: str, text: str, label: str) -> tuple[dict[str, list[Row]], list[str] | None]:
    known = None
    if task == "helpdesk":
        known = list(json.loads((HELPDESK / "topics.json").read_text(encoding="utf-8")))
        task = str(HELPDESK)
    path = Path(task).expanduser()
    if not path.exists():
        if path.suffix.lower() in _READERS or path.is_absolute() or not _is_hub_id(task):
            raise DataError(
                f"task={task!r}: there is no such file or folder (looked in {Path.cwd()}). Give a "
                f"path to a {', '.join(_READERS)} file, a folder with train, validation and test "
                f"files, a Hub dataset id such as 'owner/name', or 'helpdesk'."
            )
        try:
            path = fetch_dataset(task)
        except OfflineError as error:
            raise OfflineError(
                f"{error} There is no file or folder {task!r} in {Path.cwd()} either. A local file or folder, or "
                f"task='helpdesk', needs no network."
            ) from None
    if path.is_file():
        files = {"train": [path]}
    else:
        files = _split_files(path)
    rows: dict[str, list[Row]] = {}
    for split, paths in files.items():
        rows[split] = [row for one in paths for row in _read_file(one, text, label)]
    return rows, known


def _is_hub_id(task: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", task) is not None


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in the layouts train.csv and data/train-00000-of-00001.parquet."""
    # Hidden folders hold copies: JupyterLab keeps .ipynb_checkpoints/train-checkpoint.csv of every file it saves.
    found = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _READERS and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    by_split: dict[str, list[Path]] = {}
    for split in SPLITS + EXTRA_SPLITS:
        # "test", "test-0001", "test-00000-of-00002" and "test-00000-of-00002-1a2b3c4d5e6f7a8b" belong to test;
        # "test_shifted" and "test-old" do not.
        matching = [p for p in found if re.fullmatch(rf"{split}(-\d+(-of-\d+)?(-[0-9a-f]{{8,}})?)?", p.stem)]
        places = {(p.parent, p.suffix.lower(), "-" in p.stem) for p in matching}
        if len(places) > 1:
            raise DataError(
                f"{folder}: found {', '.join(str(p.relative_to(folder)) for p in matching)} for '{split}': copies of "
                f"each other, or different datasets. Keep one of them, or give the folder of one dataset."
            )
        if gap := missing_parts(matching):
            raise DataError(f"{folder}, split '{split}': found only {gap}. Copy or download the others too.")
        if matching:
            by_split[split] = matching
    missing = [split for split in SPLITS if split not in by_split]
    if missing:
        raise DataError(
            f"{folder}: found {', '.join(p.name for p in found) or 'no data files'}, but no file for "
            f"{', '.join(missing)}. Name them train, validation and test with one of the endings "
            f"{', '.join(_READERS)}; or give one single file, which is then split for you."
        )
    return by_split


def _read_file(path: Path, text: str, label: str) -> list[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: files ending in '{path.suffix}' are not read. Save it as one of {', '.join(_READERS)}."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}, line 1: the file is empty (0 bytes). Save or copy it again.")
    rows = reader(path, (text, label))
    if not rows:
        raise DataError(f"{path}, line 2: there are columns, but not a single row. Save or copy it again.")
    _check_rows(rows, text, label)
    return rows


def _require_columns(path: Path, line: int, found: Iterable[str], needed: Iterable[str]) -> None:
    found = list(found)
    for column in needed:
        if column not in found:
            spelled = {name.strip().lower(): name for name in found}
            close = difflib.get_close_matches(column.lower(), spelled, n=1)
            hint = f" Did you mean {spelled[close[0]]!r}?" if close else ""
            raise DataError(
                f"{path}, line {line}, column '{column}': missing; the columns are "
                f"{', '.join(repr(f) for f in found)}.{hint} Rename one to '{column}', or name yours with "
                f"load_task(..., text_column=..., label_column=...)."
            )


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(
            f"{path}, line 1, column (byte) 1: found the bytes {raw[:2].hex(' ')}, the mark of UTF-16, "
            f"expected UTF-8. Save it as UTF-8 (Excel: 'CSV UTF-8'; Notepad: Save as, Encoding UTF-8)."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raw = error.object  # without the byte order mark, which the positions do not count
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        around = raw[max(0, error.start - 15) : error.start + 15].decode("latin-1")
        raise DataError(
            f"{path}, line {line}, column (byte) {column}: "
            f"found byte 0x{raw[error.start]:02x} near {around!r}, which is not UTF-8. Save the file as UTF-8 "
            f"(in Excel: 'CSV UTF-8'), or convert it: iconv -f WINDOWS-1252 -t UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path}, line 1: found {len(raw)} bytes of blanks, but no text. Save or copy it again.")
    return text


def _read_csv(path: Path, needed: Sequence[str]) -> list[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(10_000_000)
    reader = csv.reader(io.StringIO(_decode(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    start = 1
    try:
        header = next(reader)
        if len(header) == 1 and any(mark in header[0] for mark in ";\t,"):
            mark = next(mark for mark in ";\t," if mark in header[0])
            raise DataError(
                f"{path}, line 1: found one single column {header[0]!r}; it looks separated by {mark!r}. "
                f"Save it with {delimiter!r} between the columns{' or name it .tsv' if mark == chr(9) else ''}."
            )
        _require_columns(path, 1, header, needed)
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise DataError(f"{path}, line 1, column '{twice[0]}': stands twice in the header. Rename or remove one.")
        start = reader.line_num + 1
        for fields in reader:
            if not fields:
                raise DataError(
                    f"{path}, line {start}, column '{needed[0]}': the line is blank. Remove it or fill it in."
                )
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, line {start}, column {min(len(fields), len(header)) + 1}: found {len(fields)} fields, "
                    f"the header has {len(header)}. Put texts that contain {delimiter!r} or line breaks in double "
                    f"quotes."
                )
            rows.append(Row(str(path), start, dict(zip(header, fields, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: not valid CSV ({error}). A double quote inside a text is written twice, "
            f"and the last quote of the file must be closed."
        ) from None
    return rows


def _read_jsonl(path: Path, needed: Sequence[str]) -> list[Row]:
    lines = _decode(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}, column (character) {error.colno}: not valid JSON ({error.msg}), found "
                f'{line[:40]!r}. Every line is one object such as {{"text": "...", "label": "..."}}; was the '
                f"file cut off?"
            ) from None
        except KeyError as error:
            raise DataError(
                f"{path}, line {number}, column '{error.args[0]}': stands twice in one object, and JSON readers keep "
                f"only the last. Rename or remove one."
            ) from None
        if not isinstance(values, dict):
            raise DataError(
                f"{path}, line {number}: found a JSON {type(values).__name__}, expected an object such as "
                f'{{"text": "...", "label": "..."}}.'
            )
        _require_columns(path, number, values, needed)
        rows.append(Row(str(path), number, values))
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise KeyError(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return values


def _read_parquet(path: Path, needed: Sequence[str]) -> list[Row]:
    try:
        schema = pyarrow.parquet.read_schema(path)
        _require_columns(path, 1, schema.names, needed)
        twice = [name for name in (*needed, *KEPT_COLUMNS) if schema.names.count(name) > 1]
        if twice:
            raise DataError(f"{path}, line 1, column '{twice[0]}': stands twice. Rename or remove one.")
        kept = [name for name in schema.names if name in {*needed, *KEPT_COLUMNS}]
        table = pyarrow.parquet.read_table(path, columns=kept)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}, line 1: not a complete Parquet file ({path.stat().st_size:,} bytes; {reason}). Copy or "
            f"download it again."
        ) from None
    # Hub datasets store labels as numbers and their names in the file's own metadata.
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][needed[1]]["names"]
    except (ValueError, LookupError, TypeError):
        names = None
    rows = [Row(str(path), number, values) for number, values in enumerate(table.to_pylist(), 1)]
    if names:
        for row in rows:
            index = row.values[needed[1]]
            if not isinstance(index, int) or not 0 <= index < len(names):
                raise row.error(
                    needed[1], f"found {index!r}, but the file lists {len(names)} label names.", "Correct the label."
                )
            row.values[needed[1]] = names[index]
    return rows


_READERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _check_rows(rows: list[Row], text: str, label: str) -> None:
    first = rows[0]
    for row in rows:
        for column in (text, label):
            value = row.values.get(column)
            if value is None or (isinstance(value, float) and value != value):
                raise row.error(column, f"found no value ({value!r}).", "Fill it in or remove the line.")
            if isinstance(value, str) and not value.strip():
                raise row.error(column, f"found blank text {value!r}.", "Fill it in or remove the line.")
            if isinstance(value, str) and value.strip() in MISSING:
                raise row.error(
                    column,
                    f"found {value!r}, which most tools read as 'no value'.",
                    "Write it out (for example 'not available' or 'Namibia') or remove the line.",
                )
            if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
                raise row.error(
                    column,
                    f"found {value[:40]!r}, which holds half a character (a lone surrogate).",
                    "Write the file again from the original text, as UTF-8.",
                )
        value = row.values[text]
        if not isinstance(value, str):
            raise row.error(
                text, f"found {value!r} ({type(value).__name__}), expected text.", "Put it in quotes or correct it."
            )
        value = row.values[label]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise row.error(
                label,
                f"found {value!r} ({type(value).__name__}), expected a name or a whole number.",
                "Write each label as one word or one number, the same way in every line.",
            )
        if type(value) is not type(first.values[label]):
            raise row.error(
                label,
                f"found {value!r} ({type(value).__name__}), but line {first.line} has "
                f"{first.values[label]!r} ({type(first.values[label]).__name__}).",
                "Write all labels the same way.",
            )


def _check_ids(rows: list[Row]) -> None:
    """Ids and reply ids: in every line of a split or in none, never blank; ids are different."""
    for column in KEPT_COLUMNS:
        if not any(column in row.values for row in rows):
            continue
        seen: dict[str, Row] = {}
        for row in rows:
            value = row.values.get(column)
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                raise row.error(
                    column,
                    f"found {value!r}, but other lines have this column; expected text or a whole number.",
                    "Fill it in, or remove or rename the column in every line.",
                )
            first = seen.setdefault(str(value), row)
            if column == "id" and first is not row:
                raise row.error(
                    column,
                    f"found {value!r} again, first used in {first.file}, line {first.line}.",
                    "Give every example an id of its own, or remove the repeated line.",
                )


def _check_spelling(rows: list[Row], label: str) -> None:
    """Refuse labels that differ only in blanks or capitals: they would silently become different labels."""
    spelled: dict[str, Row] = {}
    for row in rows:
        value = row.values[label]
        first = spelled.setdefault(" ".join(str(value).split()).casefold(), row)
        if first.values[label] != value:
            raise row.error(
                label,
                f"found {value!r}, but {first.file}, line {first.line} has {first.values[label]!r}.",
                "Write the label the same way in every line, or pass labels=[...] if they are really different.",
            )


def _split(rows: list[Row], label: str, text: str) -> dict[str, list[Row]]:
    """70/10/20 by label, with equal texts in one split. Always the same, whatever the seed."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.values[text].strip().lower()].append(row)
    by_label: dict[Any, list[list[Row]]] = defaultdict(list)
    for group in groups.values():
        by_label[group[0].values[label]].append(group)
    _check_classes(rows, label)
    order = random.Random(0)
    result: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for value, members in by_label.items():
        if len(members) < 3:
            raise members[0][0].error(
                label,
                f"found {value!r} with {len(members)} different text(s) in the whole file; at least 3 are needed to "
                f"have one each for training, validation and test.",
                "Add examples, merge the label with another, or remove it.",
            )
        order.shuffle(members)
        test = max(1, round(0.2 * len(members)))
        validation = max(1, round(0.1 * len(members)))
        parts = (members[test + validation :], members[test : test + validation], members[:test])
        for split, part in zip(SPLITS, parts, strict=True):
            result[split] += [row for group in part for row in group]
    return result


def _check_classes(rows: list[Row], label: str) -> None:
    counts = Counter(row.values[label] for row in rows)
    if len(counts) < 2:
        raise rows[0].error(
            label,
            f"found one single label, {rows[0].values[label]!r}, in all {len(rows)} lines.",
            "A classifier needs at least two; is this the right column?",
        )
    if len(rows) <= len(counts):
        raise rows[0].error(
            label,
            f"found {len(rows)} examples and {len(counts)} labels, so no label has a second example.",
            "Is this the right column? A label must repeat to be learned.",
        )


def _label_names(rows: dict[str, list[Row]], label: str, allowed: Sequence[str] | None) -> tuple[str, ...]:
    _check_classes(rows["train"], label)
    values = {row.values[label] for row in rows["train"]}
    kinds = {type(value) for value in values}
    names = [str(name) for name in (allowed or sorted(values))]
    for split in rows.values():
        for row in split:
            value = row.values[label]
            if str(value) not in names or (allowed is None and type(value) not in kinds):
                close = difflib.get_close_matches(str(value), names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
                raise row.error(
                    label,
                    f"found {value!r}, which is not one of the {len(names)} labels ({shown}).{hint}",
                    "Correct it, or give the label training examples.",
                )
    return tuple(names)


def _draw(rows: list[Row], label: str, classes: int, wanted: int, seed: int) -> list[Row]:
    if not classes <= wanted <= len(rows):
        raise ParameterError(
            f"train_examples={wanted}: expected 0 (all) or a number from {classes} (one for each label) to "
            f"{len(rows)} (all there are)."
        )
    by_label: dict[Any, list[Row]] = defaultdict(list)
    for row in random.Random(seed).sample(rows, len(rows)):
        by_label[row.values[label]].append(row)
    drawn: list[Row] = []
    while len(drawn) < wanted:
        for members in by_label.values():
            if members and len(drawn) < wanted:
                drawn.append(members.pop())
    return drawn


def _notes(rows: dict[str, list[Row]], text: str, label: str) -> list[str]:
    train = {row.values[text].strip().lower() for row in rows["train"]}
    notes = []
    labels_of: dict[str, set] = defaultdict(set)
    for row in (row for members in rows.values() for row in members):
        labels_of[row.values[text].strip().lower()].add(row.values[label])
    if torn := [wording for wording, found in labels_of.items() if len(found) > 1]:
        notes.append(f"Careful: {len(torn)} texts stand there with more than one label, such as {torn[0][:60]!r}.")
    for split, members in rows.items():
        if split == "train":
            continue
        shared = sum(row.values[text].strip().lower() in train for row in members)
        if shared:
            notes.append(
                f"Careful: {shared} of {len(members)} texts of '{split}' stand in 'train' too; scores on it flatter."
            )
    return notes


def _build(task: str, rows: dict[str, list[Row]], names: tuple[str, ...], text: str, label: str) -> Task:
    index = {name: number for number, name in enumerate(names)}
    digest = hashlib.sha256()
    splits = datasets.DatasetDict()
    for split, members in rows.items():
        columns: dict[str, list] = {
            "text": [row.values[text] for row in members],
            "label": [index[str(row.values[label])] for row in members],
        }
        for column in KEPT_COLUMNS:
            if all(column in row.values for row in members):
                columns[column] = [str(row.values[column]) for row in members]
        features = datasets.Features(
            {c: datasets.ClassLabel(names=list(names)) if c == "label" else datasets.Value("string") for c in columns}
        )
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
        digest.update(json.dumps([split, columns["text"], columns["label"], names]).encode())
    path = Path(task).expanduser()
    name = task
    if task != "helpdesk" and path.exists():
        name = path.stem if path.is_file() else path.resolve().name
    return Task(name=name, labels=names, splits=splits, fingerprint=digest.hexdigest())
