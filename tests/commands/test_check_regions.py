"""check: overlapping classes that are not declared, or that no label map can hold, are refused in a sentence."""

from types import SimpleNamespace

import pytest

from voxprior.commands import check
from voxprior.errors import Refusal

NESTED = {"whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}


def resolved(study=(), external=(), **changes):
    own = {"classes": NESTED, "regions": ["whole", "core", "enhancing"], "ignore": []} | changes
    named = {"dataset": "own", "external": ["other"] if external else [], "classes": list(own["classes"])} | dict(study)
    datasets = {"own": SimpleNamespace(**own)}
    if external:
        datasets["other"] = SimpleNamespace(**{"regions": [], "ignore": []} | dict(external))
    return SimpleNamespace(study=SimpleNamespace(**named), datasets=datasets)


def test_nested_classes_a_part_of_them_and_plain_ones_pass():
    check.check_regions(resolved())
    check.check_regions(resolved(study={"classes": ["whole", "enhancing"]}))
    check.check_regions(resolved(classes={"oedema": [1], **NESTED}, study={"classes": ["oedema"]}))
    check.check_regions(resolved(classes={"a": [1], "b": [2, 3]}, regions=[]))
    check.check_regions(
        resolved(external={"classes": {"whole": [1, 2, 3], "core": [2, 3]}, "regions": ["whole", "core"]})
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"regions": ["whole", "tumour"]},
            "own.yaml: regions names tumour, which is no class: choose from whole, core",
        ),
        ({"regions": ["whole", "whole", "core"]}, "own.yaml: a class stands twice in regions"),
        ({"regions": []}, "own.yaml: classes whole and core share the value 2: name both in 'regions'"),
        ({"ignore": [3, 4]}, "own.yaml: value 4 is ignored and belongs to class whole"),
        ({"study": {"classes": ["core", "whole"]}}, "classes must name whole, core in this order"),
        (
            {"regions": ["core", "whole"], "study": {"classes": ["core", "whole"]}},
            "config: classes: class core is covered whole by classes painted after it",
        ),
        (
            {"classes": {"a": [1, 2], "b": [1, 3]}, "regions": ["a", "b"]},
            "values 1 and 3 would both be painted as class b",
        ),
        (
            {"external": {"classes": {"whole": [1], "core": [2]}}},
            "other.yaml: classes whole and core overlap in own and not in other",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(Refusal, match=says) as refused:
        check.check_regions(resolved(**changes))
    assert str(refused.value).count(": ") >= 1


def test_calibration_of_overlapping_classes_is_refused():
    dataset = SimpleNamespace(regions=["whole", "core"])
    study = SimpleNamespace(dataset="own", score=SimpleNamespace(metrics=["dice", "calibration_error"]))
    with pytest.raises(Refusal, match="one probability a voxel, and whole overlaps other classes: leave it out"):
        check.check_metrics(SimpleNamespace(study=study, datasets={"own": dataset}))
    dataset.regions = []
    check.check_metrics(SimpleNamespace(study=study, datasets={"own": dataset}))
