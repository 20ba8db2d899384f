import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import yaml

from voxprior.commands import init_study
from voxprior.configuration import Dataset, Study
from voxprior.data import phantoms, survey, volume
from voxprior.data.layouts import list_cases
from voxprior.errors import Refusal


def written(output, name):
    dataset, study = (
        yaml.safe_load((output / f"config/{kind}/{name}.yaml").read_text()) for kind in ("datasets", "studies")
    )
    return Dataset.model_validate(dataset), Study.model_validate(study)


def test_a_plain_folder_becomes_a_dataset_and_a_study(tmp_path, capsys):
    phantoms.write_folder(tmp_path / "CT Scans", cases=6, unlabelled=2)
    (tmp_path / "CT Scans/images/phantom_003.nii.gz").write_bytes(b"broken")
    init_study.run(tmp_path / "CT Scans", None, None, tmp_path)
    dataset, study = written(tmp_path, "ct_scans")
    assert dataset.source.path == "CT Scans" and dataset.modality == "ct"
    assert (dataset.layout.images, dataset.layout.labels) == ("images/{case}.nii.gz", "labels/{case}.nii.gz")
    assert dataset.classes == {f"class_{n}": [n] for n in (1, 2, 3)}
    assert study.prepare.spacing_zyx_mm == phantoms.SPACING_ZYX_MM and study.prepare.intensity.kind == "window"
    assert study.finetune.crop_vox == (24, 24, 24)
    assert study.split.test + study.split.val + max(study.split.budgets) <= 5
    told = capsys.readouterr().out
    for words in ("7 scans, 5 with labels, 1 that cannot", "phantom_003.nii.gz cannot be read", "a guess", "licence"):
        assert words in told
    with pytest.raises(Refusal, match="is not overwritten"):
        init_study.run(tmp_path / "CT Scans", None, None, tmp_path)


def test_a_decathlon_folder_gives_names_and_modality(tmp_path):
    folder = phantoms.write_decathlon(tmp_path / "Task99", cases=4)
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"0": "background", "1": "one", "2": "two organs"}, "modality": {"0": "MRI"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    init_study.run(folder, None, "t99", tmp_path / "study")
    dataset, study = written(tmp_path / "study", "t99")
    assert (dataset.layout.kind, dataset.modality) == ("decathlon", "mr")
    assert dataset.classes == {"one": [1], "two_organs": [2]} and study.classes == ["one", "two_organs"]
    assert study.prepare.intensity.kind == "percentile"
    assert os.path.isabs(dataset.source.path)


def test_dicom_and_files_per_class_are_written_too(tmp_path):
    shape = (16, 20, 18)
    for number in range(3):
        voxels, labels = phantoms.make(number, shape)
        grid = phantoms.grid_of(shape)
        phantoms.write_series(tmp_path / f"d/scans/p{number}", volume.from_array(voxels, grid), number + 1)
        volume.write_image(volume.from_array(labels, grid), tmp_path / f"d/maps/p{number}.nii.gz")
    init_study.run(tmp_path / "d/scans", tmp_path / "d/maps", "d", tmp_path)
    dataset, study = written(tmp_path, "d")
    assert (dataset.layout.kind, dataset.layout.images) == ("dicom", "scans/{case}")
    assert study.prepare.spacing_zyx_mm == (3.0, 2.0, 2.0) and study.finetune.crop_vox == (16, 16, 16)
    phantoms.write_per_class(tmp_path / "t", cases=3)
    init_study.run(tmp_path / "t", None, "t", tmp_path)
    dataset, _ = written(tmp_path, "t")
    assert dataset.layout.kind == "totalsegmentator" and set(dataset.classes) == {"one", "two", "three"}


def test_what_is_not_the_datasets_is_left_out(tmp_path):
    phantoms.write_folder(tmp_path / "d", cases=3)
    (tmp_path / "d/huge").mkdir()
    (tmp_path / "d/huge/x.nii.gz").write_bytes(b"x")
    init_study.run(tmp_path / "d/images", tmp_path / "d/labels", "d", tmp_path)
    dataset, _ = written(tmp_path, "d")
    assert dataset.source.junk == ["._*", "__MACOSX", ".DS_Store", "huge"]


@pytest.mark.parametrize(
    ("cases", "unlabelled", "word"), [(0, 0, "no scan that is recognised"), (2, 3, "2 of 5 scans have labels")]
)
def test_folders_that_make_no_study_are_refused(tmp_path, cases, unlabelled, word):
    (tmp_path / "d").mkdir()
    phantoms.write_folder(tmp_path / "d", cases=cases, unlabelled=unlabelled)
    with pytest.raises(Refusal, match=word):
        init_study.run(tmp_path / "d", None, "d", tmp_path)
    assert not (tmp_path / "config").exists()


def test_budgets_fit_any_number_of_scans():
    for labelled in range(3, 400):
        part = init_study.split(labelled)
        left = labelled - part["test"] - part["val"]
        budgets = part["budgets"]
        assert budgets == sorted(set(budgets)) and budgets[0] >= 1 and budgets[-1] <= max(1, 0.9 * left)
        assert part["test"] >= 1 and left >= 1


def test_headers_tell_what_the_prepared_volume_will_be(tmp_path):
    voxels, _ = phantoms.make(0)
    path = tmp_path / "a.nii.gz"
    volume.write_image(volume.from_array(voxels, phantoms.grid_of(voxels.shape, (3.0, 2.0, 1.5), "PIR")), path)
    (entry,) = list_cases(Dataset.model_validate(FOLDER).layout, tmp_path, ["a.nii.gz"])
    array_ZYX, grid = volume.to_lps(volume.read_scan(path))
    header = survey.read_header(entry, tmp_path)
    assert header.shape_zyx == array_ZYX.shape
    assert np.allclose(header.spacing_zyx_mm, grid.spacing_zyx_mm)


def test_a_header_of_another_format_than_its_suffix_is_refused(tmp_path):
    voxels, _ = phantoms.make(0)
    SimpleITK.WriteImage(volume.from_array(voxels, phantoms.grid_of(voxels.shape)), str(tmp_path / "a.nrrd"))
    (entry,) = list_cases(Dataset.model_validate(FOLDER).layout, tmp_path, ["a.nrrd"])
    assert survey.read_header(entry, tmp_path).shape_zyx == voxels.shape
    os.replace(tmp_path / "a.nrrd", tmp_path / "a.nii")
    with pytest.raises(Refusal, match=r"a\.nii cannot be read as an image"):
        survey.read_header(entry._replace(image="a.nii"), tmp_path)


FOLDER = {
    "title": "a",
    "modality": "ct",
    "source": {"kind": "folder", "path": "."},
    "layout": {"kind": "folder", "images": "{case}.n*"},
    "classes": {"a": [1]},
    "licence": "none",
}


NNUNET = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3, "ignore": 4}


@pytest.mark.parametrize("turned", [False, True])
def test_nnunets_regions_and_its_ignore_label_are_carried_over(tmp_path, capsys, turned):
    """Also where the smaller ones are named first, as nobody could paint them."""
    from voxprior.commands import check

    folder = tmp_path / "Dataset001_Brain"
    for number in range(4):
        voxels, labels = phantoms.make(number)
        labels[0, 0, 0] = 4
        grid = phantoms.grid_of(voxels.shape)
        volume.write_image(volume.from_array(voxels, grid), folder / f"imagesTr/p{number}_0000.nii.gz")
        volume.write_image(volume.from_array(labels, grid), folder / f"labelsTr/p{number}.nii.gz")
    named = dict(reversed(NNUNET.items())) if turned else NNUNET
    content = {"channel_names": {"0": "T1"}, "labels": named, "regions_class_order": [1, 2, 3], "numTraining": 4}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    init_study.run(folder, None, "brain", tmp_path)
    dataset, study = written(tmp_path, "brain")
    assert dataset.layout.kind == "nnunet"
    assert dataset.ignore == [4]
    assert dataset.classes == {"whole_tumour": [1, 2, 3], "tumour_core": [2, 3], "enhancing": [3]}
    assert dataset.regions == study.classes == ["whole_tumour", "tumour_core", "enhancing"]
    told = capsys.readouterr().out
    assert "overlap: each is learned on its own" in told and "values [4] are not known" in told
    assert "have none" not in told
    check.check_regions(SimpleNamespace(study=study, datasets={"brain": dataset}))


def test_a_file_of_what_is_not_known_beside_the_files_per_class(tmp_path):
    from voxprior.cards import FetchCard, IntakeCard
    from voxprior.commands import fetch, intake

    for number in range(3):
        voxels, labels = phantoms.make(number)
        grid = phantoms.grid_of(voxels.shape)
        volume.write_image(volume.from_array(voxels, grid), tmp_path / f"d/s{number}/ct.nii.gz")
        for name, value in (("zebra", 1), ("ignore", 2)):
            part = (labels == value).astype(np.uint8)
            volume.write_image(volume.from_array(part, grid), tmp_path / f"d/s{number}/segmentations/{name}.nii.gz")
    init_study.run(tmp_path / "d", None, "d", tmp_path)
    dataset, study = written(tmp_path, "d")
    assert (dataset.classes, dataset.ignore, study.classes) == ({"zebra": [1]}, [2], ["zebra"])
    given = {key: getattr(dataset, key) for key in ("layout", "classes", "ignore")}
    (tmp_path / "fetch.json").write_text(
        FetchCard(dataset="d", source={"kind": "folder", "path": str(tmp_path / "d")}).model_dump_json()
    )
    (tmp_path / "intake.json").write_text(IntakeCard(dataset="d", **given).model_dump_json())
    fetch.run(tmp_path / "fetch.json", tmp_path / "raw/manifest.json", None)
    intake.run(tmp_path / "intake.json", tmp_path / "raw/manifest.json", tmp_path / "t/cases.csv", tmp_path / "t/q.csv")
    merged = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "t/labels/s0.nii.gz")))
    assert np.array_equal(merged, np.where(phantoms.make(0)[1] == 3, 0, phantoms.make(0)[1]))
