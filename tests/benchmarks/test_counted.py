"""The authors' steps on the meta device: waits of the host, what autocast casts, what is alive, FLOPs."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
META = torch.device("meta")


@pytest.fixture
def counted(monkeypatch):
    """Imports the module as the scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import counted

    return counted


def waits(counted, work, shown=0.25):
    tape = counted.Answers(shown)
    with tape:
        made = work()
    return [operation.name for operation in tape.operations if operation.waits], made


def test_places_numbers_and_copies_make_the_host_wait(counted):
    mask = torch.ones(4, 8, dtype=torch.bool, device=META)
    assert waits(counted, lambda: mask.nonzero().shape) == (["nonzero"], (8, 2))
    assert waits(counted, lambda: mask.nonzero(as_tuple=True)[1].shape) == (["nonzero"], (8,))
    assert waits(counted, lambda: torch.ones((), device=META).item()) == (["item"], 0.0)
    assert waits(counted, lambda: torch.ones(3, device=META, dtype=torch.int64).cpu().tolist()) == (["copy"], [0, 1, 2])
    assert waits(counted, lambda: torch.ones(3).to(META).device)[0] == ["copy"]
    assert waits(counted, lambda: torch.ones(3).to(META, non_blocking=True).device)[0] == []
    assert waits(counted, lambda: torch.ones(3).sum().item())[0] == []


def test_autocast_casts_products_down_and_statistics_up_and_a_weight_once(counted):
    linear, row = nn.Linear(8, 8, device=META), torch.ones(2, 8, device=META)
    with counted.as_on_a_gpu(), torch.autocast("meta", torch.float16) as mode:
        low = linear(row)
        assert (low.dtype, low.softmax(-1).dtype, (low**2).dtype) == (torch.float16, torch.float32, torch.float32)
        linear(row)
        assert len(mode.cast) == 2


def test_a_step_holds_weights_gradients_moments_and_what_its_optimiser_needs(counted):
    import peers

    model = nn.Linear(1000, 1000, bias=False, device=META)
    optimiser = torch.optim.AdamW(model.parameters())
    row = torch.ones(1, 1000, device=META)

    def take():
        loss = model(row).sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12).item()
        optimiser.step()

    tape = counted.note(peers.Step(take, [model], optimiser), 1.0)
    names = [operation.name for operation in tape.operations]
    assert sum(name.startswith("_foreach") for name in names) > 5  # as on a GPU, and not one tensor after the other
    assert sum(operation.waits for operation in tape.operations) == 1
    # weight, gradient, two moments, and the root of the second one
    assert 5 <= tape.peak_bytes / 4e6 < 5.1


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("of", "to", "make", "size"),
    [
        ("mae", "SelfMedMAE", "selfmedmae", 96),
        ("spark", "AnatoMask's SparK", "official_spark", 48),
        ("anatomask", "AnatoMask", "official_anatomask", 48),
    ],
)
def test_the_authors_flops_are_those_that_were_counted_on_a_cpu(counted, of, to, make, size):
    if "VOXPRIOR_PEERS" not in os.environ:
        pytest.skip("VOXPRIOR_PEERS names no folder with the authors' checkouts")
    import peers

    there = Path(os.environ["VOXPRIOR_PEERS"])
    step = getattr(peers, make)(there, peers.Size(META, 2, (size, size, size)))
    shown = round(27 * 0.4) / 27  # of 3 x 3 x 3 mask units
    told = json.loads((ROOT / "docs/results/benchmarks/steps_cpu.json").read_text())["arms"]
    assert counted.flops(counted.note(step, shown)) == pytest.approx(1e9 * told[to]["gflop"], rel=1e-6)
