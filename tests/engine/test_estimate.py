"""What is counted on the meta device is what a step on the CPU does."""

from pathlib import Path

import pytest
import torch
import yaml

from voxprior.configuration import Recipe
from voxprior.engine import estimate
from voxprior.engine.step import Learner, Plan
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone

ROOT = Path(__file__).parents[2]
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
BACKBONES = [Backbone("vit", "vit", VIT), Backbone("cnn", "cnn", CNN)]
PAIRS = [(name, there) for name in METHODS for there in BACKBONES if load(name).accepts(there) is None]
CPU, SAMPLES = torch.device("cpu"), 2


@pytest.mark.parametrize(("method", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
def test_parameters_and_flops_are_those_of_a_real_step(method, backbone):
    module, recipe = load(method), Recipe(lr=1e-3)
    config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{method}.yaml").read_text())["tiny"])
    region = module.region(config, backbone)
    with estimate.META:
        model = module.Model(config, backbone.encoder())
    told = estimate.cost(model, region, SAMPLES, "fp32", recipe)
    assert estimate.cost(model, region, SAMPLES, "bf16", recipe).flops == told.flops

    real = module.Model(config, backbone.encoder())
    learner = Learner(real, Plan(3, recipe, "card", Path(), CPU))
    batch, key_B = estimate.fake_batch(region, SAMPLES, CPU)
    for step in range(3):
        learner.step(step, key_B, batch)
    trained = [parameter for parameter in real.parameters() if parameter.requires_grad]
    assert told.parameters == sum(parameter.numel() for parameter in trained)
    assert told.encoder == sum(parameter.numel() for parameter in real.encoder.parameters())
    assert told.flops == learner.flops > 0
    has = any(name.endswith("decoder") for name, _ in model.named_modules())
    assert bool(told.decoder_flops) == has and told.decoder_flops < told.flops
    state = [tensor for kept in learner.optimiser.state.values() for tensor in kept.values() if tensor.dim()]
    assert told.optimiser_bytes == sum(tensor.nbytes for tensor in state)
    assert told.gradient_bytes == sum(parameter.nbytes for parameter in trained)
    assert told.weight_bytes == sum(tensor.nbytes for tensor in [*real.parameters(), *real.buffers()])


def saved_on_the_cpu(model, region, precision) -> int:
    """Adds up what autograd keeps in a real forward pass."""
    batch, key_B = estimate.fake_batch(region, SAMPLES, CPU)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    views = model.views(batch, key_B)
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), low:
        terms = model(views, 0.5)  # alive, and so are the storages
    assert terms
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("precision", "within"),
    [("fp32", 0.07), ("bf16", 0.25)],  # fused attention lays its result out otherwise; autocast differs on the CPU
)
@pytest.mark.parametrize(("method", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
def test_memory_kept_for_the_backward_pass_is_about_what_the_cpu_keeps(
    method, backbone, precision, within, monkeypatch
):
    grouped = torch.nn.functional.group_norm

    def as_on_a_gpu(feature, groups, *given, **named):
        # Autocast has group norms in float32 there; instance norms, which are one group a channel here, it leaves.
        return grouped(feature if groups == feature.shape[1] else feature.float(), groups, *given, **named)

    monkeypatch.setattr(torch.nn.functional, "group_norm", as_on_a_gpu)
    module = load(method)
    config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{method}.yaml").read_text())["tiny"])
    region = module.region(config, backbone)
    with estimate.META:
        model = module.Model(config, backbone.encoder())
    told = estimate.cost(model, region, SAMPLES, precision, Recipe(lr=1e-3))
    real = saved_on_the_cpu(module.Model(config, backbone.encoder()).train(), region, precision)
    assert told.saved_bytes == pytest.approx(real, rel=within)
    parts = told.weight_bytes + told.gradient_bytes + told.optimiser_bytes + told.input_bytes
    assert told.memory_bytes == parts + told.saved_bytes


def test_lars_holds_one_number_per_parameter():
    module, backbone = load("mae"), BACKBONES[0]
    config = module.Config(crop_vox=(16, 16, 16), decoder_width=12, decoder_depth=1, decoder_heads=2)
    with estimate.META:
        model = module.Model(config, backbone.encoder())
    costs = [
        estimate.cost(model, module.region(config, backbone), 1, "fp32", Recipe(lr=1.0, optimiser=name))
        for name in ("adamw", "lars")
    ]
    assert costs[0].optimiser_bytes == 2 * costs[1].optimiser_bytes == 2 * costs[1].gradient_bytes


def test_a_budget_pays_for_whole_steps_and_at_least_two():
    assert estimate.steps_for(1000, 2, 100) == 5
    assert estimate.steps_for(1001, 2, 100) == 6
    assert estimate.steps_for(1, 2, 100) == 2
