"""Networks of both families take volumes of several channels, and every method pretrains on them."""

from pathlib import Path

import pytest
import torch
import yaml

from voxprior.maths import chance
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone

SIZES = {
    "vit": {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4},
    "cnn": {"channels": [4, 8, 8, 8], "blocks": 1, "pretrained_stages": 3},
}
CONFIG = Path(__file__).parents[2] / "config" / "methods"


@pytest.mark.parametrize("family", SIZES)
def test_segmenters_take_channels_and_every_one_counts(family):
    torch.manual_seed(0)
    network = Backbone(family, family, SIZES[family], 3).segmenter(2, (16, 16, 16)).eval()
    volume = torch.rand(2, 3, 16, 16, 16)
    with torch.no_grad():
        before = network(volume)
        assert before.shape == (2, 2, 16, 16, 16)
        for channel in range(3):
            other = volume.clone()
            other[:, channel] = 1 - other[:, channel]
            assert not torch.allclose(network(other), before)


@pytest.mark.parametrize("family", SIZES)
def test_one_channel_is_the_network_of_before(family):
    states = []
    for given in ((), (1,)):
        torch.manual_seed(0)
        states.append(Backbone(family, family, SIZES[family], *given).segmenter(2, (16, 16, 16)).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


PAIRS = [
    (method, family)
    for method in METHODS
    for family in SIZES
    if not load(method).accepts(Backbone("b", family, SIZES[family]))
]


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_methods_pretrain_on_channels(method, family):
    module, backbone = load(method), Backbone(family, family, SIZES[family], 2)
    preset = yaml.safe_load((CONFIG / f"{method}.yaml").read_text(encoding="utf-8"))["tiny"]
    config = module.Config(**preset)
    torch.manual_seed(0)
    model = module.Model(config, backbone.encoder())
    size = module.region(config, backbone).size_vox
    key_B = chance.keys(0, 0, torch.arange(2))
    batch = {
        "region_BCZYX": (1000 * chance.uniform(key_B, "test", (2, *size))).to(torch.int16),
        "quantum_B": torch.full((2,), 1e-3),
        "spacing_mm_B3": torch.full((2, 3), 3.0),
        "valid_lo_B3": torch.zeros(2, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor(size).repeat(2, 1),
    }
    views = model.views(batch, key_B)
    terms = model(views, 0.5)
    loss = sum(term.weight * term.sum / term.count for term in terms.values() if term.weight)
    loss.backward()
    assert torch.isfinite(loss)
    name = "embed.weight" if family == "vit" else "conv_blocks_context.0.0.conv1.weight"
    gradient = dict(model.encoder.named_parameters())[name].grad
    # Of a patch's values the channel is the last: every second one; of a convolution's inputs the second axis.
    parts = [gradient[:, channel::2] if family == "vit" else gradient[:, channel] for channel in range(2)]
    assert all(part.abs().sum() > 0 for part in parts)
    if hasattr(model, "pictures"):
        assert all(shown.ndim == 4 or name.startswith("points") for name, shown in model.pictures(views).items())
