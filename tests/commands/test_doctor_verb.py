"""doctor: what it says of machines that are fit and of such that are not, and what backbones cost."""

import sqlite3
from pathlib import Path

import pytest
import torch
import yaml

from voxprior.commands import doctor, named
from voxprior.nets.backbones import Backbone

ROOT = Path(__file__).parents[2]
PAPER = {"crop_vox": (96, 96, 96), "batch_size": 2, "precision": "bf16", "classes": 14, "channels": 1}


def test_a_fit_machine_has_one_line_a_question_and_nothing_bad(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor.run("sqlite:///mlflow.db")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fit for a study"
    assert not [line for line in lines if line.startswith("bad")]
    for what in ("python", "packages", "torch", "GPU", "cores", "memory", "disk", "MLflow"):
        assert sum(line[5:].startswith(what) for line in lines) >= 1, what


def test_a_full_disk_and_too_little_memory_are_said(tmp_path, monkeypatch, capsys):
    from voxprior.data import memory

    monkeypatch.chdir(tmp_path)
    usage = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 30)
    assert not doctor.run("sqlite:///mlflow.db")
    said = capsys.readouterr().out
    assert "bad  disk      0.0 GiB free" in said
    assert "warn memory    1.0 GiB free, jobs ask for 4" in said
    assert said.endswith("1 to mend\n")


@pytest.mark.parametrize(
    ("version", "cuda", "bad"),
    [("2.9.0+cu128", True, True), ("2.9.1", True, True), ("2.9.1+cpu", False, False), ("2.10.0", True, False)],
)
def test_torch_2_9_is_named_where_it_has_cuda(version, cuda, bad):
    assert ("Conv3d" in doctor.known_bad(version, cuda)) == bad


def test_a_missing_package_is_named(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99", "nothing_like_it", "pytest; extra == 'test'"])
    (finding,) = [f for f in doctor.packages() if f.what == "packages"]
    assert finding.mark == "bad"
    assert "torch is" in finding.text
    assert "nothing_like_it is missing" in finding.text
    assert "pytest" not in finding.text


def test_a_store_is_there_or_not_or_damaged(tmp_path):
    path = tmp_path / "store.db"
    assert doctor.reachable(f"sqlite:///{path}").text.endswith("the first study makes it")
    with sqlite3.connect(path) as database:
        database.execute("create table runs (id text)")
    assert doctor.reachable(f"sqlite:///{path}") == ("ok", "MLflow", f"{path}, 0 runs")
    path.write_bytes(b"no database at all, but long enough to look at" * 20)
    assert doctor.reachable(f"sqlite:///{path}").mark == "warn"
    assert "does not answer" in doctor.reachable("http://127.0.0.1:9").text


@pytest.mark.parametrize(
    ("name", "million"), [("stunet_s", 14.6), ("stunet_b", 58.26), ("stunet_l", 440.30), ("stunet_h", 1457.33)]
)
def test_stunets_have_the_published_number_of_parameters(name, million):
    """Huang et al. 2023, table 1. Theirs count 105 classes."""
    found = doctor.count(ROOT / f"config/backbones/{name}.yaml", {**PAPER, "classes": 104})
    assert found[0] == pytest.approx(million, rel=0.01)
    assert found[3] / found[2] == pytest.approx(6, rel=0.01)  # forward and twice that backward, of two crops


def test_what_is_counted_is_what_is_built(tmp_path):
    path = ROOT / "config/backbones/vit_tiny.yaml"
    spec = yaml.safe_load(path.read_text())
    backbone = Backbone("v", "vit", spec["vit"], 2)
    asked = {**PAPER, "crop_vox": (16, 16, 32), "classes": 3, "channels": 2}
    network = backbone.segmenter(4, asked["crop_vox"])
    parameters, handed_on, *_, gib = doctor.count(path, asked)
    assert parameters * 1e6 == sum(p.numel() for p in network.parameters())
    assert handed_on * 1e6 == sum(p.numel() for p in backbone.encoder().parameters())
    assert gib > 4 * 4 * parameters * 1e6 / 2**30  # weights, gradients, two moments
    assert torch.get_default_device().type == "cpu"


def test_the_table_has_every_backbone_and_takes_a_studys_crop(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "config" / "backbones"
    folder.mkdir(parents=True)
    monkeypatch.setattr(named, "PROJECT", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    for name in ("vit_tiny", "stunet_b"):
        (folder / f"{name}.yaml").write_text((ROOT / f"config/backbones/{name}.yaml").read_text())
    doctor.run_backbones(ROOT / "config" / "config.yaml")
    said = capsys.readouterr().out
    assert "2 crops of 32x32x32, 1 channel, 5 classes, fp32" in said
    assert "stunet_b        a crop of 32x32x32 voxels is one voxel after 6 stages" in said
    assert [line for line in said.splitlines() if line.startswith("vit_tiny") and "3.0" in line]
