"""The first words of a report: what the tables say, no more, and in an order that nobody chose to look good."""

import math

import pandas as pd
import pytest

from voxprior.study import headline

NAN = math.nan
TITLES = {"scratch": "From scratch", "mae": "MAE3D", "glmae": "GL-MAE", "pgl": "PGL"}
HOURS = {"glmae": (3.1, "GPU"), "mae": (0.017, "CPU")}


def contrasts(*rows):
    columns = ["init", "budget", "difference", "low", "high", "cases", "verdict", "margin"]
    return pd.DataFrame([(*row, 50, word, 0.005) for *row, word in rows], columns=columns).assign(metric="dice")


def saved(**row):
    given = {"init": "glmae", "budget": 4, "kind": "about", "labels": 9.04, "low": 6.2, "high": 14.4}
    return pd.DataFrame([given | {"high_kind": "about"} | row])


FOUND = contrasts(
    ("mae", 4, -0.02, -0.03, -0.01, "worse"),
    ("glmae", 4, 0.03, 0.01, 0.05, "better"),
    ("pgl", 4, 0.001, -0.003, 0.004, "equivalent"),
    ("glmae", 16, 0.05, 0.02, 0.08, "better"),
)


def test_the_answer_says_labels_interval_and_cost():
    first, rest = headline.answer(FOUND, saved(), HOURS, TITLES, 0.95)
    assert first == (
        "GL-MAE with 4 labels does what scratch needs 9 for (95 % interval 6.2 to 14); its pretraining took 3.1 GPU h."
    )
    assert rest == "Against scratch with 4 labels: PGL (+0.001) is equivalent to it; MAE3D (\u22120.020) is worse."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"kind": "above", "labels": 16, "low": NAN, "high": NAN}, "needs more than 16 for;"),
        ({"high": 16, "high_kind": "above"}, "needs 9 for (95 % interval 6.2 to more than 16);"),
        ({"low": 16, "high": 16, "high_kind": "above"}, "(95 % interval 16 or more);"),
        # Scratch is already as good with the fewest labels: no labels are saved, but the gain is still told.
        ({"kind": "below", "labels": 4}, "GL-MAE is better than scratch: +0.030 Dice (95 % interval"),
        ({"init": "pgl"}, "GL-MAE is better than scratch: +0.030 Dice (95 % interval"),
    ],
)
def test_labels_saved_are_read_as_they_stand(row, said):
    assert said in headline.answer(FOUND, saved(**row), HOURS, TITLES, 0.95)[0]


def test_an_older_table_is_read_by_its_intervals():
    older = contrasts(("mae", 4, 0.02, 0.01, 0.03, ""), ("glmae", 4, 0.03, -0.01, 0.07, ""))
    first, rest = headline.answer(older, None, HOURS, TITLES, 0.95)
    assert first.startswith("With 4 labelled cases, MAE3D is better than scratch: +0.020 Dice")
    assert first.endswith("; its pretraining took 1 min 1 s (CPU).")
    assert rest == "Against scratch with 4 labels: GL-MAE (+0.030) is not separated from it."


def test_nothing_is_better_is_an_answer():
    none = contrasts(("mae", 1, -0.02, -0.03, -0.01, "worse"), ("mae", 8, 0.0, -0.01, 0.01, "not separated"))
    first, rest = headline.answer(none, saved(), HOURS, TITLES, 0.95)
    assert first == "No pretraining is shown to be better than scratch, with 1 or 8 labels."
    assert rest == "Against scratch with 1 label: MAE3D (\u22120.020) is worse."
    few = contrasts(("mae", 1, 0.2, NAN, NAN, ""))
    assert "too few patients" in headline.answer(few, None, {}, TITLES, 0.95)[0]
    assert headline.answer(contrasts(), None, {}, TITLES, 0.95) == []


def test_a_smaller_distance_is_better():
    row = {"low": -2.0, "high": -0.5, "metric": "hd95_mm", "verdict": ""}
    assert headline.verdict_of(row) == "better"
    assert headline.verdict_of(row | {"metric": "dice"}) == "worse"
    assert headline.verdict_of(row | {"verdict": "equivalent"}) == "equivalent"


def test_verdicts_are_laid_out_by_init_and_budget():
    matrix = headline.verdict_matrix(FOUND)
    assert matrix["budgets"] == [4, 16]
    words = {row["init"]: [cell and cell["word"] for cell in row["cells"]] for row in matrix["rows"]}
    assert words == {"mae": ["worse", None], "glmae": ["better", "better"], "pgl": ["equivalent", None]}
