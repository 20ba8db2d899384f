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
    assert "VOXPRIOR_PEERS" in told["peers"]["mae shipped"]["absent"]
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
