"""Primus: its blocks' formula, places that turn, masks, first weights and the decoder."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from voxprior.configuration import Vit
from voxprior.errors import Refusal
from voxprior.maths.patches import patchify
from voxprior.maths.positions import rotary_angles, turn
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map
from voxprior.nets.foreign import Taking, place_file
from voxprior.nets.primus import EvaBlock, Primus, PrimusNet, decoder_widths
from voxprior.segment.rates import rules

GRID = (2, 3, 4)
SIZES = {"kind": "primus", "patch_vox": 4, "width": 24, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
SIZES |= {"learnt_zyx": list(GRID), "norm_eps": 1e-5}
PAPER = {"S": (396, 12, 6), "B": (792, 12, 12), "M": (864, 16, 12), "L": (1056, 24, 16)}


def network() -> Primus:
    """A Primus whose parameters are all drawn, so that nothing is 0 or 1 by chance."""
    torch.manual_seed(0)
    encoder = Primus(4, 24, 2, 2, 2.0, 1, GRID, 1e-5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def turned(value: Tensor, angle: Tensor) -> Tensor:
    return turn(value, angle.cos(), angle.sin())


def test_turned_products_depend_on_differences_of_places_alone():
    """Su et al. 2021, equation 16: the property that rotary positions are made for, along every axis."""
    angle_NF = rotary_angles((4, 4, 4), 6)
    at = lambda z, y, x: angle_NF[16 * z + 4 * y + x][None, None]  # noqa: E731
    q, k = noise(1, 1, 1, 12), noise(1, 1, 1, 12).flip(-1)
    product = lambda a, b: float((turned(q, at(*a)) * turned(k, at(*b))).sum())  # noqa: E731
    assert product((0, 1, 2), (1, 1, 3)) == pytest.approx(product((2, 2, 0), (3, 2, 1)), abs=1e-5)
    for other in ((2, 1, 3), (1, 2, 3), (1, 1, 2)):
        assert abs(product((0, 1, 2), (1, 1, 3)) - product((0, 1, 2), other)) > 1e-3
    assert torch.equal(turned(q, at(0, 0, 0)), q)
    torch.testing.assert_close(turned(q, at(3, 2, 1)).norm(), q.norm())


def test_angles_are_powers_of_ten_thousand_per_axis():
    angle = rotary_angles((2, 3, 4), 6)[1 * 12 + 2 * 4 + 3]
    torch.testing.assert_close(angle, torch.tensor([1, 0.01, 2, 0.02, 3, 0.03]), rtol=1e-6, atol=0)
    with pytest.raises(Refusal, match="cannot be turned along three axes"):
        rotary_angles((2, 2, 2), 4)


def test_a_block_is_its_formula_written_out_head_by_head():
    block, token, angle = network().blocks[0], noise(1, 5, 24), noise(1, 5, 6)
    norm = lambda value, part: F.layer_norm(value, value.shape[-1:], part.weight, part.bias, 1e-5)  # noqa: E731
    a = norm(token, block.norm1)
    mixed = []
    for head in range(2):
        q, k, v = ((part(a) if part.bias is not None else a @ part.weight.T)[0, :, 12 * head : 12 * head + 12]
                   for part in (block.q, block.k, block.v))  # fmt: skip
        turned = [torch.view_as_real(torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
                  * torch.polar(torch.ones(5, 6), angle[0])).flatten(-2) for value in (q, k)]  # fmt: skip
        mixed.append(torch.softmax(turned[0] @ turned[1].T / math.sqrt(12), -1) @ v)
    middle = token + block.scale1_D * block.proj(norm(torch.cat(mixed, -1), block.mixed_norm))
    b = norm(middle, block.norm2)
    hidden = block.gate(b) * torch.sigmoid(block.gate(b)) * block.fc1(b)
    expected = middle + block.scale2_D * block.fc2(norm(hidden, block.hidden_norm))
    torch.testing.assert_close(block(token, angle.cos(), angle.sin()), expected, rtol=1e-4, atol=1e-5)


def test_visible_patches_keep_their_places_and_extra_tokens_have_none():
    encoder, patch = network(), noise(2, 24, 64)
    everything = encoder(patch, GRID)
    shuffled = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    again = encoder(patch, GRID, shuffled)
    torch.testing.assert_close(again, everything.gather(1, shuffled[..., None].expand_as(again)), rtol=1e-4, atol=1e-5)
    cos, sin = encoder.turns(GRID, shuffled, extra=2)
    assert cos.shape == sin.shape == (2, 26, 6) and not sin[:, :2].any() and sin[:, 2:].any()
    assert (cos[:, :2] == 1).all()
    assert encoder(patch, GRID, shuffled[:, :5], noise(2, 2, 24)).shape == (2, 7, 24)


def test_masked_nan_leaks_into_nothing():
    encoder, patch = network(), noise(1, 24, 64)
    visible, outputs = torch.arange(6)[None], []
    for filling in (0.0, math.nan):
        patch[:, 6:] = filling
        encoder.zero_grad()
        outputs.append(encoder(patch, GRID, visible))
        outputs[-1].square().sum().backward()
        assert all(p.grad.isfinite().all() for p in encoder.parameters())
    assert torch.equal(*outputs)


def test_other_grids_turn_by_whole_steps_and_interpolate_what_is_learnt():
    encoder = network()
    finer = encoder.taps(noise(1, 1, 16, 24, 32), ())[0]
    assert finer.shape == (1, 24, 4, 6, 8)
    cos, _ = encoder.turns((4, 6, 8))
    assert float(cos[0, -1, 4]) == pytest.approx(math.cos(7.0)), "the last of eight along X is seven steps away"
    volume = noise(1, 1, 8, 12, 16)
    expected = encoder(patchify(volume, 4), GRID).unflatten(1, GRID)
    torch.testing.assert_close(feature_map(encoder, volume), expected)


def test_first_weights_are_the_authors():
    torch.manual_seed(0)
    encoder = Primus(8, 192, 3, 4, 8 / 3, 1, (4, 4, 4))
    assert encoder.blocks[0].q.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.blocks[2].proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert encoder.embed.weight.std().item() == pytest.approx(math.sqrt(2 / 1.0001 / 512), rel=0.05)
    assert encoder.position_ND.std().item() == pytest.approx(0.02, rel=0.05)
    assert (encoder.blocks[1].scale1_D == 0.1).all() and not encoder.blocks[1].fc1.bias.any()
    assert encoder.blocks[0].gate.out_features == 512 and encoder.blocks[0].k.bias is None


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_sizes_can_be_built(name):
    """arXiv 2503.01835. Its M has 152.2 million parameters with three outputs, counted by the authors' code."""
    width, depth, heads = PAPER[name]
    sizes = {"kind": "primus", "patch_vox": 8, "width": width, "depth": depth, "heads": heads, "mlp_ratio": 8 / 3}
    Vit(**sizes, learnt_zyx=(20, 20, 20))
    with torch.device("meta"):
        whole = Backbone(name, "vit", sizes | {"learnt_zyx": [20, 20, 20]}).segmenter(3, (160, 160, 160))
    if name == "M":  # ours has no mask token, which is a buffer there
        assert sum(parameter.numel() for parameter in whole.parameters()) == 152_203_131


def test_the_decoder_rises_from_the_last_tokens():
    backbone = Backbone("primus", "vit", SIZES)
    network = backbone.segmenter(3, (8, 12, 16))
    assert isinstance(network, PrimusNet) and backbone.unit_vox == backbone.segmenter_unit_vox == 4
    volume = noise(2, 1, 8, 12, 16)
    assert network.train()(volume).shape == network.eval()(volume).shape == (2, 3, 8, 12, 16)
    network(volume).square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert decoder_widths(864, 3, 3) == [864, 168, 32, 3]
    assert decoder_widths(48, 15, 1) == [48, 15]


def test_layers_have_rates_of_their_own_and_learnt_positions_are_of_the_first():
    encoder = network()
    recipe = type("Recipe", (), {"transfer": "full", "frozen": 0.1, "layer_decay": 0.5, "encoder_lr": 1.0})
    made = rules(recipe, encoder, [f"encoder.{name}" for name in encoder.state_dict()])
    rates = {pattern.replace("\\", ""): rule["rate"] for pattern, rule in made.items()}
    rate = lambda name: rates[f"^network.encoder.{name}$"]  # noqa: E731
    assert rate("embed.weight") == rate("position_ND") == 0.125
    assert (rate("blocks.0.scale1_D"), rate("blocks.1.q.weight"), rate("norm.weight")) == (0.25, 0.5, 1.0)


def test_a_stem_of_one_channel_serves_two():
    one, two = (Backbone("primus", "vit", SIZES, channels) for channels in (1, 2))
    state = {f"encoder.{name}": tensor for name, tensor in one.encoder().state_dict().items()}
    where = two.segmenter(2, (8, 12, 16))
    expected = list(two.encoder().state_dict())
    with pytest.raises(Refusal, match="takes 64 values a patch .* takes 128"):
        place_file(dict(state), where, Taking("x", expected, channels=2))
    report = place_file(dict(state), where, Taking("x", expected, channels=2, trained_channels=1))
    assert report["inflated"] == ["encoder.embed.weight"]


def test_what_no_primus_can_have_is_refused():
    with pytest.raises(Refusal, match="cannot be turned along three axes"):
        Primus(4, 24, 1, 3, 2.0, 1, GRID)
    with pytest.raises(Refusal, match="set learnt_zyx"):
        Primus(4, 24, 1, 2)
    with pytest.raises(Refusal, match="choose a divisor of 24"):
        EvaBlock(24, 5, 2.0)
    with pytest.raises(Refusal, match="doubles its way up from a patch of 6"):
        PrimusNet(Primus(6, 24, 1, 2, 2.0, 1, GRID), 2)
    for wrong in ({"learnt_zyx": None}, {"heads": 3}):
        with pytest.raises(ValidationError, match="a primus needs learnt_zyx"):
            Vit(**SIZES | wrong)
