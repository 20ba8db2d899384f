"""F1 of lesions: how many connected pieces of a class are found, and how many found ones are true.

A piece is what hangs together over faces, edges or corners (26 neighbours). Pieces of label and prediction are matched
one to one, those with the largest intersection over union first, down to a threshold; F1 = 2 TP / (2 TP + FP + FN).
Source: Maier-Hein et al., "Metrics reloaded", Nature Methods 21 (2024), object detection at a loose threshold.

Axes: Z Y X voxels, K classes with the ids 1..K.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxprior.maths.areas import class_boxes
from voxprior.maths.overlap import Labels

TOUCHING = np.ones((3, 3, 3), dtype=bool)


def lesion_f1(label_ZYX: Labels, prediction_ZYX: Labels, classes: int, least_iou: float) -> NDArray[np.float64]:
    """Computes F1 of the pieces of classes 1..K: (K,); NaN where both maps lack a class, 0 where one does.

    Args:
        label_ZYX: reference, ids 0..K, uint8.
        prediction_ZYX: prediction on the same grid.
        classes: K.
        least_iou: two pieces may be matched from this intersection over union on; it is above 0.
    """
    f1_K = np.full(classes, np.nan)
    for k, box in enumerate(class_boxes(label_ZYX, prediction_ZYX, classes)):
        if box is None:
            continue
        label, pieces = ndimage.label(label_ZYX[box] == k + 1, TOUCHING)
        prediction, found = ndimage.label(prediction_ZYX[box] == k + 1, TOUCHING)
        f1_K[k] = 2 * _matches(label, prediction, pieces, found, least_iou) / (pieces + found)
    return f1_K


def _matches(
    label_ZYX: NDArray[np.int32], prediction_ZYX: NDArray[np.int32], pieces: int, found: int, least_iou: float
) -> int:
    """Counts pairs that are matched, greedily from the largest intersection over union."""
    both = np.bincount(
        label_ZYX.ravel().astype(np.int64) * (found + 1) + prediction_ZYX.ravel(), minlength=(pieces + 1) * (found + 1)
    ).reshape(pieces + 1, found + 1)
    shared = both[1:, 1:]
    iou = shared / np.maximum(1, both[1:].sum(axis=1)[:, None] + both[:, 1:].sum(axis=0) - shared)
    rows, columns = np.nonzero(iou >= least_iou)
    order = np.argsort(-iou[rows, columns], kind="stable")
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
    return len(used_rows)
