"""Writes benchmarks/measured.json, and from it docs/speed.md and docs/growth.png: `make bench ARGS=--record`."""

import json

import numpy as np
import pandas as pd

import benchmarks
from benchmarks import ROOT
from tools.measure import write_rows
from tools.results import markdown

NOISE = 2  # points of accuracy (a standard error on the 480 questions of test), or percent of perplexity
COLUMNS = ["row", "beside", "times as fast", "seconds", "quality", "MiB", "pairs", "remarks"]
LIMITS = ["row", "limit", "at the limit, s", "ours, s", "share, %", "where it goes, %"]
PAGE = """\
# Speed

Recorded by `make bench`, {date}, on {hardware}. Each measurement is a process of its own, ours and
theirs by turns, on all cores, with `OMP_WAIT_POLICY=PASSIVE`. Ours are the cells of the notebooks; theirs run in an
environment of their own, with the same versions, on the same texts, with as many steps. Ours stands before the slash,
theirs behind it. Seconds are medians, from the texts to the trained model or to the answers, without imports. Times as
fast: theirs over ours, with the smallest and largest of the pairs. Memory is the peak of the process meanwhile, in
brackets how much was added: before it, ours has imported what a notebook imports.{elsewhere}

What is trained by theirs has two learning rates by turns, the usual one of the library or paper and ten times that. The
quality is that of `test` at the rate that is better on `validation`, and of ours in the same pairs. More or less
accurate: by more than {noise} points of accuracy or {noise} % of perplexity.

## Where ours is slower, less accurate, or takes more memory

{behind}
## Where it is not

{ahead}
## The limit

Matrix products: the seconds that all of a row would take at the rate of a large one, in the type in which ours are
computed; of QLoRA, bitsandbytes' own are not counted. The profile has torch's names, and slows Python. Memory: reading
weights and cache in each step. Alone: LoRA on docstrings by itself, and then beside one process that never rests.

{limits}
## How cost grows

![Six panels, each cost as a multiple of its smallest; exponents (1: in proportion): {powers}](growth.png)

Steeper than in proportion, by an exponent above 1.2: {steep}.
"""


def spread(values):
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


def quality(both):
    """How good ours is and theirs, and how far ahead ours is: points of accuracy, or percent of perplexity."""
    name = both["measure"].iloc[0]
    if name == "answers":
        same = [np.mean(np.equal(*pair)) for pair in both[["answers", "answers_theirs"]].to_numpy()]
        return f"{100 * np.mean(same):.0f} % the same answers", 0.0
    by_rate = both.fillna({"rate_theirs": 0}).groupby("rate_theirs").mean(numeric_only=True)
    by_rate = by_rate.sort_values("validation_theirs", ascending=name == "perplexity")
    rate, ours, theirs = by_rate.index[0], *by_rate[["test", "test_theirs"]].iloc[0]
    told = f"{name} {ours:.1f} / {theirs:.1f}" + f" (rate {rate:g})" * bool(rate)
    return told, ours - theirs if name == "accuracy" else 100 * (theirs / ours - 1)


def peers(runs):
    """Two tables of the rows with their peers: where ours is behind in something, and the others."""
    rows, (ours, theirs) = {True: [], False: []}, (runs[runs["module"] == module] for module in ("ours", "peers"))
    pairs = ours.merge(theirs, on=["row", "pair"], suffixes=("", "_theirs"))
    for (row, peer), both in pairs.groupby(["row", "side_theirs"], sort=False):
        ratios, cost = both["seconds_theirs"] / both["seconds"], both.median(numeric_only=True)
        told, ahead = quality(both)
        row += " †" * bool(both["elsewhere"].any())
        marks = {"slower": ratios.median() < 1, "less accurate": ahead < -NOISE}
        marks["more memory"] = cost["peak_mib"] > cost["peak_mib_theirs"]
        behind = any(marks.values())
        marks["theirs is less accurate: no ratio at equal accuracy"] = ahead > NOISE
        remarks = ", ".join(name for name, is_true in marks.items() if is_true)
        seconds, sizes = [], []
        for side in ("", "_theirs"):
            seconds.append(f"{cost[f'seconds{side}']:.1f}")
            sizes.append(f"{cost[f'peak_mib{side}']:,.0f} ({cost[f'added_mib{side}']:+,.0f})")
        costs = [spread(ratios), " / ".join(seconds), told, " / ".join(sizes)]
        rows[behind].append([row, peer, *costs, len(both), remarks])
    return [markdown(COLUMNS, some) if some else "No row.\n" for some in rows.values()]


def limits(runs):
    """What is the least, ours, and our share of that speed."""
    rows = []
    for (row, limit), some in runs.dropna(subset="least").groupby(["row", "side"], sort=False):
        row += " †" * bool(some["elsewhere"].any())
        medians = [f"{some[name].median():.2f}" for name in ("least", "seconds")]
        rows.append([row, limit, *medians, spread(100 * some["least"] / some["seconds"]), some["told"].iloc[0]])
    return markdown(LIMITS, rows)


def draw(runs, path):
    """One panel for each cause; each cost as a multiple of its smallest, beside a line of slope 1."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for ax, one in zip(axes.flat, runs[runs["row"] == "growth"].itertuples()):
        for (cost, points), look in zip(one.growth.items(), ("o-", "s--", "^-.")):
            xs, ys = np.array(points).T
            ax.loglog(xs, ys / ys[0], look, label=cost)
        ax.loglog(xs, xs / xs[0], ":", color="black", label="in proportion")
        ax.set(xlabel={"width": "million parameters"}.get(one.side, one.side), ylabel="times the smallest")
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def page(recorded):
    """The text of docs/speed.md."""
    runs = pd.DataFrame(recorded)
    place = runs["hardware"] + ", " + runs["date"]
    most, *others = place.value_counts().index
    runs["elsewhere"] = place != most
    hardware, date = most.rsplit(", ", 1)
    elsewhere = f" †: measured on {'; '.join(others)}." if others else ""
    grown = {f"{cost} by {one.side}": points for one in runs[runs["row"] == "growth"].itertuples()
             for cost, points in one.growth.items()}  # fmt: skip
    powers = {name: np.polyfit(*np.log(points).T, 1)[0] for name, points in grown.items()}
    told, steep = (", ".join(f"{k} {p:.2f}" for k, p in powers.items() if p > least) for least in (-9, 1.2))
    behind, ahead = peers(runs)
    found = {"behind": behind, "ahead": ahead, "limits": limits(runs), "noise": NOISE}
    found |= {"hardware": hardware, "date": date, "elsewhere": elsewhere}
    return PAGE.format(**found, powers=told, steep=steep or "nothing")


def record():
    """Take what is finished to benchmarks/measured.json, and write the page and the figure."""
    lines = (benchmarks.FOLDER / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    recorded = [*map(json.loads, lines)]
    write_rows(ROOT / "benchmarks" / "measured.json", recorded)
    (ROOT / "docs" / "speed.md").write_text(page(recorded), encoding="utf-8", newline="\n")
    draw(pd.DataFrame(recorded), ROOT / "docs" / "growth.png")
