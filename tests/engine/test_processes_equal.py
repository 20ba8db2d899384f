"""Several processes compute what one computes: benchmarks/processes.py runs the commands in forked processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "processes.py"
ARMS = ["mae", "glmae", "byol", "pgl", "spark", "anatomask", "finetune", "finetune_joined"]


def measured(tmp_path, arm, *words) -> dict:
    """Runs one arm, in an interpreter of its own: this one has computed, and must not be forked."""
    output = tmp_path / "told.json"
    command = [sys.executable, BENCHMARK, "--arms", arm, "--output", output, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())["arms"][0]


def close(told: dict) -> None:
    """Demands losses within 1e-5 and weights close by."""
    assert told["loss"] < 1e-5, told
    assert told["journal"] < 1e-3, told
    assert told["weights"] < 1e-3, told


def test_two_processes_have_the_losses_of_one(tmp_path):
    told = measured(tmp_path, "mae", "--processes", "2", "--resumed", "", "--steps", "8")
    close(told["processes"]["2"])


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_two_and_four_processes_and_broken_runs_have_the_losses_of_one(tmp_path, arm):
    told = measured(tmp_path, arm)
    assert set(told["processes"]) == {"2", "4"}
    assert set(told["resumed"]) == {"1", "4"}
    for one in (*told["processes"].values(), *told["resumed"].values()):
        close(one)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["byol", "anatomask", "spark"])  # augmentation's compiled loops are float32 alone
def test_in_double_precision_nothing_but_rounding_is_left_under_adamw(tmp_path, arm):
    told = measured(tmp_path, arm, "--processes", "2", "--resumed", "", "--double")
    assert told["processes"]["2"]["loss"] < 1e-10, told


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["mae", "spark", "finetune_joined"])
def test_divided_weights_have_the_losses_of_one_process_and_a_state_that_one_process_reads(tmp_path, arm):
    told = measured(tmp_path, arm, "--processes", "2", "--resumed", "1", "--shard")
    close(told["processes"]["2"])
    close(told["resumed"]["1"])
