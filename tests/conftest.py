"""Executes the notebooks strictly, two at a time, each on half of the cores; a test asks for the run it needs."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from docstrings import SITE_PACKAGES, write_csv

from tools.new_notebook import TEMPLATE
from tools.run import notebooks_of, run_notebook

PATHS = {path.stem: path for path in notebooks_of()}
NAMES = list(PATHS)
PATHS |= {TEMPLATE.stem: TEMPLATE}  # what `make notebook` starts from passes for a notebook too
LONG = bool(os.environ.get("LONG"))  # what takes minutes more, by LONG=1 make test
AT_A_TIME = 2  # one notebook alone leaves half of two cores idle most of the time
# Five families of each kind that people use most (our judgement: no hub is in reach); tests/tiny.py makes small ones.
POPULAR = [
    ("roberta", "gpt2"),
    ("distilbert", "llama 3"),
    ("mpnet", "qwen2, qwen2.5"),
    ("xlm-roberta", "qwen3"),
    ("bert without pooler", "gemma3, text"),
]
OWN_FILE = (300, 6, 1)  # rows, labels, and the depth of module names that are the labels
SHORT = {"train_examples": 24, "fine_tuning_steps": 2, "max_tokens": 32}
OWN_CODE = {"train_examples": 24, "steps": 2, "code": str(SITE_PACKAGES / "rich")}
# Every run that the tests look at: the notebook, its parameters, a reader's own file, and own models.
FIRST, SECOND, THIRD, FOURTH, *MORE = NAMES
RUNS = {name: (name, {}, None, None) for name in NAMES}
RUNS |= {
    "own_first": (FIRST, SHORT | {"train_examples": 154}, (2_000, 77, 3), None),
    "own_second": (SECOND, OWN_CODE, OWN_FILE, POPULAR[0]),
    "own_third": (THIRD, OWN_CODE, OWN_FILE, POPULAR[1]),
    "own_fourth": (FOURTH, OWN_CODE, OWN_FILE, POPULAR[2]),
}
# What every notebook can do; those of the four are longer.
OWN_FILE_ALONE = {f"own {name}": (name, {"train_examples": 24}, OWN_FILE, None) for name in (*MORE, TEMPLATE.stem)}
EVERY_PAIR = {
    f"{name}, {' and '.join(pair)}": (name, SHORT if name == FIRST else OWN_CODE, OWN_FILE, pair)
    for pair in POPULAR
    for name in (FIRST, SECOND, THIRD, FOURTH)
}
RUNS |= OWN_FILE_ALONE | EVERY_PAIR
FIXTURES = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH, "own_first": "own_first"}
# Seconds of one matrix product, on one thread as the notebooks have it here: what a notebook's seconds are held to.
REFERENCE = """
import time, torch
torch.set_num_threads(1)
matrix, seconds = torch.ones(1024, 1024), []
for _ in range(20):
    began = time.perf_counter()
    matrix @ matrix
    seconds.append(time.perf_counter() - began)
print(sorted(seconds)[10])
"""
# As on a reader's machine, and made here so that no scanner finds a secret in the repository: a test looks for it in
# all that a run leaves.
os.environ |= dict.fromkeys(("HF_TOKEN", "KAGGLE_KEY", "WANDB_API_KEY"), "hf_" + "Planted" * 5)


class Executed:
    """An executed notebook: its records, and the notes that it left for tests."""

    def __init__(self, name: str, folder: Path) -> None:
        notebook, parameters, own, models = RUNS[name]
        if own:
            rows, labels, depth = own
            write_csv(folder / "own.csv", rows=rows, labels=labels, depth=depth)
            parameters = parameters | {"task": str(folder / "own.csv")}
        for parameter, model in zip(("encoder", "language_model")[: 1 + (notebook != FIRST)], models or ()):
            parameters = parameters | {parameter: str(tiny.made(model, folder / parameter))}
        self.result = run_notebook(
            PATHS[notebook],
            output_dir=folder / "executed",
            results_dir=folder,
            parameters=parameters,
            environment={"OMP_NUM_THREADS": str(max(1, os.cpu_count() // AT_A_TIME))},
        )
        self.folder = folder
        self.records = json.loads(self.result.records.read_text(encoding="utf-8"))
        self.notes = json.loads((folder / "notes" / f"{notebook}.json").read_text(encoding="utf-8"))

    def effort(self):
        """How many reference products, measured now, would have taken as long: slow machines get more seconds."""
        command = [sys.executable, "-c", REFERENCE]
        return self.result.seconds / float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def value(self, technique, split="test", metric="accuracy", **columns):
        """The one record that fits; `columns` are `variant`, or settings."""
        found = [
            record["value"]
            for record in self.records
            if (record["technique"], record["split"], record["metric"]) == (technique, split, metric)
            and columns.items() <= (record["settings"] | {"variant": record["variant"]}).items()
        ]
        assert len(found) == 1, f"{technique}, {split}, {metric}, {columns}: {len(found)} records"
        return found[0]


@pytest.fixture(scope="session")
def started(request, tmp_path_factory):
    """The runs that the chosen tests need, started at once in the order of RUNS."""
    items = request.session.items
    fixtures = {name for item in items for name in item.fixturenames}
    asked = {FIXTURES.get(name) for name in fixtures} | {*(NAMES if "every" in fixtures else ())}
    asked |= {item.callspec.params.get("run") for item in items if hasattr(item, "callspec")}
    asked -= set() if LONG else set(EVERY_PAIR)  # their tests are skipped
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {name: pool.submit(Executed, name, tmp_path_factory.mktemp(name)) for name in RUNS if name in asked}
        pool.shutdown(cancel_futures=True)


def _fixture(name):
    return pytest.fixture(scope="session", name=name)(lambda started: started[FIXTURES[name]].result())


first, second, third, fourth, own_first = map(_fixture, FIXTURES)


@pytest.fixture(scope="session")
def every(started):
    return [started[name].result() for name in NAMES]


@pytest.fixture(scope="session")
def recorded():
    """Mean percent over the three recorded seeds of what has these columns, on `test` if no other split is named."""
    from helpers.scoreboard import MEASUREMENTS, expand, only, read_records

    rows = expand(read_records(MEASUREMENTS))

    def mean(notebook, metric="form", split="test", **columns):
        found = only(rows, {"notebook": notebook, "metric": metric, "split": split, **columns})
        assert sorted(found["seed"]) == [0, 1, 2], (metric, split, columns, len(found))
        return 100 * found["value"].mean()

    return mean


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    chromium = shutil.which("chromium") or pytest.skip("no Chromium here: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -r docs/requirements.txt")
    with driver.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # it refuses root with one
