"""A tiny study on phantoms: index, cached arrays and splits, as `prepare` and `split` would have written them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUANTUM = 1 / 1000
CLASSES = 2
VIT = {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [4, 8, 8], "blocks": 1, "pretrained_stages": 2}
MAE = {"crop_vox": [16, 16, 16], "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
RECIPE = {"lr": 0.003, "weight_decay": 0.01}


class Study:
    """Paths of the study, and the cards of its runs."""

    cnn = CNN

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = make_index(folder / "prepared" / "phantoms", "phantoms", 6, seed=0)
        self.splits = folder / "splits.json"
        names = [f"phantom_{number}" for number in range(6)]
        fold = {"fold": 0, "test": names[:2], "val": [], "train": names[2:], "pool": names[2:]}
        fold["budgets"] = {"1": names[2:3], "2": names[2:4]}
        self.splits.write_text(json.dumps({"format": 1, "sha256": "", "folds": [fold]}))

    def card(self, stage: str, **changes: Any) -> Path:
        """Writes the card of a stage, with changes, and returns its path."""
        backbone = {"backbone": "vit_tiny", "family": "vit", "architecture": VIT, "recipe": RECIPE, "fold": 0}
        cards: dict[str, dict[str, Any]] = {
            "pretrain": {
                **backbone,
                "method": "mae",
                "config": MAE,
                "pretrain": {"voxels": 6 * 2 * 16**3, "batch_size": 2},
            },
            "finetune": {
                **backbone,
                "init": "scratch",
                "classes": ["liver", "spleen"],
                "steps": 4,
                "batch_size": 2,
                "crop_vox": [16, 16, 16],
                "foreground": 0.5,
                "precision": "fp32",
                "prepare": {"spacing_zyx_mm": [3, 2, 2], "intensity": {"kind": "window", "low": -200, "high": 300}},
                "budget": 2,
                "seed": 0,
            },
            "predict": {"predict": {"overlap": 0.25}, "fold": 0},
        }
        path = self.folder / f"{stage}-{len(list(self.folder.glob('*.json')))}.json"
        path.write_text(json.dumps(cards[stage] | changes))
        return path


def make_index(folder: Path, dataset: str, cases: int, seed: int, unlabelled: int = 0) -> Path:
    """Caches phantoms without resampling them and writes their index; the last `unlabelled` have no label map."""
    from voxprior.data import cache, phantoms, volume

    entries = []
    for number in range(cases):
        name = f"phantom_{number}"
        voxels, labels = phantoms.make(seed + number, (20, 24, 22), CLASSES)
        raw = phantoms.grid_of(voxels.shape, (3.0, 2.0, 2.0), "RAS")
        image_ZYX, grid = volume.to_lps(volume.from_array(voxels, raw))
        labels_ZYX, _ = volume.to_lps(volume.from_array(labels, raw))
        scaled = np.clip((image_ZYX + 1000) / 1500 / QUANTUM, 0, 1000).astype(np.int16)
        places = {n: np.argwhere(labels_ZYX == n)[:50] for n in range(1, CLASSES + 1)}
        image, label = f"volumes/{name}.b2nd", f"volumes/{name}.label.b2nd"
        entry = {
            "case": name, "patient": name, "person": name, "shape_zyx": list(scaled.shape),
            "spacing_zyx_mm": [3.0, 2.0, 2.0], "image": image, "label": label,
            "image_sha256": cache.write_array(folder / image, scaled[None], "key"),
            "label_sha256": cache.write_array(folder / label, labels_ZYX, "key", places),
            "class_voxels": [len(places[n]) for n in places], "raw": raw.to_json(), "grid": grid.to_json(),
        }  # fmt: skip
        if number >= cases - unlabelled:
            entry |= {"label": None, "label_sha256": None}
        entries.append(entry)
    index = {
        "format": cache.FORMAT,
        "dataset": dataset,
        "key": "key",
        "quantum": QUANTUM,
        "classes": [1, 2],
        "simulated": False,
    }
    (folder / "index.json").write_text(json.dumps({**index, "cases": entries}))
    return folder / "index.json"


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Makes the study once; tests write their own cards, outputs and working folders."""
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def external_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes another dataset: three cases, the last without labels."""
    return make_index(tmp_path_factory.mktemp("external"), "elsewhere", 3, seed=50, unlabelled=1)
