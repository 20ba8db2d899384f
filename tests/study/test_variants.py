"""A variant of a method has a name of its own in tables, text and tracking store, and is compared with its method."""

import json

import numpy as np
import pandas as pd

from voxprior.study import cells, compare, facts, methods_text, published

STUDY = {
    "study": "s", "dataset": "d", "classes": ["liver"], "files": {},
    "inits": {"vit": ["scratch", "mae", "slim"]},
    "methods": {"mae": {"mask_ratio": 0.6}, "slim": {"method": "mae", "title": "Slim MAE", "decoder_depth": 1}},
    "split": {"test": 4, "folds": 1, "budgets": [1]}, "pretrain": {"voxels": 10},
    "finetune": {"steps": 9, "crop_vox": [8, 8, 8]},
    "prepare": {"spacing_zyx_mm": [1, 1, 1], "intensity": {"kind": "percentile", "low": 1, "high": 99}},
}  # fmt: skip


def write_summary(folder):
    folder.mkdir(parents=True)
    card = {"method": "mae", "backbone": "vit", "fold": 0, "config": {"decoder_depth": 1}}
    told = {"title": "MAE3D", "steps": 3, "card": card, "card_hash": "c0ffee"}
    (folder / "summary.json").write_text(json.dumps(told))
    return card


def test_its_method_and_title_are_the_studys():
    assert [cells.method_of(STUDY, init) for init in ("scratch", "mae", "slim")] == ["scratch", "mae", "mae"]
    assert [cells.variant_title(STUDY, init) for init in ("mae", "slim")] == [None, "Slim MAE"]
    assert cells.variant_title({"methods": {"slim": {"method": "mae"}}}, "slim") == "slim"
    assert cells.pretrained(STUDY) == [("vit", "mae"), ("vit", "slim")]


def test_two_inits_of_one_method_have_two_titles(tmp_path):
    for init in ("mae", "slim"):
        write_summary(tmp_path / f"pretrain/vit/{init}/fold0/seed0")
    titles = facts.titles(tmp_path, STUDY)
    assert titles == {"scratch": "From scratch", "mae": "MAE3D", "slim": "Slim MAE"}


def test_the_store_shows_its_name_and_not_its_methods(tmp_path):
    card = write_summary(tmp_path / "results/pretrain/vit/slim/fold0/seed0")
    (place,) = published.places(tmp_path / "results", tmp_path / "work")
    run = published.read(place, {"study": STUDY}, card, "c0ffee")
    assert (run.tags["init"], run.tags["arm"], run.title) == ("slim", "slim vit", "pretrain Slim MAE vit")
    assert run.params["method"] == "mae" and "Slim MAE, a variant of MAE3D, pretrains" in run.note


def test_it_is_compared_with_scratch_and_with_its_method():
    chance = np.random.default_rng(0)
    rows = [
        ("s", "d", "test", "vit", init, 1, 0, 0, case, case, "liver", "dice", mean + 0.01 * chance.random(), "")
        for init, mean in (("scratch", 0.5), ("mae", 0.6), ("slim", 0.7))
        for case in "abcdef"
    ]
    names = ["study", "dataset", "cohort", "backbone", "init", "budget", "fold", "seed", "case", "patient", "class"]
    table = pd.DataFrame(rows, columns=[*names, "metric", "value", "flag"])
    settings = compare.Settings(0.95, 200, 0, simulated=False)
    found = compare.contrasts(table, settings, {"slim": "mae"}).set_index(["init", "against"])["difference"]
    assert set(found.index) == {("mae", "scratch"), ("slim", "scratch"), ("slim", "mae")}
    mean = table.groupby("init")["value"].mean()
    assert abs(found["slim", "mae"] - (mean["slim"] - mean["mae"])) < 1e-12


def test_the_methods_text_names_what_differs_and_cites_the_method_once():
    config = {
        "study": STUDY,
        "datasets": {"d": {"title": "Scans"}},
        "backbones": {"vit": {"title": "t", "family": "vit"}},
    }
    config |= {"methods": {"mae": {"decoder_depth": 2, "mask_ratio": 0.6}}}
    config |= {"variants": {"mae": {"slim": {"decoder_depth": 1, "mask_ratio": 0.6}}}}
    curves = pd.DataFrame([("test", "mean", "dice", 7)], columns=["cohort", "class", "metric", "cases"])
    contrasts = pd.DataFrame([("test", "dice", 0.005)], columns=["cohort", "metric", "margin"])
    said = " ".join(methods_text.build(config, {"curves": curves, "contrasts": contrasts}))
    assert "ISBI 2023) and Slim MAE (masked autoencoding with decoder_depth 1 in place of 2) and from random" in said
    assert said.count("He et al., CVPR 2022") == 1
    assert "with the method it builds on or is a variant of." in said
    alone = {**STUDY, "inits": {"vit": ["scratch", "slim"]}}
    said = " ".join(methods_text.build(config | {"study": alone}, {"curves": curves, "contrasts": contrasts}))
    assert "ISBI 2023) with decoder_depth 1 in place of 2)" in said
