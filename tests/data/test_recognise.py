"""Folders as people have them: which layout and templates are found from names alone."""

import json
from pathlib import Path

import pytest

from voxprior.data.recognise import recognise

NOWHERE = Path("nowhere")


def numbered(template: str, count: int) -> list[str]:
    return [template.replace("#", f"{number:02d}") for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("files", "images", "labels"),
    [
        (
            [*(f"i/CT_{c}_venous.nii.gz" for c in ("anna07", "ben-3", "p 9")), "s/anna07-mask.nrrd", "s/p 9-mask.nrrd"],
            "i/CT_{case}_venous.nii.gz",
            "s/{case}-mask.nrrd",
        ),
        ([*numbered("P#/ct.nii.gz", 9), *numbered("P#/seg.nii.gz", 5)], "{case}/ct.nii.gz", "{case}/seg.nii.gz"),
        (
            [*numbered("images/a#_0000.nii.gz", 9), *numbered("labels/a#.nii.gz", 5)],
            "images/{case}_0000.nii.gz",
            "labels/{case}.nii.gz",
        ),
        ([*numbered("x/s#.mha", 9), *numbered("x/s#_label.mha", 3)], "x/{case}.mha", "x/{case}_label.mha"),
        (
            [*numbered("volume-#.nii", 14), *numbered("segmentation-#.nii", 14)],
            "volume-{case}.nii",
            "segmentation-{case}.nii",
        ),
        (
            [*numbered("P#/S#/ct.nii.gz", 4), *numbered("P#/S#/ct_seg.nii.gz", 4)],
            "{case}/*/ct.nii.gz",
            "{case}/*/ct_seg.nii.gz",
        ),
        (numbered("scans/#.nrrd", 4), "scans/{case}.nrrd", None),
    ],
)
def test_templates_are_found(files, images, labels):
    found = recognise(NOWHERE, "", None, files)
    assert (found.kind, found.images, found.labels, found.channels) == ("folder", images, labels, ())


@pytest.mark.parametrize(
    ("template", "words", "images", "labels"),
    [
        ("P#/@.nii.gz", ("flair", "t1", "t2"), "{case}/{channel}.nii.gz", "P#/seg.nii.gz"),
        ("B#/B#_@.nii.gz", ("flair", "t1"), "{case}/{case}_{channel}.nii.gz", "B#/B#_seg.nii.gz"),
        ("c#_@.nii.gz", ("0000", "0001"), "{case}_{channel}.nii.gz", "labels/c#.nii.gz"),
    ],
)
def test_files_of_channels_are_found(template, words, images, labels):
    files = [file for word in words for file in numbered(template.replace("@", word), 9)]
    found = recognise(NOWHERE, "", None, [*files, *numbered(labels, 5)])
    assert (found.images, found.channels) == (images, words)
    assert found.labels is not None


def test_folders_of_labels_may_be_named():
    files = [*numbered("a/#.nii.gz", 4), *numbered("b/#.nii.gz", 4)]
    found = recognise(NOWHERE, "a", "b", files)
    assert (found.images, found.labels) == ("a/{case}.nii.gz", "b/{case}.nii.gz")
    inside = [*numbered("#.nii.gz", 4), *numbered("drawn/#.nii.gz", 4)]
    found = recognise(NOWHERE, "", "drawn", inside)
    assert (found.images, found.labels) == ("{case}.nii.gz", "drawn/{case}.nii.gz")


def test_published_layouts_are_found(tmp_path):
    nnunet = {"channel_names": {"0": "T1", "1": "T1"}, "labels": {"background": 0, "whole tumour": [1, 2], "ignore": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps(nnunet))
    found = recognise(tmp_path, "", None, ["dataset.json", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"])
    assert (found.kind, found.channels, found.classes) == ("nnunet", ("T1_0", "T1_1"), {"whole_tumour": [1, 2]})
    decathlon = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(decathlon))
    found = recognise(tmp_path, "", None, ["dataset.json", "imagesTr/a.nii.gz"])
    assert (found.kind, found.modality, found.classes) == ("decathlon", "CT", {"spleen": [1]})
    found = recognise(tmp_path, "", None, ["s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "meta.csv"])
    assert (found.kind, found.classes) == ("totalsegmentator", {"liver": [1]})
    names = ["sub-1/anat/sub-1_T1w.nii.gz", "derivatives/x/sub-1/anat/sub-1_mask.nii.gz"]
    found = recognise(tmp_path, "", None, names)
    assert (found.kind, found.images, found.labels) == ("bids", "T1w", "derivatives/**/*_mask.nii.gz")


def test_dicom_folders_are_found_and_nothing_is_nothing():
    files = [f"scans/P{case}/study/IM{n}" for case in range(3) for n in range(4)]
    found = recognise(NOWHERE, "scans", "maps", [*files, "maps/P1.nii.gz"])
    assert (found.kind, found.images, found.labels) == ("dicom", "scans/{case}/*", "maps/{case}.nii.gz")
    assert recognise(NOWHERE, "", None, ["readme.txt", "a/b.jpg"]) is None
