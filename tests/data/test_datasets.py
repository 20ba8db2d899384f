"""The datasets that are described in config/datasets."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from voxprior.configuration import Dataset
from voxprior.data import layouts
from voxprior.data.parts import parts_of
from voxprior.data.trust import is_proven
from voxprior.data.unpack import is_archive
from voxprior.maths.regions import demand_paintable

ROOT = Path(__file__).parents[2]
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "config" / "datasets").glob("*.yaml")}
DATASETS = {name: Dataset.model_validate(yaml.safe_load(text)) for name, text in sorted(TEXTS.items())}

# What its files are called, read in public code: dataset -> (file, case it belongs to, "image" or "label").
NAMES = {
    "acdc": [("ACDC/database/training/patient001/patient001_frame01.nii.gz", "patient001_frame01", "image")],
    "amos22": [("amos22/imagesTr/amos_0001.nii.gz", "amos_0001", "image")],
    "btcv": [("RawData/Training/img/img0001.nii.gz", "0001", "image")],
    "ct_org": [("volumes/volume-7.nii.gz", "7", "image"), ("labels/labels-7.nii.gz", "7", "label")],
    "flare22": [("FLARE22Train/images/FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001", "image")],
    "flare22_unlabelled": [("FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz", "Case_00001", "image")],
    "hecktor22": [("hecktor2022_training/imagesTr/CHUM-001__CT.nii.gz", "CHUM-001", "image")],
    "kits23": [("case_00007/imaging.nii.gz", "case_00007", "image")],
    "lits": [("media/nas/01_Datasets/CT/LITS/Training Batch 1/volume-3.nii", "3", "image")],
    "luna16": [("subset0/1.3.6.mhd", "1.3.6", "image"), ("seg-lungs-LUNA16/1.3.6.mhd", "1.3.6", "label")],
    "mmwhs_ct": [("ct_train/ct_train_1001_image.nii.gz", "ct_train_1001", "image")],
    "ribfrac": [("Part1/RibFrac1-image.nii.gz", "RibFrac1", "image")],
    "tcia_covid19": [("x/volume-covid19-A-0001_ct02.nii.gz", "0001_ct02", "image")],
    "totalsegmentator_v3": [("Totalsegmentator_dataset_v300/s0001/ct.nii.gz", "s0001", "image")],
    "totalsegmentator_mri": [("s0001/mri.nii.gz", "s0001", "image"), ("top/s0002/mri.nii.gz", "s0002", "image")],
    "word": [
        ("WORD-V0.1.0/imagesTs/word_0014.nii.gz", "word_0014", "image"),
        ("WORD-V0.1.0/labelsTs/word_0014.nii.gz", "word_0014", "label"),
    ],
}


def test_the_promised_datasets_are_there():
    tasks = [dataset for dataset in DATASETS.values() if dataset.title.startswith("Medical Segmentation Decathlon")]
    assert len(tasks) == 10
    assert {"totalsegmentator", "totalsegmentator_mri", "amos22", "flare22", "acdc", "word"} <= set(DATASETS)
    assert {"brats21", "btcv", "hecktor22", "mmwhs_ct", "mmwhs_mr", "lits"} <= {
        n for n, d in DATASETS.items() if d.source.kind == "manual"
    }
    assert "msd_liver" in DATASETS["lits"].source.steps


@pytest.mark.parametrize("name", DATASETS)
def test_overlaps_are_told_on_both_sides(name):
    for other in DATASETS[name].overlaps:
        assert other != name and other in DATASETS, f"{name} overlaps {other}, which is not described"
        assert name in DATASETS[other].overlaps, f"{other} does not say that it overlaps {name}"
    assert DATASETS[name].overlaps == sorted(DATASETS[name].overlaps)


@pytest.mark.parametrize("name", DATASETS)
def test_classes_are_told_apart(name):
    dataset = DATASETS[name]
    values = [value for listed in dataset.classes.values() for value in listed]
    plain = [value for name, listed in dataset.classes.items() if name not in dataset.regions for value in listed]
    assert len(plain) == len(set(plain)) and all(dataset.classes.values())
    assert len(values) == len(set(values)) or dataset.regions
    demand_paintable(dataset.regions, [dataset.classes[name] for name in dataset.regions], name)
    if "{class}" in str(dataset.layout.labels):
        assert all(len(listed) == 1 and listed[0] <= 255 for listed in dataset.classes.values())
    assert bool(dataset.classes) == (dataset.layout.kind == "decathlon" or dataset.layout.labels is not None)
    if dataset.patient:
        assert re.compile(dataset.patient).groups >= 1


@pytest.mark.parametrize("name", DATASETS)
def test_sources_can_be_read_and_say_what_is_not_known(name):
    dataset = DATASETS[name]
    parts = parts_of(dataset.source)
    assert parts or dataset.source.kind == "manual"
    for part in parts:
        assert part.urls or dataset.source.kind in ("manual", "index"), f"{name}: nowhere to get {part.file} from"
        assert all(url.startswith("https://") for url in part.urls)
        assert is_archive(part.file) or part.file.endswith(".nii.gz")
    assert dataset.licence and dataset.licence_url.startswith("https://") and dataset.citation and dataset.origin
    if dataset.source.kind != "index":  # the wheels were read
        assert TEXTS[name].startswith("# Not verified: "), f"{name} does not say what was not verified"
    if dataset.source.kind == "manual":
        assert f"data/manual/{name}" in dataset.source.steps and "1." in dataset.source.steps
        assert dataset.source.expects, "nothing could be checked of what was dropped"
    if not all(is_proven(part) for part in parts) and dataset.source.kind == "url":
        assert "first download" in TEXTS[name]


def test_ids_of_many_files_are_as_many_as_are_published():
    files = [part.file for part in parts_of(DATASETS["kits23"].source)]
    assert len(files) == 2 * 489 and {"case_00000/imaging.nii.gz", "case_00588/segmentation.nii.gz"} <= set(files)
    assert "case_00300/imaging.nii.gz" not in files
    assert len(parts_of(DATASETS["ct_org"].source)) == 2 * 140
    assert [part.file for part in parts_of(DATASETS["luna16"].source)][:10] == [f"subset{i}.zip" for i in range(10)]


@pytest.mark.parametrize("name", NAMES)
def test_layouts_find_the_files_that_others_have_seen(name, tmp_path):
    files = sorted(file for file, _, _ in NAMES[name])
    entries = layouts.list_cases(DATASETS[name].layout, tmp_path, files, list(DATASETS[name].classes))
    for file, case, what in NAMES[name]:
        entry = next(entry for entry in entries if entry.case == case)
        assert not entry.defect and file == (entry.image if what == "image" else entry.label)
    if patient := DATASETS[name].patient:
        assert all(re.search(patient, entry.case) for entry in entries)


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("datasets_table", ROOT / "docs" / "datasets_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "docs/datasets.md is behind: run python docs/datasets_table.py"
    for name in DATASETS:
        assert f"[{name}](../config/datasets/{name}.yaml)" in text
