"""The live view: plain text for scripts, a page that fits a narrow terminal, and nothing written or imported."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from voxprior.commands import watch
from voxprior.errors import Refusal

CELL = "vit_tiny/anatomask/budget16/fold0/pretrain0_seed1"


@pytest.fixture
def study(tmp_path):
    """A study at work: one cell trains, one has failed, one has fallen silent."""
    results = tmp_path / "results" / "deep"
    study = {"study": "toy", "results": "results/deep", "dataset": "d", "external": []}
    study |= {"inits": {"vit_tiny": ["scratch", "anatomask"]}, "split": {"budgets": [16], "folds": 1}}
    study |= {"finetune": {"seeds": [0, 1, 2]}}
    for path, content in {
        results / "config.json": json.dumps({"study": study, "datasets": {"d": {}}}),
        results / f"logs/finetune/{CELL}.log": "finetune anatomask: 30/100, 2/s, 0:00:35 left\n",
        results / f"logs/finetune/{CELL[:-1]}2.log": "one\nvoxprior: scan_3 has no voxels: export it again\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name, old in ((CELL, 0), (f"{CELL[:-1]}0", 7000)):
        folder = tmp_path / "work/results/deep/finetune" / name
        folder.mkdir(parents=True)
        rows = [{"step": n, "progress": n / 99, "loss": 0.5} for n in range(41)]
        clock = [{"step": n, "seconds": n / 2, "voxels_per_second": 2.5e6} for n in range(41)]
        (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "clock.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clock))
        os.utime(folder / "journal.jsonl", (time.time() - old, time.time() - old))
    return results


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_once_prints_a_line_a_job_and_why_one_failed_and_writes_nothing(study, capsys):
    before = stamps(study.parents[1])
    watch.run(study, None, once=True, every_s=1.0)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "toy: 0 of 6 cells scored; 1 running, 1 silent, 1 failed"
    assert f"finetune  {CELL}  running  41/100 41%  2/s 2.5 Mvox/s  0:00:29 left  loss 0.5" in lines
    assert any(line.startswith(f"finetune  {CELL[:-1]}0  silent") and "nothing for 1:56" in line for line in lines)
    assert "  voxprior: scan_3 has no voxels: export it again" in lines
    assert "memory" in lines[1] and "disk" in lines[1]
    assert "\x1b" not in text
    assert stamps(study.parents[1]) == before


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_page_fits_the_terminal_and_says_what_matters(study, width):
    from rich.console import Console

    from voxprior.study import live

    config = json.loads((study / "config.json").read_text())
    seen = live.look(list(live.steps(config, study, study.parents[1] / "work/results/deep")))
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(watch.page(config["study"], seen, ["memory 3 of 16 GiB free"], width))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "41%" in text and "0:00:29" in text and "silent" in text
    assert "anatomask 16" in text
    assert "scan_3 has no voxels" in text
    assert ("2.5 Mvox/s" in text) == (width >= 100)


def test_a_folder_without_a_study_is_refused_with_advice(tmp_path):
    with pytest.raises(Refusal, match="name its results folder with --results"):
        watch.run(tmp_path, None, once=True, every_s=1.0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refusal, match="is damaged"):
        watch.run(tmp_path, None, once=True, every_s=1.0)


def test_it_starts_at_once_and_imports_nothing_heavy(study):
    code = (
        "import sys, time; sys.argv = ['voxprior', 'watch', '--once', '--results', sys.argv[1]]\n"
        "from voxprior.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5


def test_in_a_terminal_it_draws_until_it_is_interrupted(study):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    command = [sys.executable, "-m", "voxprior", "watch", "--results", str(study), "--every", "0.2"]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
        # Tests that were started in the background ignore it, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    while drawn.count(b"0 of 6 cells scored") < 2 and select.select([ours], [], [], 60)[0]:
        drawn += os.read(ours, 65536)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 0
    os.close(ours)
    assert drawn.count(b"0 of 6 cells scored") >= 2, "it is drawn anew"
    assert b"Traceback" not in drawn
    assert b"scan_3 has no voxels" in drawn


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (29.6, "0:00:29"), (3725, "1:02:05"), (47 * 3600, "47:00:00"), (200_000, "2 d 7 h")],
)
def test_durations(seconds, text):
    assert watch.clock(seconds) == text


def test_cards_that_nvidia_smi_tells_of_are_shown(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA H100, 87, 40960, 81920, 61'\necho '1, broken, [N/A], [N/A], 1, 1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = watch.machine(tmp_path)
    assert told[0] == "GPU 0 NVIDIA H100: 87 %, 40.0 of 80 GiB, 61 C"
    assert len(told) == 2
