"""Boxes lie where they should, for every key."""

import torch
from torch import Tensor

from voxprior.maths import chance
from voxprior.maths.places import draw_boxes, mm_per_voxel

VALID_LO = torch.tensor([[0, 0, 0], [3, 0, 5]])
VALID_HI = torch.tensor([[40, 30, 20], [33, 8, 9]])


def keys(views: int, samples: int = 2) -> Tensor:
    return chance.bits(chance.keys(0, 0, torch.arange(samples)), "view", (views,)).flatten()


def test_shares_of_the_valid_box_are_uniform_and_inside():
    lo, hi = draw_boxes(keys(1000), VALID_LO, VALID_HI, (16, 16, 16), (0.25, 0.5))
    assert (lo >= VALID_LO[:, None]).all() and (hi <= VALID_HI[:, None] + 1e-4).all()
    share = (hi - lo) / (VALID_HI - VALID_LO)[:, None]
    assert share.min() >= 0.25 - 1e-5 and share.max() <= 0.5 + 1e-5
    assert (share.mean((0, 1)) - 0.375).abs().max() < 0.01 and share.flatten(0, 1).amin(0).max() < 0.26
    assert torch.corrcoef(share.flatten(0, 1).T).fill_diagonal_(0).abs().max() < 0.1  # axes are drawn on their own
    spare = ((lo - VALID_LO[:, None]) / ((VALID_HI - VALID_LO)[:, None] - (hi - lo))).flatten(0, 1)
    assert spare.amin(0).max() < 0.01 and spare.amax(0).min() > 0.99


def test_whole_shares_give_the_valid_box():
    lo, hi = draw_boxes(keys(3), VALID_LO, VALID_HI, (16, 16, 16), (1.0, 1.0))
    assert torch.equal(lo, VALID_LO[:, None].expand(2, 3, 3).float())
    torch.testing.assert_close(hi, VALID_HI[:, None].expand(2, 3, 3).float())


def test_plain_crops_start_at_every_voxel_and_never_leave_more_out_than_they_must():
    lo, hi = draw_boxes(keys(1000), VALID_LO, VALID_HI, (16, 16, 16), None)
    assert torch.equal(hi - lo, torch.full_like(lo, 16)) and torch.equal(lo, lo.round())
    assert lo[0].amin(0).tolist() == [0, 0, 0] and hi[0].amax(0).tolist() == [40, 30, 20]
    assert len(lo[0, :, 2].unique()) == 5  # 20 - 16 + 1
    # The second sample's Y has 8 real voxels and its X 4: they lie inside the crop, anywhere.
    assert lo[1].amin(0).tolist() == [3, -8, -7] and lo[1].amax(0).tolist() == [17, 0, 5]
    assert hi[1].amin(0).tolist() == [19, 8, 9]


def test_a_box_depends_on_its_key_alone():
    together = draw_boxes(keys(4), VALID_LO, VALID_HI, (8, 8, 8), (0.5, 1.0))
    alone = draw_boxes(keys(4)[4:], VALID_LO[1:], VALID_HI[1:], (8, 8, 8), (0.5, 1.0))
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))


def test_mm_per_voxel_is_the_mean_of_the_axes():
    lo, hi = torch.zeros(1, 2, 3), torch.tensor([[[10.0, 20, 30], [5, 5, 5]]])
    mm = mm_per_voxel(lo, hi, (10, 10, 5), torch.tensor([[5.0, 1, 2]]))
    torch.testing.assert_close(mm, torch.tensor([[(5 + 2 + 12) / 3, (2.5 + 0.5 + 2) / 3]]))
