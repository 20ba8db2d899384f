"""Weights as files: safetensors with one entry that says what made them, and nothing that runs when it is opened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from voxprior.errors import Refusal
from voxprior.whole import whole


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and what they are (`docs/formats.md`, "encoder and model"); the same content, the same bytes.

    Raises:
        Refusal: the disk is full.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in random order, and the same run would give another file.
    content = save(state, metadata={"voxprior": json.dumps(about)})
    with whole(path, need_bytes=len(content)) as part:
        part.write_bytes(content)


def read_weights(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads tensors and what they are: {} where the file does not say.

    Args:
        path: a safetensors file; a pickle is not opened.
        advice: what to do where the file cannot be read, the end of the refusal's sentence.

    Raises:
        Refusal: missing, damaged, or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("voxprior", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        reason = "it is a pickle, which may run code and is not opened" if _is_pickle(path) else error
        raise Refusal(f"{path} cannot be read as safetensors ({reason}): {advice}") from None


def _is_pickle(path: Path) -> bool:
    """Tells a pickle, or torch's archive of one, by the first bytes of a file that is no safetensors."""
    try:
        with open(path, "rb") as file:
            first = file.read(4)
    except OSError:
        return False
    return first == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05")
