"""Views: places, interpolation, anti-aliasing, mirrors and padding, against loops and closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from voxprior.maths.crops import cut


def whole(volume: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the valid box of regions without padding."""
    hi = torch.tensor(volume.shape[2:]).expand(len(volume), 3)
    return torch.zeros_like(hi), hi


def slow_line(line: np.ndarray, lo: float, hi: float, size: int, first: int, last: int) -> np.ndarray:
    """Resamples one line, voxel by voxel."""
    step, out = (hi - lo) / size, np.zeros(size)
    for j in range(size):
        at, total = lo + (j + 0.5) * step, 0.0
        for i in range(first, last):
            w = max(0.0, 1.0 - abs(at - (i + 0.5)) / max(step, 1.0))
            out[j] += w * line[i]
            total += w
        out[j] = out[j] / total if total else 0.0
    return out


@pytest.mark.parametrize(("lo", "hi", "size"), [(0.0, 20.0, 20), (3.3, 9.1, 16), (1.0, 19.5, 5), (-4.0, 12.0, 16)])
def test_a_view_equals_the_slow_loop_along_each_axis(lo: float, hi: float, size: int):
    torch.manual_seed(0)
    for axis in range(3):
        shape = [3, 3, 3]
        shape[axis] = 20
        volume = torch.rand(1, 1, *shape)
        box_lo, box_hi = torch.zeros(1, 1, 3), torch.full((1, 1, 3), 3.0)
        box_lo[..., axis], box_hi[..., axis] = lo, hi
        out = [3, 3, 3]
        out[axis] = size
        valid_lo, valid_hi = whole(volume)
        valid_lo, valid_hi = valid_lo.clone(), valid_hi.clone()
        valid_lo[:, axis], valid_hi[:, axis] = 2, 17
        view = cut(volume, box_lo, box_hi, tuple(out), valid_lo, valid_hi)[0, 0, 0].movedim(axis, 0)
        source = volume[0, 0].movedim(axis, 0).numpy()
        for a in range(3):
            for b in range(3):
                expected = slow_line(source[:, a, b], lo, hi, size, 2, 17)
                np.testing.assert_allclose(view[:, a, b], expected, atol=1e-5)


def test_whole_boxes_give_the_volume_and_mirrors_mirror_it():
    volume = torch.rand(2, 1, 6, 5, 7)
    lo, hi = whole(volume)
    flips = torch.tensor([[[False, False, False], [True, False, True]]]).expand(2, 2, 3)
    boxes = lo[:, None].expand(2, 2, 3).float(), hi[:, None].expand(2, 2, 3).float()
    views = cut(volume, *boxes, (6, 5, 7), lo, hi, flips)
    assert torch.equal(views[:, 0], volume)
    assert torch.equal(views[:, 1], volume.flip(2, 4))


def test_a_ramp_stays_a_ramp_where_all_of_the_filter_is_inside():
    volume = (torch.arange(40) + 0.5).view(1, 1, 40, 1, 1).expand(1, 1, 40, 4, 4)
    lo, hi = torch.tensor([[[6.0, 0, 0], [12.25, 0, 0]]]), torch.tensor([[[34.0, 4, 4], [20.5, 4, 4]]])
    views = cut(volume, lo, hi, (11, 4, 4), *whole(volume))
    for view, first, last in zip(views[0, :, 0, :, 0, 0], (6.0, 12.25), (34.0, 20.5), strict=True):
        step = (last - first) / 11
        # Exact where a view magnifies; a sampled triangle's centre of gravity is off by a few hundredths of a voxel.
        within = 1e-4 if step < 1 else 0.1
        torch.testing.assert_close(view, first + (torch.arange(11) + 0.5) * step, rtol=0, atol=within)


def test_shrinking_averages_what_plain_interpolation_would_skip():
    """Stripes of one voxel become grey; reading every fourth voxel would give black or white."""
    volume = (torch.arange(64) % 2).float().view(1, 1, 64, 1, 1).expand(1, 1, 64, 2, 2)
    lo, hi = torch.zeros(1, 1, 3), torch.tensor([[[64.0, 2, 2]]])
    view = cut(volume, lo, hi, (16, 2, 2), *whole(volume))
    torch.testing.assert_close(view, torch.full_like(view, 0.5), rtol=0, atol=0.04)


def test_nothing_of_the_padding_enters_a_view():
    volume = torch.rand(1, 1, 12, 12, 12)
    valid_lo, valid_hi = torch.tensor([[2, 0, 3]]), torch.tensor([[9, 12, 12]])
    inside = torch.zeros(1, 1, 12, 12, 12, dtype=torch.bool)
    inside[..., 2:9, :, 3:] = True
    lo, hi = torch.tensor([[[0.0, 1, 1]]]), torch.tensor([[[11.0, 10, 12]]])
    views = [cut(torch.where(inside, volume, filling), lo, hi, (8, 8, 8), valid_lo, valid_hi) for filling in (0.0, 1e4)]
    assert torch.equal(*views)
    beyond = cut(
        volume, torch.tensor([[[10.5, 0, 3]]]), torch.tensor([[[12.0, 12, 12]]]), (2, 4, 4), valid_lo, valid_hi
    )
    assert not beyond.any()


def test_a_view_does_not_depend_on_its_batch():
    volume = torch.rand(3, 1, 10, 11, 12)
    lo, hi = torch.rand(3, 4, 3) * 4, 6 + torch.rand(3, 4, 3) * 4
    together = cut(volume, lo, hi, (7, 6, 5), *whole(volume))
    alone = torch.cat(
        [cut(volume[i : i + 1], lo[i : i + 1], hi[i : i + 1], (7, 6, 5), *whole(volume[:1])) for i in range(3)]
    )
    assert torch.equal(together, alone)
