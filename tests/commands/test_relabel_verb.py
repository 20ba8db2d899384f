import json

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.commands import relabel
from voxprior.data import phantoms, volume
from voxprior.errors import Refusal


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = phantoms.make(0)[1]
    for dataset in ("own", "other"):
        grid = phantoms.grid_of(labels.shape, orientation="tilted")
        volume.write_image(volume.from_array(labels, grid), tmp_path / f"predictions/{dataset}.c.nii.gz")
    cases = [{"dataset": name, "case": "c", "file": f"predictions/{name}.c.nii.gz"} for name in ("own", "other")]
    (tmp_path / "predictions.json").write_text(json.dumps({"cases": cases}))
    card = {"classes": ["a", "b", "c"], "score": {}, "datasets": {"own": [[5], [2, 9], [820]], "other": [[], [1], [4]]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    return tmp_path, labels


def test_label_maps_get_the_values_of_their_datasets_files(place):
    folder, labels = place
    relabel.run(folder / "card.json", folder / "predictions.json", folder / "own")
    for dataset, values in (("own", [0, 5, 2, 820]), ("other", [0, 0, 1, 4])):
        image = sitk.ReadImage(str(folder / f"own/{dataset}.c.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(image), np.array(values)[labels])
        source = sitk.ReadImage(str(folder / f"predictions/{dataset}.c.nii.gz"))
        assert volume.Grid.of(image) == volume.Grid.of(source)


def test_a_dataset_that_the_card_does_not_know_is_refused(place):
    folder, _ = place
    card = json.loads((folder / "card.json").read_text())
    del card["datasets"]["other"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match=r"predictions.json holds dataset 'other', unknown to .*card.json: give its own"):
        relabel.run(folder / "card.json", folder / "predictions.json", folder / "own")
