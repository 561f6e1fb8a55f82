"""Keeps the books of a notebook, so that its cells hold the technique: runs, scores, records, the scoreboard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from sklearn.metrics import f1_score
from torch import nn

from . import plots
from .docstrings import Docstrings
from .errors import DataError, ParameterError
from .hub import DATA, ENCODER, find_model
from .machine import Machine
from .measuring import ParameterCount, count_parameters, training_memory
from .models import positions_of, read_config
from .tasks import Task, label_of

MEASUREMENTS = DATA / "measurements"
TECHNIQUES = {  # as it is recorded, and as it is written on a figure
    "majority": "most frequent label",
    "tfidf": "counted words",
    "random_init": "random weights, frozen",
    "hard_prompt": "prompt in words",
    "feature_extraction": "frozen features",
    "partial_fine_tuning": "last blocks",
    "full_fine_tuning": "everything",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "prompt_tuning": "soft prompt",
    "prefix_tuning": "prefix tuning",
}
# Columns of the table: of which metric, on which split.
TOPICS = {"topics": ("accuracy", "test"), "shifted": ("accuracy", "test_shifted")}
DOCSTRINGS = {"form": ("form", "test"), "names": ("names", "test")}
STYLE = "google style"  # the house style that is shown, where more than one ran
FIELDS = (
    *("notebook", "technique", "variant", "settings", "backbone", "task", "task_fingerprint", "split", "seed"),
    *("metric", "value", "trainable_parameters", "total_parameters", "adapter_bytes", "train_seconds", "step_mib"),
    *("device", "versions"),
)
VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "scikit-learn")
STARTED = time.perf_counter()  # when the notebook imported `helpers`


@dataclass(frozen=True)
class Difference:
    """How far one run is ahead of another on the same texts, in points, with the paired standard error."""

    one: str
    other: str
    split: str
    points: float
    error: float

    @property
    def is_tie(self) -> bool:
        """Less than two standard errors: it may be luck."""
        return abs(self.points) < 2 * self.error or self.points == 0

    def __str__(self) -> str:
        about = f"{self.split}: {self.points:+.1f} points, standard error {self.error:.1f}"
        if self.is_tie:
            return f"{self.one} and {self.other} are tied ({about})"
        return f"{self.one} is {'ahead of' if self.points > 0 else 'behind'} {self.other} ({about})"


class Run:
    """One technique with one choice of settings: what is built and trained in its `with` block is measured.

    Attributes:
        model: set it in the block: a torch module, a fitted scikit-learn estimator, or a list of such.
        losses: set it in the block, if you like: the loss of each step.
        seconds: how long the block took.
        count: trained and total parameters; trained are also the numbers of an estimator.
        adapter_bytes: size of what was trained, in the type that it has.
        step_mib: memory of one training step of `board.step_loss`, as `training_memory` counts it; 0 without.
        marks: for each split, which answers are right by which rule, (texts,) each.
        scores: for each split, the percent that is right by the first rule: accuracy, or names.
    """

    def __init__(self, board: Scoreboard, about: dict[str, Any], task: Task | Docstrings) -> None:
        self.board, self.about, self.task = board, about, task
        self.model: Any = None
        self.losses: list[float] = []
        self.seconds, self.step_mib, self.adapter_bytes = 0.0, 0.0, 0
        self.count = ParameterCount(0, 0)
        self.scores: dict[str, float] = {}
        self.marks: dict[str, dict[str, np.ndarray]] = {}

    def __enter__(self) -> Run:
        torch.manual_seed(self.board.seed)
        self.started = time.perf_counter()
        return self

    def __exit__(self, failure: type | None, *_: object) -> None:
        if self.board.machine.device == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started
        if failure or self.model is None:
            return
        parts = self.model if isinstance(self.model, list | tuple) else [self.model]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self.count = count_parameters(*modules)
        self.adapter_bytes = sum(p.nbytes for m in modules for p in m.parameters() if p.requires_grad)
        for estimator in (part for part in parts if not isinstance(part, nn.Module)):
            learned = _learned(estimator)
            more = sum(array.size for array in learned)
            self.count = ParameterCount(self.count.trainable + more, self.count.total + more)
            self.adapter_bytes += sum(array.nbytes for array in learned)
        if self.board.step_loss and len(modules) == 1 and any(p.requires_grad for p in modules[0].parameters()):
            loss = self.board.step_loss
            self.step_mib = sum(training_memory(modules[0], lambda: loss(modules[0])).values())

    def __str__(self) -> str:
        told = [f"{self.about['variant']}: {self.count.trainable:,} trained"]
        told += [f"{self.seconds:.0f} s"] if self.losses else []
        for split, marks in self.marks.items():
            told += [f"{split} " + ", ".join(f"{rule} {100 * right.mean():.1f} %" for rule, right in marks.items())]
        return "; ".join(told)

    def score(self, split: str, predicted: Any) -> float:
        """Keep what the task's rules say of predicted labels, (texts,), of logits, (texts, labels), or of replies.

        Returns percent: accuracy of labels, or replies with the right names.
        """
        self.marks[split] = marks = self.task.judge(split, predicted)
        self.keep(split, **{rule: right.mean() for rule, right in marks.items()})
        if isinstance(self.task, Task):
            answers, targets = label_of(predicted), np.asarray(self.task.targets(split))
            self.keep(split, macro_f1=f1_score(targets, answers, average="macro"))
        self.scores[split] = 100 * float(next(iter(marks.values())).mean())
        return self.scores[split]

    def keep(self, split: str, **metrics: float) -> None:
        """Keep other metrics, as shares from 0 to 1, or in a unit that the name says.

        Raises:
            ParameterError: a value is not a finite number.
        """
        for metric, value in metrics.items():
            if not math.isfinite(value):
                raise ParameterError(f"{metric} of {self.about['technique']} is {value}: expected a finite number.")
            costs = {"trainable_parameters": self.count.trainable, "total_parameters": self.count.total}
            costs |= {"adapter_bytes": self.adapter_bytes, "train_seconds": round(self.seconds, 3)}
            costs |= {"step_mib": round(self.step_mib, 1)}
            found = {"split": split, "metric": metric, "value": round(float(value), 6)}
            self.board.records.append({**self.about, **found, **costs})

    def against(self, other: Run, split: str = "test", *, rule: str = "") -> Difference:
        """Compare with another run on the same texts, by the first rule or another; printed, a verdict in words."""
        one, two = (run.marks[split][rule or next(iter(run.marks[split]))] for run in (self, other))
        gain = 100 * (one.astype(float) - two)
        names = self.about["variant"], other.about["variant"]
        return Difference(*names, split, float(gain.mean()), float(gain.std(ddof=1) / math.sqrt(len(gain))))


class Scoreboard:
    """The books of one notebook.

    Args:
        notebook: its name, under which the records are written.
        task: what `load_task` returned.
        backbone, seed, machine, results_dir: as in the notebook's parameters. A relative `results_dir` lies
            in the repository, or in the working directory where there is none.
        numbers: the notebook's other numbers, under the names of its parameters; see `check_numbers`.

    Attributes:
        results: the folder for everything that the notebook writes.
        step_loss: a function of a model that returns the loss of one fixed batch; if it is set, the
            memory of a training step is counted for every run.
        records, notes: what was kept so far.

    Raises:
        ParameterError: a number with which the notebook cannot work.
    """

    def __init__(
        self,
        notebook: str,
        task: Task,
        *,
        backbone: str,
        seed: int,
        machine: Machine,
        results_dir: str = "results",
        **numbers: float,
    ) -> None:
        check_numbers(backbone, seed=seed, **numbers)
        self.notebook, self.task, self.backbone = notebook, task, backbone
        self.seed, self.machine = seed, machine
        self.results_dir = results_dir
        self.results = (DATA.parent if (DATA.parent / "notebooks").is_dir() else Path.cwd()) / results_dir
        self.step_loss: Callable[[nn.Module], torch.Tensor] | None = None
        self.records: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.versions = versions()

    def run(
        self,
        technique: str,
        label: str,
        *,
        task: Task | Docstrings | None = None,
        backbone: str | None = None,
        **settings: Any,
    ) -> Run:
        """A run to be measured in a `with` block; `label` names it in figures, `settings` become columns.

        `train_examples` and, with labels, `per_label`, the training texts used, are always among them.

        Raises:
            ParameterError: an unknown technique.
        """
        if technique not in TECHNIQUES:
            raise ParameterError(f"technique={technique!r}: expected one of {', '.join(TECHNIQUES)}.")
        task = task or self.task
        settings = {"train_examples": len(task.splits["train"])} | settings
        if isinstance(task, Task):
            settings.setdefault("per_label", round(settings["train_examples"] / len(task.labels)))
        about = {"notebook": self.notebook, "technique": technique, "variant": label, "settings": settings}
        counted = technique in ("majority", "tfidf")  # no model at all
        about |= {"backbone": backbone or ("none" if counted else self.backbone)}
        about |= {"task": task.name, "task_fingerprint": task.fingerprint, "seed": self.seed}
        return Run(self, about | {"device": self.machine.device, "versions": self.versions}, task)

    def note(self, name: str, value: Any) -> None:
        """Keep a number, a word or a list of such under a name, for the tests and the runner."""
        self.notes[name] = value

    def recorded(self, *, task: Task | Docstrings | None = None, **columns: Any) -> pd.DataFrame:
        """What `make measurements` recorded on a task, settings as columns; empty on your own data.

        Args:
            columns: and the value, or the list of values, that they must have.
        """
        task = task or self.task
        rows = expand(read_records(MEASUREMENTS))
        rows = rows[rows["backbone"].ne(ENCODER) | (self.backbone == ENCODER)]  # another encoder, another story
        # Docstrings of installed packages differ with the packages, a little; their name does not.
        of_task = {"task_fingerprint": task.fingerprint} if isinstance(task, Task) else {"task": task.name}
        rows = only(rows, of_task | columns)
        ours = rows["notebook"].eq(self.notebook)
        return rows[ours | ~rows["variant"].isin(rows.loc[ours, "variant"])]  # no namesakes of other notebooks

    def lines(
        self,
        *,
        x: str,
        series: str = "variant",
        split: str = "test",
        metric: str = "accuracy",
        task: Task | Docstrings | None = None,
        **fixed: Any,
    ) -> dict[str, dict[Any, list[float]]]:
        """Points of a figure: for each series, for each x, the values of all seeds, in percent.

        Args:
            x, series: columns: settings, "technique" or "variant".
            fixed: columns and the value, or the list of values, that they must have.

        What was recorded earlier stands beside what ran live, its names marked with "(recorded)".
        """
        found: dict[str, dict[Any, list[float]]] = {}
        live = expand(pd.DataFrame(self.records, columns=FIELDS))
        live = live[live["task"] == (task or self.task).name]
        fixed |= {"split": split, "metric": metric}
        for rows, mark in ((only(live, fixed), ""), (self.recorded(task=task, **fixed), " (recorded)")):
            if x in rows and series in rows:
                for (name, at), runs in rows.dropna(subset=[x, series]).groupby([series, x], sort=False):
                    name = TECHNIQUES.get(name, name) if series == "technique" else name
                    found.setdefault(f"{name}{mark}", {})[at] = (100 * runs["value"]).tolist()
        return {name: dict(sorted(points.items())) for name, points in found.items()}

    def table(self) -> pd.DataFrame:
        """The scoreboard: see `table_of`."""
        self.save(quiet=True)
        return table_of(self.results, fingerprint=self.task.fingerprint)

    def figure(self) -> Figure:
        """The scoreboard as a figure."""
        return plots.scoreboard(self.table())

    def recipe(self, config: str, **keys: Any) -> str:
        """Write numbers of the notebook, under its parameters' names, to recipes/<notebook>.yaml for `scale/train.py`.

        Returns the file's text, and the line that starts it with one of accelerate's configurations in scale/.
        """
        path = self.results / "recipes" / f"{self.notebook}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = {"name": self.notebook, "results_dir": self.results_dir, "seed": self.seed} | keys
        path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
        shown = path.relative_to(DATA.parent) if path.is_relative_to(DATA.parent) else path
        start = f"accelerate launch --config_file scale/{config}.yaml --num_processes 8 scale/train.py {shown}"
        return f"{path.read_text(encoding='utf-8')}\n{start}"

    def save(self, *, quiet: bool = False) -> None:
        """Write records and notes, each file in one step, so that a reader never sees half of one."""
        for kind, content in {"records": self.records, "notes": self.notes}.items():
            path = self.results / kind / f"{self.notebook}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".json.draft")
            draft.write_text(json.dumps(content, indent=1, default=lambda x: x.item()) + "\n", encoding="utf-8")
            os.replace(draft, path)
        if not quiet:
            seconds = time.perf_counter() - STARTED
            print(f"{len(self.records)} records kept; this notebook took {seconds:.0f} s so far.")


def check_numbers(backbone: str, **numbers: float) -> None:
    """Refuse, by its name, a number that cannot work: before anything is computed, and not in the middle.

    Names that end in `rate` are finite and above 0, all others whole: `seed` from 0, the rest from 1,
    `max_tokens` up to the positions of the backbone.

    Raises:
        ParameterError: names the number, its value and what was expected.
    """
    for name, value in numbers.items():
        if name.endswith("rate"):
            good, wanted = isinstance(value, int | float) and 0 < value < math.inf, "a finite number above 0"
        else:
            least = 0 if name == "seed" else 1
            most = positions_of(read_config(find_model(backbone)[0])) if name == "max_tokens" else None
            good = isinstance(value, int) and least <= value <= (most or value)
            wanted = f"a whole number from {least}" + f" to {most}" * bool(most)
        if not good or isinstance(value, bool):
            raise ParameterError(f"{name}={value!r}: expected {wanted}.")


def read_records(folder: str | Path) -> pd.DataFrame:
    """All records of the `*.json` files in a folder, one row each.

    Raises:
        DataError: a file is not JSON or a record lacks a field; names file and fault.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            lacking = [name for row in found for name in sorted({*FIELDS} - {**row}.keys())]
        except (ValueError, TypeError) as error:
            lacking = [error]
        if lacking:
            raise DataError(f"{path}: no list of records ({lacking[0]}). Delete the file and run its notebook again.")
        rows += found
    return pd.DataFrame(rows, columns=[*FIELDS, "command", "date", "hardware"])


def only(rows: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """The rows whose columns have the value given, or one of a list of values; none where a column is missing."""
    for name, value in columns.items():
        values = value if isinstance(value, list | tuple) else [value]
        rows = rows[rows[name].isin(values)] if name in rows else rows.iloc[:0]
    return rows


def expand(rows: pd.DataFrame) -> pd.DataFrame:
    """Records with their settings as columns."""
    settings = pd.DataFrame(
        rows["settings"].tolist(), index=rows.index, columns=None if len(rows) else ["train_examples"]
    )
    return rows.drop(columns="settings").join(settings[[c for c in settings if c not in rows]])


def table_of(
    results_dir: str | Path, *, fingerprint: str | None = None, train_examples: int | None = None
) -> pd.DataFrame:
    """The scoreboard: one row for each technique, on each task with its variant that is best on `validation`.

    Columns: `topics` and `shifted`, the accuracy on `test` and `test_shifted`; `form` and `names`, the
    docstrings of `test` that are right by these rules; all four in percent, means over seeds. `trained`
    is how many numbers were, `variant` what is shown: of topics / of docstrings, where they differ.

    What ran live goes before what was recorded, and that is marked. Only topic runs with the same number
    of training texts stand beside each other: the largest that ran live. Docstrings are those that
    ran live, in Google style if both did.

    Args:
        results_dir: where the notebooks wrote their records.
        fingerprint: of the topics; by default that of the first record found.
        train_examples: topic runs with this many training texts; by default the most that ran live.
    """
    both = expand(read_records(Path(results_dir) / "records")), expand(read_records(MEASUREMENTS))
    topics = [rows[rows["metric"].eq("accuracy")] for rows in both]
    if fingerprint is None:
        fingerprint = next((found for rows in topics for found in rows["task_fingerprint"]), None)
    topics = [rows[rows["task_fingerprint"].eq(fingerprint)] for rows in topics]
    texts = train_examples or next((rows["train_examples"].max() for rows in topics if len(rows)), 0)
    topics = [rows[rows["train_examples"].eq(texts)] for rows in topics]
    docstrings = [rows[rows["metric"].isin(["form", "names"])] for rows in both]
    # What was trained elsewhere, and merged or rounded, is no technique of its own.
    docstrings = [rows[rows["technique"].eq("hard_prompt") | rows["trainable_parameters"].gt(0)] for rows in docstrings]
    tasks = sorted(docstrings[0]["task"].unique(), key=lambda name: not name.endswith(STYLE))
    shown = next(iter(tasks), f"docstrings, {STYLE}")  # docstrings of your own code are another task
    docstrings = [rows[rows["task"].eq(shown)] for rows in docstrings]
    found = _chosen(*topics, TOPICS), _chosen(*docstrings, DOCSTRINGS)
    rows = {}
    for technique, name in TECHNIQUES.items():
        parts = [of_task[technique] for of_task in found if technique in of_task]
        rows[name] = {column: value for part in parts for column, value in part.items()}
        for column in ("trained", "variant"):
            rows[name][column] = " / ".join(dict.fromkeys(part[column] for part in parts))
        rows[name]["variant"] = rows[name]["variant"] or "not run"
    table = pd.DataFrame(rows, index=[*TOPICS, *DOCSTRINGS, "trained", "variant"]).T
    return table.where(table.notna(), "")


def _chosen(live: pd.DataFrame, past: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """For each technique, the cells of one task: of its variant that is best on validation of those judged on test."""
    if len(live):
        past = past[past["backbone"].isin({*live["backbone"], "none"})]  # another model is another board
    judged: dict[Any, float] = {}
    which = ["notebook", "variant"]  # two notebooks may give one name to other settings
    for rows in (past, live):  # a value of today replaces the recorded one
        judged |= rows[rows["split"] == "validation"].groupby(["technique", *which])["value"].mean().to_dict()
    found = {}
    for rows, mark in ((past, " (recorded)"), (live, "")):
        for technique, runs in rows.groupby("technique"):
            variants = dict(list(runs.groupby(which)))
            tested = [name for name, some in variants.items() if some["split"].eq("test").any()]
            if not tested:
                continue
            best = max(tested, key=lambda name: judged.get((technique, *name), -1.0))
            runs = variants[best]
            means = 100 * runs.groupby(["metric", "split"])["value"].mean()
            cells = {column: round(means[key], 1) for column, key in columns.items() if key in means}
            trained = plots.short(int(runs["trainable_parameters"].max()))
            found[technique] = cells | {"trained": trained, "variant": f"{best[1]}{mark}"}
    return found


def _learned(estimator: Any) -> Sequence[np.ndarray]:
    """Weights and biases of a fitted linear model, also at the end of a pipeline."""
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return [getattr(estimator, name) for name in ("coef_", "intercept_") if hasattr(estimator, name)]


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()} | dict.fromkeys(VERSIONED, "absent")
    for package in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
