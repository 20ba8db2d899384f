"""Where a run computes: device, threads, precision, determinism; and what it ran on."""

import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from voxprior.engine import members
from voxprior.errors import Refusal

# Words of the name that the driver gives -> TFLOP/s in bfloat16 and in float32. The first that fits counts.
_PEAK_TFLOPS = {
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.5),
    "H100": (989.0, 494.5),
    "H200 NVL": (835.0, 417.5),
    "H200": (989.0, 494.5),
    "GH200": (989.0, 494.5),
    "A100": (312.0, 156.0),
    "A40": (149.7, 74.8),
    "A30": (165.0, 82.0),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L40": (181.0, 90.5),
    "L4": (121.0, 60.5),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
_PACKAGES = ("voxprior", "torch", "numpy", "monai", "SimpleITK", "safetensors", "blosc2")


def pick(name: str, threads: int) -> torch.device:
    """Chooses the device, gives torch its threads and makes its kernels deterministic. The one place for all three.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:<n>.
        threads: what the job was given on this machine, shared by its processes here; two threads beside a busy
            neighbour are slower than one.

    Raises:
        Refusal: CUDA is asked for and not there, or there are fewer GPUs than processes.
    """
    if name != "auto" and name.split(":")[0] not in ("cpu", "cuda"):
        raise Refusal(f"device {name!r} is not known: choose auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Refusal(f"device {name} is asked for but torch {torch.__version__} sees none: use --device cpu")
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
    here = members.found()
    if device.type == "cuda" and here.size > 1:
        device = _own_gpu(device, here)
    torch.set_num_threads(max(1, threads // here.local_size))
    if torch.get_num_interop_threads() != 1:
        # Can be set once per process only, before any parallel work; nothing here runs operations side by side.
        with suppress(RuntimeError):
            torch.set_num_interop_threads(1)
    # cuBLAS is deterministic only with this, and reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        # The same for kernels, without a second of importing the compiler to tell it too: prediction has no other use
        # for it.
        torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, costly
    torch.backends.cudnn.benchmark = False
    return device


def _own_gpu(device: torch.device, here: members.Member) -> torch.device:
    """Chooses the GPU of one of several processes: each has its own."""
    seen = torch.cuda.device_count()
    if seen == 1 and {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"} & os.environ.keys():
        return torch.device("cuda", 0)  # srun shows each task its own
    if device.index is not None or seen < here.local_size:
        raise Refusal(
            f"{here.local_size} processes on this machine need a GPU each, and --device {device} and the driver show "
            f"{1 if device.index is not None else seen}: start as many processes as there are GPUs, or use --device cpu"
        )
    device = torch.device("cuda", here.local_rank)
    torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Computes matrix products and convolutions in bfloat16 for `bf16`, everything in float32 for `fp32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def can_compile(device: torch.device) -> bool:
    """Tells whether `torch.compile` is worth it and possible here: on CUDA, with Triton and a C compiler for it."""
    compilers = ("cc", "gcc", "clang")
    return device.type == "cuda" and find_spec("triton") is not None and any(map(shutil.which, compilers))


def small_convolutions_err(device: torch.device) -> bool:
    """Tries whether bfloat16 gives convolutions of maps that are 2 voxels a side a wrong gradient of their weights.

    On CPUs torch 2.13 leaves parts of it as the memory was: other numbers each time, at times none. Maps of other sizes
    are right, and so is float32.
    """
    if device.type != "cpu":
        return False
    volume = torch.ones(1, 32, 2, 2, 2, dtype=torch.bfloat16)
    weight = torch.ones(32, 32, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.enable_grad():
        torch.nn.functional.conv3d(volume, weight, padding=1).sum().backward()
    # Each of the 27 taps sees as many of the eight voxels as fit: 4 of 8 along two axes, and so on.
    sees = torch.tensor([1.0, 2.0, 1.0])
    right = sees[:, None, None] * sees[None, :, None] * sees
    return weight.grad is None or not torch.equal(weight.grad.float(), right.expand(32, 32, 3, 3, 3))


class Upload:
    """Copies batches to a device, on a GPU beside what it computes: the host runs ahead of it, and so do the copies.

    GL-MAE's regions are 262 MB a step, 5 ms of a bus of 50 GB/s. They copy while the step before is computed if the
    batch lies in page-locked memory, as the loader puts it for a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, key_B: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Returns keys and batch on the device, for the stream that is current there."""
        if self.stream is None:
            return key_B.to(self.device), {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.cuda.stream(self.stream):
            keys = key_B.to(self.device, non_blocking=True)
            there = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in (keys, *there.values()):
            tensor.record_stream(computing)  # its memory is not given to the next copy before the step is done
        return keys, there


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Tells what the device can compute at most, in operations per second; None where it is not known, as for CPUs.

    Published dense peaks, without sparsity. `fp32` is measured against TF32 where the device has it, because torch
    computes float32 convolutions in TF32 there; it does not compute matrix products so, which then look slow. V100 and
    T4 have no bfloat16 units: theirs are the float16 peaks. Source: NVIDIA's data sheets of each product.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    fits = next((peaks for words, peaks in _PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)
    return fits[precision == "fp32"] * 1e12 if fits else None


def describe(device: torch.device) -> str:
    """Names the device for the summary: the GPU's name, or cpu with its threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def peak_memory_bytes(device: torch.device) -> int:
    """Tells the most memory that was used: of the GPU's allocator, or resident memory of this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Lists the versions of Python and of the packages that results depend on, without importing them."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name.lower()] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Tells the commit of this package's checkout, with `-dirty` if it was changed; None where it is installed.

    A package installed below somebody's own repository is not tracked there, and that commit is not reported.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
