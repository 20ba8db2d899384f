"""Overlapping classes: their loss beside MONAI's and torch's, what is unknown, deep supervision, readout."""

import numpy as np
import pytest
import torch
from torch import nn

from voxprior.errors import Refusal
from voxprior.segment import ensemble, infer, readout
from voxprior.segment import model as segment

CROP = (8, 8, 12)
NESTED = ((1,), (1, 2), (1, 2, 3))


class Net(nn.Module):
    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(1, 3, 3, padding=1)
        self.levels = levels

    def forward(self, volume):
        logits = self.encoder(volume)
        if self.levels == 1 or not self.training:
            return logits
        return [nn.functional.avg_pool3d(logits, 2**level) if level else logits for level in range(self.levels)]


def model(levels: int = 1):
    return segment.Model(segment.Config(CROP, regions=NESTED), Net(levels))


def labels_of(seed: int = 0):
    return torch.randint(0, 4, (3, *CROP), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def logits_of():
    return torch.randn(3, 3, *CROP, generator=torch.Generator().manual_seed(1))


def unions(labels):
    return torch.stack([(labels >= 1) & (labels < 255), (labels >= 2) & (labels < 255), labels == 3], 1)


def mean(term):
    return term.sum / term.count


def test_painted_labels_become_overlapping_targets():
    labels = labels_of()
    labels[0, 0] = 255
    assert torch.equal(model().loss.held(labels), unions(labels))


def terms_of(logits_BCZYX, labels_BZYX):
    made = model()
    return made.terms(logits_BCZYX.shape[:2], *made.loss.sums(logits_BCZYX, labels_BZYX))


def test_loss_and_gradient_equal_monais_dice_and_torchs_binary_cross_entropy():
    from monai import losses

    labels = labels_of()
    labels[1] = 0  # a sample without any, and one without the innermost
    labels[2][labels[2] == 3] = 2
    ours, theirs = logits_of().requires_grad_(), logits_of().requires_grad_()
    terms = terms_of(ours, labels)
    target = unions(labels).float()
    dice = losses.DiceLoss(sigmoid=True, include_background=True)(theirs, target)
    bce = nn.BCEWithLogitsLoss()(theirs, target)
    torch.testing.assert_close(mean(terms["dice"]), dice)
    torch.testing.assert_close(mean(terms["bce"]), bce)
    (mean(terms["dice"]) + mean(terms["bce"])).backward()
    (dice + bce).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_unknown_voxels_are_in_no_loss_and_count_for_nothing():
    labels = labels_of()
    labels[..., 6:] = 255
    whole, changed = logits_of().requires_grad_(), logits_of()
    changed[..., 6:] = 50 * torch.randn(changed[..., 6:].shape)
    terms, others = terms_of(whole, labels), terms_of(changed, labels)
    for name in ("dice", "bce"):
        torch.testing.assert_close(mean(terms[name]), mean(others[name]))
    (terms["dice"].sum + terms["bce"].sum).backward()
    assert (whole.grad[..., 6:] == 0).all()
    assert terms["bce"].count == 3 * labels[..., :6].numel()


def test_deep_supervision_has_the_same_terms_at_every_level():
    deep = model(levels=3).train()
    terms = deep(segment.Views(torch.rand(3, 1, *CROP), labels_of()), 0.0)
    assert list(terms) == ["dice", "bce", "dice_1", "bce_1", "dice_2", "bce_2"]
    assert terms["bce_1"].weight == pytest.approx(2 / 7)


def test_weights_are_the_networks_alone():
    assert list(model().state_dict()) == ["network.encoder.weight", "network.encoder.bias"]


def test_crop_dice_counts_unions():
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv3d(1, 1, 1)

        def forward(self, volume):
            return torch.cat([volume - 0.5, volume - 1.5, 2.4 - volume], 1)

    labels = labels_of()
    labels[0, 0] = 255
    batch = {
        "region_BCZYX": labels_of(5)[:, None].to(torch.int16), "quantum_B": torch.ones(3),
        "spacing_mm_B3": torch.ones(3, 3), "valid_lo_B3": torch.zeros(3, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor([CROP] * 3), "labels_BZYX": labels,
    }  # fmt: skip
    value, known, there = labels_of(5), labels != 255, unions(labels)
    said = torch.stack([value > 0, value > 1, value < 3], 1) & known[:, None]
    expected = [2 * (there & said)[:, k].sum() / (there[:, k].sum() + said[:, k].sum()) for k in range(3)]
    found = segment.crop_dice(segment.Model(segment.Config(CROP, regions=NESTED), Given()), [batch])
    assert found["val_dice"] == pytest.approx(float(sum(expected)) / 3)


def test_regions_are_painted_in_order_where_the_logit_is_above_0():
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    logits[1, 0, 0, 0] = 0.0
    expected = np.zeros((5, 6, 7), np.uint8)
    for k in range(3):
        expected[logits[k].numpy() > 0] = k + 1
    assert np.array_equal(readout.paint(logits).numpy(), expected)
    logits[0, 1, 1, 1] = torch.nan
    with pytest.raises(Refusal, match="not finite"):
        readout.paint(logits)


@pytest.mark.parametrize("mirror", [(), (2,)])
def test_a_volume_is_painted_as_from_monais_sliding_window(mirror):
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    networks = [nn.Conv3d(1, 3, 3, padding=1).eval() for _ in range(2)]
    joined = ensemble.joined(networks, mirror)
    volume = np.random.default_rng(0).integers(0, 1000, (21, 17, 30)).astype(np.int16)
    shares = np.zeros((3, *volume.shape), np.float32)

    def keep(place, part):
        shares[(slice(None), *place)] = part

    how = infer.Tiling((12, 10, 16), most_bytes=40_000)  # several bands
    device = torch.device("cpu")
    labels = infer.segment_with(joined, volume, 0.001, how, device, keep, None, readout.REGIONS)
    with torch.no_grad():
        image = torch.from_numpy(volume * np.float32(0.001))[None, None]
        logits = sliding_window_inference(image, (12, 10, 16), 4, joined, 0.5, mode="gaussian")[0]
    assert np.allclose(shares, logits.sigmoid().numpy(), atol=1e-4)
    clear = (logits.abs() > 1e-4).all(0).numpy()
    assert np.array_equal(labels[clear], readout.paint(logits).numpy()[clear])
    assert 0 < (labels == 3).mean() < 1
    again = infer.segment_with(joined, volume, 0.001, how, device, None, None, readout.REGIONS)
    assert np.array_equal(labels, again)  # whether probabilities are wanted or not
