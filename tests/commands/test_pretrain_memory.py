"""Blocks are computed twice where a step would not fit the GPU, and nowhere else."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from voxprior.commands import pretrain
from voxprior.commands.cost import _named

GIB = 2**30


@pytest.mark.parametrize(
    ("device", "room", "short"), [("cuda", 1 * GIB // 64, True), ("cuda", 80 * GIB, False), ("cpu", 1, False)]
)
def test_memory_decides_about_recomputing(device, room, short, monkeypatch, capsys):
    card, where = _named("mae", "vit_tiny", "tiny")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=room))
    assert pretrain._short_of_memory(card, Path(where), SimpleNamespace(type=device)) is short
    assert ("computed again" in capsys.readouterr().err) is short
