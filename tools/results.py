"""Writes docs/results.md and docs/scoreboard.png from what is recorded: `make results`.

After a `make run` of all notebooks it records what that shows first, in docs/run.json: minutes, and six docstrings.
"""

import datetime
import json
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from matplotlib.figure import Figure

from tools.measure import NOTEBOOKS, ROOT, hardware
from tools.run import seconds_of

PAGE = ROOT / "docs" / "results.md"
PICTURE = PAGE.parent / "scoreboard.png"
RUN_OF_ALL = PAGE.parent / "run.json"
HEAD = """\
# Results

Written by `make results`, never by hand: what `make measurements` and `make test-platforms` recorded. A value is the
mean ± standard deviation over the seeds. One standard error of an accuracy on the 480 questions of `test` is about two
points, and three on the 240 of `test_shifted`: neighbours are ties. A dash: not measured.
"""
RUN = ["technique", "variant", "training examples"]
SCORES = [*RUN, "test, %", "test_shifted, %", "trained parameters", "step, MiB", "seconds", "seeds"]
OTHERS = [*RUN, "metric", "split", "value", "seeds"]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; what is missing is a dash."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [["-" if pd.isna(cell) else str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def spread(values: pd.Series, shape: str) -> str | None:
    """Mean ± standard deviation, or the value alone if it is one."""
    values = values.dropna()
    if values.empty:
        return None
    return f"{values.mean():{shape}}" + (f" ± {values.std():{shape}}" if len(values) > 1 else "")


def of_notebook(rows: list[dict[str, Any]]) -> str:
    """The tables of one notebook: accuracies with what they cost, then all other metrics."""
    frame = pd.DataFrame(rows).assign(examples=[row["settings"]["train_examples"] for row in rows])
    scores, others = [], []
    for (*run, _, _), runs in frame.groupby(
        ["technique", "variant", "examples", "backbone", "task"], sort=False, dropna=False
    ):
        accuracy = runs[(runs["metric"] == "accuracy") & runs["split"].isin(["test", "test_shifted"])]
        if len(accuracy):
            percent = (spread(100 * accuracy["value"][accuracy["split"] == s], ".1f") for s in ("test", "test_shifted"))
            trained = f"{accuracy['trainable_parameters'].max():,}"
            costs = (spread(accuracy[name], ".0f") for name in ("step_mib", "train_seconds"))
            scores.append([*run, *percent, trained, *costs, accuracy["seed"].nunique()])
        # Macro-F1 follows accuracy on these balanced topics; on validation only sweeps are judged.
        hidden = ["macro_f1"] if accuracy.empty else ["macro_f1", "accuracy"]
        for (metric, split), other in runs[~runs["metric"].isin(hidden)].groupby(["metric", "split"], sort=False):
            others.append([*run, metric, split, spread(other["value"], ".3g"), other["seed"].nunique()])
    about = frame[["command", "date", "hardware"]].drop_duplicates().to_numpy()
    recorded = "; ".join(f"`{command}`, {date}, on {hardware}" for command, date, hardware in about)
    others = f"\nOther metrics, as shares from 0 to 1, losses in nats:\n\n{markdown(OTHERS, others)}" if others else ""
    return f"Recorded by {recorded}.\n\n{markdown(SCORES, scores)}{others}"


def page(folder: Path = ROOT / "data" / "measurements", platforms: Path = ROOT / "platforms" / "results.json") -> str:
    """The text of docs/results.md."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        parts.append(f"## {path.stem}\n\n{of_notebook(json.loads(path.read_text(encoding='utf-8')))}")
    parts.append(before_and_after(**json.loads(RUN_OF_ALL.read_text(encoding="utf-8"))["docstrings"]))
    rows = pd.DataFrame(json.loads(platforms.read_text(encoding="utf-8")))
    return "\n".join([*parts, "## Platforms\n", markdown(list(rows.columns), rows.to_numpy())])


def before_and_after(six: list[list[str]], date: str, hardware: str) -> str:
    """Six functions of the test, the first in an order by hash, with what the model wrote before and after LoRA."""
    told = f"Six functions of notebook 2, the first of its test, not chosen; seed 0, {date}, on {hardware}.\n"
    texts = [f"{name}\n\n  before  {_below(before)}\n\n  after   {_below(after)}" for name, before, after in six]
    return "\n".join(["## Docstrings before and after LoRA\n", told, "~~~text", "\n\n".join(texts), "~~~\n"])


def _below(text: str) -> str:
    return textwrap.indent(text, " " * 10).strip()  # blank lines stay empty


def run_of_all(results: Path) -> dict[str, Any]:
    """What docs/run.json keeps of a `make run`: seconds of each notebook's cells, and six docstrings."""
    executed = {name: nbformat.read(results / "executed" / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}
    seconds = {name: round(sum(map(seconds_of, notebook.cells))) for name, notebook in executed.items()}
    six = json.loads((results / "notes" / "02_lora.json").read_text(encoding="utf-8"))["six"]
    about = {"date": f"{datetime.date.today()}", "hardware": hardware()}
    return {"minutes": {"seconds": seconds, **about}, "docstrings": {"six": six, **about}}


def picture() -> Figure:
    """The scoreboard of what is recorded, with 32 questions a topic: the same wherever it is drawn."""
    from helpers import plots, scoreboard

    with tempfile.TemporaryDirectory() as no_run:
        table = scoreboard.table_of(no_run, train_examples=384)
    table["variant"] = table["variant"].str.replace(" (recorded)", "", regex=False)  # all of it, so nothing is marked
    return plots.scoreboard(table)


if __name__ == "__main__":
    if all((ROOT / "results" / "executed" / f"{name}.ipynb").exists() for name in NOTEBOOKS):
        RUN_OF_ALL.write_text(json.dumps(run_of_all(ROOT / "results"), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    picture().savefig(PICTURE, dpi=90)
