"""F1 of lesions: pieces counted by hand, one-to-one matching, empty maps, and panoptica where it is installed."""

import numpy as np
import pytest

from voxprior.maths.lesions import lesion_f1


def boxes(*corners: tuple[int, int]) -> np.ndarray:
    """Draws a bar for each (first, last) column."""
    map_ZYX = np.zeros((4, 4, 40), np.uint8)
    for first, last in corners:
        map_ZYX[1:3, 1:3, first:last] = 1
    return map_ZYX


def f1(label: np.ndarray, prediction: np.ndarray, least_iou: float = 0.1) -> float:
    return float(lesion_f1(label, prediction, 1, least_iou)[0])


def test_found_missed_and_invented_pieces_count():
    assert f1(boxes((0, 4), (10, 14)), boxes((0, 4), (10, 14))) == 1
    assert f1(boxes((0, 4), (10, 14)), boxes((0, 4))) == pytest.approx(2 / 3)
    assert f1(boxes((0, 4)), boxes((0, 4), (10, 14), (20, 24))) == pytest.approx(2 / 4)
    assert f1(boxes((0, 10)), boxes((9, 12))) == 0  # one of twelve columns is less than a tenth
    assert f1(boxes((0, 10)), boxes((9, 12)), 0.05) == 1


def test_a_piece_is_matched_once():
    assert f1(boxes((0, 20)), boxes((0, 9), (11, 20))) == pytest.approx(2 / 3)
    assert f1(boxes((0, 9), (11, 20)), boxes((0, 20))) == pytest.approx(2 / 3)


def test_corners_hold_together():
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = 1
    assert f1(label, label) == 1
    halves = label.copy()
    halves[1, 1, 1] = 0
    assert f1(label, halves) == 1


def test_empty_policy():
    label, prediction = np.zeros((2, 3, 3, 3), np.uint8)
    label[0, 0, 0], prediction[1, 1, 1] = 1, 2
    found = lesion_f1(label, prediction, 3, 0.1)
    assert found[:2].tolist() == [0, 0]
    assert np.isnan(found[2])


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(20))
def test_f1_is_panopticas(seed):
    panoptica = pytest.importorskip("panoptica")
    chance = np.random.default_rng(seed)
    label = (chance.random((12, 12, 12)) < 0.06).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    prediction = np.where(chance.random(label.shape) < 0.2, 0, np.roll(label, seed % 2, 2)).astype(np.uint8)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.1),
    )
    theirs = evaluator.evaluate(prediction, label, verbose=False)["ungrouped"]
    assert f1(label, prediction) == pytest.approx(theirs.rq)
