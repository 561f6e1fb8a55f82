"""Loading a task: the shared one, folders and Hub ids, draws; what `cases.py` does not have is refused here."""

import gzip
import io
import json
from collections import Counter

import pyarrow
import pytest
from cases import ROWS, TEXTS, folder, labelled, lines, parquet, table, with_row, write
from transformers import DataCollatorWithPadding

from helpers.errors import DataError, OfflineError, ParameterError
from helpers.hub import DATA
from helpers.models import load_encoder
from helpers.tasks import load_task

SPLITS = ("train", "validation", "test")
SHARED = load_task()


def counted(numbers) -> bytes:
    """Parquet with numbers for labels and their names in the file's metadata, as the Hub writes it."""
    names = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    columns = pyarrow.table(dict(zip(("text", "label"), zip(*labelled(numbers)))))
    pyarrow.parquet.write_table(
        columns.replace_schema_metadata({"huggingface": json.dumps(names)}), stream := io.BytesIO()
    )
    return stream.getvalue()


# ---------------------------------------------------------------- accepted


def test_a_folder_keeps_its_splits_and_the_names_of_a_hub_parquet(tmp_path, capsys):
    """The layout of a Hub dataset: data/train-00000-of-00001.parquet; hidden folders hold copies and are not data."""
    files = {f"data/{split}-00000-of-00001.parquet": counted([0, 1] * 3) for split in SPLITS}
    write(tmp_path / "hub", files | {".ipynb_checkpoints/train-checkpoint.csv": table()})
    task = load_task(str(tmp_path / "hub"))
    assert "not read" not in capsys.readouterr().out
    assert task.name == "hub" and task.labels == ("no", "yes")
    assert task.texts("validation") == TEXTS[:6] and task.targets("test") == [0, 1] * 3


def test_a_hub_id_is_taken_from_the_local_cache_without_a_network(tmp_path, monkeypatch):
    """A broken-off download may have left dataset_infos.json alone; rows in train.json.gz are a dataset."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    with pytest.raises(OfflineError, match=r"'owner/pets' is not on this machine.*task='helpdesk', need no network"):
        load_task("owner/pets")
    cache, commit = tmp_path / "datasets--owner--pets", "0123456789abcdef0123456789abcdef01234567"
    write(cache, {"refs/main": commit, f"snapshots/{commit}/dataset_infos.json": "{}"})
    with pytest.raises(OfflineError, match="only partly in the Hub's local cache"):
        load_task("owner/pets")
    write(cache / "snapshots" / commit / "data", {"train.json.gz": gzip.compress(lines().encode())})
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    task = load_task("owner/pets")
    assert task.name == "owner/pets" and task.labels == ("fine", "late")


def test_train_examples_are_drawn_evenly_and_by_seed(capsys):
    one, same, other = (load_task(train_examples=60, seed=seed) for seed in (1, 1, 2))
    assert set(Counter(one.targets("train")).values()) == {5}
    assert one.texts("train") == same.texts("train") != other.texts("train")
    assert one.texts("test") == other.texts("test") == SHARED.texts("test")
    assert len(load_task(train_examples=1201).splits["train"]) == 1200
    assert "there are 1200 for training: all of them are used" in capsys.readouterr().out
    for wrong in (-1, 11):
        with pytest.raises(ParameterError, match=rf"train_examples={wrong}: expected 0 \(all\), or .* from 12"):
            load_task(train_examples=wrong)


def test_the_fingerprint_names_the_data_and_not_the_draw(tmp_path):
    records = json.loads((DATA / "measurements" / "01_feature_extraction.json").read_text(encoding="utf-8"))
    tasks = [SHARED, load_task(train_examples=60), load_task(train_examples=384, seed=2)]
    assert {task.fingerprint for task in tasks} == {record["task_fingerprint"] for record in records}
    assert SHARED.fingerprint.startswith("e969dba4167f12f0")
    one, other = (load_task(write(tmp_path, {"a.csv": table(rows)})) for rows in (ROWS, with_row(5)))
    assert one.fingerprint != other.fingerprint


def test_rows_are_what_a_collator_pads():
    _, tokenizer = load_encoder(random_weights=True, quiet=True)
    rows = SHARED.rows("test", tokenizer)
    assert [row["labels"] for row in rows] == SHARED.targets("test")
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in rows)
    assert len({len(row["input_ids"]) for row in rows}) > 10, "padded"
    assert tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=True) == SHARED.texts("test")[0].lower()
    assert {len(row["input_ids"]) for row in SHARED.rows("test", tokenizer, max_tokens=9)} == {9}
    assert set(DataCollatorWithPadding(tokenizer)(rows[:4])) == {"input_ids", "attention_mask", "labels"}


def test_leaks_are_reported_not_dropped(tmp_path, capsys):
    task = load_task(write(tmp_path, folder("csv", **dict.fromkeys(SPLITS, ROWS))))
    assert len(task.splits["test"]) == len(ROWS)
    assert f"{len(ROWS)} of {len(ROWS)} texts of 'test' stand in 'train' too" in capsys.readouterr().out


# ---------------------------------------------------------------- refused

REFUSED = {
    "after a text of two lines": ("a.csv", table([("a\nb", "late"), *ROWS[:5], ("", "fine")]), "line 9, column 'text'"),
    "capitals in the header": ("a.csv", table(header=("Text", "label")), "line 1, .*missing.*Did you mean 'Text'"),
    "no key": ("a.jsonl", lines() + '{"text": "x"}', r"a\.jsonl, line 21, column 'label': missing"),
    "key twice": ("a.jsonl", '{"text": "lost", "text": "kept", "label": "late"}', "line 1, .*'text': stands twice"),
    "comma": ("a.csv", "text,label\na text, a comma,late\n", "line 2, column 3: found 3 fields, the header has 2"),
    "list": ("a.jsonl", '["text", "late"]\n', "line 1: not an object, but a list"),
    "text 17": ("a.jsonl", lines(with_row(6, 17)), r"line 5, column 'text': found 17 \(int\), expected text"),
    "label -1": ("a.parquet", counted([-1, 0, 1, 1]), "line 1, column 'label': found -1, but the file lists 2 label"),
    "half a character": ("a.jsonl", lines(with_row(4, "smile \ud83d")), "line 3, column 'text'.*half a character"),
    "cut Parquet": ("cut.parquet", parquet()[:-20], r"cut\.parquet.*not a complete Parquet file.*again"),
    "cut JSONL": ("a.jsonl", lines()[:-15], rf"line {len(ROWS)}, column \(character\).*cut off"),
    "no bytes": ("a.csv", "", r"a\.csv, line 1: the file is empty"),
    "header only": ("a.csv", "text,label\n", "line 2.*not a single row"),
    "ending": ("notes.docx", "x", r"files ending in '\.docx' are not read"),
    "one label": ("a.csv", table(labelled(["late"] * 20)), "line 2.*'late' in all 20 lines: one single label"),
    "label of ids": ("a.csv", table(labelled(TEXTS)), "20 training examples have 20 labels.*right column"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_bad_file_is_refused_with_line_and_column(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        load_task(write(tmp_path, {name: content}))


def test_labels_that_training_lacks_and_paths_that_lead_nowhere(tmp_path):
    split = folder("csv", train=ROWS, validation=ROWS, test=with_row(5, label="lat"))
    with pytest.raises(
        DataError, match=r"test\.csv, line 5, column 'label': found 'lat', .*2 labels \(fine, late\).*mean 'late'"
    ):
        load_task(write(tmp_path, split))
    with pytest.raises(DataError, match=r"no such file or folder.*'helpdesk'"):
        load_task("missing.csv")


def test_a_part_of_a_dataset_is_missing_or_there_twice(tmp_path):
    for files, said in {
        ("train-00000-of-00002.csv", "test.csv"): r"found only 1 of 2 files train-\*\.csv",
        ("train-00000-of-00002.csv", "train.csv"): "for 'train': copies of each other",
        ("validation.csv", "test.csv"): r"found test\.csv, validation\.csv, but no file for train",
    }.items():
        with pytest.raises(DataError, match=said):
            load_task(write(tmp_path / str(len(said)), dict.fromkeys(files, table())))
