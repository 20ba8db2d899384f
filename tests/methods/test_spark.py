"""SparK: what is hidden stays hidden, and the loss is the masked, standardised squared error."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from voxprior.errors import Refusal
from voxprior.maths import chance, patches
from voxprior.methods import spark
from voxprior.methods.contract import Batch
from voxprior.methods.spark import Config, Decoder, Model, Views, patch_loss
from voxprior.nets.backbones import Backbone
from voxprior.nets.residual import ResidualEncoder

CROP, UNIT, CELLS = (16, 8, 12), 4, 24
CONFIG = Config(crop_vox=CROP, decoder_width=16)
PRESETS = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "spark.yaml").read_text())


def _model(config: Config = CONFIG) -> Model:
    torch.manual_seed(0)
    return Model(config, ResidualEncoder([4, 8, 16], blocks=1))


def _batch(samples: int = 2, padded: int = 0) -> Batch:
    """Random crops; the last `padded` voxels along Z are padding."""
    volume = torch.randint(0, 1000, (samples, 1, *CROP), generator=torch.Generator().manual_seed(3))
    hi_B3 = torch.tensor(CROP).repeat(samples, 1)
    hi_B3[:, 0] -= padded
    volume[:, :, CROP[0] - padded :] = 0
    return {
        "region_BCZYX": volume.to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": hi_B3,
    }


def _keys(step: int = 0, samples: int = 2) -> torch.Tensor:
    return chance.keys(0, step, torch.arange(samples))


def _replace_masked(views: Views, content: torch.Tensor) -> Views:
    """Puts something else into every masked patch."""
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    changed_BNV = torch.where(views.masked_BN[:, :, None], content, patch_BNV)
    return views._replace(volume_BCZYX=patches.unpatchify(changed_BNV, (4, 2, 3), UNIT))


@pytest.mark.parametrize(("cells", "visible"), [((7, 7, 8), 157), ((6, 6, 6), 86), ((8, 8, 8), 205), ((4, 2, 3), 10)])
def test_masks_hold_exactly_the_published_counts(cells: tuple[int, int, int], visible: int) -> None:
    crop = tuple(4 * c for c in cells)
    batch = {**_batch(), "region_BCZYX": torch.zeros(2, 1, *crop, dtype=torch.int16)}
    views = _model(Config(crop_vox=crop, decoder_width=16)).views(batch, _keys())
    assert (~views.masked_BN).sum(dim=1).tolist() == [visible, visible]
    assert not torch.equal(views.masked_BN[0], views.masked_BN[1])


def test_a_masked_cell_hides_exactly_its_patch() -> None:
    model, views = _model(), _model().views(_batch(), _keys())
    views = views._replace(volume_BCZYX=views.volume_BCZYX + 0.5)  # no voxel is 0 by itself
    for cell in (0, 5, CELLS - 1):
        only = torch.zeros_like(views.masked_BN)
        only[:, cell] = True
        hidden = model.pictures(views._replace(masked_BN=only))["masked_input"] == 0
        z, y, x = np.unravel_index(cell, (4, 2, 3))
        expected = torch.zeros(2, *CROP, dtype=torch.bool)
        expected[:, z * 4 : z * 4 + 4, y * 4 : y * 4 + 4, x * 4 : x * 4 + 4] = True
        assert torch.equal(hidden, expected)


@pytest.mark.parametrize("poison", [7.0, 1e20, float("nan")])
def test_hidden_voxels_cannot_influence_the_reconstruction(poison: float) -> None:
    model, views = _model(), _model().views(_batch(), _keys())
    changed = _replace_masked(views, torch.tensor(poison))
    first, second = (
        spark.reconstruct(model.encoder, model.decoder, v.volume_BCZYX, v.masked_BN) for v in (views, changed)
    )
    assert torch.equal(first, second) and torch.isfinite(first).all()


def test_the_loss_is_the_masked_standardised_squared_error() -> None:
    rng = np.random.default_rng(0)
    predicted, patch = rng.normal(size=(2, 5, 64)), rng.normal(3, 2, size=(2, 5, 64))
    patch[1, 4] = 2.0  # constant: target 0
    expected = np.zeros((2, 5))
    for b, n in np.ndindex(2, 5):
        mean = sum(patch[b, n]) / 64
        variance = sum((patch[b, n] - mean) ** 2) / 63
        target = (patch[b, n] - mean) / np.sqrt(variance + 1e-6)
        expected[b, n] = sum((predicted[b, n] - target) ** 2) / 64
    loss = patch_loss(torch.tensor(predicted), torch.tensor(patch))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)
    assert loss[1, 4].item() == pytest.approx(np.mean(predicted[1, 4] ** 2), rel=1e-5)
    moved = patch_loss(torch.tensor(predicted[:, :4]), torch.tensor(patch[:, :4] * 9 - 4))
    torch.testing.assert_close(moved, loss[:, :4], rtol=1e-4, atol=1e-4)
    zero = patch_loss(torch.zeros(2, 4, 64), torch.tensor(patch[:, :4]))
    torch.testing.assert_close(zero, torch.full((2, 4), 1 - 1 / 64), rtol=1e-5, atol=1e-5)


def test_only_masked_patches_that_hold_real_voxels_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(Config(crop_vox=CROP, decoder_width=16, flip=0.0))
    views = model.views(_batch(padded=8), _keys())
    assert views.valid_BN.sum(dim=1).tolist() == [12, 12]
    predicted = torch.randn(2, CELLS, UNIT**3, requires_grad=True)
    monkeypatch.setattr(spark, "reconstruct", lambda *_: predicted)
    term = model(views, 0.0)["reconstruction"]
    counted = views.masked_BN & views.valid_BN
    loss = patch_loss(predicted, patches.patchify(views.volume_BCZYX, UNIT))
    assert term.count.item() == counted.sum().item() > 0
    torch.testing.assert_close(term.sum, loss[counted].sum())
    term.sum.backward()
    assert not predicted.grad[~counted].any()
    assert predicted.grad[counted].any(dim=-1).all()


def test_every_parameter_gets_a_gradient() -> None:
    model = _model()
    term = model(model.views(_batch(), _keys()), 0.0)["reconstruction"]
    (term.sum / term.count).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_flips_mirror_the_volume_and_its_valid_box_together() -> None:
    batch, seen = _batch(samples=16, padded=6), set()
    model = _model()
    views = model.views(batch, _keys(samples=16))
    volume = batch["region_BCZYX"].float() * 1e-3
    for b in range(16):
        for axes in [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]:
            if torch.equal(views.volume_BCZYX[b], volume[b].flip(axes)):
                seen.add(axes)
    assert len(seen) >= 6
    real_BN = patches.patchify(views.volume_BCZYX, model.encoder.unit_vox).any(-1)
    assert torch.equal(real_BN, views.valid_BN)
    assert len(views.valid_BN.unique(dim=0)) == 2  # padding lies at one end of Z, or at the other


def test_the_same_key_gives_the_same_views_in_any_batch() -> None:
    model, batch = _model(), _batch(samples=3)
    together = model.views(batch, _keys(samples=3))
    alone = model.views({name: value[1:2] for name, value in batch.items()}, _keys(samples=3)[1:2])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[1:2], b)


def test_the_decoder_has_the_published_size() -> None:
    with torch.device("meta"):
        decoder = Decoder((32, 64, 128, 256, 512), 512)
    fills = sum(p.numel() for p in decoder.fills.parameters())
    assert sum(p.numel() for p in decoder.parameters()) - fills == 36_386_593


def test_nothing_depends_on_data_in_a_way_that_stalls_a_gpu() -> None:
    """Tensors without values run through: no nonzero(), no item(), no branch on content."""
    with torch.device("meta"):
        encoder = ResidualEncoder([4, 8, 16], blocks=1)
        model = Model(CONFIG, encoder)
        batch = {name: value.to("meta") for name, value in _batch().items()}
        key_B = torch.empty(2, dtype=torch.int64)
        term = model(model.views(batch, key_B), 0.5)["reconstruction"]
    assert term.sum.shape == term.count.shape == ()


def test_bfloat16_computes_about_the_same_loss() -> None:
    model = _model()
    views = model.views(_batch(), _keys())
    exact = model(views, 0.0)["reconstruction"].sum
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(views, 0.0)["reconstruction"].sum
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


def test_pictures_show_what_was_seen_hidden_and_painted() -> None:
    model = _model()
    views = model.views(_batch(), _keys())
    pictures = model.pictures(views)
    assert list(pictures) == ["input", "masked_input", "reconstruction"]
    masked = patches.unpatchify(views.masked_BN[:, :, None].expand(-1, -1, UNIT**3), (4, 2, 3), UNIT)[:, 0]
    for value in pictures.values():
        assert value.shape == (2, *CROP) and value.dtype == torch.float32
        assert value.min() >= 0 and value.max() <= 1
    torch.testing.assert_close(pictures["input"], views.volume_BCZYX[:, 0].clamp(0, 1))
    assert not pictures["masked_input"][masked].any()
    assert torch.equal(pictures["reconstruction"][~masked], pictures["input"][~masked])
    assert not torch.equal(pictures["reconstruction"][masked], pictures["input"][masked])


def test_a_perfect_prediction_is_displayed_as_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    views = model.views(_batch(), _keys())
    perfect = patches.standardise(patches.patchify(views.volume_BCZYX, UNIT))
    monkeypatch.setattr(spark, "reconstruct", lambda *_: perfect)
    pictures = model.pictures(views)
    torch.testing.assert_close(pictures["reconstruction"], pictures["input"], rtol=0, atol=1e-4)


def test_thirty_steps_lower_the_loss_on_a_fixed_mask() -> None:
    z, y, x = torch.meshgrid(*(torch.arange(s) for s in CROP), indexing="ij")
    blobs = torch.stack([torch.sin(z / 3 + i) * torch.cos(y / 4 - i) + 0.1 * x for i in range(2)])
    batch = {**_batch(), "region_BCZYX": (blobs * 200 + 300)[:, None].to(torch.int16)}
    model = _model()
    views = model.views(batch, _keys())
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        term = model(views, 0.0)["reconstruction"]
        optimiser.zero_grad()
        (term.sum / term.count).backward()
        optimiser.step()
        losses.append((term.sum / term.count).item())
    assert losses[-1] < 0.8 * losses[0]


def test_presets_are_complete_and_fit_their_backbones() -> None:
    tiny = Backbone("stunet_tiny", "cnn", {"channels": [8, 16, 32, 64], "blocks": 1, "pretrained_stages": 4})
    base = Backbone("stunet_b", "cnn", {"channels": [32, 64, 128, 256, 512, 512], "blocks": 1, "pretrained_stages": 5})
    assert list(PRESETS) == ["tiny", "small", "paper"]
    for name, backbone in [("tiny", tiny), ("small", tiny), ("paper", base)]:
        config = Config.model_validate(PRESETS[name])
        assert spark.region(config, backbone).size_vox == config.crop_vox
        with torch.device("meta"):
            assert Model(config, backbone.encoder()).student_voxels == np.prod(config.crop_vox)
    assert Config.model_validate(PRESETS["paper"]) == Config()


def test_accepts_convolutional_backbones_alone() -> None:
    cnn = {"channels": [8, 16, 32], "blocks": 1, "pretrained_stages": 3}
    assert spark.accepts(Backbone("c", "cnn", cnn)) is None
    assert "vit_tiny is a vit" in str(spark.accepts(Backbone("vit_tiny", "vit", {"patch_vox": 8})))
    assert "2 to 3 pretrained stages" in str(spark.accepts(Backbone("c", "cnn", {**cnn, "pretrained_stages": 4})))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Config(crop_vox=(16, 16, 18), decoder_width=16), "16x16x18 .* multiple of 4"),
        (Config(crop_vox=CROP, decoder_width=18), "decoder_width 18 .* multiple of 4"),
    ],
)
def test_what_cannot_be_built_is_refused(config: Config, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        _model(config)


def test_a_crop_of_one_mask_unit_is_refused() -> None:
    backbone = Backbone("c", "cnn", {"channels": [8, 16, 32], "blocks": 1, "pretrained_stages": 3})
    with pytest.raises(Refusal, match="single mask unit"):
        spark.region(Config(crop_vox=(4, 4, 4)), backbone)
    with pytest.raises(ValueError, match="mask_ration"):
        Config.model_validate({"mask_ration": 0.5})


def test_the_decoders_norm_can_be_the_batchs_as_in_the_authors_code() -> None:
    model = _model(CONFIG.model_copy(update={"decoder_norm": "batch"}))
    views = model.views(_batch(), _keys())
    ours = model(views, 0.0)["reconstruction"].sum.item()
    painted, by_group = (
        spark.reconstruct(one.encoder, one.decoder, views.volume_BCZYX, views.masked_BN) for one in (model, _model())
    )
    assert (painted - by_group).norm() > 0.05 * by_group.norm(), "the other norm paints another picture"
    for block in model.decoder.blocks:
        block.norm1 = torch.nn.BatchNorm3d(block.conv1.out_channels)
        block.norm2 = torch.nn.BatchNorm3d(block.conv2.out_channels)
    assert ours == pytest.approx(model.train()(views, 0.0)["reconstruction"].sum.item(), rel=1e-5)
