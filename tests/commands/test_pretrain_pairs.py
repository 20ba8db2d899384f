"""Pretraining by pairs of views, through the verb: what is measured, shown and refused."""

import json

import numpy as np
import pytest

from voxprior.commands import pretrain
from voxprior.errors import Refusal

PGL = {"view_vox": [16, 16, 16], "scale": [1.0, 1.2], "parent": 1.3, "shared_z": False, "min_overlap": 0.3}
HEADS = {"head_hidden": 16, "head_out": 8}


def run(study, folder, **config):
    changes = {"method": "pgl", "config": PGL | HEADS | config, "pretrain": {"voxels": 4 * 4 * 16**3, "batch_size": 2}}
    card = study.card("pretrain", **changes)
    pretrain.run(card, [study.index], study.splits, folder / "out", folder / "work", 1, "cpu")
    return json.loads((folder / "out" / "summary.json").read_text())


def test_the_summary_holds_offsets_and_the_pictures_hold_points(tiny_study, tmp_path):
    summary = run(tiny_study, tmp_path)
    assert summary["steps"] == 4 and summary["title"] == "PGL"
    measured = summary["measured"]
    for axis in "zyx":
        assert 3 < measured["start"][f"offset_{axis}_vox"] < 4
        drift = measured["end"][f"offset_{axis}_vox"] - measured["start"][f"offset_{axis}_vox"]
        assert measured["end"][f"offset_drift_{axis}_vox"] == pytest.approx(drift, abs=1e-5)
    assert summary["moved"]["teacher"] > 0
    assert {"feature_deviation", "feature_rank", "overlap_iou", "fallback_share", "valid_share"} <= set(
        summary["final"]
    )
    assert summary["final"]["loss"] == pytest.approx(summary["final"]["local_consistency"])
    shown = np.load(tmp_path / "out" / "pictures.npz")
    assert list(shown)[:4] == ["view_a", "view_b", "points_view_a", "points_view_b"]
    assert np.isfinite(shown["points_view_a"]).any()


def test_volumes_too_small_for_a_pair_are_refused_before_the_first_step(tiny_study, tmp_path):
    with pytest.raises(Refusal, match=r"index\.json: pgl: 100% of the pairs would be one box twice"):
        run(tiny_study, tmp_path, view_vox=[64, 64, 64])
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def test_a_batch_of_one_with_batch_statistics_is_refused(tiny_study, tmp_path):
    card = tiny_study.card(
        "pretrain", method="byol", config=PGL | HEADS, pretrain={"voxels": 4 * 2 * 16**3, "batch_size": 1}
    )
    with pytest.raises(Refusal, match="batch of one"):
        pretrain.run(card, [tiny_study.index], tiny_study.splits, tmp_path / "out", tmp_path / "work", 1, "cpu")
