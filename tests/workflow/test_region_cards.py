"""Which cards say that classes overlap: those of studies in which they do, and no other."""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CLASSES = {"necrotic": [1], "whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}


def cards(folder, snakemake, classes):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    dataset = yaml.safe_load((ROOT / "config" / "datasets" / f"{config['dataset']}.yaml").read_text())
    dataset |= {"classes": CLASSES, "regions": ["whole", "core", "enhancing"]}
    (folder / "config" / "datasets").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "datasets" / "nested.yaml").write_text(yaml.safe_dump(dataset))
    config |= {"dataset": "nested", "external": [], "classes": classes, "results": "results"}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    names = ["score", "prepare/nested"]
    done = snakemake(
        folder,
        "--cores",
        "1",
        "--configfile",
        str(folder / "study.yaml"),
        "--",
        *(f"results/cards/{name}.json" for name in names),
    )
    assert done.returncode == 0, done.text
    return [json.loads((folder / f"results/cards/{name}.json").read_text()) for name in names]


def test_cards_of_a_study_carry_regions_only_where_its_classes_overlap(tmp_path, snakemake):
    values = [[1, 2, 4], [1, 4], [4]]
    score, prepare = cards(tmp_path, snakemake, ["whole", "core", "enhancing"])
    assert score["regions"] == score["datasets"]["nested"] == prepare["classes"] == values
    score, prepare = cards(tmp_path, snakemake, ["necrotic", "enhancing"])
    assert "regions" not in score and "regions" not in prepare
