"""Writes docs/speed.md and docs/growth.png from benchmarks/measured.json: `python -m benchmarks.page`."""

import json
from statistics import mean, median

import numpy as np

from benchmarks import ROOT
from tools.results import markdown

HEAD = """\
# Speed

Written by `make bench ARGS=--record`, never by hand. Each measurement is a process of its own, ours and theirs by
turns, on all cores, with `OMP_WAIT_POLICY=PASSIVE`. Ours are the cells of the notebooks; theirs run in an environment
of their own, with the same versions, on the same texts, with as many steps. Seconds are medians, from the texts to the
trained model or to the answers, without imports and scoring. Of a ratio, theirs over ours, the median and the smallest
and largest of the pairs are given: above 1, ours is faster. Memory is the peak of the process meanwhile, in brackets
how much of that was added: before it, ours has imported what a notebook imports.
"""
LIMIT = """\
Operations are those of the matrix products, and the rate is that of a large product in the type that most of them have;
the products alone are repeated in their own shapes. What bitsandbytes multiplies by itself, QLoRA's forward pass, is in
neither. The last column is a profile, which slows Python.
"""
NOISE = 2  # points: a standard error on the 480 questions of test
AXES = {"texts": "texts", "labels": "labels", "tokens": "tokens a text", "rank": "rank of LoRA"}
AXES |= {"prompt": "vectors of a soft prompt", "width": "million parameters"}
COLUMNS = ["row", "beside", "ours, s", "theirs, s", "times as fast", "quality", "ours, MiB", "theirs, MiB", "pairs"]
LIMITS = ["row", "10⁹ operations", "10⁹ a second", "ours, s", "at that rate, s", "products alone, s"]
LIMITS += ["share of the rate, %", "share of the products, %", "where it goes, %"]


def pairs(measured, row, peer):
    """What ours and a peer found in each pair that has both."""
    found = {(m["who"]["side"], m["who"]["pair"]): m["found"] for m in measured if m["who"]["row"] == row}
    return [(f, found[peer, pair]) for (side, pair), f in found.items() if side == "ours" and (peer, pair) in found]


def compare(both):
    """Median seconds and memory of both sides, the ratios of the seconds, and how good both are."""
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in both]
    sides = [
        {key: median(one[key] for one in side) for key in ("seconds", "peak_mib", "added_mib")} for side in zip(*both)
    ]
    if "answers" in both[0][0]:
        same = [a == b for ours, theirs in both for a, b in zip(ours["answers"], theirs["answers"])]
        return sides, ratios, f"{100 * mean(same):.0f} % the same"
    rules = [name for name in ("test", "test_shifted", "perplexity") if name in both[0][0]]
    quality = [", ".join(f"{mean(one[rule] for one in side):.1f}" for rule in rules) for side in zip(*both)]
    return sides, ratios, f"{' and '.join(rules)}: {quality[0]} against {quality[1]}"


def peers(measured):
    """The rows with their peers, in order, and a list of what is said first: where ours is not ahead."""
    rows, behind = [], []
    names = {(m["who"]["row"], m["who"]["side"]): None for m in measured if "peak_mib" in m["found"]}
    for row, peer in names:
        both = pairs(measured, row, peer)
        if peer in ("ours", "limit") or not both:
            continue
        (ours, theirs), ratios, quality = compare(both)
        if median(ratios) < 1:
            behind.append(f"{row}, beside {peer}: {1 / median(ratios):.2f} times the seconds.")
        if ours["peak_mib"] > theirs["peak_mib"]:
            more, added = (ours[key] - theirs[key] for key in ("peak_mib", "added_mib"))
            behind.append(f"{row}, beside {peer}: {more:.0f} MiB more memory, {added:+.0f} of it by what is measured.")
        lost = [mean(two[rule] - one[rule] for one, two in both) for rule in ("test",) if rule in both[0][0]]
        behind += [f"{row}, beside {peer}: {points:.1f} points less on test." for points in lost if points > NOISE]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        seconds = [f"{side['seconds']:.1f}" for side in (ours, theirs)]
        sizes = [f"{side['peak_mib']:,.0f} ({side['added_mib']:+,.0f})" for side in (ours, theirs)]
        rows.append([row, peer, *seconds, spread, quality, *sizes, len(both)])
    return rows, behind


def limits(measured):
    """For each technique the seconds of its matrix products alone, our share of that speed, and where the rest goes."""
    rows = []
    for one in (m["found"] | {"row": m["who"]["row"]} for m in measured if "operations" in m["found"]):
        rate = one["rates"][max(one["types"], key=one["types"].get)]
        whole = sum(one["profile"].values())
        parts = sorted(one["profile"].items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {100 * seconds / whole:.0f}" for name, seconds in parts if seconds > 0.01 * whole)
        ideal = one["operations"] / rate
        costs = [f"{value:.2f}" for value in (one["seconds"], ideal, one["products_seconds"])]
        shares = [f"{100 * value / one['seconds']:.0f}" for value in (ideal, one["products_seconds"])]
        rows.append([one["row"], f"{one['operations'] / 1e9:,.0f}", f"{rate / 1e9:,.0f}", *costs, *shares, told])
    return rows


def reading(measured):
    """Of generation: the bytes that its steps must read, against the memory's speed."""
    for one in (m["found"] for m in measured if "bytes_a_second" in m["found"]):
        weights, cache, speed = (one[name] for name in ("weights_bytes", "cache_bytes", "bytes_a_second"))
        least = one["steps"] * (weights + cache) / speed
        return (
            f"Generation: {one['tokens']:,} tokens in {one['steps']} steps and {one['seconds']:.1f} s. A step reads "
            f"{weights / 1e6:.0f} MB of weights and about {cache / 1e6:.0f} MB of cache; at {speed / 1e9:.1f} GB/s all "
            f"steps would take {least:.1f} s, {100 * least / one['seconds']:.0f} % of ours.\n"
        )
    return "Generation: not measured.\n"


def busy(measured):
    """For each OMP_WAIT_POLICY the seconds alone and beside a busy process."""
    runs, rows = [m for m in measured if m["who"]["row"] == "a busy machine"], []
    for policy in dict.fromkeys(m["who"]["side"] for m in runs):
        found = [m["found"] for m in runs if m["who"]["side"] == policy]
        left = [100 * one["alone"] / one["seconds"] for one in found]
        times = [f"{median(one[key] for one in found):.1f}" for key in ("alone", "seconds")]
        rows.append([policy, *times, f"{median(left):.0f} ({min(left):.0f} to {max(left):.0f})", len(found)])
    return rows


def growth(measured):
    """{cause: {cost: points}}."""
    return {m["who"]["side"]: m["found"]["growth"] for m in measured if m["who"]["row"] == "growth"}


def slope(points):
    """The exponent of a cost: 1 is in proportion."""
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def draw(grown, path):
    """One panel for each cause; each cost as a multiple of its smallest, beside a line of slope 1."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for ax, (name, costs) in zip(axes.flat, grown.items()):
        ends = [point[0] for points in costs.values() for point in points]
        for (cost, points), marker, color in zip(costs.items(), "os^v", ("#0072B2", "#D55E00", "#009E73", "#CC79A7")):
            xs, ys = zip(*points)
            ax.loglog(xs, [y / ys[0] for y in ys], marker=marker, color=color, label=cost)
        ax.loglog([min(ends), max(ends)], [1, max(ends) / min(ends)], ":", color="black", label="in proportion")
        ax.set(xlabel=AXES[name], ylabel="times the smallest")
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def page(recorded):
    """The text of docs/speed.md."""
    about, *measured = recorded
    rows, behind = peers(measured)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    powers = {f"{cost} by {AXES[cause]}": slope(points) for cause, costs in growth(measured).items()
              for cost, points in costs.items()}  # fmt: skip
    told = "; ".join(f"{name}, {power:.2f}" for name, power in powers.items())
    steep = "; ".join(f"{name}, {power:.2f}" for name, power in powers.items() if power > 1.2)
    parts = [
        HEAD,
        f"Recorded by `{about['command']}`, {about['date']}, on {about['hardware']}; {versions}.\n",
        "## Where ours is slower, less accurate, or takes more memory\n",
        "".join(f"- {line}\n" for line in behind) or "In no row.\n",
        "## Beside what people run instead\n",
        markdown(COLUMNS, rows),
        "## The limit\n",
        LIMIT,
        markdown(LIMITS, limits(measured)),
        reading(measured),
        "## A busy machine\n",
        "Steps of LoRA on docstrings, alone and beside one process that never rests.\n",
        markdown(["OMP_WAIT_POLICY", "alone, s", "busy, s", "speed left, %", "pairs"], busy(measured)),
        "## How cost grows\n",
        f"![Six panels, each cost as a multiple of its smallest; exponents (1: in proportion): {told}](growth.png)\n",
        f"Steeper than in proportion, by an exponent above 1.2: {steep or 'nothing'}.\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    recorded = json.loads((ROOT / "benchmarks" / "measured.json").read_text(encoding="utf-8"))
    (ROOT / "docs" / "speed.md").write_text(page(recorded), encoding="utf-8", newline="\n")
    draw(growth(recorded[1:]), ROOT / "docs" / "growth.png")
