import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from voxprior.errors import Refusal
from voxprior.segment import infer, readout


def test_windows_cover_the_axis_and_the_last_is_snapped():
    assert infer.window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert infer.window_starts(11, 4, 0.5) == [0, 2, 4, 6, 7]
    assert infer.window_starts(4, 4, 0.5) == infer.window_starts(3, 4, 0.5) == [0]
    assert infer.window_starts(9, 4, 0.9) == list(range(6))


def test_a_network_that_looks_at_one_voxel_gives_that_voxels_class():
    """Whatever the windows, weights cancel out."""
    volume = np.random.default_rng(0).integers(0, 1000, (17, 9, 23)).astype(np.int16)

    def network(window):
        assert window.dtype == torch.float32
        assert window.shape[1:] == (1, 6, 8, 10)
        assert window.max() <= 1
        third = torch.full_like(window, 0.5)
        return torch.cat([0.9 - window, window, third], 1)

    value = volume * 0.001
    expected = np.argmax(np.stack([0.9 - value, value, np.full_like(value, 0.5)]), 0)
    labels = infer.segment_volume(network, volume, 0.001, (6, 8, 10))
    clear = np.abs(value - 0.5) > 1e-3
    clear &= np.abs(value - 0.4) > 1e-3
    assert labels.dtype == np.uint8
    assert labels.shape == volume.shape
    assert (labels == expected)[clear].all()


@pytest.mark.parametrize("shape", [(5, 20, 3), (1, 1, 1), (6, 8, 10), (40, 4, 4)])
def test_any_shape(shape):
    volume = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7
    labels = infer.segment_volume(lambda w: torch.cat([3 - w, w - 3], 1), volume, 1.0, (6, 8, 10), overlap=0.25)
    assert np.array_equal(labels, volume > 3)


def test_the_centre_of_a_window_counts_more():
    weights = infer.gaussian_weights((5, 7, 9))
    assert weights.argmax() == weights.numel() // 2
    assert weights.max() == 1
    assert weights.min() == pytest.approx(1e-3)
    assert torch.equal(weights, weights.flip(0, 1, 2))


def test_memory_never_holds_the_logits_of_the_whole_volume(monkeypatch):
    sizes = []
    zeros = torch.zeros
    monkeypatch.setattr(infer.torch, "zeros", lambda *s, **k: sizes.append(s) or zeros(*s, **k))
    infer.segment_volume(lambda w: w.expand(-1, 5, -1, -1, -1), np.zeros((90, 12, 12), np.int16), 1.0, (8, 8, 8))
    assert sizes == [(5 * 8 * 12 * 12,), (0,)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 2])
def test_output_that_is_not_finite_is_refused(bad, where):
    def network(window):
        logits = window.repeat(1, 3, 1, 1, 1)
        logits[0, where, 1, 1, 1] = bad
        return logits

    with pytest.raises(Refusal, match="not finite"):
        infer.segment_volume(network, np.ones((4, 4, 4), np.int16), 1.0, (4, 4, 4))


def test_bf16_windows_are_added_in_float32():
    network = nn.Conv3d(1, 2, 1)
    labels = infer.segment_volume(
        network, np.ones((6, 6, 6), np.int16), 1.0, (4, 4, 4), precision=torch.autocast("cpu", torch.bfloat16)
    )
    assert len(np.unique(labels)) == 1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(33, 21, 40), (10, 30, 9)])
def test_labels_equal_monais_on_the_same_windows(shape, overlap):
    from monai import inferers

    torch.manual_seed(0)
    # Zero padding inside the window makes overlapping windows disagree, so that weights and grid matter.
    network = nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, 6, 5, padding=2))
    volume = (np.random.default_rng(1).random(shape) * 1000).astype(np.int16)
    ours = infer.segment_volume(network, volume, 0.001, (12, 10, 16), overlap)
    with torch.no_grad():
        logits = inferers.sliding_window_inference(
            torch.from_numpy(volume)[None, None].float() * 0.001, (12, 10, 16), 1, network, overlap, mode="gaussian"
        )[0]
    best = logits.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(ours[clear], logits.argmax(0).numpy()[clear])


def test_windows_are_never_alone_on_the_cpu_and_labels_are_those_of_a_direct_call():
    """One window in all, and five of which the first, which tells the number of classes, comes alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv3d(8, 4, 3, padding=1)).eval()
    sizes = []

    def watched(windows):
        sizes.append(len(windows))
        return network(windows)

    for windows in (1, 5):
        volume = (np.random.default_rng(windows).random((8, 8, 8 * windows)) * 1000).astype(np.int16)
        labels = infer.segment_volume(watched, volume, 0.001, (8, 8, 8), overlap=0.0)
        with torch.no_grad():
            parts = torch.from_numpy(volume).float().mul(0.001).split(8, dim=2)
            logits = torch.cat([network(part[None, None])[0] for part in parts], dim=3)
        best = logits.topk(2, dim=0).values
        clear = (best[0] - best[1] > 1e-5).numpy()
        assert clear.mean() > 0.99
        assert np.array_equal(labels[clear], logits.argmax(0).numpy()[clear])
        assert len(np.unique(labels)) > 1
    assert sizes == [2, 2, 4]


def network_of(classes):
    """A network of which overlapping windows disagree: its zero padding lies inside the volume."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, classes, 5, padding=2))


@pytest.mark.parametrize("shape", [(33, 21, 40), (50, 26, 24), (9, 47, 41)])
def test_bands_take_the_memory_that_they_may_and_change_no_label(shape, monkeypatch):
    volume = (np.random.default_rng(1).random(shape) * 1000).astype(np.int16)
    window, network = (12, 10, 8), network_of(6)
    whole = infer.segment_volume(network, volume, 0.001, window)
    sizes, zeros = [], torch.zeros
    monkeypatch.setattr(infer.torch, "zeros", lambda *s, **k: sizes.append(4 * int(np.prod(s))) or zeros(*s, **k))
    ring = 4 * 6 * min(np.prod(np.maximum(shape, window)) * w / max(n, w) for n, w in zip(shape, window, strict=True))
    for share in (2, 3, 5):
        sizes.clear()
        banded = infer.segment_volume(network, volume, 0.001, window, most_bytes=int(ring / share))
        assert np.array_equal(banded, whole)
        assert (
            len(
                infer.bands(
                    tuple(np.maximum(shape, window).tolist()), infer.Tiling(window, most_bytes=int(ring / share)), 6
                )
            )
            >= share
        )
        assert len(sizes) == 2  # one memory for all bands, and none for weights
        assert 0 < max(sizes) <= ring / share


def test_each_voxel_comes_once_and_divided_sums_are_means():
    """A network that gives the same logits wherever its window lies: their weighted mean is the same again."""
    volume, _ = infer.pad((np.random.default_rng(2).random((30, 17, 22)) * 1000).astype(np.int16), (8, 8, 8))
    seen = torch.zeros(30, 17, 22)
    tiling = infer.Tiling((8, 8, 8), most_bytes=20_000)
    network = lambda windows: torch.cat([windows, 1 - windows], 1)  # noqa: E731
    pieces = infer.finished(network, volume, 0.001, tiling, torch.device("cpu"), nullcontext(), divide=True)
    for place, logits in pieces:
        seen[place] += 1
        torch.testing.assert_close(logits[0], volume[0][place].float() * 0.001)
        torch.testing.assert_close(logits[1], 1 - volume[0][place].float() * 0.001)
    assert (seen == 1).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_windows_are_added_by_torch_as_by_the_compiled_loop(axis):
    """Across the place where the ring closes, and over each edge of the band; torch's way is the one on a GPU."""
    lo, hi = ((0, 5, 3), (40, 17, 21)) if axis == 0 else ((5, 0, 3), (17, 40, 21))
    rings = [infer._Ring(3, infer.Band(axis, lo, hi), 8, torch.zeros(3 * 40 * 40 * 40)) for _ in range(2)]
    rings[1].compiled = False
    weights = infer.gaussian_weights((8, 8, 8))
    for number, along in enumerate((0, 4, 8, 13)):
        for beside in (2, 7, 13):
            z, y = (along, beside) if axis == 0 else (beside, along)
            logits = torch.randn(3, 3, 8, 8, 8, generator=torch.Generator().manual_seed(number))
            for ring in rings:
                ring.add([(z, y, 0), (z, y, 6), (z, y, 17)], logits, weights)
    assert rings[0].sums_CZYX.abs().sum() > 0
    torch.testing.assert_close(rings[0].sums_CZYX, rings[1].sums_CZYX)


def test_the_largest_of_a_part_of_an_array_the_first_of_equals():
    logits = torch.randint(0, 4, (9, 12, 11, 10), generator=torch.Generator().manual_seed(0)).float()
    for part in (logits, logits[:, 3:7], logits[:, :, 2:9], logits[2:, :, :, 1:6], logits[:1]):
        assert np.array_equal(readout.argmax(part), part.numpy().argmax(0))
    logits[4] = -torch.inf  # a class that is ruled out is no error
    assert np.array_equal(readout.argmax(logits), logits.numpy().argmax(0))


def test_inference_does_not_import_monai():
    code = "import sys, voxprior.segment.infer; print('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
