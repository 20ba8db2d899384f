"""The receptive-field offset: what is known of uniform kernels, and what a mirror does where it is forgotten."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.maths import pairs
from voxprior.nets.features import feature_map, stride_of
from voxprior.nets.receptive import _fixed_statistics, axis_offset, receptive_offset
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.vit import ViT


def uniform(value_BCZYX: Tensor, stride: int) -> Tensor:
    """Averages 3x3x3 voxels, padded with zeros."""
    kernel = torch.full((1, 1, 3, 3, 3), 1 / 27, dtype=value_BCZYX.dtype)
    return F.conv3d(value_BCZYX, kernel, stride=stride, padding=1)


class Uniform(nn.Module):
    """Stacks of uniform kernels: `plain` strided 3x3x3, `pool`, or `residual` with an average-pooled shortcut."""

    def __init__(self, kind: str, stages: int) -> None:
        super().__init__()
        self.kind, self.stages = kind, stages
        self.anything = nn.Parameter(torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        if self.kind == "residual":
            value = uniform(value, 1)
            value = uniform(uniform(value, 1), 1) + value
        for stage in range(self.stages):
            if self.kind == "plain":
                value = uniform(value, 2)
            elif self.kind == "pool":
                value = F.avg_pool3d(value, 2)
            else:
                for block in range((3, 4, 6, 6)[stage]):
                    stride = 2 if block == 0 else 1
                    shortcut = F.avg_pool3d(value, 2) if stride == 2 else value
                    value = uniform(uniform(value, stride), 1) + shortcut
        return value


def offset_of(network: nn.Module, stride: int, cells: int, across: int = 2) -> list[float]:
    """Measures every axis once, on channels first."""
    encode = lambda volume: network(volume).movedim(1, -1)  # noqa: E731
    return [axis_offset(network, encode, stride, axis, cells, across, probes=1) for axis in range(3)]


@pytest.mark.parametrize(("stages", "stride"), [(1, 2), (2, 4), (3, 8), (4, 16)])
def test_T03_strided_convolutions_look_at_the_first_voxel_of_their_cell_and_pools_at_its_middle(stages, stride):
    assert offset_of(Uniform("plain", stages), stride, cells=9) == pytest.approx([0, 0, 0], abs=1e-4)
    assert offset_of(Uniform("pool", stages), stride, cells=5) == pytest.approx([(stride - 1) / 2] * 3, abs=1e-4)


@pytest.mark.parametrize(("stages", "expected"), [(1, 0.25), (2, 0.76), (3, 1.95), (4, 4.96)])
def test_T03_residual_encoders_with_pooled_shortcuts_lie_between(stages, expected):
    """ResEnc-L's blocks (1, 3, 4, 6, 6) with uniform weights; 512 voxels long and 32 across."""
    network, stride = Uniform("residual", stages), 2**stages
    measured = axis_offset(
        network,
        lambda volume: network(volume).movedim(1, -1),
        stride,
        axis=stages % 3,
        cells=512 // stride + 1,
        across=32 // stride,
        probes=1,
    )
    assert measured == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_T03_stu_net_looks_near_the_first_voxel_of_its_cells(stage):
    """Drawn weights are not symmetrical: the mean over networks is 0, one network's may be off by a voxel."""
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        encoder = ResidualEncoder([4, 8, 12, 16], 1)
        encode = lambda volume, encoder=encoder: feature_map(encoder, volume, stage)  # noqa: E731
        found.append(receptive_offset(encoder, encode, stride_of(encoder, stage)))
    assert torch.tensor(found).mean().abs() < 0.05 * 2**stage
    assert torch.tensor(found).abs().max() < 0.3 * 2**stage


def test_T03_a_transformer_looks_at_the_middle_of_its_patches():
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        encoder = ViT(8, 48, 3, 2, 2.0)
        found.append(
            receptive_offset(encoder, lambda volume, encoder=encoder: feature_map(encoder, volume), 8, alone=True)
        )
    assert float((torch.tensor(found) - 3.5).abs().max()) < 0.2


def test_instance_norm_draws_no_centre_to_the_middle_of_the_volume():
    """With the gradient through the statistics, the centroid of a long volume's middle cell is its middle."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.InstanceNorm3d(2, affine=True), nn.Conv3d(2, 2, 3, 2, 1))
    encode = lambda volume: network(volume).movedim(1, -1)  # noqa: E731
    with torch.no_grad():
        for part in (network[0], network[2]):
            part.weight.fill_(0.1)
    first, second = axis_offset(network, encode, 4, 0, cells=9), axis_offset(network, encode, 4, 0, cells=25)
    assert first == pytest.approx(0, abs=1e-3) and second == pytest.approx(0, abs=1e-3)
    assert not network[1]._forward_hooks, "the network is left as it was"
    assert all(parameter.grad is None for parameter in network.parameters())


def test_statistics_held_constant_change_no_value_and_give_the_gradient_of_the_scale():
    norm = nn.InstanceNorm3d(2, affine=True, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -3.0]))
        norm.bias.copy_(torch.tensor([0.5, 1.0]))
    value = torch.randn(2, 2, 4, 5, 6, requires_grad=True)
    plain = norm(value)
    with _fixed_statistics(norm):
        fixed = norm(value)
    torch.testing.assert_close(fixed, plain)
    (gradient,) = torch.autograd.grad(fixed.sum(), value)
    slope = norm.weight.detach()[None] / value.detach().std((2, 3, 4), correction=0)
    torch.testing.assert_close(gradient, slope[..., None, None, None].expand_as(value), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "displaced"), [("plain", 15.0), ("pool", 0.0)])
def test_T03_the_shift_takes_the_displacement_of_mirrored_features_away(kind: str, displaced: float):
    """A ramp through four uniform convolutions, one view mirrored: 15 voxels apart without the shift, none with it."""
    side, stride, cells = 96, 16, 6
    network = Uniform(kind, 4).double()
    ramp = (torch.arange(side, dtype=torch.float64) + 0.5).view(1, 1, side, 1, 1).expand(1, 1, side, side, side)
    lo, hi = torch.zeros(1, dtype=torch.float64), torch.full((1,), float(side), dtype=torch.float64)
    offset = 0.0 if kind == "plain" else (stride - 1) / 2
    assert offset_of(network.float(), stride, cells=5)[0] == pytest.approx(offset, abs=1e-4)
    for shift, expected in (((stride - 1 - 2 * offset) / side, 0.0), (0.0, displaced)):
        seen, sure = [], torch.ones(1, cells, dtype=torch.bool)
        for flipped in (False, True):
            features = network.double()(ramp.flip(2) if flipped else ramp)[0, 0, :, 3, 3]
            u = pairs.to_view(pairs.spread(lo, hi, cells), lo[:, None], hi[:, None], torch.tensor(flipped)) + shift
            # Cell 0 of a padded convolution has seen zeros.
            sure &= pairs.within(u, cells) & (u >= 3 / cells - 1 if kind == "plain" else torch.ones_like(sure))
            seen.append(pairs.interpolation(u, cells)[0].double() @ features)
        assert sure.sum() >= 2
        apart = (seen[0] - seen[1]).abs()[sure[0]]
        torch.testing.assert_close(apart, torch.full_like(apart, expected), rtol=0, atol=1e-6)
