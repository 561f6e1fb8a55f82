"""Figures: one style, colour-blind safe, told apart by marker and line as well as by colour.

Every function takes `ax=None` and returns the Axes, but for `scoreboard`, which has two, and `drawing`. In Jupyter what
`describe` says of a figure is saved beside it, as its alternative text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from .hub import DATA

if TYPE_CHECKING:
    from IPython.display import HTML

    from .memory import MemoryBill

# Okabe and Ito (2008), "Color Universal Design".
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
SHAPES = "\u25cf\u25a0\u25b2\u25c6"  # the first four markers, in a text
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\")
LINES = ("-", "--", "-.", ":")
# Of a training step's memory: a part has one colour in every figure.
PARTS = ("weights", "constants", "adapters", "gradients", "optimiser state", "activations", "logits", "buffers")
FROZEN, TRAINED = "#D9E2EC", "#F6C89F"
GREY = "#52606D"


def _axes(ax: Axes | None, size: tuple[float, float] = (7.0, 4.0)) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    if shell := get_ipython():  # its printer of figures comes with the first figure
        printers = shell.display_formatter.formatters["image/png"]
        printer = printers.for_type(Figure)
        if printer and getattr(printer, "func", None) is not _described:
            printers.for_type(Figure, partial(_described, printer))
    return ax


def _described(printer: Callable[[Figure], str], fig: Figure) -> tuple[str, dict[str, str]]:
    return printer(fig), {"alt": describe(fig)}


def describe(fig: Figure) -> str:
    """A figure in words, for readers who cannot see it: what its axes are, and where each series begins and ends.

    Where numbers do not tell what is drawn, the function that draws it gives the words to the axes as their label.
    """
    return ". ".join(" ".join(part.split()) for ax in fig.axes for part in _parts_of(ax) if part.strip()) + "."


def _parts_of(ax: Axes) -> Iterator[str]:
    yield from (ax.get_title(place) for place in ("left", "center", "right"))
    if ax.get_label():
        yield ax.get_label()
        return
    yield ", ".join(f"{way}: {name}" for way, name in (("up", ax.get_ylabel()), ("across", ax.get_xlabel())) if name)
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    named = not all(re.fullmatch(r"\W?[\d.]*", row) for row in rows)
    bars = [bar for bar in ax.containers if hasattr(bar, "datavalues")]
    for number, row in enumerate(rows if bars else ()):
        sizes = [f"{bar.get_label()} {bar.datavalues[number]:,.3g}" for bar in bars if bar.datavalues[number]]
        yield f"{row}: {', '.join(sizes)}"
    for handle, label in zip(*ax.get_legend_handles_labels()) if not bars else ():
        points = getattr(handle, "lines", [handle])[0].get_xydata()  # of points with bars of error: the points
        ends = sorted((x, rows[int(y)]) for x, y in points) if named else [(y, f"{x:g}") for x, y in points]
        yield f"{label}: from " + " to ".join(f"{value:.3g} ({place})" for value, place in (ends[0], ends[-1]))
    for image in ax.images:
        yield "{} by {} numbers, from {:g} to {:g}".format(*image.get_size(), *image.get_clim())
    marks = [text.get_text() for text in ax.texts if not re.fullmatch(r"[\d.,]*", text.get_text())]
    yield f"marked: {', '.join(marks)}" if marks else ""


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def lines(
    series: Mapping[str, Mapping[float, Sequence[float]]],
    *, xlabel: str, ylabel: str, log_x: bool = False, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw one line a series through the means, with a band of one standard deviation, its name at its end.

    Args:
        series: for each name, for each x, the values of the repetitions (one or more). What was recorded
            earlier (names that end in "(recorded)") has hollow markers in the colour of what ran live.
    """
    ax = _axes(ax)
    kinds = list(dict.fromkeys(name.removesuffix(" (recorded)") for name in series))
    for name, points in series.items():
        number = kinds.index(name.removesuffix(" (recorded)"))
        x = np.array(list(points), dtype=float)
        mean, spread = np.array([_mean_and_spread(values) for values in points.values()]).T
        colour = COLOURS[number % len(COLOURS)]
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)]}
        style["markerfacecolor"] = "white" if name.endswith("(recorded)") else colour
        ax.plot(x, mean, color=colour, label=name, **style)
        ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    if not series:
        ax.annotate("nothing was recorded on this data", (0.5, 0.5), xycoords="axes fraction", ha="center")
    if log_x:
        ax.set_xscale("log", base=2)
    ticks = sorted({x for points in series.values() for x in points})
    if len(ticks) <= 12:
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    if len(series) > 1:
        ax.legend(frameon=False)
    return ax


def scores(rows: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw horizontal points, one row a name and one marker a group, with a bar of one standard deviation.

    Args:
        rows: for each name, for each group such as a split, the values of the repetitions.
    """
    ax = _axes(ax, (7.0, 0.45 * len(rows) + 1.4))
    groups = list(dict.fromkeys(group for row in rows.values() for group in row))
    for number, group in enumerate(groups):
        at = [position for position, row in enumerate(rows.values()) if group in row]
        found = [_mean_and_spread(row[group]) for row in rows.values() if group in row]
        mean, spread = np.array(found).T
        height = np.array(at) + 0.12 * (number - (len(groups) - 1) / 2)
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none", "label": group}
        ax.errorbar(mean, height, xerr=spread, **style)
        style = {"xytext": (0, 8 - 25 * number), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        for x, y in zip(mean, at):
            ax.annotate(f"{x:.1f}", (x, y), **style)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="x", alpha=0.3)
    if len(groups) > 1:
        ax.legend(frameon=False, loc="best")
    return ax


def scoreboard(table: pd.DataFrame) -> Figure:
    """Draw the scoreboard: one row a technique, topics on the left, docstrings on the right.

    Filled markers ran live, hollow ones were recorded earlier; how many numbers are trained stands
    beside them. Topics far below the best would stretch the axis and stand at its edge, in words.

    Args:
        table: from `helpers.scoreboard.table_of`.
    """
    table = table[table["variant"] != "not run"]
    size = (9.0, 0.4 * len(table) + 1.5)
    fig, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    fig.get_layout_engine().set(wspace=0.08)
    left.set_yticks(range(len(table)), table.index)
    left.set_ylim(max(len(table), 1) - 0.5, -0.5)
    _panel(left, table, ("topics", "shifted"), part=0)
    _panel(right, table, ("form", "names"), part=-1)
    left.set_xlabel("topics: right on test and on shifted test (%)")
    right.set_xlabel("docstrings: right form, right names too (%)")
    right.set_xlim(0, 100)  # none right is a result here
    if table["variant"].str.contains("(recorded)", regex=False).any():
        fig.supxlabel("filled: ran live; hollow: recorded", fontsize=8, color=GREY)
    return fig


def _panel(ax: Axes, table: pd.DataFrame, columns: tuple[str, str], *, part: int) -> None:
    """Draw two columns of the table; `part` is the task's place in "of topics / of docstrings"."""
    _axes(ax).grid(alpha=0.3)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", integer=True)
    kinds = {column: number - 2 * part for number, column in enumerate(columns)}  # four columns, four markers
    for number, (column, kind) in enumerate(kinds.items()):
        place = (0.28 * number, 1.03)
        told = f"{SHAPES[kind]} {column}"
        ax.annotate(told, place, xycoords="axes fraction", color=COLOURS[kind], weight="bold")
    ax.annotate("numbers\ntrained", (1.03, 1.03), xycoords="axes fraction", fontsize=8, color=GREY)
    found = [
        f"{name} {' and '.join(str(row[column]) for column in columns)}"
        for name, row in table.iterrows()
        if row[columns[0]] != ""
    ]
    ax.set_label(f"{' and '.join(columns)}, %: {'; '.join(found)}")
    lead = pd.to_numeric(table[columns[0]], errors="coerce")
    if lead.isna().all():
        ax.annotate("nothing was recorded", (0.5, 0.5), xycoords="axes fraction", ha="center")
    least = 0.6 * lead.max() if part == 0 else 0
    words = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "color": GREY}
    words["bbox"] = {"fc": "white", "ec": "none", "pad": 1}  # no line of the grid through them
    for y, (_, row) in enumerate(table.iterrows()):
        cells = {column: row[column] for column in columns if row[column] != ""}
        recorded = row["variant"].split(" / ")[part].endswith("(recorded)")
        if cells:
            ax.annotate(row["trained"].split(" / ")[part], (1.03, y), **words)
        if cells and lead.iloc[y] < least:
            told = ", ".join(f"{column} {value}" for column, value in cells.items())
            ax.annotate(f"\N{LEFTWARDS ARROW} {told}{' (recorded)' * recorded}", (0.02, y), **words)
            continue
        for column, value in cells.items():
            kind = kinds[column]
            style = {"color": COLOURS[kind], "marker": MARKERS[kind], "linestyle": "none", "clip_on": False}
            style["markerfacecolor"] = "white" if recorded else COLOURS[kind]
            ax.plot(value, y + 0.26 * columns.index(column) - 0.13, **style)  # apart: equal values are seen both


def short(count: int) -> str:
    """A count in a few characters: 7,680, 339 k or 22.7 M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f} k" if count < 999_500 else f"{count / 1e6:.1f} M"


def parts(sizes: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw one stacked horizontal bar a name, with the sum at its end.

    Args:
        sizes: for each name, the size of each part; all names have the same parts.
    """
    ax = _axes(ax, (7.5, 0.5 * len(sizes) + 1.4))
    table = pd.DataFrame(sizes).T
    kinds = [PARTS.index(name) if name in PARTS else number for number, name in enumerate(table)]
    colours = [COLOURS[kind] for kind in kinds]
    table.plot.barh(stacked=True, ax=ax, color=colours, edgecolor="white", width=0.7)
    for bars, kind in zip(ax.containers, kinds):
        for bar in bars:
            bar.set_hatch(HATCHES[kind % len(HATCHES)])
    ax.bar_label(ax.containers[-1], [f"{total:,.{int(total < 100)}f}" for total in table.sum(axis=1)], padding=4)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, title=title)
    ax.margins(x=0.1)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def bills(
    found: Mapping[str, MemoryBill], *, cards: Mapping[str, float], title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw one stacked bar a memory bill, in GiB, with a line at the memory of each card that is near.

    Args:
        found: from `memory_bill`.
        cards: usable GiB of each card; those above the first one that holds every bill are left out.
    """
    sizes = {name: {part: size / 2**30 for part, size in bill.parts().items()} for name, bill in found.items()}
    ax = parts(sizes, xlabel="GiB", ax=_axes(ax, (7.5, 0.5 * len(sizes) + 2.2)))
    longest = max(sum(of_name.values()) for of_name in sizes.values())
    shown: dict[float, list[str]] = {}
    for name, size in sorted(cards.items(), key=lambda card: card[1]):
        near = next((x for x in shown if size - x < 0.06 * max(longest, size)), size)
        if near in shown or not shown or max(shown) < longest:
            shown.setdefault(near, []).append(name.replace(" GB", ""))
    for size, names in shown.items():
        ax.axvline(size, color="black", linestyle=":", linewidth=1)
        style = {"xytext": (0, 3), "textcoords": "offset points", "rotation": 30, "fontsize": 8}
        ax.annotate(", ".join(names), (size, 1), xycoords=("data", "axes fraction"), **style)
    ax.set_title(title, loc="left", pad=65)
    return ax


def levels(values: np.ndarray, of_types: Mapping[str, np.ndarray], *, ax: Axes | None = None) -> Axes:
    """Draw a histogram of scaled weights, and below it one row of marks a data type: the values it can hold.

    Args:
        values: weights divided by the scale of their block, from -1 to 1.
        of_types: the values of each type.
    """
    ax = _axes(ax)
    density, _, _ = ax.hist(values, bins=100, range=(-1, 1), density=True, color="#CCCCCC")
    step = 0.12 * density.max()
    for number, (name, marks) in enumerate(of_types.items()):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        ax.plot(marks, np.full(len(marks), -step * (number + 1)), label=name, **style)
    ax.set(xlabel="weight / scale of its block", ylabel="density", yticks=[])
    marks = "; ".join(f"{name} has {len(held)} values" for name, held in of_types.items())
    ax.set_label(f"how often each weight / scale of its block occurs, from -1 to 1, and below it: {marks}")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def curves(losses: Mapping[str, Sequence[float]], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw the training loss over the steps, one line a run, as a running mean over ten steps."""
    ax = _axes(ax)
    for number, (name, values) in enumerate(losses.items()):
        means = pd.Series(values, dtype=float).rolling(10, 1).mean()
        ax.plot(means, label=name, color=COLOURS[number % len(COLOURS)], linestyle=LINES[number % len(LINES)])
    ax.set(xlabel="training step", ylabel="loss (nats, mean of 10 steps)", title=title)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def escape(label: str) -> str:
    """A label as a text, where matplotlib would read a formula between dollar signs."""
    return label.replace("$", r"\$")


def stack(blocks: int, trained: int, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a model from the text up to the head: what is frozen, and the last `trained` blocks, which are not.

    Args:
        blocks: transformer blocks of the model.
        trained: how many of the last ones are trained; the head always is.
    """
    ax = _axes(ax, (3.2, 0.42 * blocks + 2.4))
    names = ["token embeddings", *(f"block {number}" for number in range(1, blocks + 1)), "mean over the tokens"]
    colours = [FROZEN] * (blocks + 1 - trained) + [TRAINED] * trained + ["white"]
    if trained == blocks:
        colours[0] = TRAINED
    for y, (name, colour) in enumerate(zip([*names, "head: one score a label"], [*colours, TRAINED])):
        ax.add_patch(FancyBboxPatch((0, y), 1, 0.62, "round,pad=0.02,rounding_size=0.08", fc=colour, ec=GREY))
        ax.annotate(name, (0.5, y + 0.31), ha="center", va="center", fontsize=9)
        if y:
            ax.annotate("", (0.5, y - 0.02), (0.5, y - 0.36), arrowprops={"arrowstyle": "->", "color": GREY})
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.1, blocks + 2.8), title=title)
    ax.set_label(f"a model of {blocks} blocks, of which the last {trained} are trained, and its head, which always is")
    ax.axis("off")
    return ax


def drawing(name: str) -> HTML:
    """Show the drawing of a technique: "feature_extraction", "lora", "qlora" or "prompt_tuning", on the shipped models.

    As an image in HTML, with a text for who does not see it: what is attached to a Markdown cell neither Colab nor
    Sphinx shows, nor JupyterLab if it is SVG.
    """
    from IPython.display import HTML

    svg = (DATA / "drawings" / f"{name}.svg").read_text(encoding="utf-8")
    title, told = (re.search(f"<{tag} [^>]*>(.*)</{tag}>", svg)[1] for tag in ("title", "desc"))
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return HTML(f'<img src="{source}" alt="{title}. {told}" width="540" style="max-width: 100%; height: auto"/>')
