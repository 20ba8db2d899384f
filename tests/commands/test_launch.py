"""`--processes`: the command line itself, in several processes on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from voxprior.commands import launch
from voxprior.errors import EXIT_REFUSED, EXIT_RESUMABLE

STEPS = {"voxels": 12 * 4 * 16**3, "batch_size": 4}


def command(study, folder, processes, **changes):
    card = study.card("pretrain", **{"pretrain": STEPS, **changes})
    words = [sys.executable, "-m", "voxprior", "pretrain", "--card", card, "--index", study.index, "--splits"]
    words += [study.splits, "--output", folder / "out", "--work", folder / "work", "--processes", processes]
    return [*map(str, words), "--device", "cpu"]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "out" / "journal.jsonl").read_text().splitlines()]


def until(there, process):
    while not there():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def ranks(process) -> list[int]:
    """Lists the processes that the launcher started, first to last."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, listed.stdout.split()))


@pytest.mark.parametrize(
    ("failed", "culprit"),
    [
        ({1: 2, 0: 2}, 0),  # both refuse, the second sooner: the first says it
        ({2: 2, 1: 2, 0: 1}, 1),
        ({0: 1, 1: 2}, 1),  # the first lost its connection to one that refused
        ({1: 1, 0: 1}, 1),  # the second broke down, and the first without it
        ({0: 75, 1: 1}, 1),
        ({0: 2, 1: 1, 2: -9}, 2),
    ],
)
def test_which_end_tells_why_all_ended(failed, culprit):
    """`failed` is in the order in which they ended."""
    assert launch._culprit(failed) == culprit


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on_to_the_losses_of_one(tiny_study, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = subprocess.run(command(tiny_study, one, 1), capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    long = {**STEPS, "voxels": 4000 * 4 * 16**3}
    words = command(tiny_study, two, 2, pretrain=long)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    until(
        lambda: (two / "work" / "journal.jsonl").exists() and (two / "work" / "journal.jsonl").stat().st_size, process
    )
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_RESUMABLE, told
    assert told.count("stopped by SIGTERM") == 1
    assert list((two / "work").glob("state-*.pt"))
    # The run of 12 steps, in two processes.
    done = subprocess.run(command(tiny_study, two, 2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    summaries = [json.loads((folder / "out" / "summary.json").read_text()) for folder in (one, two)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    assert summaries[1]["device_seconds"] == pytest.approx(2 * summaries[1]["seconds"], rel=0.01)
    assert summaries[0]["voxels_seen"] == summaries[1]["voxels_seen"]
    assert summaries[0]["flops_per_step"] == summaries[1]["flops_per_step"]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_sentence_names_it(tiny_study, tmp_path):
    words = command(tiny_study, tmp_path, 2, pretrain={**STEPS, "voxels": 4000 * 4 * 16**3})
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "work" / "journal.jsonl"
    until(lambda: journal.exists() and journal.stat().st_size, process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGKILL, told
    assert "process 1 of 2, counted from 0, was killed by SIGKILL" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_what_all_refuse_is_said_once(tiny_study, tmp_path):
    words = command(tiny_study, tmp_path, 2, pretrain={"voxels": 10**6, "batch_size": 3})
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == EXIT_REFUSED, refused.stderr
    assert refused.stderr.count("a batch of 3 cannot be shared by 2 processes") == 1
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_torchrun_starts_the_same_run(tiny_study, tmp_path):
    words = command(tiny_study, tmp_path, 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run([*launcher, *words[2:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["processes"] == 2
