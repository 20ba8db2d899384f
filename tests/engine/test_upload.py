"""Copies on a stream of their own, in an order that is right; and how networks are compiled. Without a GPU."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from voxprior.engine import step
from voxprior.engine.device import Upload


class Fake:
    """A tensor that notes what is done with it."""

    def __init__(self, name, told):
        self.name, self.told = name, told

    def to(self, device, non_blocking=False):
        self.told.append(f"copy {self.name} on {self.told.current}, waits {not non_blocking}")
        return Fake(self.name, self.told)

    def record_stream(self, stream):
        self.told.append(f"keep {self.name} for {stream.name}")


class Told(list):
    current = "computing"


def test_batches_are_copied_beside_and_the_step_waits_for_the_copy_alone(monkeypatch):
    told = Told()

    @contextmanager
    def entered(stream):
        told.current = stream.name
        yield
        told.current = "computing"

    computing = SimpleNamespace(name="computing", wait_stream=lambda other: told.append(f"wait for {other.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(name="copying"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    upload = Upload(torch.device("cuda"))
    keys, batch = upload(Fake("keys", told), {"region": Fake("region", told)})
    assert (keys.name, batch["region"].name) == ("keys", "region")
    assert told == [
        "copy keys on copying, waits False",
        "copy region on copying, waits False",
        "wait for copying",
        "keep keys for computing",
        "keep region for computing",
    ]


def test_on_a_cpu_a_batch_is_handed_through():
    batch = {"region": torch.ones(2)}
    keys, there = Upload(torch.device("cpu"))(torch.arange(2), batch)
    assert there["region"] is batch["region"] and keys.tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["inductor", "graphs"])
def test_graphs_are_inductor_with_cuda_graphs_and_parts_without_weights_may_ask_to_be_compiled(backend, monkeypatch):
    class Plain(nn.Module):
        compiled = True

        def forward(self, value):
            return value + 1

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.change, self.activation = nn.Linear(2, 2), Plain(), nn.ReLU()

    asked = []

    def compiled(function, **how):
        asked.append((function.__code__.co_name, how))
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    step.compile_networks(Whole(), backend)
    how = {"backend": "inductor", "dynamic": False}
    if backend == "graphs":
        how["options"] = {"triton.cudagraphs": True}
    assert asked == [("called_encoder", how), ("called_change", how)]
