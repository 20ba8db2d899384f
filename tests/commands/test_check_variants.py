"""check: a variant is a method with other numbers under a name that is its own."""

from types import SimpleNamespace

import pytest

from voxprior.commands import check
from voxprior.errors import Refusal
from voxprior.methods import METHODS, load

SLIM = {"decoder_width": 48, "decoder_depth": 1}
MAE = {"crop_vox": [32, 32, 32], "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}


def resolved(methods, inits=("scratch", "mae", "slim"), **variants):
    """Lays a study out as the workflow does: `variants` are the numbers of variants of mae."""
    study = SimpleNamespace(inits={"vit": list(inits)}, files={"mine": None}, methods=methods)
    return SimpleNamespace(study=study, methods={"mae": MAE}, variants={"mae": variants} if variants else {})


def test_a_variant_with_other_numbers_passes_and_has_its_own():
    study = resolved({"mae": {"mask_ratio": 0.6}, "slim": {"method": "mae", "title": "Slim", **SLIM}}, slim=MAE | SLIM)
    check.check_variants(study)
    assert [check.numbers_of(study, init).decoder_width for init in ("mae", "slim")] == [96, 48]


@pytest.mark.parametrize(
    ("methods", "variants", "says"),
    [
        ({"slim": SLIM}, {}, "methods.slim is no method: choose from .*mae.*, or name the one that it varies"),
        ({"slim": {"method": "maee"}}, {}, "methods.slim varies 'maee', which is no method: choose from"),
        ({"slim": {"method": "slimmer"}, "slimmer": {"method": "mae"}}, {}, "varies 'slimmer', which is no method"),
        ({"glmae": {"method": "mae"}}, {"glmae": MAE}, "methods.glmae is a variant and called like another init"),
        ({"mae": {"method": "mae"}}, {}, "methods.mae is a variant and called like another init"),
        ({"scratch": {"method": "mae"}}, {}, "methods.scratch is a variant and called like another init"),
        ({"mine": {"method": "mae"}}, {}, "methods.mine is a variant and called like another init"),
        ({"other": {"method": "mae"}}, {"other": MAE | SLIM}, "methods.other stands in no list of inits"),
        ({"slim": {"method": "mae", "title": 3}}, {"slim": MAE | SLIM}, "methods.slim.title is no text"),
        ({"slim": {"method": "mae"}}, {"slim": MAE}, "methods.slim has the same numbers as mae: change one"),
        ({"slim": {"method": "mae"}}, {"slim": MAE | {"mask_ratio": 0.75}}, "same numbers as mae"),  # the default, said
        ({"slim": {"method": "mae"}}, {"slim": MAE | {"mask_ration": 1}}, "methods.slim: mask_ration: Extra inputs"),
    ],
)
def test_what_is_no_variant_is_refused_in_a_sentence(methods, variants, says):
    with pytest.raises(Refusal, match=says):
        check.check_variants(resolved(methods, **variants))


def test_two_variants_that_are_equal_are_refused():
    both = {name: {"method": "mae", **SLIM} for name in ("slim", "thin")}
    with pytest.raises(Refusal, match=r"methods.thin has the same numbers as slim"):
        check.check_variants(resolved(both, ("mae", "slim", "thin"), slim=MAE | SLIM, thin=MAE | SLIM))


def test_no_method_has_a_number_called_like_the_words_of_a_variant():
    assert not [name for name in METHODS if {"method", "title"} & set(load(name).Config.model_fields)]
