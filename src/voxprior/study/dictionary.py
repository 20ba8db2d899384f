"""The data dictionary: what each column of each table holds, in which unit. `compare` writes it beside the tables."""

import pandas as pd

Columns = dict[str, tuple[str, str, str]]  # column -> type, unit, meaning

UNIT = "of the metric"
STAMP: Columns = {"stamp": ("text", "", "empty, or why the numbers are no evidence: simulated patients, leakage")}
COHORT: Columns = {
    "dataset": ("text", "", "where the scans are from"),
    "cohort": ("text", "", "test: held out of the study's own dataset; external: another dataset, only predicted"),
}
BACKBONE: Columns = {"backbone": ("text", "", "the encoder; inits are compared inside one backbone only")}
INIT: Columns = {
    "init": ("text", "", "scratch, the method or variant of one that pretrained the encoder, or a file of weights")
}
BUDGET: Columns = {"budget": ("integer", "cases", "labelled cases that fine-tuning had")}
METRIC: Columns = {"metric": ("text", "", "dice, nsd, hd95_mm, ...; see docs/statistics.md")}
RUN: Columns = {
    "fold": ("integer", "", "of the split"),
    "pretrain_seed": ("integer", "", "of the pretraining; empty from scratch and from files of weights"),
    "seed": ("integer", "", "of the fine-tuning"),
}
CASE: Columns = {"case": ("text", "", "the scan"), "patient": ("text", "", "whose scan it is")}
BOUNDS: Columns = {
    "low": ("number", UNIT, "lower end of the interval; empty where none is given"),
    "high": ("number", UNIT, "upper end of the interval"),
}
ARM: Columns = {**COHORT, **BACKBONE, **INIT, **BUDGET}
STUDY: Columns = {"study": ("text", "", "name of the study")}
CLASS: Columns = {"class": ("text", "", "what is segmented; mean: the mean over the classes that a case has")}

TABLES: dict[str, Columns] = {
    "scores": {
        **STUDY,
        **ARM,
        **RUN,
        **CASE,
        **CLASS,
        **METRIC,
        "value": ("number", UNIT, "the score; empty where neither map has the class"),
        "flag": ("text", "", "both_empty; missed: only the label has the class; invented: only the prediction has it"),
        **STAMP,
    },
    "cases": {
        **ARM,
        "fold": RUN["fold"],
        **CASE,
        **METRIC,
        "value": ("number", UNIT, "mean over classes, then seeds"),
        "scored": ("integer", "scores", "class scores behind the mean"),
        "missed": ("integer", "scores", "of these: only the label has the class"),
        "invented": ("integer", "scores", "of these: only the prediction has the class"),
        **STAMP,
    },
    "curves": {
        **ARM,
        **CLASS,
        **METRIC,
        "mean": ("number", UNIT, "mean over cases, each the mean over its seeds"),
        **BOUNDS,
        "cases": ("integer", "cases", "that have a score"),
        "seeds": ("integer", "networks", "that segmented each case: pretraining seeds times fine-tuning seeds"),
        "excluded": ("integer", "scores", "left out because neither map has the class"),
        **STAMP,
    },
    "contrasts": {
        **COHORT,
        **BACKBONE,
        **INIT,
        "against": ("text", "", "the init that it is compared with"),
        **BUDGET,
        **METRIC,
        "difference": ("number", UNIT, "mean of init minus against, paired by case"),
        **BOUNDS,
        "cases": ("integer", "cases", "that both have"),
        "effect": ("number", "standard deviations", "Cohen's d_z: mean over deviation of patients' differences"),
        "effect_low": ("number", "standard deviations", "lower end of its interval"),
        "effect_high": ("number", "standard deviations", "upper end of its interval"),
        "p": ("number", "", "two-sided sign-flip permutation test"),
        "p_holm": ("number", "", "adjusted for all contrasts of this metric, dataset and cohort"),
        "verdict": ("text", "", "better, worse, equivalent, not separated; empty for simulated patients"),
        "margin": ("number", UNIT, "differences up to this are none that matter"),
        "false_claim": ("number", "", "probability that the true difference is zero or on the other side"),
        "smallest": ("number", UNIT, "difference that would be found in 80 % of repetitions"),
        **STAMP,
    },
    "labels_saved": {
        "dataset": COHORT["dataset"],
        **BACKBONE,
        **INIT,
        **METRIC,
        **BUDGET,
        "kind": ("text", "", "scratch needs about, above (the largest budget) or below (the smallest) `labels`"),
        "labels": ("number", "cases", "with `budget` labels the init does what scratch needs this many for"),
        "low": ("number", "cases", "lower end of the interval, at least the smallest budget"),
        "high": ("number", "cases", "upper end of the interval, at most the largest budget"),
        "high_kind": ("text", "", "above: the interval is open beyond the largest budget; else about"),
        **STAMP,
    },
    "ranks": {
        **COHORT,
        **BACKBONE,
        **METRIC,
        **BUDGET,
        "scheme": ("text", "", "rank_of_means: place by the mean; mean_of_ranks: mean place over cases"),
        **INIT,
        "rank": ("number", "place", "1 is best"),
        "low": ("number", "place", "lower end of the interval"),
        "high": ("number", "place", "upper end of the interval"),
        **STAMP,
    },
    "variance": {
        **ARM,
        **METRIC,
        "source": ("text", "", "patient; pretrain_seed; seed: of the fine-tuning; rest: one network on one case"),
        "variance": ("number", "of the metric, squared", "empty where a source has one level; with one network, "
                     "patient holds the rest too"),
        "share": ("number", "", "of the variances that are known"),
        **STAMP,
    },
    "dice_by_budget": {
        **BUDGET,
        "<backbone> <init>": ("number", "", "mean Dice of the test cohort, one column each"),
        **STAMP,
    },
}  # fmt: skip


def dictionary() -> pd.DataFrame:
    """Lists every column of every table: table, column, type, unit, meaning."""
    rows = [(table, column, *about) for table, columns in TABLES.items() for column, about in columns.items()]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning"])
