"""What a training counts of itself before it chooses how it is computed."""

from pathlib import Path

import pytest

from voxprior.cards import read_card
from voxprior.commands import finetune, pretrain
from voxprior.commands.cost import _named
from voxprior.engine import ways


def test_a_process_counts_its_share_of_the_batch():
    card, where = _named("mae", "vit_tiny", "tiny")
    whole, half = (pretrain._count(card, Path(where), processes) for processes in (1, 2))
    assert whole.flops == 2 * half.flops > 0
    assert whole.weight_bytes == half.weight_bytes


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.1}, {"regions": [[1], [1, 2]]}, {"channels": 2}], ids=["plain", "ema", "regions", "two"]
)
def test_a_fine_tuning_counts_what_it_then_does(tiny_study, tmp_path, changes):
    import json

    path = tiny_study.card("finetune", **changes)
    card = read_card("finetune", path)
    told, half = finetune.count(card), finetune.count(card, 2)
    assert told.flops == 2 * half.flops
    if "channels" in changes:
        return
    finetune.run(path, tiny_study.index, tiny_study.splits, tmp_path / "out", tmp_path / "work", None, 1, "cpu")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert told.flops == summary["flops_per_step"]
    assert told.parameters == summary["parameters"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_was_chosen_reaches_the_run_and_changes_no_loss(stage, tiny_study, tmp_path, monkeypatch):
    import json

    card, plans = tiny_study.card(stage), []
    from voxprior.engine import loop

    monkeypatch.setattr(loop, "train", lambda *a, was=loop.train: (plans.append(a[2]), was(*a))[1])

    def run(folder):
        places = tmp_path / folder / "out", tmp_path / folder / "work"
        if stage == "pretrain":
            pretrain.run(card, [tiny_study.index], tiny_study.splits, *places, 1, ways.Asked("cpu", "off"))
        else:
            finetune.run(card, tiny_study.index, tiny_study.splits, *places, None, 1, ways.Asked("cpu", "off"))
        lines = (places[0] / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    once = run("once")
    monkeypatch.setattr(ways, "choose", lambda *given: {"compiler": None, "recompute": True})
    assert run("twice") == pytest.approx(once, rel=1e-6)
    assert [plan.recompute for plan in plans] == [False, True]
