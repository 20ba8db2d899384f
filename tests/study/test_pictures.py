"""Pictures of any method: the right plane, and points that lie where they should in every picture."""

import numpy as np
import pytest

from voxprior.study import pictures


def volume(*marked, shape=(1, 16, 20, 20), value=1.0):
    """A dark volume with single bright voxels at (z, y, x)."""
    made = np.zeros(shape, np.float32)
    for z, y, x in marked:
        made[0, z, y, x] = value
    return made


def test_one_column_a_picture_in_the_methods_order():
    stored = {name: np.full((2, 8, 8, 8), grey, np.float32) for name, grey in (("masked_input", 0), ("input", 1))}
    found = pictures.columns({**stored, "valid": np.ones(2, bool)}, side_px=20)
    assert [column.name for column in found] == ["seen by the network", "input"]
    assert found[0].image.shape == (2 * 20 + pictures.GAP_PX, 20, 3)
    assert [int(column.image[10, 10, 0]) for column in found] == [0, 255]
    assert not any(column.marks for column in found)


@pytest.mark.parametrize("stored", [{}, {"input": np.zeros((0, 1, 1, 1), np.float32)}, {"valid": np.ones(3, bool)}])
def test_a_method_without_pictures_has_no_columns(stored):
    assert pictures.columns(stored) == []
    assert pictures.sheet(stored, "nothing") is None


def test_a_long_view_keeps_its_shape():
    (column,) = pictures.columns({"view_a": np.zeros((1, 4, 10, 20), np.float32)}, side_px=40)
    assert column.image.shape == (20, 40, 3)


def test_points_lie_on_the_same_voxel_in_both_views():
    """View b is view a mirrored along X and moved by two planes; the marked voxels must be under the marks."""
    places = [(5, 4, 6), (5, 12, 14), (9, 3, 3)]
    a = volume(*places)
    b = volume(*[(z - 2, y, 19 - x) for z, y, x in places])
    centre = np.array(places, np.float32)[None] + 0.5
    points_b = centre - np.array([2, 0, 0], np.float32)
    points_b[..., 2] = 20 - points_b[..., 2]
    found = pictures.columns(
        {"view_a": a, "view_b": b, "points_view_a": centre, "points_view_b": points_b}, side_px=100
    )
    for column in found:
        assert sorted(mark.number for mark in column.marks) == [1, 2]  # the third lies in another plane
        for mark in column.marks:
            assert column.image[int(mark.down_px), int(mark.right_px), 0] == 255
    number = {(round(m.right_px), round(m.down_px)): m.number for m in found[0].marks}
    for mark in found[1].marks:
        assert number[(100 - round(mark.right_px), round(mark.down_px))] == mark.number


def test_points_that_are_not_valid_in_one_view_are_not_drawn():
    points = np.full((1, 3, 3), 5.5, np.float32)
    points[0, :, 2] = [2, 9, 16]
    lost = points.copy()
    lost[0, 1] = np.nan
    stored = {"view_a": volume(), "view_b": volume(), "points_view_a": points, "points_view_b": lost}
    for column in pictures.columns(stored, side_px=20):
        assert sorted(round(mark.right_px) for mark in column.marks) == [2, 16]
    stored["points_view_b"] = np.full_like(points, np.nan)
    assert not any(column.marks for column in pictures.columns(stored))


def test_a_point_far_from_the_plane_that_is_drawn_is_left_out():
    points_a, points_b = np.full((1, 3, 3), 5.5, np.float32), np.full((1, 3, 3), 5.5, np.float32)
    points_a[0, :, 2] = points_b[0, :, 2] = [2, 9, 16]
    points_b[0, 2, 0] = 12.5
    stored = {"view_a": volume(), "view_b": volume(), "points_view_a": points_a, "points_view_b": points_b}
    first, second = pictures.columns(stored)
    assert len(first.marks) == 3
    assert len(second.marks) == 2


def test_few_points_far_apart_are_shown():
    points = np.stack(np.meshgrid([5.5], np.arange(20) + 0.5, np.arange(20) + 0.5, indexing="ij"), -1).reshape(1, -1, 3)
    (column,) = pictures.columns({"view_a": volume(), "points_view_a": points.astype("f4")}, side_px=20)
    places = np.array([(mark.right_px, mark.down_px) for mark in column.marks])
    assert len(places) == pictures.SHOWN
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 99 * np.eye(len(places))
    assert apart.min() > 8


def test_an_error_is_a_heat_map():
    stored = {
        "input": volume(shape=(1, 4, 4, 4)),
        "teacher_error": np.linspace(0, 1, 64, dtype="f4").reshape(1, 4, 4, 4),
    }
    grey, heat = pictures.columns(stored, side_px=8)
    assert heat.name == "teacher's error"
    assert (grey.image[..., 0] == grey.image[..., 2]).all()
    assert (heat.image[..., 0] != heat.image[..., 2]).any()
    brightness = heat.image.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert brightness[-1, -1] > brightness[0, 0]  # more error is brighter, also without colour


def test_sheet_holds_every_picture():
    stored = {name: np.zeros((3, 8, 8, 8), np.float32) for name in ("input", "masked_input", "reconstruction")}
    stored["points_input"] = np.full((3, 2, 3), 4.5, np.float32)
    figure = pictures.sheet(stored, "MAE3D")
    assert [axes.get_title() for axes in figure.axes] == ["input", "seen by the network", "reconstruction"]
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["1", "2"]
