"""What doctor says of machines with and without a driver, network folders, DVC, conda, containers and Slurm."""

import sqlite3
from importlib import metadata

import pytest

from voxprior.commands import doctor
from voxprior.commands import surroundings as around


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs on an otherwise empty PATH: name -> (exit code, what they say)."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("VOXPRIOR_IMAGE", raising=False)

    def put(**said):
        for name, (code, text) in said.items():
            (folder / name).write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
            (folder / name).chmod(0o755)

    return put


def marks(lines):
    return [(mark, what) for mark, what, _ in lines]


def test_nothing_is_needed_where_nothing_is_there(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for check in (around.dvc, around.conda, around.containers, around.slurm):
        assert [line[0] for line in check()] == ["ok"], check.__name__
    assert list(around.driver("12.8")) == []


@pytest.mark.parametrize(
    ("cuda", "driver", "mark"), [("13.0", "580.65.06", "ok"), ("13.0", "570.10", "bad"), ("12.8", "535.1", "ok")]
)
def test_an_old_driver_is_named_with_what_cuda_asks_for(programs, cuda, driver, mark):
    programs(**{"nvidia-smi": (0, driver)})
    ((found, what, text),) = around.driver(cuda)
    assert (found, what) == (mark, "driver")
    assert ("580" in text) == (cuda == "13.0")


def test_a_driver_that_fails_is_bad(programs):
    programs(**{"nvidia-smi": (9, "NVIDIA-SMI has failed because it could not communicate with the driver")})
    ((mark, _, text),) = around.driver("12.8")
    assert mark == "bad" and "could not communicate" in text


@pytest.mark.parametrize(
    ("version", "mark"),
    [("conda 24.7.1", "ok"), ("conda 26.7.1", "ok"), ("conda 24.7.0", "warn"), ("conda 4.12.0", "warn")],
)
def test_conda_must_be_new_enough_for_snakemake(programs, version, mark):
    programs(conda=(0, f"conda {version}"))
    ((found, _, text),) = around.conda()
    assert found == mark
    assert ("asks for 24.7.1" in text and "update" in text) == (mark == "warn")


def test_the_version_of_conda_is_the_one_that_snakemake_asks_for():
    from snakemake.deployment import conda

    assert tuple(map(int, conda.MIN_CONDA_VER.split("."))) == around.LEAST_CONDA


def test_mamba_alone_does_not_do(programs):
    programs(micromamba=(0, "2.0.5"))
    ((mark, _, text),) = around.conda()
    assert mark == "warn" and "micromamba" in text


def test_an_image_must_be_there_and_something_to_run_it(programs, tmp_path, monkeypatch):
    image = tmp_path / "voxprior.sif"
    monkeypatch.setenv("VOXPRIOR_IMAGE", str(image))
    assert marks(around.containers()) == [("bad", "image"), ("bad", "container")]
    image.write_text("")
    programs(docker=(0, "Docker version 27.0.1"))
    assert marks(around.containers()) == [("bad", "container")], "docker cannot run a .sif"
    programs(apptainer=(0, "apptainer version 1.3.4"))
    ((mark, _, text),) = around.containers()
    assert mark == "ok" and text == f"apptainer 1.3.4, {image}"


def test_slurm_without_its_plugin_without_a_controller_without_accounting(programs, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    programs(sbatch=(0, "slurm-wlm 22.05.8"), squeue=(0, ""), sacct=(1, "Slurm accounting storage is disabled"))
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", version)
        ((mark, _, text),) = around.slurm()
        assert mark == "warn" and "pip install snakemake-executor-plugin-slurm" in text
    monkeypatch.setattr(metadata, "version", lambda name: "2.8.0")
    first, second = around.slurm()
    assert first == ("ok", "Slurm", "22.05.8, plugin 2.8.0")
    assert second[0] == "warn" and "slurm-status-command: squeue" in second[2]
    programs(squeue=(1, "slurm_load_jobs error"))
    assert "does not answer" in list(around.slurm())[1][2]
    programs(sbatch=(1, "sbatch: fatal: Could not establish a configuration source"))
    ((mark, _, text),) = around.slurm()
    assert mark == "warn" and "configuration source" in text


def test_a_store_and_a_working_folder_on_nfs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    lines = list(around.folders("sqlite:///mlflow.db", mounts))
    assert marks(lines) == [("ok", "work/"), ("warn", "MLflow")]
    assert "several machines can share it" in lines[0][2]
    assert marks(around.folders("http://server:5000", mounts)) == [("ok", "work/")]
    mounts.write_text("disk / ext4 rw 0 0\n")
    ((_, _, text),) = around.folders("sqlite:///mlflow.db", mounts)
    assert "of this machine" in text


def test_a_remote_of_dvc_must_be_the_default_and_be_defined(tmp_path):
    (tmp_path / ".dvc").mkdir()
    config = tmp_path / ".dvc" / "config"
    config.write_text("[core]\n    analytics = false\n")
    ((mark, _, text),) = around.dvc(tmp_path)
    assert mark == "warn" and "dvc remote add -d" in text
    config.write_text("[core]\n    remote = store\n")
    assert [line[0] for line in around.dvc(tmp_path)] == ["warn"]
    (tmp_path / ".dvc" / "config.local").write_text("['remote \"store\"']\n    url = /somewhere\n")
    assert list(around.dvc(tmp_path)) == [("ok", "DVC", "remote store")]


def test_a_locked_store_is_said_and_is_not_bad(tmp_path):
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as database:
        database.execute("create table runs (id text)")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("begin immediate")
    found = doctor.reachable(f"sqlite:///{path}")
    assert found.mark == "warn" and "locked by another process" in found.text
    holder.execute("rollback")
    assert doctor.reachable(f"sqlite:///{path}").mark == "ok"
    holder.close()
