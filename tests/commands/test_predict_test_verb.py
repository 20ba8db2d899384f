import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from voxprior.commands import finetune, predict_test
from voxprior.errors import Refusal


@pytest.fixture(scope="module")
def model(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    card = tiny_study.card("finetune", budget=1)
    finetune.run(card, tiny_study.index, tiny_study.splits, folder / "out", folder / "work", None, 1, "cpu")
    return folder / "out" / "model.safetensors"


def run(study, model, output, *external):
    card = study.card("predict")
    predict_test.run(card, model, [study.index, *external], study.splits, output, 1, "cpu")
    return json.loads(output.read_text())


def test_test_cases_and_external_labelled_cases_in_their_own_grids(tiny_study, external_index, model, tmp_path):
    told = run(tiny_study, model, tmp_path / "predictions.json", external_index)
    assert [(case["dataset"], case["case"]) for case in told["cases"]] == [
        ("phantoms", "phantom_0"),
        ("phantoms", "phantom_1"),
        ("elsewhere", "phantom_0"),
        ("elsewhere", "phantom_1"),
    ]
    raw = json.loads(tiny_study.index.read_text())["cases"][0]["raw"]
    for case in told["cases"]:
        image = sitk.ReadImage(case["file"])
        assert image.GetSize() == tuple(raw["size_xyz"])
        assert image.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_allclose(image.GetSpacing(), raw["spacing_xyz_mm"], rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), raw["origin_xyz_mm"], rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), raw["direction"], atol=1e-6)
        counts = np.bincount(sitk.GetArrayFromImage(image).ravel(), minlength=3)
        np.testing.assert_allclose(case["volume_ml"], counts[1:] * 3 * 2 * 2 / 1000)


def test_labels_lie_where_they_belong_in_the_scans_own_grid(tiny_study, model, tmp_path, monkeypatch):
    """With a network that is right, the file on disk equals the phantom it was made from, orientation and all."""
    from voxprior.data import cache, phantoms
    from voxprior.segment import infer

    truth = {}

    def right(network, volume_CZYX, *rest):
        for name in ("phantom_0", "phantom_1"):
            case = cache.open_case(tiny_study.index, name)
            if np.array_equal(case.read((0, 0, 0), case.shape_zyx)[0], volume_CZYX):
                truth[name] = True
                return case.read_label((0, 0, 0), case.shape_zyx)
        raise AssertionError("not a test case")

    monkeypatch.setattr(infer, "segment_with", right)
    told = run(tiny_study, model, tmp_path / "predictions.json")
    for number, case in enumerate(told["cases"]):
        expected = phantoms.make(number, (20, 24, 22), 2)[1]
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(case["file"])), expected)
    assert len(truth) == 2


def test_finished_cases_are_kept_and_damaged_or_stale_ones_done_again(tiny_study, model, tmp_path, monkeypatch):
    from voxprior.segment import infer

    output, calls = tmp_path / "predictions.json", []
    segment = infer.segment_with
    monkeypatch.setattr(infer, "segment_with", lambda *a: calls.append(1) or segment(*a))
    first = run(tiny_study, model, output)
    assert len(calls) == 2
    output.unlink()  # as Snakemake does with the outputs of a failed job
    assert run(tiny_study, model, output) == first
    assert len(calls) == 2
    file = tmp_path / "predictions" / "phantoms.phantom_1.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    again = run(tiny_study, model, output)
    assert len(calls) == 3
    assert file.read_bytes() == whole
    assert [case["volume_ml"] for case in again["cases"]] == [case["volume_ml"] for case in first["cases"]]
    (tmp_path / "predictions" / "phantoms.phantom_0.json").write_text("{")
    run(tiny_study, model, output)
    assert len(calls) == 4


def test_what_is_no_model_of_ours_is_refused(tiny_study, model, tmp_path):
    from safetensors.torch import load_file, save_file

    bad = tmp_path / "model.safetensors"
    torch.save({"weights": torch.ones(2)}, bad)
    with pytest.raises(Refusal, match="cannot be read as safetensors"):
        run(tiny_study, bad, tmp_path / "p.json")
    save_file(load_file(model), bad)
    with pytest.raises(Refusal, match="does not say which card"):
        run(tiny_study, bad, tmp_path / "p.json")
    from safetensors import safe_open

    with safe_open(model, framework="pt") as file:
        about = file.metadata()
    save_file({"encoder.x": torch.ones(2)}, bad, metadata=about)
    with pytest.raises(Refusal, match="does not fit the network"):
        run(tiny_study, bad, tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def test_prediction_never_imports_monai(tiny_study, model, tmp_path):
    card = tiny_study.card("predict")
    code = (
        "import sys; from pathlib import Path; from voxprior.commands import predict_test;"
        f"predict_test.run(Path({str(card)!r}), Path({str(model)!r}), [Path({str(tiny_study.index)!r})],"
        f"Path({str(tiny_study.splits)!r}), Path({str(tmp_path / 'p.json')!r}), 1, 'cpu');"
        "print(sorted({'monai', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.strip() == "[]", told.stderr


def test_the_probability_of_each_voxels_class_is_kept_where_it_is_scored(tiny_study, model, tmp_path):
    card = tiny_study.card("predict", confidence=True)
    output = tmp_path / "predictions.json"
    predict_test.run(card, model, [tiny_study.index], tiny_study.splits, output, 1, "cpu")
    with_it = json.loads(output.read_text())["cases"]
    without = run(tiny_study, model, tmp_path / "plain" / "predictions.json")["cases"]
    for case, plain in zip(with_it, without, strict=True):
        assert "confidence" not in plain
        label, sure = (sitk.ReadImage(case[what]) for what in ("file", "confidence"))
        assert np.array_equal(sitk.GetArrayFromImage(label), sitk.GetArrayFromImage(sitk.ReadImage(plain["file"])))
        assert sure.GetSize() == label.GetSize()
        assert sure.GetDirection() == label.GetDirection()
        shares = sitk.GetArrayFromImage(sure) / 255
        assert shares.min() > 1 / 3 - 0.01  # the largest of three
        assert 0.34 < shares.mean() < 1
