"""On a GPU: the numbers of the CPU, compiled or not; no step waits; the same bits twice. Never run on one yet.

`VOXPRIOR_TEST_DEVICE=cpu python -m pytest -m gpu` runs the same lines where there is none, so that they stay right.
"""

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

from voxprior.configuration import Recipe
from voxprior.engine.device import can_compile, pick
from voxprior.engine.estimate import fake_batch
from voxprior.engine.step import GRAPHS, Learner, Plan
from voxprior.maths import chance, crops
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.segment import infer
from voxprior.segment import model as segment

NAME = os.environ.get("VOXPRIOR_TEST_DEVICE", "cuda")
ABSENT = NAME.startswith("cuda") and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ABSENT, reason="torch sees no GPU; test_contract.py runs on a CPU")]
CPU = torch.device("cpu")
CONFIG = Path(__file__).parents[2] / "config" / "methods"
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
BACKBONES = [Backbone("vit", "vit", VIT), Backbone("cnn", "cnn", CNN)]
PAIRS = [(name, there) for name in METHODS for there in BACKBONES if load(name).accepts(there) is None]
each_pair = pytest.mark.parametrize(("method", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
TOTAL = 100


@pytest.fixture(autouse=True)
def device():
    """The device as a training picks it. Kernels are searched and chosen anew in every test."""
    torch.compiler.reset()
    yield pick(NAME, torch.get_num_threads())
    crops.allow_kernel(True)


def model_of(method, backbone):
    torch.manual_seed(0)
    module = load(method)
    return module.Model(
        module.Config(**yaml.safe_load((CONFIG / f"{method}.yaml").read_text())["tiny"]), backbone.encoder()
    )


def batch_of(method, model, device):
    """Two scans of noise, the same on every device."""
    region = load(method).region(model.config, BACKBONES[0])
    batch, key_B = fake_batch(region, 2, CPU)
    noise = (1000 * chance.uniform(key_B, "test", (1, *region.size_vox))).to(torch.int16)
    return {name: part.to(device) for name, part in {**batch, "region_BCZYX": noise}.items()}, key_B.to(device)


def learner_of(method, backbone, device, precision="fp32", compiler=None):
    recipe = Recipe(lr=1e-4, weight_decay=0.05)
    plan = Plan(TOTAL, recipe, "card", Path(), device, precision, "test", compiler=compiler)
    return Learner(model_of(method, backbone), plan)


def losses(method, backbone, device, steps=4, **how):
    """The losses of the first steps of a run."""
    learner = learner_of(method, backbone, device, **how)
    batch, key_B = batch_of(method, learner.model, device)
    return torch.stack([learner.step(step, key_B + step, batch)[0][0] for step in range(1, steps + 1)]).double().cpu()


@each_pair
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-3), ("bf16", 0.02)])
def test_the_first_losses_are_those_of_the_cpu(method, backbone, device, precision, most):
    here, there = losses(method, backbone, CPU), losses(method, backbone, device, precision=precision)
    assert torch.allclose(here, there, rtol=most, atol=0)


@each_pair
@pytest.mark.parametrize("compiler", ["inductor", GRAPHS])
def test_compiled_steps_have_the_losses_of_steps_as_written(method, backbone, device, compiler):
    if device.type == "cuda" and not can_compile(device):
        pytest.skip("torch.compile needs Triton and a C compiler here")
    if device.type == "cpu" and compiler == GRAPHS:
        pytest.skip("a CPU has no graphs to replay")
    how = (
        compiler if device.type == "cuda" else "aot_eager"
    )  # minutes a method on a CPU; test_one_graph.py compiles there
    made, written = (losses(method, backbone, device, compiler=name) for name in (how, None))
    assert torch.allclose(made, written, rtol=1e-3, atol=0)


@each_pair
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_device(method, backbone, device, precision):
    learner = learner_of(method, backbone, device, precision)
    batch, key_B = batch_of(method, learner.model, device)
    for step in range(3):  # the first is counted, and kernels are chosen
        learner.step(step, key_B, batch)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        values = learner.step(3, key_B, batch)[0]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(values).all()


@each_pair
def test_the_same_run_twice_and_a_resumed_one_have_the_same_bits(method, backbone, device):
    first = learner_of(method, backbone, device)
    batch, key_B = batch_of(method, first.model, device)
    for step in range(4):
        first.step(step, key_B + step, batch)
        if step == 1:
            saved = deepcopy((first.model.state_dict(), first.optimiser.state_dict()))
    again, resumed = (learner_of(method, backbone, device) for _ in range(2))
    resumed.model.load_state_dict(saved[0])
    resumed.optimiser.load_state_dict(saved[1])
    for step in range(4):
        again.step(step, key_B + step, batch)
        if step > 1:
            resumed.step(step, key_B + step, batch)
    for other in (again, resumed):
        for name, tensor in other.model.state_dict().items():
            assert torch.equal(tensor, first.model.state_dict()[name]), name


@pytest.mark.parametrize("samples", [1, 3])
def test_the_kernel_cuts_what_matrix_products_cut(device, samples):
    key_B = torch.arange(samples)
    volume = (1000 * chance.uniform(key_B, "volume", (1, 40, 36, 44))).to(torch.int16).to(device)
    lo = 10 * chance.uniform(key_B, "lo", (2, 3)).to(device)
    hi, valid_lo = lo + 20, torch.zeros(samples, 3, device=device)
    valid_hi = torch.tensor([40.0, 36.0, 44.0], device=device).expand(samples, 3)
    made = []
    for allowed in (True, False):
        crops.allow_kernel(allowed)
        made.append(crops.cut(volume, lo, hi, (16, 16, 16), valid_lo, valid_hi))
    assert torch.allclose(*made, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda there: there.name)
def test_a_scan_gets_the_labels_of_the_cpu(backbone, device):
    torch.manual_seed(0)
    config = segment.Config((32, 32, 32))
    model = segment.Model(config, backbone.segmenter(3, config.crop_vox)).eval()
    scan = chance.uniform(torch.arange(1), "scan", (1, 40, 48, 36)).numpy()[0]
    here, there = (
        infer.segment_volume(model.to(on).network, scan, 1.0, (32, 32, 32), 0.25, on) for on in (CPU, device)
    )
    assert len(set(here.flat)) > 1
    assert (here == there).mean() > 0.99, "voxels near a tie apart: convolutions compute in TF32 there"
