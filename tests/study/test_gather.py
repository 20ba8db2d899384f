"""Reading results: empty cells, what may be absent, and what may not."""

import math

import numpy as np
import pytest

from voxprior.errors import Refusal
from voxprior.study import gather

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmean_load\tcpu_time\n"


def test_benchmarks_count_repeats_and_do_not_invent_zeros(tmp_path):
    folder = tmp_path / "benchmarks" / "score" / "a"
    folder.mkdir(parents=True)
    (folder / "one.tsv").write_text(HEAD + "60\t0:01:00\t100\t1\t99\t59\n30\t0:00:30\t300\t1\t99\t29\n")
    (folder / "two.tsv").write_text(HEAD + "0.4\t0:00:00\tNA\tNA\tNA\tNA\n")
    jobs = gather.read_benchmarks(tmp_path).set_index("job")
    assert jobs.loc["score/a/one"].tolist() == [90, 300, 88]
    assert math.isnan(jobs.loc["score/a/two", "cpu_time"])
    assert gather.read_benchmarks(tmp_path / "nowhere").empty


def test_what_must_be_there_is_demanded(tmp_path):
    with pytest.raises(Refusal, match=r"summary\.json is missing: run the step"):
        gather.read_json(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"format":')
    with pytest.raises(Refusal, match=r"summary\.json is damaged"):
        gather.read_json(tmp_path / "summary.json")
    with pytest.raises(Refusal, match=r"curves\.csv is missing"):
        gather.read_table(tmp_path / "curves.csv")


def test_what_may_be_absent_is_empty(tmp_path):
    assert gather.read_journal(tmp_path / "journal.jsonl").empty
    assert gather.read_pictures(tmp_path / "pictures.npz") is None


def test_pictures_cannot_run_code(tmp_path):
    np.savez(tmp_path / "pictures.npz", input=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        gather.read_pictures(tmp_path / "pictures.npz")


def test_names_that_look_like_numbers_stay_names(tmp_path):
    cell = {"backbone": "b", "init": "scratch", "budget": 1, "fold": 0, "seed": 0}
    folder = gather.cell_folder(tmp_path, cell)
    folder.mkdir(parents=True)
    header = "dataset,case,patient,class,metric,value,flag\n"
    (folder / "scores.csv").write_text(header + "d,007,NA,liver,dice,0.5,\nd,008,01,liver,dice,,both_empty\n")
    scores = gather.read_scores(tmp_path, [cell], "s", "d")
    assert scores["case"].tolist() == ["007", "008"]
    assert scores["patient"].tolist() == ["NA", "01"]
    assert scores["flag"].tolist() == ["", "both_empty"]
    assert scores["value"].isna().tolist() == [False, True]
    (tmp_path / "curves.csv").write_text("case,mean,low\n007,0.5,\nNA,0.6,0.1\n")
    table = gather.read_table(tmp_path / "curves.csv")
    assert table["case"].tolist() == ["007", "NA"]
    assert table["low"].isna().tolist() == [True, False]
    gather.demand_cases(scores, {"folds": [{"fold": 0, "test": ["007", "008"]}]})
