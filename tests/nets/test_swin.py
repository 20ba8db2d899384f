"""SwinUNETR: what MONAI's computes on X Y Z, ours computes on Z Y X, to the logits; stages, gradients, refusals."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from voxprior.architectures import Swin as Sizes
from voxprior.engine.recompute import recompute_blocks
from voxprior.errors import Refusal
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map, stages, stride_of, trained_state, width_of
from voxprior.nets.foreign import Taking, place_file
from voxprior.nets.receptive import receptive_offset
from voxprior.nets.swin import Merging, Swin
from voxprior.nets.transfer import place
from voxprior.segment.rates import rules

SIZES = {"width": 12, "depths": [2, 1, 1, 1], "heads": [2, 2, 4, 4], "window": 3, "children": "all"}
SIZES |= {"pretrained_stages": 3}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def redrawn(network: torch.nn.Module) -> torch.nn.Module:
    """Draws every parameter anew: what starts as 1 or 0 would hide what is tested."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(norm + 0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def turned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives MONAI's tensors our prefixes, and turns the decoder's kernels from X Y Z to Z Y X."""
    made = {}
    for name, tensor in state.items():
        if name.startswith("swinViT.") and not name.endswith("relative_position_index"):
            made["encoder." + name.removeprefix("swinViT.")] = tensor
        elif not name.startswith("swinViT."):
            made["decoder." + name] = tensor.transpose(2, 4) if tensor.dim() == 5 else tensor
    return made


@pytest.fixture(scope="module")
def peer() -> torch.nn.Module:
    """MONAI's own network, of two channels, with windows that shift, end early and are larger than the map."""
    from monai.networks.nets import SwinUNETR

    sizes = {"depths": SIZES["depths"], "num_heads": SIZES["heads"], "feature_size": 12, "window_size": 3}
    return redrawn(SwinUNETR(2, 3, **sizes))


def test_maps_and_logits_are_monais(peer):
    network = Backbone("swin", "swin", SIZES, 2).segmenter(3, (64, 32, 32)).eval()
    assert network.load_state_dict(turned(peer.state_dict())).missing_keys == []
    volume = torch.rand(1, 2, 64, 32, 32, generator=torch.Generator().manual_seed(2))
    theirs = volume.transpose(2, 4).contiguous()
    with torch.no_grad():
        for ours, other in zip(network.encoder(volume), peer.swinViT(theirs), strict=True):
            torch.testing.assert_close(ours, other.transpose(2, 4), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(volume), peer(theirs).transpose(2, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("children", ["all", "repeated"])
def test_a_merged_cell_is_made_of_its_children(children):
    """`repeated` as MONAI 1.4 has it: of X Y Z, (0, 1, 0) and (0, 0, 1) twice, (1, 1, 0) and (0, 1, 1) never."""
    merging = redrawn(Merging(2, children))
    cell = noise(1, 3, 4, 2, 2)
    padded = torch.cat([cell, torch.zeros(1, 1, 4, 2, 2)], 1)
    order = ["000", "100", "010", "001", "110", "101", "011", "111"]
    if children == "repeated":
        order[4:7] = ["101", "010", "001"]
    one = torch.cat([padded[0, 2 + int(x), int(y), int(z)] for x, y, z in order])
    expected = merging.reduction.weight @ torch.nn.functional.layer_norm(
        one, (16,), merging.norm.weight, merging.norm.bias
    )
    out = merging(cell)
    assert out.shape == (1, 2, 2, 1, 4)
    torch.testing.assert_close(out[0, 1, 0, 0], expected)


def test_first_stages_are_handed_to_the_segmenter_and_nothing_else_is_saved():
    backbone = Backbone("swin", "swin", SIZES)
    small, network = backbone.encoder(), backbone.segmenter(2, (64, 32, 32))
    assert (backbone.unit_vox, small.unit_vox, backbone.segmenter_unit_vox, network.encoder.unit_vox) == (8, 8, 32, 32)
    assert [backbone.stride_vox(stage) for stage in (0, 1, 2, -1)] == [2, 4, 8, 8]
    assert not [name for name in small.state_dict() if "index" in name]
    report = place(small.state_dict(), network, list(small.state_dict()))
    assert report["placed_share"] == 1.0
    fresh = [name for name in report["fresh"] if name.startswith("encoder.")]
    assert fresh and all(name.startswith(("encoder.layers3.", "encoder.layers4.")) for name in fresh)
    assert (stages(small), width_of(small, -1), stride_of(small, 1)) == (3, 48, 4)
    assert {name.split(".")[0] for name in trained_state(small, 1)} == {"patch_embed", "layers1"}
    assert feature_map(small, torch.rand(1, 1, 16, 24, 16)).shape == (1, 2, 3, 2, 48)
    with torch.device("meta"):
        assert backbone.segmenter(2, (64, 32, 32))(torch.zeros(1, 1, 64, 32, 32)).shape == (1, 2, 64, 32, 32)


def test_blocks_computed_twice_give_the_same_gradients():
    gradients, volume = [], noise(1, 1, 16, 24, 16)
    for again in (False, True):
        encoder = redrawn(Swin(12, [2, 1, 1, 1], [2] * 4, 3, stages=3))
        assert not again or recompute_blocks(encoder) == 3
        encoder(volume)[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_layers_have_rates_of_their_own():
    encoder = Swin(12, [1] * 4, [2] * 4, 3)
    recipe = type("Recipe", (), {"transfer": "full", "frozen": 0.1, "layer_decay": 0.5, "encoder_lr": 1.0})
    made = rules(recipe, encoder, [f"encoder.{name}" for name in encoder.state_dict()])
    rates = {pattern.replace("\\", ""): rule["rate"] for pattern, rule in made.items()}
    assert rates["^network.encoder.patch_embed.proj.weight$"] == 0.5**5
    assert rates["^network.encoder.layers4.0.downsample.norm.weight$"] == 0.5


def test_a_lone_cell_looks_at_its_own_middle():
    """Norms over channels are no statistics over places, also where cells lie along three axes."""
    encoder = redrawn(Swin(12, [1] * 4, [2] * 4, 3, stages=3))
    offset = receptive_offset(encoder, lambda volume: feature_map(encoder, volume), 8, alone=True)
    assert all(3.0 < side < 4.0 for side in offset)


def test_a_stem_of_one_channel_serves_two():
    one, two = (Backbone("swin", "swin", SIZES, channels) for channels in (1, 2))
    state, where = dict(one.encoder().state_dict()), two.segmenter(2, (64, 32, 32))
    with pytest.raises(Refusal, match="trained on images of 1 channels and the study's scans have 2"):
        place_file(dict(state), where, Taking("x", list(state), channels=2))
    report = place_file(dict(state), where, Taking("x", list(state), channels=2, trained_channels=1))
    assert report["inflated"] == ["encoder.patch_embed.proj.weight"]


def test_what_a_swin_cannot_do_is_said_in_a_sentence():
    backbone = Backbone("swin", "swin", SIZES)
    for method in METHODS:
        said = load(method).accepts(backbone)
        assert said.startswith(load(method).TITLE) and said.endswith(("from scratch or from a file", "a cnn backbone"))
    network = backbone.segmenter(2, (64, 32, 32))
    with pytest.raises(Refusal, match="one voxel after 5 stages"):
        network(torch.rand(1, 1, 32, 32, 32))
    with pytest.raises(Refusal, match="multiples of 32"):
        network(torch.rand(1, 1, 48, 32, 32))
    with pytest.raises(Refusal, match="cannot leave masked voxels out"):
        network.encoder(torch.rand(1, 1, 64, 32, 32), [])
    for wrong in ({"width": 20}, {"depths": [2, 2]}, {"children": "some"}, {"pretrained_stages": 6}):
        with pytest.raises(ValidationError):
            Sizes(**SIZES | wrong)
