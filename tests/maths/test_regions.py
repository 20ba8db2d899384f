"""Classes that overlap in one label map: what is painted, what belongs to what, and what cannot be painted."""

import itertools

import numpy as np
import pytest

from voxprior.errors import Refusal
from voxprior.maths import regions

BRATS = [[1, 2, 4], [2, 4], [4]]  # whole tumour, core, enhancing; 1 oedema, 2 necrosis


def test_nested_regions():
    assert regions.painted_values(BRATS) == [[1], [2], [4]]
    assert regions.memberships(BRATS) == [[1], [1, 2], [1, 2, 3]]
    assert [regions.union(regions.memberships(BRATS), n) for n in (1, 2, 3)] == [[1, 2, 3], [2, 3], [3]]


def test_classes_that_exclude_one_another_are_a_plain_map():
    assert regions.memberships([[1], [2, 3], []]) == []
    assert regions.union([], 2) == [2]
    regions.demand_paintable("abc", [[1], [2, 3], []], "here")


def test_a_class_of_its_own_beside_nested_ones():
    assert regions.memberships([[7], *BRATS]) == [[1], [2], [2, 3], [2, 3, 4]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([[4], [2, 4], [1, 2, 4]], "class a is covered whole"),
        ([[1, 2], [1, 2]], "class a is covered whole"),
        ([[1, 2], [1, 3]], "values 1 and 3 would both be painted as class b, and only one of them belongs to a"),
    ],
)
def test_what_no_order_can_paint_is_refused(values, says):
    with pytest.raises(Refusal, match=f"^here: .*{says}"):
        regions.demand_paintable("abc"[: len(values)], values, "here")


def test_whatever_is_not_refused_survives_painting():
    """Every set of values for three classes: painted, then read back as unions, each class is what it was."""
    some = [list(c) for n in (1, 2, 3) for c in itertools.combinations((1, 2, 3), n)]
    kept = 0
    for values in itertools.product(some, repeat=3):
        try:
            regions.demand_paintable("abc", values, "here")
        except Refusal:
            continue
        kept += 1
        file_N = np.array([0, 1, 2, 3])
        painted_N = np.zeros(4, int)
        for number, of in enumerate(values, 1):
            painted_N[np.isin(file_N, of)] = number
        overlapping = regions.memberships(values)
        for number, of in enumerate(values, 1):
            union = regions.union(overlapping, number)
            assert np.array_equal(np.isin(painted_N, union), np.isin(file_N, of)), values
    assert kept > 10


def test_cards_of_studies_whose_classes_exclude_one_another_do_not_mention_it():
    from voxprior.cards import FinetuneCard, ScoreCard

    assert "regions" not in ScoreCard(classes=["a"], datasets={}, score={}).model_dump(mode="json")
    card = FinetuneCard(
        init="scratch", backbone="b", family="cnn", architecture={}, recipe={"lr": 1}, classes=["a", "b"], steps=1,
        batch_size=1, crop_vox=(8, 8, 8), foreground=0, precision="fp32", budget=1, fold=0, seed=0,
        prepare={"spacing_zyx_mm": (1, 1, 1), "intensity": {"kind": "window", "low": 0, "high": 1}},
    )  # fmt: skip
    assert "regions" not in card.model_dump(mode="json")
    assert card.outputs == 3
    assert card.model_copy(update={"regions": [[1, 2], [2]]}).outputs == 2
