"""What a GPU has used up, as its own counter tells it.

Processors are left out: their counter tells what all jobs of a machine use together, and few may read it.
"""

from collections.abc import Callable

import torch


def counter(device: torch.device) -> Callable[[], float | None]:
    """Finds the device's energy counter: it tells joules since the driver was loaded, or None where they are not known.

    NVML knows them from Volta on. It counts the whole GPU: jobs that share one count each other's.
    """
    if device.type != "cuda":
        return _nothing
    try:
        import pynvml
    except ImportError:
        return _nothing
    try:
        pynvml.nvmlInit()
        # By its identity: NVML numbers all GPUs, CUDA those that this process may see.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return _nothing

    def read() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0  # from mJ
        except pynvml.NVMLError:
            return None

    return read


def _nothing() -> None:
    return None


class Meter:
    """Tells what was used since it was made, on top of what earlier parts of an interrupted run had used."""

    def __init__(self, device: torch.device, before: float | None = 0.0) -> None:
        """Begins to count; `before` is None where an earlier part was not measured, and then nothing is known."""
        self._read = counter(device) if before is not None else _nothing
        self._before, self._began = before or 0.0, self._read()

    def joules(self) -> float | None:
        """Tells the energy so far; None where the device does not count it."""
        now = self._read()
        return None if now is None or self._began is None else self._before + now - self._began
