"""Overlap of two label maps: one count per case, from which Dice, volumes and the empty cases follow.

Axes: Z Y X voxels; K classes with the ids 1..K, 0 is background. Label maps hold these ids, as unsigned 8-bit integers.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Box = tuple[slice, slice, slice]


def union_box(label_ZYX: Labels, prediction_ZYX: Labels) -> Box:
    """Finds the smallest box around everything that either map labels; three empty slices where neither does.

    All scores are computed inside it, so that their cost does not depend on the empty space around the organs.
    """
    planes = np.zeros(label_ZYX.shape[0], dtype=bool)
    rows = np.zeros(label_ZYX.shape[1], dtype=np.uint8)
    columns = np.zeros(label_ZYX.shape[2], dtype=np.uint8)
    for z, (label_YX, prediction_YX) in enumerate(zip(label_ZYX, prediction_ZYX, strict=True)):
        either_YX = np.maximum(label_YX, prediction_YX)
        column_max = either_YX.max(axis=0)
        planes[z] = column_max.any()
        if planes[z]:
            np.maximum(columns, column_max, out=columns)
            np.maximum(rows, either_YX.max(axis=1), out=rows)
    return _extent(planes), _extent(rows), _extent(columns)


def _extent(line: NDArray[np.generic]) -> slice:
    inside = np.flatnonzero(line)
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def confusion(label_ZYX: Labels, prediction_ZYX: Labels, classes: int) -> NDArray[np.int64]:
    """Counts voxels by (label, prediction): (K + 1, K + 1) int64, rows are the label.

    Counts plane by plane inside the union box; the memory beyond the two maps is that of one plane.

    Args:
        label_ZYX: reference, ids 0..K.
        prediction_ZYX: prediction on the same grid.
        classes: K, at most 254.

    Raises:
        ValueError: shapes differ, a map is not uint8, or holds an id above K.
    """
    if label_ZYX.shape != prediction_ZYX.shape:
        raise ValueError(f"label {label_ZYX.shape} and prediction {prediction_ZYX.shape} differ in shape")
    if label_ZYX.dtype != np.uint8 or prediction_ZYX.dtype != np.uint8:
        raise ValueError(f"label maps must be uint8, not {label_ZYX.dtype} and {prediction_ZYX.dtype}")
    box = union_box(label_ZYX, prediction_ZYX)
    side = classes + 1
    counts = np.zeros(side * side, dtype=np.int64)
    # The product of two ids below 255 fits into 16 bits, and half the bytes are half the time here.
    for label_YX, prediction_YX in zip(label_ZYX[box], prediction_ZYX[box], strict=True):
        if max(label_YX.max(), prediction_YX.max()) > classes:
            raise ValueError(f"a label map holds an id above {classes}")
        pair_YX = label_YX * np.uint16(side) + prediction_YX
        counts += np.bincount(pair_YX.ravel(), minlength=side * side)
    counts[0] += label_ZYX.size - counts.sum()
    return counts.reshape(side, side)


def dice(confusion_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Computes Dice per class 1..K: 2 |A and B| / (|A| + |B|); NaN where both are empty, 0 where one is.

    Source: Dice, "Measures of the amount of ecologic association between species", Ecology 26 (1945).

    Example:
        >>> dice(np.array([[5, 1], [0, 3]]))
        array([0.85714286])
    """
    both_K = np.diagonal(confusion_KK)[1:]
    total_K = confusion_KK.sum(axis=0)[1:] + confusion_KK.sum(axis=1)[1:]
    return np.where(total_K > 0, 2.0 * both_K / np.maximum(total_K, 1), np.nan)


def flags(confusion_KK: NDArray[np.int64]) -> list[str]:
    """Names what is empty, per class 1..K: '' (neither), 'both_empty', 'missed' or 'invented'.

    `missed`: only the label has the class; `invented`: only the prediction has it.
    """
    names = {(True, True): "", (True, False): "missed", (False, True): "invented", (False, False): "both_empty"}
    in_label = confusion_KK.sum(axis=1)[1:] > 0
    in_prediction = confusion_KK.sum(axis=0)[1:] > 0
    return [names[bool(a), bool(b)] for a, b in zip(in_label, in_prediction, strict=True)]


def volumes_ml(confusion_KK: NDArray[np.int64], voxel_mm3: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes the volumes of classes 1..K in the label and in the prediction, in millilitres."""
    scale = voxel_mm3 / 1000.0
    return confusion_KK.sum(axis=1)[1:] * scale, confusion_KK.sum(axis=0)[1:] * scale


def volume_differences_ml(confusion_KK: NDArray[np.int64], voxel_mm3: float) -> NDArray[np.float64]:
    """Computes volume of the prediction minus that of the label, per class 1..K, in ml; NaN where both are empty."""
    label_K, prediction_K = volumes_ml(confusion_KK, voxel_mm3)
    return np.where(label_K + prediction_K > 0, prediction_K - label_K, np.nan)


def volume_errors(confusion_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Computes the relative volume error per class 1..K: |P - L| over the mean of P and L; NaN where both are empty.

    Between 0 and 2, which it is where one is empty. Over the label alone, as others have it, an invented class would be
    infinitely wrong and no mean could be taken.
    Source: 2 - 2 VS of Taha and Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Med. Imaging 15:29
    (2015).

    Example:
        >>> volume_errors(np.array([[5, 2], [0, 3]]))
        array([0.5])
    """
    label_K, prediction_K = confusion_KK.sum(axis=1)[1:], confusion_KK.sum(axis=0)[1:]
    total_K = label_K + prediction_K
    return np.where(total_K > 0, 2.0 * np.abs(prediction_K - label_K) / np.maximum(total_K, 1), np.nan)
