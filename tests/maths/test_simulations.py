"""How often intervals, tests and verdicts are right on simulated studies; `benchmarks/simulations.py` draws them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulations():
    """Loads the script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("simulations", ROOT / "benchmarks" / "simulations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulations"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulations"]


@pytest.mark.parametrize("world", [0, 1])
def test_few_runs_are_roughly_right(simulations, world):
    world = simulations.WORLDS[world]
    found = simulations.intervals(world, 100)
    assert 0.88 <= found["mean"] <= 1
    assert 0.88 <= found["difference"] <= 1
    assert simulations.tests(world, 150)["ours"] <= 0.1
    assert simulations.families(world, 60)["Holm"] <= 0.15


def test_a_test_that_ignores_seeds_is_seen_to_fail(simulations):
    found = simulations.tests(simulations.WORLDS[2], 80)
    assert found["sign flips of patients alone"] > 0.15
    assert simulations.intervals(simulations.WORLDS[2], 60)["difference, BCa"] < 0.88


def test_claims_are_about_as_often_false_as_they_say(simulations):
    found = simulations.claims(simulations.WORLDS[1], 200)
    assert found["false, all"] == pytest.approx(found["stated, all"], abs=0.06)
    verdicts = simulations.verdicts(simulations.WORLDS[0], 60)
    assert verdicts["equal: better or worse"] <= 0.1
    assert verdicts["a margin apart: equivalent"] <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("world", [0, 1, 2, 3])
def test_intervals_cover_93_to_97_and_tests_reject_4_to_6_per_cent(simulations, world):
    world = simulations.WORLDS[world]
    found = simulations.intervals(world, 2000)
    assert 0.93 <= found["mean"] <= 0.97
    assert 0.93 <= found["difference"] <= 0.97
    assert 0.035 <= simulations.tests(world, 2000)["ours"] <= 0.065  # 4 to 6 %, and what chance does to 2,000 runs


@pytest.mark.slow
@pytest.mark.parametrize("world", [0, 1])
def test_families_are_wrong_in_at_most_6_per_cent(simulations, world):
    assert simulations.families(simulations.WORLDS[world], 2000)["Holm"] <= 0.06


def test_what_is_published_meets_the_goals():
    told = json.loads((ROOT / "docs/results/simulations.json").read_text())
    assert told["runs"] >= 500
    for result in told["results"]:
        world, found = result["world"], result["found"]
        if world["seeds"] == 2 or world["patients"] < 20:
            continue
        if result["kind"] == "intervals":
            assert 0.93 <= found["difference"] <= 0.975, world["name"]
        if result["kind"] == "tests":
            assert 0.03 <= found["ours"] <= 0.065, world["name"]
        if result["kind"] == "families":
            assert found["Holm"] <= 0.065, world["name"]
