"""A label value that means "not known": from the file to the loss, past everything that counts classes."""

import json

import numpy as np
import pytest
import torch

from voxprior.cards import IntakeCard, PrepareCard, card_hash
from voxprior.data import cache, phantoms, prepare, volume
from voxprior.data.labels import check_values, count_values
from voxprior.data.loaders import regions
from voxprior.errors import Refusal
from voxprior.maths.augment import UNKNOWN
from voxprior.maths.boxes import Region
from voxprior.segment import model as segment


@pytest.fixture
def prepared(tmp_path):
    """One phantom whose class 2 is painted over by 9, not known, prepared at twice the spacing."""
    voxels, labels = phantoms.make(0)
    labels[labels == 2] = 9
    grid = phantoms.grid_of(voxels.shape, (1.0, 1.0, 1.0))
    files = {}
    for name, array in (("image", voxels), ("label", labels)):
        files[name] = tmp_path / f"{name}.nii.gz"
        volume.write_image(volume.from_array(array, grid), files[name])
    row = {"case": "a", "patient": "a", "person": "a", "content_sha256": "1", "simulated": "false"}
    row |= {"image": str(files["image"]), "label": str(files["label"]), "spacing_zyx_mm": "1 1 1"}
    row["shape_zyx"] = " ".join(map(str, voxels.shape))
    recipe = prepare.Recipe("k", (2.0, 2.0, 2.0), "window", -1000.0, 1000.0, ((1,), (3,)), ignore=(9,))
    entry = prepare.prepare_case(row, tmp_path, recipe)
    index = {"format": cache.FORMAT, "dataset": "d", "key": "k", "quantum": prepare.QUANTUM, "cases": [entry]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path / "index.json", entry, labels


def test_unknown_voxels_reach_the_cache_as_255_and_count_for_no_class(prepared):
    path, entry, labels = prepared
    case = cache.open_case(path, "a")
    found = case.read_label((0, 0, 0), case.shape_zyx)
    assert prepare.UNKNOWN == UNKNOWN == 255
    assert set(np.unique(found)) == {0, 1, 2, 255}
    assert (found == 255).sum() == pytest.approx((labels == 9).sum() / 8, rel=0.1)
    assert entry["class_voxels"] == [int((found == n).sum()) for n in (1, 2)]
    with pytest.raises(KeyError):
        case.places(255)


def test_unknown_voxels_are_in_no_loss(prepared):
    path, *_ = prepared
    region = Region((12, 12, 12))
    _, _, batch = next(iter(regions(path, ["a"], region, seed=0, batch_size=2, steps=1, labels=True, foreground=1.0)))
    unknown = batch["labels_BZYX"] == 255
    assert unknown.any()
    model = segment.Model(segment.Config((12, 12, 12)), torch.nn.Conv3d(1, 3, 1))
    logits = torch.randn(2, 3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    other = torch.where(unknown[:, None], logits + 9 * torch.rand(logits.shape), logits)
    for here, there in zip(*(model.loss.sums(made, batch["labels_BZYX"]) for made in (logits, other)), strict=True):
        torch.testing.assert_close(here, there)


def test_intake_knows_the_value(tmp_path):
    labels = phantoms.make(0)[1] * 3  # 3, 6, 9
    counts = count_values(volume.from_array(labels, phantoms.grid_of(labels.shape)))
    assert check_values(tmp_path, counts, {"a": [3], "b": [6]}, [9]) == []
    assert "label values of no class (9" in check_values(tmp_path, counts, {"a": [3], "b": [6]})[0]
    only = np.where(labels == 9, 9, 0).astype(np.uint8)
    counts = count_values(volume.from_array(only, phantoms.grid_of(labels.shape)))
    assert check_values(tmp_path, counts, {"a": [3]}, [9]) == []
    with pytest.raises(Refusal, match="none of the dataset's classes"):
        check_values(tmp_path, counts, {"a": [3]})


def test_cards_of_datasets_without_it_keep_their_hash():
    layout = {"kind": "decathlon"}
    card = IntakeCard(dataset="d", layout=layout, classes={"a": [1]})
    assert "ignore" not in card.model_dump(mode="json")
    scaling = {"spacing_zyx_mm": [1, 1, 1], "intensity": {"kind": "window", "low": 0, "high": 1}}
    cards = [PrepareCard(dataset="d", classes=[[1]], prepare=scaling, ignore=some) for some in ([], [9])]
    assert card_hash(cards[0]) != card_hash(cards[1])
    assert "ignore" not in cards[0].model_dump(mode="json")
