"""Checkpoints of other projects, read without running what is in them, and written for them alone."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.whole import whole

HOLDERS = ("network_weights", "state_dict", "model_state_dict", "model")  # where projects keep the tensors


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors of a `.pth` or `.safetensors` file, and what else it holds.

    Nothing in it is run: `torch.load(weights_only=True)`, with numpy's numbers, which nnU-Net's logs hold, allowed.

    Returns:
        (tensors by name, the rest of the file's dictionary).

    Raises:
        Refusal: damaged, or it holds objects that only its own code can open, or no tensors.
    """
    if path.suffix == ".safetensors":
        from voxprior.nets.weights import read_weights

        return read_weights(path, "download it again")
    try:
        with torch.serialization.safe_globals(_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        said = str(error).split("\n")[0]
        raise Refusal(
            f"{path} cannot be read without running code that is in it, or is damaged ({said}): "
            "save its tensors alone, with torch.save(model.state_dict(), ...)"
        ) from None
    rest = dict(content) if isinstance(content, dict) else {}
    tensors: Any = next((rest.pop(key) for key in HOLDERS if isinstance(rest.get(key), dict)), rest)
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise Refusal(f"{path} holds no tensors under a name that is known ({', '.join(HOLDERS)}): save them so")
    return tensors, {key: value for key, value in rest.items() if not isinstance(value, Tensor)}


def _numbers() -> list[Any]:
    """Lists what numpy's numbers need to be opened: plain data, no code."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # what numpy's pickles call; it has moved between numpy's versions
    return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "bool"))]


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a pickle that `torch.load(weights_only=True)` opens; the same content, the same bytes.

    Raises:
        Refusal: the disk is full.
    """
    buffer = io.BytesIO()  # in memory first: torch names what is inside after the file, which has no final name yet
    torch.save(content, buffer)
    with whole(path, need_bytes=buffer.getbuffer().nbytes) as part:
        part.write_bytes(buffer.getbuffer())
