"""The methods text says what was run, with the study's own numbers, and nothing else."""

import json
import re

import pandas as pd
import pytest

from voxprior.commands import compare
from voxprior.configuration import Resolved
from voxprior.strict import read_model
from voxprior.study import gather, methods_text


@pytest.fixture
def text(make_study):
    def build(**options) -> str:
        results = make_study(**options)
        compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
        names = ("curves", "contrasts", "labels_saved", "ranks", "variance")
        tables = {name: gather.read_table(results / f"tables/{name}.csv") for name in names}
        config = read_model(Resolved, results / "config.json", "").model_dump(mode="json")
        return "\n\n".join(methods_text.build(config, tables))

    return build


def test_what_was_run_is_said_with_its_source(text):
    said = text()
    for part in (
        "We segmented liver and spleen in Abdominal CT of many (Somebody et al., 2020).",
        "5 patients for testing",
        "MAE3D; He et al., CVPR 2022",
        "SparK; Tian et al., ICLR 2023",
        "1 and 4 labelled cases",
        "32 x 32 x 32 voxels",
        "2 seeds",
        "normalised surface Dice at 2 mm",
        "2,000 bootstrap replicates",
        "4 contrasts per metric were planned",
        "0.005 for Dice and NSD and 0.1 for HD95",
        "Labels saved were read off",
    ):
        assert part in said, part
    assert "GL-MAE" not in said
    assert "None" not in said
    assert not re.search(r"  |\u2014|\{|\}|nan", said)


def test_simulated_patients_have_no_statistics(text):
    said = text(simulated=True)
    assert "simulated from few people" in said
    assert "bootstrap" not in said


def test_a_study_of_scratch_alone_speaks_of_no_pretraining():
    backbone = {"title": "tiny", "family": "vit"}
    study = {
        "dataset": "d",
        "classes": ["liver"],
        "inits": {"b": ["scratch"]},
        "split": {"test": 3, "folds": 2, "budgets": [1]},
    }
    study |= {"prepare": {"spacing_zyx_mm": [1, 1, 1], "intensity": {"kind": "percentile", "low": 1, "high": 99}}}
    study |= {"pretrain": {"voxels": 10}, "finetune": {"steps": 1000, "crop_vox": [8, 8, 8]}}
    config = {"study": study, "datasets": {"d": {"title": "Scans"}}, "backbones": {"b": backbone}}
    curves = pd.DataFrame([("test", "mean", "dice", 7)], columns=["cohort", "class", "metric", "cases"])
    said = " ".join(methods_text.build(json.loads(json.dumps(config)), {"curves": curves, "contrasts": curves[:0]}))
    assert "started from random weights." in said
    assert "retraining saw" not in said
    assert "in each of 2 folds, 3 patients for testing" in said
    assert "In all, 7 test cases were scored." in said
