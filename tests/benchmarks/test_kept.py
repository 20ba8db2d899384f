"""`benchmarks/kept.py`: the fullest moment of a compiled step, without computing it."""

from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from voxprior.engine import estimate
from voxprior.engine.step import compile_networks, networks, reduce_terms

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
KIB, ALSO = torch.zeros(16, 16), torch.zeros(16, 16)  # 1,024 bytes each


@pytest.fixture
def kept(monkeypatch):
    """Imports the script with its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import kept

    return kept


def extra(kept, function, *given, inputs_end=False):
    return kept.Graph(make_fx(function, tracing_mode="fake")(*given).graph).extra_bytes(inputs_end)


def test_what_is_made_element_by_element_lies_nowhere(kept):
    assert extra(kept, lambda x: ((x + 1).relu() * 2).sum(), KIB) == 4
    assert extra(kept, lambda x: (x + 1).relu() * 2, KIB) == 1024


def test_products_read_and_write_memory(kept):
    assert extra(kept, lambda x, w: (x + 1).relu() @ w, KIB, ALSO) == 2048
    # The first product ends before the third is made.
    assert extra(kept, lambda x, w: (((x @ w) @ w) @ w) @ w, KIB, ALSO) == 2048


def test_what_much_is_read_for_lies_in_memory_if_a_reduction_comes_between(kept):
    parts = [torch.zeros(16, 16) for _ in range(6)]

    def scaled(x, w, *parts):
        total = sum(parts)
        mean, product = total.view(-1).mean(), x @ w
        return total.view(-1).view(16, 16) * mean + product

    assert extra(kept, scaled, KIB, ALSO, *parts) == 1024 + 4 + 1024  # the sum waits
    assert extra(kept, scaled, KIB, ALSO, *parts[:2]) == 4 + 1024  # it is made of the two again
    assert extra(kept, lambda *parts: (sum(parts) * 2, sum(parts) + 1), *parts) == 2048


def test_the_backward_pass_lets_go_of_what_it_was_given(kept):
    def pass_on(x, w):
        return ((x @ w).relu() @ w).relu()

    assert extra(kept, pass_on, KIB, ALSO) == 2048
    # x ends with the first product; the second relu writes over what it reads.
    assert extra(kept, pass_on, KIB, ALSO, inputs_end=True) == 1024


def test_a_view_is_what_it_looks_at(kept):
    assert extra(kept, lambda x, w: sum((x @ w).view(4, 4, 16).unbind(0)) @ w, KIB, ALSO) == 1024 + 256
    assert extra(kept, lambda x, w: (x @ w).view(4, 64).view(-1).sum(), KIB, ALSO) == 1028


def model_and_views(kept, method, family):
    """A tiny model and what it sees, on the CPU."""
    arms = kept.arms
    (backbone,) = [found for _, found in arms.arms("tiny", [method]) if found.family == family]
    module, config = arms.load(method), arms.config_of(method, "tiny")
    torch.manual_seed(0)
    model = module.Model(config, backbone.encoder()).train()
    batch, key_B = estimate.fake_batch(module.region(config, backbone), 2, CPU)
    with torch.no_grad():
        return model, model.views(batch, key_B)


def saved_bytes(model, views):
    """Adds up what the step keeps for the backward pass, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = reduce_terms(model(views, 0.5))  # alive, and so are the storages
    assert terms
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(
    ("method", "family"), [("spark", "cnn"), ("anatomask", "cnn"), ("byol", "cnn"), ("mae", "vit"), ("glmae", "vit")]
)
def test_networks_keep_what_torchs_own_compiler_keeps(kept, monkeypatch, method, family):
    model, views = model_and_views(kept, method, family)
    watch = kept.Watch()
    for _, part in networks(model):
        part.forward = kept.Traced(part, watch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        ours = saved_bytes(model, views)
    model, views = model_and_views(kept, method, family)
    torch.compiler.reset()
    compile_networks(model, "aot_eager_decomp_partition")
    theirs = saved_bytes(model, views)
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("method", "family"), [("anatomask", "cnn"), ("glmae", "vit")])
def test_a_step_is_laid_out_with_its_weights_and_grows_with_its_samples(kept, method, family):
    arms = kept.arms
    (backbone,) = [found for _, found in arms.arms("tiny", [method]) if found.family == family]
    module, config = arms.load(method), arms.config_of(method, "tiny")
    region = module.region(config, backbone)

    def peak(samples, optimiser_bytes=0):
        with estimate.META:
            model = module.Model(config, backbone.encoder())
        return kept.peak_bytes(model, region, samples, optimiser_bytes)

    with estimate.META:
        model = module.Model(config, backbone.encoder())
    cost = estimate.cost(model, region, 2, "bf16", arms.plan(estimate.META).recipe)
    few, some, many = peak(2), peak(4), peak(6)
    assert many - some == pytest.approx(some - few, rel=0.1)
    assert cost.weight_bytes + cost.input_bytes < few < 2 * (cost.memory_bytes - cost.optimiser_bytes)
    assert peak(2, 1000) == few + 1000


def test_what_nobody_holds_is_not_counted(kept):
    with kept.Watch() as watch:
        first = torch.zeros(256)
        del first
        second = torch.zeros(256)
        watch.reach(24)
    assert second.shape == (256,)
    assert watch.peak_bytes == 1024 + 24
