import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

from voxprior.cards import card_hash, read_card
from voxprior.commands import pretrain
from voxprior.errors import EXIT_REFUSED, EXIT_RESUMABLE, Refusal, Resumable

FILES = ["clock.jsonl", "encoder.safetensors", "journal.jsonl", "pictures.npz", "summary.json"]


def run(study, folder, **changes):
    card = study.card("pretrain", **changes)
    pretrain.run(card, [study.index], study.splits, folder / "out", folder / "work", 1, "cpu")
    return card


@pytest.fixture(scope="module")
def done(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    return run(tiny_study, folder), folder / "out"


def test_all_files_are_there_and_the_summary_tells_the_run(done):
    card, out = done
    assert sorted(path.name for path in out.iterdir()) == FILES
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["voxels_seen"] == 6 * 2 * 16**3
    assert summary["stage"] == "pretrain"
    assert summary["title"] == "MAE3D"
    assert summary["card_hash"] == card_hash(read_card("pretrain", card))
    assert summary["flops_per_step"] > 0
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["seconds"] > 0
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [record["step"] for record in journal] == list(range(6))
    assert summary["final"] == journal[-1]
    assert not list((out.parent / "work").glob("state-*"))


def test_the_encoder_names_its_card_and_fits_the_backbone(done):
    card, out = done
    from voxprior.nets.backbones import Backbone

    content = read_card("pretrain", card)
    with safe_open(out / "encoder.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["voxprior"])["card_hash"] == card_hash(content)
        encoder = Backbone("vit_tiny", "vit", content.architecture).encoder()
        encoder.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def test_pictures_show_up_to_three_crops(done):
    pictures = np.load(done[1] / "pictures.npz")
    assert sorted(pictures) == ["input", "masked_input", "reconstruction", "valid"]
    for name in ("input", "masked_input", "reconstruction"):
        assert pictures[name].shape == (3, 16, 16, 16)
        assert pictures[name].dtype == np.float32
        assert pictures[name].min() >= 0
        assert pictures[name].max() <= 1
    assert pictures["valid"].tolist() == [True] * 3


def test_the_same_card_gives_the_same_bytes_and_another_seed_does_not(done, tiny_study, tmp_path):
    run(tiny_study, tmp_path / "again")
    for name in ("encoder.safetensors", "journal.jsonl"):
        assert (tmp_path / "again" / "out" / name).read_bytes() == (done[1] / name).read_bytes()
    run(tiny_study, tmp_path / "other", pretrain={"voxels": 6 * 2 * 16**3, "batch_size": 2, "seed": 1})
    assert (tmp_path / "other" / "out" / "journal.jsonl").read_bytes() != (done[1] / "journal.jsonl").read_bytes()


def test_a_stopped_run_writes_no_output_and_goes_on_to_the_same_bytes(done, tiny_study, tmp_path, monkeypatch):
    from voxprior.engine import loop

    step = loop._Run.step

    def stopped(self, number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, *rest)

    monkeypatch.setattr(loop._Run, "step", stopped)
    with pytest.raises(Resumable):
        run(tiny_study, tmp_path)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(loop._Run, "step", step)
    run(tiny_study, tmp_path)
    for name in ("encoder.safetensors", "journal.jsonl", "pictures.npz"):
        assert (tmp_path / "out" / name).read_bytes() == (done[1] / name).read_bytes()


def test_what_cannot_be_is_refused(tiny_study, tmp_path):
    with pytest.raises(Refusal, match="has no fold 7"):
        run(tiny_study, tmp_path, fold=7)
    with pytest.raises(Refusal, match="json: .*vit"):
        run(tiny_study, tmp_path, method="spark", config={"crop_vox": [16, 16, 16]})


def test_volumes_smaller_than_one_patch_are_refused_before_the_first_step(tiny_study, tmp_path):
    coarse = tiny_study.card("pretrain", method="mae", config={"crop_vox": [64, 64, 64]})
    content = json.loads(coarse.read_text())
    content["architecture"] |= {"patch_vox": 32}
    coarse.write_text(json.dumps(content))
    with pytest.raises(Refusal, match="4 of 4 volumes are smaller than one patch of 32 voxels of vit_tiny"):
        pretrain.run(coarse, [tiny_study.index], tiny_study.splits, tmp_path / "out", tmp_path / "work", 1, "cpu")
    assert not (tmp_path / "out").exists()


def test_a_run_has_at_least_two_steps(tiny_study, tmp_path):
    run(tiny_study, tmp_path, pretrain={"voxels": 1, "batch_size": 1})
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_the_command_line_tells_how_it_ended_by_its_exit_code(tiny_study, tmp_path):
    card = tiny_study.card("pretrain", pretrain={"voxels": 10**9, "batch_size": 2})
    command = [sys.executable, "-m", "voxprior", "pretrain", "--card", card, "--index", tiny_study.index]
    command += ["--splits", tiny_study.splits, "--output", tmp_path / "out", "--work", tmp_path / "work"]
    process = subprocess.Popen([*map(str, command), "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    while (
        not (tmp_path / "work" / "journal.jsonl").exists() or not (tmp_path / "work" / "journal.jsonl").stat().st_size
    ):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == EXIT_RESUMABLE
    assert "stopped by SIGUSR1" in told
    assert list((tmp_path / "work").glob("state-*.pt"))
    refused = subprocess.run([*map(str, command), "--device", "gpu"], stderr=subprocess.PIPE, text=True)
    assert refused.returncode == EXIT_REFUSED
    assert refused.stderr.count("\n") == 1


def test_the_encoder_takes_as_many_channels_as_the_scans_have(tiny_study):
    card = tiny_study.card("pretrain", channels=3)
    model, _, _ = pretrain.build(read_card("pretrain", card), card)
    assert model.encoder.channels_in == 3
