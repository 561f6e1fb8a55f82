"""Small files of the kinds that readers bring, and what is right for each; docs/faults.md is written from them."""

import contextlib
import gzip
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from helpers.errors import DataError
from helpers.tasks import load_task

TEXTS = [f"{what} of the {thing}" for what in ("Delay", "Praise", "Refund") for thing in ("ferry", "museum", "hostel")]
TEXTS += [f"Notes, short and long, about day {day}" for day in range(11)]
NAMES = [("late", "fine")[number % 2] for number in range(len(TEXTS))]
ROWS = list(zip(TEXTS, NAMES))
NUMBERS = [str(number % 2) for number in range(len(TEXTS))]


@dataclass(frozen=True)
class Case:
    """Files, and the rows that must be read from them or the words that must stand in the refusal or in a note."""

    kind: str
    before: str
    files: str | bytes | dict[str, str | bytes]  # one is a.csv, if it has no other name
    rows: list[tuple[str, str]] = field(default_factory=lambda: ROWS)
    refused: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)

    @property
    def now(self) -> str:
        if self.refused:
            return f"refused: {', '.join(self.refused)}"
        return f"read; said: {', '.join(self.said)}" if self.said else "read"

    def tried(self, folder: str | Path) -> tuple[str, str]:
        """What `load_task` does: "read" as meant and with its note, "refused", or else "silent"; and what it says."""
        path, printed = write(Path(tempfile.mkdtemp(dir=folder)), self.files), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                task = load_task(path, **self.options)
        except DataError as refusal:
            return "refused", str(refusal)
        right = Counter(rows_of(task)) == Counter(self.rows) and [*task.splits] == ["train", "validation", "test"]
        said = all(words in printed.getvalue() for words in self.said)
        return "read" if right and said else "silent", printed.getvalue()


def write(folder: Path, files: str | bytes | dict[str, str | bytes]) -> str:
    """The path of the one file, or of the folder of several."""
    files = files if isinstance(files, dict) else {"a.csv": files}
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name if len(files) == 1 and "/" not in name else folder)


def rows_of(task) -> list[tuple[str, str]]:
    return [(t, task.labels[y]) for split in task.splits for t, y in zip(task.texts(split), task.targets(split))]


def table(rows=ROWS, separator=",", end="\n", header=("text", "label"), quote=True) -> str:
    def cell(value):
        marked = quote and any(char in str(value) for char in f'{separator}"\r\n')
        return '"' + str(value).replace('"', '""') + '"' if marked else str(value)

    return "".join(separator.join(map(cell, row)) + end for row in [header, *rows])


def lines(rows=ROWS, **more) -> str:
    return "".join(json.dumps({"text": text, "label": label} | more) + "\n" for text, label in rows)


def parquet(rows=ROWS, **columns) -> bytes:
    columns = columns or {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), stream := io.BytesIO())
    return stream.getvalue()


def labelled(labels) -> list[tuple]:
    return list(zip(TEXTS, labels))


def with_row(line, text="A fine text", label="late", rows=ROWS) -> list[tuple]:
    """The rows with another one on `line` of a table whose header is line 1."""
    return [*rows[: line - 2], (text, label), *rows[line - 2 :]]


def numbered(rows, *others) -> list[tuple]:
    return [(*(other(number) for other in others), *row) for number, row in enumerate(rows)]


AGAIN = [(f"{text}, again", f"{number}.0") for text, number in zip(TEXTS[:6], NUMBERS)]
FLOATS = [f"{number}.0" for number in NUMBERS]
BOOLS = [number == "1" for number in NUMBERS]
QUOTED = [('"Splendid" they say of the pier', "fine"), *ROWS]
MERGED = [('"The bus left, said my aunt', "late"), ('She liked the pier a lot"', "fine"), *ROWS]
LETTER = [("Dear all,\nthe museum, late again, shut.\n\nYours", "late"), *ROWS]
SAYING = [('He said "never" twice', "late"), *ROWS]
RARE = [*ROWS, ("Lost at sea", "lost"), ("Lost on land", "lost")]
SPLIT = {"train": ROWS[:14], "test": ROWS[14:]}
CHAT = {"messages": [{"role": "user", "content": "Where is the pier?"}, {"role": "assistant", "content": "late"}]}
LISTS = ["late|fine" if number % 4 == 0 else name for number, name in enumerate(NAMES)]
CUT = "rows are cut into"


def folder(ending, shape=table, **splits) -> dict:
    return {f"{split}.{ending}": shape(rows) for split, rows in splits.items()}


CASES = [
    # 01, 02: columns that nobody needs
    Case("01 nameless and repeated columns", "read", table(numbered(ROWS, str), header=("", "text",
         "label")).replace("\n", ",,\n")),
    Case("01 columns of other names", "refused", table(header=("v2", "v1")), refused=("line 1, column 'text'",
         "'v2', 'v1'", "text_column and label_column")),
    Case("01 other names, given", "read", table(header=("v2", "v1")), options={"text_column": "v2",
         "label_column": "v1"}),
    Case("01 the text column twice", "refused", table(numbered(ROWS, str), header=("text", "text", "label")),
         refused=("line 1, column 'text'", "stands twice")),
    Case("02 an id that repeats", "read", table(numbered(ROWS, lambda n: 7), header=("id", "text", "label"))),
    Case("02 an id that is a float or missing", "read", {"a.jsonl": lines(id=None) + lines(ROWS[:2], id=1.5)},
         rows=[*ROWS, *ROWS[:2]]),
    # 03: words that some read as nothing
    Case("03 the text null in CSV", "refused, remedy about Namibia", table(with_row(4, "null")), rows=with_row(4,
         "null"), said=("line 4, column 'text'", "'null'", "pandas would read this as missing")),
    Case("03 the label NA in TSV", "refused, remedy about Namibia",
         {"a.tsv": table(labelled(["NA" if name == "fine" else name for name in NAMES]), "\t")},
         rows=labelled(["NA" if name == "fine" else name for name in NAMES]), said=("line 3, column 'label'", "'NA'",
         "10 such fields")),
    Case('03 the label "None" in JSONL', "refused",
         {"a.jsonl": lines(labelled(["None" if b else "some" for b in BOOLS]))},
         rows=labelled(["None" if b else "some" for b in BOOLS])),
    Case('03 the text "NA" in Parquet', "refused", {"a.parquet": parquet(with_row(4, "NA"))}, rows=with_row(4, "NA")),
    Case("03 a blank text", "refused", table(with_row(5, " ")), refused=("line 5, column 'text'", "remove the line")),
    Case("03 a text of a zero-width space", "silent: a text without a letter", {"a.jsonl": lines(with_row(5,
         "\u200b"))}, refused=("line 4, column 'text'", "U+200B")),
    Case("03 JSON null", "refused", {"a.jsonl": lines(with_row(5, label=None))}, refused=("line 4, column 'label'",
         "None")),
    Case("03 a number that is none in Parquet", "refused", {"a.parquet": parquet(text=TEXTS, label=[float("nan"),
         *map(float, NUMBERS[1:])])}, refused=("line 1, column 'label'", "nan")),
    # 04: quotation marks
    Case("04 TSV, a quotation mark opens one row and ends another", "silent: two rows merged", {"a.tsv": table(MERGED,
         "\t", quote=False)}, rows=MERGED),
    Case("04 TSV, a word in quotes first", "refused", {"a.tsv": table(QUOTED, "\t", quote=False)}, rows=QUOTED),
    Case("04 TSV, a whole text in quotes", "silent: the quotes were lost", {"a.tsv": table([('"All shut"', "late"),
         *ROWS], "\t", quote=False)}, rows=[('"All shut"', "late"), *ROWS], said=("line 2", "read as characters")),
    Case("04 TSV written with quoting, line breaks", "read", {"a.tsv": table(LETTER, "\t")}, rows=LETTER),
    Case("04 TSV written with quoting, quotes in quotes", "read", {"a.tsv": table(SAYING, "\t")}, rows=SAYING,
         said=("line 2", "no part of it")),
    Case("04 TSV that can be read in two ways", "read", {"a.tsv": table([("pier\tshut\nagain", "late"), *ROWS], "\t")},
         refused=("line 2 to line 3", "Write spaces for line breaks")),
    Case("04 TSV, a tab inside a text", "refused", {"a.tsv": table(with_row(6, "one\ttwo"), "\t", quote=False)},
         refused=("line 6, column 3", "found 3 fields", "a space for each tab")),
    Case("04 CSV, a quoted field swallows a row", "silent: two rows merged", table([(text.replace(",", ""),
         name) for text, name in MERGED], quote=False), refused=("line 2 to line 3", "line 2 looks like a row")),
    Case("04 CSV, a quoted field swallows rows, label first", "silent: two rows merged",
         'label,text\nlate,"The bus left\nfine,The pier is shut"\n' + table([(b, a) for a, b in ROWS])[11:],
         refused=("line 2 to line 3", "line 3 looks like a row")),
    Case("04 CSV, the same mended as the refusal says", "read",
         'text,label\n"""The bus left",late\nfine pier",fine\n' + table()[11:], rows=[('"The bus left', "late"),
         ('fine pier"', "fine"), *ROWS]),
    Case("04 CSV, a letter with commas and line breaks", "read", table(LETTER), rows=LETTER),
    Case("04 CSV, a word in quotes first, unquoted", "refused", table(QUOTED, quote=False), refused=("line 2",
         "not valid CSV", "write each one inside it twice")),
    # 05: blank lines
    Case(r"05 line ends \r\r\n", "refused", table(end="\r\r\n")),
    Case(r"05 line ends \r", "read", table(end="\r")),
    Case("05 blank lines between rows and at the end", "refused", table(end="\r\n\r\n")),
    Case("05 blank lines in JSONL", "refused", {"a.jsonl": lines().replace("\n", "\n\n")}),
    Case("05 lines of separators at the end", "refused", table() + ",\n,,,\n"),
    Case("05 a row of separators between rows", "refused", table(with_row(9, "", "")), refused=("line 9, column 'text'",
         )),
    # 06: splits
    Case("06 train and test only", "refused", folder("csv", **SPLIT), said=("train.csv", CUT, "2 for validation")),
    Case("06 train and validation only", "refused", folder("csv", train=ROWS[:14], validation=ROWS[14:]),
         said=("train.csv", CUT, "for test")),
    Case("06 dev", "refused", folder("tsv", lambda rows: table(rows, "\t"), train=ROWS[:8], dev=ROWS[8:14],
         test=ROWS[14:])),
    Case("06 Valid and Train, in capitals", "refused", folder("csv", Train=ROWS[:8], Valid=ROWS[8:14], Test=ROWS[14:])),
    Case("06 the Hub's layout, train only", "refused", {"data/train-00000-of-00001.parquet": parquet()},
         said=("train-00000-of-00001.parquet", CUT, "for test")),
    Case("06 a competition's folder", "refused", {"train.csv": table(), "test.csv": table(numbered([["Where is it?"]],
         str), header=("id", "text")), "sample_submission.csv": table([(0, "late")], header=("id", "label"))},
         said=("not read: sample_submission.csv", "test.csv: no labels in the column 'label'", CUT)),
    Case("06 a test split of the Hub with -1 for each label", "refused", {"train.parquet": parquet(labelled(map(int,
         NUMBERS))), "test.parquet": parquet([("Where?", -1)])}, rows=labelled(NUMBERS),
         said=("test.parquet: no labels", CUT)),
    Case("06 a test split with a label in some rows", "refused", {"train.csv": table(), "test.csv": table(with_row(3,
         label=""))}, refused=("test.csv, line 3, column 'label'",)),
    Case("06 a test split with the label None in each row", "refused", folder("csv", train=labelled(["None",
         "some"] * 10), test=[("Where?", "None")]), rows=[*labelled(["None", "some"] * 10), ("Where?", "None")],
         said=("no example in 'test' for 1 label(s), 'some'",)),
    Case("06 dev and validation", "refused", folder("csv", train=ROWS, dev=ROWS, validation=ROWS),
         refused=("dev.csv, validation.csv", "Keep one of them")),
    # 07, 08, 10: numbers and booleans
    Case("07 labels 0.0 and 1.0 in CSV", "silent: named '0.0' and '1.0'", table(labelled(FLOATS)),
         rows=labelled(NUMBERS)),
    Case("07 labels 0.0 and 1.0 in JSONL", "refused", {"a.jsonl": lines(labelled(map(float, NUMBERS)))},
         rows=labelled(NUMBERS)),
    Case("07 labels 0.0 and 1.0 in Parquet", "refused", {"a.parquet": parquet(labelled(map(float, NUMBERS)))},
         rows=labelled(NUMBERS)),
    Case("07 1 and 1.0 in one CSV", "silent: two labels", table([*labelled(NUMBERS), *AGAIN]),
         refused=("line 22, column 'label'", "'0.0'", "line 2 has '0'")),
    Case("07 1 and 1.0 in one JSONL", "refused", {"a.jsonl": lines(with_row(5, label=1.0, rows=labelled(map(int,
         NUMBERS))))}, refused=("line 4, column 'label'", "1.0 (float)", "line 1 has 0 (int)")),
    Case("07 1 and 1.0 beside names", "silent: two labels", table([*ROWS, *labelled(["1"] * 3), *AGAIN]),
         refused=("line 26, column 'label'", "'1.0'", "line 22 has '1'")),
    Case("07 a label of 0.5 in JSONL", "refused", {"a.jsonl": lines(labelled([0.5] * 20))},
         refused=("line 1, column 'label'", "0.5 (float)", "write it as text")),
    Case("08 true and false in JSONL", "refused", {"a.jsonl": lines(labelled(BOOLS))}, rows=labelled(map(str, BOOLS))),
    Case("08 booleans in Parquet", "refused", {"a.parquet": parquet(labelled(BOOLS))}, rows=labelled(map(str, BOOLS))),
    Case("08 True and False in CSV", "read", table(labelled(BOOLS)), rows=labelled(map(str, BOOLS))),
    Case("08 True and true in CSV", "refused", table(with_row(4, label="true", rows=labelled(BOOLS))),
         refused=("line 4, column 'label'", "'true'", "line 3 has 'True'")),
    # 09: labels that look the same
    Case("09 composed and decomposed accents", "silent: two labels", table(labelled(["re\u0301sume\u0301",
         "r\u00e9sum\u00e9"] * 10)), refused=("line 3, column 'label'", "U+00E9 LATIN SMALL LETTER E WITH ACUTE",
         "line 2 has", "U+0301 COMBINING ACUTE ACCENT")),
    Case("09 a zero-width space", "silent: two labels", table(labelled(["late", "late\u200b"] * 10)),
         refused=("line 3, column 'label'", "U+200B ZERO WIDTH SPACE", "line 2 has 'late'")),
    Case("09 a no-break space", "refused, without the reason", {"a.tsv": table(with_row(6, label="so\u00a0so",
         rows=labelled(["so so", "fine"] * 10)), "\t")}, refused=("line 6, column 'label'", "U+00A0 NO-BREAK SPACE")),
    Case("09 a variation selector", "silent: two labels", {"a.jsonl": lines(labelled(["\u2764", "\u2764\ufe0f"] * 10))},
         refused=("line 2, column 'label'", "U+FE0F")),
    Case("09 an invisible character in another split", "refused, without the reason", folder("csv", train=ROWS,
         validation=ROWS, test=with_row(2, label="\ufefflate")), refused=("test.csv, line 2, column 'label'",
         "U+FEFF ZERO WIDTH NO-BREAK SPACE", "Did you mean 'late'")),
    Case("09 capitals in another split", "refused, without the reason", folder("csv", train=ROWS, validation=ROWS,
         test=with_row(2, label="LATE")), refused=("test.csv, line 2, column 'label'", "'LATE'",
         "Did you mean 'late'")),
    Case("10 labels that are numbers, from 9 on", "silent: ordered 10, 11, 9", table(labelled(["9", "10", "11",
         "9"] * 5)), rows=labelled(["9", "10", "11", "9"] * 5)),
    # 11: imbalance
    Case("11 a label with two texts", "refused", table(RARE), refused=("line 22, column 'label'",
         "'lost' with 2 different", "at least 3")),
    Case("11 a label only in texts that have another too", "silent or refused, by chance", table([*ROWS, (TEXTS[0],
         "both")]), refused=("line 22, column 'label'", "'both' with 1 different")),
    Case("11 a label without a test example", "silent", folder("csv", train=RARE, validation=RARE, test=ROWS),
         rows=[*RARE, *RARE, *ROWS], said=("no example in 'test' for 1 label(s), 'lost'",
         "fewer than 3 examples in 'train'")),
    # 14: JSON
    Case("14 a chat file", 'refused, "rename"', {"a.jsonl": json.dumps(CHAT) + "\n"}, refused=("line 1, column 'text'",
         "chat file", "one row for each text")),
    Case("14 an array of conversations", "refused", {"a.json": json.dumps([{"conversations": []}] * 3)},
         refused=("line 1", "chat file")),
    Case("14 a chat in Parquet", 'refused, "rename"', {"a.parquet": parquet(messages=[CHAT["messages"]])},
         refused=("line 1", "chat file")),
    Case("14 an array of rows in .jsonl", "refused", {"a.jsonl": json.dumps([dict(zip(("text", "label"),
         row)) for row in ROWS], indent=1)}),
    Case("14 rows line by line in .json", "refused", {"a.json": lines()}),
    Case("14 an array that was cut off", "refused", {"a.json": "[" + lines().replace("\n", ",\n")}, refused=("line 20",
         "cut off")),
    Case("14 the rows under a key", "refused", {"a.json": json.dumps({"data": [{"text": "a", "label": "b"}]})},
         refused=("line 1, column 'text'", "'data' is a list", "save the list alone")),
    # 15: several labels
    Case("15 late|fine in a cell", "silent", table(labelled(LISTS)), rows=labelled(LISTS),
         said=("look like lists of labels",)),
    Case("15 a Python list in a cell", "silent", table(labelled([f"['{name}']" for name in NAMES])),
         rows=labelled([f"['{name}']" for name in NAMES]), said=("look like lists of labels",)),
    Case("15 a JSON list", "refused", {"a.jsonl": lines(labelled([[name] for name in NAMES]))},
         refused=("line 1, column 'label'", "(list)", "Keep one label")),
    Case("15 each text twice, with two labels", "said", table([*ROWS, *labelled(["open", "shut"] * 10)]), rows=[*ROWS,
         *labelled(["open", "shut"] * 10)], said=("20 texts stand there with more than one label",)),
    # 23, 24, 25: separators, header, compression, encodings
    Case("23 semicolons in .csv", "refused, remedy would spoil the file", "\ufeff" + table(separator=";"),
         said=("separated by semicolons",)),
    Case("23 vertical bars in .csv", "refused", table(separator="|"), said=("separated by vertical bars",)),
    Case("23 tabs in .csv", "refused", table(MERGED, "\t", quote=False), rows=MERGED, said=("separated by tabs",)),
    Case("23 commas in .tsv", "refused", {"a.tsv": table()}, said=("separated by commas",)),
    Case("23 Excel's line sep=;", "refused", "sep=;\r\n" + table(separator=";", end="\r\n"),
         said=("separated by semicolons",)),
    Case("23 semicolons and other names", "refused, without the names", table(separator=";", header=("review",
         "stars")), refused=("line 1, column 'text'", "'review', 'stars'")),
    Case("24 no header", 'refused, "rename"', table()[11:], refused=("line 1", "Add a header line", "'text,label'")),
    Case("24 no header, three columns", 'refused, "rename"', "".join(f'"{n}","x","{t}"\n' for t, n in ROWS),
         refused=("line 1", "Add a header line", "3 columns")),
    Case("25 .csv.gz", "refused", {"a.csv.gz": gzip.compress(table().encode(), mtime=0)}),
    Case("25 .JSONL.GZ", "refused", {"a.JSONL.GZ": gzip.compress(lines().encode(), mtime=0)}),
    Case("25 .tsv.gz, cut off", "refused", {"a.tsv.gz": gzip.compress(table(separator="\t").encode(), mtime=0)[:-9]},
         refused=("line 1", "not a complete gzip file")),
    Case("25 a workbook named .csv", "refused as UTF-8", b"PK\x03\x04\x14\x00\x06\x00", refused=("line 1",
         "an Excel workbook", "CSV UTF-8")),
    Case("26 Windows-1252", "refused", table(with_row(4, "caf\u00e9")).encode("cp1252"),
         refused=("line 4, column (byte) 4", "0xe9", "iconv -f WINDOWS-1252 -t UTF-8 a.csv")),
    Case("26 Windows-1252 in .csv.gz", "refused", {"a.csv.gz": gzip.compress(table(with_row(4,
         "caf\u00e9")).encode("cp1252"))}, refused=("line 4, column (byte) 4", "Unpack it",
         "iconv -f WINDOWS-1252 -t UTF-8 a.csv >")),
    Case("26 UTF-16 with its mark", "refused", table().encode("utf-16"), refused=("line 1",
         "iconv -f UTF-16 -t UTF-8")),
    Case("26 UTF-16 without its mark", "refused as missing columns", table().encode("utf-16-le"), refused=("line 1",
         "iconv -f UTF-16LE -t UTF-8")),
]  # fmt: skip
