"""Surfaces: geometry a child can check, brute force, MONAI, and the empty cases."""

import inspect
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxprior.maths import areas, surfaces

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (5.0, 0.7, 0.35), (0.3, 3.0, 1.7)]


def blobs(seed: int, shape: tuple[int, int, int], classes: int, filled: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes two label maps that agree in most voxels, as predictions do; at low `filled` classes are often empty."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, classes + 1, [(n + 2) // 3 for n in shape], dtype=np.uint8)
    coarse[chance.random(coarse.shape) > filled] = 0
    label = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(slice(n) for n in shape)].copy()
    prediction = label.copy()
    changed = chance.random(shape) < 0.1
    prediction[changed] = chance.integers(0, classes + 1, int(changed.sum()), dtype=np.uint8)
    if filled < 0.2 and seed % 2:
        prediction[:] = 0
    return label, prediction


def brute_force(label, prediction, class_id, spacing, tolerance):
    """Computes NSD, HD95 and ASSD from the definition, voxel by voxel."""
    points = []
    for one in (label == class_id, prediction == class_id):
        padded = np.pad(one, 1)
        edge = []
        for z, y, x in np.argwhere(padded):
            faces = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
            if not all(padded[z + a, y + b, x + c] for a, b, c in faces):
                edge.append((z * spacing[0], y * spacing[1], x * spacing[2]))
        points.append(np.array(edge).reshape(-1, 3))
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    met = (there <= tolerance + 1e-6).sum() + (back <= tolerance + 1e-6).sum()
    hd95_mm = max(np.percentile(there, 95), np.percentile(back, 95))
    return met / (there.size + back.size), hd95_mm, np.concatenate([there, back]).mean()


def cubes(shift: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((24, 24, 24), np.uint8)
    label[6:14, 6:14, 6:14] = 1
    return label, np.roll(label, shift, (0, 1, 2))


def test_a_cube_shifted_by_3_voxels_of_1_5_mm_is_4_5_mm_away():
    hd95_mm = surfaces.surface_scores(*cubes((3, 0, 0)), 1, (1.5, 1.5, 1.5), 2.0).hd95_mm
    assert hd95_mm == pytest.approx([4.5])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_belongs_to_its_axis(axis):
    shift = tuple(2 if i == axis else 0 for i in range(3))
    spacing = (2.5, 0.8, 0.4)
    hd95_mm = surfaces.surface_scores(*cubes(shift), 1, spacing, 2.0).hd95_mm
    assert hd95_mm == pytest.approx([2 * spacing[axis]])


def test_tolerance_counts_up_to_and_including():
    label, prediction = np.zeros((2, 3, 3, 12), np.uint8)
    label[1, 1, 2], prediction[1, 1, 5] = 1, 1
    # 3 * 0.7 is 2.0999999999999996 and 5 * 0.7 - 2 * 0.7 is 2.1: rounding must not decide
    assert surfaces.surface_scores(label, prediction, 1, (1, 1, 0.7), 2.1)[0].tolist() == [1.0]
    assert surfaces.surface_scores(label, prediction, 1, (1, 1, 0.7), 2.09)[0].tolist() == [0.0]


def test_image_border_is_a_surface():
    full = np.ones((4, 4, 4), np.uint8)
    assert surfaces.edge_voxels(full).sum() == 4**3 - 2**3


def test_empty_policy():
    label, prediction = np.zeros((2, 4, 5, 6), np.uint8)
    label[1, 1, 1], prediction[2, 2, 2] = 1, 2
    nsd, hd95_mm, assd_mm = surfaces.surface_scores(label, prediction, 3, (2.0, 1.0, 0.5), 2.0)
    diagonal = np.sqrt(8**2 + 5**2 + 3**2)
    assert nsd[:2].tolist() == [0, 0]
    assert hd95_mm[:2] == pytest.approx([diagonal, diagonal])
    assert assd_mm[:2] == pytest.approx([diagonal, diagonal])
    assert np.isnan([nsd[2], hd95_mm[2], assd_mm[2]]).all()
    nothing = np.zeros((3, 3, 3), np.uint8)
    assert np.isnan(surfaces.surface_scores(nothing, nothing, 2, (1, 1, 1), 1.0)).all()


def test_spacing_cannot_be_left_out():
    spacing = inspect.signature(surfaces.surface_scores).parameters["spacing_zyx_mm"]
    assert spacing.default is inspect.Parameter.empty
    for bad in [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)]:
        with pytest.raises(ValueError, match="spacing"):
            surfaces.surface_scores(*cubes((1, 0, 0)), 1, bad, 2.0)
    with pytest.raises(ValueError, match="shape"):
        surfaces.surface_scores(np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 2), np.uint8), 1, (1, 1, 1), 2.0)


SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.sampled_from(SPACINGS), st.sampled_from([0.5, 1.0, 2.5]))
def test_scores_equal_the_definition(seed, shape, spacing, tolerance):
    label, prediction = blobs(seed, shape, 2, 0.6)
    found = surfaces.surface_scores(label, prediction, 2, spacing, tolerance)
    for class_id in (1, 2):
        if (label == class_id).any() and (prediction == class_id).any():
            expected = brute_force(label, prediction, class_id, spacing, tolerance)
            assert [score[class_id - 1] for score in found] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.sampled_from(SPACINGS))
def test_scores_do_not_care_who_is_who_nor_about_empty_space(seed, shape, spacing):
    label, prediction = blobs(seed, shape, 2, 0.6)
    one = surfaces.surface_scores(label, prediction, 2, spacing, 1.0)
    assert np.array_equal(one, surfaces.surface_scores(prediction, label, 2, spacing, 1.0), equal_nan=True)
    padded = surfaces.surface_scores(np.pad(label, 4), np.pad(prediction, 4), 2, spacing, 1.0)
    for k, class_id in itertools.product((0, 1, 2), (1, 2)):
        if (label == class_id).any() and (prediction == class_id).any():
            assert padded[k][class_id - 1] == pytest.approx(one[k][class_id - 1], abs=1e-6)


@pytest.mark.oracle
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.sampled_from(SPACINGS), st.sampled_from([0.1, 0.6]))
def test_scores_equal_monai(seed, shape, spacing, filled):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area
    from torch.nn.functional import one_hot

    label, prediction = blobs(seed, shape, 2, filled)
    nsd, hd95_mm, assd_mm = surfaces.surface_scores(label, prediction, 2, spacing, 1.6)
    table = create_table_neighbour_code_to_surface_area(spacing)[0].numpy().astype(float)
    nsd_area = areas.area_weighted_nsd(label, prediction, 2, spacing, 1.6, table)
    y, p = (one_hot(torch.from_numpy(m).long(), 3).movedim(-1, 0)[None] for m in (label, prediction))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95_theirs = compute_hausdorff_distance(p, y, percentile=95, spacing=spacing)[0].numpy()
        assd_theirs = compute_average_surface_distance(p, y, symmetric=True, spacing=spacing)[0].numpy()
        nsd_theirs = compute_surface_dice(p, y, [1.6, 1.6], spacing=spacing)[0].numpy()
        area_theirs = compute_surface_dice(p, y, [1.6, 1.6], spacing=spacing, use_subvoxels=True)[0].numpy()
    for k, class_id in enumerate((1, 2)):
        present = (label == class_id).any(), (prediction == class_id).any()
        if all(present):
            assert hd95_mm[k] == pytest.approx(hd95_theirs[k], abs=1e-3)
            assert assd_mm[k] == pytest.approx(assd_theirs[k], abs=1e-3)
            assert nsd_area[k] == pytest.approx(area_theirs[k], abs=1e-5)
        if any(present):
            assert nsd[k] == pytest.approx(nsd_theirs[k], abs=1e-6)
        else:
            assert np.isnan(nsd[k])
            assert np.isnan(hd95_mm[k])
