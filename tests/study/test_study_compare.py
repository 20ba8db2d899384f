"""Tables of a study, on scores small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from voxprior.study import cases, compare, layout, standings, tables

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


def many(inits: dict[str, float], patients: int = 12, seeds: int = 2, **columns) -> pd.DataFrame:
    """Makes scores of many patients: {init: gain}, the same patients for all, noise of their own."""
    chance = np.random.default_rng(0)
    easy = chance.normal(0.6, 0.05, patients)
    values = {
        (init, budget, seed, f"p{i:02d}", "liver"): easy[i] + gain + 0.05 * step + chance.normal(0, 0.004)
        for init, gain in inits.items()
        for step, budget in enumerate((1, 2, 4))
        for seed in range(seeds)
        for i in range(patients)
    }
    return scores(values).assign(**columns)


def test_verdicts_follow_difference_and_margin():
    table = many({"scratch": 0.0, "mae": 0.05, "byol": 0.0, "glmae": -0.02})
    found = compare.contrasts(table, SETTINGS).set_index(["init", "against", "budget"]).sort_index()
    assert set(found.loc[("mae", "scratch")]["verdict"]) == {"better"}
    assert set(found.loc[("byol", "scratch")]["verdict"]) == {"equivalent"}
    assert set(found.loc[("glmae", "mae")]["verdict"]) == {"worse"}
    assert set(found["margin"]) == {0.005}
    assert (found["p_holm"] >= found["p"]).all()
    strict = compare.contrasts(table, SETTINGS._replace(margin=0.0))
    strict = strict.set_index(["init", "against", "budget"]).sort_index()
    assert set(strict.loc[("byol", "scratch")]["verdict"]) == {"not separated"}


def test_lower_distances_are_better():
    table = many({"scratch": 0.0, "mae": 0.05}, metric="hd95_mm").assign(value=lambda rows: 1 - rows["value"])
    found = compare.contrasts(table, SETTINGS._replace(margin_mm=0.01))
    assert set(found["verdict"]) == {"better"}
    assert set(found["margin"]) == {0.01}
    ranks = standings.rank_table(layout.lay_out(table), SETTINGS)
    assert set(ranks[ranks["init"] == "mae"]["rank"]) == {1}
    saved = standings.saved_table(layout.lay_out(table), SETTINGS).set_index("budget")
    assert saved.loc[2, "kind"] == "about"
    assert saved.loc[2, "labels"] == pytest.approx(4, rel=0.1)


def test_signed_volumes_have_means_and_no_verdicts():
    table = many({"scratch": 0.0, "mae": 0.05}, metric="volume_ml")
    assert len(compare.curves(table, SETTINGS)) == 12
    arms = layout.lay_out(table)
    assert compare.contrasts(arms, SETTINGS).empty
    assert standings.rank_table(arms, SETTINGS).empty
    assert standings.saved_table(arms, SETTINGS).empty


def test_holms_family_is_a_metric_of_a_cohort():
    one = compare.contrasts(many({"scratch": 0.0, "mae": 0.002, "byol": 0.003}), SETTINGS)
    both = pd.concat([many({"scratch": 0.0, "mae": 0.002, "byol": 0.003}, metric=m) for m in ("dice", "nsd")])
    two = compare.contrasts(both, SETTINGS)
    assert two[two["metric"] == "dice"]["p_holm"].tolist() == one["p_holm"].tolist()
    assert one["p_holm"].max() <= 6 * one["p"].max()


def test_pretraining_seeds_are_a_level_of_their_own():
    table = pd.concat([many({"scratch": 0.0}), many({"mae": 0.05}), many({"mae": 0.05}, pretrain_seed=1)])
    table["pretrain_seed"] = table["pretrain_seed"].mask(table["init"] == "mae", table["pretrain_seed"].fillna(0))
    table["pretrain_seed"] = table["pretrain_seed"].astype("Int32")  # as read: none from scratch
    arms = {arm.init: arm for arm in layout.lay_out(table)}
    assert arms["scratch"].mean.shape == (12, 1, 2)
    assert arms["mae"].mean.shape == (12, 2, 2)
    curves = compare.curves(table, SETTINGS)
    assert set(curves[curves["init"] == "mae"]["seeds"]) == {4}
    parts = standings.variance_table(list(arms.values()), SETTINGS).set_index(["init", "budget", "source"])
    assert np.isnan(parts.loc[("scratch", 4, "pretrain_seed"), "variance"])
    assert parts.loc[("mae", 4, "pretrain_seed"), "variance"] >= 0


def test_external_cases_are_averaged_over_folds_and_counted_per_fold():
    rows = scores({("scratch", 1, 0, "x", "liver"): 0.2, ("scratch", 1, 0, "y", "liver"): 0.4})
    rows = pd.concat([rows, rows.assign(fold=1, value=[0.6, np.nan], flag=["", "both_empty"])])
    arm = layout.lay_out(rows.assign(cohort="external"))[0]
    assert dict(zip(arm.cases, arm.mean[:, 0, 0], strict=True)) == pytest.approx({"x": 0.4, "y": 0.4})
    assert arm.excluded == {"liver": 1}
    table = cases.case_table(rows).set_index(["fold", "case"])
    assert table.loc[(1, "x"), ["value", "scored"]].tolist() == [0.6, 1]
    assert np.isnan(table.loc[(1, "y"), "value"])
    assert table.loc[(1, "y"), "scored"] == 0


def test_long_tables_are_written_as_short_ones_are(tmp_path, monkeypatch):
    table = many({"scratch": 0.0})
    table["value"] = table["value"].round(6)
    words = table.assign(**{name: pd.Categorical(table[name]) for name in ("study", "dataset", "cohort", "case")})
    words = words.assign(**{name: pd.Categorical(table[name]) for name in ("init", "backbone", "metric", "patient")})
    words = words.assign(flag=pd.Categorical(table["flag"]), **{"class": pd.Categorical(table["class"])})
    tables.write_table(tmp_path, "short", words)
    monkeypatch.setattr(tables, "MANY", 0)
    tables.write_table(tmp_path, "long", words)
    assert (tmp_path / "long.csv").read_text() == (tmp_path / "short.csv").read_text()
    odd = words.assign(case=pd.Categorical([f'a,"b" {i}' for i in range(len(words))]))
    tables.write_table(tmp_path, "odd", odd)
    assert pd.read_csv(tmp_path / "odd.csv")["case"].tolist() == odd["case"].tolist()
