"""`--processes N`: the command in hand, N times on this machine, which compute as one.

torchrun does the same. This tells besides in one sentence what went wrong, and hands on how the processes ended: 75
stays "stopped, go on from here", 2 stays "refused".
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from voxprior.errors import EXIT_REFUSED, EXIT_RESUMABLE

_LAST_LINES = 20
# Seconds that the others have to end by themselves once one has ended so; process 0 may be saving a large state.
_PATIENCE = {EXIT_RESUMABLE: 600.0}
_ELSE = 20.0


def run(processes: int) -> None:
    """Starts this command `processes` times, waits, and raises SystemExit as they ended; does nothing for one.

    Nothing is started either where this is already one of several processes.
    """
    from voxprior.engine import members

    if processes < 2 or "WORLD_SIZE" in os.environ or members.found().size > 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        children = [_start(rank, processes, Path(folder)) for rank in range(processes)]
        code, culprit = _wait(children)
        if code and culprit is not None:
            _explain(code, culprit, processes, Path(folder))
    raise SystemExit(code)


def _start(rank: int, size: int, folder: Path) -> subprocess.Popen[bytes]:
    """Starts one process. The first speaks for all; what the others say is shown if they fail alone."""
    from voxprior.engine import members

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    environment = os.environ | {name: str(value) for name, value in places.items()}
    environment |= {members.MEET: str(folder / "meet"), members.PARENT: str(os.getpid())}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name may lead nowhere
    command = [sys.executable, "-m", "voxprior", *sys.argv[1:]]
    # A session of its own: Ctrl-C reaches the launcher alone, which hands it on once.
    if rank == 0:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with open(folder / f"{rank}.log", "wb") as log:
        return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)


def _wait(children: list[subprocess.Popen[bytes]]) -> tuple[int, int | None]:
    """Waits for all, hands signals on to them, and ends them when one fails: (exit code, the process that failed).

    A failure that the others only suffered, as a connection that was closed, is not the one that counts.
    """

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before: dict[int, Any] = {number: signal.signal(number, hand_on) for number in numbers}
    failed: dict[int, int] = {}
    deadline = float("inf")
    try:
        while any(child.poll() is None for child in children):
            time.sleep(0.05)
            for rank, child in enumerate(children):
                if child.poll() and rank not in failed and time.monotonic() < deadline:
                    failed[rank] = child.returncode
                    deadline = min(deadline, time.monotonic() + _PATIENCE.get(child.returncode, _ELSE))
            if time.monotonic() > deadline:
                for child in children:
                    child.kill()
    finally:
        for child in children:
            child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed |= {rank: code for rank, child in enumerate(children) if (code := child.returncode) and not failed}
    if not failed:
        return 0, None
    culprit = _culprit(failed)
    code = failed[culprit]
    return (128 - code if code < 0 else code), culprit


def _culprit(failed: dict[int, int]) -> int:
    """Returns the process whose end tells why all ended, from the codes of those that failed, in the order they did.

    Killed comes first, refused next, then the first that broke down; 75 is what the others make of a lost connection.
    Of several that refused it is the lowest: what all refuse, the first process has already said.
    """

    def weight(rank: int) -> tuple[bool, bool, bool, int]:
        code = failed[rank]
        return code == EXIT_RESUMABLE, code >= 0, code != EXIT_REFUSED, rank if code == EXIT_REFUSED else 0

    return min(failed, key=weight)


def _explain(code: int, culprit: int, size: int, folder: Path) -> None:
    """Says what the first process could not say: that another one failed, and its last words."""
    told = f"voxprior: process {culprit} of {size}, counted from 0,"
    if code > 128:
        name = signal.Signals(code - 128).name
        print(f"{told} was killed by {name}, and the others were ended: run the same command again, it goes on from "
              "the last state that was saved", file=sys.stderr)  # fmt: skip
    elif culprit and code != EXIT_RESUMABLE:
        words = (folder / f"{culprit}.log").read_text(errors="replace").splitlines()[-_LAST_LINES:]
        print(*words, f"{told} ended with exit code {code}, and the others were ended", sep="\n", file=sys.stderr)
