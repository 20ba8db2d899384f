"""The Triton kernel that cuts views: through Triton's interpreter against the matrix products, and compiled for GPUs.

Triton comes with torch for CUDA. Where only a CPU build is, these need `pip install triton`.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from voxprior.maths import crops

pytest.importorskip(
    "triton", reason="Triton is not installed: it comes with CUDA builds of torch, or pip install triton"
)


@pytest.fixture(scope="module")
def cutting():
    """Imports the kernel so that Triton interprets it on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.import_module("voxprior.maths.cutting")
        assert type(module._cut).__name__ == "InterpretedFunction", "somebody imported it before"
        yield module
    del sys.modules["voxprior.maths.cutting"]


def example(channels=1, dtype=torch.int16):
    """Makes two regions, the second padded, and two boxes in each: one that shrinks, one that magnifies."""
    torch.manual_seed(0)
    region = torch.randint(-300, 1000, (2, channels, 9, 10, 11), dtype=torch.int16).to(dtype)
    valid_lo = torch.tensor([[0, 0, 0], [2, 1, 3]])
    valid_hi = torch.tensor([[9, 10, 11], [8, 10, 9]])
    lo = torch.tensor([[-3.0, 0.0, 0.0], [2.3, 4.1, 5.7]]).expand(2, 2, 3)  # the first leaves the region
    hi = torch.tensor([[9.0, 12.5, 11.0], [6.1, 7.7, 9.9]]).expand(2, 2, 3)
    flipped = torch.tensor([[[True, False, True], [False, True, False]]]).expand(2, 2, 3)
    return region, torch.tensor([1e-3, 2e-3]), lo, hi, valid_lo, valid_hi, flipped


@pytest.mark.parametrize(("channels", "mirrored"), [(1, True), (2, False)])
def test_the_kernel_equals_the_matrix_products(cutting, channels, mirrored):
    region, quantum, lo, hi, valid_lo, valid_hi, flipped = example(channels)
    flips = flipped if mirrored else None
    wanted = crops.cut(region, lo, hi, (5, 6, 7), valid_lo, valid_hi, flips, quantum)
    found = cutting.cut(region, quantum, lo, hi, (5, 6, 7), torch.cat([valid_lo, valid_hi], 1), flips)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def test_what_padding_holds_never_enters_a_view(cutting):
    region, _, lo, hi, valid_lo, valid_hi, flipped = example(dtype=torch.float32)
    at = torch.stack(torch.meshgrid(*[torch.arange(n) for n in region.shape[2:]], indexing="ij"), -1)
    real = ((at >= valid_lo[:, None, None, None]) & (at < valid_hi[:, None, None, None])).all(-1)[:, None]
    valid = torch.cat([valid_lo, valid_hi], 1)[1:]
    told = [
        cutting.cut(
            torch.where(real, region, filling)[1:], torch.ones(1), lo[1:], hi[1:], (5, 6, 7), valid, flipped[1:]
        )
        for filling in (0.0, float("nan"))
    ]
    assert torch.equal(*told)


def test_the_kernel_is_used_where_it_is_allowed_and_on_a_gpu_alone(monkeypatch):
    region, quantum, lo, hi, valid_lo, valid_hi, flipped = example()
    monkeypatch.setattr(crops, "_kernel", True)
    assert crops.cut(region, lo, hi, (4, 4, 4), valid_lo, valid_hi, flipped, quantum).device.type == "cpu"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from voxprior.maths.cutting import _cut
types = {"region": "*i16", "scale": "*fp32", "edges": "*fp32", "out": "*fp32"}
types |= dict.fromkeys(("channels", "views", "side_z", "side_y", "side_x"), "i32")
sizes = {"size_z": 160, "size_y": 160, "size_x": 160, "block": 256}
signature = types | dict.fromkeys(sizes, "constexpr")
source = triton.compiler.ASTSource(_cut, signature, {(list(signature).index(n),): v for n, v in sizes.items()})
for capability in (90,):
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    print(capability, len(made.asm["cubin"]), made.metadata.shared)
"""


def test_the_kernel_compiles_for_gpus(tmp_path):
    if not importlib.util.find_spec("triton.backends.nvidia"):
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["90"]
