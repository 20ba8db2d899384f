"""NSD weighted by area: shapes whose area is known, and the empty cases; `test_surfaces.py` compares with MONAI."""

import numpy as np
import pytest

from voxprior.maths.areas import area_weighted_nsd, corner_codes

FLAT = np.zeros(256)
FLAT[[0b11110000, 0b00001111, 0b11001100, 0b00110011, 0b10101010, 0b01010101]] = 1.0  # corners on a flat face


def slab(lo: int, hi: int) -> np.ndarray:
    map_ZYX = np.zeros((20, 12, 12), np.uint8)
    map_ZYX[lo:hi] = 1
    return map_ZYX


def test_codes_name_the_eight_voxels_around_a_corner():
    one = np.ones((1, 1, 1), bool)
    assert corner_codes(one).ravel().tolist() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert corner_codes(np.ones((3, 3, 3), bool))[1:3, 1:3, 1:3].tolist() == np.full((2, 2, 2), 255).tolist()


def test_a_shifted_face_is_met_within_its_distance():
    label, prediction = slab(4, 10), slab(4, 12)
    near, far = (area_weighted_nsd(label, prediction, 1, (1.5, 1, 1), t, FLAT)[0] for t in (3.0, 2.9))
    face, side = 11 * 11, 4 * 11  # corners with all of a face around them; those of a side, per plane between slices
    assert near == 1
    total = 4 * face + (5 + 7) * side  # both ends of both slabs, and their sides
    # The new end is 3 mm from all; of the old one, only what is 3 mm or more from the sides of the longer slab.
    assert far == pytest.approx((total - face - 7 * 7) / total)
    assert far == area_weighted_nsd(prediction, label, 1, (1.5, 1, 1), 2.9, FLAT)[0]


def test_empty_policy_and_bad_input():
    nothing = np.zeros((20, 12, 12), np.uint8)
    assert np.isnan(area_weighted_nsd(nothing, nothing, 2, (1, 1, 1), 1.0, FLAT)).all()
    assert area_weighted_nsd(slab(2, 4), nothing, 1, (1, 1, 1), 1.0, FLAT).tolist() == [0]
    with pytest.raises(ValueError, match="spacing"):
        area_weighted_nsd(nothing, nothing, 1, (1, 0, 1), 1.0, FLAT)
    with pytest.raises(ValueError, match="shape"):
        area_weighted_nsd(nothing, nothing[1:], 1, (1, 1, 1), 1.0, FLAT)
