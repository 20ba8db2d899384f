"""Curves of the report, and what all its figures share: colours, marks, SVG for the page and PDF for a paper.

Curves are drawn narrow, one backbone each, so that their text stays legible on a telephone; the page puts them side by
side where there is room. Colours are told apart by colour-blind readers (a test simulates them), every line has a
marker of its own, and its name stands at its end. `inline` turns a figure's fixed colours into the page's, which are
others in the dark.
"""

import io
import math
import re
import textwrap
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from voxprior.study.measures import MEASURES

PAPER, INK, FAINT, RULE = "#fffffe", "#1c2024", "#5b6570", "#d5dadf"
SERIES = ["#5d706c", "#0251e6", "#c63500", "#13482f", "#b824ae", "#7a2f04", "#1701e0", "#7a5230"]
MARKERS = ["s", "o", "^", "D", "v", "P", "X", "*"]
SOURCES = ["#123a63", "#2f7ab8", "#8fbfe0", "#dfeaf3"]  # told apart by how bright they are
METRICS = {name: f"{one.title} in {one.unit}" if one.unit else one.title for name, one in MEASURES.items()}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # letters that stay letters: journals refuse type 3
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


class Plot(NamedTuple):
    """One figure in both vector formats."""

    svg: str
    pdf: bytes


def style_of(inits: list[str]) -> dict[str, tuple[str, str]]:
    """Gives every init a colour and a marker; scratch is always grey squares, whatever else is compared."""
    others = [init for init in inits if init != "scratch"]
    places = {"scratch": 0} | {init: 1 + i % (len(SERIES) - 1) for i, init in enumerate(others)}
    return {init: (SERIES[place], MARKERS[place]) for init, place in places.items()}


def budget_curves(curves: pd.DataFrame, titles: dict[str, str], metric: str, mark: str) -> Plot:
    """Draws the mean of a metric against the label budget, one line per init, with intervals where there are any.

    Args:
        curves: rows of `curves.csv` of one backbone, cohort and metric, class `mean`.
        titles: what the legend calls every init of the study; an init has one colour in all figures.
        metric: one of `METRICS`.
        mark: what stands in the corner: which cases these are, and the stamp.

    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "budget"}):
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        axes = figure.add_subplot()
        styles = style_of(list(titles))
        ends = []
        budgets = sorted(curves["budget"].unique())
        shown = [init for init in titles if init in set(curves["init"])]
        for place, init in enumerate(shown):
            rows = curves[curves["init"] == init].sort_values("budget")
            colour, marker = styles[init]
            # Intervals of equal budgets would cover one another: each line stands a little aside.
            aside = 1.05 ** (place - (len(shown) - 1) / 2)
            axes.plot(rows["budget"] * aside, rows["mean"], color=colour, marker=marker, zorder=3)
            axes.vlines(rows["budget"] * aside, rows["low"], rows["high"], color=colour, linewidth=1.2)
            if len(known := rows.dropna(subset="mean")):
                ends.append((known["budget"].iloc[-1] * aside, known["mean"].iloc[-1], titles[init], colour))
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, _tick_names(budgets))
        axes.minorticks_off()
        axes.set_xlabel("labelled cases")
        axes.set_ylabel(f"{METRICS[metric]}, mean over test cases")
        axes.margins(x=0.12, y=0.12)
        _name_ends(axes, ends)
        return saved(figure, mark)


def _tick_names(budgets: list[int], apart: float = 0.09) -> list[str]:
    """Names the budgets of a logarithmic axis, from the largest down, without those that would touch a neighbour."""
    across = max(math.log(budgets[-1] / budgets[0]), 1e-9)
    names, last = [], math.inf
    for budget in reversed(budgets):
        place = math.log(budget / budgets[0]) / across
        named = last - place >= apart
        names.append(str(budget) if named else "")
        last = place if named else last
    return names[::-1]


def learning_curves(
    journals: dict[str, pd.DataFrame],
    titles: dict[str, str],
    mark: str,
    faint: dict[str, list[pd.DataFrame]] | None = None,
) -> Plot:
    """Draws the loss over a run, one line per entry of `journals` (init -> step, progress, loss).

    `faint` holds further runs of an init, of other seeds and folds: thin lines behind its own. The axis is logarithmic
    where all losses are positive and span a factor of ten.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "learning"}):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        styles = style_of(list(titles))
        ends = []
        for init, journal in journals.items():
            for other in (faint or {}).get(init, []):
                few = _thinned(other)
                axes.plot(100 * few["progress"], few["loss"], color=styles[init][0], linewidth=0.6, alpha=0.45)
            few = _thinned(journal)
            axes.plot(100 * few["progress"], few["loss"], color=styles[init][0], linewidth=1.3)
            ends.append((100 * few["progress"].iloc[-1], few["loss"].iloc[-1], titles[init], styles[init][0]))
        every = [*journals.values(), *(some for more in (faint or {}).values() for some in more)]
        losses = pd.concat([journal["loss"] for journal in every])
        if losses.min() > 0 and losses.max() > 10 * losses.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.set_xlabel("per cent of the run")
        axes.set_ylabel("loss")
        _name_ends(axes, ends)
        return saved(figure, mark)


def monitors(journal: pd.DataFrame, colour: str, mark: str, across: int = 3) -> Plot | None:
    """Draws what a run logged besides its loss, one small axis each; None where that is nothing.

    A term that is the whole loss is not drawn again, and the learning rate is the recipe's.

    Args:
        journal: `progress`, and a column per loss term, monitor and `grad_norm`.
        colour: of the lines.
        mark: what stands in the corner.
        across: axes in a row.
    """
    names = monitor_names(journal)
    if not names:
        return None
    across = min(across, len(names))
    down = -(-len(names) // across)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "monitors", "font.size": 8}):
        figure = Figure(figsize=(4.8, 1.25 * down + 0.35), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, names, strict=False):
            few = _thinned(journal[["progress", name]].dropna())
            axes.plot(100 * few["progress"], few[name], color=colour, linewidth=1.1)
            axes.set_title(textwrap.fill(name.replace("_", " "), 18), fontsize=9, color=INK)
            axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
            axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.set_xticks([0, 100], ["0 %", "100 %"])
            if np.ptp(few[name]) == 0:
                # Matplotlib would show a constant within a hair's breadth of itself, as if it moved.
                axes.set_ylim(few[name].iloc[0] - 0.5, few[name].iloc[0] + 0.5)
                axes.set_yticks([few[name].iloc[0]])
        return saved(figure, mark)


def monitor_names(journal: pd.DataFrame) -> list[str]:
    """Lists what `monitors` draws: every number of a journal but the step, the rate, and what equals the loss."""
    return [
        name
        for name in journal.columns
        if name not in ("step", "progress", "loss", "lr") and not journal[name].equals(journal["loss"])
    ]


def _thinned(journal: pd.DataFrame) -> pd.DataFrame:
    """Takes about 200 of the rows, the last one always."""
    every = max(1, len(journal) // 200)
    return journal.iloc[(len(journal) - 1) % every :: every]


def spread(wanted: list[float], gap: float) -> list[float]:
    """Moves places apart until neighbours are `gap` away, as little as possible (least squares), in their order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []  # (mean of wanted minus what the gaps below already take, members)
    for place, i in enumerate(order):
        pools.append((wanted[i] - place * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (high, more), (low, some) = pools.pop(), pools.pop()
            pools.append(((high * more + low * some) / (more + some), more + some))
    flat = [mean for mean, members in pools for _ in range(members)]
    moved = [0.0] * len(wanted)
    for place, i in enumerate(order):
        moved[i] = flat[place] + place * gap
    return moved


def _name_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes each line's name beside its end, in its colour, apart from one another: entries are (x, y, name, colour).

    A legend asks the reader to match colours; with five lines that is asking too much.
    """
    axes.set_ylim(axes.get_ylim())
    places = [float(axes.transLimits.transform(axes.transScale.transform((x, y)))[1]) for x, y, _, _ in ends]
    for place, (x, y, name, colour) in zip(spread(places, 0.085), ends, strict=True):
        axes.annotate(
            name, (x, y), (1.05, place), textcoords="axes fraction", color=colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def saved(figure: Figure, mark: str) -> Plot:
    """Saves a figure with its mark in the corner; the same figure gives the same bytes."""
    figure.supxlabel(mark, fontsize=7.5, color=FAINT, x=0.99, ha="right")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(text.getvalue(), _pdf(figure))


def _pdf(figure: Figure) -> bytes:
    """Saves a figure as PDF. Cutting its fonts down takes a third of a second, more than all of the drawing."""
    pages = io.BytesIO()
    figure.savefig(pages, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return pages.getvalue()


def _shorter(attribute: re.Match[str]) -> str:
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", attribute.group())


def inline(svg: str, title: str) -> str:
    """Prepares an SVG for the page: as wide as its place, read aloud as `title`, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Curves have few points; a hundredth of a point is finer than any screen. Coordinates only: the same digits in a
    # text are a number that somebody reads.
    svg = re.sub(r'\b(d|points|transform|x|y|x1|y1|x2|y2)="[^"]*"', _shorter, svg)
    variables = {PAPER: "none", INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)"}
    variables |= {colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)}
    variables |= {colour: f"var(--source-{place})" for place, colour in enumerate(SOURCES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*pt"', "", head)
    named = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{named}">{body}'
