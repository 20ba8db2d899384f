"""Scans of two channels: pretrained, fine-tuned and predicted; and an encoder that was trained on one."""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open

from voxprior.cards import card_hash, read_card
from voxprior.commands import finetune, predict_test, pretrain
from voxprior.data import cache


@pytest.fixture(scope="module")
def two_channels(tiny_study, tmp_path_factory):
    """Writes the tiny study's scans again, with their negative as a second channel: the index."""
    folder = tmp_path_factory.mktemp("two")
    index = json.loads(tiny_study.index.read_text())
    for entry in index["cases"]:
        case = cache.open_case(tiny_study.index, entry["case"])
        image_CZYX, _, _ = case.read((0, 0, 0), case.shape_zyx)
        both = np.concatenate([image_CZYX, 1000 - image_CZYX])
        entry["image_sha256"] = cache.write_array(folder / entry["image"], both, "key")
        (folder / entry["label"]).write_bytes((tiny_study.index.parent / entry["label"]).read_bytes())
    (folder / "index.json").write_text(json.dumps(index))
    return folder / "index.json"


def test_scans_of_two_channels_from_pretraining_to_prediction(tiny_study, two_channels, tmp_path):
    card = tiny_study.card("pretrain", channels=2)
    pretrain.run(card, [two_channels], tiny_study.splits, tmp_path / "p/out", tmp_path / "p/work", 1, "cpu")
    encoder, made_by = tmp_path / "p/out/encoder.safetensors", card_hash(read_card("pretrain", card))
    with safe_open(encoder, framework="pt") as file:
        assert file.get_tensor("embed.weight").shape == (24, 2 * 8**3)
    card = tiny_study.card("finetune", channels=2, init="mae", init_card=made_by)
    finetune.run(card, two_channels, tiny_study.splits, tmp_path / "f/out", tmp_path / "f/work", encoder, 1, "cpu")
    report = json.loads((tmp_path / "f/out/load_report.json").read_text())
    assert report["placed_share"] == 1.0
    assert report["inflated"] == []
    told, model = tmp_path / "predictions.json", tmp_path / "f/out/model.safetensors"
    predict_test.run(tiny_study.card("predict"), model, [two_channels], tiny_study.splits, told, 1, "cpu")
    assert len(json.loads(told.read_text())["cases"]) == 2


def test_an_encoder_of_another_study_and_one_channel(tiny_study, two_channels, tmp_path):
    given = (tiny_study.card("pretrain"), [tiny_study.index], tiny_study.splits)
    pretrain.run(*given, tmp_path / "p/out", tmp_path / "p/work", 1, "cpu")
    encoder = tmp_path / "p/out/encoder.safetensors"
    named = {"sha256": hashlib.sha256(encoder.read_bytes()).hexdigest(), "channels": 1}
    card = tiny_study.card("finetune", channels=2, init="elsewhere", init_file=named)
    finetune.run(card, two_channels, tiny_study.splits, tmp_path / "f/out", tmp_path / "f/work", encoder, 1, "cpu")
    report = json.loads((tmp_path / "f/out/load_report.json").read_text())
    assert report["inflated"] == ["encoder.embed.weight"]
    assert report["placed"] == report["encoder_tensors"]
