"""MAE3D's own formulas; what every method must do stands in test_contract."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from voxprior.configuration import Backbone as BackboneCard
from voxprior.errors import Refusal
from voxprior.maths import chance
from voxprior.maths.masking import split
from voxprior.maths.patches import patchify
from voxprior.maths.positions import sine_cosine
from voxprior.methods import mae
from voxprior.nets.backbones import Backbone
from voxprior.nets.vit import ViT

CONFIG = Path(__file__).parents[2] / "config"


def config(**changed: object) -> mae.Config:
    """Makes a small configuration on a grid of 2x3x4 patches of 4 voxels."""
    numbers = {
        "crop_vox": (8, 12, 16),
        "mask_ratio": 0.5,
        "decoder_width": 24,
        "decoder_depth": 1,
        "decoder_heads": 2,
    }
    return mae.Config(**(numbers | changed))


def model(**changed: object) -> mae.Model:
    """Builds the method on a small transformer."""
    torch.manual_seed(0)
    return mae.Model(config(**changed), ViT(4, 24, 2, 2, 2.0))


def batch(samples: int = 2, size: tuple[int, int, int] = (8, 12, 16)) -> dict[str, Tensor]:
    """Makes a batch of counted noise; every voxel differs from its neighbours."""
    key_B = chance.keys(5, 0, torch.arange(samples))
    return {
        "region_BCZYX": (1000 * chance.uniform(key_B, "voxels", (1, *size))).to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "spacing_mm_B3": torch.ones(samples, 3),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor(size).repeat(samples, 1),
    }


def keys(samples: int = 2, step: int = 0) -> Tensor:
    return chance.keys(0, step, torch.arange(samples))


# ------------------------------------------------------------------------------------------- configuration
def test_a_convolutional_backbone_is_refused_with_a_sentence():
    assert mae.accepts(Backbone("vit", "vit", {})) is None
    assert "spark" in (mae.accepts(Backbone("stunet", "cnn", {})) or "")


def test_a_crop_that_is_no_multiple_of_the_patch_is_refused():
    backbone = Backbone("vit", "vit", {"patch_vox": 16})
    with pytest.raises(Refusal, match="patches of 16.*multiple"):
        mae.region(config(crop_vox=(48, 40, 48)), backbone)
    with pytest.raises(Refusal, match="nothing to hide"):
        mae.region(config(crop_vox=(16, 16, 16)), backbone)
    assert mae.region(config(crop_vox=(48, 32, 16)), backbone).size_vox == (48, 32, 16)


@pytest.mark.parametrize(
    "wrong", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"decoder_width": 512}, {"decoder_heads": 5}, {"flips": 0.5}]
)
def test_wrong_numbers_are_refused(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base"])
def test_backbone_files_are_complete_and_buildable(name: str):
    card = BackboneCard(**yaml.safe_load((CONFIG / "backbones" / f"{name}.yaml").read_text(encoding="utf-8")))
    assert card.family == "vit" and card.vit is not None
    backbone = Backbone(name, "vit", card.vit.model_dump())
    with torch.device("meta"):
        network = backbone.segmenter(4, (96, 96, 96))
        encoder = backbone.encoder()
    assert {n: t.shape for n, t in encoder.state_dict().items()} == {
        n: t.shape for n, t in network.encoder.state_dict().items()
    }
    preset = "small" if name == "vit_tiny" else "paper"
    presets = yaml.safe_load((CONFIG / "methods" / "mae.yaml").read_text(encoding="utf-8"))
    assert mae.region(mae.Config(**presets[preset]), backbone)


def test_the_papers_preset_is_the_default():
    presets = yaml.safe_load((CONFIG / "methods" / "mae.yaml").read_text(encoding="utf-8"))
    assert mae.Config(**presets["paper"]) == mae.Config()


# --------------------------------------------------------------------------------------------------- views
def test_flips_move_voxels_and_valid_patches_together():
    method, given = model(flip=0.5), batch(64)
    given["valid_hi_B3"][:, 2] = 7  # X: patches 0 and 1 of 4 hold real voxels
    marked = (torch.arange(16) < 7).to(torch.int16).expand(64, 1, 8, 12, 16)
    views = method.views(given | {"region_BCZYX": marked.contiguous(), "quantum_B": torch.ones(64)}, keys(64))
    real = patchify(views.volume_BCZYX, 4).amax(-1) > 0
    assert torch.equal(real, views.valid_BN)
    flipped = (~views.valid_BN[:, 0]).float().mean()
    assert 0.25 < flipped < 0.75


def test_flips_are_drawn_per_axis():
    method = model(flip=0.5)
    place = torch.arange(8 * 12 * 16, dtype=torch.int16).reshape(1, 1, 8, 12, 16).repeat(256, 1, 1, 1, 1)
    given = batch(256) | {"region_BCZYX": place, "quantum_B": torch.ones(256)}
    volume = method.views(given, keys(256)).volume_BCZYX[:, 0]
    corner = volume[:, 0, 0, 0].long()
    flips = torch.stack([corner // 192 > 0, corner % 192 // 16 > 0, corner % 16 > 0], dim=1)
    ways, counts = flips.unique(dim=0, return_counts=True)
    assert len(ways) == 8 and counts.min() > 12
    assert torch.equal(volume.sort(dim=3).values[:, 0, 0].diff(dim=1).unique(), torch.ones(1))


def test_no_flip_leaves_the_crop_as_it_is():
    given = batch()
    views = model(flip=0.0).views(given, keys())
    assert torch.equal(views.volume_BCZYX, given["region_BCZYX"].float() * torch.tensor(1e-3))


# ------------------------------------------------------------------------------------------------- decoder
def without_blocks(method: mae.Model) -> mae.Decoder:
    """Returns the decoder with its blocks and norm made identities."""
    method.decoder.blocks = nn.ModuleList()
    method.decoder.norm = nn.Identity()
    return method.decoder


def test_decoder_puts_every_token_at_its_own_position():
    decoder, grid_zyx = without_blocks(model()), (2, 3, 4)
    visible_BK, masked_BM = split(model().views(batch(), keys()).masked_BN, 12)
    token = torch.randn(2, 12, 24)
    assembled = decoder.assemble(token, visible_BK, masked_BM, grid_zyx)
    table = sine_cosine(grid_zyx, 24)
    torch.testing.assert_close(assembled[:, :12], decoder.embed(token) + table[visible_BK])
    torch.testing.assert_close(assembled[:, 12:], decoder.mask_token_E + table[masked_BM])


def test_order_of_visible_tokens_does_not_matter():
    method = model()
    visible_BK, masked_BM = split(method.views(batch(), keys()).masked_BN, 12)
    patch_BNV = patchify(method.views(batch(), keys()).volume_BCZYX, 4)
    shuffled = visible_BK[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    one, two = method.predict(patch_BNV, visible_BK, masked_BM), method.predict(patch_BNV, shuffled, masked_BM)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_head_sees_masked_tokens_only():
    method, lengths = model(), []
    method.decoder.head.register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))
    method(method.views(batch(), keys()), 0.0)
    assert lengths == [12]


# ---------------------------------------------------------------------------------------------------- loss
def test_loss_is_the_papers_formula():
    method, given = model(), batch()
    given["valid_hi_B3"][1, 0] = 4
    views = method.views(given, keys())
    with torch.no_grad():
        term = method(views, 0.0)["reconstruction"]
        visible_BK, masked_BM = split(views.masked_BN, 12)
        predicted = method.predict(patchify(views.volume_BCZYX, 4), visible_BK, masked_BM).double().numpy()
    volume, valid = views.volume_BCZYX.double().numpy(), views.valid_BN.numpy()
    errors = []
    for sample in range(2):
        for place, patch in enumerate(masked_BM[sample].tolist()):
            z, y, x = (4 * i for i in np.unravel_index(patch, (2, 3, 4)))
            true = volume[sample, 0, z : z + 4, y : y + 4, x : x + 4].ravel()
            true = (true - true.mean()) / np.sqrt(true.var(ddof=1) + 1e-6)
            if valid[sample, patch]:
                errors.append(np.mean((predicted[sample, place] - true) ** 2))
    assert 0 < len(errors) < 24 and float(term.count) == len(errors)
    assert float(term.sum) == pytest.approx(sum(errors), rel=1e-5)


def test_target_does_not_see_brightness_and_contrast():
    method = model()
    patch = torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.error.target(3.0 * patch + 7.0), method.error.target(patch), rtol=1e-3, atol=1e-3)
    assert method.error.target(torch.full((1, 1, 64), 0.5)).abs().max() < 1e-3
    assert torch.equal(model(standardise_target=False).error.target(patch), patch)


def test_larger_variance_eps_quietens_noise():
    noise = 0.005 * torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    assert model().error.target(noise).std() > 0.9
    assert model(variance_eps=4e-4).error.target(noise).std() < 0.3


# ------------------------------------------------------------------------------------------------ pictures
def test_a_perfect_prediction_reconstructs_the_input():
    method = model(flip=0.0)
    views = method.views(batch(), keys())
    method.predict = lambda patch, visible, masked: method.error.target(  # type: ignore[method-assign]
        torch.stack([rows[index] for rows, index in zip(patch, masked, strict=True)])
    )
    pictures = method.pictures(views)
    torch.testing.assert_close(pictures["reconstruction"], pictures["input"], rtol=0, atol=1e-5)
    hidden = patchify(pictures["masked_input"][:, None], 4)[views.masked_BN]
    assert hidden.abs().max() == 0


def test_pictures_keep_visible_patches():
    method = model()
    views = method.views(batch(), keys())
    pictures = {name: patchify(p[:, None], 4) for name, p in method.pictures(views).items()}
    assert torch.equal(pictures["reconstruction"][~views.masked_BN], pictures["input"][~views.masked_BN])
    assert not torch.equal(pictures["reconstruction"][views.masked_BN], pictures["input"][views.masked_BN])
