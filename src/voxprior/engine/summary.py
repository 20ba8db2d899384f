"""What a finished run leaves behind: journal, clock and a summary, each whole, the summary last."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxprior.engine import device as devices
from voxprior.engine import kept, state
from voxprior.engine.loop import Outcome
from voxprior.engine.step import Plan
from voxprior.whole import whole, write_json


def summarise(
    stage: str,
    card: dict[str, Any],
    plan: Plan,
    outcome: Outcome,
    model: Any,
    samples: int,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Makes the summary of `docs/formats.md`.

    Args:
        stage: pretrain or finetune.
        card: content of the run card.
        plan: what was run.
        outcome: what it told.
        model: the trained model; gives parameters and voxels per sample.
        samples: per step.
        inputs: hashes of what was read.
    """
    return {
        "format": 1,
        "stage": stage,
        "card_hash": plan.card_hash,
        "card": card,
        "steps": outcome.steps,
        "voxels_seen": outcome.steps * samples * int(model.student_voxels),
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": outcome.seconds,
        "processes": outcome.processes,
        "device_seconds": outcome.device_seconds,
        **({} if outcome.energy_joules is None else {"energy_joules": outcome.energy_joules}),
        "peak_memory_bytes": devices.peak_memory_bytes(plan.device),
        "device": devices.describe(plan.device),
        "versions": devices.versions(),
        "git_commit": devices.git_commit(),
        "flops_per_step": outcome.flops_per_step,
        "final": outcome.final,
        "inputs": inputs,
    }


def publish(output: Path, plan: Plan, summary: dict[str, Any], files: Sequence[str]) -> None:
    """Copies journal and clock from the working folder, writes the summary last, and removes the run's states.

    All that the run has written, `files` among it, is kept for a run of the same card on the same data.
    """
    for name in ("journal.jsonl", "clock.jsonl"):
        with whole(output / name, need_bytes=(plan.work / name).stat().st_size) as part:
            shutil.copyfile(plan.work / name, part)
    write_json(output / "summary.json", summary)
    written = [*files, "journal.jsonl", "clock.jsonl", "summary.json"]
    kept.keep(output, plan.work, plan.card_hash, plan.reads, written)
    state.forget(plan.work)
