"""Loading a task: what is accepted, and every kind of bad input refused with file, line and column."""

import gzip
import io
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from transformers import DataCollatorWithPadding

from helpers.errors import DataError, OfflineError, ParameterError
from helpers.hub import DATA
from helpers.models import load_encoder
from helpers.tasks import load_task

GOOD = [(f"text number {i} about {label}", label) for i in range(20) for label in ("cats", "dogs")]
SPLITS = ("train", "validation", "test")


def as_csv(rows=GOOD, header="text,label") -> str:
    return "\n".join([header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]) + "\n"


def as_jsonl(rows=GOOD) -> str:
    rows = [row if isinstance(row, dict) else dict(zip(("text", "label"), row)) for row in rows]
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(rows=GOOD, names=None) -> bytes:
    table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    if names:  # of labels, as the Hub keeps them in the file's metadata
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, stream := io.BytesIO())
    return stream.getvalue()


def write(path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def write_folder(folder, **contents) -> str:
    """A task of three CSV files with different texts, or with the `contents` given for a split."""
    for split in SPLITS:
        write(folder / f"{split}.csv", contents.get(split, as_csv([(f"{split} {t}", y) for t, y in GOOD])))
    return str(folder)


def bad(line, text="a fine text", label="cats"):
    """GOOD with one other row on `line` of a CSV file, whose header is line 1."""
    return [*GOOD[: line - 2], (text, label), *GOOD[line - 1 :]]


# ---------------------------------------------------------------- accepted


def test_a_single_file_is_split_by_label_and_always_the_same(tmp_path):
    rows = [*GOOD, *[("equal text", "cats")] * 9]
    task = load_task(write(tmp_path / "pets.csv", as_csv(rows)))
    assert task.name == "pets" and task.labels == ("cats", "dogs")
    sizes = {split: len(task.splits[split]) for split in task.splits}
    assert sum(sizes.values()) == len(rows) and set(sizes) == set(SPLITS)
    assert all(set(task.targets(split)) == {0, 1} for split in sizes)
    assert sum("equal text" in task.texts(split) for split in sizes) == 1  # duplicates do not leak
    other = load_task(str(tmp_path / "pets.csv"), seed=5)
    assert other.fingerprint == task.fingerprint and other.texts("test") == task.texts("test")


def test_the_same_rows_in_every_format_are_the_same_task(tmp_path):
    """Also with a byte order mark, columns that nobody needs, columns of other names, commas and line breaks."""
    rows = [("first line\nsecond line, with a comma", "cats"), *GOOD]
    files = {
        "a.csv": b"\xef\xbb\xbf" + as_csv(rows).encode(),
        "a.tsv": as_csv(rows).replace('","', '"\t"').replace("text,label", "text\tlabel"),
        "a.jsonl": as_jsonl(rows) + "\n\n",
        "a.parquet": as_parquet(rows),
        "b.csv": as_csv([(None, *row, None, None) for row in rows], header="id,text,label,note,note"),
    }
    tasks = [load_task(write(tmp_path / name, content)) for name, content in files.items()]
    renamed = write(tmp_path / "c.csv", as_csv(rows, header="body,topic"))
    tasks.append(load_task(renamed, text_column="body", label_column="topic"))
    assert len({task.fingerprint for task in tasks}) == 1
    assert rows[0][0] in [text for split in SPLITS for text in tasks[0].texts(split)]


def test_a_folder_keeps_its_splits_and_the_names_of_a_hub_parquet(tmp_path):
    """The layout of a Hub dataset: data/train-00000-of-00001.parquet; hidden folders hold copies and are not data."""
    for split in SPLITS:
        content = as_parquet([(f"{split} {i}", i % 2) for i in range(6)], names=["no", "yes"])
        write(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", content)
    write(tmp_path / "hub" / ".ipynb_checkpoints" / "train-checkpoint.csv", as_csv())
    task = load_task(str(tmp_path / "hub"))
    assert task.name == "hub" and task.labels == ("no", "yes")
    assert task.texts("validation") == [f"validation {i}" for i in range(6)] and task.targets("test") == [0, 1] * 3


def test_a_hub_id_is_taken_from_the_local_cache_without_a_network(tmp_path, monkeypatch):
    repository, commit = tmp_path / "datasets--owner--pets", "0123456789abcdef0123456789abcdef01234567"
    write_folder(repository / "snapshots" / commit)
    write(repository / "refs" / "main", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    task = load_task("owner/pets")
    assert task.name == "owner/pets" and len(task.splits["test"]) == len(GOOD)


def test_what_describes_a_dataset_is_not_the_dataset(tmp_path, monkeypatch):
    """A broken-off download may have left dataset_infos.json alone; rows in train.json.gz are a dataset."""
    repository, commit = tmp_path / "datasets--owner--pets", "0123456789abcdef0123456789abcdef01234567"
    write(repository / "refs" / "main", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    write(repository / "snapshots" / commit / "dataset_infos.json", "{}")
    with pytest.raises(OfflineError, match="only partly in the Hub's local cache"):
        load_task("owner/pets")
    write(repository / "snapshots" / commit / "data" / "train.json.gz", gzip.compress(as_jsonl().encode()))
    assert load_task("owner/pets").labels == ("cats", "dogs")


def test_train_examples_are_drawn_evenly_and_by_seed():
    one, same, other = (load_task(train_examples=60, seed=seed) for seed in (1, 1, 2))
    assert set(Counter(one.targets("train")).values()) == {5}
    assert one.texts("train") == same.texts("train") != other.texts("train")
    assert one.texts("test") == other.texts("test")


def test_the_fingerprint_names_the_data_and_not_the_draw(tmp_path):
    records = json.loads((DATA / "measurements" / "01_feature_extraction.json").read_text(encoding="utf-8"))
    tasks = [load_task(), load_task(train_examples=60), load_task(train_examples=384, seed=2)]
    assert {task.fingerprint for task in tasks} == {record["task_fingerprint"] for record in records}
    assert tasks[0].fingerprint.startswith("e969dba4167f12f0")
    one, other = (load_task(write(tmp_path / "a.csv", as_csv(rows))) for rows in (GOOD, bad(5)))
    assert one.fingerprint != other.fingerprint


def test_rows_are_what_a_collator_pads():
    task, (_, tokenizer) = load_task(), load_encoder(random_weights=True, quiet=True)
    rows = task.rows("test", tokenizer)
    assert [row["labels"] for row in rows] == task.targets("test")
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in rows)
    assert len({len(row["input_ids"]) for row in rows}) > 10, "padded"
    assert tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=True) == task.texts("test")[0].lower()
    assert {len(row["input_ids"]) for row in task.rows("test", tokenizer, max_tokens=9)} == {9}
    assert set(DataCollatorWithPadding(tokenizer)(rows[:4])) == {"input_ids", "attention_mask", "labels"}


def test_leaks_and_torn_texts_are_reported_not_dropped(tmp_path, capsys):
    task = load_task(write_folder(tmp_path, **dict.fromkeys(SPLITS, as_csv())))
    assert len(task.splits["test"]) == len(GOOD)
    assert f"{len(GOOD)} of {len(GOOD)} texts of 'test' stand in 'train' too" in capsys.readouterr().out
    load_task(write(tmp_path / "torn.csv", as_csv([*GOOD, ("the same words", "cats"), ("The same words", "dogs")])))
    assert "1 texts stand there with more than one label, such as 'the same words'" in capsys.readouterr().out


# ---------------------------------------------------------------- refused

JSON_ROWS = [dict(zip(("text", "label"), row)) for row in GOOD]
COUNTED = as_parquet([(text, i % 3 - 1) for i, (text, _) in enumerate(GOOD)], names=["no", "yes"])
REFUSED = {
    # no value
    "blank text": ("a.csv", as_csv(bad(7, text=" ")), r"a\.csv, line 7, column 'text': found ' '.*remove the line"),
    "blank label": ("a.csv", as_csv(bad(7, label="")), "line 7, column 'label': found ''.*remove the line"),
    "label None": ("a.jsonl", as_jsonl(bad(6, label=None)), "line 5, column 'label': found None"),
    "line breaks": ("a.csv", as_csv([("two\nlines", "cats"), *GOOD[:5], ("", "dogs")]), "line 9, column 'text'"),
    # columns
    "renamed": ("a.csv", as_csv(header="Text,label"), "line 1, column 'text': missing.*Did you mean 'Text'"),
    "other": ("a.csv", as_csv(header="text,y"), "'label': missing; .* are 'text', 'y'.*text_column and label_column"),
    "no key": ("a.jsonl", as_jsonl([*JSON_ROWS[:11], {"text": "x"}]), r"a\.jsonl, line 12, column 'label': missing"),
    "twice": ("a.csv", as_csv([(*row, "x") for row in GOOD], header="text,label,text"), "column 'text': stands twice"),
    "key twice": (
        "a.jsonl",
        '{"text": "lost", "text": "kept", "label": "cats"}',
        "line 1, column 'text': stands twice",
    ),
    "comma": ("a.csv", "text,label\na text, a comma,cats\n", "line 2, column 3: found 3 fields, the header has 2"),
    "list": ("a.jsonl", '["text", "cats"]\n', "line 1: not an object, but a list"),
    # types
    "label 1": ("a.jsonl", as_jsonl(bad(6, label=1)), r"line 5, .* found 1 \(int\), but .*line 1 has 'cats' \(str\)"),
    "text 17": ("a.jsonl", as_jsonl(bad(6, text=17)), r"line 5, column 'text': found 17 \(int\), expected text"),
    "label 0.5": ("a.parquet", as_parquet([(t, 0.5) for t, _ in GOOD]), r"line 1, column 'label': found 0\.5 \(float"),
    "label -1": ("a.parquet", COUNTED, "line 1, column 'label': found -1, but the file lists 2 label names"),
    # encodings and cut files
    "latin-1": (
        "a.csv",
        as_csv(bad(4, "caf\u00e9")).encode("latin-1"),
        r"line 4, .*\(byte\) 5: .*0xe9.* -f WINDOWS-1252",
    ),
    "utf-16": ("a.csv", as_csv().encode("utf-16"), r"line 1, column \(byte\) 1.*iconv -f UTF-16 -t UTF-8"),
    "half a character": ("a.jsonl", as_jsonl(bad(4, text="smile \ud83d")), "line 3, column 'text'.*half a character"),
    "cut Parquet": ("cut.parquet", as_parquet()[:-20], r"cut\.parquet.*not a complete Parquet file.*again"),
    "cut JSONL": ("a.jsonl", as_jsonl()[:-15], rf"line {len(GOOD)}, column \(character\).*cut off"),
    "cut CSV": ("a.csv", 'text,label\n"fine",cats\n"a text that never ends', "line 3: not valid CSV.*quote"),
    "no bytes": ("a.csv", "", r"a\.csv, line 1: the file is empty"),
    "header only": ("a.csv", "text,label\n", "line 2.*not a single row"),
    "ending": ("notes.docx", "x", r"files ending in '\.docx' are not read"),
    # labels
    "spelling": ("a.csv", as_csv(bad(6, label="Cats ")), "line 6, .* found 'Cats ', but .*line 2 has 'cats'"),
    "one label": ("a.csv", as_csv([(t, "cats") for t, _ in GOOD]), "line 2.*'cats' in all 40 lines: one single label"),
    "label of ids": ("a.csv", as_csv([(t, t) for t, _ in GOOD]), "40 training examples have 40 labels.*right column"),
    "rare label": ("a.csv", as_csv(bad(3, label="cows")), "line 3, column 'label': found 'cows' with 1 different"),
    "torn label": (
        "a.csv",
        as_csv([*GOOD, (GOOD[0][0], "cows")]),
        "line 42, .* 'cows' with 1 different",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_bad_file_is_refused_with_line_and_column(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        load_task(write(tmp_path / name, content))


def test_labels_outside_the_list(tmp_path):
    rows = [(f"test {t}", y) for t, y in bad(5, label="dogz")]
    with pytest.raises(DataError, match=r"test\.csv, line 5, column 'label': found 'dogz'.*Did you mean 'dogs'"):
        load_task(write_folder(tmp_path, test=as_csv(rows)))
    with pytest.raises(DataError, match=r"found 'dogs', which is not one of the 2 labels \(cats, cows\)"):
        load_task(write(tmp_path / "own.csv", as_csv()), labels=["cats", "cows"])


def test_a_part_of_a_dataset_is_missing_or_there_twice(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train.csv").rename(tmp_path / "train-00000-of-00002.csv")
    with pytest.raises(DataError, match=r"found only 1 of 2 files train-\*\.csv"):
        load_task(str(tmp_path))
    write(tmp_path / "train.csv", as_csv())
    with pytest.raises(DataError, match="for 'train': copies of each other"):
        load_task(str(tmp_path))
    write(tmp_path / "other" / "train.csv", as_csv())
    (tmp_path / "other" / "train.csv").rename(tmp_path / "other" / "test.csv")
    with pytest.raises(DataError, match=r"found test\.csv, but no file for train"):
        load_task(str(tmp_path / "other"))


@pytest.mark.parametrize("train_examples", [-1, 11])
def test_a_draw_that_cannot_be(train_examples):
    with pytest.raises(ParameterError, match=rf"train_examples={train_examples}: expected 0 \(all\), or .* from 12"):
        load_task(train_examples=train_examples)


def test_a_file_with_fewer_examples_than_asked_for_is_used_whole_and_says_so(capsys):
    assert len(load_task(train_examples=1201).splits["train"]) == 1200
    assert "there are 1200 for training: all of them are used" in capsys.readouterr().out


def test_what_is_no_task_at_all(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no such file or folder.*'helpdesk'"):
        load_task("missing.csv")
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"'owner/name' is not on this machine.*task='helpdesk', need no network"):
        load_task("owner/name")
