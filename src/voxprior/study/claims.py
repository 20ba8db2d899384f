"""Figures of what may be claimed: planned contrasts, ranks, and where the spread of scores comes from.

Each shows one backbone, as narrow as the curves are (`figures.py`), and draws what the tables hold; nothing is computed
here. Where an interval is missing, as for simulated patients, the value stands alone.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from voxprior.study.figures import FAINT, INK, RULE, SOURCES, STYLE, Plot, saved, style_of

WORDS = {"better": "better", "worse": "worse", "equivalent": "equivalent", "not separated": "not separated"}
ORIGINS = {
    "patient": "patients",
    "pretrain_seed": "pretraining seeds",
    "seed": "fine-tuning seeds",
    "rest": "rest",
}
SCHEMES = {"rank_of_means": "rank of the mean", "mean_of_ranks": "mean of ranks per case"}
ROW_IN = 0.23  # height of a line of text with its mark


def spaced_budgets(budgets: list[int], most: int = 3) -> list[int]:
    """Takes at most `most` of the budgets, the smallest and the largest among them, evenly between."""
    ordered = sorted(set(budgets))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def forest(contrasts: pd.DataFrame, titles: dict[str, str], mark: str) -> Plot:
    """Draws planned contrasts in Dice as differences with intervals, the verdict beside each.

    Args:
        contrasts: rows of `contrasts.csv` of one backbone, cohort `test`, in Dice. Verdict and margin may be absent.
        titles: what each init is called.
        mark: what stands in the corner.
    """
    budgets = spaced_budgets(contrasts["budget"].tolist())
    lines: list[Any] = []
    for budget in budgets:
        lines += [budget, *contrasts[contrasts["budget"] == budget].to_dict("records")]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "forest", "font.size": 9}):
        figure = Figure(figsize=(4.8, ROW_IN * len(lines) + 0.85), layout="constrained")
        axes = figure.add_subplot()
        styles = style_of(list(titles))
        margins = contrasts["margin"].dropna() if "margin" in contrasts else pd.Series(dtype=float)
        if len(margins):
            axes.axvspan(-margins.iloc[0], margins.iloc[0], color=RULE, linewidth=0, zorder=0)
        axes.axvline(0, color=FAINT, linewidth=1, zorder=1)
        names = []
        for place, line in enumerate(lines):
            if not isinstance(line, dict):
                names.append(f"{line} label{'s' if line != 1 else ''}")
                continue
            names.append(f"{titles[line['init']]} vs {_short(line['against'], titles)}")
            colour, marker = styles[line["init"]]
            axes.hlines(place, line["low"], line["high"], color=colour, linewidth=1.6, zorder=3)
            axes.plot(line["difference"], place, marker, color=colour, markersize=5, zorder=4)
            axes.text(1.02, place, WORDS.get(str(line.get("verdict", "")), ""), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=8.5, color=INK)  # fmt: skip
        _rows(axes, names, [not isinstance(line, dict) for line in lines])
        axes.set_xlabel("difference in Dice (right of 0: the first is better)", fontsize=8.5)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        return saved(figure, mark)


def _short(init: str, titles: dict[str, str]) -> str:
    return "scratch" if init == "scratch" else titles[init]


def _rows(axes: Axes, names: list[str], headings: list[bool]) -> None:
    """Names the rows from the top down, headings in bold."""
    axes.set_yticks(range(len(names)), names)
    for label, heading in zip(axes.get_yticklabels(), headings, strict=True):
        label.set(color=INK, fontweight="bold" if heading else "normal", fontsize=9 if heading else 8.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def ranks(table: pd.DataFrame, titles: dict[str, str], mark: str) -> Plot:
    """Draws ranks with their intervals, smallest and largest budget side by side, both ranking schemes.

    Args:
        table: rows of `ranks.csv` of one backbone, cohort `test`, metric Dice.
        titles: what each init is called.
        mark: what stands in the corner.
    """
    budgets = spaced_budgets(table["budget"].tolist(), most=2)
    inits = [init for init in titles if init in set(table["init"])]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "ranks", "font.size": 9}):
        figure = Figure(figsize=(4.8, 0.34 * len(inits) + 1.2), layout="constrained")
        grid = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
        styles = style_of(list(titles))
        for axes, budget in zip(grid, budgets, strict=True):
            for aside, scheme in zip((-0.15, 0.15), SCHEMES, strict=True):
                rows = table[(table["budget"] == budget) & (table["scheme"] == scheme)].set_index("init")
                for place, init in enumerate(inits):
                    if init not in rows.index:
                        continue
                    row, (colour, marker) = rows.loc[init], styles[init]
                    axes.hlines(place + aside, row["low"], row["high"], color=colour, linewidth=1.4)
                    hollow = {"markerfacecolor": "none"} if scheme == "mean_of_ranks" else {}
                    axes.plot(row["rank"], place + aside, marker, color=colour, markersize=5, **hollow)
            axes.set_title(f"{budget} label{'s' if budget != 1 else ''}", fontsize=9, color=INK)
            axes.set_xticks(range(1, len(inits) + 1))
            axes.set_xlim(0.6, len(inits) + 0.4)
        _rows(grid[0], [titles[init] for init in inits], [False] * len(inits))
        for axes in grid[1:]:
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        grid[0].set_xlabel("rank, 1 is best", loc="left")
        return saved(figure, mark)


def variance(table: pd.DataFrame, titles: dict[str, str], mark: str) -> Plot:
    """Draws how the variance of Dice divides among its sources, one bar per init.

    Args:
        table: rows of `variance.csv` of one backbone, cohort `test`, metric Dice, one budget.
        titles: what each init is called.
        mark: what stands in the corner.
    """
    inits = [init for init in titles if init in set(table["init"])]
    known = set(table.dropna(subset="share")["source"])  # one pretraining seed says nothing about pretraining seeds
    sources = [source for source in ORIGINS if source in known]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "variance", "font.size": 9}):
        figure = Figure(figsize=(4.8, 0.3 * len(inits) + 1.15), layout="constrained")
        axes = figure.add_subplot()
        shares = table.pivot_table(index="init", columns="source", values="share").reindex(inits)[sources].fillna(0.0)
        left = np.zeros(len(inits))
        for source in sources:
            width = 100 * shares[source].to_numpy()
            axes.barh(range(len(inits)), width, left=left, height=0.62, color=SOURCES[list(ORIGINS).index(source)],
                      edgecolor=FAINT, linewidth=0.6, label=ORIGINS[source])  # fmt: skip
            left += width
        _rows(axes, [titles[init] for init in inits], [False] * len(inits))
        axes.set_axisbelow(True)
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent of the variance of Dice")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)
        return saved(figure, mark)
