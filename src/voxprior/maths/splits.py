"""Splits of cases by person, with nested label budgets.

Nobody stands on both sides of a split: cases are grouped by patient and by person. Chance is a hash of the seed and the
group's name, so a split does not depend on the order of the table or on a library's generator, and a new patient does
not reshuffle the others.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from voxprior.errors import Refusal

EVENED = 2000  # cases whose classes are evened out, or more where a budget asks for them: each looks at all others


class Case(NamedTuple):
    """What a split needs to know of a case; `classes` holds the ids present in its labels."""

    case: str
    patient: str
    person: str
    labelled: bool
    classes: frozenset[int]


def split(
    cases: Sequence[Case], test: int, val: int, budgets: Sequence[int], folds: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """Splits cases into folds of test, val, train, budgets and pool, as `docs/formats.md` ("splits") has them.

    Patients with labels are put in a random order; fold k tests on the k-th run of `test` patients, monitors on the
    next `val`, and trains on the rest, so the test sets of different folds are disjoint. Test and val hold labelled
    cases. `pool`, what pretraining may see, is the training patients' cases and unlabelled patients' cases.

    Args:
        cases: all cases of a dataset.
        test, val: numbers of patients (groups of cases that share a patient or a person).
        budgets: numbers of labelled cases; the lists are nested.
        folds: number of folds.
        seed: chooses the order.

    Raises:
        Refusal: too few labelled patients, a budget larger than the training set.
    """
    groups = group(cases)
    by_group: dict[str, list[Case]] = {}
    for case in sorted(cases):
        by_group.setdefault(groups[case.case], []).append(case)
    labelled = [name for name in by_group if any(case.labelled for case in by_group[name])]
    order = sorted(labelled, key=lambda name: _ticket(seed, "patient", name))
    if folds * test > len(order) or test + val >= len(order):
        raise Refusal(
            f"the dataset has {len(order)} labelled patients, too few for {folds} folds of {test} test and {val} "
            "validation patients and at least one to train on: lower 'test', 'val' or 'folds' in the study"
        )
    made = []
    for fold in range(folds):
        turned = order[fold * test :] + order[: fold * test]
        held = {"test": turned[:test], "val": turned[test : test + val]}
        lists = {
            name: [case.case for patient in patients for case in by_group[patient] if case.labelled]
            for name, patients in held.items()
        }
        out = set(turned[: test + val])
        train = [case for name in by_group if name not in out for case in by_group[name]]
        queue = budget_order([case for case in train if case.labelled], seed, max(budgets))
        if max(budgets) > len(queue):
            raise Refusal(
                f"a budget of {max(budgets)} labelled cases is larger than the {len(queue)} cases to train on: lower "
                "'budgets', 'test' or 'val' in the study"
            )
        made.append(
            {
                "fold": fold,
                **lists,
                "train": queue,
                "budgets": {str(budget): queue[:budget] for budget in sorted(set(budgets))},
                "pool": [case.case for case in train],
            }
        )
    return made


def group(cases: Sequence[Case]) -> dict[str, str]:
    """Groups cases that share a patient or a person, directly or through others: case -> name of its group.

    Where one single person stands behind all cases (simulated patients), only the patient counts: there is no honest
    split, and the study says so elsewhere.
    """
    persons = {case.person for case in cases}
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for case in cases:
        patient = find(f"patient {case.patient}")
        if len(persons) > 1:
            person = find(f"person {case.person}")
            first, second = sorted((patient, person))
            leader[second] = first
    return {case.case: find(f"patient {case.patient}") for case in cases}


def budget_order(cases: Sequence[Case], seed: int, largest: int = 0) -> list[str]:
    """Orders labelled cases so that every beginning of the list covers the classes as evenly as it can.

    Each next case is the one that holds most of the classes seen least so far; equals are taken in random order. So the
    smallest budget covers every class if one case can, and where all cases hold all classes the order is random. What
    comes after the first 2,000 cases, or after the `largest` budget, is in random order too.
    """
    drawn = sorted(cases, key=lambda case: _ticket(seed, "budget", case.case))
    known = sorted(set().union(*(case.classes for case in drawn))) if drawn else []
    # Cases that hold the same classes are alike: one queue for each set of classes, and only queues are compared.
    queues: dict[frozenset[int], deque[int]] = {}
    for place, case in enumerate(drawn):
        queues.setdefault(case.classes, deque()).append(place)
    kinds = list(queues)
    holds_SK = np.array([[number in kind for number in known] for kind in kinds], bool).reshape(len(kinds), len(known))
    next_S = np.array([queues[kind][0] for kind in kinds], dtype=int)
    counts_K = np.zeros(len(known), dtype=int)
    order = []
    for _ in drawn[: max(EVENED, largest)]:
        left_S = next_S < len(drawn)
        # A class that nothing left holds must not block the others.
        reachable_K = holds_SK[left_S].any(axis=0)
        fewest = counts_K[reachable_K].min() if reachable_K.any() else 0
        gain_S = np.where(left_S, (holds_SK & reachable_K & (counts_K == fewest)).sum(axis=1), -1)
        most = np.flatnonzero(gain_S == gain_S.max())
        best = int(most[np.argmin(next_S[most])])
        queue = queues[kinds[best]]
        order.append(drawn[queue.popleft()].case)
        next_S[best] = queue[0] if queue else len(drawn)
        counts_K += holds_SK[best]
    return order + [drawn[place].case for place in sorted(place for queue in queues.values() for place in queue)]


def _ticket(seed: int, stream: str, name: str) -> str:
    return hashlib.sha256(f"{seed}/{stream}/{name}".encode()).hexdigest()
