"""Figures: one style, colour-blind safe, told apart by marker and line as well as by colour.

Every function takes `ax=None` and returns the Axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from .memory import MemoryBill

# Okabe and Ito (2008), "Color Universal Design".
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d")
HATCHES = ("", "//", "..", "xx", "\\\\")
LINES = ("-", "--", "-.", ":")


def _axes(ax: Axes | None, size: tuple[float, float] = (7.0, 4.0)) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_lines(
    series: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw one line a series through the means, with a band of one standard deviation.

    Args:
        series: for each name, for each x, the values of the repetitions (one or more).
    """
    ax = _axes(ax)
    for number, (name, points) in enumerate(series.items()):
        x = np.array(list(points), dtype=float)
        mean = np.array([np.mean(values) for values in points.values()])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()])
        colour = COLOURS[number % len(COLOURS)]
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)]}
        ax.plot(x, mean, color=colour, label=name, **style)
        ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    if log_x:
        ax.set_xscale("log", base=2)
    ticks = sorted({x for points in series.values() for x in points})
    if len(ticks) <= 12:
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.grid(alpha=0.3)
    if len(series) > 1:
        ax.legend(frameon=False)
    return ax


def plot_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw horizontal points, one row a name and one marker a group, with a bar of one standard deviation.

    Args:
        scores: for each name (row), for each group such as a split, the values of the repetitions.
    """
    ax = _axes(ax, (7.0, 0.45 * len(scores) + 1.4))
    groups = list(dict.fromkeys(group for row in scores.values() for group in row))
    for number, group in enumerate(groups):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        first = next(position for position, row in enumerate(scores.values()) if group in row)
        for position, row in enumerate(scores.values()):
            if group in row:
                mean = float(np.mean(row[group]))
                spread = float(np.std(row[group], ddof=1)) if len(row[group]) > 1 else 0.0
                ax.errorbar(
                    mean,
                    position + 0.12 * (number - (len(groups) - 1) / 2),
                    xerr=spread,
                    color=colour,
                    marker=marker,
                    linestyle="none",
                    label=group if position == first else None,
                )
                ax.annotate(
                    f"{mean:.1f}",
                    (mean, position),
                    textcoords="offset points",
                    xytext=(0, 8 - 25 * number),
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set_ylim(len(scores) - 0.4, -0.6)
    ax.set(xlabel=xlabel, title=title)
    ax.grid(axis="x", alpha=0.3)
    if len(groups) > 1:
        ax.legend(frameon=False, loc="best")
    return ax


def plot_levels(
    values: np.ndarray, levels: Mapping[str, np.ndarray], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw a histogram of scaled weights, and below it one row of marks a data type: the values it can hold.

    Args:
        values: weights divided by the scale of their block, from -1 to 1.
        levels: the values of each type.
    """
    ax = _axes(ax)
    density, _, _ = ax.hist(values, bins=100, range=(-1, 1), density=True, color="#CCCCCC")
    step = 0.12 * density.max()
    for number, (name, of_type) in enumerate(levels.items()):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        ax.plot(of_type, np.full(len(of_type), -step * (number + 1)), label=name, **style)
    ax.set_yticks([])
    ax.set(xlabel="weight / scale of its block", ylabel="density", title=title)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def plot_parts(
    parts: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw one stacked horizontal bar a name, with the sum at its end.

    Args:
        parts: for each name, the size of each part; all names have the same parts.
    """
    ax = _axes(ax, (7.5, 0.5 * len(parts) + 1.4))
    sums = np.zeros(len(parts))
    for number, part in enumerate(next(iter(parts.values()))):
        sizes = np.array([of_name[part] for of_name in parts.values()])
        style = {"color": COLOURS[number % len(COLOURS)], "hatch": HATCHES[number % len(HATCHES)]}
        ax.barh(range(len(parts)), sizes, left=sums, label=part, edgecolor="white", **style)
        sums += sizes
    for position, total in enumerate(sums):
        ax.annotate(f"{total:,.0f}", (total, position), xytext=(4, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(parts)), list(parts))
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.1)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def plot_bills(
    bills: Mapping[str, MemoryBill], *, cards: Mapping[str, float], title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw one stacked bar a memory bill, in GiB, with a line at the memory of each card that is near.

    Args:
        bills: from `memory_bill`.
        cards: usable GiB of each card; those above the first one that holds every bill are left out.
    """
    parts = {name: {part: size / 2**30 for part, size in bill.parts().items()} for name, bill in bills.items()}
    ax = plot_parts(parts, xlabel="GiB", ax=_axes(ax, (7.5, 0.5 * len(parts) + 2.2)))
    longest = max(sum(sizes.values()) for sizes in parts.values())
    shown: dict[float, list[str]] = {}
    for name, size in sorted(cards.items(), key=lambda card: card[1]):
        near = next((x for x in shown if size - x < 0.04 * max(longest, size)), size)
        if near in shown or not shown or max(shown) < longest:
            shown.setdefault(near, []).append(name)
    for size, names in shown.items():
        ax.axvline(size, color="black", linestyle=":", linewidth=1)
        label = ", ".join(names).replace(" GB", "")
        ax.annotate(
            label,
            (size, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=30,
            fontsize=8,
        )
    ax.set_title(title, loc="left", pad=65)
    return ax


def plot_learning_curves(
    losses: Mapping[str, Sequence[float]], *, smooth: int = 10, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw the training loss over the steps, one line a run, as a running mean over `smooth` steps."""
    ax = _axes(ax)
    for number, (name, values) in enumerate(losses.items()):
        window = min(smooth, len(values))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        steps = np.arange(window, len(values) + 1)
        ax.plot(steps, mean, color=COLOURS[number % len(COLOURS)], linestyle=LINES[number % len(LINES)], label=name)
    ax.set(xlabel="training step", ylabel=f"loss (nats, mean of {smooth} steps)", title=title)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def plot_map(
    points: np.ndarray, targets: Sequence[int], labels: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw texts as points in the plane, coloured and marked by label.

    Args:
        points: coordinates, shape (texts, 2).
        targets: the label index of each text.
        labels: the names; with more than 12 only the 12 most frequent are told apart.
    """
    ax = _axes(ax, (7.5, 5.0))
    labels = [label.replace("$", r"\$") for label in labels]
    targets = np.asarray(targets)
    frequent = np.argsort(-np.bincount(targets, minlength=len(labels)), kind="stable")[:12]
    others = ~np.isin(targets, frequent)
    if others.any():
        ax.scatter(*points[others].T, s=8, color="#DDDDDD", label="other labels")
    for number, index in enumerate(sorted(frequent)):
        chosen = points[targets == index]
        colour = COLOURS[number % len(COLOURS)]
        filled = number < len(COLOURS)
        ax.scatter(
            *chosen.T,
            s=16,
            marker=MARKERS[number],
            label=labels[index],
            alpha=0.8,
            linewidths=0.9,
            edgecolors=colour,
            facecolors=colour if filled else "none",
        )
    ax.set(title=title, xlabel="first direction (no unit)", ylabel="second direction (no unit)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return ax


def plot_confusion(
    truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw how many texts of each true label (rows) got each predicted label (columns)."""
    labels = [label.replace("$", r"\$") for label in labels]  # a text, not a formula
    size = len(labels)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (np.asarray(truth), np.asarray(predicted)), 1)
    side = min(max(4.5, 0.5 * size), 14.0)
    ax = _axes(ax, (side + 1.5, side))
    ax.imshow(counts, cmap="Blues", vmax=counts.max())
    if size <= 30:
        for row, column in zip(*counts.nonzero(), strict=True):
            dark = counts[row, column] > 0.5 * counts.max()
            ax.text(
                column,
                row,
                counts[row, column],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    ax.set_xticks(range(size), labels, rotation=60, ha="right", fontsize=min(8.0, 400 / size))
    ax.set_yticks(range(size), labels, fontsize=min(8.0, 400 / size))
    ax.set(xlabel="predicted label", ylabel="true label", title=title)
    return ax


def plot_scoreboard(table: pd.DataFrame, *, ax: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw the table of `scoreboard()`: accuracy on `test` against trained parameters, memory and seconds.

    Filled markers ran live, hollow ones were recorded earlier. Returns the three Axes.
    """
    if ax is None:
        _, ax = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    ran = table[table["test"].notna()]
    axes_of = {
        "trained": "trained parameters",
        "peak_mib": "memory above the start (MiB)",
        "seconds": "training time (s)",
    }
    techniques = list(dict.fromkeys(ran["technique"]))
    for axes, (column, label) in zip(ax, axes_of.items(), strict=True):
        _axes(axes)
        for number, technique in enumerate(techniques):
            colour = COLOURS[number % len(COLOURS)]
            for source, rows in ran[ran["technique"] == technique].groupby("source"):
                axes.errorbar(
                    rows[column].astype(float),
                    rows["test"],
                    yerr=rows["spread"].fillna(0.0),
                    linestyle="none",
                    marker=MARKERS[number],
                    color=colour,
                    markerfacecolor=colour if source == "this run" else "none",
                    label=technique if source == "this run" else f"{technique} (recorded)",
                )
        # Baselines train no network: symlog keeps their zero on the axis.
        least = 1000 if column == "trained" else 1
        axes.set_xscale("symlog", linthresh=least, linscale=0.5)
        largest = max(ran[column].max(), least) if len(ran) else least
        axes.set_xticks([0, *(least * 10**k for k in range(int(np.log10(largest / least)) + 2))])
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    ax[0].set_ylabel("accuracy on test (%)")
    if techniques:
        ax[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return ax
