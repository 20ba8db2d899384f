"""nnU-Net's names and plans, against a recorded description of its layout, and nnU-Net itself where it is installed."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from voxprior.commands import export, take_in
from voxprior.errors import Refusal
from voxprior.exchange import nnunet
from voxprior.nets.backbones import Backbone
from voxprior.nets.weights import read_weights, write_weights

ROOT = Path(__file__).parents[2]
LAYOUT = json.loads((Path(__file__).parent / "nnunet_layout.json").read_text(encoding="utf-8"))
TINY = yaml.safe_load((ROOT / "config" / "backbones" / "resenc_tiny.yaml").read_text(encoding="utf-8"))["cnn"]
CARD = {
    "backbone": "resenc_tiny", "family": "cnn", "architecture": TINY, "channels": 1, "method": "spark",
    "config": {"crop_vox": [24, 16, 16]},
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder file with every tensor drawn, and what is in it."""
    torch.manual_seed(0)
    state = {name: torch.randn(t.shape) * 0.1 for name, t in Backbone("b", "cnn", TINY).encoder().state_dict().items()}
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    write_weights(path, state, {"card": CARD, "card_hash": "h", "tensors": list(state)})
    return path, state


def write(to, output, weights=None, results=None, spacing=None):
    export.run(to, output, weights, results, spacing, 501, False, 1e-3)


@pytest.fixture(scope="module")
def checkpoint(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_final.pth"
    write("nnunet-checkpoint", path, encoder[0], spacing=(2.0, 1.5, 1.5))
    return path


def test_names_and_shapes_are_nnunets(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    theirs = LAYOUT["resenc_tiny"]["tensors"]
    ours = {name: list(tensor.shape) for name, tensor in content["network_weights"].items()}
    assert set(ours) == set(theirs)
    heads = {name for name in theirs if ".seg_layers." in name}  # an encoder has no classes: two channels are written
    assert {name: shape for name, shape in ours.items() if name not in heads} == {
        name: shape for name, shape in theirs.items() if name not in heads
    }


def test_a_model_has_its_own_heads(encoder, tmp_path):
    network = Backbone("b", "cnn", TINY).segmenter(3, (16, 16, 16))
    about = {"card": CARD, "classes": ["liver", "spleen"], "window": [16, 16, 16]}
    about["prepare"] = {"spacing_zyx_mm": [3.0, 2.0, 2.0]}
    write_weights(tmp_path / "model.safetensors", network.state_dict(), about)
    write("nnunet-checkpoint", tmp_path / "model.pth", tmp_path / "model.safetensors")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    shapes = {name: list(tensor.shape) for name, tensor in content["network_weights"].items()}
    assert shapes == LAYOUT["resenc_tiny"]["tensors"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(content["network_weights"][name], tensor)
    plan = content["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"]["voxprior"]
    assert plan["spacing"] == [3.0, 2.0, 2.0]


def test_the_plan_has_what_nnunet_reads(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    assert json.loads((checkpoint.parent / "adaptation_plan.json").read_text()) == {
        **plan, "trainer_name": "voxprior_spark"
    }  # fmt: skip
    assert plan["key_to_encoder"] == LAYOUT["key_to_encoder"]
    assert plan["key_to_stem"] == LAYOUT["key_to_stem"]
    assert plan["keys_to_in_proj"] == LAYOUT["keys_to_in_proj"]
    assert plan["pretrain_num_input_channels"] == 1
    assert plan["recommended_downstream_patchsize"] == [24, 16, 16]
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["spacing"] == [2.0, 1.5, 1.5]
    assert configuration["patch_size"] == [24, 16, 16]
    kwargs = plan["architecture_plans"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == TINY["channels"]
    assert kwargs["n_blocks_per_stage"] == TINY["blocks"]
    assert [cited["type"] for cited in content["citations"]] == ["Architecture", "Pre-Training Method"]


def test_resenc_l_goes_by_its_name_and_all_its_tensors():
    sizes = {"kind": "resenc", "channels": nnunet.RESENC_L[0], "blocks": nnunet.RESENC_L[1], "pretrained_stages": 5}
    backbone = Backbone("resenc_l", "cnn", sizes)
    assert nnunet.architecture(backbone)["arch_class_name"] == "ResEncL"
    with torch.device("meta"):
        names = list(backbone.segmenter(3, (64, 64, 64)).state_dict())
    assert len({alias for name in names for alias in nnunet.aliases(name)}) == LAYOUT["resenc_l"]["tensors"]
    assert nnunet.crop_for(backbone, (112, 112, 128)) == [128, 128, 128]
    assert nnunet.crop_for(backbone, (32, 16, 16)) == [64, 64, 64]


def test_stages_that_were_not_pretrained_get_first_weights_and_are_named(tmp_path):
    sizes = TINY | {"pretrained_stages": 2}
    state = Backbone("b", "cnn", sizes).encoder().state_dict()
    path = tmp_path / "encoder.safetensors"
    write_weights(path, state, {"card": CARD | {"architecture": sizes}})
    write("nnunet-checkpoint", tmp_path / "c.pth", path)
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    fresh = json.loads(content["voxprior"])["fresh"]
    assert fresh and all(name.startswith(("stages.2.", "stages.3.")) for name in fresh)
    weight = content["network_weights"]["encoder.stages.3.blocks.1.conv1.conv.weight"]
    assert weight.std().item() == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.05)


def test_there_and_back_is_bit_equal(encoder, checkpoint, tmp_path):
    take_in.run("nnssl", checkpoint, "resenc_tiny", tmp_path / "back.safetensors", 1)
    state, about = read_weights(tmp_path / "back.safetensors", "")
    assert set(state) == set(encoder[1]) == set(about["tensors"])
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder[1].items())
    assert about["card"]["architecture"] == TINY
    placed, dropped = len(state), about["source"]["dropped"]
    assert placed + len(dropped) == len(torch.load(checkpoint, weights_only=True)["network_weights"])


def test_the_same_export_is_the_same_file(encoder, checkpoint, tmp_path):
    write("nnunet-checkpoint", tmp_path / "again.pth", encoder[0], spacing=(2.0, 1.5, 1.5))
    assert (tmp_path / "again.pth").read_bytes() == checkpoint.read_bytes()


def test_refusals(encoder, checkpoint, tmp_path):
    stunet = {"channels": [4, 8], "blocks": 1, "pretrained_stages": 2}
    path = tmp_path / "encoder.safetensors"
    card = CARD | {"backbone": "stunet_x", "architecture": stunet}
    write_weights(path, Backbone("s", "cnn", stunet).encoder().state_dict(), {"card": card})
    with pytest.raises(Refusal, match="stunet_x is no network of nnU-Net"):
        write("nnunet-checkpoint", tmp_path / "c.pth", path)
    write_weights(path, encoder[1], {"card": None})
    with pytest.raises(Refusal, match="does not say its backbone and family and architecture"):
        write("nnunet-checkpoint", tmp_path / "c.pth", path)
    with pytest.raises(Refusal, match="--to keras is no format"):
        write("keras", tmp_path / "c.pth", path)
    with pytest.raises(Refusal, match="with --weights"):
        write("nnunet-checkpoint", tmp_path / "c.pth")
    assert not (tmp_path / "c.pth").exists()


TRAIN = """
import sys
import torch
from nnunetv2.run import run_training_from_pretrained as entry
from nnunetv2.training.nnUNetTrainer.pretraining.pretrainedTrainer import PretrainedTrainer
start = PretrainedTrainer.initialize
def initialize(self):
    self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
    start(self)
    torch.save(self.network.state_dict(), "started.pt")
if __name__ == "__main__":  # its validation starts processes, which import this file
    PretrainedTrainer.initialize = initialize
    entry.train_pretrained_entrypoint()
"""


LOAD = """
import sys
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
plan = torch.load(sys.argv[1], weights_only=True)["nnssl_adaptation_plan"]["architecture_plans"]
given = plan["arch_class_name"], plan["arch_kwargs"], plan["arch_kwargs_requiring_import"]
network = get_network_from_plans(*given, 1, 5, deep_supervision=True)
load_pretrained_weights(network, sys.argv[1])
torch.save(network.state_dict(), "loaded.pt")
"""


@pytest.mark.nnunet
def test_the_loader_of_released_nnunets_takes_it(encoder, checkpoint, tmp_path):
    """What `nnUNetv2_train -pretrained_weights` calls, for five classes: it asks for all tensors but the heads."""
    if not os.environ.get("VOXPRIOR_NNUNET"):
        pytest.skip("VOXPRIOR_NNUNET names no folder with the commands of nnU-Net")
    python = Path(os.environ["VOXPRIOR_NNUNET"], "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = [python, "-c", LOAD, checkpoint]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = torch.load(tmp_path / "loaded.pt", weights_only=True)
    assert loaded["decoder.seg_layers.0.weight"].shape[0] == 5
    assert all(torch.equal(loaded[f"encoder.{name}"], tensor) for name, tensor in encoder[1].items())


@pytest.mark.nnunet
def test_nnunet_fine_tunes_from_it(study, encoder, checkpoint, tmp_path):
    """Plans, preprocesses and trains three steps on exported cases, from our encoder; the result comes back."""
    if not os.environ.get("VOXPRIOR_NNUNET"):
        pytest.skip("VOXPRIOR_NNUNET names no folder with the commands of nnU-Net")
    folder = Path(os.environ["VOXPRIOR_NNUNET"])
    if not (folder / "nnUNetv2_train_pretrained").exists():
        pytest.skip(f"{folder} has no nnUNetv2_train_pretrained, which nnU-Net has since July 2026")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    environment |= {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")}

    def run(*command):
        done = subprocess.run(
            [folder / command[0], *map(str, command[1:])], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    export.run("nnunet-dataset", tmp_path / "raw", None, study, None, 501, False, 1e-3)
    checked = ("--verify_dataset_integrity", "--no_pp")
    run("nnUNetv2_plan_and_preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1, "-npfp", 1, *checked)
    run(
        "nnUNetv2_preprocess_like_nnssl", "-d", 501, "-n", "ours", "-pc", checkpoint, "-am", "like_pretrained", "-np", 1
    )
    (plans,) = (tmp_path / "preprocessed" / "Dataset501_tiny").glob("ptPlans__ours*.json")
    splits = (tmp_path / "raw" / "Dataset501_tiny" / "splits_final.json").read_text()
    (plans.parent / "splits_final.json").write_text(splits)
    (tmp_path / "train.py").write_text(TRAIN)
    environment["nnUNet_n_proc_DA"] = "0"  # batches are made by the training itself; planning wants one process
    said = run("python", "train.py", 501, "3d_fullres", 1, "-p", plans.stem, "-device", "cpu")
    assert "Loaded Network from" in said
    assert "This split has 3 training and 1 validation cases" in said
    started = torch.load(tmp_path / "started.pt", weights_only=True)
    for name, tensor in encoder[1].items():
        assert torch.equal(started[f"encoder.{name}"], tensor)
    (trained,) = (tmp_path / "results").rglob("checkpoint_final.pth")
    take_in.run("nnssl", trained, "resenc_tiny", tmp_path / "back.safetensors", 1)
    state, _ = read_weights(tmp_path / "back.safetensors", "")
    moved = [name for name, tensor in encoder[1].items() if not torch.equal(state[name], tensor)]
    assert len(moved) > len(state) / 2
