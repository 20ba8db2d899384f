import numpy as np
import pytest

from voxprior.data import familiar, phantoms, volume

CT = {"all": {"p0.5": -1020.0, "p99.5": 1400.0}}
CHANCE = np.random.default_rng(0)
BODY = np.concatenate([np.full(5000, -1000.0), CHANCE.normal(40, 100, 5000), CHANCE.normal(700, 300, 300)])


@pytest.mark.parametrize(
    ("values", "training", "modality", "far"),
    [
        (BODY, CT, "ct", False),
        (BODY[BODY > -200], CT, "ct", False),  # a field of view without air
        (BODY + 1024, CT, "ct", True),
        (np.abs(CHANCE.normal(200, 80, 5000)), CT, "ct", True),  # MR
        (BODY / 1000, CT, "ct", True),
        (CHANCE.normal(300, 100, 5000), {"all": {"p0.5": 0.0, "p99.5": 900.0}}, "mr", False),
        (CHANCE.normal(900, 300, 5000), {"all": {"p0.5": 0.0, "p99.5": 900.0}}, "mr", False),  # another scanner
        (CHANCE.uniform(0, 1, 5000), {"all": {"p0.5": 0.0, "p99.5": 900.0}}, "mr", True),
        (BODY, {}, "ct", False),  # nothing is known
    ],
)
def test_far_from_training(values, training, modality, far):
    assert familiar.is_far(values, training, modality) is far


def test_the_modality_that_a_file_states(tmp_path):
    voxels, _ = phantoms.make(1)
    folder = phantoms.write_series(tmp_path / "ct", volume.from_array(voxels, phantoms.grid_of(voxels.shape)))
    first = next(folder.iterdir())
    assert familiar.other_modality(first, "ct") is None
    assert familiar.other_modality(first, "mr") == "CT"


def test_a_ct_is_far_from_what_a_model_of_mr_knows():
    """No MR goes below -200, however its numbers are scaled."""
    mr = {"all": {"p0.5": 0.0, "p99.5": 900.0}}
    ct = np.linspace(-1000, 1500, 200)
    assert familiar.is_far(ct, mr, "mr")
    assert not familiar.is_far(np.linspace(0, 2000, 200), mr, "mr")
    standardised = {"all": {"p0.5": -300.0, "p99.5": 900.0}}  # whose own training scans go below too
    assert not familiar.is_far(ct, standardised, "mr")
