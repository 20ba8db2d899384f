"""Energy of a GPU by its counter: joules of all parts of a run; nothing where nothing is counted."""

import sys
from types import SimpleNamespace

import pytest
import torch

from voxprior.engine.energy import Meter

GPU = torch.device("cuda", 0)


@pytest.fixture
def nvml(monkeypatch):
    """Stands in for NVML: a counter in mJ that goes up by 2000 with each reading, and can fail."""

    class Failed(Exception):
        pass

    counter = SimpleNamespace(NVMLError=Failed, at=5000, fails=False)

    def total(handle):
        assert handle == "the GPU abc"
        if counter.fails:
            raise Failed
        counter.at += 2000
        return counter.at

    counter.nvmlInit = lambda: None
    counter.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-abc": "the GPU abc"}[uuid]
    counter.nvmlDeviceGetTotalEnergyConsumption = total
    monkeypatch.setitem(sys.modules, "pynvml", counter)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return counter


def test_joules_of_all_parts_add_up(nvml):
    first = Meter(GPU)
    assert first.joules() == 2.0
    assert Meter(GPU, first.joules()).joules() == 4.0 + 2.0


def test_a_part_that_was_not_measured_leaves_the_whole_unknown(nvml):
    assert Meter(GPU, None).joules() is None


def test_a_counter_that_fails_ends_nothing(nvml):
    meter = Meter(GPU)
    nvml.fails = True
    assert meter.joules() is None
    assert Meter(GPU).joules() is None


def test_nothing_is_known_of_a_processor_or_without_nvml(monkeypatch):
    assert Meter(torch.device("cpu")).joules() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(GPU).joules() is None
