"""Distances between surfaces, in millimetres: normalised surface Dice, Hausdorff distance, average surface distance.

Several definitions carry these names. Ours, in full:

- *surface voxel* of a class: a voxel of the class with at least one of its six face neighbours outside the class; what
  lies beyond the image is outside. (scipy's `binary_erosion` with its default cross, and MONAI's `get_mask_edges`.)
- *distance* of a surface voxel: from its centre to the nearest centre of a surface voxel of the other map.
- *HD95*: the larger of the two 95th percentiles (label to prediction, prediction to label), interpolated linearly.
  As MONAI's `compute_hausdorff_distance(percentile=95)`; medpy pools both directions, DeepMind's surface-distance
  weighs by area: both differ from it by tenths of millimetres.
- *NSD*: the share of surface voxels, of both maps together, whose distance is at most the tolerance. As MONAI's
  `compute_surface_dice(use_subvoxels=False)`; weighted by area (`maths/areas.py`) it differs by up to about 0.1.
- *ASSD*: the mean distance of the surface voxels of both maps together. As MONAI's
  `compute_average_surface_distance(symmetric=True)`; others average the two directions' means.

Only surface voxels enter a tree, so that the cost follows the surfaces and not the volume.

Axes: Z Y X voxels, N surface voxels, K classes with the ids 1..K.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from voxprior.maths.overlap import Labels, union_box

Zyx = tuple[float, float, float]


class SurfaceScores(NamedTuple):
    """NSD, HD95 in mm and ASSD in mm of classes 1..K: three (K,) arrays."""

    nsd: NDArray[np.float64]
    hd95_mm: NDArray[np.float64]
    assd_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Surfaces:
    """All surface voxels of one label map, sorted by class.

    positions: (N,) index into the flattened box; starts[c]..starts[c + 1] are those of class c, (K + 2,).
    shared: (N,) the same voxel is a surface voxel of the same class in the other map, at distance 0.
    """

    positions: NDArray[np.intp]
    shared: NDArray[np.bool_]
    starts: NDArray[np.intp]

    def of(self, class_id: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Returns the positions of one class, and which of them are shared."""
        part = slice(self.starts[class_id], self.starts[class_id + 1])
        return self.positions[part], self.shared[part]


def edge_voxels(map_ZYX: Labels) -> NDArray[np.bool_]:
    """Marks the surface voxels of all classes of a label map at once: (Z, Y, X) bool."""
    edge_ZYX = np.zeros(map_ZYX.shape, dtype=bool)
    for axis in range(3):
        first, last = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        changes = map_ZYX[last] != map_ZYX[first]
        edge_ZYX[last] |= changes
        edge_ZYX[first] |= changes
        edge_ZYX[(slice(None),) * axis + ([0, -1],)] = True
    edge_ZYX &= map_ZYX > 0
    return edge_ZYX


def find_surfaces(label_ZYX: Labels, prediction_ZYX: Labels, classes: int) -> tuple[Surfaces, Surfaces]:
    """Lists the surface voxels of both maps, class by class, in one pass over each."""
    maps = label_ZYX, prediction_ZYX
    edges = edge_voxels(label_ZYX), edge_voxels(prediction_ZYX)
    found = []
    for own in (0, 1):
        other = 1 - own
        position_N = np.flatnonzero(edges[own])
        id_N = maps[own].ravel()[position_N]
        shared_N = edges[other].ravel()[position_N] & (maps[other].ravel()[position_N] == id_N)
        order_N = np.argsort(id_N, kind="stable")  # stable keeps the raster order, which the tree's cache likes
        starts = np.concatenate([[0], np.cumsum(np.bincount(id_N, minlength=classes + 1))])
        found.append(Surfaces(position_N[order_N], shared_N[order_N], starts))
    return found[0], found[1]


def distances_mm(
    from_N: NDArray[np.intp], shared_N: NDArray[np.bool_], to_M: NDArray[np.intp], shape: tuple[int, ...], spacing: Zyx
) -> NDArray[np.float32]:
    """Measures from each surface voxel to the nearest one of the other map, in mm: (N,) float32.

    Voxels that both surfaces share are at distance 0 and never asked for: in a good prediction most are.
    """
    result_N = np.zeros(from_N.size, dtype=np.float32)
    asked_N = ~shared_N
    if asked_N.any():
        # An unbalanced tree is built much faster, and each tree here answers one batch of questions only.
        tree = cKDTree(_points_mm(to_M, shape, spacing), leafsize=32, balanced_tree=False, compact_nodes=False)
        result_N[asked_N] = tree.query(_points_mm(from_N[asked_N], shape, spacing))[0]
    return result_N


def _points_mm(position_N: NDArray[np.intp], shape: tuple[int, ...], spacing: Zyx) -> NDArray[np.float64]:
    return np.stack(np.unravel_index(position_N, shape), axis=1).astype(np.float64) * spacing


def diagonal_mm(shape_zyx: tuple[int, ...], spacing_zyx_mm: Zyx) -> float:
    """Measures the image from corner to corner, outer faces included, in mm: no distance inside it is larger."""
    return float(np.linalg.norm(np.multiply(shape_zyx, spacing_zyx_mm)))


def refuse_spacing(spacing_zyx_mm: Zyx) -> None:
    """Raises a ValueError where the spacing is not three positive numbers."""
    if len(spacing_zyx_mm) != 3 or not all(0 < step < np.inf for step in spacing_zyx_mm):
        raise ValueError(f"spacing {spacing_zyx_mm} must be three positive numbers, in mm")


def surface_scores(
    label_ZYX: Labels, prediction_ZYX: Labels, classes: int, spacing_zyx_mm: Zyx, tolerance_mm: float
) -> SurfaceScores:
    """Computes NSD, HD95 and ASSD of classes 1..K in one pass over the surfaces. Definitions: see the module.

    A class that both maps lack is NaN in all; one that a single map lacks has NSD 0 and, as HD95 and ASSD, the diagonal
    of the whole image.

    Args:
        label_ZYX: reference, ids 0..K, uint8.
        prediction_ZYX: prediction on the same grid.
        classes: K.
        spacing_zyx_mm: distance between voxel centres, in the order of the axes. There is no default.
        tolerance_mm: a surface voxel counts as met up to and including this distance.

    Raises:
        ValueError: shapes differ, or the spacing is not three positive numbers.
    """
    if label_ZYX.shape != prediction_ZYX.shape:
        raise ValueError(f"label {label_ZYX.shape} and prediction {prediction_ZYX.shape} differ in shape")
    refuse_spacing(spacing_zyx_mm)
    found = SurfaceScores(*np.full((3, classes), np.nan))
    box = union_box(label_ZYX, prediction_ZYX)
    label_box_ZYX, prediction_box_ZYX = np.ascontiguousarray(label_ZYX[box]), np.ascontiguousarray(prediction_ZYX[box])
    if label_box_ZYX.size == 0:
        return found
    shape = label_box_ZYX.shape
    label, prediction = find_surfaces(label_box_ZYX, prediction_box_ZYX, classes)
    for k in range(classes):
        (label_N, label_shared_N), (prediction_M, prediction_shared_M) = label.of(k + 1), prediction.of(k + 1)
        if label_N.size == 0 and prediction_M.size == 0:
            continue
        if label_N.size == 0 or prediction_M.size == 0:
            found.nsd[k] = 0.0
            found.hd95_mm[k] = found.assd_mm[k] = diagonal_mm(label_ZYX.shape, spacing_zyx_mm)
            continue
        there = distances_mm(label_N, label_shared_N, prediction_M, shape, spacing_zyx_mm)
        back = distances_mm(prediction_M, prediction_shared_M, label_N, shape, spacing_zyx_mm)
        # In float32, so that a distance of exactly the tolerance counts whatever the rounding of the coordinates.
        met = sum(int((way <= np.float32(tolerance_mm)).sum()) for way in (there, back))
        both = there.size + back.size
        found.nsd[k] = met / both
        found.hd95_mm[k] = max(float(np.quantile(way, 0.95)) for way in (there, back))
        found.assd_mm[k] = sum(float(way.sum(dtype=np.float64)) for way in (there, back)) / both
    return found
