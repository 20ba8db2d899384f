"""compare: the tables of a finished study, and what it refuses."""

import json

import pandas as pd
import pytest

from voxprior.commands import compare
from voxprior.errors import Refusal
from voxprior.study.compare import STAMP


def run(results):
    compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
    return {path.stem: pd.read_csv(path) for path in (results / "tables").glob("*.csv")}


def test_tables_of_a_study(make_study):
    results = make_study()
    tables = run(results)
    assert set(tables) == {"scores", "cases", "curves", "contrasts", "dice_by_budget"}
    scores, curves = tables["scores"], tables["curves"]
    assert list(scores)[:8] == ["study", "dataset", "cohort", "backbone", "init", "budget", "fold", "seed"]
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
    for name in ("curves", "contrasts"):
        assert set(tables[name]["stamp"]) == {STAMP}
        assert tables[name][["low", "high"]].isna().all(axis=None)


def test_leakage_is_stamped_in_every_table_and_keeps_the_intervals(make_study):
    leak = {"learned": "here/p0", "scored": "elsewhere/e0", "shared": "voxels", "folds": [0]}
    tables = run(make_study(leaks=[leak, {**leak, "learned": "here/p1"}]))
    for name, table in tables.items():
        assert set(table["stamp"]) == {"leakage: 2 scored cases also learned from"}, name
    assert tables["contrasts"]["low"].notna().any()


def test_an_incomplete_study_is_refused(make_study):
    results = make_study()
    cell = results / "finetune/vit_tiny/mae/budget4/fold0/seed1/scores.csv"
    whole = cell.read_text()
    cell.write_text("".join(line for line in whole.splitlines(True) if ",002," not in line))
    with pytest.raises(Refusal, match=r"cell vit_tiny/mae/4/0/1: case '002' is not scored"):
        run(results)
    more = [line.replace("here,002,", "here,p2,") for line in whole.splitlines(True) if line.startswith("here,002,")]
    cell.write_text(whole + "".join(more))
    with pytest.raises(Refusal, match=r"case 'p2' is scored but no test case"):
        run(results)
    cell.unlink()
    with pytest.raises(Refusal, match=r"vit_tiny/mae/budget4/fold0/seed1/scores.csv is missing: run 'score'"):
        run(results)
    assert not (results / "tables").exists()
