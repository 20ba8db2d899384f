"""Weights as files: the same bytes for the same content, and refusals in a sentence."""

from pathlib import Path

import pytest
import torch

from voxprior.errors import Refusal
from voxprior.nets.weights import read_weights, write_weights


def test_what_is_written_is_read_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(1, dtype=torch.int64)}
    about = {"card": {"name": "ü"}, "card_hash": "0"}
    for name in ("one", "two"):
        write_weights(tmp_path / name, tensors, about)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    state, told = read_weights(tmp_path / "one", "do it again")
    assert told == about
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("kind", ["missing", "pickle", "truncated"])
def test_what_is_no_safetensors_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "pickle":
        torch.save({"a": torch.ones(3)}, path)
    elif kind == "truncated":
        write_weights(path, {"a": torch.ones(100)}, {})
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Refusal, match="cannot be read as safetensors") as refused:
        read_weights(path, "run the fine-tuning again")
    assert ("it is a pickle, which may run code" in str(refused.value)) == (kind == "pickle")
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith(": run the fine-tuning again")
