"""Words: numbers with the sense they have, and no claim that an interval does not carry."""

import math

import pandas as pd
import pytest

from voxprior.study import wording


def test_numbers_have_the_places_that_make_sense():
    assert wording.number(0.81249, "dice") == "0.812"
    assert wording.number(4.46, "hd95_mm") == "4.5"
    assert wording.number(math.nan, "nsd") == "\u2013"
    assert wording.signed(-0.0123, "dice") == "\u22120.012"
    assert [wording.signed(v, "dice") for v in (0.0, -0.0001, 0.0006)] == ["0.000", "0.000", "+0.001"]
    assert [wording.share(v) for v in (0.0432, 0.31, 0.0996)] == ["4.3 %", "31 %", "10 %"]
    assert [wording.measure(v) for v in (-0.0625, 1234.5, 9.8e-10, math.nan)] == [
        "\u22120.0625",
        "1.23e+03",
        "0",
        "\u2013",
    ]
    assert wording.interval(0.1, 0.25, "dice") == "0.100 to 0.250"
    assert wording.interval(math.nan, math.nan, "dice") == ""
    assert [wording.duration(s) for s in (1.234, 42, 185, 7800)] == ["1.2 s", "42 s", "3 min 5 s", "2 h 10 min"]
    assert [wording.quantity(v) for v in (999, 2.14e10, 3.456e15, math.nan)] == ["999", "21.4 G", "3.46 P", "\u2013"]
    assert [wording.hours(v) for v in (0.123, 12.3, math.nan)] == ["0.12", "12", "\u2013"]
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.05, "is better than scratch: +0.030 Dice (95 % interval +0.010 to +0.050)"),
        (-0.05, -0.01, "is worse than scratch"),
        (-0.01, 0.05, "no difference between MAE3D and scratch is shown"),
        (math.nan, math.nan, "too few patients (2) for an interval"),
    ],
)
def test_findings_claim_what_the_interval_carries(low, high, said):
    row = {"difference": 0.03, "low": low, "high": high, "cases": 2, "budget": 4}
    assert said in wording.finding(row, "MAE3D", 0.95)


def test_findings_name_what_an_init_is_compared_with():
    row = {"difference": 0.03, "low": 0.01, "high": 0.05, "cases": 9, "budget": 1}
    assert "1 labelled case, PGL is better than BYOL: +0.030" in wording.finding(row, "PGL", 0.95, "BYOL")


def test_labels_equal_reads_scratchs_curve():
    rows = [("scratch", 1, 0.4), ("scratch", 4, 0.8), ("mae", 1, 0.6), ("mae", 4, 0.9)]
    curves = pd.DataFrame(rows, columns=["init", "budget", "mean"])
    assert wording.labels_equal(curves, "mae", 1) == "about 2"
    assert wording.labels_equal(curves, "mae", 4) == "more than 4"
    assert wording.labels_equal(curves[curves["init"] == "mae"], "mae", 4) == ""


def test_verdicts_of_the_tables_are_what_is_said():
    row = {"difference": 0.001, "low": 0.0005, "high": 0.002, "cases": 9, "budget": 4, "margin": 0.005}
    said = wording.finding(row | {"verdict": "equivalent"}, "MAE3D", 0.95)
    assert "MAE3D and scratch are equivalent within 0.005: +0.001 Dice" in said
    # An interval without 0 is no claim where the adjusted test does not carry it.
    assert "no difference" in wording.finding(row | {"verdict": "not separated"}, "MAE3D", 0.95)
    assert "is better than scratch" in wording.finding(row | {"verdict": "better"}, "MAE3D", 0.95)


def test_small_numbers_never_become_nothing():
    assert [wording.chance(v) for v in (0.0, 0.00012, 0.04, 0.5, math.nan)] == [
        "< 0.001", "< 0.001", "0.040", "0.50", "\u2013",
    ]  # fmt: skip
    assert [wording.effect(v) for v in (-0.371, 0.2, math.nan)] == ["\u22120.37", "+0.20", "\u2013"]
    assert [wording.energy(v) for v in (3600.0, 7.2e6, math.nan)] == ["1 Wh", "2 kWh", "\u2013"]
