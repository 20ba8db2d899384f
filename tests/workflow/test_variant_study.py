"""Two settings of one method in one study: two pretrainings, one method on their cards, one paired comparison."""

import json
from pathlib import Path

import pytest
import yaml

SPLIT = {"test": 3, "val": 1, "budgets": [2]}
SMALL = {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24]}
CARD = "results/cards/pretrain/mini_vit/{}/fold0/seed0.json"


def study(write_study, folder: Path, methods: dict, inits: tuple = ("scratch", "mae", "mae_slim")) -> Path:
    return write_study(folder, inits={"mini_vit": list(inits)}, methods=methods, pool=[], split=SPLIT, finetune=SMALL)


def test_its_card_is_its_methods_with_what_is_written(tmp_path, snakemake, write_study, jobs):
    slim = {"method": "mae", "title": "Slim", "decoder_width": 24}
    folder = study(write_study, tmp_path / "study", {"mae": {"mask_ratio": 0.6}, "mae_slim": slim})
    cells = [
        f"results/cards/finetune/mini_vit/{init}/budget2/fold0/pretrain0_seed0.json" for init in ("mae", "mae_slim")
    ]
    wanted = [CARD.format("mae"), CARD.format("mae_slim"), *cells, "results/cards/compare.json", "results/check.json"]
    done = snakemake(folder, *wanted, "--cores", "1")
    assert done.returncode == 0, done.text
    usual, own, *tuned, compared, checked = (json.loads((folder / path).read_text()) for path in wanted)
    assert (usual["method"], own["method"]) == ("mae", "mae")
    assert usual["config"]["mask_ratio"] == own["config"]["mask_ratio"] == 0.6
    assert own == usual | {"config": usual["config"] | {"decoder_width": 24}}
    assert [card["init"] for card in tuned] == ["mae", "mae_slim"]
    assert tuned[0]["init_card"] != tuned[1]["init_card"]
    assert compared["variants"] == {"mae_slim": "mae"}
    assert checked["trainings"] == {"pretrain": 2, "finetune": 3}
    planned = jobs(snakemake(folder, "-n").text)
    assert (planned["pretrain"], planned["finetune"]) == (2, 3)
    plain = study(write_study, tmp_path / "plain", {"mae": {"mask_ratio": 0.6}}, ("scratch", "mae"))
    assert snakemake(plain, CARD.format("mae"), "results/cards/compare.json", "--cores", "1").returncode == 0
    assert json.loads((plain / CARD.format("mae")).read_text()) == usual
    assert "variants" not in json.loads((plain / "results/cards/compare.json").read_text())


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ({"mae_slim": {"method": "maee"}}, "no config/methods/maee.yaml; known methods: anatomask"),
        (
            {"mae_slim": {"method": "mae", "decoder_wdth": 8}},
            "unknown key 'decoder_wdth' at methods.mae_slim; known keys",
        ),
        ({}, "no config/methods/mae_slim.yaml"),
        ({"mae": 3, "mae_slim": {"method": "mae", "decoder_width": 24}}, "methods.mae: 3 is not of type 'object'"),
    ],
)
def test_an_unknown_method_or_number_is_refused_before_any_job(methods, says, tmp_path, snakemake, write_study):
    done = snakemake(study(write_study, tmp_path / "study", methods), "-n")
    assert done.returncode != 0 and says in done.text, done.text
    assert not (tmp_path / "study/results").exists()


def test_a_variant_that_changes_nothing_is_refused_by_the_check(tmp_path, snakemake, write_study):
    folder = study(write_study, tmp_path / "study", {"mae_slim": {"method": "mae", "mask_ratio": 0.75}})
    assert snakemake(folder, "results/check.json", "--cores", "1").returncode != 0
    assert "methods.mae_slim has the same numbers as mae" in (folder / "results/logs/check.log").read_text()


@pytest.mark.slow
def test_a_variant_is_trained_compared_and_shown_under_its_name(tmp_path, snakemake, write_study, jobs):
    pandas = pytest.importorskip("pandas")
    slim = {"method": "mae", "title": "Slim decoder", "decoder_width": 24}
    folder = study(write_study, tmp_path / "study", {"mae_slim": slim})
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.text
    results = folder / "results"
    usual, own = (
        json.loads((results / f"pretrain/mini_vit/{i}/fold0/seed0/summary.json").read_text())
        for i in ("mae", "mae_slim")
    )
    assert own["flops_per_step"] < usual["flops_per_step"] and own["title"] == usual["title"] == "MAE3D"
    contrasts = pandas.read_csv(results / "tables/contrasts.csv").query("metric == 'dice'")
    pairs = set(zip(contrasts["init"], contrasts["against"], strict=True))
    assert pairs == {("mae", "scratch"), ("mae_slim", "scratch"), ("mae_slim", "mae")}
    page = (results / "report.html").read_text()
    assert "Slim decoder (masked autoencoding with decoder_width 24 in place of 48)" in page
    assert "Pretraining Slim decoder on mini_vit: loss" in page
    runs = json.loads((results / "tracked.json").read_text())["runs"]
    assert {f"pretrain/mini_vit/{init}/fold0/seed0" for init in ("mae", "mae_slim")} < set(runs)
    assert jobs(snakemake(folder, "-n").text) == {}
    # Other numbers of the variant are another pretraining of its own, and nobody else's.
    path = folder / "config" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["methods"]["mae_slim"]["decoder_width"] = 36
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    planned = jobs(snakemake(folder, "-n").text)
    assert (planned["pretrain"], planned["finetune"]) == (1, 1)
