"""`voxprior predict` on scans of many kinds, with models trained for four steps on phantoms."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from voxprior.cards import FetchCard, FinetuneCard, IntakeCard, PrepareCard
from voxprior.commands import fetch, finetune, intake, predict, prepare
from voxprior.data import cache, phantoms, volume
from voxprior.errors import Incomplete, Refusal
from voxprior.segment import infer

CNN = {"channels": [4, 8, 8], "blocks": 1, "pretrained_stages": 2}
CLASSES = {"liver": [7], "spleen": [3, 5]}  # values as a dataset's own files may have them
SPACING = (2.5, 2.0, 2.0)
FACTS = {"title": "Phantoms", "licence": "CC0-1.0", "modality": "ct", "source": {}, "classes": CLASSES}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A dataset taken in and prepared as a study does it, and two models of it that differ in their seed."""
    place = tmp_path_factory.mktemp("study")
    phantoms.write_folder(place / "scans", cases=3, orientation="PIR")
    for path in (place / "scans/labels").iterdir():
        image = sitk.ReadImage(str(path))
        own = np.array([0, 7, 3, 5], np.uint8)[sitk.GetArrayFromImage(image)]
        volume.write_image(volume.from_array(own, volume.Grid.of(image)), path)
    scale = {"spacing_zyx_mm": SPACING, "intensity": {"kind": "window", "low": -1000, "high": 1000}}
    layout = {"kind": "folder", "images": "images/{case}.nii.gz", "labels": "labels/{case}.nii.gz"}
    cards = {
        "fetch": FetchCard(dataset="own", source={"kind": "folder", "path": str(place / "scans")}),
        "intake": IntakeCard(dataset="own", layout=layout, classes=CLASSES, modality="ct"),
        "prepare": PrepareCard(dataset="own", classes=list(CLASSES.values()), prepare=scale),
    }
    paths = {name: place / f"{name}.json" for name in cards}
    for name, card in cards.items():
        paths[name].write_text(card.model_dump_json())
    (place / "config.json").write_text(json.dumps({"datasets": {"own": FACTS}}))
    manifest, cases = place / "raw/manifest.json", place / "cases.csv"
    fetch.run(paths["fetch"], manifest, None)
    intake.run(paths["intake"], manifest, cases, place / "aside.csv", place / "print.json")
    index = place / "p/index.json"
    prepare.run(paths["prepare"], cases, index, 1, place / "config.json", place / "print.json")
    names = [entry["case"] for entry in cache.read_index(index)["cases"]]
    fold = {"fold": 0, "test": [], "val": [], "train": names, "pool": names, "budgets": {"2": names[:2]}}
    (place / "splits.json").write_text(json.dumps({"format": 1, "sha256": "", "folds": [fold]}))
    models = []
    for seed in (0, 1):
        card = FinetuneCard(
            init="scratch", backbone="tiny", family="cnn", architecture=CNN, recipe={"lr": 0.003}, steps=4,
            classes=list(CLASSES), batch_size=2, crop_vox=(16, 16, 16), foreground=0.5, precision="fp32",
            prepare=scale, budget=2, fold=0, seed=seed,
        )  # fmt: skip
        (place / f"finetune{seed}.json").write_text(card.model_dump_json())
        out = place / f"model{seed}"
        finetune.run(place / f"finetune{seed}.json", index, place / "splits.json", out, out / "work", None, 1, "cpu")
        models.append(out / "model.safetensors")
    return SimpleNamespace(place=place, index=index, models=models, images=place / "scans/images", names=names)


@pytest.fixture(scope="module")
def untold(study):
    """The first model as an older version would have written it."""
    return rewritten(study.models[0], study.place / "old.safetensors", format=None, data=None, channels=None)


def rewritten(model, path, **changes):
    from voxprior.nets.weights import read_weights, write_weights

    state, about = read_weights(model, "")
    changed = {key: value for key, value in {**about, **changes}.items() if value is not None}
    write_weights(path, state, changed)
    return path


def run(study, scans, output, models=None, **wanted):
    predict.run(models or study.models[:1], scans, output, predict.Wanted(**wanted), 1, "cpu")
    with open(output / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def leftovers(output):
    return [path.name for path in output.rglob("*") if ".part" in path.name or path.name.startswith(".")]


def test_every_case_of_a_folder_in_its_own_grid_with_the_datasets_own_values(study, tmp_path, capsys):
    rows = run(study, study.images, tmp_path)
    assert [(row["case"], row["class"]) for row in rows] == [(name, k) for name in study.names for k in CLASSES]
    for name in study.names:
        scan, labels = (sitk.ReadImage(str(p)) for p in (study.images / f"{name}.nii.gz", tmp_path / f"{name}.nii.gz"))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_array_equal(*[np.float32(getattr(one, what)()) for one in (scan, labels)])
        values = sitk.GetArrayFromImage(labels)
        assert set(np.unique(values)) <= {0, 7, 3}
        for row in (row for row in rows if row["case"] == name):
            voxels = int(np.count_nonzero(values == {"liver": 7, "spleen": 3}[row["class"]]))
            assert int(row["value"]) == {"liver": 7, "spleen": 3}[row["class"]]
            assert int(row["voxels"]) == voxels
            assert float(row["volume_ml"]) == pytest.approx(voxels * 3 * 2 * 2 / 1000, rel=1e-4)
            assert row["scan_flag"] == ""
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"[1/3] {study.names[0]}: liver ")
    assert not leftovers(tmp_path)


def test_voxels_are_those_of_the_cache_and_labels_lie_where_they_belong(study, tmp_path, monkeypatch):
    """With a network that is right, the file on disk equals the labels it was trained on."""
    seen = []

    def right(network, voxels_CZYX, quantum, tiling, *rest):
        for name in study.names:
            case = cache.open_case(study.index, name)
            if np.array_equal(case.read((0, 0, 0), case.shape_zyx)[0], voxels_CZYX):
                assert quantum == case.quantum
                assert tiling.window_zyx == (16, 16, 16)
                seen.append(name)
                return case.read_label((0, 0, 0), case.shape_zyx)
        raise AssertionError("no case of the cache")

    monkeypatch.setattr(infer, "segment_with", right)
    run(study, study.images, tmp_path / "own")
    run(study, study.images, tmp_path / "study", ids="study")
    assert seen == study.names * 2
    for name in study.names:
        own, ids, truth = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(place / f"{name}.nii.gz")))
            for place in (tmp_path / "own", tmp_path / "study", study.place / "scans/labels")
        )
        expected = np.where(truth == 5, 3, truth)  # both are spleen
        assert np.mean(own == expected) > 0.98  # it went through 2.5 mm and back
        assert np.array_equal(np.array([0, 7, 3])[ids], own)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".nii.gz"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "tilted"])
def test_other_formats_and_orientations(study, suffix, orientation, tmp_path):
    shape = (17, 22, 30)
    voxels, _ = phantoms.make(9, shape)
    grid = phantoms.grid_of(shape, (4.0, 1.1, 1.3), orientation)
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(volume.from_array(voxels, grid), str(path))
    run(study, path, tmp_path / "out")
    made, scan = (sitk.ReadImage(str(one)) for one in (tmp_path / "out/scan.nii.gz", path))
    assert made.GetSize() == scan.GetSize()
    for what in ("GetSpacing", "GetOrigin"):
        np.testing.assert_allclose(getattr(made, what)(), getattr(scan, what)(), rtol=1e-6)
    np.testing.assert_allclose(made.GetDirection(), scan.GetDirection(), atol=1e-6)


def test_dicom_series_in_and_dicom_seg_out(study, tmp_path, capsys):
    highdicom = pytest.importorskip("highdicom")
    voxels, _ = phantoms.make(4)
    for number, orientation in enumerate(("LPS", "PIR"), 1):
        grid = phantoms.grid_of(voxels.shape, phantoms.SPACING_ZYX_MM, orientation)
        phantoms.write_series(tmp_path / "dicom/visit", volume.from_array(voxels, grid), number, patient="P")
    add_frame_of_reference(tmp_path / "dicom/visit")
    run(study, tmp_path / "dicom", tmp_path / "out", dicom_seg=True)
    for number in (1, 2):
        labels = sitk.ReadImage(str(tmp_path / f"out/visit_s{number}.nii.gz"))
        seg = highdicom.seg.segread(tmp_path / f"out/visit_s{number}.seg.dcm")
        found = seg.get_volume(combine_segments=True)
        ids = np.array([0, *[0] * 2, 2, *[0] * 3, 1])[sitk.GetArrayFromImage(labels)]
        places = found.map_indices_to_reference(np.argwhere(found.array > 0))
        there = [labels.TransformPhysicalPointToIndex(place.tolist()) for place in places]
        assert [ids[z, y, x] for x, y, z in there] == found.array[found.array > 0].tolist()
        assert len(there) == np.count_nonzero(ids)
    assert not leftovers(tmp_path / "out")
    with pytest.raises(Refusal, match=r"is no DICOM series.*leave out --dicom-seg"):
        run(study, study.images / f"{study.names[0]}.nii.gz", tmp_path / "other", dicom_seg=True)
    assert list((tmp_path / "other").iterdir()) == []


def add_frame_of_reference(folder):
    """SimpleITK's writer leaves out what every scanner writes."""
    import pydicom

    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.FrameOfReferenceUID = "1.2.826.0.1.3680043.2.1125.99"
        data.save_as(path)


def test_finished_cases_are_kept_and_damaged_or_stale_ones_done_again(study, tmp_path, monkeypatch, capsys):
    calls, segment = [], infer.segment_with
    monkeypatch.setattr(infer, "segment_with", lambda *a: calls.append(1) or segment(*a))
    scans = tmp_path / "scans"
    shutil.copytree(study.images, scans)
    first = run(study, scans, scans / "out")  # below the input: what it writes is no input
    assert len(calls) == 3
    assert run(study, scans, scans / "out") == first
    assert len(calls) == 3
    assert capsys.readouterr().out.count("done before") == 3
    file = scans / "out" / f"{study.names[0]}.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert run(study, scans, scans / "out") == first
    assert len(calls) == 4
    assert file.read_bytes() == whole
    shutil.copy(scans / f"{study.names[1]}.nii.gz", scans / f"{study.names[2]}.nii.gz")
    run(study, scans, scans / "out")
    assert len(calls) == 5
    run(study, scans, scans / "out", models=study.models)
    assert len(calls) == 8


def test_one_bad_scan_stops_no_other_and_the_command_ends_with_1(study, tmp_path, monkeypatch, capsys):
    from voxprior.__main__ import main

    scans = tmp_path / "scans"
    shutil.copytree(study.images, scans)
    (scans / f"{study.names[1]}.nii.gz").write_bytes(b"not an image")
    arguments = ["--model", study.models[0], "--input", scans, "--output", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["voxprior", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"1 of 3 scans could not be segmented ({study.names[1]})" in said
    with open(tmp_path / "out/failed.csv", newline="") as file:
        (failed,) = csv.DictReader(file)
    assert failed["case"] == study.names[1]
    assert "\n" not in failed["defect"]
    assert failed["defect"].startswith(failed["file"])
    assert (tmp_path / f"out/{study.names[2]}.nii.gz").is_file()
    assert not (tmp_path / f"out/{study.names[1]}.nii.gz").exists()
    # Mended, the list goes away.
    shutil.copy(study.images / f"{study.names[1]}.nii.gz", scans)
    main_code = SimpleNamespace(code=0)
    try:
        main()
    except SystemExit as stop:
        main_code = stop
    assert not main_code.code
    assert not (tmp_path / "out/failed.csv").exists()


def test_an_ensemble_and_mirroring(study, tmp_path, capsys):
    scan = study.images / f"{study.names[0]}.nii.gz"
    ways = {"one": {}, "twice": {"models": study.models[:1] * 2}, "both": {"models": study.models}}
    ways |= {"mirrored": {"mirror": True}}
    labels = {}
    for name, how in ways.items():
        run(study, scan, tmp_path / name, **how)
        labels[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / f"{study.names[0]}.nii.gz")))
    assert np.array_equal(labels["one"], labels["twice"])
    assert not np.array_equal(labels["one"], labels["both"])
    assert not np.array_equal(labels["one"], labels["mirrored"])


def test_classes_with_sides_are_not_mirrored(study, tmp_path, capsys):
    from voxprior.nets.weights import read_weights

    card = read_weights(study.models[0], "")[1]["card"] | {"classes": ["kidney_left", "kidney_right"]}
    sided = rewritten(study.models[0], tmp_path / "sided.safetensors", card=card)
    scan = study.images / f"{study.names[0]}.nii.gz"
    run(study, scan, tmp_path / "plain", [sided])
    run(study, scan, tmp_path / "mirrored", [sided], mirror=True)
    assert "mirroring is left out" in capsys.readouterr().err
    name = f"{study.names[0]}.nii.gz"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "mirrored" / name).read_bytes()


def test_probabilities_and_a_picture(study, tmp_path):
    name = study.names[0]
    run(study, study.images / f"{name}.nii.gz", tmp_path, probabilities=True, overlay=True, ids="study")
    shares = [sitk.ReadImage(str(tmp_path / f"{name}.probabilities/{k}.nii.gz")) for k in ("background", *CLASSES)]
    scan, labels = (sitk.ReadImage(str(p)) for p in (study.images / f"{name}.nii.gz", tmp_path / f"{name}.nii.gz"))
    assert all(share.GetSize() == scan.GetSize() and share.GetPixelID() == sitk.sitkUInt8 for share in shares)
    np.testing.assert_allclose(shares[1].GetDirection(), scan.GetDirection(), atol=1e-6)
    stacked = np.stack([sitk.GetArrayFromImage(share).astype(int) for share in shares])
    assert np.abs(stacked.sum(0) - 255).max() <= 3
    assert len(np.unique(stacked)) > 20
    # Labels went back by their own shares, so they agree wherever one class is far ahead.
    ahead = np.sort(stacked, 0)[-1] - np.sort(stacked, 0)[-2] > 60
    assert np.mean((stacked.argmax(0) == sitk.GetArrayFromImage(labels))[ahead]) > 0.99
    picture = sitk.ReadImage(str(tmp_path / f"{name}.overlay.png"))
    assert min(picture.GetSize()) > 200
    assert not leftovers(tmp_path)


def test_several_channels_from_files_or_from_one(tmp_path, study):
    scale = {"spacing_zyx_mm": SPACING, "intensity": {"kind": "window", "low": -1000, "high": 1000}}
    scale["channels"] = {"PET": {"kind": "percentile", "low": 1, "high": 99}}
    from voxprior.nets.backbones import Backbone
    from voxprior.nets.weights import read_weights, write_weights

    about = read_weights(study.models[0], "")[1]
    card = about["card"] | {"channels": 2, "prepare": scale}
    torch.manual_seed(0)
    network = Backbone("tiny", "cnn", CNN, 2).segmenter(3, (16, 16, 16))
    model = tmp_path / "two.safetensors"
    write_weights(model, network.state_dict(), {**about, "card": card, "channels": ["CT", "PET"]})
    grid = phantoms.grid_of(phantoms.SHAPE_ZYX)
    ct, pet = (volume.from_array(phantoms.make(seed)[0], grid) for seed in (1, 2))
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(ct, str(tmp_path / "scans/a_0000.nii.gz"))
    sitk.WriteImage(pet, str(tmp_path / "scans/a_0001.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([ct, pet]), str(tmp_path / "scans/b.nii.gz"))
    sitk.WriteImage(ct, str(tmp_path / "scans/c.nii.gz"))
    sitk.WriteImage(ct, str(tmp_path / "scans/d_0000.nii.gz"))
    with pytest.raises(Incomplete, match=r"2 of 4 scans .* \(c, d\)"):
        run(study, tmp_path / "scans", tmp_path / "out", [model])
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"out/{name}.nii.gz"))) for name in "ab")
    assert np.array_equal(a, b)
    failed = (tmp_path / "out/failed.csv").read_text()
    assert "c.nii.gz has 1 channels where" in failed or "c.nii.gz is 3-D" in failed
    assert "channel 0001 is missing" in failed
    nameless = rewritten(model, tmp_path / "nameless.safetensors", channels=None)
    with pytest.raises(Refusal, match="does not say in which order its channels come"):
        run(study, tmp_path / "scans", tmp_path / "out", [nameless])


def test_a_scan_unlike_those_of_training_is_flagged(study, tmp_path):
    voxels, _ = phantoms.make(3)
    grid = phantoms.grid_of(voxels.shape)
    sitk.WriteImage(volume.from_array(voxels + np.int16(1024), grid), str(tmp_path / "shifted.nii.gz"))
    sitk.WriteImage(volume.from_array((voxels / 1000).astype("f4"), grid), str(tmp_path / "narrow.nii.gz"))
    sitk.WriteImage(volume.from_array(voxels, grid), str(tmp_path / "usual.nii.gz"))
    flags = {row["case"]: row["scan_flag"] for row in run(study, tmp_path, tmp_path / "out")}
    far = "intensities far from training"
    assert flags == {"shifted": far, "narrow": far, "usual": ""}


def test_flags_of_classes(study, tmp_path, monkeypatch):
    def block(network, voxels_CZYX, *rest):
        labels = np.zeros(voxels_CZYX.shape[1:], np.uint8)
        labels[:, 5:9, 5:9] = 1
        return labels

    monkeypatch.setattr(infer, "segment_with", block)
    rows = run(study, study.images / f"{study.names[0]}.nii.gz", tmp_path)
    assert [row["flag"] for row in rows] == ["touches border", "empty"]


def test_what_is_no_model_for_this_is_refused_in_a_sentence(study, tmp_path):
    scan = study.images / f"{study.names[0]}.nii.gz"
    bad = tmp_path / "model.safetensors"
    torch.save({"weights": torch.ones(2)}, bad)
    with pytest.raises(Refusal, match="cannot be read as safetensors"):
        run(study, scan, tmp_path / "out", [bad])
    with pytest.raises(Refusal, match="has format 2 and this voxprior reads 1: update voxprior"):
        run(study, scan, tmp_path / "out", [rewritten(study.models[0], bad, format=2)])
    data = {"values": [[1], [2]]}
    with pytest.raises(Refusal, match="has other label values than"):
        run(study, scan, tmp_path / "out", [study.models[1], rewritten(study.models[0], bad, data=data)])
    with pytest.raises(Refusal, match="is missing: give a scan"):
        run(study, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="holds no scan"):
        run(study, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_older_versions_predict_with_the_studys_ids_and_say_so(study, untold, tmp_path, capsys):
    scan = study.images / f"{study.names[0]}.nii.gz"
    rows = run(study, scan, tmp_path / "old", [untold])
    assert "does not hold its dataset's label values" in capsys.readouterr().err
    assert [row["value"] for row in rows] == ["1", "2"]
    run(study, scan, tmp_path / "new", ids="study")
    assert (tmp_path / "old" / scan.name).read_bytes() == (tmp_path / "new" / scan.name).read_bytes()


def test_a_model_file_says_what_it_was_made_of(study):
    from voxprior.nets.weights import read_weights

    about = read_weights(study.models[0], "")[1]
    assert about["data"]["licence"] == "CC0-1.0"
    assert about["data"]["values"] == [[7], [3, 5]]
    assert about["data"]["modality"] == "ct"
    assert about["data"]["intensity"]["all"]["p0.5"] < -900
    assert len(about["training_cases"]) == 2
    assert about["channels"] == ["image"]


def test_it_never_imports_monai_and_needs_no_network(study, tmp_path):
    scan = study.images / f"{study.names[0]}.nii.gz"
    code = (
        "import socket, sys; from pathlib import Path; from voxprior.commands import predict\n"
        "def no(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = no\n"
        f"predict.run([Path({str(study.models[0])!r})], Path({str(scan)!r}), Path({str(tmp_path)!r}),"
        "predict.Wanted(), 1, 'cpu')\n"
        "print(sorted({'monai', 'mlflow', 'pandas', 'highdicom', 'matplotlib'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "[]", told.stderr
