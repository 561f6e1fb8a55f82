"""Loading a task: what is accepted, and every kind of bad input refused with file, line and column."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from helpers import DataError, OfflineError, ParameterError, load_task

GOOD = [(f"text number {i} about {label}", label) for i in range(20) for label in ("cats", "dogs")]


def write_csv(path: Path, rows=GOOD, header="text,label", encoding="utf-8") -> str:
    lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return str(path)


def write_jsonl(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, columns: dict) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


# ---------------------------------------------------------------- accepted


def test_a_single_file_is_split_by_label_and_always_the_same(tmp_path):
    rows = [*GOOD, *[("equal text", "cats")] * 9]
    task = load_task(write_csv(tmp_path / "pets.csv", rows))
    assert task.name == "pets" and task.labels == ("cats", "dogs")
    sizes = {split: len(task.splits[split]) for split in task.splits}
    assert sum(sizes.values()) == len(rows) and set(sizes) == {"train", "validation", "test"}
    assert all(set(task.targets(split)) == {0, 1} for split in sizes)
    assert sum("equal text" in task.texts(split) for split in sizes) == 1  # duplicates do not leak
    other = load_task(str(tmp_path / "pets.csv"), seed=5)
    assert other.fingerprint == task.fingerprint and other.texts("test") == task.texts("test")


def test_the_same_rows_as_csv_jsonl_and_parquet_are_the_same_task(tmp_path):
    one = load_task(write_csv(tmp_path / "a.csv"))
    two = load_task(write_jsonl(tmp_path / "a.jsonl", [{"text": t, "label": y} for t, y in GOOD]))
    columns = {"text": [t for t, _ in GOOD], "label": [y for _, y in GOOD]}
    three = load_task(write_parquet(tmp_path / "a.parquet", columns))
    assert one.fingerprint == two.fingerprint == three.fingerprint


def test_csv_with_byte_order_mark_quotes_and_line_breaks(tmp_path):
    rows = [("first line\nsecond line, with a comma", "cats"), *GOOD]
    path = tmp_path / "excel.csv"
    write_csv(path, rows, encoding="utf-8-sig")
    texts = [text for split in ("train", "validation", "test") for text in load_task(str(path)).texts(split)]
    assert rows[0][0] in texts


def test_a_folder_keeps_its_splits_and_the_names_of_a_hub_parquet(tmp_path):
    """The layout of a Hub dataset: data/train-00000-of-00001.parquet with label names in the file's metadata."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    for split in ("train", "validation", "test"):
        table = pyarrow.table({"text": [f"{split} {i}" for i in range(6)], "label": [i % 2 for i in range(6)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    task = load_task(str(tmp_path / "hub"))
    assert task.labels == ("no", "yes")
    assert task.texts("validation") == [f"validation {i}" for i in range(6)]
    assert task.targets("test") == [0, 1] * 3


def test_a_hub_id_is_taken_from_the_local_cache_without_a_network(tmp_path, monkeypatch):
    repository = tmp_path / "datasets--owner--pets"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for split in ("train", "validation", "test"):
        write_csv(snapshot / f"{split}.csv", [(f"{split} {t}", y) for t, y in GOOD])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    assert len(load_task("owner/pets").splits["test"]) == len(GOOD)


def test_train_examples_are_drawn_evenly_and_by_seed():
    one, same, other = (load_task(train_examples=60, seed=seed) for seed in (1, 1, 2))
    assert set(Counter(one.targets("train")).values()) == {5}
    assert one.texts("train") == same.texts("train") != other.texts("train")
    assert one.texts("test") == other.texts("test")
    assert one.fingerprint != other.fingerprint


def test_texts_that_stand_in_train_and_test_are_reported_not_dropped(tmp_path, capsys):
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv")
    task = load_task(str(tmp_path))
    assert len(task.splits["test"]) == len(GOOD)
    assert f"{len(GOOD)} of {len(GOOD)} texts of 'test' stand in 'train' too" in capsys.readouterr().out


def test_copies_in_hidden_folders_are_not_data(tmp_path):
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv", [(f"{split} {t}", y) for t, y in GOOD])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write_csv(tmp_path / ".ipynb_checkpoints" / "train-checkpoint.csv")
    assert len(load_task(str(tmp_path)).splits["train"]) == len(GOOD)


def test_one_text_with_two_labels_is_reported(tmp_path, capsys):
    load_task(write_csv(tmp_path / "torn.csv", [*GOOD, ("the same words", "cats"), ("The same words", "dogs")]))
    assert "1 texts stand there with more than one label, such as 'the same words'" in capsys.readouterr().out


# ---------------------------------------------------------------- refused


def bad_csv(line: int, text="a fine text", label="cats"):
    """GOOD with one other row so that it stands on `line` (the header is line 1)."""
    rows = list(GOOD)
    rows[line - 2] = (text, label)
    return rows


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({"text": "   "}, "text", "blank"),
        ({"label": ""}, "label", "blank"),
        ({"text": "NA"}, "text", "'NA'"),
        ({"label": "NA"}, "label", "'NA'"),
        ({"text": "null"}, "text", "'null'"),
    ],
)
def test_blank_cells_and_not_available(tmp_path, row, column, found):
    path = write_csv(tmp_path / "bad.csv", bad_csv(7, **row))
    with pytest.raises(DataError, match=rf"bad\.csv, line 7, column '{column}'.*{found}") as error:
        load_task(path)
    assert "remove the line" in str(error.value)


def test_line_numbers_count_line_breaks_inside_quotes(tmp_path):
    rows = [("two\nlines", "cats"), *GOOD[:5], ("", "dogs")]
    with pytest.raises(DataError, match="line 9, column 'text'"):
        load_task(write_csv(tmp_path / "bad.csv", rows))


def test_missing_and_renamed_columns(tmp_path):
    with pytest.raises(DataError, match=r"line 1, column 'text': missing.*Did you mean 'Text'"):
        load_task(write_csv(tmp_path / "a.csv", header="Text,label"))
    with pytest.raises(
        DataError, match=r"line 1, column 'label': missing; the columns are 'text', 'topic'.*label_column"
    ):
        load_task(write_csv(tmp_path / "b.csv", header="text,topic"))
    assert load_task(write_csv(tmp_path / "b.csv", header="text,topic"), label_column="topic").labels == (
        "cats",
        "dogs",
    )
    rows = [{"text": t, "label": y} for t, y in GOOD]
    del rows[11]["label"]
    with pytest.raises(DataError, match=r"c\.jsonl, line 12, column 'label': missing"):
        load_task(write_jsonl(tmp_path / "c.jsonl", rows))
    with pytest.raises(DataError, match="column 'text': stands twice"):
        load_task(write_csv(tmp_path / "d.csv", [(*row, "x") for row in GOOD], header="text,label,text"))
    (tmp_path / "e.csv").write_text("text;label\na;cats\n")
    with pytest.raises(DataError, match=r"line 1.*separated by ';'"):
        load_task(str(tmp_path / "e.csv"))


def test_labels_outside_the_list(tmp_path):
    for split in ("train", "validation", "test"):
        rows = bad_csv(5, label="dogz") if split == "test" else GOOD
        write_csv(tmp_path / f"{split}.csv", [(f"{split} {t}", y) for t, y in rows])
    with pytest.raises(DataError, match=r"test\.csv, line 5, column 'label': found 'dogz'.*Did you mean 'dogs'"):
        load_task(str(tmp_path))
    with pytest.raises(DataError, match=r"found 'dogs', which is not one of the 2 labels \(cats, cows\)"):
        load_task(write_csv(tmp_path / "own.csv"), labels=["cats", "cows"])


def test_mixed_types(tmp_path):
    rows = [{"text": t, "label": y} for t, y in GOOD]
    rows[4]["label"] = 1
    with pytest.raises(DataError, match=r"a\.jsonl, line 5, column 'label': found 1 \(int\), but line 1 has 'cats'"):
        load_task(write_jsonl(tmp_path / "a.jsonl", rows))
    rows[4] = {"text": 17, "label": "cats"}
    with pytest.raises(DataError, match=r"line 5, column 'text': found 17 \(int\), expected text"):
        load_task(write_jsonl(tmp_path / "b.jsonl", rows))
    rows[4] = {"text": "fine", "label": None}
    with pytest.raises(DataError, match=r"line 5, column 'label': found no value"):
        load_task(write_jsonl(tmp_path / "c.jsonl", rows))
    columns = {"text": [t for t, _ in GOOD], "label": [0.0] * len(GOOD)}
    with pytest.raises(DataError, match=r"line 1, column 'label': found 0.0 \(float\)"):
        load_task(write_parquet(tmp_path / "d.parquet", columns))


def test_duplicate_ids_name_both_places(tmp_path):
    rows = [{"id": i, "text": t, "label": y} for i, (t, y) in enumerate(GOOD)]
    rows[8]["id"] = 3
    with pytest.raises(DataError, match=r"line 9, column 'id': found 3 again, first used in .*ids\.jsonl, line 4"):
        load_task(write_jsonl(tmp_path / "ids.jsonl", rows))


def test_ids_are_in_every_line_or_in_none(tmp_path):
    rows = [{"id": i, "text": t, "label": y} for i, (t, y) in enumerate(GOOD)]
    rows[5]["id"] = None
    with pytest.raises(DataError, match=r"line 6, column 'id': found None, but other lines have this column"):
        load_task(write_jsonl(tmp_path / "ids.jsonl", rows))


def test_spelling_variants_are_not_new_classes(tmp_path):
    with pytest.raises(DataError, match=r"line 6, column 'label': found 'Cats ', but .*line 2 has 'cats'"):
        load_task(write_csv(tmp_path / "spelled.csv", bad_csv(6, label="Cats ")))


def test_a_key_that_stands_twice_and_half_a_character(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "lost", "text": "kept", "label": "cats"}\n')
    with pytest.raises(DataError, match=r"twice\.jsonl, line 1, column 'text': stands twice"):
        load_task(str(path))
    rows = [{"text": t, "label": y} for t, y in GOOD]
    rows[2]["text"] = "smile \ud83d"
    with pytest.raises(DataError, match=r"line 3, column 'text'.*half a character"):
        load_task(write_jsonl(tmp_path / "half.jsonl", rows))


def test_a_part_of_a_dataset_is_missing_or_there_twice(tmp_path):
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv", [(f"{split} {t}", y) for t, y in GOOD])
    (tmp_path / "train.csv").rename(tmp_path / "train-00000-of-00002.csv")
    with pytest.raises(DataError, match=r"found only 1 of 2 files train-\*\.csv"):
        load_task(str(tmp_path))
    write_csv(tmp_path / "train.csv")
    with pytest.raises(DataError, match="for 'train': copies of each other"):
        load_task(str(tmp_path))


def test_wrong_encoding(tmp_path):
    path = tmp_path / "latin.csv"
    write_csv(path, bad_csv(4, text="caf\u00e9 au lait"), encoding="latin-1")
    with pytest.raises(DataError, match=r"latin\.csv, line 4, column \(byte\) 5: found byte 0xe9.*UTF-8"):
        load_task(str(path))
    write_csv(path, encoding="utf-16")
    with pytest.raises(DataError, match=r"latin\.csv, line 1.*the mark of UTF-16, expected UTF-8"):
        load_task(str(path))


def test_truncated_files(tmp_path):
    path = tmp_path / "cut.parquet"
    write_parquet(path, {"text": [t for t, _ in GOOD], "label": [y for _, y in GOOD]})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet.*not a complete Parquet file.*again"):
        load_task(str(path))
    path = tmp_path / "cut.jsonl"
    write_jsonl(path, [{"text": t, "label": y} for t, y in GOOD])
    path.write_text(path.read_text()[:-15])
    with pytest.raises(DataError, match=rf"cut\.jsonl, line {len(GOOD)}, column \(character\).*cut off"):
        load_task(str(path))
    path = tmp_path / "cut.csv"
    path.write_text('text,label\n"a fine text",cats\n"a text that never ends')
    with pytest.raises(DataError, match=r"cut\.csv, line 3: not valid CSV.*quote"):
        load_task(str(path))
    path.write_text("text,label\nno quotes, one comma too many,cats\n")
    with pytest.raises(DataError, match=r"cut\.csv, line 2, column 3: found 3 fields, the header has 2"):
        load_task(str(path))


def test_empty_files(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("")
    with pytest.raises(DataError, match=r"empty\.csv, line 1: the file is empty"):
        load_task(str(path))
    path.write_text("text,label\n")
    with pytest.raises(DataError, match=r"empty\.csv, line 2.*not a single row"):
        load_task(str(path))


def test_too_few_classes_or_examples(tmp_path):
    with pytest.raises(DataError, match=r"one\.csv, line 2, column 'label': found one single label, 'cats'"):
        load_task(write_csv(tmp_path / "one.csv", [(t, "cats") for t, _ in GOOD]))
    with pytest.raises(DataError, match=r"line 2, column 'label': found 40 examples and 40 labels"):
        load_task(write_csv(tmp_path / "ids.csv", [(t, f"label {i}") for i, (t, _) in enumerate(GOOD)]))
    with pytest.raises(DataError, match=r"rare\.csv, line 3, column 'label': found 'cows' with 1 different"):
        load_task(write_csv(tmp_path / "rare.csv", bad_csv(3, label="cows")))
    with pytest.raises(ParameterError, match=r"train_examples=11: expected 0 \(all\) or a number from 12"):
        load_task(train_examples=11)


def test_what_is_no_task_at_all(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no such file or folder.*'helpdesk'"):
        load_task("missing.csv")
    (tmp_path / "notes.docx").write_text("x")
    with pytest.raises(DataError, match=r"files ending in '\.docx' are not read"):
        load_task(str(tmp_path / "notes.docx"))
    write_csv(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"no file for validation, test"):
        load_task(str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"'owner/name' is not on this machine.*task='helpdesk', needs no network"):
        load_task("owner/name")
