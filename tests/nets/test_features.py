"""Feature maps of both families, and weight standardisation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voxprior.nets import transfer
from voxprior.nets.features import (
    feature_map,
    stages,
    standardise_filters,
    standardised,
    stride_of,
    trained_state,
    width_of,
)
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.unet import UNet
from voxprior.nets.vit import ViT


def cnn() -> ResidualEncoder:
    torch.manual_seed(0)
    return ResidualEncoder([4, 6, 8], 1)


@pytest.mark.parametrize("stage", [0, 1, 2, -1])
def test_a_cnn_gives_the_stage_that_is_asked_for(stage):
    encoder, volume = cnn(), torch.rand(2, 1, 8, 12, 16)
    assert stages(encoder) == 3
    stride, width = stride_of(encoder, stage), width_of(encoder, stage)
    found = feature_map(encoder, volume, stage)
    assert found.shape == (2, 8 // stride, 12 // stride, 16 // stride, width)
    assert torch.equal(found.movedim(-1, 1), encoder(volume)[stage])


def test_a_transformer_gives_its_tokens_where_their_patches_lie():
    torch.manual_seed(0)
    encoder, volume = ViT(4, 12, 2, 2), torch.rand(2, 1, 8, 12, 16)
    assert (stages(encoder), stride_of(encoder, -1), width_of(encoder, -1)) == (1, 4, 12)
    torch.testing.assert_close(feature_map(encoder, volume).movedim(-1, 1), encoder.taps(volume, after=())[-1])


def test_T14_filters_get_mean_0_and_deviation_1_as_in_a_slow_loop():
    weight = 0.2 * torch.randn(5, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    found = standardise_filters(weight).double().numpy()
    for out in range(5):
        values = weight[out].double().numpy().ravel()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        np.testing.assert_allclose(found[out].ravel(), (values - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-6)
        assert abs(found[out].mean()) < 1e-6 and found[out].std(ddof=1) == pytest.approx(1, abs=1e-3)


def test_T14_scaling_and_moving_a_filter_changes_nothing():
    weight, volume = torch.randn(6, 4, 3, 3, 3), torch.rand(1, 4, 8, 8, 8)
    expected = F.conv3d(volume, standardise_filters(weight))
    for factor, added in ((3.0, 0.5), (0.7, -2.0)):
        found = F.conv3d(volume, standardise_filters(factor * weight + added))
        assert (found - expected).abs().max() < 1e-4


def test_weights_are_standardised_where_a_norm_follows_and_reach_the_gradient():
    encoder, volume = cnn(), torch.rand(1, 1, 8, 8, 8)
    changed = standardised(encoder)
    assert len(changed) == 6 and all(name.endswith(("conv1.weight", "conv2.weight")) for name in changed)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    feature_map(encoder, volume, filters=True).square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    gradient = encoder.conv_blocks_context[0][0].conv1.weight.grad
    # What the standardisation takes away, no step along it can change.
    assert gradient.abs().max() > 0 and gradient.sum((1, 2, 3, 4)).abs().max() < 1e-3 * gradient.abs().sum()


def test_segmentation_inherits_the_weights_as_they_were_used():
    encoder, volume = cnn(), torch.rand(1, 1, 16, 16, 16)
    heir = UNet(ResidualEncoder([4, 6, 8, 8], 1), 3)
    assert transfer.place(trained_state(encoder, filters=True), heir)["placed_share"] == 1.0
    expected = feature_map(encoder, volume, filters=True)
    torch.testing.assert_close(feature_map(heir.encoder, volume, 2), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(feature_map(encoder, volume), expected, atol=1e-2)


def test_stages_below_the_one_that_was_trained_are_not_handed_on():
    encoder = cnn()
    kept = trained_state(encoder, 1)
    assert {name.split(".")[1] for name in kept} == {"0", "1"}
    assert set(trained_state(encoder)) == set(encoder.state_dict())
