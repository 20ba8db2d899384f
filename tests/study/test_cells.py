"""Names of folders say by which seeds a network came about, and are read back."""

import pytest

from voxprior.commands.watch import words
from voxprior.study import cells, facts, gather, lineage, published, views

STUDY = {
    "study": "s",
    "dataset": "d",
    "inits": {"vit": ["mae", "scratch", "mine"]},
    "files": {"mine": {}},
    "split": {"budgets": [1, 4], "folds": 2},
    "pretrain": {"seeds": [0, -3]},
    "finetune": {"seeds": [5, 6]},
}
ARMS = cells.arms_of(STUDY)


def test_only_what_the_study_pretrains_has_pretraining_seeds():
    counted = {arm: (len(cells.pretrainings_of(STUDY, *arm)), len(cells.cells_of(STUDY, *arm))) for arm in ARMS}
    assert counted == {("vit", "scratch"): (0, 8), ("vit", "mae"): (4, 16), ("vit", "mine"): (0, 8)}
    seeds = {(cell["pretrain_seed"], cell["seed"]) for cell in cells.cells_of(STUDY, "vit", "mae", 4)}
    assert seeds == {(0, 5), (0, 6), (-3, 5), (-3, 6)}  # the same fine-tuning seeds for each
    assert {cell["pretrain_seed"] for cell in cells.cells_of(STUDY, "vit", "mine")} == {None}


def test_names_are_told_apart_and_read_back():
    named = []
    for arm in ARMS:
        for cell in cells.cells_of(STUDY, *arm):
            named.append(cells.cell_name(cell))
            assert cells.read_name(named[-1])._asdict() == cell
        for run in cells.pretrainings_of(STUDY, *arm):
            named.append(cells.pretraining_name(run))
            assert cells.read_name(named[-1])._asdict() == run | {"budget": None, "seed": None}
    assert len(set(named)) == len(named) == 8 + 16 + 8 + 4
    assert "vit/mae/budget4/fold1/pretrain-3_seed5" in named and "vit/scratch/budget4/fold1/seed5" in named


@pytest.mark.parametrize("name", ["vit/mae", "vit/mae/fold0", "vit/mae/fold0/pretrain0_seed1", "vit/mae/budget4/seed1"])
def test_other_folders_are_no_runs(name):
    assert cells.read_name(name) is None


def test_a_run_is_called_by_its_seeds():
    assert words("vit/mae/budget1/fold0/pretrain-3_seed5") == "mae 1 label p-3 s5 vit"
    assert words("vit/scratch/budget4/fold1/seed5") == "scratch 4 labels s5 f1 vit"
    assert words("vit/mae/fold0/seed-3") == "mae p-3 vit"
    assert words("chest_ct") == "chest_ct"
    tags = {"stage": "finetune", "init": "mae", "backbone": "vit", "budget": "4", "fold": "0", "seed": "5"}
    tags["pretrain_seed"] = "-3"
    assert published.title(tags, {}, STUDY) == "mae 4 labels p-3 s5 f0 vit"
    one = STUDY | {"pretrain": {"seeds": [0]}, "split": {"budgets": [4]}}
    assert published.title(tags, {}, one) == "mae 4 labels s5 vit"
    assert published.title(tags | {"stage": "pretrain"}, {"title": "MAE3D"}, STUDY) == "pretrain MAE3D p-3 vit fold 0"
    assert ["pretrain_seed" in views.views(study)[0].tag()[1] for study in (STUDY, one)] == [True, False]


def test_costs_and_lineage_count_every_seed(make_study):
    results = make_study(pretrain_seeds=(0, 7))
    study = gather.read_json(results / "config.json")["study"]
    table = facts.runs(results, study | {"files": {}, "split": study["split"] | {"folds": 1}})
    runs = {(row["stage"], row["init"], row["budget"]): row["runs"] for row in facts.costs(table)}
    assert runs["pretrain", "mae", 0] == 2
    assert (runs["finetune", "mae", 4], runs["finetune", "scratch", 4]) == (4, 2)
    arms = lineage.arms(table, lineage.Places(results, results), lineage.Store("", "", {}))
    by_name = {(arm["backbone"], arm["init"], arm["budget"]): arm for arm in arms}
    mae, scratch = by_name["vit_tiny", "mae", 4], by_name["vit_tiny", "scratch", 4]
    assert [run["pretrain_seed"] for run in mae["pretrainings"]] == [0, 7]
    assert [(run["pretrain_seed"], run["seed"]) for run in mae["runs"]] == [(0, 0), (0, 1), (7, 0), (7, 1)]
    assert [(run["pretrain_seed"], run["seed"]) for run in scratch["runs"]] == [(None, 0), (None, 1)]
