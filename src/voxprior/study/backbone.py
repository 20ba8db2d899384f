"""What a report says about one backbone: the answer, curves, contrasts, classes, ranks, variance.

Inits are compared inside a backbone only, so each has its own figures and tables.
"""

from typing import Any

import pandas as pd

from voxprior.study import claims, figures, headline, latex, wording
from voxprior.study.drawn import Drawn, Picture

Tables = dict[str, pd.DataFrame | None]
Rows = list[dict[str, Any]]


def by_metric(rows: pd.DataFrame, value: str) -> Rows:
    """Puts the metrics of one arm, budget and class into one row: {..., "dice": {value, low, high}, "nsd": ...}."""
    keys = [name for name in ("dataset", "init", "against", "budget", "class") if name in rows.columns]
    lines = []
    for key, some in rows.groupby(keys, sort=False):
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        for row in some.to_dict("records"):
            line[row["metric"]] = {**row, "value": row[value]}
        line["cases"] = int(some["cases"].max())
        line["excluded"] = int(some["excluded"].max()) if "excluded" in some else 0
        lines.append(line)
    return lines


class Backbone:
    """One backbone of a study, with its rows of every table."""

    def __init__(self, config: dict[str, Any], name: str, tables: Tables, drawn: Drawn, simulated: bool) -> None:
        self.study, self.name, self.drawn, self.simulated = config["study"], name, drawn, simulated
        self.title, self.family = config["backbones"][name]["title"], config["backbones"][name]["family"]
        own = {key: table[table["backbone"] == name] for key, table in tables.items() if table is not None}
        self.curves, self.tables = own["curves"], own
        contrasts = own["contrasts"]
        # All against scratch first, then what each method adds to the one it builds on.
        self.contrasts = contrasts.iloc[(contrasts["against"] != "scratch").argsort(kind="stable")]
        self.titles = drawn.titles
        self.mean = self.curves[(self.curves["cohort"] == "test") & (self.curves["class"] == "mean")]
        known = set(self.mean["metric"])
        self.metrics = [metric for metric in figures.METRICS if metric in known]

    def gathered(self, hours: dict[str, tuple[float, str]]) -> dict[str, Any]:
        """Gathers everything for the page; `hours` is what a pretraining of each init took, and on what."""
        test = self.contrasts[self.contrasts["cohort"] == "test"]
        dice = test[test["metric"] == "dice"]
        against_scratch = dice[dice["against"] == "scratch"]
        saved = self._of("labels_saved")
        external = self.curves[(self.curves["cohort"] == "external") & (self.curves["class"] == "mean")]
        return {
            "name": self.name,
            "metrics": self.metrics,
            # Not all have a better side: what is no error has means and no contrasts.
            "compared": [metric for metric in self.metrics if metric in set(test["metric"])],
            "title": self.title,
            "family": {"vit": "transformer", "cnn": "convolutions", "swin": "windowed transformer"}[self.family],
            "answer": self._answer(against_scratch, saved, hours),
            "pictures": [self._curve(metric) for metric in self.metrics],
            "matrix": None if self.simulated else headline.verdict_matrix(against_scratch),
            "forest": self._forest(dice),
            "contrasts": by_metric(test, "difference"),
            "verdicts": bool(test["verdict"].astype(str).str.len().any()),
            "saved": None if self.simulated or saved is None or not len(saved) else headline.matrix(saved),
            "classes": by_metric(self.curves[self.curves["cohort"] == "test"], "mean"),
            "pivots": self._pivots(),
            "ranks": self._ranks(),
            "variance": self._variance(),
            "external": by_metric(external, "mean"),
            "smallest": self._smallest(dice),
            "tex": self._tex(dice),
        }

    def _of(self, table: str) -> pd.DataFrame | None:
        """Takes the rows in Dice, test cohort, of a table that an older study may not have."""
        rows = self.tables.get(table)
        if rows is None:
            return None
        rows = rows[rows["metric"] == "dice"]
        if "cohort" in rows:
            rows = rows[rows["cohort"] == "test"]
        # A dataset from elsewhere has no scratch curve of its own in this study.
        return rows[rows["dataset"] == self.study["dataset"]]

    def _answer(
        self, contrasts: pd.DataFrame, saved: pd.DataFrame | None, hours: dict[str, tuple[float, str]]
    ) -> list[str]:
        if self.simulated:
            return []
        return headline.answer(contrasts, saved, hours, self.titles, self.study["compare"]["confidence"])

    def _curve(self, metric: str) -> Picture:
        rows = self.mean[self.mean["metric"] == metric]
        ends = claims.spaced_budgets(rows["budget"].tolist(), most=2)
        alt = f"{self.title}: {figures.METRICS[metric]} against labelled cases. " + "; ".join(
            f"{self.titles[row['init']]} with {row['budget']}: {wording.number(row['mean'], metric)}"
            for row in rows[rows["budget"].isin(ends)].to_dict("records")
        )
        plot = figures.budget_curves(rows, self.titles, metric, self.drawn.mark)
        return self.drawn.add(f"budget_{self.name}_{metric}", alt, plot)

    def _forest(self, dice: pd.DataFrame) -> Picture | None:
        if not len(dice):
            return None
        budgets = claims.spaced_budgets(dice["budget"].tolist())
        alt = f"{self.title}: differences in Dice. " + "; ".join(
            f"{self.titles[row['init']]} against {self._named(row['against'])} with {row['budget']}: "
            f"{wording.signed(row['difference'], 'dice')}"
            for row in dice[dice["budget"].isin(budgets)].to_dict("records")
        )
        return self.drawn.add(f"forest_{self.name}", alt, claims.forest(dice, self.titles, self.drawn.mark))

    def _ranks(self) -> dict[str, Any] | None:
        rows = self._of("ranks")
        if rows is None or not len(rows):
            return None
        means = rows[rows["scheme"] == "rank_of_means"]
        alt = f"{self.title}: ranks. " + "; ".join(
            f"{self.titles[row['init']]} with {row['budget']}: {row['rank']:g}" for row in means.to_dict("records")
        )
        picture = self.drawn.add(f"ranks_{self.name}", alt, claims.ranks(rows, self.titles, self.drawn.mark))
        lines = []
        for (init, budget), some in rows.groupby(["init", "budget"], sort=False):
            schemes = {row["scheme"]: row for row in some.to_dict("records")}
            lines.append({"init": init, "budget": budget, **{name: schemes.get(name) for name in claims.SCHEMES}})
        return {"picture": picture, "rows": lines, "schemes": claims.SCHEMES}

    def _variance(self) -> dict[str, Any] | None:
        rows = self._of("variance")
        if rows is None or not len(rows) or rows["share"].isna().all():
            return None
        smallest = rows["budget"].min()
        few = rows[rows["budget"] == smallest]
        alt = f"{self.title}, {headline.counted(smallest)}: share of the variance of Dice. " + "; ".join(
            f"{self.titles[row['init']]}, {claims.ORIGINS[row['source']]}: {wording.share(row['share'])}"
            for row in few.dropna(subset="share").to_dict("records")
        )
        picture = self.drawn.add(f"variance_{self.name}", alt, claims.variance(few, self.titles, self.drawn.mark))
        lines = []
        for (init, budget), some in rows.groupby(["init", "budget"], sort=False):
            lines.append({"init": init, "budget": budget} | {row["source"]: row for row in some.to_dict("records")})
        sources = {
            key: name for key, name in claims.ORIGINS.items() if key in set(rows.dropna(subset="share")["source"])
        }
        return {"picture": picture, "rows": lines, "sources": sources, "budget": smallest}

    def _pivots(self) -> Rows:
        """Lays the Dice of classes out as class x init, for up to three budgets."""
        rows = self.curves[(self.curves["cohort"] == "test") & (self.curves["metric"] == "dice")]
        inits = [init for init in self.titles if init in set(rows["init"])]
        names = list(dict.fromkeys(rows["class"]))
        found: Rows = []
        for budget in claims.spaced_budgets(rows["budget"].tolist()):
            cells = rows[rows["budget"] == budget].set_index(["class", "init"])["mean"].to_dict()
            lines = [
                {"class": name, "values": [cells.get((name, init), float("nan")) for init in inits]} for name in names
            ]
            found.append({"budget": budget, "inits": inits, "rows": lines})
        return found

    def _smallest(self, dice: pd.DataFrame) -> list[tuple[int, float]]:
        """Says what the smallest difference is that the test set can see, per budget: the median over contrasts."""
        known = dice[dice["budget"].isin(claims.spaced_budgets(dice["budget"].tolist()))].dropna(subset="smallest")
        return [(int(budget), float(value)) for budget, value in known.groupby("budget")["smallest"].median().items()]

    def _tex(self, dice: pd.DataFrame) -> list[str]:
        of = f"{self.title}, {self.study['dataset']}, test cases; {self.drawn.mark}"
        within = "" if self.simulated else f" with {100 * self.study['compare']['confidence']:g} % intervals"
        names = [f"scores_{self.name}"]
        text = latex.scores(self.mean, self.titles, f"Mean scores{within}. {of}", names[0])
        self.drawn.add_table(names[0], text)
        if len(dice):
            names.append(f"contrasts_{self.name}")
            caption = f"Planned contrasts in Dice{within}. {of}"
            self.drawn.add_table(names[1], latex.contrasts(dice.to_dict("records"), self.titles, caption, names[1]))
        return [f"tables/{name}.tex" for name in names]

    def _named(self, init: str) -> str:
        """Names an init inside a sentence: `from scratch` reads badly after `against`."""
        return "scratch" if init == "scratch" else self.titles[init]
