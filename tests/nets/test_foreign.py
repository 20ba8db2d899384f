"""Weights from elsewhere: an encoder whole or refused, a decoder where it fits, stems of other channels."""

import re

import pytest
import torch

from voxprior.errors import Refusal
from voxprior.nets.backbones import Backbone
from voxprior.nets.foreign import Taking, inflate, place_file, split_state
from voxprior.nets.transfer import loaded

VIT = {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [4, 6, 8], "blocks": 1, "pretrained_stages": 2}
STEMS = {
    "vit": ["encoder.embed.weight"],
    "cnn": [f"encoder.conv_blocks_context.0.0.conv{number}.weight" for number in (1, 3)],
}


def backbone(family: str, channels: int = 1, **changes) -> Backbone:
    return Backbone("b", family, {**(VIT if family == "vit" else CNN), **changes}, channels)


def network_of(family: str, channels: int = 1, seed: int = 0, classes: int = 3, **changes):
    torch.manual_seed(seed)
    return backbone(family, channels, **changes).segmenter(classes, (16, 16, 16)).eval()


def taking(family: str, channels: int = 1, **changes) -> Taking:
    return Taking("mine.safetensors", list(backbone(family, channels).encoder().state_dict()), channels, **changes)


@pytest.mark.parametrize("family", ["vit", "cnn"])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3)])
def test_a_repeated_image_gives_the_same_features(family, before, after):
    source, network = network_of(family, before, seed=1), network_of(family, after)
    encoder, _ = split_state(source.state_dict())
    report = place_file(encoder, network, taking(family, after, trained_channels=before))
    assert report["inflated"] == STEMS[family]
    assert report["placed_share"] == 1.0
    image = torch.rand(2, 1, 16, 16, 16)
    encode = (lambda n, v: n.encoder.taps(v)) if family == "vit" else (lambda n, v: n.encoder(v))
    with torch.no_grad():
        old = encode(source, image.expand(-1, before, -1, -1, -1))
        new = encode(network, image.expand(-1, after, -1, -1, -1))
    for a, b in zip(old, new, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert "fitted to other channels" in loaded(report)


def test_channels_of_a_patch_lie_where_patchify_puts_them():
    """Each channel of the new stem is the mean of the old ones, voxel by voxel."""
    weight = torch.arange(2 * 8 * 3).float().reshape(2, 8 * 3)
    grown = inflate(weight, 3, 2).reshape(2, 8, 2)
    assert torch.equal(grown[..., 0], grown[..., 1])
    torch.testing.assert_close(grown.sum(-1), weight.reshape(2, 8, 3).sum(-1))
    torch.testing.assert_close(inflate(inflate(weight, 3, 1), 1, 1), inflate(weight, 3, 1))


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_a_whole_networks_encoder_is_taken_and_the_rest_is_named_as_dropped(family):
    source, network = network_of(family, seed=1, classes=9), network_of(family)
    untouched = network_of(family).state_dict()
    report = place_file(source.state_dict(), network, taking(family))
    state = network.state_dict()
    rest = [name for name in state if not name.startswith("encoder.")]
    assert report["dropped"] == report["fresh"] == rest
    assert report["decoder_placed"] == 0
    lost = sum(source.state_dict()[name].numel() for name in rest)
    total = sum(tensor.numel() for tensor in source.state_dict().values())
    assert report["dropped_parameter_share"] == pytest.approx(lost / total)
    for name, tensor in state.items():
        assert torch.equal(tensor, (untouched if name in rest else source.state_dict())[name])


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_a_decoder_is_taken_where_name_and_shape_are_the_networks(family):
    source, network = network_of(family, seed=1, classes=9), network_of(family)
    report = place_file(source.state_dict(), network, taking(family, decoder=True))
    heads = [name for name in network.state_dict() if name.startswith(("seg_outputs", "head"))]
    assert report["dropped"] == report["fresh"] == heads
    assert report["decoder_placed"] == report["decoder_tensors"] - len(heads) > 0
    assert report["placed_parameter_share"] + report["fresh_parameter_share"] == pytest.approx(1)
    for name, tensor in network.state_dict().items():
        assert (name in heads) != torch.equal(tensor, source.state_dict()[name])
    assert f"{report['decoder_placed']} of {report['decoder_tensors']} decoder tensors" in loaded(report)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: network_of("cnn", seed=1).encoder.state_dict(), r"lacks \d+ of the \d+ tensors .* \(embed.weight, "),
        (lambda s: {n: t for n, t in s.items() if n != "blocks.2.fc1.bias"}, r"lacks 1 of .*\(blocks.2.fc1.bias\)"),
        (lambda s: network_of("vit", depth=6).encoder.state_dict(), r"24 of .* \(blocks.4.norm1.weight is not in the"),
        (lambda s: network_of("vit", width=48).encoder.state_dict(), r"embed.weight has shape \(48, 512\) where"),
        (lambda s: network_of("vit", patch_vox=16).encoder.state_dict(), "4096 values a patch .* of 8x8x8 voxels"),
        (lambda s: {**s, "position": torch.ones(1, 8, 24)}, "position is not in the network"),
        (lambda s: {**s, "norm.bias": s["norm.bias"] * float("inf")}, "norm.bias holds values that are not finite"),
        (lambda s: {}, "lacks"),
    ],
    ids=["family", "partial", "depth", "width", "patch", "a learnt grid", "values", "empty"],
)
def test_what_is_not_this_encoder_is_refused_in_a_sentence_that_names_the_tensors(spoil, says):
    network = network_of("vit")
    fresh = network_of("vit").state_dict()
    with pytest.raises(Refusal, match=r"^mine\.safetensors") as refused:
        place_file(spoil(network_of("vit", seed=1).encoder.state_dict()), network, taking("vit"))
    assert re.search(says, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.state_dict().items())


def test_other_channels_are_refused_unless_the_study_says_what_they_were():
    four = network_of("cnn", 4, seed=1).encoder.state_dict()
    with pytest.raises(Refusal, match="trained on images of 4 channels and the study's scans have 1 .*'channels: 4'"):
        place_file(four, network_of("cnn"), taking("cnn"))
    with pytest.raises(Refusal, match="trained on images of 4 channels"):
        place_file(four, network_of("cnn"), taking("cnn", trained_channels=2))


def test_a_decoder_that_is_not_there_or_fits_nowhere_is_refused():
    source = network_of("cnn", seed=1)
    with pytest.raises(Refusal, match="holds no decoder: leave out 'decoder: true'"):
        place_file(source.encoder.state_dict(), network_of("cnn"), taking("cnn", decoder=True))
    renamed = {name.replace("seg_", "other."): tensor for name, tensor in source.state_dict().items()}
    renamed = {n: t for n, t in renamed.items() if n.startswith("encoder.") or "other" in n}
    with pytest.raises(Refusal, match=r"has no tensor of its decoder \(4\) that the network has too"):
        place_file(renamed, network_of("cnn"), taking("cnn", decoder=True))
