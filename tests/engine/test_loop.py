import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from voxprior.engine import loop
from voxprior.engine import state as states
from voxprior.errors import Refusal, Resumable
from voxprior.maths import chance
from voxprior.maths.batch import Term, volume_from


@dataclass(frozen=True)
class Recipe:
    lr: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.1
    clip: float | None = 1.0
    optimiser: str = "adamw"
    momentum: float = 0.9
    trust: float = 1e-3


class Toy(nn.Module):
    """Learns to undo noise; has a norm, a token, a buffer that follows, and chance from the keys."""

    student_voxels = 64

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv3d(4, 1, 1))
        self.token = nn.Parameter(torch.zeros(1, 1, 1, 1, 1))
        self.register_buffer("seen", torch.zeros(()))

    def views(self, batch, key_B):
        volume = volume_from(batch)
        return volume, volume + 0.1 * chance.normal(key_B, "noise", tuple(volume.shape[1:]))

    def forward(self, views, progress):
        clean, noisy = views
        error = (self.encoder(noisy) + self.token - clean) ** 2
        return {"error": Term(error.sum(), torch.tensor(error.numel())), "token": Term(self.token.sum() ** 2, 1, 0.5)}

    def after_step(self, progress, total_steps):
        self.seen += progress


def batches_until(total: int, break_at: int = -1, hook=None):
    def batches(start):
        for step in range(start, total):
            if hook:
                hook(step)
            key_B = chance.keys(0, step, torch.arange(2))
            region = (chance.uniform(key_B, "image", (1, 4, 4, 4)) * 1000).to(torch.int16)
            quantum = torch.full((2,), float("nan") if step == break_at else 0.001)
            yield step, key_B, {"region_BCZYX": region, "quantum_B": quantum}

    return batches


def plan(work, total=20, **changes) -> loop.Plan:
    made = loop.Plan(total, Recipe(), "card", work, torch.device("cpu"))
    return replace(made, **changes)


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def lines(work) -> list[dict]:
    return [json.loads(line) for line in (work / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    work, model = tmp_path_factory.mktemp("whole"), toy()
    outcome = loop.train(model, batches_until(20), plan(work))
    return work, digest(model), outcome


def test_journal_has_every_logged_step_and_the_loss_falls(uninterrupted):
    work, _, outcome = uninterrupted
    records = lines(work)
    assert [record["step"] for record in records] == list(range(20))
    assert list(records[0]) == ["step", "progress", "loss", "error", "token", "lr", "grad_norm"]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert outcome.final == records[-1]
    assert records[0]["loss"] == pytest.approx(records[0]["error"] + 0.5 * records[0]["token"])
    clock = [json.loads(line) for line in (work / "clock.jsonl").read_text().splitlines()]
    assert [set(line) for line in clock] == [{"step", "seconds", "voxels_seen", "voxels_per_second", "waited"}] * 20


def test_the_clock_tells_the_share_of_the_time_that_batches_were_waited_for(tmp_path):
    shares = []
    for hook in (lambda step: time.sleep(0.2), None):
        work = tmp_path / str(len(shares))
        loop.train(toy(), batches_until(5, hook=hook), plan(work, 5))
        shares.append(json.loads((work / "clock.jsonl").read_text().splitlines()[-1])["waited"])
    assert 0 < shares[1] < shares[0] < 1


@pytest.mark.parametrize("at", [0, 7, 18])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_interrupted_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, at, name):
    work, weights, outcome = uninterrupted

    def hook(step):
        if step == at:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(Resumable, match=name):
        loop.train(toy(), batches_until(20, hook=hook), plan(tmp_path))
    torch.manual_seed(99)  # what the new process starts from must not matter
    model = Toy()
    again = loop.train(model, batches_until(20), plan(tmp_path))
    assert digest(model) == weights
    assert (tmp_path / "journal.jsonl").read_bytes() == (work / "journal.jsonl").read_bytes()
    assert again.flops_per_step == outcome.flops_per_step > 0
    assert again.final == outcome.final
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_lines_written_after_the_last_state_are_cut_off(uninterrupted, tmp_path):
    class Died(Exception):
        """Stands for SIGKILL: nothing is saved after it."""

    def hook(step):
        if step == 11:
            raise Died

    with pytest.raises(Resumable):
        loop.train(toy(), batches_until(20, hook=lambda step: step == 5 and os.kill(os.getpid(), 15)), plan(tmp_path))
    with pytest.raises(Died):
        loop.train(toy(), batches_until(20, hook=hook), plan(tmp_path))
    assert len(lines(tmp_path)) == 11
    model = toy()
    loop.train(model, batches_until(20), plan(tmp_path))
    assert digest(model) == uninterrupted[1]
    assert (tmp_path / "journal.jsonl").read_bytes() == (uninterrupted[0] / "journal.jsonl").read_bytes()


def _stopped_at(work, *steps) -> None:
    """Leaves one state behind per step."""
    for at in steps:
        with pytest.raises(Resumable):
            loop.train(
                toy(), batches_until(20, hook=lambda step, at=at: step == at and os.kill(os.getpid(), 15)), plan(work)
            )


def test_a_damaged_state_is_noticed_and_the_one_before_is_used(uninterrupted, tmp_path, capsys):
    _stopped_at(tmp_path, 4, 9)
    newest = sorted(tmp_path.glob("state-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    model = toy()
    loop.train(model, batches_until(20), plan(tmp_path))
    told = capsys.readouterr().err
    assert f"{newest} is damaged" in told
    assert "goes on at step 5 of 20" in told
    assert digest(model) == uninterrupted[1]


@pytest.mark.parametrize("harm", ["states", "journal", "card", "cases"])
def test_without_a_good_state_the_run_starts_anew(uninterrupted, tmp_path, capsys, harm):
    _stopped_at(tmp_path, 6)
    changed = plan(tmp_path)
    if harm == "states":
        for path in tmp_path.glob("state-*.pt"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    elif harm == "journal":
        journal = tmp_path / "journal.jsonl"
        journal.write_bytes(journal.read_bytes().replace(b"loss", b"lass", 1))
    elif harm == "card":
        changed = replace(changed, card_hash="another")
    else:
        changed = replace(changed, reads="other cases")
    model = toy()
    loop.train(model, batches_until(20), changed)
    told = capsys.readouterr().err
    assert "not used" in told
    assert "goes on" not in told
    assert digest(model) == uninterrupted[1]
    assert (tmp_path / "journal.jsonl").read_bytes() == (uninterrupted[0] / "journal.jsonl").read_bytes()


def test_a_finished_run_is_not_run_again(uninterrupted, tmp_path):
    loop.train(toy(), batches_until(20), plan(tmp_path))
    model = toy()
    outcome = loop.train(model, batches_until(20, hook=lambda step: pytest.fail("trained again")), plan(tmp_path))
    assert digest(model) == uninterrupted[1]
    assert outcome.final["step"] == 19


def watch(values, times=10, patience=0) -> loop.Watch:
    """Sees these values, one after another, whatever the model is."""
    left = iter(values)
    return loop.Watch(times, lambda model: {"val_dice": next(left), "val_other": 0.0}, patience)


def test_what_is_watched_stands_in_the_journal_and_changes_no_weight(uninterrupted, tmp_path):
    model = toy()
    seen = [0.1 * n for n in range(4)]
    outcome = loop.train(model, batches_until(20), plan(tmp_path), watch(seen, times=4))
    assert digest(model) == uninterrupted[1]
    assert outcome.steps == 20
    looked = {line["step"]: line["val_dice"] for line in lines(tmp_path) if "val_dice" in line}
    assert looked == dict(zip([4, 9, 14, 19], seen, strict=True))
    assert loop.Watch(3, dict).due(19, 20)
    assert sum(loop.Watch(3, dict).due(step, 20) for step in range(20)) == 3


def test_patience_ends_a_run_and_an_ended_run_stays_ended(tmp_path):
    values = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9]  # an equal one is no better one
    outcome = loop.train(toy(), batches_until(20), plan(tmp_path), watch(values, patience=3))
    assert outcome.steps == 10
    assert outcome.final["step"] == lines(tmp_path)[-1]["step"] == 9
    again = loop.train(toy(), batches_until(20), plan(tmp_path), watch([], patience=3))
    assert again.steps == 10
    assert again.final == outcome.final


def test_a_resumed_run_remembers_the_best_it_has_seen(tmp_path):
    stop = lambda step: step == 7 and os.kill(os.getpid(), 15)  # noqa: E731
    with pytest.raises(Resumable):
        loop.train(toy(), batches_until(20, hook=stop), plan(tmp_path / "cut"), watch([0.5, 0.4, 0.4, 0.4], patience=5))
    outcome = loop.train(toy(), batches_until(20), plan(tmp_path / "cut"), watch([0.4, 0.4, 0.4, 0.4], patience=5))
    whole = loop.train(toy(), batches_until(20), plan(tmp_path / "whole"), watch([0.5, *[0.4] * 9], patience=5))
    assert outcome.steps == whole.steps == 12
    files = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]


def test_workers_killed_by_the_signal_are_not_an_error(tmp_path):
    def hook(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated")

    with pytest.raises(Resumable, match="SIGTERM"):
        loop.train(toy(), batches_until(20, hook=hook), plan(tmp_path))
    with pytest.raises(RuntimeError, match="shape"):
        loop.train(
            toy(), batches_until(20, hook=lambda step: (_ for _ in ()).throw(RuntimeError("shape"))), plan(tmp_path)
        )


def test_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    total = 5000  # logged every 25 steps: the step is known although nobody looked at it
    with pytest.raises(Refusal, match="not finite at step 7 of 5000"):
        loop.train(toy(), batches_until(total, break_at=7), plan(tmp_path, total))
    assert not list(tmp_path.glob("state-*.pt"))
    with pytest.raises(Refusal, match="not finite at step 7 of 5000"):
        loop.train(toy(), batches_until(total, break_at=7), plan(tmp_path, total, save_every_s=0.0))


def test_bf16_trains_and_fp32_is_another_result(uninterrupted, tmp_path):
    model = toy()
    loop.train(model, batches_until(20), plan(tmp_path, precision="bf16"))
    assert digest(model) != uninterrupted[1]
    assert lines(tmp_path)[-1]["loss"] < 0.7 * lines(tmp_path)[0]["loss"]


def test_counting_flops_changes_no_bit(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Plan, "counted_steps", ())
    model = toy()
    outcome = loop.train(model, batches_until(20), plan(tmp_path))
    assert outcome.flops_per_step == 0
    assert digest(model) == uninterrupted[1]


def test_the_clock_tells_the_share_of_the_devices_peak_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device, precision: 1e9)
    outcome = loop.train(toy(), batches_until(5), plan(tmp_path, 5))
    clock = [json.loads(line) for line in (tmp_path / "clock.jsonl").read_text().splitlines()]
    for line in clock:
        per_second = line["voxels_per_second"] / (2 * Toy.student_voxels)  # steps
        assert line["mfu"] == pytest.approx(outcome.flops_per_step * per_second / 1e9, rel=1e-6)


def test_runs_outside_the_main_thread(tmp_path):
    told = []
    thread = threading.Thread(target=lambda: told.append(loop.train(toy(), batches_until(3), plan(tmp_path, 3))))
    thread.start()
    thread.join()
    assert told[0].final["step"] == 2


def _train_and_tell(work, total) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    model = toy()
    loop.train(model, batches_until(total), plan(work, total, save_every_s=0.0))
    (work / "digest").write_text(digest(model))


def _kill_and_run_again(folder: Path) -> None:
    """Trains once undisturbed and once killed at 12 random moments; states are saved at every step.

    Runs in an interpreter of its own: a fork of one that has already computed inherits locks of threads that are gone.
    """
    torch.set_num_threads(1)
    total, context, chances = 40, multiprocessing.get_context("fork"), random.Random(0)
    moments = [*(chances.uniform(0.01, 0.1) for _ in range(12)), 60.0]
    for work, patience in [(folder / "whole", [60.0]), (folder / "killed", moments)]:
        for seconds in patience:
            process = context.Process(target=_train_and_tell, args=(work, total))
            process.start()
            process.join(seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
        assert process.exitcode == 0, f"{work.name} ended with {process.exitcode}"


def test_killed_at_any_moment_and_run_again_equals_uninterrupted(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (killed / "digest").read_text() == (whole / "digest").read_text()
    assert (killed / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_states_of_two_newest_steps_are_kept(tmp_path):
    for step in (3, 10, 200):
        states.save(tmp_path, "card", step, {"weights": torch.ones(2)})
    assert [path.name[:18] for path in sorted(tmp_path.iterdir())] == ["state-000000000010", "state-000000000200"]
    assert [step for step, _ in states.candidates(tmp_path, "card", torch.device("cpu"))] == [200, 10]
    states.forget(tmp_path)
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    _kill_and_run_again(Path(sys.argv[1]))
