"""`benchmarks/finetune_gpu.py` predicts, and its lines run on a CPU."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """Imports the script with its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import finetune_gpu

    return finetune_gpu


def test_a_prediction_counts_what_a_step_does(script):
    backbone = script.arms.SIZES["tiny"]["cnn"]
    told = script.predict(backbone, 32, 2)
    model = script.built(backbone, 32, torch.device("cpu"))
    learner = script.Learner(model, script.arms.plan(torch.device("cpu")))
    batch, key_B = script.batch_of(32, 2, torch.device("cpu"))
    learner.step(0, key_B, batch)
    assert told["flops"] == learner.flops > 0
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    ways = told["H100"]
    fused, apart = ways["bf16 compiled"], ways["bf16 compiled, augmentation as written"]
    assert fused["augmentation_kernels"] < 0.3 * apart["augmentation_kernels"]
    assert fused["augmentation_share"] < apart["augmentation_share"]
    assert told["memory_bytes_recomputed"] < told["memory_bytes"]
    assert told["fits"]["H200"] > told["fits"]["H100"] > 2


def test_a_check_and_a_measurement_run_on_a_cpu(script):
    backbone = script.arms.SIZES["tiny"]["vit"]
    options = SimpleNamespace(device="cpu", no_compile=True, rounds=1)
    checked = script.check(backbone, 32, options)
    assert checked["right"] and abs(checked["recomputed"]) < 1e-5
    told = script.attempt(backbone, 32, 2, options, ("fp32", "eager"))
    assert told["flops"] > 0 and 0 < told["augmentation_share"] < 1


def test_the_committed_prediction_holds_every_arm_of_the_script(script):
    told = json.loads((ROOT / "docs/results/benchmarks/finetune_gpu_predicted.json").read_text())
    sizes = [(arm["crop_vox"], arm["samples"]) for arm in told["arms"]]
    assert sizes == [(side, samples) for _, side, samples in script.ARMS["paper"]]
    assert not told["measured"]
