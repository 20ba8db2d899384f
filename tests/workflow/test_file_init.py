"""A study that starts from a file of weights, from scans to report."""

import json

import pytest
import torch
from safetensors.torch import save_file

from voxprior.nets.backbones import Backbone

pytestmark = pytest.mark.slow
CNN = {"channels": [4, 8, 8, 8], "blocks": 1, "pretrained_stages": 4}  # mini_cnn's


def test_a_study_from_a_file_of_weights(tmp_path, snakemake, write_study):
    inits, files = {"mini_cnn": ["scratch", "mine"]}, {"mine": {"path": "my weights.safetensors", "title": "Ours"}}
    finetune = {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}
    recipes = {"mini_cnn": {"finetune": {"transfer": "decoder_first", "frozen": 0.5}}}
    split = {"test": 2, "val": 1, "budgets": [3]}
    folder = write_study(
        tmp_path / "study",
        inits=inits,
        files=files,
        methods={},
        pool=[],
        split=split,
        finetune=finetune,
        recipes=recipes,
    )
    torch.manual_seed(3)
    save_file(dict(Backbone("", "cnn", CNN).encoder().state_dict()), folder / "my weights.safetensors")
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.text
    results = folder / "results"
    assert "Ours" in (results / "report.html").read_text()
    assert "Ours" in (results / "model_card.md").read_text()
    assert set(json.loads((results / "tables" / "metrics.json").read_text())["mini_cnn"]) == {"scratch", "mine"}
    cell = results / "finetune/mini_cnn/mine/budget3/fold0/seed0"
    assert json.loads((cell / "load_report.json").read_text())["placed_share"] == 1.0
    runs = json.loads((results / "tracked.json").read_text())["runs"]
    assert sorted(name.split("/")[0] for name in runs) == ["arm", "arm", "finetune", "finetune", "study"]
    (folder / "my weights.safetensors").touch()
    again = snakemake(folder, "--cores", "1")
    assert "Nothing to be done" in again.text
