import pytest

from voxprior.configuration import FinetuneRecipe
from voxprior.engine.step import parameter_groups
from voxprior.nets.backbones import Backbone
from voxprior.segment import model as segment
from voxprior.segment.rates import layer_rate, rules

VIT = {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [4, 8, 8, 8], "blocks": 1, "pretrained_stages": 3}
BACKBONES = {"vit": Backbone("v", "vit", VIT), "cnn": Backbone("c", "cnn", CNN)}


def rates(family: str, **changes) -> dict[str, float]:
    """Builds the network, and reads the rate of every parameter from the optimiser's groups; frozen ones are absent."""
    backbone = BACKBONES[family]
    network = backbone.segmenter(3, (16, 16, 16))
    recipe = FinetuneRecipe(lr=1.0, **changes)
    placed = {"encoder." + name for name in backbone.encoder().state_dict()}
    model = segment.Model(segment.Config((16, 16, 16)), network)
    groups = parameter_groups(model, recipe, rules(recipe, network.encoder, placed))
    rate_of = {id(parameter): group["rate"] for group in groups for parameter in group["params"]}
    return {name: rate_of[id(p)] for name, p in model.named_parameters() if id(p) in rate_of}


def test_the_defaults_are_no_rules():
    assert rules(FinetuneRecipe(lr=1.0), None, ["encoder.embed.weight"]) is None


def test_layer_wise_rates_of_a_transformer_are_those_of_beit_and_mae():
    """In MAE's code: scale = decay ** (depth + 1 - id), ids: patch embedding 0, block i: i + 1, anything else: top."""
    found = rates("vit", layer_decay=0.75, encoder_lr=0.5)
    assert found["network.encoder.embed.weight"] == pytest.approx(0.5 * 0.75**5)
    for block in range(4):
        assert found[f"network.encoder.blocks.{block}.qkv.weight"] == pytest.approx(0.5 * 0.75 ** (4 - block))
        assert found[f"network.encoder.blocks.{block}.norm1.bias"] == pytest.approx(0.5 * 0.75 ** (4 - block))
    assert found["network.encoder.norm.weight"] == 0.5
    assert {rate for name, rate in found.items() if ".encoder." not in name} == {1.0}


def test_layer_wise_rates_of_a_cnn_count_its_pretrained_stages():
    found = rates("cnn", layer_decay=0.5)
    for stage, rate in enumerate([0.125, 0.25, 0.5, 1.0]):  # the last stage was never pretrained
        assert found[f"network.encoder.conv_blocks_context.{stage}.0.conv2.weight"] == rate
    assert layer_rate(0, 3, 0.5) == 0.125


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_a_linear_probe_leaves_all_pretrained_tensors_out_norms_too(family):
    found = rates(family, transfer="linear_probe")
    fresh = [name for name in found if ".encoder." in name]
    assert all("conv_blocks_context.3" in name for name in fresh)
    assert bool(fresh) == (family == "cnn")  # a stage that starts fresh must learn
