"""The corpus of broken scans, shown to `voxprior predict`: each is refused in a sentence, and the others go on."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

DEFECTS = Path(__file__).parents[1] / "data" / "defects.py"
CNN = {"channels": [4, 8], "blocks": 1, "pretrained_stages": 2}
# Of the corpus: what is wrong with a scan itself, wherever it is shown. The rest is about labels, names and layouts.
WRONG = [
    "NaN", "infinite", "all zero", "constant", "complex numbers", "2-D", "4-D, two frames", "5-D", "colours",
    "one slice", "spacing zero", "spacing NaN", "spacing huge", "two spacings in one header", "sheared by 14 degrees",
    "MetaImage sheared by 30 degrees", "sform of zeros", "sform and qform exchange left and right", "zero bytes",
    "truncated gzip", "one bit flipped", "whole gzip, too few voxels", "a header that announces a terabyte",
    "plain NIfTI, truncated", "wrong magic", "text called .nii.gz", "a picture called .nii", "MetaImage, truncated",
    "NRRD, truncated", "NaN in NRRD",
]  # fmt: skip
RIGHT = ["left-handed", "axes exchanged", "tilted by 16 degrees", "sheared by 0.4 degrees", "4-D, one frame"]


def load():
    spec = importlib.util.spec_from_file_location("defects_for_predict", DEFECTS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = load()
BY_NAME = {one.name: one for one in corpus.DEFECTS}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of random weights, for CT."""
    from voxprior.nets.backbones import Backbone
    from voxprior.nets.weights import write_weights

    torch.manual_seed(0)
    scale = {"spacing_zyx_mm": [3, 3, 3], "intensity": {"kind": "window", "low": -1000, "high": 1000}}
    card = {
        "init": "scratch", "backbone": "tiny", "family": "cnn", "architecture": CNN, "recipe": {"lr": 0.01},
        "classes": ["one"], "steps": 1, "batch_size": 1, "crop_vox": [8, 8, 8], "foreground": 0, "precision": "fp32",
        "prepare": scale, "budget": 1, "fold": 0, "seed": 0,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_weights(path, Backbone("tiny", "cnn", CNN).segmenter(2, (8, 8, 8)).state_dict(), {"card": card})
    return path


def run(one, model, place):
    corpus.write_dataset(place / "scans")
    one.make(place / "scans")
    if one.after:
        one.after(place / "scans")
    words = ["predict", "--model", model, "--input", place / "scans/images", "--output", place / "out"]
    return corpus.command(*map(str, words), "--device", "cpu")


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_scan_is_refused_in_a_sentence_and_the_other_is_segmented(name, model, tmp_path):
    code, said = run(BY_NAME[name], model, tmp_path)
    assert code == 1, said
    assert "Traceback" not in said
    with open(tmp_path / "out/failed.csv", newline="", encoding="utf-8") as file:
        (failed,) = csv.DictReader(file)
    assert failed["case"] == "bad"
    assert "\n" not in failed["defect"]
    what, _, advice = failed["defect"].rpartition(": ")
    assert len(advice) > 8 and len(what) > 20
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_good.json", "a_good.nii.gz", "failed.csv", "predictions.csv"
    ]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_strange_scan_that_can_be_read_is_segmented(name, model, tmp_path):
    code, said = run(BY_NAME[name], model, tmp_path)
    assert code == 0, said
    assert (tmp_path / "out/bad.nii.gz").is_file()


def test_the_only_scan_given_is_refused_as_anything_else_is(model, tmp_path):
    corpus.write_dataset(tmp_path)
    corpus.save(corpus.bad_scan(tmp_path), corpus.phantom(1)[0][6])
    words = ["predict", "--model", model, "--input", corpus.bad_scan(tmp_path), "--output", tmp_path / "out"]
    code, said = corpus.command(*map(str, words), "--device", "cpu")
    assert code == 2
    assert "is 2-D, not 3-D" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_an_encoder_is_no_model(tmp_path):
    from voxprior.commands import trained
    from voxprior.errors import Refusal
    from voxprior.nets.weights import write_weights

    write_weights(tmp_path / "encoder.safetensors", {"a": torch.zeros(1)}, {"card": {}, "tensors": ["a"]})
    with pytest.raises(Refusal, match=r"is an encoder, without a decoder: give the model.safetensors of a fine-tuning"):
        trained.load(tmp_path / "encoder.safetensors")
