"""What a running study looks like from its files: torn lines, jobs that failed, were stopped or fell silent."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from voxprior.study import live

NOW = 1_000_000.0
STUDY = {
    "study": "toy",
    "results": "results",
    "dataset": "d",
    "external": ["e"],
    "inits": {"vit": ["scratch", "mae"]},
    "split": {"budgets": [1, 4], "folds": 1},
    "finetune": {"seeds": [0, 1], "steps": 100},
}
CONFIG = {"study": STUDY, "datasets": {"d": {"simulate": {"patients": 3}}, "e": {}}}
CELL = "vit/mae/budget4/fold0/pretrain0_seed1"


@pytest.fixture
def place(tmp_path):
    return tmp_path


def write(path, text="", age_s=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age_s, NOW - age_s))


def train(folder, steps, total=100, age_s=0.0, torn=True, every_s=0.5):
    """Writes a journal and a clock up to `steps`, one line a step."""
    rows = [{"step": n, "progress": n / (total - 1), "loss": 2.0 - n / 100} for n in range(steps)]
    times = [{"step": n, "seconds": (n + 1) * every_s, "voxels_per_second": 1000.0} for n in range(steps)]
    tail = '{"step": 5000, "prog' if torn else ""
    write(folder / "journal.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + tail, age_s)
    write(folder / "clock.jsonl", "".join(json.dumps(row) + "\n" for row in times), age_s)


def look(place, config=CONFIG):
    return live.look(list(live.steps(config, place / "results", place / "work/results")), NOW)


def test_every_job_of_the_study_is_counted(place):
    seen = look(place)
    assert seen.stages == {
        "fetch": (0, 2), "simulate": (0, 1), "intake": (0, 2), "prepare": (0, 2), "split": (0, 1), "pretrain": (0, 1),
        "finetune": (0, 8), "predict": (0, 8), "score": (0, 8), "compare": (0, 1), "report": (0, 1),
    }  # fmt: skip
    assert list(seen.stages)[:2] == ["fetch", "simulate"]
    assert seen.jobs == []
    write(place / "data/simulated/d/manifest.json")
    write(place / f"results/finetune/{CELL}/summary.json")
    write(place / f"results/finetune/{CELL}/predictions.json")
    write(place / f"results/finetune/{CELL}/scores.csv")
    stages = look(place).stages
    assert [stages[name] for name in ("simulate", "finetune", "predict", "score")] == [(1, 1), (1, 8), (1, 8), (1, 8)]
    assert not seen.finished


def test_a_training_tells_step_speed_time_left_and_loss_whatever_is_torn(place):
    train(place / "work/results/finetune" / CELL, 41, age_s=3)
    write(place / f"results/logs/finetune/{CELL}.log", "finetune mae: 30/100, 2/s, 0:00:35 left\n", age_s=8)
    (job,) = look(place).jobs
    assert (job.stage, job.name, job.state, job.step, job.total) == ("finetune", CELL, "running", 41, 100)
    assert job.per_second == pytest.approx(2.0)
    assert job.left_s == pytest.approx(59 / 2.0)
    assert (job.loss, job.voxels_per_second) == (1.6, 1000.0)


def test_a_finished_job_is_none_although_its_journal_is_still_there(place):
    train(place / "work/results/finetune" / CELL, 100, torn=False)
    write(place / f"results/finetune/{CELL}/summary.json")
    seen = look(place)
    assert seen.jobs == []
    assert seen.stages["finetune"] == (1, 8)


@pytest.mark.parametrize(
    ("age_s", "every_s", "state"), [(60, 0.5, "running"), (300, 0.5, "silent"), (300, 60.0, "running")]
)
def test_a_training_that_logs_nothing_for_long_is_silent_by_its_own_pace(place, age_s, every_s, state):
    train(place / "work/results/pretrain/vit/mae/fold0/seed0", 41, age_s=age_s, every_s=every_s)
    (job,) = look(place).jobs
    assert (job.state, job.quiet_s) == (state, age_s)


@pytest.mark.parametrize(
    ("log", "state"),
    [
        ("voxprior: finetune mae: the loss is not finite at step 3 of 9: lower the learning rate\n", "failed"),
        ('Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: out of memory\n', "failed"),
        ("finetune mae: 30/100, 2/s, 0:00:35 left\nKilled\n", "failed"),
        ("voxprior: finetune mae was stopped by SIGTERM after step 40, its state is saved\n", "stopped"),
        ("voxprior: finetune mae goes on at step 40 of 100\n", "running"),
        ("voxprior: warning: something\n", "running"),
        ("", "running"),
    ],
)
def test_a_log_tells_how_a_job_ended(place, log, state):
    train(place / "work/results/finetune" / CELL, 41, age_s=20)
    write(place / f"results/logs/finetune/{CELL}.log", log, age_s=10)
    (job,) = look(place).jobs
    assert job.state == state
    assert (job.step, job.total) == (41, 100)
    if state == "failed":
        assert job.said[-1] in log and job.log.exists()


def test_what_jobs_say_on_their_way_is_not_taken_for_their_end():
    """Only the command line's last word, a refusal, begins with the program's name and means failure."""
    said = []
    for path in Path(live.__file__).parents[1].rglob("*.py"):
        if path.name not in ("__main__.py", "people.py", "predict.py", "live.py", "track.py"):
            said += re.findall(r'(?:print\(\s*f?"voxprior: |_say\(\s*f?")([^"]*)"', path.read_text())
    said = [f"voxprior: {words}" for words in said if words != "{text}"]
    assert len(said) >= 7
    for words in said:
        assert live._ending((words,), words) is None, words


def test_a_resumed_job_is_running_whatever_the_log_of_an_earlier_try_says(place):
    train(place / "work/results/finetune" / CELL, 60, age_s=2)
    write(place / f"results/logs/finetune/{CELL}.log", "Traceback (most recent call last):\nOSError: gone\n", age_s=500)
    assert look(place).jobs[0].state == "running"


def test_a_job_that_is_begun_again_is_starting_until_its_journal_moves(place):
    """Snakemake empties the log of a second try; the journal is the first one's."""
    train(place / "work/results/finetune" / CELL, 60, age_s=4000)
    write(place / f"results/logs/finetune/{CELL}.log", "", age_s=10)
    assert look(place).jobs[0].state == "starting"


def test_other_jobs_are_read_from_their_logs_and_cases(place):
    write(place / "results/logs/prepare/d.log", "prepare d: 3/7, 0.5/s, 0:00:08 left\n", age_s=5)
    write(place / "results/logs/intake/e.log", "", age_s=5)
    write(place / f"results/logs/predict/{CELL}.log", "", age_s=5)
    for name in ("d.a.nii.gz", "d.a.json", "d.b.nii.gz"):
        write(place / f"results/finetune/{CELL}/predictions/{name}")
    write(place / "results/logs/score/vit/mae/budget1/fold0/pretrain0_seed0.log", "", age_s=4000)
    jobs = {job.stage: job for job in look(place).jobs}
    assert (jobs["prepare"].step, jobs["prepare"].total, jobs["prepare"].left_s) == (3, 7, 8.0)
    assert jobs["intake"].state == "starting"
    assert jobs["predict"].step == 1
    assert jobs["score"].state == "silent"


def test_folders_are_found_from_wherever_one_looks(place, monkeypatch):
    assert live.home(STUDY, place / "results") == place.resolve()
    assert live.home({"results": "results/deep"}, place / "results/deep") == place.resolve()
    monkeypatch.chdir(place)
    assert live.home({"results": "/elsewhere/results"}, place / "x") == place
    assert live.working_folder({"results": "/elsewhere/results"}, place) == place / "elsewhere/results"


def test_4500_cells_are_looked_at_quickly(place):
    study = {**STUDY, "inits": {f"b{n}": ["scratch", "mae", "pgl"] for n in range(5)}}
    study |= {"split": {"budgets": list(range(1, 11)), "folds": 5}, "finetune": {"seeds": list(range(6))}}
    config = {**CONFIG, "study": study}
    every = list(live.steps(config, place / "results", place / "work/results"))
    cells = [step for step in every if step.stage == "score"]
    assert len(cells) == 4500
    for number, step in enumerate(cells[:3000]):
        step.output.parent.mkdir(parents=True)
        step.output.touch()
        if number % 500 == 0:
            train(place / "work/results/finetune" / cells[-1 - number // 500].name, 50)
    began = time.process_time()
    seen = live.look(every, NOW)
    took = time.process_time() - began
    assert seen.stages["score"] == (3000, 4500)
    assert len(seen.jobs) == 6
    assert took < 1.0
