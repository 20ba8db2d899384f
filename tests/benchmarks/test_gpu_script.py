"""`benchmarks/gpu.py` runs from end to end on a CPU, goes on after a failure, and ends in time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """Imports the script with its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def run(*words):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--size", "tiny", "--no-compile"]
    environment = {name: value for name, value in os.environ.items() if name != "VOXPRIOR_PEERS"}
    return subprocess.run([*command, *words], env=environment, check=False, capture_output=True, text=True)


def test_one_method_is_checked_and_timed(tmp_path):
    output = tmp_path / "cpu.json"
    done = run("--methods", "mae", "--ways", "bf16 eager,bf16 recomputed", "--rounds", "2", "--output", output)
    assert done.returncode == 0, done.stderr
    told = json.loads(output.read_text())
    (arm,) = told["arms"]
    assert arm["check"]["right"] and abs(arm["check"]["bf16"]) < 0.02
    for way in ("bf16 eager", "bf16 recomputed"):
        assert arm["ways"][way]["ms"] > 0 and arm["ways"][way]["flops"] > 0
    assert arm["ways"]["bf16 eager"]["flops"] == arm["ways"]["bf16 recomputed"]["flops"]
    assert "VOXPRIOR_PEERS" in told["peers"]["mae shipped x6"]["absent"]
    assert told["date"] and told["device"]


def test_a_part_that_fails_is_written_down_and_the_rest_goes_on(script):
    told, ends = {}, time.monotonic() + 60

    def broken():
        raise RuntimeError("no such kernel")

    script.alone(told, "first", broken, ends)
    script.alone(told, "second", lambda: {"ms": 1.0}, ends)
    script.alone(told, "third", broken, time.monotonic() - 1)
    assert told == {
        "first": {"absent": "RuntimeError: no such kernel"},
        "second": {"ms": 1.0},
        "third": {"absent": "no time was left for it"},
    }


def test_predicted_and_measured_steps_of_the_authors_have_the_same_names(script, tmp_path, monkeypatch):
    monkeypatch.delenv("VOXPRIOR_PEERS", raising=False)
    made = {"samples": 24, "flops": 1, "H100": {"bf16 compiled": {"ms": 1.0}}}
    monkeypatch.setattr(script, "predict", lambda *given: made)
    script.run_predictions(tmp_path / "told.json", ["mae", "spark"])
    told = json.loads((tmp_path / "told.json").read_text())
    assert set(told["peers"]) == {peer.name for peer in script.peers.ARMS if peer.method in ("mae", "spark")}
    assert all("VOXPRIOR_PEERS" in peer["absent"] for peer in told["peers"].values())


def test_ours_beside_the_authors_is_the_arm_of_as_many_samples_or_is_made(script):
    few, many = (script.peers.Arm("mae", "SelfMedMAE", "shipped", count) for count in (6, 24))
    told = {"arms": [{"method": "mae", "backbone": "vit_base", "family": "vit", "samples": 24, "ms": 5.0}]}
    assert script.beside(many, told, lambda backbone: {}) == {"samples": 24, "ms": 5.0}
    assert script.beside(few, told, lambda backbone: {"made for": backbone.name}) == {"made for": "vit_base"}
    told["arms"][0] = {"method": "mae", "ways": {"bf16 compiled": {"samples": 24, "ms": 4.0}}}
    assert script.beside(many, told, lambda backbone: {}) == {"samples": 24, "ms": 4.0}
