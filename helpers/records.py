"""Writes and reads the records that every notebook leaves behind, and makes the scoreboard of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import DataError, ParameterError
from .tasks import Task

MEASUREMENTS = Path(__file__).resolve().parent.parent / "data" / "measurements"
TECHNIQUES = (
    "majority",
    "tfidf",
    "random_init",
    "hard_prompt",
    "feature_extraction",
    "partial_fine_tuning",
    "full_fine_tuning",
    "lora",
    "qlora",
    "prompt_tuning",
    "prefix_tuning",
)
VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "scikit-learn")


@dataclass(frozen=True)
class Record:
    """One measured number of one run of one technique."""

    notebook: str
    technique: str
    variant: str
    backbone: str
    task: str
    task_fingerprint: str
    split: str
    seed: int
    metric: str
    value: float
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    train_seconds: float
    peak_mib: float
    device: str
    versions: dict[str, str]


FIELDS = tuple(field.name for field in dataclasses.fields(Record))


def record(
    *,
    notebook: str,
    technique: str,
    variant: str,
    backbone: str,
    task: Task,
    split: str,
    seed: int,
    metrics: dict[str, float],
    trainable_parameters: int = 0,
    total_parameters: int = 0,
    adapter_bytes: int = 0,
    train_seconds: float = 0.0,
    peak_mib: float = 0.0,
    device: str = "cpu",
) -> list[Record]:
    """Return one `Record` for each metric of a run, for example `metrics={"accuracy": 0.8, "macro_f1": 0.79}`.

    Raises:
        ParameterError: an unknown technique, or a value that is not a finite number.
    """
    if technique not in TECHNIQUES:
        raise ParameterError(f"technique={technique!r}: expected one of {', '.join(TECHNIQUES)}.")
    for name, value in {**metrics, "train_seconds": train_seconds, "peak_mib": peak_mib}.items():
        if not math.isfinite(value):
            raise ParameterError(f"{name} of {technique} ({variant}) is {value}: a record needs a finite number.")
    return [
        Record(
            notebook=notebook,
            technique=technique,
            variant=variant,
            backbone=backbone,
            task=task.name,
            task_fingerprint=task.fingerprint,
            split=split,
            seed=int(seed),
            metric=name,
            value=round(float(value), 6),
            trainable_parameters=int(trainable_parameters),
            total_parameters=int(total_parameters),
            adapter_bytes=int(adapter_bytes),
            train_seconds=round(train_seconds, 3),
            peak_mib=round(peak_mib, 1),
            device=device,
            versions=versions(),
        )
        for name, value in metrics.items()
    ]


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def write_records(records: Iterable[Record], *, notebook: str, results_dir: str = "results") -> Path:
    """Write `results_dir/records/<notebook>.json` in one step, so that a reader never sees half a file."""
    path = Path(results_dir) / "records" / f"{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.draft")
    draft.write_text(json.dumps([dataclasses.asdict(r) for r in records], indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return path


def read_records(folder: str | Path) -> pd.DataFrame:
    """Read all `*.json` files of records in a folder into one table, one row a record.

    Raises:
        DataError: a file is not JSON or a record lacks a field; names file and record.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Delete it and run its notebook again."
            ) from None
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise DataError(f"{path}, line 1: expected a list of records. Delete it and run its notebook again.")
        for number, row in enumerate(found, 1):
            missing = [name for name in FIELDS if name not in row]
            if missing:
                raise DataError(
                    f"{path}, record {number}: no field {missing[0]!r}. Delete the file and run its notebook again."
                )
            rows.append(row)
    return pd.DataFrame(rows, columns=[*FIELDS, "command", "date", "hardware"])


def scoreboard(results_dir: str = "results", *, task: Task | None = None, metric: str = "accuracy") -> pd.DataFrame:
    """One table of all techniques: live runs and, marked as such, runs recorded in `data/measurements`.

    Args:
        results_dir: where the notebooks wrote their records.
        task: keep only the runs on this task (by fingerprint); by default those on the shared task's
            name and all others alike.
        metric: "accuracy" or "macro_f1".

    Returns one row for each technique, variant and source, with the mean over seeds on `test` and
    `test_shifted` in percent, the standard deviation over seeds, trained parameters, seconds and
    MiB. A technique that was not run stands there as "not run".
    """
    live = read_records(Path(results_dir) / "records").assign(source="this run")
    recorded = read_records(MEASUREMENTS).assign(source="recorded")
    rows = pd.concat([frame for frame in (live, recorded) if len(frame)] or [live])
    if len(rows) and metric not in set(rows["metric"]):
        known = ", ".join(sorted(set(rows["metric"])))
        raise ParameterError(f"metric={metric!r}: the records have {known}. Use one of these.")
    rows = rows[rows["metric"] == metric]
    rows = rows[rows["split"].isin(("test", "test_shifted"))]  # sweeps are judged, and recorded, on validation
    if task is not None:
        rows = rows[rows["task_fingerprint"] == task.fingerprint]
    table = []
    for technique in TECHNIQUES:
        of_technique = rows[rows["technique"] == technique]
        if of_technique.empty:
            table.append({"technique": technique, "variant": "not run"})
        keys = ["variant", "backbone", "task", "task_fingerprint", "source"]
        for (variant, backbone, task_name, _, source), runs in of_technique.groupby(keys, sort=False):
            on_test = runs[runs["split"] == "test"]
            shifted = runs[runs["split"] == "test_shifted"]
            table.append(
                {
                    "technique": technique,
                    "variant": variant,
                    "backbone": backbone,
                    "task": task_name,
                    "source": source,
                    "seeds": on_test["seed"].nunique(),
                    "test": 100 * on_test["value"].mean(),
                    "spread": 100 * on_test["value"].std(ddof=1),
                    "test_shifted": 100 * shifted["value"].mean(),
                    "trained": int(runs["trainable_parameters"].max()),
                    "seconds": on_test["train_seconds"].mean(),
                    "peak_mib": on_test["peak_mib"].mean(),
                }
            )
    columns = [
        "technique",
        "variant",
        "backbone",
        "task",
        "source",
        "seeds",
        "test",
        "spread",
        "test_shifted",
        "trained",
        "seconds",
        "peak_mib",
    ]
    return pd.DataFrame(table, columns=columns)
