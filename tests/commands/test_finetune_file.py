"""An init that is a file of weights: another study's encoder, a whole network, or what is refused."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from voxprior.commands import finetune
from voxprior.errors import Refusal
from voxprior.nets.backbones import Backbone
from voxprior.nets.weights import read_weights


def run(study, folder, file, sha256=None, decoder=False, channels=None, **changes):
    sha256 = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
    named = {"sha256": sha256, "decoder": decoder, "channels": channels}
    card = study.card("finetune", init="mine", init_file=named, recipe={"lr": 1e-30, "weight_decay": 0.0}, **changes)
    finetune.run(card, study.index, study.splits, folder / "out", folder / "work", file, 1, "cpu")
    return json.loads((folder / "out" / "load_report.json").read_text())


@pytest.fixture(scope="module")
def model(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    card = tiny_study.card("finetune", seed=5)
    finetune.run(card, tiny_study.index, tiny_study.splits, folder / "out", folder / "work", None, 1, "cpu")
    return folder / "out" / "model.safetensors"


def test_a_whole_model_gives_its_encoder_or_all_of_it(tiny_study, tmp_path, model, capfd):
    theirs = load_file(model)
    for decoder in (False, True):
        report = run(tiny_study, tmp_path / str(decoder), model, decoder=decoder)
        ours = load_file(tmp_path / str(decoder) / "out" / "model.safetensors")
        kept = {name for name in theirs if torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-20)}
        encoder = {name for name in theirs if name.startswith("encoder.")}
        assert kept == set(theirs) if decoder else encoder <= kept < set(theirs)
        assert set(report["fresh"]) == set(report["dropped"]) == (set() if decoder else set(theirs) - encoder)
    told = capfd.readouterr().err
    assert "mine on vit_tiny: 52 of 52 encoder tensors placed" in told
    assert "dropped" in told
    summary = json.loads((tmp_path / "True" / "out" / "summary.json").read_text())
    assert summary["inputs"]["encoder_sha256"] == summary["card"]["init_file"]["sha256"]


def test_a_file_that_changed_since_the_card_was_written_is_refused(tiny_study, tmp_path, model):
    with pytest.raises(Refusal, match="model.safetensors has changed since its card was written"):
        run(tiny_study, tmp_path, model, sha256="0" * 64)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_vox": 4}, "holds an encoder of vit_tiny .patch_vox 8 where the study has 4.*its own backbone"),
        ({"heads": 4}, "heads 2 where the study has 4"),  # no shape tells
    ],
)
def test_an_encoder_of_another_backbone_or_grid_is_refused(tiny_study, tmp_path, model, changes, says):
    vit = {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
    with pytest.raises(Refusal, match=says):
        run(tiny_study, tmp_path, model, architecture={**vit, **changes})
    with pytest.raises(Refusal, match="family vit where the study has cnn"):
        run(tiny_study, tmp_path, model, family="cnn", architecture=tiny_study.cnn)


def test_an_encoder_of_other_channels_is_refused_or_made_to_fit(tiny_study, tmp_path):
    file = tmp_path / "four.safetensors"
    save_file(dict(Backbone("s", "cnn", tiny_study.cnn, 4).encoder().state_dict()), file)
    cnn = {"family": "cnn", "architecture": tiny_study.cnn}
    with pytest.raises(Refusal, match="four.safetensors was trained on images of 4 channels .* scans have 1"):
        run(tiny_study, tmp_path, file, **cnn)
    assert len(run(tiny_study, tmp_path, file, channels=4, **cnn)["inflated"]) == 2


def test_other_voxel_sizes_are_told(tiny_study, tmp_path, model, capfd):
    _, about = read_weights(model, "")
    prepare = {**about["card"]["prepare"], "spacing_zyx_mm": [6, 6, 6]}
    report = run(tiny_study, tmp_path, model, prepare=prepare)
    said = "was trained on voxels of 3 x 2 x 2 mm (Z Y X), the study has 6 x 6 x 6 mm"
    assert said in capfd.readouterr().err
    assert len(report["warnings"]) == 1 and said in report["warnings"][0]
