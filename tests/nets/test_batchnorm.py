"""A map's batch statistics are torch's batch norm in training; rows and processes are tested with the heads."""

import torch
from torch import nn

from voxprior.nets.batchnorm import MapStatistics


def test_a_map_is_normalised_as_torchs_batch_norm_does_in_training():
    chosen = torch.Generator().manual_seed(0)
    ours, there = MapStatistics(5), nn.BatchNorm3d(5).train()
    with torch.no_grad():
        ours.weight.copy_(torch.rand(5, generator=chosen) + 0.5)
        ours.bias.copy_(torch.rand(5, generator=chosen))
        there.load_state_dict(ours.state_dict(), strict=False)
    here = (3 * torch.randn(2, 5, 3, 4, 6, generator=chosen) + 7).requires_grad_()
    other = here.detach().clone().requires_grad_()
    ours(here).square().mean().backward()
    there(other).square().mean().backward()
    torch.testing.assert_close(ours(here), there(other), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(here.grad, other.grad, rtol=1e-4, atol=1e-6)
    ours.eval()  # there are no running statistics: a teacher normalises by its own batch too
    torch.testing.assert_close(ours(here), there(other), rtol=1e-5, atol=1e-5)
