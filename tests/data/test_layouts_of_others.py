"""Layouts that others have published, tables of paths, and cases of several files."""

import json
from pathlib import Path

import pytest

from voxprior.configuration import Layout
from voxprior.data import intake, layouts, phantoms, volume
from voxprior.data.entries import Entry
from voxprior.errors import Refusal


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------- nnU-Net
NNUNET = Layout(kind="nnunet", root="Dataset001_Toy")


def nnunet(root: Path, names: list[str], channels=(), **content) -> list[Entry]:
    told = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    write_json(root / "Dataset001_Toy/dataset.json", {**told, **content})
    return layouts.list_cases(NNUNET, root, [f"Dataset001_Toy/{name}" for name in names], channels=channels)


def test_nnunet_lists_training_and_test_scans(tmp_path):
    names = ["imagesTr/a_1_0000.nii.gz", "labelsTr/a_1.nii.gz", "imagesTs/b_0000.nii.gz", "imagesTs/c_0000.nii.gz"]
    found = nnunet(tmp_path, [*names, "labelsTs/c.nii.gz", "imagesTr/readme.txt"])
    there = "Dataset001_Toy"
    assert found == [
        Entry("a_1", f"{there}/imagesTr/a_1_0000.nii.gz", f"{there}/labelsTr/a_1.nii.gz"),
        Entry("b", f"{there}/imagesTs/b_0000.nii.gz", None),
        Entry("c", f"{there}/imagesTs/c_0000.nii.gz", f"{there}/labelsTs/c.nii.gz"),
    ]


def test_nnunet_puts_channels_in_order_and_names_a_missing_one(tmp_path):
    names = [f"imagesTr/{case}_{number}.nrrd" for case, number in [("a", "0001"), ("a", "0000"), ("b", "0000")]]
    told = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nrrd"}
    found = nnunet(tmp_path, names, ("T1", "T2"), **told)
    assert found[0].channels == tuple(f"Dataset001_Toy/imagesTr/a_{number}.nrrd" for number in ("0000", "0001"))
    assert found[0].image == found[0].channels[0] and not found[0].defect
    assert found[1].defect == "channel 0001 is missing"
    with pytest.raises(Refusal, match=r"names 2 channels \(T1, T2\) where the dataset's file has 1"):
        nnunet(tmp_path, names, **told)


def test_nnunet_takes_the_files_that_dataset_json_lists(tmp_path):
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"x")
    listed = {"a": {"images": ["../elsewhere.nii.gz"], "label": "l.nii.gz"}, "b": {"images": ["no.nii.gz"]}}
    found = nnunet(tmp_path, ["l.nii.gz"], dataset=listed)
    assert found[0] == Entry("a", "Dataset001_Toy/../elsewhere.nii.gz", "Dataset001_Toy/l.nii.gz")
    assert found[1].defect == "no.nii.gz is listed in dataset.json and missing"


@pytest.mark.parametrize(("content", "word"), [({"labels": {}}, "no 'channel_names'"), ([], "does not list")])
def test_a_broken_dataset_json_is_refused(tmp_path, content, word):
    write_json(tmp_path / "Dataset001_Toy/dataset.json", content)
    with pytest.raises(Refusal, match=word):
        layouts.list_cases(NNUNET, tmp_path, ["Dataset001_Toy/imagesTr/a_0000.nii.gz"])


# ------------------------------------------------------------------------------------------------- TotalSegmentator
def test_totalsegmentator_takes_ct_and_mri_and_the_files_of_the_classes():
    names = ["s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s1/segmentations/unasked.nii.gz", "s2/mri.nii.gz"]
    names += ["s3/ct.nii.gz", "s3/mri.nii.gz", "meta.csv"]
    found = layouts.list_cases(Layout(kind="totalsegmentator"), Path("r"), names, ["liver", "spleen"])
    assert found[0] == Entry("s1", "s1/ct.nii.gz", None, parts=(("liver", "s1/segmentations/liver.nii.gz"),))
    assert found[1] == Entry("s2", "s2/mri.nii.gz", None)
    assert "2 images" in found[2].defect


# ------------------------------------------------------------------------------------------------- BIDS
def test_bids_pairs_by_entities_with_and_without_sessions():
    names = [
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii",
        "sub-02/ses-b/func/sub-02_ses-b_T1w.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-orig_desc-x_dseg.nii.gz",
        "derivatives/manual/sub-02/ses-a/anat/sub-02_ses-a_run-1_dseg.nii.gz",
        "derivatives/manual/sub-03/anat/sub-03_dseg.nii.gz",
    ]
    found = layouts.list_cases(Layout(kind="bids", images="T1w"), Path("r"), names)
    assert [(entry.case, entry.patient, bool(entry.label), entry.defect) for entry in found] == [
        ("sub-01", "sub-01", True, ""),
        ("sub-02_ses-a_run-1", "sub-02", True, ""),
        ("sub-02_ses-b", "sub-02", False, ""),
        ("sub-03", "sub-03", True, "a label without an image"),
    ]
    assert found[1].label == names[7]


def test_bids_takes_several_suffixes_as_channels():
    names = [f"sub-1/anat/sub-1_{suffix}.nii.gz" for suffix in ("FLAIR", "T1w", "T2w")]
    (entry,) = layouts.list_cases(Layout(kind="bids"), Path("r"), names, channels=["T1w", "FLAIR"])
    assert entry.channels == (names[1], names[0])
    with pytest.raises(Refusal, match="give the scans' suffix"):
        layouts.list_cases(Layout(kind="bids"), Path("r"), names)


# ------------------------------------------------------------------------------------------------- table
def table(root: Path, text: str, files: list[str], channels=(), encoding: str = "utf-8") -> list[Entry]:
    (root / "lists").mkdir(exist_ok=True)
    (root / "lists/mine.csv").write_bytes(text.encode(encoding))
    layout = Layout(kind="table", images="lists/mine.csv")
    return layouts.list_cases(layout, root, ["lists/mine.csv", *files], channels=channels)


def test_a_table_gives_paths_patients_and_persons(tmp_path):
    away = tmp_path / "away.nii.gz"
    away.write_bytes(b"x")
    text = f"case;image;label;patient;person;age\r\na;./x.nii;y.nii;p1;q1;50\r\nb;{away};;p1;;60\r\nc;gone.nii;;;;\r\n"
    found = table(tmp_path, text, ["lists/x.nii", "lists/y.nii"], encoding="utf-8-sig")
    assert found[0] == Entry("a", "lists/x.nii", "lists/y.nii", patient="p1", person="q1")
    assert found[1] == Entry("b", str(away), None, patient="p1")
    assert found[2].defect == "row 4 of mine.csv names lists/gone.nii, which is missing"


def test_a_table_may_have_a_column_per_channel(tmp_path):
    text = "case,T1,T2\na,1.nii,2.nii\nb,1.nii,\n"
    found = table(tmp_path, text, ["lists/1.nii", "lists/2.nii"], channels=["T1", "T2"])
    assert found[0].channels == ("lists/1.nii", "lists/2.nii")
    assert found[1].defect.startswith("row 3 of mine.csv names no image")


@pytest.mark.parametrize(
    ("text", "word"),
    [("case,scan\na,b\n", "no column image: its columns are case, scan"), ("", "no column case, image")],
)
def test_a_table_without_its_columns_is_refused(tmp_path, text, word):
    with pytest.raises(Refusal, match=word):
        table(tmp_path, text, [])
    with pytest.raises(Refusal, match="UTF-8"):
        table(tmp_path, "case,image\nä,b\n", [], encoding="latin-1")
    with pytest.raises(Refusal, match=r"cases\.csv is missing"):
        layouts.list_cases(Layout(kind="table"), tmp_path, ["a.nii"])


def test_patient_and_person_of_a_layout_reach_the_case_table(tmp_path):
    for index in range(2):
        volume.write_image(
            volume.from_array(phantoms.make(index)[0], phantoms.grid_of(phantoms.SHAPE_ZYX)),
            tmp_path / f"lists/{index}.nii.gz",
        )
    text = "case,image,patient,person\na,0.nii.gz,p,q\nb_7,1.nii.gz,,\n"
    found = table(tmp_path, text, ["lists/0.nii.gz", "lists/1.nii.gz"])
    rows = [row for _, row in intake.examine(found, tmp_path, intake.Identity("d"))]
    assert [(row["patient"], row["person"]) for row in rows] == [("p", "q"), ("b_7", "d/b_7")]


# ------------------------------------------------------------------------------------------------- folder
def test_a_template_takes_the_files_of_channels():
    layout = Layout(kind="folder", images="{case}/{case}_{channel}.nii.gz", labels="{case}/{case}_seg.nii.gz")
    names = ["a/a_flair.nii.gz", "a/a_t1.nii.gz", "a/a_t1ce.nii.gz", "a/a_seg.nii.gz", "b/b_t1.nii.gz"]
    found = layouts.list_cases(layout, Path("r"), names, channels=["t1", "flair"])
    assert found[0] == Entry("a", "a/a_t1.nii.gz", "a/a_seg.nii.gz", channels=("a/a_t1.nii.gz", "a/a_flair.nii.gz"))
    assert found[1].defect == "channel flair is missing"
    with pytest.raises(Refusal, match="has {channel} in its images template"):
        layouts.list_cases(layout, Path("r"), names)


def test_label_maps_beside_scans_do_not_become_unlabelled_scans():
    names = ["a.nii.gz", "a_label.nii.gz", "b.nii.gz"]
    layout = Layout(kind="folder", images="{case}.nii.gz", labels="{case}_label.nii.gz")
    found = layouts.list_cases(layout, Path("r"), names)
    assert [(entry.case, entry.label) for entry in found] == [("a", "a_label.nii.gz"), ("b", None)]
    turned = Layout(kind="folder", images="{case}_0000.nii.gz", labels="{case}.nii.gz")
    found = layouts.list_cases(turned, Path("r"), ["a_0000.nii.gz", "a.nii.gz"])
    assert [(entry.case, entry.label) for entry in found] == [("a", "a.nii.gz")]


@pytest.mark.parametrize(("name", "word"), [("x|y.nii.gz", "holds '|'"), (".a.nii.gz", "cannot be a case's name")])
def test_names_that_tables_cannot_carry_are_defects(name, word):
    (entry,) = layouts.list_cases(Layout(kind="folder", images="{case}.nii.gz"), Path("r"), [name])
    assert word in entry.defect
