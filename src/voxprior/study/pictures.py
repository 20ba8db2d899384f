"""Pictures of a pretraining, whatever its method shows: one column per picture, one row per sample.

A column is an image of its own with its name above it, so that a page can put as many side by side as there is room.
Points that belong together carry the same number and colour in every picture: a reader sees that they lie on the same
anatomy.

Axes: P samples, K points, Z Y X voxels of a picture; H W rows and columns of an image.
"""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

SIDE_PX, GAP_PX, GAP_GREY = 168, 6, 128  # grey is a gap on a white page as on a black one
SHOWN = 6  # points per sample: more would hide what they lie on
NEAR_VOX = 1.0  # a point this far from the middle of the plane that is drawn still lies on what one sees
# Bright enough to be seen on any grey; Okabe and Ito's, told apart by colour-blind readers, and numbered all the same.
POINTS = ["#56b4e9", "#e69f00", "#f0e442", "#ff7f50", "#2fc49a", "#f29ac8"]
HEAT = "viridis"
NAMES = {"masked_input": "seen by the network", "teacher_error": "teacher's error"}

Array = np.ndarray[Any, Any]


class Mark(NamedTuple):
    """One of the points that belong together: its number, from 1, and where it lies in its column's image, in px."""

    number: int
    right_px: float
    down_px: float


class Column(NamedTuple):
    """One picture of all samples: `image` is (H, W, 3), the samples one below the other."""

    name: str
    image: Array
    marks: list[Mark]


def columns(stored: dict[str, Array], side_px: int = SIDE_PX) -> list[Column]:
    """Draws every picture of a pretraining, in the order in which its method names them.

    Without points a picture's middle axial plane is drawn. With them, in the first picture that has points, the plane
    that holds most of them, and in the others the plane where these lie.

    Args:
        stored: content of `pictures.npz`, see `docs/formats.md`; volumes in [0, 1].
        side_px: width of an image; its height follows from the voxels, taken as square within a plane.
    """
    volumes = {
        name: volume
        for name, volume in stored.items()
        if volume.ndim == 4 and len(volume) and not name.startswith("points_")
    }
    points = {name: stored[f"points_{name}"] for name in volumes if f"points_{name}" in stored}
    depth = next((volumes[name].shape[1] for name in points), 0)
    picked = [_pick({name: some[n] for name, some in points.items()}, depth) for n in range(_samples(volumes))]
    found = []
    for name, volume in volumes.items():
        tiles, marks, top = [], [], 0
        for sample, ids in enumerate(picked):
            here = points[name][sample][ids] if name in points else np.empty((0, 3))
            plane = _plane_of(here, volume.shape[1]) if len(here) else volume.shape[1] // 2
            plane = min(max(plane, 0), volume.shape[1] - 1)
            tile = _tile(volume[sample, plane], side_px, heat=name.endswith("_error"))
            scale = np.array(tile.shape[:2]) / volume.shape[2:]
            for number, (z, y, x) in enumerate(here, start=1):
                if abs(z - plane - 0.5) <= NEAR_VOX:
                    marks.append(Mark(number, float(x * scale[1]), float(top + y * scale[0])))
            tiles.append(np.pad(tile, ((0, GAP_PX), (0, 0), (0, 0)), constant_values=GAP_GREY))
            top += len(tiles[-1])
        found.append(Column(NAMES.get(name, name.replace("_", " ")), np.concatenate(tiles)[:-GAP_PX], marks))
    return found


def _samples(volumes: dict[str, Array]) -> int:
    return min((len(volume) for volume in volumes.values()), default=0)


def _plane_of(point_K3: Array, depth: int) -> int:
    """Finds the plane that holds most of the points; of equals the one nearest to the middle, where the body is."""
    counts = np.bincount(np.floor(point_K3[:, 0]).clip(0).astype(int))
    most = np.flatnonzero(counts == counts.max())
    return int(most[np.abs(most + 0.5 - depth / 2).argmin()])


def _pick(points: dict[str, Array], depth: int) -> Array:
    """Picks up to `SHOWN` points that are valid in every picture and lie in one plane of the first: their indices.

    Far from one another, the first being the one nearest to the middle of all.
    """
    if not points:
        return np.empty(0, int)
    first = next(iter(points.values()))
    ids = np.flatnonzero(np.all([np.isfinite(point_K3).all(1) for point_K3 in points.values()], axis=0))
    if not len(ids):
        return ids
    ids = ids[np.floor(first[ids, 0]).clip(0) == _plane_of(first[ids], depth)]
    place = first[ids, 1:]
    chosen = [int(np.linalg.norm(place - place.mean(0), axis=1).argmin())]
    while len(chosen) < min(SHOWN, len(ids)):
        away = np.linalg.norm(place[:, None] - place[chosen], axis=2).min(1)
        chosen.append(int(away.argmax()))
    return ids[chosen]


def _tile(plane_YX: Array, width_px: int, heat: bool) -> Array:
    """Draws one plane, grey or as a heat map: (H, `width_px`, 3) uint8."""
    height_px = max(1, round(width_px * plane_YX.shape[0] / plane_YX.shape[1]))
    down = np.arange(height_px) * plane_YX.shape[0] // height_px
    right = np.arange(width_px) * plane_YX.shape[1] // width_px
    shown = np.clip(np.nan_to_num(plane_YX[down][:, right]), 0, 1)
    if heat:
        coloured: Array = matplotlib.colormaps[HEAT](shown, bytes=True)[..., :3]
        return coloured
    return np.repeat((shown * 255).astype(np.uint8)[..., None], 3, axis=2)


def sheet(stored: dict[str, Array], title: str) -> Figure | None:
    """Puts all columns into one figure, names above and numbers on the points; None where there is no picture."""
    found = columns(stored)
    if not found:
        return None
    height = max(column.image.shape[0] for column in found) / SIDE_PX
    figure = Figure(figsize=(1.9 * len(found), 1.9 * height + 0.7), layout="constrained", dpi=110)
    for axes, column in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        axes.imshow(column.image)
        axes.set_title(column.name, fontsize=9)
        axes.set_axis_off()
        for mark in column.marks:
            colour = POINTS[(mark.number - 1) % len(POINTS)]
            axes.plot(mark.right_px, mark.down_px, "o", markersize=7, fillstyle="none", color=colour)
            axes.annotate(str(mark.number), (mark.right_px, mark.down_px), (5, 3), textcoords="offset points",
                          color=colour, fontsize=8, weight="bold")  # fmt: skip
    figure.suptitle(title, fontsize=10)
    return figure
