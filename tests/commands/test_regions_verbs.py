"""Overlapping classes from label files to scores: nested balls with values as BraTS has them, one of them not known."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior import cards
from voxprior.commands import fetch, finetune, intake, predict, predict_test, prepare, relabel, score
from voxprior.data import cache, phantoms, volume
from voxprior.errors import Refusal

CLASSES = {"whole": [1, 2, 4], "core": [4, 2], "enhancing": [4]}
BELONGS = [[1], [1, 2], [1, 2, 3]]
IGNORED = 9
CNN = {"channels": [4, 8, 8], "blocks": 1, "pretrained_stages": 2}


def scan(seed):
    """Nested balls, each of a grey of its own, and a corner of the outer one that nobody knows."""
    chance = np.random.default_rng(seed)
    z, y, x = (
        np.indices((22, 24, 20)) - np.array([11, 12, 10])[:, None, None, None] - chance.uniform(-1, 1, (3, 1, 1, 1))
    )
    far = np.sqrt(z**2 + y**2 + x**2)
    labels = np.select([far < 3.5, far < 6, far < 9], [4, 2, 1], 0).astype(np.uint8)
    grey = np.array([0, 300, 600, 0, 900])[labels] + chance.normal(0, 10, labels.shape)
    labels[(far >= 6) & (far < 9) & (z < -6)] = IGNORED
    return grey.astype(np.int16), labels


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Taken in, prepared on the scans' own grid, and two models of a few steps."""
    place = tmp_path_factory.mktemp("nested")
    truth = {}
    for number in range(4):
        grey, truth[f"c{number}"] = scan(number)
        grid = phantoms.grid_of(grey.shape, (2.0, 2.0, 2.0), "RAS")
        for kind, array in (("images", grey), ("labels", truth[f"c{number}"])):
            volume.write_image(volume.from_array(array, grid), place / "scans" / kind / f"c{number}.nii.gz")
    scale = {"spacing_zyx_mm": (2.0, 2.0, 2.0), "intensity": {"kind": "window", "low": 0, "high": 1000}}
    layout = {"kind": "folder", "images": "images/{case}.nii.gz", "labels": "labels/{case}.nii.gz"}
    values = list(CLASSES.values())
    tune = {
        "init": "scratch", "backbone": "tiny", "family": "cnn", "architecture": CNN, "recipe": {"lr": 0.01},
        "steps": 40, "classes": list(CLASSES), "regions": values, "batch_size": 2, "crop_vox": (16, 16, 16),
        "foreground": 0.5, "precision": "fp32", "prepare": scale, "budget": 2, "fold": 0,
    }  # fmt: skip
    made = {
        "fetch": cards.FetchCard(dataset="own", source={"kind": "folder", "path": str(place / "scans")}),
        "intake": cards.IntakeCard(dataset="own", layout=layout, classes=CLASSES, ignore=[IGNORED], modality="mr"),
        "prepare": cards.PrepareCard(dataset="own", classes=values, ignore=[IGNORED], prepare=scale),
        "score": cards.ScoreCard(
            classes=list(CLASSES), datasets={"own": values}, ignore={"own": [IGNORED]}, regions=values, score={}
        ),
        "predict": cards.PredictCard(predict={"overlap": 0.5}, fold=0),
        **{f"model{seed}": cards.FinetuneCard(**tune, seed=seed) for seed in (0, 1)},
    }
    card = {name: place / f"{name}.json" for name in made}
    for name, content in made.items():
        card[name].write_text(content.model_dump_json())
    fetch.run(card["fetch"], place / "raw/manifest.json", None)
    intake.run(card["intake"], place / "raw/manifest.json", place / "cases.csv", place / "aside.csv")
    index = place / "p/index.json"
    prepare.run(card["prepare"], place / "cases.csv", index, 1)
    fold = {
        "fold": 0,
        "test": ["c0", "c1"],
        "val": [],
        "train": ["c2", "c3"],
        "pool": [],
        "budgets": {"2": ["c2", "c3"]},
    }
    (place / "splits.json").write_text(json.dumps({"format": 1, "sha256": "", "folds": [fold]}))
    models = []
    for seed in (0, 1):
        cell = place / f"cell{seed}"
        finetune.run(card[f"model{seed}"], index, place / "splits.json", cell, place / f"w{seed}", None, 1, "cpu")
        models.append(cell / "model.safetensors")
    predicted = place / "cell0/predictions.json"
    predict_test.run(card["predict"], models[0], [index], place / "splits.json", predicted, 1, "cpu")
    return SimpleNamespace(place=place, card=card, index=index, truth=truth, models=models, predicted=predicted)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def maps(study):
    for entry in json.loads(study.predicted.read_text())["cases"]:
        yield entry, read(entry["file"]), study.truth[entry["case"]]


def test_the_cache_holds_painted_ids(study):
    for name, truth in study.truth.items():
        case = cache.open_case(study.index, name)
        stored = volume.from_array(
            case.read_label((0, 0, 0), case.shape_zyx), phantoms.grid_of(truth.shape, (2.0,) * 3)
        )
        ids = np.array([0, 1, 2, 0, 3, 0, 0, 0, 0, 255])[truth]
        # Stored in LPS, and the scans are RAS: x and y run the other way.
        assert np.array_equal(sitk.GetArrayFromImage(stored)[:, ::-1, ::-1], ids)


def test_a_model_has_a_channel_per_class_and_says_how_they_overlap(study):
    from voxprior.commands import trained
    from voxprior.exchange.models import read_model

    loaded = trained.load(study.models[0])
    assert loaded.card.outputs == 3
    assert loaded.about["regions"] == loaded.regions == BELONGS
    assert read_model(study.models[0]).layout()["output"]["classes"] == list(CLASSES)
    journal = [json.loads(line) for line in (study.place / "cell0/journal.jsonl").read_text().splitlines()]
    assert {"dice", "bce"} <= set(journal[-1]) and "ce" not in journal[-1]
    assert journal[-1]["loss"] < 0.7 * journal[0]["loss"]


def test_scores_are_those_of_unions_by_an_oracle(study, tmp_path):
    score.run(study.card["score"], study.predicted, [study.place / "cases.csv"], tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        told = {(row["case"], row["class"], row["metric"]): row for row in csv.DictReader(file)}
    for entry, found, truth in maps(study):
        known = truth != IGNORED
        for number, (name, values) in enumerate(CLASSES.items(), 1):
            there = np.isin(truth, values) & known
            said = (found >= number) & known  # nested: a later class lies in all before it
            dice = 2 * (there & said).sum() / (there.sum() + said.sum())
            assert dice > 0.3, "nothing is learned, so nothing is tested"
            assert float(told[entry["case"], name, "dice"]["value"]) == pytest.approx(dice)
            more_ml = (int(said.sum()) - int(there.sum())) * 8 / 1000
            assert float(told[entry["case"], name, "volume_ml"]["value"]) == pytest.approx(more_ml)
        assert entry["volume_ml"] == pytest.approx([float((found >= n).sum()) * 0.008 for n in (1, 2, 3)])
    assert {metric for _, _, metric in told} == {"dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "volume_error"}


def test_a_perfect_prediction_scores_1_for_every_class(study, tmp_path):
    listed = []
    for name in ("c0", "c1"):
        truth = study.truth[name]
        file = tmp_path / f"{name}.nii.gz"
        ids = np.array([0, 1, 2, 0, 3, 0, 0, 0, 0, 2], np.uint8)[truth]  # something where nobody knows
        volume.write_image(volume.from_array(ids, phantoms.grid_of(truth.shape, (2.0,) * 3, "RAS")), file)
        listed.append({"dataset": "own", "case": name, "file": str(file)})
    (tmp_path / "predictions.json").write_text(json.dumps({"cases": listed}))
    score.run(study.card["score"], tmp_path / "predictions.json", [study.place / "cases.csv"], tmp_path / "s.csv")
    with open(tmp_path / "s.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] in ("dice", "nsd")]
    assert len(rows) == 2 * 3 * 2
    assert {row["value"] for row in rows} == {"1"}


def test_label_files_get_the_datasets_own_values(study, tmp_path):
    relabel.run(study.card["score"], study.predicted, tmp_path)
    for entry, found, _ in maps(study):
        own = read(tmp_path / f"own.{entry['case']}.nii.gz")
        assert np.array_equal(own, np.array([0, 1, 2, 4])[found])


def test_new_scans_by_an_ensemble_with_mirroring_probabilities_and_a_picture(study, tmp_path):
    wanted = predict.Wanted(overlay=True, probabilities=True, mirror=True)
    predict.run(study.models, study.place / "scans/images/c0.nii.gz", tmp_path, wanted, 1, "cpu")
    own = read(tmp_path / "c0.nii.gz")
    assert set(np.unique(own)) == {0, 1, 2, 4}
    files = {path.name for path in (tmp_path / "c0.probabilities").iterdir()}
    assert files == {"whole.nii.gz", "core.nii.gz", "enhancing.nii.gz"}
    painted = np.zeros(own.shape, np.uint8)
    clear = np.ones(own.shape, bool)
    for name, value in (("whole", 1), ("core", 2), ("enhancing", 4)):
        share = read(tmp_path / f"c0.probabilities/{name}.nii.gz")
        painted[share > 127.5] = value
        clear &= (share < 127) | (share > 128)
    assert np.array_equal(painted[clear], own[clear])
    assert clear.mean() > 0.95
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["1", "2", "4"]
    for row, values in zip(rows, CLASSES.values(), strict=True):
        assert int(row["voxels"]) == np.isin(own, values).sum()
    assert (tmp_path / "c0.overlay.png").read_bytes().startswith(b"\x89PNG")


def test_models_whose_classes_overlap_otherwise_are_no_ensemble(study, tmp_path):
    content = json.loads(study.card["model1"].read_text())
    content["regions"] = [[1, 2, 4], [2, 4], [3]]  # the same names, another meaning
    (tmp_path / "card.json").write_text(json.dumps(content | {"steps": 1}))
    finetune.run(
        tmp_path / "card.json", study.index, study.place / "splits.json", tmp_path, tmp_path / "w", None, 1, "cpu"
    )
    with pytest.raises(Refusal, match="has another regions than"):
        predict.run(
            [study.models[0], tmp_path / "model.safetensors"], study.place / "scans/images", tmp_path / "out",
            predict.Wanted(), 1, "cpu",
        )  # fmt: skip
