"""Writes docs/results.md from what was recorded, and docs/scoreboard.png from the last `make run`: `make results`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
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
    rows = pd.DataFrame(json.loads(platforms.read_text(encoding="utf-8")))
    return "\n".join([*parts, "## Platforms\n", markdown(list(rows.columns), rows.to_numpy())])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    if (ROOT / "results" / "records").is_dir():
        from helpers import plots, scoreboard

        picture = plots.scoreboard(scoreboard.table_of(ROOT / "results"))
        picture.savefig(PAGE.parent / "scoreboard.png", dpi=90)
