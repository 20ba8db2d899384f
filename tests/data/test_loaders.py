import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from voxprior.data import cache, loaders, phantoms, prepare
from voxprior.data.loaders import regions
from voxprior.errors import Refusal
from voxprior.maths.boxes import Region

CASES = [f"phantom_{i:03d}" for i in range(3)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    scans = phantoms.write_folder(folder / "scans", cases=3, unlabelled=1, orientation="LPS")
    recipe = prepare.Recipe("k", (3.0, 2.0, 2.0), "window", -1000.0, 1000.0, ((1,), (2,), (3,)))
    rows = [
        {
            "case": f"phantom_{i:03d}",
            "patient": str(i),
            "person": str(i),
            "image": str(scans / f"images/phantom_{i:03d}.nii.gz"),
            "label": str(scans / f"labels/phantom_{i:03d}.nii.gz") if i < 3 else "",
        }
        for i in range(4)
    ]
    entries = list(prepare.prepare_all(rows, folder / "p", recipe, 1))
    content = {"format": cache.FORMAT, "key": "k", "quantum": prepare.QUANTUM, "classes": [1, 2, 3], "cases": entries}
    (folder / "p/index.json").write_text(json.dumps(content))
    return folder / "p/index.json"


def read(index, size=(8, 8, 8), **changes):
    settings = {"cases": CASES, "region": Region(size), "seed": 1, "batch_size": 2, "steps": 6} | changes
    return list(regions(index, **settings))


def same(one, other):
    assert len(one) == len(other)
    for (step, key_B, batch), (step_, key_B_, batch_) in zip(one, other, strict=True):
        assert step == step_ and torch.equal(key_B, key_B_)
        assert batch.keys() == batch_.keys()
        assert all(torch.equal(batch[name], batch_[name]) for name in batch)
    return True


def test_batches_hold_what_the_contract_says(index):
    step, key_B, batch = read(index, labels=True, foreground=0.5)[2]
    assert step == 2 and key_B.shape == (2,)
    assert batch["region_BCZYX"].shape == (2, 1, 8, 8, 8) and batch["region_BCZYX"].dtype == torch.int16
    assert batch["labels_BZYX"].dtype == torch.uint8 and batch["quantum_B"].dtype == torch.float32
    assert batch["spacing_mm_B3"].tolist() == [[3, 2, 2]] * 2
    assert batch["valid_lo_B3"].tolist() == [[0] * 3] * 2 and batch["valid_hi_B3"].tolist() == [[8] * 3] * 2


def _signal_oneself() -> None:
    loaders._ignore_signals(0)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        os.kill(os.getpid(), signal.Signals[name])
    os._exit(7)


def test_a_worker_outlives_the_signals_that_stop_a_run():
    worker = multiprocessing.get_context("fork").Process(target=_signal_oneself)
    worker.start()
    worker.join(10)
    assert worker.exitcode == 7


@pytest.mark.slow
def test_signals_to_workers_lose_no_batch_and_they_end_with_the_run(index):
    stream = iter(regions(index, cases=CASES, region=Region((8, 8, 8)), seed=1, batch_size=2, steps=6, workers=2))
    came = [next(stream)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            os.kill(worker.pid, signal.Signals[name])
    assert same(came + list(stream), read(index))
    assert not [worker for worker in workers if worker.is_alive()]


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(index):
    assert same(read(index), read(index, workers=2))


@pytest.mark.parametrize(
    ("reading", "using", "cores", "expected"),
    [(1.0, 1.0, 1, 0), (1.0, 1.0, 2, 1), (0.001, 1.0, 16, 0), (0.3, 1.0, 16, 1), (2.0, 1.0, 16, 3), (9.0, 0.0, 8, 7)],
)
def test_workers_follow_cores_and_need(reading, using, cores, expected):
    assert loaders.workers_for(reading, using, cores) == expected


def test_workers_chosen_on_the_way_change_no_batch(index, monkeypatch):
    asked = []
    monkeypatch.setattr(loaders, "workers_for", lambda *times: asked.append(times) or 0)
    assert same(read(index, steps=12), read(index, steps=12, workers="auto", cores=4))
    assert len(asked) == 1 and asked[0][2] == 4 and min(asked[0][:2]) > 0
    assert same(read(index, steps=3), read(index, steps=3, workers="auto"))
    assert len(asked) == 1


def test_a_resumed_run_reads_the_tail(index):
    assert same(read(index)[4:], read(index, start_step=4))


def test_two_ranks_read_what_one_reads(index):
    whole = read(index, batch_size=4)
    ranks = [read(index, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for (_, key_B, batch), *parts in zip(whole, *ranks, strict=True):
        for rank, (_, keys, part) in enumerate(parts):
            assert torch.equal(key_B[rank::2], keys)
            assert torch.equal(batch["region_BCZYX"][rank::2], part["region_BCZYX"])


def test_every_pass_visits_every_case_once_in_a_new_order(index):
    sums = {int(cache.open_case(index, case).image[...].sum(dtype=np.int64)): case for case in CASES}
    region = Region((64, 64, 64), whole=True)
    seen = [int(batch["region_BCZYX"].sum()) for _, _, batch in read(index, region=region, batch_size=1, steps=30)]
    names = [sums[total] for total in seen]
    passes = [names[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(one) == CASES for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_region_larger_than_the_volume_is_padded_and_says_where(index):
    places = set()
    for _, _, batch in read(index, size=(32, 32, 32), steps=10):
        for region, lo, hi in zip(batch["region_BCZYX"][:, 0], batch["valid_lo_B3"], batch["valid_hi_B3"], strict=True):
            assert (hi - lo).tolist() == [24, 28, 26]
            places.add(tuple(lo.tolist()))
            outside = torch.ones_like(region, dtype=torch.bool)
            outside[lo[0] : hi[0], lo[1] : hi[1], lo[2] : hi[2]] = False
            assert (region[outside] == 0).all()
    assert len(places) > 5


def test_whole_volumes_are_cut_to_the_bound(index):
    _, _, batch = read(index, region=Region((16, 64, 64), whole=True))[0]
    assert batch["region_BCZYX"].shape == (2, 1, 16, 28, 26)


def test_a_region_in_mm_follows_the_spacing(index):
    _, _, batch = read(index, region=Region((1, 1, 1), size_mm=(24.0, 24.0, 16.0)))[0]
    assert batch["region_BCZYX"].shape[2:] == (8, 12, 8)


def test_foreground_regions_are_centred_on_every_class(index):
    centres = [
        int(labels[4, 4, 4])
        for _, _, b in read(index, labels=True, foreground=1.0, steps=40)
        for labels in b["labels_BZYX"]
    ]
    # Near the border a region is moved inwards, so a few centres are beside the organ.
    assert np.mean([centre > 0 for centre in centres]) > 0.9
    assert {1, 2, 3} <= set(centres)


def test_labels_fit_their_region(index):
    _, _, batch = read(index, labels=True, steps=1)[0]
    whole = cache.open_case(index, CASES[0])
    assert set(np.unique(batch["labels_BZYX"])) <= set(range(4))
    assert whole.label is not None


def test_pretraining_cannot_look_at_labels(index):
    with pytest.raises(ValueError, match="must not"):
        read(index, foreground=0.5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cases": []}, "no case to read"),
        ({"cases": ["x"]}, "no case 'x'"),
        ({"cases": ["phantom_003"], "labels": True}, "has no labels"),
        ({"batch_size": 3, "world_size": 2}, "cannot be shared"),
    ],
)
def test_impossible_readings_are_refused(index, changes, word):
    with pytest.raises(Refusal, match=word):
        read(index, **changes)


def test_cases_of_several_datasets_are_one_pool(index):
    """Every pass goes once through the cases of all indexes, and reads each from its own."""
    other = index.parent / "other.json"
    content = json.loads(index.read_text())
    names = {case["case"]: f"other_{case['case']}" for case in content["cases"]}
    renamed = [{**case, "case": names[case["case"]]} for case in content["cases"]]
    other.write_text(json.dumps({**content, "dataset": "other", "cases": renamed}))
    plan = regions(
        index, CASES[:2], Region((8, 8, 8)), seed=3, batch_size=3, steps=4, others=((other, tuple(names.values())),)
    )
    for turn in range(2):
        seen = [plan.case_at(turn * 6 + place) for place in range(6)]
        assert sorted(seen, key=str) == sorted(
            [(index, case) for case in CASES[:2]] + [(other, n) for n in names.values()], key=str
        )
    whole = Region((64, 64, 64), whole=True)
    read_ = regions(index, CASES[:1], whole, seed=3, batch_size=1, steps=2, others=((other, (names[CASES[2]],)),))
    sums = sorted(int(batch["region_BCZYX"].long().sum()) for _, _, batch in read_)
    own = [cache.open_case(index, case) for case in (CASES[0], CASES[2])]
    assert sums == sorted(int(case.read((0, 0, 0), case.shape_zyx)[0].astype(int).sum()) for case in own)
    with pytest.raises(Refusal, match=r"other.json has no case 'nobody'"):
        regions(index, CASES, Region((8, 8, 8)), seed=3, batch_size=1, steps=1, others=((other, ("nobody",)),))
