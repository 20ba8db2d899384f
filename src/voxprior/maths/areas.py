"""Normalised surface Dice weighted by area, as DeepMind's surface-distance and MONAI's `use_subvoxels=True` define it.

The surface runs between voxels: each corner where eight voxels meet, and which not all of them fill, carries the area
that marching cubes draws there. A corner's distance is that to the nearest such corner of the other map; the score is
the share of both maps' area whose distance is at most the tolerance. A slanted surface then counts with its true area,
and not with its number of voxels: the two definitions differ by up to about 0.1.
Source: Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy",
arXiv 1809.04430 (2018).

Axes: Z Y X voxels, N corners of a surface, K classes with the ids 1..K.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxprior.maths.overlap import Labels
from voxprior.maths.surfaces import Zyx, distances_mm, refuse_spacing

# Bit of each of the eight voxels around a corner, from the one before it on all axes to the one after it.
BITS_ZYX = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], dtype=np.uint8)


def corner_codes(mask_ZYX: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Names the eight voxels around each corner by a number of 8 bits: (Z + 1, Y + 1, X + 1) uint8."""
    padded_ZYX = np.pad(mask_ZYX, 1).view(np.uint8)
    size = tuple(n + 1 for n in mask_ZYX.shape)
    code_ZYX = np.zeros(size, dtype=np.uint8)
    for lo in np.ndindex(2, 2, 2):
        box = tuple(slice(a, a + n) for a, n in zip(lo, size, strict=True))
        code_ZYX |= padded_ZYX[box] * BITS_ZYX[lo]
    return code_ZYX


def area_weighted_nsd(
    label_ZYX: Labels,
    prediction_ZYX: Labels,
    classes: int,
    spacing_zyx_mm: Zyx,
    tolerance_mm: float,
    area_mm2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Computes NSD weighted by area for classes 1..K: (K,); NaN where both maps lack a class, 0 where one does.

    Args:
        label_ZYX: reference, ids 0..K, uint8.
        prediction_ZYX: prediction on the same grid.
        classes: K.
        spacing_zyx_mm: distance between voxel centres, in the order of the axes. There is no default.
        tolerance_mm: area counts as met up to and including this distance.
        area_mm2: (256,), the area that each corner code carries at this spacing.

    Raises:
        ValueError: shapes differ, or the spacing is not three positive numbers.
    """
    if label_ZYX.shape != prediction_ZYX.shape:
        raise ValueError(f"label {label_ZYX.shape} and prediction {prediction_ZYX.shape} differ in shape")
    refuse_spacing(spacing_zyx_mm)
    nsd_K = np.full(classes, np.nan)
    for k, box in enumerate(class_boxes(label_ZYX, prediction_ZYX, classes)):
        if box is None:
            continue
        codes = [corner_codes(map_ZYX[box] == k + 1) for map_ZYX in (label_ZYX, prediction_ZYX)]
        edges = [((code_ZYX != 0) & (code_ZYX != 255)).ravel() for code_ZYX in codes]
        position = [np.flatnonzero(edge_N) for edge_N in edges]
        if min(map(len, position)) == 0:
            nsd_K[k] = 0.0
            continue
        met = total = 0.0
        for own, other in ((0, 1), (1, 0)):
            shared_N = edges[other][position[own]]
            away_N = distances_mm(position[own], shared_N, position[other], codes[own].shape, spacing_zyx_mm)
            area_N = area_mm2[codes[own].ravel()[position[own]]]
            met += float(area_N[away_N <= np.float32(tolerance_mm)].sum())
            total += float(area_N.sum())
        nsd_K[k] = met / total
    return nsd_K


def class_boxes(label_ZYX: Labels, prediction_ZYX: Labels, classes: int) -> list[tuple[slice, ...] | None]:
    """Finds the smallest box around each class 1..K in either map; None where neither has it."""
    both = [ndimage.find_objects(map_ZYX, max_label=classes) for map_ZYX in (label_ZYX, prediction_ZYX)]
    boxes: list[tuple[slice, ...] | None] = []
    for one, other in zip(*both, strict=True):
        if one is None or other is None:
            boxes.append(one or other)
            continue
        ends = [(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
        boxes.append(tuple(slice(*end) for end in ends))
    return boxes
