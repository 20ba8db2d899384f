"""The transformer sees what it is shown, and hands on all it has."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths.patches import patchify
from voxprior.maths.positions import sine_cosine
from voxprior.nets.vit import Block, ViT

GRID = (2, 3, 4)


def network(depth: int = 2) -> ViT:
    torch.manual_seed(0)
    return ViT(4, 24, depth, 2, 2.0)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_gradient_reaches_visible_voxels_only():
    patch = noise(2, 24, 64).requires_grad_()
    visible = torch.tensor([[0, 5, 23], [7, 1, 2]])
    network()(patch, GRID, visible).square().sum().backward()
    reached = patch.grad.abs().sum(-1) > 0
    assert torch.equal(reached, torch.zeros(2, 24, dtype=torch.bool).scatter(1, visible, True))


def test_masked_nan_leaks_into_nothing():
    encoder, patch = network(), noise(1, 24, 64)
    visible = torch.arange(6)[None]
    outputs, gradients = [], []
    for filling in (0.0, math.nan):
        filled = patch.clone()
        filled[:, 6:] = filling
        encoder.zero_grad()
        output = encoder(filled, GRID, visible)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    assert torch.equal(*outputs)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_blocks_run_on_visible_tokens_and_extra_tokens_only():
    encoder, lengths = network(), []
    encoder.blocks[0].register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))
    encoder.embed.register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))
    visible = torch.tensor([[3, 1, 4, 9, 20]])
    encoder(noise(1, 24, 64), GRID, visible)
    encoder(noise(1, 24, 64), GRID, visible, extra_BTD=noise(1, 2, 24))
    encoder(noise(1, 24, 64), GRID)
    assert lengths == [5, 5, 5, 7, 24, 24]


def test_extra_tokens_stand_in_front_without_a_position():
    encoder = network(depth=0)
    encoder.norm = nn.Identity()
    extra = noise(1, 2, 24)
    output = encoder(noise(1, 24, 64), GRID, None, extra)
    assert torch.equal(output[:, :2], extra)
    assert torch.equal(output[:, 2:], encoder.tokens(noise(1, 24, 64), GRID))


def test_a_token_carries_the_position_of_its_own_patch():
    encoder = network()
    visible = torch.tensor([[23, 0, 7]])
    token = encoder.tokens(torch.zeros(1, 24, 64), GRID, visible)
    torch.testing.assert_close(token[0], sine_cosine(GRID, 24)[visible[0]])
    everything = encoder.tokens(noise(1, 24, 64), GRID)
    torch.testing.assert_close(encoder.tokens(noise(1, 24, 64), GRID, visible)[0], everything[0, visible[0]])


def test_block_equals_attention_written_out():
    torch.manual_seed(0)
    block, token = Block(24, 2, 2.0), noise(1, 5, 24)
    normed = F.layer_norm(token, (24,), block.norm1.weight, block.norm1.bias, 1e-6)
    heads = []
    for head in range(2):
        rows = slice(12 * head, 12 * head + 12)
        q, k, v = (
            normed @ block.qkv.weight[24 * s : 24 * s + 24][rows].T + block.qkv.bias[24 * s : 24 * s + 24][rows]
            for s in range(3)
        )
        heads.append((q @ k.mT / math.sqrt(12)).softmax(-1) @ v)
    expected = token + block.proj(torch.cat(heads, -1))
    expected = expected + block.fc2(F.gelu(block.fc1(block.norm2(expected))))
    torch.testing.assert_close(block(token), expected, rtol=1e-5, atol=1e-5)


def test_state_holds_weights_and_no_position():
    encoder = network()
    encoder.taps(noise(1, 1, 8, 12, 16), (1,))
    names = set(encoder.state_dict())
    assert names == {name for name, _ in encoder.named_parameters()}
    assert not any("position" in name for name in names)
    assert encoder.unit_vox == 4 and encoder.width == 24


def test_one_network_serves_several_grids():
    encoder = network()
    for grid_zyx in ((2, 3, 4), (4, 3, 2), (1, 1, 2)):
        count = math.prod(grid_zyx)
        token = encoder.tokens(torch.zeros(1, count, 64), grid_zyx)
        torch.testing.assert_close(token[0], sine_cosine(grid_zyx, 24))


def test_taps_equal_the_pretrained_encoder_and_keep_their_places():
    encoder, volume = network(depth=12), noise(1, 1, 8, 12, 16)
    taps = encoder.taps(volume)
    assert [tuple(tap.shape) for tap in taps] == [(1, 24, 2, 3, 4)] * 4
    token = encoder.tokens(patchify(volume, 4), GRID)
    for number, block in enumerate(encoder.blocks, start=1):
        token = block(token)
        if number in (4, 7, 10):
            tap = taps[(4, 7, 10).index(number)]
            torch.testing.assert_close(tap.flatten(2).mT, token)
            torch.testing.assert_close(tap[0, :, 1, 2, 3], token[0, 23])
    torch.testing.assert_close(taps[3].flatten(2).mT, encoder(patchify(volume, 4), GRID))


@pytest.mark.parametrize(
    ("depth", "count", "after"),
    [(12, 3, (4, 7, 10)), (24, 3, (8, 14, 20)), (6, 3, (2, 4, 5)), (4, 3, (1, 2, 3)), (6, 2, (3, 5)), (12, 1, (10,))],
)
def test_taps_scale_with_depth(depth: int, count: int, after: tuple[int, ...]):
    with torch.device("meta"):
        assert ViT(4, 24, depth, 2).tap_blocks(count) == after


def test_impossible_shapes_are_refused():
    with pytest.raises(Refusal, match="multiple of 6"):
        ViT(8, 64, 2, 4)
    with pytest.raises(Refusal, match="5 heads"):
        ViT(8, 96, 2, 5)
    with pytest.raises(Refusal, match="cannot be tapped 3 times"):
        ViT(8, 96, 2, 4).tap_blocks(3)
    with pytest.raises(Refusal, match="multiple of 4"):
        network().taps(noise(1, 1, 8, 12, 18), (1,))


def test_inference_first_does_not_spoil_training():
    encoder = network()
    with torch.inference_mode():
        encoder(noise(1, 10, 64), (1, 2, 5))
    encoder(noise(1, 10, 64), (1, 2, 5)).sum().backward()
    assert encoder.embed.weight.grad is not None


def test_bfloat16_keeps_the_residual_stream_in_float32():
    encoder = network()
    exact = encoder(noise(2, 24, 64), GRID)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.tokens(noise(2, 24, 64), GRID).dtype == torch.float32
        rough = encoder(noise(2, 24, 64), GRID)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    assert encoder.bfloat16()(noise(2, 24, 64).bfloat16(), GRID).dtype == torch.bfloat16


def test_attention_is_asked_for_without_a_mask_and_at_widths_that_fused_kernels_take(monkeypatch):
    asked = []
    own = torch.nn.functional.scaled_dot_product_attention

    def noted(*given, **named):
        asked.append((len(given), named, given[0].shape[-1]))
        return own(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    Block(768, 12)(torch.ones(1, 2, 768))
    Block(576, 12)(torch.ones(1, 2, 576))  # GL-MAE's decoder
    Block(384, 12)(torch.ones(1, 2, 384))  # MAE3D's
    assert [(count, named) for count, named, _ in asked] == [(3, {})] * 3
    assert [width % 8 for _, _, width in asked] == [0, 0, 0]
