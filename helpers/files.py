"""Reads texts and labels from CSV, TSV, JSONL, JSON and Parquet files; what could be misread is refused by line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from .errors import DataError

ENDINGS = ".csv, .tsv, .jsonl, .json (all also with .gz) or .parquet"
# What pandas reads as "no value": kept here, but a tool further down the line would lose such a row in silence.
MISSING = {"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA", "-nan", "-NaN", "#N/A N/A"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
CHATS = {"messages", "conversations", "conversation"}
GAP = re.compile(r"\s*")
UNSEEN = re.compile("[\ufe00-\ufe0f\u034f\u115f\u1160\u2800\u3164]")  # not of category C, and still not seen


@dataclass(frozen=True, slots=True)
class Row:
    """One example with the place it came from; `columns` are the names of its text and its label."""

    file: Path
    line: int
    text: Any
    label: Any
    columns: tuple[str, str]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"

    @property
    def wording(self) -> str:
        """What makes two texts equal: not blanks around them, not capitals."""
        return self.text.strip().lower()

    def error(self, column: str, message: str) -> DataError:
        return DataError(f"{self.place}, column '{column}': {message}")

    def label_error(self, message: str) -> DataError:
        return self.error(self.columns[1], f"found {self.label!r}{message}")


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one row, and the line in which their names stand."""

    line: int
    names: Sequence[str]
    values: Sequence[Any]
    header: int = 1


def format_of(path: Path) -> tuple[str, str]:
    """The name of a file without its ending, and its format; ("", "") where it is not of a format that is read."""
    match = re.fullmatch(r"(.+)\.(?:(csv|tsv|jsonl|json)(?:\.gz)?|(parquet))", path.name, re.IGNORECASE)
    return (match[1], (match[2] or match[3]).lower()) if match else ("", "")


def _is_seen(char: str) -> bool:
    return not (char.isspace() or unicodedata.category(char)[0] == "C" or UNSEEN.match(char))


def visible(text: str) -> str:
    """A text as a reader sees it: one Unicode form, and no character that leaves no trace."""
    shown = (char for char in unicodedata.normalize("NFKC", text) if char.isspace() or _is_seen(char))
    return " ".join("".join(shown).split())


def read_rows(path: Path, columns: tuple[str, str], *, unlabelled: bool = False) -> list[Row]:
    """The rows of a file, each with a text, and with a label of type str, int, float (a whole number) or bool.

    `unlabelled` accepts that not one row has a label; there are no rows then.
    """
    reader = _READERS.get(format_of(path)[1])
    if reader is None:
        raise DataError(f"{path}: files ending in '{path.suffix}' are not read. Save it as {ENDINGS}.")
    records = list(reader(path, columns))
    if not records:
        raise DataError(f"{path}, line 2: there are columns, but not a single row. Save or copy it again.")
    if unlabelled and _without_labels(records, columns[1]):
        return []
    names, rows = None, []
    for record in records:
        if record.names is not names:
            names = record.names
            _check_columns(path, record, columns, records)
        rows.append(Row(path, record.line, *(record.values[names.index(name)] for name in columns), columns))
        _check_row(rows[-1], rows[0])
    if reader is _read_table:
        _note_missing(rows)
    return rows


def _without_labels(records: Iterable[Record], column: str) -> bool:
    """Whether no row has a label: in competitions, and where the Hub writes -1 for each."""
    if any(name.strip().lower() == column.lower() for record in records for name in record.names if name != column):
        return False  # a slip in the column's name, which `_check_columns` explains
    labels = [dict(zip(record.names, record.values)).get(column) for record in records]
    return all(label is None or label != label or str(label).strip() in ("", "-1", "-1.0") for label in labels)


def _check_columns(path: Path, record: Record, needed: Sequence[str], records: Sequence[Record]) -> None:
    found, place = list(record.names), f"{path}, line {record.header}"
    if double := [column for column in needed if found.count(column) > 1]:
        raise DataError(f"{place}, column '{double[0]}': stands twice, and only one can be read. Rename or remove one.")
    lacking = [column for column in needed if column not in found]
    if not lacking:
        return
    if chat := CHATS.intersection(found):
        raise DataError(
            f"{place}, column '{lacking[0]}': missing; the column {min(chat)!r} says that this is a chat file. Here "
            f'texts get labels: write one row for each text, such as {{"{needed[0]}": "...", "{needed[1]}": "..."}}.'
        )
    if inner := [name for name, value in zip(found, record.values) if isinstance(value, list) and len(records) == 1]:
        raise DataError(
            f"{place}, column '{lacking[0]}': missing; the file is one object, and its {inner[0]!r} is a list. If it "
            f"holds the rows, save the list alone."
        )
    if len(lacking) == 2 and record.line != record.header and _is_a_row(found, records):
        raise DataError(
            f"{place}, column '{lacking[0]}': missing; the file begins with {found[:4]!r}, which looks like a row, not "
            f"like names of columns. Add a header line above it that names its {len(found)} columns, such as "
            f"{','.join([*needed, 'other'][: len(found)])!r}."
        )
    alike = {visible(name).casefold(): name for name in found}
    hint = alike.get(lacking[0].casefold())
    raise DataError(
        f"{place}, column '{lacking[0]}': missing; the columns are {', '.join(map(repr, found[:30]))}."
        f"{f' Did you mean {hint!r}?' if hint else ''} Name yours by the parameters text_column and label_column."
    )


def _is_a_row(names: list[str], records: Sequence[Record]) -> bool:
    """Whether what stands for names comes again below in the same column, as a label does and a name does not."""
    return any(name == value != "" for record in records[:1000] for name, value in zip(names, record.values))


def _check_row(row: Row, first: Row) -> None:
    for column, value in zip(row.columns, (row.text, row.label)):
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            said = f"found {value[:40]!r}, which holds half a character (a lone surrogate). Write the file anew."
            raise row.error(column, said)
        blank = not any(map(_is_seen, value)) if isinstance(value, str) else value is None or value != value
        if blank:
            shown = f"{value!r}{code_points(value)}" if isinstance(value, str) else repr(value)
            raise row.error(column, f"found {shown}: nothing to read stands there. Fill it in, or remove the line.")
    if not isinstance(row.text, str):
        kind = type(row.text).__name__
        raise row.error(row.columns[0], f"found {row.text!r} ({kind}), expected text. Put it in quotes or correct it.")
    kind, expected = type(row.label), type(first.label)
    if kind not in (str, int, bool, float) or (kind is float and not row.label.is_integer()):
        remedy = "Keep one label for each text." if kind is list else "If it is the name of a label, write it as text."
        raise row.label_error(f" ({kind.__name__}), expected one name or one whole number. {remedy}")
    if kind is not expected:
        other = f"{first.place} has {first.label!r} ({expected.__name__})"
        raise row.label_error(f" ({kind.__name__}), but {other}. Write all labels the same way.")


def code_points(text: str, other: str = "") -> str:
    """The characters of a text beyond ASCII that another lacks, in brackets, or ""."""
    found = [char for char in Counter(text) - Counter(other) if not (char.isascii() and char.isprintable())]
    names = (f"U+{ord(char):04X} {unicodedata.name(char, 'without a name')}" for char in found[:3])
    return f" ({', '.join(names)})" if found else ""


def _note_missing(rows: list[Row]) -> None:
    fields = ((row.place, *field) for row in rows for field in zip(row.columns, (row.text, row.label)))
    if found := [field for field in fields if field[2].strip() in MISSING]:
        place, column, value = found[0]
        told = f"{value!r} is kept as a word, as are {len(found)} such fields in all"
        print(f"Note: {place}, column '{column}': {told}; pandas would read this as missing.")


# ---------------------------------------------------------------- text


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    packed = raw.startswith(b"\x1f\x8b")
    if packed:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}, line 1: not a complete gzip file ({error}). Copy or download it again.") from None
    if raw.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}, line 1: a ZIP archive or an Excel workbook. Unpack it, or save it as 'CSV UTF-8'.")
    try:
        text = raw.decode("utf-8-sig")
        if raw.count(0) > len(raw) // 4:  # UTF-16 without its mark passes as UTF-8 full of zero bytes
            kind = "UTF-16LE" if raw.index(0) % 2 else "UTF-16BE"
            raise UnicodeDecodeError("utf-8", raw, raw.index(0), raw.index(0) + 1, kind)
    except UnicodeDecodeError as error:
        marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = error.reason if "UTF-16" in error.reason else "UTF-16" if marked else "WINDOWS-1252"
        raw = error.object  # without the byte order mark, which the positions do not count
        before, name = raw[: error.start], re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE) if packed else path.name
        around = raw[max(0, error.start - 15) : error.start + 15].decode("latin-1")
        raise DataError(
            f"{path}, line {before.count(10) + 1}, column (byte) {error.start - before.rfind(10)}: found byte "
            f"0x{raw[error.start]:02x} near {around!r}, which is not UTF-8 (perhaps {encoding}). "
            f"{'Unpack it, then save' if packed else 'Save'} the file as UTF-8 (in Excel: 'CSV UTF-8'), or convert it: "
            f"iconv -f {encoding} -t UTF-8 {name} > new-{name}"
        ) from None
    if not text.strip():
        raise DataError(f"{path}, line 1: the file is empty ({len(raw)} bytes, no text). Save or copy it again.")
    return text


# ---------------------------------------------------------------- CSV and TSV

Fields = tuple[int, int, list[str]]  # the first and the last line of a row, and its fields


def _read_table(path: Path, needed: tuple[str, str]) -> list[Record]:
    text = _decode(path)
    lines = list(io.StringIO(text, newline="\n" if "\n" in text else "\r"))  # keeps \r\n, which csv understands
    start = next(number for number, line in enumerate(lines) if line.strip())
    usual = "\t" if format_of(path)[1] == "tsv" else ","
    if told := re.fullmatch(r'"?sep=([^"\r\n])"?\s*', lines[start], re.IGNORECASE):  # Excel writes and obeys it
        start += 1
    separator = told[1] if told else _find_separator(lines[start], usual, needed)
    if told or separator != usual:
        print(f"Note: {path}: the columns are separated by {SEPARATORS.get(separator, repr(separator))}.")
    while len(lines) > start and not lines[-1].strip(f"{separator}\r\n "):  # spreadsheets save empty rows at the end
        lines.pop()
    parse = _read_tabbed if separator == "\t" else _read_quoted
    (at, _, header), *rows = parse(path, lines, start, separator, needed) or [(1, 1, [])]
    for first, _, fields in rows:
        if len(fields) != len(header):
            place = f"{path}, line {first}, column {min(len(fields), len(header)) + 1}"
            remedy = f"Put texts that contain {separator!r} or line breaks in double quotes."
            if separator == "\t":
                remedy = "Write a space for each tab and each line break inside a text."
            raise DataError(f"{place}: found {len(fields)} fields, the header has {len(header)}. {remedy}")
    return [Record(first, header, fields, at) for first, _, fields in rows]


def _find_separator(header: str, usual: str, needed: Sequence[str]) -> str:
    """The separator that gives the needed columns; without one, that which gives most, for the message to show them."""
    columns = {one: [name.strip('"') for name in header.strip("\r\n").split(one)] for one in (usual, *SEPARATORS)}
    fitting = [one for one, names in columns.items() if set(needed) <= set(names)]
    return fitting[0] if fitting else max(columns, key=lambda one: len(columns[one]))


def _parse(path: Path, lines: list[str], start: int, separator: str, quoting: int) -> list[Fields]:
    csv.field_size_limit(10_000_000)
    reader = csv.reader(lines[start:], delimiter=separator, quoting=quoting, strict=True)
    rows, first = [], start + 1
    try:
        for fields in reader:
            if len(fields) > 1 or "".join(fields).strip():  # not a blank line
                rows.append((first, start + reader.line_num, fields))
            first = start + reader.line_num + 1
    except csv.Error as error:
        remedy = "Write a space for each line break inside a text."
        if quoting != csv.QUOTE_NONE:
            remedy = "Put a text with double quotes or line breaks in double quotes and write each one inside it twice "
            remedy += '("He said ""yes"""); close the last quote of the file.'
        told = f"not valid CSV ({error}, in line {start + reader.line_num})"
        raise DataError(f"{path}, line {first}: {told}. {remedy}") from None
    return rows


def _read_quoted(path: Path, lines: list[str], start: int, separator: str, needed: tuple[str, str]) -> list[Fields]:
    rows = _parse(path, lines, start, separator, csv.QUOTE_MINIMAL)
    for first, last, at in _merged(lines, rows, separator, needed[1]):
        raise DataError(
            f"{path}, line {first} to line {last}, column '{needed[0]}': all in one pair of double quotes, but line "
            f"{at} looks like a row of its own ({lines[at - 1].strip()[:60]!r}). If these are rows, write the quote "
            f"that begins the text three times and one more at its end; if not, write spaces for line breaks."
        )
    return rows


def _merged(lines: list[str], rows: list[Fields], separator: str, label: str) -> Iterator[tuple[int, int, int]]:
    """Rows of several lines of which two or more have a known label in its place: first line, last line, suspect."""
    (_, _, header), *rows = rows or [(1, 1, [])]
    if label not in header:
        return
    at, width = header.index(label), len(header)
    places: dict[int, tuple[str, str]] = {}  # for each line of those rows, what stands where a label would
    for first, last, _ in rows:
        for number in range(first, last + 1) if last > first else ():
            parts = [part.strip('"') for part in lines[number - 1].rstrip("\r\n").split(separator)]
            if len(parts) >= width:
                places[number] = (parts[at], parts[at - width])
    known = {fields[at] for _, _, fields in rows if len(fields) == width}
    seen = Counter(value for pair in places.values() for value in {*pair})
    known |= {value for value, count in seen.items() if count > 1}
    for first, last, _ in rows:
        found = [number for number in range(first, last + 1) if known.intersection(places.get(number, ())) - {""}]
        if len(found) > 1:
            yield first, last, found[0] if at else found[1]


def _read_tabbed(path: Path, lines: list[str], start: int, separator: str, needed: tuple[str, str]) -> list[Fields]:
    """In a TSV a quote is a character and a line is a row, unless the file was clearly written with quoting."""
    try:
        plain = _parse(path, lines, start, separator, csv.QUOTE_NONE)
    except DataError:  # a carriage return within a field
        if any('"' in line for line in lines):
            return _read_quoted(path, lines, start, separator, needed)
        raise
    marked = [(first, field) for first, _, fields in plain for field in fields if field.startswith('"')]
    if not marked:
        return plain
    try:
        quoted = _parse(path, lines, start, separator, csv.QUOTE_MINIMAL)
    except DataError:
        return plain
    if len({len(fields) for _, _, fields in plain}) > 1 or all(field.startswith('"') for field in plain[0][2]):
        return _read_quoted(path, lines, start, separator, needed)
    if len(quoted) == len(plain):  # the texts are the same but for their quotes; Excel quotes for a comma too
        needless = [first for first, field in marked if not re.search('[",]', field[1:-1])]
        place, what = (needless or marked[0])[0], "characters of it" if needless else "marks that are no part of it"
        print(f"Note: {path}, line {place}: double quotes around a field are read as {what}.")
        return plain if needless else quoted
    merged = {first for first, _, _ in _merged(lines, quoted, separator, needed[1])}
    for first, last, _ in quoted:
        if last > first and first not in merged:
            told = "either one text in double quotes with a line break, or rows of their own. Write spaces for line "
            told += "breaks and tabs inside texts, and no double quotes around them."
            raise DataError(f"{path}, line {first} to line {last}: {told}")
    return plain


# ---------------------------------------------------------------- JSON and Parquet


def _read_json(path: Path, needed: tuple[str, str]) -> Iterator[Record]:
    """One object after the other, or one array of them, whatever the ending of the file."""
    text, pairs = _decode(path), []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # the outermost object comes last
        return dict(found)

    decoder = json.JSONDecoder(object_pairs_hook=keep)
    array = re.match(r"\s*\[\s*(?=\{)", text)
    at, line, counted, closed = array.end() if array else 0, 1, 0, not array
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for the same names, so that they are checked once
    while (at := GAP.match(text, at).end()) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        if array and text[at] in ",]" and not closed:
            at, closed = at + 1, text[at] == "]"
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = f"{getattr(error, 'lineno', line)}, column (character) {getattr(error, 'colno', 1)}"
            problem = f"not valid JSON ({getattr(error, 'msg', error)}; was the file cut off?)"
            raise _not_rows(path, where, problem, text[counted:]) from None
        if not isinstance(value, dict) or (array and closed):
            raise _not_rows(path, line, f"not an object, but a {type(value).__name__}", text[counted:])
        names = tuple(name for name, _ in pairs)
        yield Record(line, known.setdefault(names, names), [value for _, value in pairs], line)
    if not closed:
        raise _not_rows(path, line, "the array of rows has no end (was the file cut off?)", text[counted:])


def _not_rows(path: Path, where: int | str, problem: str, found: str) -> DataError:
    return DataError(
        f"{path}, line {where}: {problem}. Found {found[:40]!r}; expected one object a line, such as "
        f'{{"text": "...", "label": "..."}}, or one array of such objects.'
    )


def _read_parquet(path: Path, needed: tuple[str, str]) -> list[Record]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
            if any(schema.names.count(name) != 1 for name in needed):  # one row is enough to say so
                return [Record(1, schema.names, [None] * len(schema.names))] * min(1, count)
            table = file.read(columns=list(needed))
        rows = [[row[name] for name in needed] for row in table.to_pylist()]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        told = f"{path.stat().st_size:,} bytes; {str(error).splitlines()[0]}"
        raise DataError(f"{path}, line 1: not a complete Parquet file ({told}). Copy or download it again.") from None
    # Hub datasets store labels as numbers and their names in the file's own metadata; -1 stands for no label.
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][needed[1]]["names"]
    except (ValueError, LookupError, TypeError):
        names = None
    for number, row in enumerate(rows if names and any(row[1] != -1 for row in rows) else (), 1):
        if not isinstance(row[1], int) or not 0 <= row[1] < len(names):
            told = f", but the file lists {len(names)} label names. Correct the label."
            raise Row(path, number, *row, needed).label_error(told)
        row[1] = names[row[1]]
    return [Record(number, needed, row) for number, row in enumerate(rows, 1)]


_READERS = {"csv": _read_table, "tsv": _read_table, "jsonl": _read_json, "json": _read_json, "parquet": _read_parquet}
