r"""Tables for a paper: LaTeX with booktabs, one file each, from the same rows as the page.

They need `\usepackage{booktabs}` and nothing else. Every table says what it shows and bears the study's stamp.
"""

import math
from typing import Any

import pandas as pd

from voxprior.study import headline, wording

SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
SPECIAL |= {wording.MINUS: "$-$", wording.DASH: "--", "<": "$<$", ">": "$>$"}


def escape(text: object) -> str:
    r"""Makes text safe in LaTeX.

    Example:
        >>> escape("95 % of a_b")
        '95 \\% of a\\_b'
    """
    return "".join(SPECIAL.get(letter, letter) for letter in str(text))


def table(columns: list[tuple[str, str]], rows: list[list[object]], caption: str, label: str) -> str:
    r"""Writes one table.

    Args:
        columns: (heading, alignment `l` or `r`) of each.
        rows: text of the cells, not yet escaped.
        caption: what it shows, not yet escaped.
        label: what `\ref` calls it.
    """
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{''.join(side for _, side in columns)}}}",
        r"\toprule",
        " & ".join(escape(name) for name, _ in columns) + r" \\",
        r"\midrule",
        *(" & ".join(escape(cell) for cell in row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def scores(curves: pd.DataFrame, titles: dict[str, str], caption: str, label: str) -> str:
    r"""Writes the mean scores of one backbone, an init and budget a row.

    Args:
        curves: rows of `curves.csv` of one backbone, cohort `test`, class `mean`.
        titles: what each init is called.
        caption: what it shows.
        label: what `\ref` calls it.
    """
    names = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)"}  # more would not fit a column of text
    metrics = [metric for metric in names if metric in set(curves["metric"])]
    rows: list[list[object]] = []
    for (init, budget), some in curves.groupby(["init", "budget"], sort=False):
        by_metric = some.set_index("metric")
        cells = [
            _with_interval(by_metric.loc[metric], metric) if metric in by_metric.index else "" for metric in metrics
        ]
        rows.append([titles[str(init)], budget, *cells])
    columns = [("Init", "l"), ("Labels", "r"), *((names[metric], "l") for metric in metrics)]
    return table(columns, rows, caption, label)


def contrasts(rows: list[dict[Any, Any]], titles: dict[str, str], caption: str, label: str) -> str:
    """Writes planned contrasts of one backbone in Dice: difference, interval, p after Holm, verdict."""
    lines: list[list[object]] = []
    for row in rows:
        against = "scratch" if row["against"] == "scratch" else titles[row["against"]]
        difference = wording.signed(row["difference"], "dice")
        within = wording.interval(row["low"], row["high"], "dice", signs=True)
        lines.append(
            [titles[row["init"]], against, row["budget"], difference, within,
             wording.chance(row.get("p_holm", math.nan)), headline.verdict_of(row)]
        )  # fmt: skip
    columns = [("Init", "l"), ("Against", "l"), ("Labels", "r"), ("Difference", "r"), ("Interval", "l")]
    return table([*columns, ("p (Holm)", "r"), ("Verdict", "l")], lines, caption, label)


def _with_interval(row: Any, metric: str) -> str:
    within = wording.interval(row["low"], row["high"], metric)
    return wording.number(row["mean"], metric) + (f" ({within})" if within else "")
