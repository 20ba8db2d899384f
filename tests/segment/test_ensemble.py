import numpy as np
import pytest
import torch
from torch import nn

from voxprior.segment import ensemble, infer


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1))


def test_an_ensemble_is_the_mean_of_what_its_members_say_of_the_whole_volume():
    volume, _ = infer.pad((np.random.default_rng(0).random((20, 13, 11)) * 1000).astype(np.int16), (8, 8, 8))

    def logits(one):
        out = torch.empty(3, 20, 13, 11)
        tiling, cpu = infer.Tiling((8, 8, 8)), torch.device("cpu")
        for place, piece in infer.finished(one, volume, 0.001, tiling, cpu, torch.no_grad(), divide=True):
            out[(slice(None), *place)] = piece
        return out

    members = [network(seed) for seed in range(3)]
    expected = torch.stack([logits(member) for member in members]).mean(0)
    torch.testing.assert_close(logits(ensemble.joined(members)), expected)
    torch.testing.assert_close(logits(ensemble.joined([members[0], members[0]])), logits(members[0]))


@torch.inference_mode()
def test_mirroring_is_undone_and_its_mean_does_not_know_left_from_right():
    window = torch.rand(2, 1, 6, 7, 8)
    one = ensemble.joined([network(0)], (0, 2))
    for axis in (2, 4):
        torch.testing.assert_close(one(window.flip(axis)), one(window).flip(axis))
    assert not torch.allclose(one(window.flip(3)), one(window).flip(3))
    told = [network(0)(window.flip(axes)).flip(axes) for axes in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(one(window), torch.stack(told).mean(0))


@pytest.mark.parametrize(
    ("classes", "axes"),
    [(["liver", "spleen"], (2,)), (["liver", "kidney_left"], ()), (["Rib_Right_3"], ()), (["cleft", "bright"], (2,))],
)
def test_classes_with_sides_are_never_mirrored_over_x(classes, axes):
    assert ensemble.mirrored_axes(classes) == axes


def test_a_member_alone_is_itself():
    one = network(1)
    assert ensemble.joined([one]) is one
