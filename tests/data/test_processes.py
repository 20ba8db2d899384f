"""Work in several processes: in order, no further ahead than allowed, and a sentence when one is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxprior.data.processes import AHEAD, spread
from voxprior.errors import Refusal, Resumable


def double(item: int) -> int:
    if item == 13:
        raise Refusal("13 is no number: take another one")
    if item == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_known_ones_cost_nothing(workers):
    found = list(spread(double, range(7), workers, lambda item: -1 if item % 3 == 0 else None))
    assert found == [(item, -1 if item % 3 == 0 else 2 * item) for item in range(7)]


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = spread(double, items(), 2, lambda item: item)  # all known: no process is waited for
    next(results)
    assert len(taken) == 2 * AHEAD
    results.close()


def test_refusals_come_out_and_a_killed_process_is_a_sentence():
    with pytest.raises(Refusal, match="13 is no number"):
        list(spread(double, [1, 13], 2))
    with pytest.raises(Resumable, match="a process was killed, most likely because the memory was full: run"):
        list(spread(double, [99, 1], 2))


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    (tmp_path / "work.py").write_text(
        "import os, sys, time\n"
        "from voxprior.data.processes import spread\n\n\n"
        "def slow(item):\n"
        "    open(f'pid{item}', 'w').write(str(os.getpid()))\n"
        "    time.sleep(30 * item)\n\n\n"
        "if __name__ == '__main__':\n"
        "    list(spread(slow, [0, 1, 1], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "work.py"], cwd=tmp_path)
    wait_until(lambda: (tmp_path / "pid1").is_file() and (tmp_path / "pid1").read_text())
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid1").read_text())
    wait_until(lambda: not is_alive(child))


def wait_until(done, seconds=20):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
