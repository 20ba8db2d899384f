"""STU-Net's segmentation network: sizes, shapes, and the backbones' files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from voxprior import configuration
from voxprior.nets.backbones import Backbone
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.unet import Rise, UNet

BACKBONES = Path(__file__).parents[2] / "config" / "backbones"
PUBLISHED = {  # whole network with 105 classes, and the five pretrained stages: the authors' table, recounted
    "stunet_s": (14_596_941, 3_579_472),
    "stunet_b": (58_262_669, 14_310_048),
    "stunet_l": (440_302_605, 132_660_160),
    "stunet_h": (1_457_326_221, 468_185_952),
}


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _backbone(name: str) -> Backbone:
    card = configuration.Backbone.model_validate(yaml.safe_load((BACKBONES / f"{name}.yaml").read_text()))
    assert card.cnn is not None
    return Backbone(name, card.family, card.cnn.model_dump())


@pytest.mark.parametrize("name", PUBLISHED)
def test_check_15_of_anatomask_the_backbones_have_the_published_sizes(name: str) -> None:
    backbone = _backbone(name)
    with torch.device("meta"):
        assert (_count(backbone.segmenter(105, (128, 128, 128))), _count(backbone.encoder())) == PUBLISHED[name]
    assert backbone.unit_vox == 16


def test_the_tiny_backbone_has_three_strides() -> None:
    backbone = _backbone("stunet_tiny")
    assert backbone.unit_vox == backbone.encoder().unit_vox == 8
    network = backbone.segmenter(4, (16, 16, 16))
    assert set(backbone.encoder().state_dict()) == {
        name.removeprefix("encoder.") for name in network.state_dict() if name.startswith("encoder.")
    }


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(ResidualEncoder([4, 8, 8, 12], blocks=2), classes=3)


def test_training_returns_every_resolution_and_evaluation_one(network: UNet) -> None:
    volume = torch.rand(2, 1, 16, 24, 16)
    trained = network.train()(volume)
    assert [tuple(t.shape) for t in trained] == [(2, 3, 16, 24, 16), (2, 3, 8, 12, 8), (2, 3, 4, 6, 4)]
    with torch.no_grad():
        assert torch.equal(network.eval()(volume), trained[0])


@pytest.mark.parametrize("size", [(13, 17, 9), (40, 9, 11)])
def test_any_crop_size_keeps_its_size(network: UNet, size: tuple[int, int, int]) -> None:
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, *size)).shape == (1, 3, *size)


def test_every_parameter_gets_a_gradient(network: UNet) -> None:
    network.zero_grad()
    sum(logits.square().mean() for logits in network.train()(torch.rand(1, 1, 16, 16, 16))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_convolving_before_enlarging_changes_nothing() -> None:
    rise, feature = Rise(6, 4), torch.randn(2, 6, 3, 4, 5)
    with torch.no_grad():
        rise.conv.weight.normal_()
        stunet = rise.conv(F.interpolate(feature, scale_factor=2, mode="nearest"))
        torch.testing.assert_close(rise(feature, torch.Size((6, 8, 10))), stunet, rtol=1e-5, atol=1e-5)
