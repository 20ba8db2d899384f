import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from voxprior.cards import FetchCard
from voxprior.commands import fetch
from voxprior.configuration import Dataset, Source
from voxprior.data import phantoms, sources
from voxprior.data.manifest import read_manifest
from voxprior.errors import Refusal

CONFIGS = sorted((Path(__file__).parents[2] / "config" / "datasets").glob("*.yaml"))


def test_fetch_writes_a_manifest_of_scans_in_place(tmp_path):
    scans = phantoms.write_folder(tmp_path / "scans", cases=2)
    card = tmp_path / "card.json"
    card.write_text(FetchCard(dataset="own", source=Source(kind="folder", path=str(scans))).model_dump_json())
    fetch.run(card, tmp_path / "raw/own/manifest.json", None)
    assert len(read_manifest(tmp_path / "raw/own/manifest.json")["files"]) == 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_dataset_file_fits_the_schema_and_names_its_licence(path):
    dataset = Dataset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert dataset.licence and dataset.citation
    values = [value for name, listed in dataset.classes.items() if name not in dataset.regions for value in listed]
    assert len(values) == len(set(values))  # one label value, one class, but for classes that say that they overlap
    assert set(dataset.overlaps) <= {config.stem for config in CONFIGS}
    if dataset.source.kind == "manual":
        assert dataset.source.steps
    if dataset.source.kind == "index":
        assert all(accepted.sha256 for accepted in dataset.source.accepts) and dataset.source.accepts


@pytest.mark.parametrize("verb", ["fetch", "intake", "prepare", "split"])
def test_these_verbs_do_not_pay_for_torch(verb):
    rooms = {
        "fetch": "data.sources",
        "intake": "data.intake, voxprior.data.layouts",
        "prepare": "data.prepare, voxprior.data.cache",
        "split": "maths.splits, voxprior.data.cache",
    }
    code = f"import sys, voxprior.commands.{verb}, voxprior.{rooms[verb]}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    card = tmp_path / "card.json"
    card.write_text(FetchCard(dataset="own", source=Source(kind="folder", path=str(tmp_path))).model_dump_json())

    def forbidden(*arguments):
        raise PermissionError(13, "Permission denied", "scans/a.nii.gz")

    monkeypatch.setattr(sources, "fetch", forbidden)
    with pytest.raises(Refusal, match=r"scans/a.nii.gz may not be read or written: change its permissions"):
        fetch.run(card, tmp_path / "raw/own/manifest.json", None)
