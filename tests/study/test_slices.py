"""Pictures of scans: the right slices, outlines where maps differ, and a sprite that holds them all."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from voxprior.study import slices
from voxprior.study.slices import Case


def two_maps():
    label = np.zeros((20, 30, 40), np.uint8)
    label[4:16, 8:22, 8:30] = 1
    prediction = label.copy()
    prediction[12, 8:22, 8:30] = 0  # one plane is missed altogether
    return label, prediction


def opened(content: bytes, kind: str) -> np.ndarray:
    return imread(io.BytesIO(content), format=kind)


def test_each_plane_starts_where_the_maps_differ_most():
    label, prediction = two_maps()
    case = Case(np.full(label.shape, 0.5, np.float32), label, {"mae": prediction}, (3.0, 1.5, 1.5))
    found = {strip.plane: strip for strip in slices.strips(case, height_px=96, margin_mm=6.0)}
    axial = found["axial"]
    assert axial.places_mm[axial.start] == 12 * 3.0
    # Cut to 16 x 22 x 30 voxels: two of margin along Z, four along Y and X.
    assert (axial.height_px, axial.width_px) == (96, round(96 * 30 / 22))
    shown = slice(axial.start * 96, (axial.start + 1) * 96)
    assert opened(axial.label, "png")[shown, :, 3].any()
    assert not opened(axial.predictions["mae"], "png")[shown, :, 3].any()
    assert opened(found["coronal"].predictions["mae"], "png")[..., 3].any()
    assert opened(axial.scan, "jpeg").shape == (96 * len(axial.places_mm), axial.width_px, 3)


def test_outlines_have_their_colours_and_nothing_else():
    label, prediction = two_maps()
    case = Case(np.zeros(label.shape, np.float32), label, {"mae": prediction}, (3.0, 1.5, 1.5))
    strip = slices.strips(case, height_px=96)[1]
    for content, colour in ((strip.label, slices.LABEL_RGB), (strip.predictions["mae"], slices.PREDICTION_RGB)):
        picture = (opened(content, "png") * 255).round().astype(int)
        drawn = picture[picture[..., 3] > 0]
        assert (drawn == [*colour, 255]).all()
        assert 0 < len(drawn) < picture[..., 3].size / 3


def test_long_scans_are_thinned_and_keep_the_place_that_matters():
    weight = np.zeros(300)
    weight[137] = 5
    places, start = slices._picked(weight, 20)
    assert len(places) == 20
    assert (places[0], places[-1], places[start]) == (0, 299, 137)
    assert slices._picked(np.ones(3), 20) == ([0, 1, 2], 0)


def test_nothing_labelled_and_nothing_predicted_is_shown_whole():
    empty = np.zeros((6, 8, 10), np.uint8)
    found = slices.strips(Case(np.ones(empty.shape, np.float32), empty, {}, (2.0, 2.0, 2.0)), height_px=16)
    assert [len(strip.places_mm) for strip in found] == [6, 8, 10]


def test_head_is_up_in_coronal_and_sagittal_planes():
    label = np.zeros((10, 10, 10), np.uint8)
    label[:, 4:6, 4:6] = 1
    image = np.broadcast_to(np.linspace(0, 1, 10, dtype=np.float32)[:, None, None], label.shape)
    found = slices.strips(Case(image, label, {}, (2.0, 2.0, 2.0)), 64, margin_mm=100.0)
    for strip in found[1:]:
        first = opened(strip.scan, "jpeg")[:64, :, 0].astype(int)
        assert first[4].mean() > first[-4].mean() + 100  # index 9 is the head, the bright end


@pytest.mark.parametrize("size", [5, 64])
def test_scans_are_drawn_smoothly_and_keep_their_greys(size):
    image = np.broadcast_to(np.linspace(0, 1, size, dtype=np.float32), (1, size, size))
    drawn = slices._greys(image, 0, [0], 32, 32)[..., 0].astype(int)
    assert (np.diff(drawn[0]) >= 0).all()
    assert drawn[0, 0] < 20 and drawn[0, -1] > 235
    assert slices.jpeg(np.zeros((4, 4, 3), np.uint8))[:2] == b"\xff\xd8"
