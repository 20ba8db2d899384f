"""compare: the tables of a finished study, and what it refuses."""

import json

import pandas as pd
import pytest

from voxprior.commands import compare
from voxprior.errors import Refusal
from voxprior.study.compare import STAMP

FIRST = {"scores", "cases", "curves", "contrasts", "dice_by_budget"}


def run(results):
    compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
    return {path.stem: pd.read_csv(path) for path in (results / "tables").glob("*.csv") if path.stem != "dictionary"}


def test_tables_of_a_study(make_study):
    results = make_study()
    tables = run(results)
    assert set(tables) == {*FIRST, "labels_saved", "ranks", "variance"}
    scores, curves = tables["scores"], tables["curves"]
    cell = ["backbone", "init", "budget", "fold", "pretrain_seed", "seed"]
    assert list(scores)[:9] == ["study", "dataset", "cohort", *cell]
    assert scores.loc[scores["init"] == "scratch", "pretrain_seed"].isna().all()
    assert set(scores.loc[scores["init"] != "scratch", "pretrain_seed"]) == {0}
    assert len(scores) == 16 * 6 * 2 * 3
    assert set(scores.loc[scores["dataset"] == "elsewhere", "cohort"]) == {"external"}
    row = curves.query("cohort=='test' and init=='mae' and budget==4 and metric=='dice' and `class`=='spleen'").iloc[0]
    by_hand = scores.query("cohort=='test' and init=='mae' and budget==4 and metric=='dice' and `class`=='spleen'")
    assert row["mean"] == pytest.approx(by_hand.groupby("case")["value"].mean().mean(), abs=1e-7)
    assert (row["cases"], row["seeds"], row["excluded"]) == (4, 2, 2)  # 004 has no spleen, with either seed
    assert 0 <= row["low"] < row["mean"] < row["high"] <= 1
    assert curves.query("cohort == 'external'")["low"].isna().all()  # one patient
    metrics = json.loads((results / "tables/metrics.json").read_text())
    mean = curves.query("cohort=='test' and init=='mae' and budget==4 and metric=='dice' and `class`=='mean'")["mean"]
    assert metrics["vit_tiny"]["mae"]["4"] == pytest.approx(mean.item(), abs=1e-6)
    first = (results / "tables/curves.csv").read_bytes()
    run(results)
    assert (results / "tables/curves.csv").read_bytes() == first
    assert not list(results.rglob("*.part"))


def test_simulated_patients_get_a_stamp_and_no_interval(make_study):
    tables = run(make_study(simulated=True))
    for name in ("curves", "contrasts", "labels_saved", "ranks"):
        assert set(tables[name]["stamp"]) == {STAMP}
        assert tables[name][["low", "high"]].isna().all(axis=None)
    judged = ["effect", "effect_low", "effect_high", "p", "p_holm", "verdict", "false_claim", "smallest"]
    assert tables["contrasts"][judged].isna().all(axis=None)
    assert tables["contrasts"]["difference"].notna().all()
    assert tables["labels_saved"][["kind", "labels", "high_kind"]].isna().all(axis=None)
    assert tables["ranks"]["rank"].notna().all()


def test_every_column_is_explained_and_every_table_is_parquet_too(make_study):
    results = make_study()
    tables = run(results)
    about = pd.read_csv(results / "tables/dictionary.csv", keep_default_na=False)
    assert (about[["type", "meaning"]] != "").all(axis=None)
    for name, table in tables.items():
        known = about[about["table"] == name]["column"].tolist()
        shown = [column for column in table if not column.startswith("vit_tiny ") and not column.startswith("stunet")]
        assert shown == [c for c in known if c != "<backbone> <init>"], name
        assert list(table)[-1] == "stamp"
        stored = pd.read_parquet(results / f"tables/{name}.parquet")
        assert list(stored) == list(table)
        assert len(stored) == len(table)
    assert set(about["table"]) == set(tables)


def test_tables_hang_together(make_study):
    tables = run(make_study())
    contrasts, saved, ranks, variance = (tables[n] for n in ("contrasts", "labels_saved", "ranks", "variance"))
    curves = tables["curves"].query("`class` == 'mean' and cohort == 'test'")
    means = curves.set_index(["backbone", "init", "budget", "metric"])["mean"]
    judged = contrasts.query("cohort == 'test'")
    assert set(judged["verdict"]) <= {"better", "worse", "equivalent", "not separated"}
    assert (judged["p_holm"] >= judged["p"]).all()
    assert ((judged["false_claim"] < 0.025) == ((judged["low"] > 0) | (judged["high"] < 0))).all()
    assert set(contrasts.query("cohort == 'external'")["verdict"]) == {"not separated"}  # one patient
    assert len(saved) == len(judged.query("against == 'scratch'"))
    assert saved["low"].notna().all()
    assert (saved["low"] <= saved["high"]).all()
    best = ranks.query("cohort == 'test' and scheme == 'rank_of_means' and metric == 'dice' and rank == 1").iloc[0]
    rivals = means.xs((best["budget"], "dice"), level=("budget", "metric"))[best["backbone"]]
    assert rivals.idxmax() == best["init"]
    assert set(variance["source"]) == {"patient", "pretrain_seed", "seed", "rest"}
    assert variance.groupby(["cohort", "backbone", "init", "budget", "metric"])["share"].sum().round(6).max() == 1


def test_leakage_is_stamped_in_every_table_and_keeps_the_intervals(make_study):
    leak = {"learned": "here/p0", "scored": "elsewhere/e0", "shared": "voxels", "folds": [0]}
    tables = run(make_study(leaks=[leak, {**leak, "learned": "here/p1"}]))
    for name, table in tables.items():
        assert set(table["stamp"]) == {"leakage: 2 scored cases also learned from"}, name
    assert tables["contrasts"]["low"].notna().any()


def test_an_incomplete_study_is_refused(make_study):
    results = make_study()
    cell = results / "finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1/scores.csv"
    whole = cell.read_text()
    cell.write_text("".join(line for line in whole.splitlines(True) if ",002," not in line))
    with pytest.raises(Refusal, match=r"cell vit_tiny/mae/budget4/fold0/pretrain0_seed1: case '002' is not scored"):
        run(results)
    more = [line.replace("here,002,", "here,p2,") for line in whole.splitlines(True) if line.startswith("here,002,")]
    cell.write_text(whole + "".join(more))
    with pytest.raises(Refusal, match=r"case 'p2' is scored but no test case"):
        run(results)
    cell.write_text("".join(line for line in whole.splitlines(True) if not line.startswith("elsewhere,e0,")))
    with pytest.raises(
        Refusal, match=r"cell vit_tiny/mae/budget4/fold0/pretrain0_seed1: external case 'e0' is not scored"
    ):
        run(results)
    cell.write_text("dataset,case\nhere")
    with pytest.raises(Refusal, match=r"seed1/scores.csv is damaged"):
        run(results)
    cell.unlink()
    with pytest.raises(Refusal, match=r"vit_tiny/mae/budget4/fold0/pretrain0_seed1/scores.csv is missing: run 'score'"):
        run(results)
    assert not (results / "tables").exists()
