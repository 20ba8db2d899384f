"""Voxels longer along one axis, and crops to match: trained and predicted with both families, end to end."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.commands import finetune, predict_test

CROPS = {"vit": [8, 16, 24], "cnn": [8, 16, 20]}


@pytest.mark.parametrize("family", CROPS)
def test_thin_crops_of_anisotropic_scans(tiny_study, tmp_path, family):
    prepare = {"spacing_zyx_mm": [3, 2, 2], "intensity": {"kind": "window", "low": -1000, "high": 500}}
    how = {
        "crop_vox": CROPS[family],
        "prepare": prepare,
        "steps": 60,
        "recipe": {"lr": 0.02},
        "foreground": 1.0,
    }
    if family == "cnn":
        how |= {"backbone": "stunet", "family": "cnn", "architecture": tiny_study.cnn}
    card = tiny_study.card("finetune", **how)
    finetune.run(card, tiny_study.index, tiny_study.splits, tmp_path / "out", tmp_path / "work", None, 1, "cpu")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    card, model = tiny_study.card("predict"), tmp_path / "out" / "model.safetensors"
    predict_test.run(card, model, [tiny_study.index], tiny_study.splits, tmp_path / "predictions.json", 1, "cpu")
    entries = {case["case"]: case for case in json.loads(tiny_study.index.read_text())["cases"]}
    for case in json.loads((tmp_path / "predictions.json").read_text())["cases"]:
        image = sitk.ReadImage(case["file"])
        assert image.GetSize() == tuple(entries[case["case"]]["raw"]["size_xyz"])
        assert image.GetSpacing() == pytest.approx(entries[case["case"]]["raw"]["spacing_xyz_mm"])
        assert 0 < np.count_nonzero(sitk.GetArrayFromImage(image)) < image.GetNumberOfPixels()
