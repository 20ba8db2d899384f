"""Calibration error: by hand, against a plain loop over voxels, and for a network that is right as often as it says."""

import numpy as np
import pytest

from voxprior.maths.calibration import calibration_error


def plain(label, prediction, confidence, number, bins=15):
    """Computes the definition voxel by voxel."""
    inside = prediction == number
    sure, right = confidence[inside] / 255, (label == prediction)[inside]
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(abs((right[place == b] - sure[place == b]).sum()) for b in range(bins)) / inside.sum()


def test_sure_and_half_of_the_time_wrong():
    label, prediction = np.zeros((2, 2, 4, 4), np.uint8)
    prediction[0], label[0, :2] = 1, 1
    found = calibration_error(label, prediction, np.full(label.shape, 255, np.uint8), 2)
    assert found[0] == pytest.approx(0.5)
    assert np.isnan(found[1])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_definition(seed):
    chance = np.random.default_rng(seed)
    label, prediction = chance.integers(0, 4, (2, 5, 6, 7)).astype(np.uint8)
    confidence = chance.integers(64, 256, label.shape).astype(np.uint8)
    expected = [plain(label, prediction, confidence, number) for number in (1, 2, 3)]
    assert calibration_error(label, prediction, confidence, 3) == pytest.approx(expected)


def test_a_network_that_is_right_as_often_as_it_says_has_almost_none():
    chance = np.random.default_rng(7)
    confidence = chance.integers(128, 256, (40, 50, 50)).astype(np.uint8)
    prediction = np.ones(confidence.shape, np.uint8)
    label = (chance.random(confidence.shape) < confidence / 255).astype(np.uint8)
    assert calibration_error(label, prediction, confidence, 1)[0] < 0.01
    overconfident = np.full_like(confidence, 255)
    assert calibration_error(label, prediction, overconfident, 1)[0] == pytest.approx(0.25, abs=0.01)


def test_background_does_not_count():
    label = np.zeros((3, 3, 3), np.uint8)
    label[0] = 1
    assert np.isnan(calibration_error(label, np.zeros_like(label), label, 1)).all()
