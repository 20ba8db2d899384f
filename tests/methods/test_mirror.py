"""The crop as a method sees it, whichever way it is made."""

import pytest
import torch

from voxprior.methods.mirror import Mirror


@pytest.mark.parametrize("channels", [1, 2])
def test_volumes_are_scaled_and_mirrored_as_their_rows_say(channels, monkeypatch):
    torch.manual_seed(0)
    region = torch.randint(0, 4096, (3, channels, 4, 6, 5), dtype=torch.int16)
    quantum = torch.tensor([1e-3, 2e-3, 5e-4])
    flipped = torch.tensor([[True, False, False], [False, True, True], [False, False, False]])
    seen = Mirror()(region, quantum, flipped)
    assert seen.dtype == torch.float32
    expected = [(region[0] * 1e-3).flip(1), (region[1] * 2e-3).flip(2, 3), region[2] * 5e-4]
    torch.testing.assert_close(seen, torch.stack(expected))
    # What a GPU, and a compiler, are given: each voxel chosen from both ways.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(Mirror()(region, quantum, flipped), seen)


def test_it_holds_nothing_and_asks_to_be_compiled():
    mirror = Mirror()
    assert mirror.compiled
    assert not mirror.state_dict()
