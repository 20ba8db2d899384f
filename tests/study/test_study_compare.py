"""Tables of a study, on scores small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from voxprior.study import compare

SETTINGS = compare.Settings(0.95, 200, 0, simulated=False)


def scores(values: dict[tuple, float | None], metric: str = "dice") -> pd.DataFrame:
    """Makes a score table from {(init, budget, seed, case, class): value}; None is a class that neither map has."""
    rows = []
    for (init, budget, seed, case, name), value in values.items():
        row = {"study": "s", "dataset": "d", "cohort": "test", "backbone": "b", "init": init, "budget": budget}
        row |= {"fold": 0, "seed": seed, "case": case, "patient": case, "class": name, "metric": metric}
        rows.append(row | {"value": np.nan if value is None else value, "flag": "both_empty" if value is None else ""})
    return pd.DataFrame(rows)


def test_means_go_over_classes_then_seeds_then_cases():
    table = scores(
        {
            ("scratch", 1, 0, "x", "liver"): 0.2,
            ("scratch", 1, 0, "x", "spleen"): 0.4,
            ("scratch", 1, 1, "x", "liver"): 0.6,
            ("scratch", 1, 1, "x", "spleen"): None,
            ("scratch", 1, 0, "y", "liver"): 1.0,
            ("scratch", 1, 0, "y", "spleen"): None,
            ("scratch", 1, 1, "y", "liver"): 0.8,
            ("scratch", 1, 1, "y", "spleen"): None,
        }
    )
    found = compare.curves(table, SETTINGS).set_index("class")
    assert found.loc["mean", "mean"] == pytest.approx(((0.3 + 0.6) / 2 + (1.0 + 0.8) / 2) / 2)
    assert found.loc["spleen", "mean"] == pytest.approx(0.4)
    assert found.loc["mean", ["cases", "seeds", "excluded"]].tolist() == [2, 2, 3]
    assert found.loc["spleen", ["cases", "seeds", "excluded"]].tolist() == [1, 2, 3]


def test_a_mean_of_nothing_is_no_number_and_not_zero():
    found = compare.mean_dice(compare.curves(scores({("mae", 1, 0, "x", "liver"): None}), SETTINGS))
    assert found == {"b": {"mae": {"1": None}}}


def test_contrasts_are_paired_by_case_not_by_order():
    cases = ["a", "b", "c", "d"]
    base = dict(zip(cases, [0.1, 0.9, 0.4, 0.6], strict=True))
    arm = {("mae", 1, 0, case, "liver"): base[case] + 0.05 for case in reversed(cases)}
    other = {("scratch", 1, 0, case, "liver"): base[case] for case in cases}
    found = compare.contrasts(scores(arm | other), SETTINGS).iloc[0]
    assert found[["difference", "low", "high"]].tolist() == pytest.approx([0.05] * 3)
    lost = compare.contrasts(scores(arm | {key: value for key, value in other.items() if key[3] != "b"}), SETTINGS)
    assert lost.iloc[0]["cases"] == 3
    assert compare.contrasts(scores(arm), SETTINGS).empty


def test_contrasts_are_the_planned_ones():
    inits = ["scratch", "mae", "glmae", "byol", "pgl"]
    values = {
        (init, 1, 0, case, "liver"): 0.1 * n + 0.01 * n * int(case) for n, init in enumerate(inits) for case in "1234"
    }
    found = compare.contrasts(scores(values), SETTINGS)
    pairs = list(zip(found["init"], found["against"], strict=True))
    assert sorted(pairs) == sorted(
        [
            ("mae", "scratch"),
            ("glmae", "scratch"),
            ("byol", "scratch"),
            ("pgl", "scratch"),
            ("glmae", "mae"),
            ("pgl", "byol"),
        ]
    )
    pgl = found.set_index(["init", "against"]).loc[("pgl", "byol")]
    assert pgl["difference"] == pytest.approx(0.1 + 0.01 * 2.5)
    only = compare.contrasts(scores({k: v for k, v in values.items() if k[0] in ("mae", "glmae")}), SETTINGS)
    assert list(zip(only["init"], only["against"], strict=True)) == [("glmae", "mae")]  # scratch is not in this study


def test_intervals_stay_inside_the_metric():
    rows = {("scratch", 1, 0, f"p{i}", "liver"): value for i, value in enumerate([1, 1, 1, 0.98, 0.5])}
    found = compare.curves(scores(rows), SETTINGS)
    assert (found["high"] <= 1).all()
    far = compare.curves(scores({key: value * 200 for key, value in rows.items()}, "hd95_mm"), SETTINGS)
    assert (far["high"] > 1).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.6, ("about", 2.0)),
        (0.7, ("about", 8**0.5)),
        (0.8, ("about", 4.0)),
        (0.81, ("above", 4.0)),
        (0.3, ("below", 1)),
    ],
)
def test_labels_that_scratch_needs(value, expected):
    found = compare.labels_needed([1, 2, 4], [0.4, 0.6, 0.8], value)
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1])
