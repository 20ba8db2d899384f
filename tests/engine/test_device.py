import subprocess
from pathlib import Path

import pytest
import torch

from voxprior.engine import device as devices
from voxprior.errors import Refusal


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick("auto", 1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert devices.describe(torch.device("cpu")) == "cpu, 1 threads"


def test_a_device_that_is_not_there_or_not_known_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refusal, match="device cuda is asked for"):
        devices.pick("cuda", 1)
    with pytest.raises(Refusal, match="'gpu' is not known: choose auto, cpu or cuda"):
        devices.pick("gpu", 1)


def test_bf16_multiplies_in_bfloat16_and_fp32_does_not():
    a, cpu = torch.ones(2, 2), torch.device("cpu")
    with devices.autocast(cpu, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with devices.autocast(cpu, "fp32"):
        assert (a @ a).dtype == torch.float32


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own peak")
def test_memory_is_the_kernels_peak_in_bytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert devices.peak_memory_bytes(torch.device("cpu")) == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)


def test_versions_and_commit_name_what_ran(monkeypatch, tmp_path):
    assert devices.versions()["torch"] == torch.__version__
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(devices.__file__).parent, capture_output=True, text=True
    )
    if head.returncode == 0:
        assert (devices.git_commit() or "").removesuffix("-dirty") == head.stdout.strip()


def test_an_unrelated_repository_around_the_package_is_not_reported(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "device.py"
    installed.write_text("")
    monkeypatch.setattr(devices, "__file__", str(installed))
    assert devices.git_commit() is None
