"""ONNX and TorchScript compute what the network computes, for any number of windows."""

import json

import pytest
import torch

from voxprior.commands import export
from voxprior.errors import Refusal
from voxprior.exchange import graph
from voxprior.nets.backbones import Backbone
from voxprior.nets.weights import write_weights

SIZES = {
    "vit": {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4},
    "stunet": {"channels": [4, 8, 8], "blocks": 1, "pretrained_stages": 2},
    "resenc": {"kind": "resenc", "channels": [4, 8, 8], "blocks": [1, 2, 1], "pretrained_stages": 2},
}
WINDOW = [16, 24, 16]


def model(path, name, channels=1):
    torch.manual_seed(0)
    family = "vit" if name == "vit" else "cnn"
    network = Backbone(name, family, SIZES[name], channels).segmenter(3, tuple(WINDOW)).eval()
    card = {"backbone": name, "family": family, "architecture": SIZES[name], "channels": channels}
    prepare = {"spacing_zyx_mm": [3.0, 2.0, 2.0], "intensity": {"kind": "window", "low": -200.0, "high": 300.0}}
    about = {"card": card, "classes": ["liver", "spleen"], "window": WINDOW, "prepare": prepare}
    write_weights(path, network.state_dict(), about | {"training_cases": {"a": "0" * 64}})
    return network


def write(to, output, weights, tolerance=1e-4):
    export.run(to, output, weights, None, None, 501, False, tolerance)


PAIRS = [("torchscript", name) for name in SIZES] + [("onnx", "stunet")]
PAIRS += [pytest.param("onnx", name, marks=pytest.mark.slow) for name in ("vit", "resenc")]


@pytest.mark.parametrize(("to", "name"), PAIRS)
def test_logits_are_the_networks_for_any_number_of_windows(tmp_path, capsys, to, name):
    if to == "onnx":
        pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    channels = 2 if name == "vit" else 1
    network = model(tmp_path / "model.safetensors", name, channels)
    write(to, tmp_path / "out", tmp_path / "model.safetensors")
    content = (tmp_path / "out").read_bytes()
    run = (graph.run_onnx if to == "onnx" else graph.run_torchscript)(content)
    for windows in (1, 5):
        volume = torch.rand(windows, channels, *WINDOW)
        with torch.no_grad():
            torch.testing.assert_close(run(volume), network(volume), rtol=0, atol=1e-4)
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["input"]["shape"] == ["any", channels, *WINDOW]
    assert told["output"]["classes"] == ["background", "liver", "spleen"]
    assert told["input"]["spacing_zyx_mm"] == [3.0, 2.0, 2.0]
    assert told["training_cases"] == {"a": "0" * 64}
    assert 0 <= told["largest_difference"] < 1e-4
    assert "of the network's" in capsys.readouterr().out


def test_what_differs_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    model(tmp_path / "model.safetensors", "stunet")
    monkeypatch.setattr(graph, "run_torchscript", lambda content: lambda volume: torch.zeros(len(volume), 3, *WINDOW))
    with pytest.raises(Refusal, match="torchscript differs from the network by up to"):
        write("torchscript", tmp_path / "out", tmp_path / "model.safetensors")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refusal, match="nan"):
        graph.demand_equal(float("nan"), 1.0, "onnx")


def test_an_encoder_is_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_weights(path, {"a": torch.ones(1)}, {"card": {}})
    with pytest.raises(Refusal, match=r"take model.safetensors of a fine-tuning"):
        write("onnx", tmp_path / "out", path)
