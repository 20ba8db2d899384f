"""Calibration: whether a network is right as often as its probabilities say.

Of the voxels that are given a class, those with like probability of that class are put into one bin; the error is the
mean over bins of |share that is right - mean probability|, weighted by their voxels. Background voxels, nearly all of a
scan and nearly all easy, do not count: that would make every network look calibrated.
Sources: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI (2015), for the error;
Gupta and Ramdas, "Top-label calibration", ICLR (2022), for taking each predicted class by itself.

Axes: Z Y X voxels, K classes with the ids 1..K, Q = 256 levels of probability, B bins.
"""

import numpy as np
from numpy.typing import NDArray

from voxprior.maths.overlap import Labels, union_box

LEVELS = 256
BINS = 15


def calibration_error(
    label_ZYX: Labels, prediction_ZYX: Labels, confidence_ZYX: NDArray[np.uint8], classes: int
) -> NDArray[np.float64]:
    """Computes the expected calibration error of each predicted class in 15 equal bins: (K,), NaN where none is.

    Args:
        label_ZYX: reference, ids 0..K, uint8.
        prediction_ZYX: prediction on the same grid.
        confidence_ZYX: probability of the predicted class, times 255.
        classes: K.
    """
    box = union_box(label_ZYX, prediction_ZYX)
    counts = np.zeros((2, (classes + 1) * LEVELS), dtype=np.int64)
    maps = (label_ZYX[box], prediction_ZYX[box], confidence_ZYX[box])
    for label_YX, prediction_YX, confidence_YX in zip(*maps, strict=True):
        inside_YX = prediction_YX > 0
        given = prediction_YX[inside_YX]
        at = given * np.int64(LEVELS) + confidence_YX[inside_YX]
        counts[0] += np.bincount(at, minlength=counts.shape[1])
        counts[1] += np.bincount(at[given == label_YX[inside_YX]], minlength=counts.shape[1])
    voxels_KQ, right_KQ = counts.reshape(2, classes + 1, LEVELS)[:, 1:]
    level_Q = np.arange(LEVELS) / (LEVELS - 1)
    bin_Q = np.minimum((level_Q * BINS).astype(int), BINS - 1)
    to_bin_QB = np.eye(BINS)[bin_Q]
    gap_KB = np.abs(right_KQ @ to_bin_QB - (voxels_KQ * level_Q) @ to_bin_QB)
    total_K = voxels_KQ.sum(axis=1)
    return np.where(total_K > 0, gap_KB.sum(axis=1) / np.maximum(total_K, 1), np.nan)
