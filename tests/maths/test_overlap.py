"""Overlap: counts against counting by hand, Dice against MONAI, the empty cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxprior.maths import overlap


def random_pair(seed: int, shape: tuple[int, int, int], classes: int, filled: float) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    maps = chance.integers(0, classes + 1, (2, *shape), dtype=np.uint8)
    maps[chance.random((2, *shape)) > filled] = 0
    return maps[0], maps[1]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32), st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 5), st.sampled_from([0.0, 0.02, 0.5, 1])
)
def test_confusion_equals_counting_voxel_by_voxel(seed, shape, classes, filled):
    label, prediction = random_pair(seed, shape, classes, filled)
    expected = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for a, b in zip(label.ravel(), prediction.ravel(), strict=True):
        expected[a, b] += 1
    assert (overlap.confusion(label, prediction, classes) == expected).all()


def test_254_classes_fit():
    label = np.arange(255, dtype=np.uint8).reshape(1, 15, 17)
    counts = overlap.confusion(label, label, 254)
    assert (counts == np.eye(255, dtype=np.int64)).all()


def test_dice_flags_and_volumes_by_hand():
    label = np.zeros((4, 4, 4), np.uint8)
    prediction = label.copy()
    label[0], prediction[0, :2] = 1, 1  # half of class 1 is found
    label[3] = 2  # class 2 is missed
    prediction[2] = 3  # class 3 is invented, class 4 exists nowhere
    counts = overlap.confusion(label, prediction, 4)
    assert overlap.dice(counts)[:3] == pytest.approx([2 * 8 / 24, 0, 0])
    assert np.isnan(overlap.dice(counts)[3])
    assert overlap.flags(counts) == ["", "missed", "invented", "both_empty"]
    in_label, in_prediction = overlap.volumes_ml(counts, 1000.0)
    assert in_label.tolist() == [16, 16, 0, 0]
    assert in_prediction.tolist() == [8, 0, 16, 0]


def test_box_holds_both_maps_and_nothing_more():
    label, prediction = np.zeros((2, 9, 8, 7), np.uint8)
    assert label[overlap.union_box(label, prediction)].size == 0
    label[2, 3, 1], prediction[5, 6, 4] = 1, 200
    assert overlap.union_box(label, prediction) == (slice(2, 6), slice(3, 7), slice(1, 5))


def test_what_does_not_fit_is_an_error():
    small, large = np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 2), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        overlap.confusion(small, large, 1)
    with pytest.raises(ValueError, match="uint8"):
        overlap.confusion(small.astype(np.int16), small, 1)
    with pytest.raises(ValueError, match="above 1"):
        overlap.confusion(small + np.uint8(2), small, 1)


@pytest.mark.oracle
def test_dice_equals_monai():
    import torch
    from monai.metrics import compute_dice
    from torch.nn.functional import one_hot

    for seed in range(50):
        label, prediction = random_pair(seed, (6, 5, 4), 4, [0.02, 0.5][seed % 2])
        onehot = [one_hot(torch.from_numpy(m).long(), 5).movedim(-1, 0)[None] for m in (label, prediction)]
        theirs = compute_dice(onehot[1], onehot[0], include_background=False, ignore_empty=False)[0].numpy()
        counts = overlap.confusion(label, prediction, 4)
        scored = [flag != "both_empty" for flag in overlap.flags(counts)]
        assert overlap.dice(counts)[scored] == pytest.approx(theirs[scored], abs=1e-6)


def test_volume_differences_have_a_sign_and_errors_have_none():
    counts = np.array([[90, 2, 0, 4, 0], [0, 6, 0, 0, 0], [3, 0, 5, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert overlap.volume_differences_ml(counts, 500.0) == pytest.approx([1.0, -1.5, 2.0, np.nan], nan_ok=True)
    assert overlap.volume_errors(counts) == pytest.approx([2 / 7, 3 / 6.5, 2.0, np.nan], nan_ok=True)
