"""ResEnc: formulas, masks, names, and nnU-Net's own network where it is installed."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from voxprior.errors import Refusal
from voxprior.maths import chance, masking
from voxprior.methods import load
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map, stages, stride_of, trained_state, width_of
from voxprior.nets.receptive import axis_offset
from voxprior.nets.resenc import Block, ResEnc, ResEncUNet
from voxprior.nets.sparse import visible_pyramid
from voxprior.nets.transfer import place

ROOT = Path(__file__).parents[2]
TINY = {"kind": "resenc", "channels": [4, 8, 8, 8], "blocks": [1, 2, 2, 1], "pretrained_stages": 3}
GRID = (3, 2, 2)


def redrawn(network: torch.nn.Module) -> torch.nn.Module:
    """Draws every parameter: at the start blocks are their shortcuts, which would hide half of what is tested."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(norm + 0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def encoder() -> ResEnc:
    return redrawn(ResEnc([8, 16, 16, 24], [1, 2, 2, 1]))


def volume_of(batch: int) -> torch.Tensor:
    return torch.rand(batch, 1, 24, 16, 16, generator=torch.Generator().manual_seed(1))


def masks(batch: int, ratio: float):
    key_B = chance.keys(0, 0, torch.arange(batch))
    masked_BN = masking.random_masked(key_B, 12, ratio) if ratio else torch.zeros(batch, 12, dtype=torch.bool)
    return visible_pyramid(masked_BN, GRID, stages=4)


def test_a_block_averages_projects_and_adds():
    block = redrawn(Block(3, 5, stride=2))
    x = torch.randn(2, 3, 8, 6, 4)
    c1, c2, (_, short) = block.conv1, block.conv2, block.skip

    def normed(value, part):
        return F.instance_norm(value, weight=part.norm.weight, bias=part.norm.bias)

    inner = F.leaky_relu(normed(F.conv3d(x, c1.conv.weight, c1.conv.bias, stride=2, padding=1), c1), 0.01)
    inner = normed(F.conv3d(inner, c2.conv.weight, c2.conv.bias, padding=1), c2)
    expected = F.leaky_relu(inner + normed(F.conv3d(F.avg_pool3d(x, 2), short.conv.weight), short), 0.01)
    before = x.clone()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)
    assert len(Block(4, 4).skip) == 0
    assert [type(part).__name__ for part in Block(4, 4, stride=2).skip] == ["AvgPool3d"]


@pytest.mark.parametrize("content", ["noise", "nan"])
def test_hidden_voxels_cannot_influence_anything(encoder, content):
    visible, volume = masks(2, 0.6), volume_of(2)
    other = torch.randn_like(volume) * 1e4 if content == "noise" else torch.full_like(volume, float("nan"))
    changed = torch.where(visible[0].voxels_B1ZYX, volume, other)
    for a, b, level in zip(encoder(volume, visible), encoder(changed, visible), visible, strict=True):
        assert torch.equal(a, b)
        assert not a[(~level.voxels_B1ZYX).expand_as(a)].any()
        assert (a.abs().sum(1, keepdim=True) > 0)[level.voxels_B1ZYX].all()


def test_masked_equals_dense_where_everything_is_visible(encoder):
    for dense, masked in zip(encoder(volume_of(2)), encoder(volume_of(2), masks(2, 0.0)), strict=True):
        torch.testing.assert_close(dense, masked, rtol=0, atol=1e-4)


def test_shapes_deep_supervision_and_refusals(encoder):
    assert (encoder.unit_vox, encoder.width, encoder.channels_in) == (8, 24, 1)
    assert [tuple(f.shape[1:]) for f in encoder(volume_of(1))] == [
        (8, 24, 16, 16), (16, 12, 8, 8), (16, 6, 4, 4), (24, 3, 2, 2)
    ]  # fmt: skip
    network = ResEncUNet(encoder, 3)
    assert [tuple(level.shape[1:]) for level in network.train()(volume_of(1))] == [
        (3, 24, 16, 16), (3, 12, 8, 8), (3, 6, 4, 4)
    ]  # fmt: skip
    assert network.eval()(volume_of(1)).shape == (1, 3, 24, 16, 16)
    with pytest.raises(Refusal, match="make each side a multiple of 8"):
        encoder(torch.rand(1, 1, 24, 16, 20))
    with pytest.raises(Refusal, match="one voxel after 4 stages"):
        encoder(torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(Refusal, match="fewer entries than the 3 stages"):
        ResEnc([4, 8, 8], [1, 2])


def test_first_weights_are_nnunets():
    """He's for leaky ReLU with slope 0.01, and each block begins as its shortcut."""
    torch.manual_seed(0)
    encoder = ResEnc([32, 64], [1, 2])
    conv = encoder.stages[1].blocks[1].conv1.conv
    assert conv.weight.std().item() == pytest.approx((2 / 1.0001 / (64 * 27)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    assert not encoder.stages[1].blocks[0].conv2.norm.weight.any()
    assert encoder.stages[1].blocks[0].conv1.norm.weight.all()


def test_a_backbone_hands_its_first_stages_to_a_segmenter():
    backbone = Backbone("resenc", "cnn", TINY)
    small, network = redrawn(backbone.encoder()), backbone.segmenter(2, (16, 16, 16))
    assert (backbone.unit_vox, backbone.segmenter_unit_vox, small.unit_vox) == (4, 8, 4)
    report = place(small.state_dict(), network, list(small.state_dict()))
    assert report["placed_share"] == 1.0
    assert all(name.startswith(("encoder.stages.3.", "decoder.")) for name in report["fresh"])
    assert (stages(small), width_of(small, -1), stride_of(small, 1)) == (3, 8, 2)
    assert not [name for name in trained_state(small, 0) if name.startswith(("stages.1.", "stages.2."))]
    assert feature_map(small, torch.rand(1, 1, 16, 16, 16), filters=True).shape == (1, 4, 4, 4, 8)


def test_stunet_takes_one_number_of_blocks():
    sizes = {"channels": [4, 8], "blocks": [1, 2], "pretrained_stages": 2}
    with pytest.raises(Refusal, match="make blocks one"):
        Backbone("stunet", "cnn", sizes).encoder()


@pytest.mark.parametrize("method", ["spark", "anatomask", "byol", "pgl"])
def test_methods_of_convolutions_pretrain_on_it(method):
    """One step with a gradient in every pretrained tensor."""
    module, backbone = load(method), Backbone("resenc", "cnn", TINY)
    preset = yaml.safe_load((ROOT / "config" / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))["tiny"]
    config = module.Config(**preset)
    assert module.accepts(backbone) is None
    torch.manual_seed(0)
    model = module.Model(config, redrawn(backbone.encoder()))
    size = module.region(config, backbone).size_vox
    batch = {
        "region_BCZYX": torch.randint(0, 1000, (2, 1, *size), dtype=torch.int16),
        "quantum_B": torch.full((2,), 1e-3),
        "spacing_mm_B3": torch.full((2, 3), 2.0),
        "valid_lo_B3": torch.zeros(2, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor([size] * 2),
    }
    terms = model(model.views(batch, chance.keys(0, 0, torch.arange(2))), 0.0)
    sum(term.sum / term.count.clamp(min=1) for term in terms.values() if term.weight).backward()
    still = [name for name, p in model.encoder.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not still


class Through(torch.nn.Module):
    """Stands in for a norm and changes nothing: how much of each path there is does not depend on the input then."""

    def forward(self, feature_BCZYX, visible=None):
        return feature_BCZYX


def test_check_t3c_of_pgl_where_cells_look_without_norms():
    """Even weights on volumes that are never negative: strided convolutions have 0, averages (S - 1) / 2, each half.

    So (S - 1) / 4, but for what convolutions lose beside the volume's edges.
    """
    encoder = ResEnc([1, 1, 1, 1], [1, 3, 4, 6])
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1 / parameter[0].numel())
    for layer in encoder.modules():
        if hasattr(layer, "norm"):
            layer.norm = Through()
    measured = []
    for stage in (1, 2, 3):
        stride = 2**stage

        def encode(volume, stage=stage):
            return feature_map(encoder, volume, stage)

        measured.append(axis_offset(encoder, encode, stride, 2, cells=192 // stride, across=64 // stride, probes=1))
    assert measured == pytest.approx([0.25, 0.75, 1.75], abs=0.05)


@pytest.mark.oracle
def test_it_is_nnunets_network(tmp_path):
    """Same names, same number of parameters, same features and logits with copied weights."""
    interpreter = Path(os.environ.get("VOXPRIOR_NNUNET", ""), "python")
    if not os.environ.get("VOXPRIOR_NNUNET"):
        pytest.skip("VOXPRIOR_NNUNET names no folder with the interpreter of an environment with nnU-Net")
    script = ROOT / "tests" / "exchange" / "peer_networks.py"
    subprocess.run([interpreter, script, "resenc", tmp_path / "peer.safetensors"], check=True, capture_output=True)
    theirs = load_file(tmp_path / "peer.safetensors")
    spec = yaml.safe_load((ROOT / "config" / "backbones" / "resenc_tiny.yaml").read_text(encoding="utf-8"))
    ours = Backbone("resenc_tiny", "cnn", spec["cnn"]).segmenter(3, (32, 32, 32))
    assert sum(parameter.numel() for parameter in ours.parameters()) == int(theirs["parameters"])
    ours.load_state_dict({name: theirs["weights/" + name] for name in ours.state_dict()})
    with torch.no_grad():
        outputs = [*ours.encoder(theirs["volume"]), *ours.train()(theirs["volume"])]
    assert len(outputs) == len([name for name in theirs if name.startswith("outputs/")])
    worst = max(float((here - theirs[f"outputs/{number}"]).abs().max()) for number, here in enumerate(outputs))
    print(f"largest difference from nnU-Net's network: {worst:.1e}")
    assert worst < 1e-5


def test_resenc_l_has_nnunets_size():
    """Numbers of parameters as counted in nnU-Net's own network of three classes."""
    spec = yaml.safe_load((ROOT / "config" / "backbones" / "resenc_l.yaml").read_text(encoding="utf-8"))
    layout = json.loads((ROOT / "tests" / "exchange" / "nnunet_layout.json").read_text(encoding="utf-8"))["resenc_l"]
    with torch.device("meta"):
        network = Backbone("resenc_l", "cnn", spec["cnn"]).segmenter(layout["classes"], (128, 128, 128))
    assert sum(parameter.numel() for parameter in network.parameters()) == layout["parameters"]
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == layout["encoder_parameters"]


def test_the_kind_of_backbone_is_not_filled_in():
    """A default would stand on the cards of every STU-Net and run them all again."""
    schema = json.loads((ROOT / "config" / "schema.json").read_text(encoding="utf-8"))
    assert "default" not in schema["$defs"]["Cnn"]["properties"]["kind"]
