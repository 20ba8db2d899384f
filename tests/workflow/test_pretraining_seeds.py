"""Pretraining seeds are an axis of a study: another one adds its own jobs, and enters every table."""

import json
from pathlib import Path

import pytest
import yaml

INITS = {"mini_vit": ["scratch", "mae"]}
SMALL = {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0, 1]}


def seeds(folder: Path, numbers: list[int]) -> None:
    """Changes the study's pretraining seeds, and nothing else."""
    path = folder / "config" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["pretrain"]["seeds"] = numbers
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def study(write_study, folder: Path) -> Path:
    """Writes a study of one method, one budget and two fine-tuning seeds."""
    split = {"test": 3, "val": 1, "budgets": [2]}
    return write_study(folder, inits=INITS, methods={}, pool=[], split=split, finetune=SMALL)


def test_each_seed_has_a_pretraining_of_its_own_and_the_first_keeps_its_card(tmp_path, snakemake, write_study, jobs):
    folder = study(write_study, tmp_path / "study")
    cards = "results/cards/{}/mini_vit/{}.json".format
    first = [cards("pretrain", "mae/fold0/seed0"), cards("finetune", "mae/budget2/fold0/pretrain0_seed1")]
    read = lambda wanted: [json.loads((folder / card).read_text()) for card in wanted]  # noqa: E731
    assert snakemake(folder, *first, "--cores", "1").returncode == 0
    alone = read(first)
    assert alone[0]["pretrain"] == {"voxels": 300_000, "batch_size": 2, "precision": "fp32", "seed": 0}
    seeds(folder, [0, -3])
    second = [cards("pretrain", "mae/fold0/seed-3"), cards("finetune", "mae/budget2/fold0/pretrain-3_seed1")]
    done = snakemake(folder, *first, *second, "results/check.json", "--cores", "1")
    assert done.returncode == 0, done.text
    assert read(first) == alone
    pretrain, finetune = read(second)
    assert pretrain == alone[0] | {"pretrain": alone[0]["pretrain"] | {"seed": -3}}
    assert finetune["init_card"] != alone[1]["init_card"]
    assert finetune == alone[1] | {"init_card": finetune["init_card"]}  # the same lists, steps and fine-tuning seeds
    assert json.loads((folder / "results/check.json").read_text())["trainings"] == {"pretrain": 2, "finetune": 2 + 4}
    planned = jobs(snakemake(folder, "-n").text)
    assert planned["pretrain"] == 2 and planned["finetune"] == planned["predict"] == planned["score"] == 2 + 4


def test_a_seed_twice_is_refused(tmp_path, snakemake, write_study):
    folder = study(write_study, tmp_path / "study")
    seeds(folder, [1, 1])
    assert snakemake(folder, "results/check.json", "--cores", "1").returncode != 0
    assert "pretrain.seeds has 1 twice" in (folder / "results/logs/check.log").read_text()


@pytest.mark.slow
def test_another_pretraining_seed_runs_alone_and_enters_every_table(tmp_path, snakemake, write_study, jobs):
    pandas = pytest.importorskip("pandas")
    folder = study(write_study, tmp_path / "study")
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.text
    results = folder / "results"
    kept = {path: path.read_bytes() for path in results.rglob("*.safetensors")}
    assert len(kept) == 1 + 4
    variance = (
        pandas.read_csv(results / "tables/variance.csv").set_index(["init", "metric", "source"])["share"].sort_index()
    )
    assert variance["mae", "dice"].isna()["pretrain_seed"]

    seeds(folder, [0, 1])
    planned = jobs(snakemake(folder, "-n").text)
    assert planned.pop("card") == 1 + 2 + 1  # of the pretraining, its fine-tunings, and the comparison
    assert planned == {
        "config_file": 1, "check": 1, "pretrain": 1, "finetune": 2, "predict": 2, "score": 2, "compare": 1,
        "report": 1, "store": 1, "track": 1,
    }  # fmt: skip
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.text
    assert {path: path.read_bytes() for path in kept} == kept
    encoders = [results / f"pretrain/mini_vit/mae/fold0/seed{seed}/encoder.safetensors" for seed in (0, 1)]
    assert encoders[0].read_bytes() != encoders[1].read_bytes()

    scores = pandas.read_csv(results / "tables/scores.csv")
    networks = scores[["init", "pretrain_seed", "seed"]].drop_duplicates().fillna(-1).astype({"pretrain_seed": int})
    assert set(networks.itertuples(index=False, name=None)) == {
        ("scratch", -1, 0), ("scratch", -1, 1), ("mae", 0, 0), ("mae", 0, 1), ("mae", 1, 0), ("mae", 1, 1),
    }  # fmt: skip
    curves = pandas.read_csv(results / "tables/curves.csv").groupby("init")["seeds"].unique()
    assert (curves["scratch"].tolist(), curves["mae"].tolist()) == ([2], [4])
    variance = (
        pandas.read_csv(results / "tables/variance.csv").set_index(["init", "metric", "source"])["share"].sort_index()
    )
    assert variance["mae", "dice"].notna().all()
    assert variance["scratch", "dice"].isna()["pretrain_seed"]
    contrast = pandas.read_csv(results / "tables/contrasts.csv").set_index("metric").loc["dice"]
    dice = scores[scores["metric"] == "dice"].groupby(["init", "case", "pretrain_seed", "seed"], dropna=False)["value"]
    by_case = dice.mean().groupby(["init", "case"]).mean()
    assert contrast["difference"] == pytest.approx((by_case["mae"] - by_case["scratch"]).mean(), abs=1e-7)
    assert contrast["cases"] == 3 and contrast["low"] < contrast["difference"] < contrast["high"]

    page = (results / "report.html").read_text()
    assert "2 pretraining seeds x 2 fine-tuning seeds; from scratch 2" in page
    assert "thin: its 1 other" in page and "Pretraining seed</th>" in page
    runs = json.loads((results / "tracked.json").read_text())["runs"]
    assert {"pretrain/mini_vit/mae/fold0/seed1", "finetune/mini_vit/mae/budget2/fold0/pretrain1_seed0"} < set(runs)
    assert jobs(snakemake(folder, "-n").text) == {}
