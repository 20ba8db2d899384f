"""Where and when something was measured, and where it is written."""

import json
import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Names the machine, the day and the versions."""
    about = {"date": date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        about |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about["cudnn"] = str(torch.backends.cudnn.version())
        return about
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = model.group(1) if model else platform.processor() or platform.machine()
    return about | {"device": name, "capability": torch.backends.cpu.get_cpu_capability()}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
