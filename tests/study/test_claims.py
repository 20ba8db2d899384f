"""Figures of claims: every row and word of the table is drawn, and nothing that it does not hold."""

import numpy as np
import pandas as pd

from voxprior.study import claims, figures

TITLES = {"scratch": "From scratch", "mae": "MAE3D", "glmae": "GL-MAE"}


def contrasts(**columns):
    rows = [("mae", "scratch", 4), ("glmae", "scratch", 4), ("glmae", "mae", 4), ("glmae", "scratch", 16)]
    table = pd.DataFrame(rows, columns=["init", "against", "budget"])
    return table.assign(difference=[0.02, 0.03, 0.01, 0.04], low=0.001, high=0.06, **columns)


def test_a_forest_names_every_pair_and_its_verdict():
    plot = claims.forest(contrasts(verdict=["better", "worse", "", "equivalent"], margin=0.005), TITLES, "the mark")
    for said in ["MAE3D vs scratch", "GL-MAE vs MAE3D", "4 labels", "16 labels", ">better<", ">worse<", "equivalent"]:
        assert said in plot.svg, said
    assert "the mark" in plot.svg
    assert ">not separated<" not in plot.svg
    assert plot == claims.forest(
        contrasts(verdict=["better", "worse", "", "equivalent"], margin=0.005), TITLES, "the mark"
    )


def test_an_older_table_has_no_words_and_simulated_patients_no_intervals():
    older = claims.forest(contrasts(), TITLES, "").svg
    assert not [word for word in claims.WORDS if f">{word}<" in older]
    bare = claims.forest(contrasts().assign(low=np.nan, high=np.nan), TITLES, "").svg
    assert "MAE3D vs scratch" in bare


def test_many_budgets_become_three():
    assert claims.spaced_budgets([8, 1, 2, 4, 64, 16, 32]) == [1, 8, 64]
    assert claims.spaced_budgets([4, 4, 16]) == [4, 16]
    assert claims.spaced_budgets([1, 2, 3, 4], most=2) == [1, 4]


def test_ranks_show_both_schemes_and_the_mark():
    rows = [(init, 4, scheme, i + 1.0) for i, init in enumerate(TITLES) for scheme in claims.SCHEMES]
    table = pd.DataFrame(rows, columns=["init", "budget", "scheme", "rank"]).assign(low=1.0, high=3.0)
    svg = claims.ranks(table, TITLES, "the mark").svg
    assert all(f">{title}<" in svg for title in TITLES.values())
    assert "the mark" in svg
    missing = table[(table["init"] != "mae") | (table["scheme"] != "mean_of_ranks")]
    assert ">MAE3D<" in claims.ranks(missing, TITLES, "").svg


def test_variance_draws_the_sources_that_are_known():
    shares = {"patient": 0.7, "pretrain_seed": np.nan, "seed": 0.1, "rest": 0.2}
    table = pd.DataFrame([("mae", s, v) for s, v in shares.items()], columns=["init", "source", "share"])
    svg = claims.variance(table, TITLES, "").svg
    assert "pretraining seeds" not in svg
    assert all(name in svg for name in ("patients", "fine-tuning seeds", "rest"))
    assert "var(--source-0)" in figures.inline(svg, "") and figures.SOURCES[0] not in figures.inline(svg, "")
