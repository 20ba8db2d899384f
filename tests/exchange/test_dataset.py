"""nnU-Net's raw dataset of a study: files, ids, geometry, splits."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.commands import export
from voxprior.errors import Refusal

CASES = [f"case_{number}" for number in range(5)]


def write(study, output, copy=False):
    export.run("nnunet-dataset", output, None, study, None, 7, copy, 1e-3)
    return output / "Dataset007_tiny"


def test_it_lies_as_nnunet_wants_it(study, tmp_path, capsys):
    folder = write(study, tmp_path)
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [f"{case}_0000.nii.gz" for case in CASES]
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{case}.nii.gz" for case in CASES]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "shell": 1, "core": 2}
    assert content["channel_names"] == {"0": "CT"}
    assert (content["numTraining"], content["file_ending"]) == (5, ".nii.gz")
    assert "Not a medical device" in (folder / "model_card.md").read_text()
    assert "5 labelled cases, 4 linked; 4 splits" in capsys.readouterr().out


def test_labels_have_the_studys_ids_on_the_scans_grid(study, tmp_path):
    folder = write(study, tmp_path)
    for case in CASES:
        scan = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        label = sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz"))
        own = sitk.GetArrayFromImage(sitk.ReadImage(str(study.parent / "scans" / f"{case}_label.nii.gz")))
        assert scan.GetSize() == label.GetSize()
        assert scan.GetOrigin() == pytest.approx(label.GetOrigin())
        assert scan.GetDirection() == pytest.approx(label.GetDirection())
        ids = sitk.GetArrayFromImage(label)
        assert np.array_equal(ids == 1, own == 7)
        assert np.array_equal(ids == 2, own == 9)


def test_scans_are_linked_but_for_repaired_ones_and_copies(study, tmp_path):
    folder = write(study, tmp_path / "links") / "imagesTr"
    assert not (folder / "case_0_0000.nii.gz").is_symlink()  # intake has repaired it
    assert (folder / "case_1_0000.nii.gz").resolve() == study.parent / "scans" / "case_1_image.nii.gz"
    copies = write(study, tmp_path / "copies", copy=True) / "imagesTr"
    for path in copies.iterdir():
        assert not path.is_symlink()
        here, there = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (path, folder / path.name))
        assert np.array_equal(here, there)


def test_every_fold_and_budget_is_a_split_and_tested_on_the_folds_test_cases(study, tmp_path):
    folder = write(study, tmp_path)
    splits = json.loads((folder / "splits_final.json").read_text())
    cells = json.loads((folder / "cells.json").read_text())
    folds = json.loads((study / "splits.json").read_text())["folds"]
    assert [(cell["fold"], cell["budget"]) for cell in cells] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    for cell in cells:
        split, fold = splits[cell["nnunet_fold"]], folds[cell["fold"]]
        assert split == {"train": fold["budgets"][str(cell["budget"])], "val": fold["test"]}
    commands = (folder / "commands.sh").read_text()
    assert all(f"nnUNetv2_train 7 3d_fullres {number} " in commands for number in range(4))


def test_twice_is_the_same(study, tmp_path):
    folder = write(study, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write(study, tmp_path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_refusals(study, tmp_path):
    with pytest.raises(Refusal, match="name its results folder"):
        export.run("nnunet-dataset", tmp_path, None, None, None, 7, False, 1e-3)
    with pytest.raises(Refusal, match=r"config.json is missing"):
        write(tmp_path, tmp_path / "out")


def test_overlapping_classes_become_nnunets_regions(study, tmp_path):
    """The outer class holds the core: unions by label, painted 1 then 2; a value that is ignored comes last."""
    from voxprior.exchange.dataset import describe

    results = tmp_path / "results"
    shutil.copytree(study, results)
    config = json.loads((results / "config.json").read_text())
    config["datasets"]["balls"] |= {"classes": {"ball": [7, 9], "core": [9]}, "regions": ["ball", "core"]}
    config["study"]["classes"] = ["ball", "core"]
    (results / "config.json").write_text(json.dumps(config))
    folder = write(results, tmp_path / "raw")
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "ball": [1, 2], "core": [2]}
    assert content["regions_class_order"] == [1, 2]
    for case in CASES:
        ids = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")))
        own = sitk.GetArrayFromImage(sitk.ReadImage(str(study.parent / "scans" / f"{case}_label.nii.gz")))
        assert np.array_equal(np.isin(ids, [1, 2]), np.isin(own, [7, 9]))
        assert np.array_equal(ids == 2, own == 9)
    ignoring = {**config["datasets"]["balls"], "ignore": [3]}
    assert describe(config["study"], ignoring, 1, {})["labels"]["ignore"] == 3


def test_ignored_values_are_ignored_by_nnunet_too(study, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(study, results)
    config = json.loads((results / "config.json").read_text())
    config["datasets"]["balls"] |= {"classes": {"shell": [7]}, "ignore": [9]}
    config["study"]["classes"] = ["shell"]
    (results / "config.json").write_text(json.dumps(config))
    folder = write(results, tmp_path / "raw")
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "shell": 1, "ignore": 2}
    ids = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{CASES[1]}.nii.gz")))
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(study.parent / "scans" / f"{CASES[1]}_label.nii.gz")))
    assert np.array_equal(ids, np.select([own == 7, own == 9], [1, 2], 0))
