"""What readers bring works, or is refused by file, line and column with a remedy; nothing is changed in silence."""

import csv
import io
import json
from collections import Counter

import pytest
from cases import CASES, RARE, ROWS, TEXTS, folder, labelled, lines, parquet, rows_of, table, write
from conftest import LONG
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from helpers.errors import DataError
from helpers.tasks import load_task


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_a_kind_of_file_is_read_right_or_refused_by_name(tmp_path, case):
    how, said = case.tried(tmp_path)
    assert how == ("refused" if case.refused else "read"), said
    assert not case.refused or all(words in said for words in (str(tmp_path), *case.refused)), said


def test_the_same_rows_have_the_same_fingerprint_in_every_format(tmp_path):
    numbers = [(f"{text}, {day}", label) for day in range(4) for text, label in labelled(map(str, range(12)))]
    typed = [(text, int(label)) for text, label in numbers]
    floats = [(text, float(label)) for text, label in typed]
    files = {
        "a.csv": table(numbers),
        "b.csv": table(floats),
        "c.tsv": table(numbers, "\t"),
        "d.jsonl": lines(typed),
        "e.jsonl": lines(numbers),
        "f.json": lines(floats),
        "g.parquet": parquet(typed),
    }
    tasks = [load_task(write(tmp_path, {name: content})) for name, content in files.items()]
    assert {task.labels for task in tasks} == {tuple(map(str, range(12)))}, "ordered by size"
    assert len({task.fingerprint for task in tasks}) == 1


def test_every_draw_holds_every_label(tmp_path):
    rows = [(f"{text}, {day}", "usual") for day in range(20) for text in TEXTS]
    rows += [(f"alarm {number}", "rare") for number in range(3)] + [(f"fire {number}", "rarer") for number in range(3)]
    path = write(tmp_path, {"a.csv": table(rows)})
    for seed in range(5):
        task = load_task(path, train_examples=3, seed=seed)
        assert sorted(task.targets("train")) == [0, 1, 2]


def test_a_cut_is_always_the_same_with_equal_texts_together_and_every_label_everywhere(tmp_path):
    rows = [*ROWS, *RARE, *RARE, ("Lost in town", "lost"), ("lost in town ", "fine")]
    for name, files in {"a": {"a.csv": table(rows)}, "b": folder("csv", train=rows, test=ROWS)}.items():
        path = write(tmp_path / name, files)
        task, again = load_task(path), load_task(path, seed=3)
        assert task.name == name and task.fingerprint == again.fingerprint
        cut = [split for split in task.splits if f"{split}.csv" not in files or split == "train"]
        texts = [text for split in cut for text in {text.strip().lower() for text in task.texts(split)}]
        assert len(texts) == len(set(texts)) and all(set(task.targets(split)) == {0, 1, 2} for split in cut)


# ---------------------------------------------------------------- any table

CHARACTERS = st.sampled_from('abc é ß,;|\t""\'\n\r\u200b\u2028\x85\x0b\x00\\🙂\ufeff{}[]')
KINDS = {"names": ("ham", "spam"), "ints": (2, 10), "floats": (0.0, 1.0), "bools": (False, True)}
ENDINGS = {"csv": ",", "csv;": ";", "csv|": "|", "csv\t": "\t", "tsv": "\t", "jsonl": "", "json": "", "parquet": ""}


@st.composite
def tables(draw):
    texts = draw(st.lists(st.text(CHARACTERS, min_size=1, max_size=9), min_size=8, max_size=12,
                          unique_by=lambda text: text.strip().lower()))  # fmt: skip
    if draw(st.integers(0, 3)):  # most tables have no blank text
        texts = [f"{text}x" for text in texts]
    names = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    ending, how = draw(st.sampled_from(sorted(ENDINGS))), draw(st.sampled_from(["minimal", "all", "none"]))
    if separator := ENDINGS[ending]:
        unwanted = f"{separator}\r\n" if how == "none" else "\t" if separator == "\t" else ""
        texts = [text.translate({ord(char): "_" for char in unwanted}) for text in texts]
    rows = [(text, names[number % 2]) for number, text in enumerate(texts)]
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\r\r\n", "\n\n"]))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "cp1252"]))
    return rows, ending, how, end, encoding


def as_bytes(rows, ending, how, end, encoding) -> bytes:
    if ending == "parquet":
        return parquet(rows)
    if ending == "jsonl":
        content = lines(rows)
    elif ending == "json":
        content = json.dumps([{"text": text, "label": label} for text, label in rows], ensure_ascii=False)
    elif how == "none":
        content = table(rows, ENDINGS[ending], end, quote=False)
    else:
        quoting = csv.QUOTE_ALL if how == "all" else csv.QUOTE_MINIMAL
        writer = csv.writer(stream := io.StringIO(), delimiter=ENDINGS[ending], lineterminator=end, quoting=quoting)
        writer.writerows([("text", "label"), *rows])
        content = stream.getvalue()
    try:
        return content.encode(encoding)
    except UnicodeEncodeError:
        return content.encode()


@settings(
    max_examples=2000 if LONG else 200,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tables())
def test_any_table_is_read_whole_or_refused(tmp_path, capsys, made):
    rows, ending, how, *_ = made
    path = tmp_path / f"any.{ending.rstrip(';|' + chr(9))}"
    path.write_bytes(as_bytes(*made))
    wanted = Counter((text, str(int(y)) if type(y) is float else str(y)) for text, y in rows)
    capsys.readouterr()
    try:
        found = Counter(rows_of(load_task(str(path))))
    except DataError:
        event("refused")
        return
    event(f"read, {ending}, {how}")
    if found != wanted:  # only where a field without quoting looks quoted, in a CSV by its rules, in a TSV with a note
        assert how == "none" and found.total() == wanted.total()
        assert ENDINGS[ending] != "\t" or "double quotes around a field" in capsys.readouterr().out
        bare = [Counter((text.replace('"', ""), y) for text, y in some.elements()) for some in (found, wanted)]
        assert bare[0] == bare[1]
