"""One picture of a segmented scan: three planes with its classes in colours, and their names.

Axes: Z Y X voxels in LPS order; H W rows and columns of a plane.
"""

import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

HEIGHT_IN, DPI, MOST_NAMED = 3.6, 110, 24
FINE = 400  # dots along a plane's longer side: of small scans, so that an outline is thinner than a voxel
FILL = 0.35  # of a class's colour inside; its outline has all of it
NAMES = ("axial", "coronal", "sagittal")

Array = np.ndarray[Any, Any]
Zyx = tuple[float, float, float]


def colour(number: int) -> tuple[float, float, float]:
    """Gives class 1, 2, ... a colour, far from those of the classes before: steps of the golden angle in hue."""
    hue = (0.58 + 0.61803398875 * (number - 1)) % 1.0
    return colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (number % 2), 1.0)


def draw(image_ZYX: Array, white: float, labels_ZYX: Array, spacing_zyx_mm: Zyx, classes: Sequence[str]) -> bytes:
    """Draws the axial, coronal and sagittal planes that hold most labelled voxels: PNG.

    Seen from the feet and from the front: the patient's right is on the left of axial and coronal planes, the head on
    top, and the front on the left of sagittal ones. Without a labelled voxel the middle planes are drawn.

    Args:
        image_ZYX: intensities from 0 (black).
        white: the intensity drawn white.
        labels_ZYX: class numbers on the same grid.
        spacing_zyx_mm: of the voxels.
        classes: names of classes 1, 2, ...
    """
    counts = [np.count_nonzero(labels_ZYX, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    places = [int(line.argmax()) if line.any() else len(line) // 2 for line in counts]
    planes = [_plane(image_ZYX, labels_ZYX, axis, places[axis]) for axis in range(3)]
    steps = [[mm for other, mm in enumerate(spacing_zyx_mm) if other != axis] for axis in range(3)]
    sizes = [(len(grey) * mm[0], grey.shape[1] * mm[1]) for (grey, _), mm in zip(planes, steps, strict=True)]
    widths = [HEIGHT_IN * wide / high for high, wide in sizes]
    shown = [number for number in np.unique(np.concatenate([ids.ravel() for _, ids in planes])).tolist() if number]
    figure = Figure(
        figsize=(sum(widths) + 0.4, HEIGHT_IN + 0.35 + 0.22 * -(-min(len(shown), MOST_NAMED) // 6)), dpi=DPI
    )
    figure.set_facecolor("white")
    for place, axes in enumerate(figure.subplots(1, 3, width_ratios=widths)):
        (grey, ids), (down_mm, right_mm) = planes[place], steps[place]
        times = max(1, FINE // max(ids.shape))
        large, of_large = (array.repeat(times, 0).repeat(times, 1) for array in (grey, ids))
        axes.imshow(_coloured(large / white, of_large), aspect=down_mm / right_mm, interpolation="nearest")
        axes.set_title(f"{NAMES[place]}, slice {places[place] + 1} of {labels_ZYX.shape[place]}", fontsize=8)
        axes.set_axis_off()
    named = [Patch(color=colour(n), label=classes[n - 1].replace("_", " ")) for n in shown[:MOST_NAMED]]
    if named:
        figure.legend(handles=named, loc="lower center", ncols=6, fontsize=7, frameon=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.92, bottom=0.22 * -(-max(len(named), 1) // 6) / HEIGHT_IN, wspace=0.03
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _plane(image_ZYX: Array, labels_ZYX: Array, axis: int, place: int) -> tuple[Array, Array]:
    """Takes a plane of both; rows of coronal and sagittal ones run from feet to head, which belongs on top."""
    both = image_ZYX.take(place, axis), labels_ZYX.take(place, axis)
    return both if axis == 0 else (both[0][::-1], both[1][::-1])


def _coloured(grey_HW: Array, ids_HW: Array) -> Array:
    """Lays the classes over the plane: (H, W, 3) in [0, 1]."""
    picture = np.repeat(np.clip(grey_HW.astype(np.float32), 0, 1)[..., None], 3, axis=2)
    inner = np.ones(ids_HW.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(ids_HW, step, axis) == ids_HW
    for number in np.unique(ids_HW[ids_HW > 0]).tolist():
        share = np.where(inner, FILL, 1.0)[..., None] * (ids_HW == number)[..., None]
        picture = picture * (1 - share) + np.array(colour(number), np.float32) * share
    return picture
