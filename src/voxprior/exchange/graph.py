"""Networks as graphs without our code: ONNX and TorchScript, checked against the network before they are kept.

A graph is made for one window: its sides are fixed, the number of windows is not.

Axes: B windows, C channels or classes, Z Y X voxels.
"""

import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxprior.errors import Refusal

BATCHES = (1, 2, 3)  # windows per call that are checked


def torchscript(network: nn.Module, shape_CZYX: tuple[int, ...]) -> bytes:
    """Traces a network, in evaluation mode, and returns the file's bytes.

    Args:
        network: (B, *shape) -> (B, classes, Z, Y, X).
        shape_CZYX: channels and window.
    """
    example_BCZYX = torch.rand(2, *shape_CZYX, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants of the graph: the window's are meant to
        traced = torch.jit.trace(network.eval(), example_BCZYX, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    return buffer.getvalue()


def run_torchscript(content: bytes) -> Callable[[Tensor], Tensor]:
    """Opens a traced network as a function."""
    return torch.jit.load(io.BytesIO(content)).eval()


def onnx(network: nn.Module, shape_CZYX: tuple[int, ...]) -> bytes:
    """Exports a network, in evaluation mode, and returns the file's bytes; its input is `image`, its output `logits`.

    Raises:
        Refusal: the packages of ONNX are not installed.
    """
    _demand("onnx", "onnxscript", "onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells that torchvision is missing, which is not used
    example_BCZYX = torch.rand(2, *shape_CZYX, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network.eval(), (example_BCZYX,), file, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("windows", min=1)},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        return file.read_bytes()


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """Opens an ONNX network as a function, on the CPU."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def call(volume_BCZYX: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": volume_BCZYX.numpy()})[0])

    return call


def difference(
    network: Callable[[Tensor], Tensor], graph: Callable[[Tensor], Tensor], shape_CZYX: tuple[int, ...]
) -> float:
    """Measures how far a graph's logits are from the network's, at most, for several numbers of windows.

    Windows are noise in [0, 1], as prepared scans are, the last one constant: padding looks so.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for batch in BATCHES:
            volume_BCZYX = torch.rand(batch, *shape_CZYX, generator=generator)
            volume_BCZYX[-1, :, : shape_CZYX[1] // 2] = 0.0
            here, there = network(volume_BCZYX), graph(volume_BCZYX)
            if here.shape != there.shape:
                return float("inf")
            worst = max(worst, float((here - there).abs().max()))
    return worst


def demand_equal(worst: float, tolerance: float, what: str) -> None:
    """Refuses a graph that computes something else.

    Raises:
        Refusal: the difference is above the tolerance, or not a number.
    """
    if not worst <= tolerance:
        raise Refusal(
            f"{what} differs from the network by up to {worst:.2g}, more than {tolerance:g}: "
            "export another format, or allow it with --tolerance"
        )


def _demand(*packages: str) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise Refusal(f"ONNX needs the package {name}: install voxprior[exchange]") from None
