"""What is measured: a method on a backbone at a size, with made-up scans. Imports what a GPU machine has, no more.

Sizes: `paper` is every method's Config() as it stands, on the backbones that the papers use, `large` the same
on STU-Net-L and -H; `tiny` is what the tests use, and takes its numbers from config/methods.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402

from voxprior.configuration import Recipe  # noqa: E402
from voxprior.engine.estimate import fake_batch  # noqa: E402
from voxprior.engine.step import Learner, Plan  # noqa: E402
from voxprior.maths import chance  # noqa: E402
from voxprior.methods import METHODS, load  # noqa: E402
from voxprior.nets.backbones import Backbone  # noqa: E402

SIZES: dict[str, dict[str, Backbone]] = {
    "paper": {
        "vit": Backbone(
            "vit_base",
            "vit",
            {"patch_vox": 16, "width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0, "decoder_channels": 48},
        ),
        "cnn": Backbone(
            "stunet_b", "cnn", {"channels": [32, 64, 128, 256, 512, 512], "blocks": 1, "pretrained_stages": 5}
        ),
    },
    "large": {
        "cnn_l": Backbone(
            "stunet_l", "cnn", {"channels": [64, 128, 256, 512, 1024, 1024], "blocks": 2, "pretrained_stages": 5}
        ),
        "cnn_h": Backbone(
            "stunet_h", "cnn", {"channels": [96, 192, 384, 768, 1536, 1536], "blocks": 3, "pretrained_stages": 5}
        ),
    },
    "tiny": {
        "vit": Backbone(
            "vit_tiny",
            "vit",
            {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4},
        ),
        "cnn": Backbone("stunet_tiny", "cnn", {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}),
    },
}
# Samples a step at paper size: as published for one GPU, or as docs/performance.md derives it.
SAMPLES = {"mae": 24, "spark": 4, "anatomask": 4, "glmae": 4, "byol": 32, "pgl": 32}
TOTAL_STEPS = 1000  # of the run that is measured in its middle


def arms(size: str, methods: list[str]) -> list[tuple[str, Backbone]]:
    """Lists every method with every backbone that it accepts."""
    backbones = SIZES[size].values()
    return [(name, backbone) for name in methods for backbone in backbones if load(name).accepts(backbone) is None]


def known(asked: str) -> list[str]:
    """Reads `all` or names with commas; a name that is not there is said, and left out."""
    names = list(METHODS) if asked == "all" else asked.split(",")
    for name in names:
        if name not in METHODS:
            print(f"method {name} is not in this checkout: left out", file=sys.stderr)
    return [name for name in names if name in METHODS]


def config_of(method: str, size: str) -> Any:
    """Makes the method's numbers."""
    module = load(method)
    if size != "tiny":
        return module.Config()
    return module.Config(**preset(ROOT / "config" / "methods" / f"{method}.yaml", size))


def preset(path: Path, name: str) -> dict[str, Any]:
    """Reads one preset of a method's file, whose values are numbers, lists and words: a GPU machine may lack pyyaml."""
    text = path.read_text(encoding="utf-8").split(f"\n{name}:", 1)[1]
    found: dict[str, Any] = {}
    for line in text.splitlines()[1:]:
        if line and not line[0].isspace():
            break
        key, colon, value = line.split("#")[0].partition(":")
        if colon:
            word = value.strip()
            try:
                found[key.strip()] = json.loads(word)
            except ValueError:
                found[key.strip()] = word
    return found


def samples_of(method: str, size: str) -> int:
    """Tells how many samples a step has."""
    return SAMPLES.get(method, 4) if size != "tiny" else 2


def plan(device: torch.device, precision: str = "fp32", compiler: str | None = None, recompute: bool = False) -> Plan:
    """Makes the plan of a run that is only stepped, never saved."""
    recipe = Recipe(lr=1e-4, weight_decay=0.05)
    how: dict[str, Any] = {"compiler": compiler, "recompute": recompute}
    return Plan(TOTAL_STEPS, recipe, "benchmark", Path(), device, precision, "benchmark", **how)


def model_of(method: str, backbone: Backbone, config: Any) -> Any:
    """Builds the model; the same weights at every call."""
    torch.manual_seed(0)
    return load(method).Model(config, backbone.encoder())


def batch_of(method: str, backbone: Backbone, config: Any, samples: int, device: torch.device) -> tuple[Any, Any]:
    """Makes scans of noise, and their keys: (batch, key_B)."""
    region = load(method).region(config, backbone)
    batch, key_B = fake_batch(region, samples, device)
    noise = chance.uniform(key_B, "benchmark", (1, *region.size_vox))
    return {**batch, "region_BCZYX": (1000 * noise).to(torch.int16)}, key_B


def learner_of(method: str, backbone: Backbone, config: Any, how: Plan) -> Learner:
    """Builds a model with its optimiser."""
    return Learner(model_of(method, backbone, config), how)
