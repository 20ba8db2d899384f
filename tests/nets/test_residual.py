"""STU-Net's encoder, dense and masked."""

import pytest
import torch
import torch.nn.functional as F

from voxprior.errors import Refusal
from voxprior.maths import chance, masking
from voxprior.nets.residual import ResidualBlock, ResidualEncoder
from voxprior.nets.sparse import Visible, visible_pyramid

GRID, UNIT = (3, 2, 2), 8


@pytest.fixture(scope="module")
def encoder() -> ResidualEncoder:
    torch.manual_seed(0)
    return ResidualEncoder([8, 16, 16, 24], blocks=2)


@pytest.fixture(scope="module")
def shallow() -> ResidualEncoder:
    """One block a stage, as STU-Net-S and -B have: rounding grows with depth, by norms over a few deep voxels."""
    torch.manual_seed(0)
    return ResidualEncoder([8, 16, 16, 24], blocks=1)


def _visible(batch: int, ratio: float) -> list[Visible]:
    key_B = chance.keys(0, 0, torch.arange(batch))
    masked_BN = masking.random_masked(key_B, 12, ratio) if ratio else torch.zeros(batch, 12, dtype=torch.bool)
    return visible_pyramid(masked_BN, GRID, stages=4)


def _volume(batch: int) -> torch.Tensor:
    return torch.rand(batch, 1, 24, 16, 16, generator=torch.Generator().manual_seed(1))


def test_attributes_and_shapes(encoder: ResidualEncoder) -> None:
    assert (encoder.unit_vox, encoder.width, encoder.channels) == (UNIT, 24, (8, 16, 16, 24))
    shapes = [tuple(f.shape[1:]) for f in encoder(_volume(1))]
    assert shapes == [(8, 24, 16, 16), (16, 12, 8, 8), (16, 6, 4, 4), (24, 3, 2, 2)]


def test_parameter_names_are_stunets() -> None:
    with torch.device("meta"):
        state = ResidualEncoder([16, 32, 64, 128, 256], blocks=1).state_dict()
    layers = ["conv1", "norm1", "conv2", "norm2", "conv3"]
    expected = {f"conv_blocks_context.{s}.0.{n}.{k}" for s in range(5) for n in layers for k in ("weight", "bias")}
    assert set(state) == expected
    assert state["conv_blocks_context.1.0.conv3.weight"].shape == (32, 16, 1, 1, 1)
    with torch.device("meta"):
        deeper = ResidualEncoder([16, 32], blocks=2).state_dict()
    assert "conv_blocks_context.1.1.conv2.bias" in deeper
    assert "conv_blocks_context.1.1.conv3.weight" not in deeper


def test_a_block_computes_its_formula() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, stride=2, opens=True)
    x = torch.randn(2, 3, 8, 6, 4)
    inner = F.conv3d(x, block.conv1.weight, block.conv1.bias, stride=2, padding=1)
    inner = F.leaky_relu(F.instance_norm(inner), 0.01)
    inner = F.instance_norm(F.conv3d(inner, block.conv2.weight, block.conv2.bias, padding=1))
    expected = F.leaky_relu(inner + F.conv3d(x, block.conv3.weight, block.conv3.bias, stride=2), 0.01)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    same = ResidualBlock(3, 3)
    assert same.conv3 is None
    assert torch.equal(x, x.clone()) and same(x).shape == x.shape


def test_a_block_leaves_its_input_alone() -> None:
    block, x = ResidualBlock(3, 3), torch.randn(1, 3, 4, 4, 4)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("content", ["noise", "nan"])
def test_check_01_of_anatomask_hidden_voxels_cannot_influence_anything(encoder: ResidualEncoder, content: str) -> None:
    visible, volume = _visible(2, 0.6), _volume(2)
    other = torch.randn_like(volume) * 1e4 if content == "noise" else torch.full_like(volume, float("nan"))
    changed = torch.where(visible[0].voxels_B1ZYX, volume, other)
    for a, b in zip(encoder(volume, visible), encoder(changed, visible), strict=True):
        assert torch.equal(a, b)


def test_check_02_of_anatomask_features_are_zero_where_hidden_and_nowhere_else(encoder: ResidualEncoder) -> None:
    visible = _visible(2, 0.6)
    for feature, level in zip(encoder(_volume(2), visible), visible, strict=True):
        assert not feature[(~level.voxels_B1ZYX).expand_as(feature)].any()
        assert (feature.abs().sum(1, keepdim=True) > 0)[level.voxels_B1ZYX].all()


@pytest.mark.parametrize("batch", [1, 3])
def test_check_03_of_anatomask_masked_equals_dense_where_everything_is_visible(
    shallow: ResidualEncoder, batch: int
) -> None:
    volume = _volume(batch)
    for dense, masked in zip(shallow(volume), shallow(volume, _visible(batch, 0.0)), strict=True):
        torch.testing.assert_close(dense, masked, rtol=0, atol=1e-5)


def test_a_sample_alone_equals_the_sample_in_a_batch(shallow: ResidualEncoder) -> None:
    visible, volume = _visible(2, 0.6), _volume(2)
    first = [Visible(level.voxels_B1ZYX[:1], level.count_B1111[:1]) for level in visible]
    for together, alone in zip(shallow(volume, visible), shallow(volume[:1], first), strict=True):
        torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)  # 5 visible voxels at the deepest stage


def test_refuses_a_crop_that_shrinks_to_one_voxel(encoder: ResidualEncoder) -> None:
    with pytest.raises(Refusal, match="8x8x8 voxels is one voxel after 4 stages"):
        encoder(torch.rand(1, 1, 8, 8, 8))
