"""The state of an interrupted run: saved whole, checked when read, and asked for by a signal.

A state is `state-<step>-<hash>.pt`, where the hash names the file's own content: a truncated or changed file is noticed
before anything reads it. Two are kept, so that a damaged one costs a little work and not the run.
"""

import hashlib
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from voxprior.engine.journal import Damaged
from voxprior.errors import Refusal
from voxprior.whole import whole

State = dict[str, Any]
_KEPT = 2


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _tensor_bytes(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        content = content.values()
    elif not isinstance(content, list | tuple):
        return 0
    return sum(_tensor_bytes(value) for value in content)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.pt"), reverse=True)


def save(folder: Path, key: str, step: int, content: State) -> Path:
    """Saves the state from which `step` is the next one to do, and removes all but the two newest.

    Args:
        folder: the run's working folder.
        key: names the run; a state of another run is never loaded.
        step: 0-based.
        content: tensors, numbers, strings, and dicts and lists of them; nothing else can be read back.

    Raises:
        Refusal: the disk is full. The states saved before are still there.
    """
    state = {"format": 1, "key": key, "step": step, "content": content}
    with whole(folder / "state.pt", need_bytes=_tensor_bytes(content)) as part:
        torch.save(state, part)
        name = f"state-{step:012d}-{_hash(part)}.pt"
    path = (folder / "state.pt").replace(folder / name)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()
    return path


def _read(path: Path, key: str, device: torch.device) -> tuple[int, State]:
    """Reads one state.

    Raises:
        Damaged: the file's content is not what its name says, it holds more than data, or it is another run's.
    """
    if _hash(path) != path.stem.rsplit("-", 1)[-1]:
        raise Damaged(f"{path} is damaged")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise Damaged(f"{path} is not a state") from error
    if not isinstance(state, dict) or state.get("format") != 1:
        raise Damaged(f"{path} is not a state of this version")
    if state.get("key") != key:
        raise Damaged(f"{path} belongs to another run (another card, or other cases)")
    return state["step"], state["content"]


def candidates(folder: Path, key: str, device: torch.device) -> Iterator[tuple[int, State]]:
    """Yields (step, content) of the states that can be resumed from, newest first; warns of those that cannot."""
    for path in _newest_first(folder):
        try:
            yield _read(path, key, device)
        except Damaged as damage:
            print(f"voxprior: {damage}: it is not used", file=sys.stderr)


def of_step(folder: Path, step: int, device: torch.device) -> State:
    """Reads the state of a step that another process has found good.

    Raises:
        Refusal: it is not there.
    """
    for path in _newest_first(folder):
        if path.name.startswith(f"state-{step:012d}-"):
            content: State = torch.load(path, map_location=device, weights_only=True)["content"]
            return content
    raise Refusal(f"{folder} has no state of step {step} for this process: give --work a folder that all machines see")


def forget(folder: Path) -> None:
    """Removes a finished run's states: the same command run again is a new run."""
    for path in _newest_first(folder):
        path.unlink()


class Stop:
    """Notices SIGTERM, SIGUSR1 and SIGINT while it is entered, so that the step in hand can be finished and saved.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "Stop":
        # Python lets only the main thread handle signals; a run in another thread is not ours to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
