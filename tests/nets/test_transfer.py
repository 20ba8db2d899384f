"""A pretrained encoder is placed whole, or refused."""

import pytest
import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.transfer import load_report, loaded, place
from voxprior.nets.unet import UNet

CHANNELS = [4, 8, 8, 12]


def _pretrained() -> ResidualEncoder:
    torch.manual_seed(1)
    return ResidualEncoder(CHANNELS[:3], blocks=1)


def _network() -> UNet:
    torch.manual_seed(2)
    return UNet(ResidualEncoder(CHANNELS, blocks=1), classes=3)


def test_all_tensors_are_placed_and_the_rest_stays_fresh() -> None:
    encoder, network, untouched = _pretrained(), _network(), _network().state_dict()
    report = place(encoder.state_dict(), network)
    state = network.state_dict()
    assert all(torch.equal(state["encoder." + name], tensor) for name, tensor in encoder.state_dict().items())
    fresh = [name for name in state if name.removeprefix("encoder.") not in encoder.state_dict()]
    assert all(torch.equal(state[name], untouched[name]) for name in fresh)
    placed = sum(p.numel() for p in encoder.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert report == {
        "encoder_tensors": 30,
        "placed": 30,
        "placed_share": 1.0,
        "decoder_tensors": 0,
        "decoder_placed": 0,
        "inflated": [],
        "dropped": [],
        "dropped_parameters": 0,
        "dropped_parameter_share": 0.0,
        "network_tensors": len(state),
        "network_parameters": total,
        "placed_parameters": placed,
        "placed_parameter_share": placed / total,
        "fresh": fresh,
        "fresh_parameter_share": 1.0 - placed / total,
    }
    share = f"{placed / total:.1%} of the network's parameters; {len(fresh)} tensors fresh"
    assert loaded(report).startswith(f"30 of 30 encoder tensors placed, {share}")
    assert loaded(load_report(network)) == f"from scratch: {total:,} parameters, all fresh"


def test_the_network_then_computes_the_pretrained_features() -> None:
    encoder, network = _pretrained(), _network()
    place(encoder.state_dict(), network)
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        for pretrained, placed in zip(encoder(volume), network.encoder(volume)[:3], strict=True):
            assert torch.equal(pretrained, placed)


FIRST = "conv_blocks_context.0.0.conv1.weight"


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("conv_blocks_context.0", "stem"): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_renamed, r"10 of the encoder's 30 tensors .*stem.0.conv1.weight is not in the network"),
        (lambda s: {**s, FIRST: s[FIRST][:2]}, r"conv1.weight has shape \(2, 1, 3, 3, 3\) where .*\(4, 1, 3, 3, 3\)"),
        (lambda s: {**s, FIRST: s[FIRST] * float("nan")}, "conv1.weight holds values that are not finite"),
        (lambda s: {}, "holds no tensors"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(spoil, says: str) -> None:
    network = _network()
    with pytest.raises(Refusal, match=says):
        place(spoil(_pretrained().state_dict()), network)
    fresh = _network().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.state_dict().items())


def test_tensors_that_share_memory_are_found_by_reading_back() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.a = torch.nn.Parameter(torch.zeros(2))
            self.encoder.b = self.encoder.a

    with pytest.raises(Refusal, match="^a reads back other"):
        place({"a": torch.ones(2), "b": torch.full((2,), 2.0)}, Tied())


def test_glmae_check_14_a_partial_file_is_refused_and_nothing_is_changed() -> None:
    network, state = _network(), _pretrained().state_dict()
    partial = {name: tensor for name, tensor in state.items() if name != FIRST}
    with pytest.raises(Refusal, match=rf"lacks 1 of its 30 tensors \({FIRST}\)"):
        place(partial, network, expected=list(state))
    fresh = _network().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.state_dict().items())
    assert place(state, network, expected=list(state))["placed"] == 30
