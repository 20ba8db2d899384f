import json
from pathlib import Path

import pytest

from voxprior.configuration import Layout
from voxprior.data import entries, layouts, phantoms
from voxprior.errors import Refusal


def files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def test_decathlon_lists_labelled_and_unlabelled_cases(tmp_path):
    root = phantoms.write_decathlon(tmp_path / "Task99", cases=2, unlabelled=1).parent
    found = layouts.list_cases(Layout(kind="decathlon", root="Task99"), root, files(root))
    assert found[0] == entries.Entry(
        "phantom_000", "Task99/imagesTr/phantom_000.nii.gz", "Task99/labelsTr/phantom_000.nii.gz", ""
    )
    assert found[2] == entries.Entry("phantom_002", "Task99/imagesTs/phantom_002.nii.gz", None, "")


def test_decathlon_names_a_missing_label_and_skips_absent_test_scans(tmp_path):
    root = phantoms.write_decathlon(tmp_path, cases=2, unlabelled=1)
    (root / "labelsTr/phantom_001.nii.gz").unlink()
    (root / "imagesTs/phantom_002.nii.gz").unlink()
    found = layouts.list_cases(Layout(kind="decathlon"), root, files(root))
    assert [entry.case for entry in found] == ["phantom_000", "phantom_001"]
    assert found[1].defect == "labelsTr/phantom_001.nii.gz is listed in dataset.json and missing"


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), ("{", "not valid JSON"), ("[]", "does not list")])
def test_a_broken_dataset_json_is_refused(tmp_path, content, word):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(Refusal, match=word):
        layouts.list_cases(Layout(kind="decathlon"), tmp_path, files(tmp_path))


def test_folder_pairs_by_case_and_finds_what_has_no_partner():
    names = ["a/img1_0000.nii.gz", "a/img2_0000.nii.gz", "b/lab1.nii.gz", "b/lab3.nii.gz", "readme.txt"]
    layout = Layout(kind="folder", images="a/img{case}_0000.nii.gz", labels="b/lab{case}.nii.gz")
    found = layouts.list_cases(layout, Path("root"), names)
    assert found[0] == entries.Entry("1", "a/img1_0000.nii.gz", "b/lab1.nii.gz", "")
    assert found[1] == entries.Entry("2", "a/img2_0000.nii.gz", None, "")
    assert found[2].case == "3" and found[2].defect == "a label without an image"


def test_one_label_template_serves_every_case_and_the_stem_names_it():
    layout = Layout(kind="folder", images="*/scan*.nrrd", labels="atlas.nii.gz")
    found = layouts.list_cases(layout, Path("r"), ["x/scan1.nrrd", "x/scan2.nrrd", "atlas.nii.gz", "x/y/scan3.nrrd"])
    assert [(entry.case, entry.label) for entry in found] == [("scan1", "atlas.nii.gz"), ("scan2", "atlas.nii.gz")]


def test_two_files_that_claim_one_case_are_both_named():
    layout = Layout(kind="folder", images="**/{case}.nii.gz")
    found = layouts.list_cases(layout, Path("r"), ["s1/ct.nii.gz", "s2/ct.nii.gz"])
    assert all("2 files claim" in entry.defect for entry in found)


def test_no_case_is_refused():
    with pytest.raises(Refusal, match="no case of layout 'folder'"):
        layouts.list_cases(Layout(kind="folder", images="images/{case}.nii"), Path("r"), ["x.txt"])


def test_validation_cases_and_test_dicts_are_read(tmp_path):
    content = {
        "training": [],
        "validation": [{"image": "./v/a.nii.gz", "label": "./w/a.nii.gz"}],
        "test": [{"image": "t/b.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = layouts.list_cases(Layout(kind="decathlon"), tmp_path, ["v/a.nii.gz", "w/a.nii.gz", "t/b.nii.gz"])
    assert [(entry.case, entry.label) for entry in found] == [("a", "w/a.nii.gz"), ("b", None)]


CLASSES = ("vertebrae_L1", "rib_1", "rib_10")
PER_CLASS = Layout(kind="folder", root="top", images="{case}/ct.nii.gz", labels="{case}/seg/{class}.nii.gz")


def test_files_per_class_are_listed_by_class_and_other_files_are_not_looked_at():
    names = ["top/s1/ct.nii.gz", "top/s2/ct.nii.gz", "top/s1/seg/rib_2.nii.gz"]
    names += [f"top/s1/seg/{name}.nii.gz" for name in CLASSES]
    found = layouts.list_cases(PER_CLASS, Path("r"), names, CLASSES)
    parts = tuple((name, f"top/s1/seg/{name}.nii.gz") for name in CLASSES)
    assert found == [
        entries.Entry("s1", "top/s1/ct.nii.gz", None, "", parts),
        entries.Entry("s2", "top/s2/ct.nii.gz", None),
    ]


def test_two_files_of_one_class_and_class_files_without_an_image_are_named():
    layout = Layout(kind="folder", images="{case}.nii.gz", labels="**/{case}_{class}.nii.gz")
    names = ["s_1.nii.gz", "a/s_1_rib_1.nii.gz", "b/s_1_rib_1.nii.gz", "a/s_2_rib_10.nii.gz"]
    found = {entry.case: entry.defect for entry in layouts.list_cases(layout, Path("r"), names, CLASSES)}
    assert found["s_1"].startswith("2 label files match class rib_1: a/s_1_rib_1.nii.gz, b/")
    assert found["s_2"] == "a label without an image"


@pytest.mark.parametrize(("labels", "classes"), [("{class}.nii.gz", CLASSES), ("{case}/{class}.nii.gz", ())])
def test_a_class_template_without_cases_or_classes_is_refused(labels, classes):
    layout = Layout(kind="folder", images="{case}/ct.nii.gz", labels=labels)
    with pytest.raises(Refusal, match="has {class} in its labels template"):
        layouts.list_cases(layout, Path("r"), ["s1/ct.nii.gz"], classes)
