"""How a run is computed is asked for, or chosen by a counted step; what cannot be is one sentence."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from voxprior.engine import device as devices
from voxprior.engine import ways
from voxprior.engine.estimate import Cost
from voxprior.engine.step import GRAPHS
from voxprior.errors import Refusal

GIB = 2**30
NO_COST = Cost(**dict.fromkeys((field.name for field in fields(Cost)), 0))
LONG, TINY = replace(NO_COST, flops=6 * 10**12, kernels=1500), replace(NO_COST, flops=10**9, kernels=1500)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Pretends an H100 with a compiler; no test launches anything."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB, name="H100")
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(ways, "can_compile", lambda device: True)


def chosen(compiled="auto", cost=LONG, steps=25_000, where=CUDA):
    return ways.choose(ways.asked_of(ways.Asked(where.type, compiled)), where, "bf16", steps, lambda: cost)


@pytest.mark.parametrize(("gib", "short"), [(60, False), (73, True), (400, True)])
def test_memory_decides_about_recomputing(gib, short, capsys):
    assert chosen(cost=replace(LONG, saved_bytes=gib * GIB))["recompute"] is short
    assert ("computed again" in capsys.readouterr().err) is short


@pytest.mark.parametrize(
    ("compiled", "compiler"), [("auto", "inductor"), ("on", "inductor"), ("off", None), ("graphs", GRAPHS)]
)
def test_a_long_step_is_compiled_unless_something_else_is_asked_for(compiled, compiler):
    assert chosen(compiled) == {"compiler": compiler, "recompute": False}


def test_a_step_bound_by_launches_is_replayed_as_graphs_and_says_so(capsys):
    assert chosen(cost=TINY)["compiler"] == GRAPHS
    assert "CUDA graphs" in capsys.readouterr().err
    assert chosen("on", TINY)["compiler"] == "inductor"


def test_a_run_too_short_for_the_compiler_is_not_compiled_unless_asked_for(capsys):
    assert chosen(cost=TINY, steps=300)["compiler"] is None
    assert "not compiled: it would save about 4 s" in capsys.readouterr().err
    assert chosen("on", TINY, steps=300)["compiler"] == "inductor"


def test_an_unknown_gpu_is_compiled_for_and_one_without_a_compiler_is_not(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert chosen(cost=TINY)["compiler"] == "inductor"
    monkeypatch.setattr(ways, "can_compile", lambda device: False)
    assert chosen()["compiler"] is None
    assert "needs Triton" in capsys.readouterr().err


def test_several_processes_and_short_memory_do_without_graphs(monkeypatch):
    full = replace(TINY, saved_bytes=79 * GIB)
    assert chosen(cost=full) == {"compiler": "inductor", "recompute": True}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert chosen(cost=TINY)["compiler"] == "inductor"
    with pytest.raises(Refusal, match="for one process"):
        chosen("graphs")


def test_on_a_cpu_nothing_is_counted_and_graphs_are_refused():
    def count():
        raise AssertionError("counted")

    told = {word: ways.choose(ways.Asked("cpu", word), CPU, "fp32", 10, count) for word in ("auto", "off", "on")}
    assert [told[word]["compiler"] for word in ("auto", "off", "on")] == [None, None, "inductor"]
    assert not any(one["recompute"] for one in told.values())
    with pytest.raises(Refusal, match="is for GPUs and the device is cpu"):
        ways.choose(ways.Asked("cpu", "graphs"), CPU, "fp32", 10, count)


def test_a_word_that_is_not_known_is_refused():
    with pytest.raises(Refusal, match="--compile fast is not known: choose auto, off, on, graphs"):
        ways.asked_of(ways.Asked("cpu", "fast"))
    assert ways.asked_of("cuda:1") == ("cuda:1", "auto")


def test_the_estimates_order_as_the_predicted_steps_do():
    """`benchmarks/roofline.py` predicts kernel by kernel; the rule must agree where one side is far ahead."""
    import json
    from pathlib import Path

    predicted = Path(__file__).parents[2] / "docs/results/benchmarks/gpu_predicted.json"
    arms = json.loads(predicted.read_text())["arms"]
    peak = devices._PEAK_TFLOPS["H100"][0] * 1e12
    for arm in arms:
        cost = replace(NO_COST, flops=arm["flops"], kernels=arm["bf16 eager"]["kernels"])
        told = arm["H100"]["bf16 compiled"]
        assert 0.4 < 1000 * ways.computing_s(cost, peak) / told["ms"] < 1.5, arm["method"]
        assert 0.7 < 1000 * ways.launching_s(cost) / told["launch_ms"] < 1.8, arm["method"]
        assert ways.launching_s(cost) < ways.computing_s(cost, peak)  # none of them is bound by launches


@pytest.mark.parametrize(
    ("precision", "wrong", "warns"), [("bf16", True, True), ("bf16", False, False), ("fp32", True, False)]
)
def test_a_torch_that_gets_small_convolutions_wrong_is_warned_of(precision, wrong, warns, monkeypatch, capsys):
    monkeypatch.setattr(ways, "small_convolutions_err", lambda where: wrong)
    ways.choose(ways.asked_of("cpu"), CPU, precision, 10, lambda: NO_COST)
    assert ("use fp32 for CNNs" in capsys.readouterr().err) is warns


@pytest.mark.parametrize(("factor", "wrong"), [(1, False), (2, True)])
def test_small_convolutions_are_held_against_what_their_taps_see(factor, wrong, monkeypatch):
    exact = torch.nn.functional.conv3d

    def convolve(volume, weight, padding):
        return exact(volume.float(), factor * weight.float(), padding=padding)

    monkeypatch.setattr(torch.nn.functional, "conv3d", convolve)
    assert devices.small_convolutions_err(CPU) is wrong
    assert not devices.small_convolutions_err(CUDA), "of CPUs alone"
