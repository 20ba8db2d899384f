import subprocess
import sys

import pytest
import torch
from torch import nn

from voxprior.maths import augment, chance, intensity
from voxprior.maths.boxes import Region
from voxprior.segment import loss
from voxprior.segment import model as segment

CROP = (8, 8, 12)


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


def batch(samples: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "region_BCZYX": torch.randint(0, 1000, (samples, 1, *CROP), generator=generator).to(torch.int16),
        "quantum_B": torch.full((samples,), 0.001),
        "spacing_mm_B3": torch.full((samples, 3), 2.0),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor([CROP] * samples),
        "labels_BZYX": torch.randint(0, 3, (samples, *CROP), generator=generator).to(torch.uint8),
    }


def logits_of(samples: int = 2):
    return torch.randn(samples, 3, *CROP, generator=torch.Generator().manual_seed(1))


def terms_of(model, logits_BCZYX, labels_BZYX):
    return model.terms(logits_BCZYX.shape[:2], *model.loss.sums(logits_BCZYX, labels_BZYX))


def mean(term):
    return term.sum / term.count


def test_region_is_the_crop_and_every_crop_voxel_is_seen():
    config = segment.Config(CROP)
    assert segment.region(config) == Region(CROP)
    assert segment.Model(config, Net()).student_voxels == 8 * 8 * 12


def test_loss_equals_monais_dice_ce_where_all_is_labelled():
    from monai import losses

    labels = batch(3)["labels_BZYX"]
    labels[1] = 0  # one sample without any organ, and one without the second
    labels[2][labels[2] == 2] = 0
    ours, theirs = logits_of(3).requires_grad_(), logits_of(3).requires_grad_()
    terms = terms_of(segment.Model(segment.Config(CROP), Net()), ours, labels)
    loss = mean(terms["dice"]) + mean(terms["ce"])
    expected = losses.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(theirs, labels[:, None])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_fine_tuning_does_not_import_monai():
    code = "import sys, voxprior.segment.model; print({'monai', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unlabelled_voxels_change_neither_loss_nor_gradient():
    model, labels = segment.Model(segment.Config(CROP), Net()), batch()["labels_BZYX"]
    labels[:, :, :, 6:] = 255
    whole = logits_of().requires_grad_()
    changed = logits_of()
    changed[..., 6:] = 50 * torch.randn(changed[..., 6:].shape)
    for name in ("dice", "ce"):
        torch.testing.assert_close(
            mean(terms_of(model, whole, labels)[name]), mean(terms_of(model, changed, labels)[name])
        )
    terms = terms_of(model, whole, labels)
    (terms["dice"].sum + terms["ce"].sum).backward()
    assert (whole.grad[..., 6:] == 0).all()
    assert (whole.grad[..., :6] != 0).any()
    assert terms["ce"].count == labels[:, :, :, :6].numel()


def test_a_crop_without_any_label_gives_finite_terms():
    terms = terms_of(segment.Model(segment.Config(CROP), Net()), logits_of(), torch.full((2, *CROP), 255).byte())
    assert terms["ce"].count == 0
    assert terms["ce"].sum == 0
    assert torch.isfinite(terms["dice"].sum)


def test_a_perfect_prediction_costs_nothing():
    labels = batch()["labels_BZYX"]
    logits = 100 * nn.functional.one_hot(labels.long(), 3).movedim(-1, 1).float()
    terms = terms_of(segment.Model(segment.Config(CROP), Net()), logits, labels)
    assert mean(terms["dice"]) < 1e-6
    assert mean(terms["ce"]) < 1e-6


def test_terms_of_two_halves_add_up_to_the_whole():
    """What makes the loss independent of how samples are spread over processes."""
    model, labels = segment.Model(segment.Config(CROP), Net()), batch()["labels_BZYX"]
    whole = terms_of(model, logits_of(), labels)
    halves = [terms_of(model, logits_of()[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    for name, term in whole.items():
        torch.testing.assert_close(term.sum, halves[0][name].sum + halves[1][name].sum)
        assert term.count == halves[0][name].count + halves[1][name].count


def test_deep_supervision_halves_per_level_and_adds_up_to_1():
    assert segment.level_weights(1) == [1.0]
    assert segment.level_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    model = segment.Model(segment.Config(CROP), Net(levels=3)).train()
    terms = model(segment.Views(torch.rand(2, 1, *CROP), batch()["labels_BZYX"]), 0.0)
    assert list(terms) == ["dice", "ce", "dice_1", "ce_1", "dice_2", "ce_2"]
    assert terms["ce_1"].weight == pytest.approx(2 / 7)
    assert terms["ce_2"].count == 2 * 2 * 2 * 3


def test_shrunk_labels_are_labels():
    labels = batch()["labels_BZYX"]
    labels[0, 0] = 255
    small = loss.shrink(labels, (4, 4, 6))
    assert small.dtype == torch.uint8
    assert torch.equal(small, labels[:, 1::2, 1::2, 1::2])


def test_views_keep_labels_whole_and_hide_padding():
    samples = batch(8)
    samples["valid_hi_B3"][:, 2] = 9
    model = segment.Model(segment.Config(CROP, spatial=augment.Spatial(turn=1.0)), Net())
    views = model.views(samples, chance.keys(0, 0, torch.arange(8)))
    assert views.labels_BZYX.dtype == torch.uint8
    assert set(views.labels_BZYX.unique().tolist()) <= {0, 1, 2, 255}
    still = segment.Model(segment.Config(CROP, spatial=augment.Spatial(turn=0.0, scale=0.0)), Net()).views(
        samples, chance.keys(0, 0, torch.arange(8))
    )
    assert (still.labels_BZYX[..., 9:] == 255).all()
    assert torch.equal(still.labels_BZYX[..., :9], samples["labels_BZYX"][..., :9])
    assert torch.isfinite(views.volume_BCZYX).all()
    assert not torch.equal(views.volume_BCZYX, still.volume_BCZYX)


def test_image_and_labels_move_together():
    """An image that shows its own labels still does after flips and turns."""
    samples = batch(8)
    labels = torch.zeros(8, *CROP, dtype=torch.uint8)
    labels[:, 2:5, 2:6, 3:9] = 1
    samples["labels_BZYX"], samples["region_BCZYX"] = labels, labels[:, None].to(torch.int16) * 1000
    turning = augment.Spatial(turn=1.0, turn_degrees=15.0, scale=1.0, scale_by=1.2, elastic=0.5)
    off = dict.fromkeys(("contrast", "gamma", "gamma_inverted", "noise", "blur", "brightness", "low_resolution"), 0.0)
    config = segment.Config(CROP, flip_zyx=(0.5, 0.5, 0.5), spatial=turning, **off)
    views = segment.Model(config, Net()).views(samples, chance.keys(1, 0, torch.arange(8)))
    shown, known = views.volume_BCZYX[:, 0] > 0.5, views.labels_BZYX != 255
    assert ((shown == (views.labels_BZYX == 1)) | ~known).float().mean() > 0.97
    assert not torch.equal(views.labels_BZYX, labels)


@pytest.mark.parametrize("bent", [0.0, 0.7], ids=["straight", "bent"])
@pytest.mark.parametrize("way", ["arrays", pytest.param("compiled", marks=pytest.mark.slow)])
def test_augmentation_of_a_gpu_is_that_of_the_cpu(way, bent, monkeypatch):
    """The CPU takes numba's loops and the drawn samples alone; a GPU, and a compiler, arrays of all samples."""
    often = dict.fromkeys(("blur", "brightness", "low_resolution", "contrast", "gamma", "gamma_inverted", "noise"), 0.6)
    config = segment.Config(CROP, (0.5, 0.5, 0.5), augment.Spatial(turn=0.6, scale=0.6, elastic=bent), **often)
    samples, key_B = batch(6), chance.keys(0, 3, torch.arange(6))
    coarse = samples["labels_BZYX"][:, :2, :2, :3]
    samples["labels_BZYX"] = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    samples["valid_hi_B3"][:, 2] = 10
    model = segment.Model(config, Net())
    written = model.views(samples, key_B)
    if way == "arrays":
        monkeypatch.setattr(augment, "drawn_alone", lambda tensor: False)
        monkeypatch.setattr(intensity, "drawn_alone", lambda tensor: False)
        other = model.augmentation(samples, key_B)
    else:
        torch.compiler.reset()
        other = torch.compile(model.augmentation.forward, backend="aot_eager", fullgraph=True)(samples, key_B)
    torch.testing.assert_close(other[0], written.volume_BCZYX, rtol=0, atol=2e-4)
    assert (other[1] != written.labels_BZYX).float().mean() < 2e-3
    assert other[1].dtype == torch.uint8 and (other[1] == 255).any()


@pytest.mark.parametrize("regions", [(), ((1,), (1, 2))], ids=["exclusive", "overlapping"])
def test_loss_compiled_is_loss_as_written(regions):
    torch.compiler.reset()
    labels, model = batch()["labels_BZYX"], segment.Model(segment.Config(CROP, regions=regions), Net())
    channels = 2 if regions else 3
    told = []
    for way in (model.loss.forward, torch.compile(model.loss.forward, backend="aot_eager", fullgraph=True)):
        levels = [logits_of()[:, :channels].requires_grad_(), logits_of()[:, :channels, ::2, ::2, ::2].requires_grad_()]
        leaves = [level.detach().requires_grad_() for level in levels]
        sums = way(leaves, labels)
        sum(dice + ce for dice, ce, _ in sums).backward()
        told.append((sums, [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(*told)


# ------------------------------------------------------------------------------------------ averaged weights, monitor
def test_averaged_weights_are_the_mean_at_first_and_then_follow_by_their_half_life():
    torch.manual_seed(0)
    model = segment.Model(segment.Config(CROP, ema=0.05), Net())
    assert model.chosen is model.average
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "network.encoder.weight",
        "network.encoder.bias",
    ]
    total, seen, expected = 200, [], None
    momentum = 0.5 ** (1 / 10)
    for step in range(40):
        model.network.encoder.weight.data.normal_()
        seen.append(model.network.encoder.weight.detach().clone())
        model.after_step(step / (total - 1), total)
        keep = min(momentum, step / (step + 1))
        expected = seen[-1] if expected is None else keep * expected + (1 - keep) * seen[-1]
        if step == 5:
            torch.testing.assert_close(model.average.encoder.weight, torch.stack(seen).mean(0))
    torch.testing.assert_close(model.average.encoder.weight, expected)
    plain = segment.Model(segment.Config(CROP), Net())
    assert plain.chosen is plain.network
    assert not [name for name in plain.state_dict() if name.startswith("average")]


class Says(nn.Module):
    """Answers with the class numbers that the image shows."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(1, 1, 1)

    def forward(self, volume):
        assert not self.training
        return nn.functional.one_hot((volume[:, 0] * 10).round().long(), 4).movedim(-1, 1).float()


def test_crop_dice_pools_voxels_and_leaves_out_padding_and_absent_classes():
    labels = torch.zeros(2, *CROP, dtype=torch.uint8)
    labels[0, :2], labels[1, :4], labels[:, 6:] = 1, 2, 3
    said = labels.clone()
    said[0, 0], said[1, 4] = 0, 2  # half of class 1 missed; class 2 one plane too many
    samples = batch() | {"labels_BZYX": labels, "region_BCZYX": said[:, None].to(torch.int16) * 100}
    samples["valid_hi_B3"] = torch.tensor([[6, 8, 12]] * 2)  # class 3 is in the padding alone
    model = segment.Model(segment.Config(CROP), Says())
    one = 2 * 1 / (1 + 2)
    two = 2 * 4 / (4 + 5)
    assert segment.crop_dice(model, [samples]) == {"val_dice": pytest.approx((one + two) / 2)}
    halves = [{name: tensor[at : at + 1] for name, tensor in samples.items()} for at in (0, 1)]
    assert segment.crop_dice(model, halves) == segment.crop_dice(model, [samples])
    assert model.network.training
    empty = samples | {"labels_BZYX": torch.zeros_like(labels)}
    assert segment.crop_dice(model, [empty]) == {}
