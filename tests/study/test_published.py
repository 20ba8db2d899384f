"""What is shown of runs: names, points in voxels seen, thinning that loses no spike and grows with a running job."""

import json
import random

import pytest

from voxprior.study import published, views

CONFIG = {
    "study": {
        "study": "toy",
        "dataset": "d",
        "split": {"folds": 1, "budgets": [1, 4]},
        "inits": {"vit": ["mae"]},
        "finetune": {"seeds": [0]},
    },
    "backbones": {"vit": {"title": "A small ViT"}},
}
CARD = {"init": "mae", "backbone": "vit", "budget": 4, "fold": 0, "seed": 1, "batch_size": 2, "crop_vox": [4, 5, 6]}


def journal(steps, every=1):
    chance = random.Random(0)
    logged = [step for step in range(steps) if step % every == 0 or step == steps - 1]
    return [
        {"step": step, "progress": step / (steps - 1), "loss": chance.random(), "dice": 0.5, "dice_1": 0.4, "lr": 0.1}
        for step in logged
    ]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def of(points, name):
    return [(step, value) for found, value, step, _ in points if found == name]


@pytest.mark.parametrize(("stage", "bound"), [("pretrain", 202), ("finetune", 52)])
@pytest.mark.parametrize("steps", [2, 20, 190, 40_000])
def test_a_curve_keeps_first_last_and_extremes_within_its_bound(stage, bound, steps):
    rows = journal(steps, every=1 if steps < 1000 else 50)
    kept = of(published.curves(stage, rows, [], 10.0, whole=True), "train/loss")
    assert len(kept) <= bound
    values = [row["loss"] for row in rows]
    for step in (rows[0]["step"], rows[-1]["step"]):
        assert (step + 1) * 10 in [seen for seen, _ in kept]
    assert min(values) in [value for _, value in kept]
    assert max(values) in [value for _, value in kept]
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    every = {(row["step"] + 1) * 10: row["loss"] for row in rows}
    assert all(every[step] == value for step, value in kept), "thinning shows nothing that was not logged"


@pytest.mark.parametrize("cut", [1, 2, 7, 100, 189])
def test_what_a_running_job_shows_is_the_beginning_of_what_it_shows_in_the_end(cut):
    rows = journal(190)
    finished = published.curves("finetune", rows, [], 3.0, whole=True)
    running = published.curves("finetune", rows[:cut], [], 3.0, whole=False)
    assert running == finished[: len(running)]
    assert len(running) < len(finished)


def test_losses_are_not_named_like_scores_and_single_classes_stay_in_the_journal():
    points = published.curves("finetune", journal(10), [{"step": 3, "seconds": 2.5, "mfu": 0.4}], 1.0, True)
    assert {name for name, *_ in points} == {"train/loss", "train/dice_loss", "train/lr", "speed/mfu"}
    points = published.curves(
        "pretrain", journal(3), [{"step": n, "seconds": n, "voxels_per_second": 8.0} for n in range(3)], 1.0, True
    )
    assert ("speed/voxels_per_second", 8.0, 3, 2.0) in points
    assert "train/dice" in {name for name, *_ in points}


def test_a_running_job_is_read_from_its_working_folder_and_a_torn_line_is_left_out(tmp_path):
    results, work = tmp_path / "results", tmp_path / "work/results"
    folder = work / "finetune/vit/mae/budget4/fold0/pretrain0_seed1"
    folder.mkdir(parents=True)
    rows = journal(190)[:100]
    (folder / "journal.jsonl").write_text(lines(rows) + '{"step": 100, "progr')
    (folder / "clock.jsonl").write_text(lines({"step": r["step"], "seconds": r["step"] / 2} for r in rows))
    (folder / "finished").mkdir()
    (folder / "finished" / "journal.jsonl").write_text("")  # what a finished run keeps is no run
    (place,) = published.places(results, work)
    assert (place.name, place.running) == ("finetune/vit/mae/budget4/fold0/pretrain0_seed1", True)
    run = published.read(place, CONFIG, CARD, "c0ffee")
    assert published.total_steps(rows) == 190
    assert run.seconds == 99 / 2
    seen = of(run.points, "train/loss")
    assert seen[0][0] == 2 * 4 * 5 * 6
    assert seen[-1][0] <= 100 * 2 * 4 * 5 * 6
    assert run.title == "mae 4 labels s1 vit"
    assert run.tags["arm"] == "mae vit"
    assert "from 4 labelled cases, beginning with the encoder that `mae` pretrained" in run.note
    # Finished, it is read from the results, whatever still lies in the working folder.
    done = results / "finetune/vit/mae/budget4/fold0/pretrain0_seed1"
    done.mkdir(parents=True)
    (done / "summary.json").write_text(json.dumps({"steps": 190, "card": CARD, "card_hash": "c0ffee"}))
    (after,) = published.places(results, work)
    assert not after.running and after.stamp != place.stamp


def test_the_clock_tells_the_voxels_of_a_pretraining(tmp_path):
    folder = tmp_path / "work/pretrain/vit/mae/fold0/seed3"
    folder.mkdir(parents=True)
    rows = journal(50)[:20]
    (folder / "journal.jsonl").write_text(lines(rows))
    card = {"method": "mae", "backbone": "vit", "fold": 0, "pretrain": {"voxels": 5000, "seed": 3}}
    (place,) = published.places(tmp_path / "results", tmp_path / "work")
    assert of(published.read(place, CONFIG, card, "x").points, "train/loss")[0][0] == 100  # the budget by the steps
    (folder / "clock.jsonl").write_text(
        lines({"step": n, "seconds": 1.0, "voxels_seen": (n + 1) * 96} for n in range(20))
    )
    run = published.read(place, CONFIG, card, "x")
    assert of(run.points, "train/loss")[0][0] == 96
    assert run.tags["pretrain_seed"] == "3" and "seed" not in run.tags


def test_scores_are_averaged_over_classes_then_cases_and_external_ones_stand_apart(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(
        "dataset,case,patient,class,metric,value,flag\n"
        "d,a,a,liver,dice,0.2,\nd,a,a,spleen,dice,0.4,\nd,b,b,liver,dice,0.9,\nd,b,b,spleen,dice,,both_empty\n"
        "e,a,a,liver,dice,0.5,\n"
    )
    means = published.means(path, "d")
    assert means == {
        "test/dice": 0.6,
        "test classes/dice liver": 0.55,
        "test classes/dice spleen": 0.4,
        "external e/dice": 0.5,
        "external e classes/dice liver": 0.5,
    }
    assert published.means(tmp_path / "none.csv", "d") == {}


def test_views_fit_into_a_tag_and_name_their_address():
    made = views.views(CONFIG["study"])
    assert [view.key for view in made] == ["scores", "inits4", "inits1", "labels-vit", "pretraining"]
    for view in made:
        key, value = view.tag()
        envelope = json.loads(value)
        assert len(value) <= 5000 and key.startswith("mlflow.sharedViewState.")
        assert json.loads(envelope["state"])["searchFilter"].startswith("tags.stage = ")
        assert f"/experiments/7/runs?viewStateShareKey={view.key}&" in view.address("7")
    wide = {**CONFIG["study"], "split": {"budgets": list(range(1, 4))}}
    assert {"inits1", "inits2", "inits3"} <= {view.key for view in views.views(wide)}


@pytest.mark.parametrize(("seeds", "own"), [(2, "test/dice"), (101, "at 4 labels/dice")])
def test_a_comparison_of_more_runs_than_the_page_loads_is_one_of_arms(seeds, own):
    study = {**CONFIG["study"], "finetune": {"seeds": list(range(seeds))}}
    view = next(view for view in views.views(study) if view.key == "inits4")
    state = json.loads(json.loads(view.tag()[1])["state"])
    assert state["compareRunCharts"][0]["metricKey"] == own
    assert ('tags.stage = "arm"' in state["searchFilter"]) == (seeds == 101)
