"""Pictures of scans that can be leafed through: three planes, outlines of the label and of every init's prediction.

A plane's slices lie one below the other in one image, a sprite; the page shows one and moves it. The scan is a JPEG
that all inits share; outlines are transparent PNGs of their own above it, so that they can be switched off.

Axes: Z Y X voxels of a volume in LPS order; H W rows and columns of a picture; S slices.
"""

import io
from typing import Any, NamedTuple

import numpy as np

LABEL_RGB, PREDICTION_RGB = (86, 180, 233), (255, 158, 40)
PLANES = ("axial", "coronal", "sagittal")  # perpendicular to Z, Y, X
HEIGHT_PX = 192  # a multiple of 8: a JPEG block never holds two slices
SLICES = 20  # per plane

Picture = np.ndarray[Any, np.dtype[np.uint8]]
Volume = np.ndarray[Any, Any]


class Case(NamedTuple):
    """A test case on one grid, Z Y X in LPS order: the scan in [0, 1], its label, and a prediction per init."""

    image: Volume
    label: Volume
    predictions: dict[str, Volume]
    spacing_zyx_mm: tuple[float, float, float]


class Strip(NamedTuple):
    """One plane of a case: its slices as sprites, one below the other.

    `places_mm` says where each slice lies, from the first of the volume; `start` is the one to show first.
    """

    plane: str
    width_px: int
    height_px: int
    start: int
    places_mm: list[float]
    scan: bytes
    label: bytes
    predictions: dict[str, bytes]


def strips(case: Case, height_px: int = HEIGHT_PX, most: int = SLICES, margin_mm: float = 20.0) -> list[Strip]:
    """Draws the three planes of a case.

    Cut to what is labelled or predicted and a margin; seen from the front and from the feet, the patient's left on the
    right. Each plane starts where predictions and label differ in most voxels, all inits together, or, where they are
    equal, where most voxels are labelled.
    """
    cut, corner = _cut(case, margin_mm)
    wrong = np.zeros(cut.label.shape, np.int32)
    for prediction in cut.predictions.values():
        wrong += prediction != cut.label
    shown = wrong if wrong.any() else (cut.label > 0).astype(np.int32)
    found = []
    for axis, plane in enumerate(PLANES):
        others = tuple(other for other in range(3) if other != axis)
        mm = [case.spacing_zyx_mm[other] for other in others]
        rows, columns = (cut.label.shape[other] for other in others)
        width_px = max(1, round(height_px * columns * mm[1] / (rows * mm[0])))
        places, start = _picked(shown.sum(axis=others), most)
        sprites = [
            _maps(volume, axis, places, height_px, width_px) for volume in (cut.label, *cut.predictions.values())
        ]
        found.append(
            Strip(
                plane, width_px, height_px, start,
                [round(float((corner[axis] + place) * case.spacing_zyx_mm[axis]), 1) for place in places],
                jpeg(_greys(cut.image, axis, places, height_px, width_px)),
                png(_outlined(sprites[0], LABEL_RGB, dashed=False)),
                {init: png(_outlined(maps, PREDICTION_RGB, dashed=True))
                 for init, maps in zip(cut.predictions, sprites[1:], strict=True)},
            )
        )  # fmt: skip
    return found


def _picked(weight_S: Volume, most: int) -> tuple[list[int], int]:
    """Picks slices in even steps, the heaviest among them: (slices, place of the heaviest)."""
    places = np.unique(np.linspace(0, len(weight_S) - 1, min(most, len(weight_S))).round().astype(int))
    heaviest = int(weight_S.argmax())
    start = int(np.abs(places - heaviest).argmin())
    places[start] = heaviest
    return places.tolist(), start


def _cut(case: Case, margin_mm: float) -> tuple[Case, list[int]]:
    """Cuts to the box of all maps and a margin: the smaller case, and its corner in voxels."""
    either = np.maximum.reduce([case.label, *case.predictions.values()])
    box = []
    for axis, step in enumerate(case.spacing_zyx_mm):
        line = either.max(axis=tuple(other for other in range(3) if other != axis))
        inside = np.flatnonzero(line) if line.any() else np.array([0, len(line) - 1])
        margin = round(margin_mm / step)
        box.append(slice(max(0, int(inside[0]) - margin), int(inside[-1]) + 1 + margin))
    cut = tuple(box)
    predictions = {init: prediction[cut] for init, prediction in case.predictions.items()}
    return Case(case.image[cut], case.label[cut], predictions, case.spacing_zyx_mm), [part.start for part in box]


def _turned(volume: Volume, axis: int, place: int) -> Volume:
    """Takes one plane as it is looked at: in coronal and sagittal planes the head is on top."""
    plane = volume.take(place, axis=axis)
    return np.flip(plane, 0) if axis else plane


def _greys(image: Volume, axis: int, places: list[int], height_px: int, width_px: int) -> Picture:
    """Draws the scan's slices one below the other, linear between voxels: (S * H, W, 3)."""
    tiles = []
    for place in places:
        plane = np.clip(_turned(image, axis, place), 0, 1).astype(np.float32)
        for side, size in ((0, height_px), (1, width_px)):
            at = np.clip((np.arange(size) + 0.5) * plane.shape[side] / size - 0.5, 0, plane.shape[side] - 1)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, plane.shape[side] - 1)
            share = (at - low).astype(np.float32).reshape((-1, 1) if side == 0 else (1, -1))
            plane = plane.take(low, side) * (1 - share) + plane.take(high, side) * share
        tiles.append((plane * 255).astype(np.uint8))
    return np.repeat(np.concatenate(tiles)[..., None], 3, axis=2)


def _maps(map_ZYX: Volume, axis: int, places: list[int], height_px: int, width_px: int) -> Volume:
    """Enlarges the slices of a label map without inventing values: (S, H, W)."""
    tiles = []
    for place in places:
        plane = _turned(map_ZYX, axis, place)
        down = np.arange(height_px) * plane.shape[0] // height_px
        right = np.arange(width_px) * plane.shape[1] // width_px
        tiles.append(plane[down][:, right])
    return np.stack(tiles)


def _outlined(map_SHW: Volume, colour: tuple[int, int, int], dashed: bool) -> Picture:
    """Draws outlines on nothing, two pixels wide, one slice below the other: (S * H, W, 4)."""
    edge: Volume = np.zeros(map_SHW.shape, bool)
    down, right = map_SHW[:, 1:] != map_SHW[:, :-1], map_SHW[:, :, 1:] != map_SHW[:, :, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= right
    edge[:, :, :-1] |= right
    if dashed:
        edge &= (np.add.outer(np.arange(edge.shape[1]), np.arange(edge.shape[2])) // 5) % 2 == 0
    picture = np.zeros((*edge.shape, 4), np.uint8)
    picture[edge] = (*colour, 255)
    return picture.reshape(-1, edge.shape[2], 4)


def jpeg(picture: Picture, quality: int = 80) -> bytes:
    """Compresses a picture."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, picture, format="jpeg", pil_kwargs={"quality": quality})
    return stream.getvalue()


def png(picture: Picture) -> bytes:
    """Compresses a picture with transparent places, without loss."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    unnamed: dict[str, Any] = {"Software": None}
    imsave(stream, picture, format="png", metadata=unnamed, pil_kwargs={"optimize": True})
    return stream.getvalue()
