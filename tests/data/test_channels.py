"""Several channels: files, a fourth axis, values per voxel; through intake, the cache and the loader."""

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.cards import PrepareCard
from voxprior.commands import prepare as verb
from voxprior.configuration import Intensity, Layout, Prepare
from voxprior.data import cache, channels, intake, layouts, phantoms, volume
from voxprior.data.loaders import regions
from voxprior.errors import Refusal
from voxprior.maths.boxes import Region

SHAPE = (12, 14, 16)
GRID = phantoms.grid_of(SHAPE, orientation="RAS")
NAMES = ["t1", "t2"]


def arrays(index: int = 0) -> list[np.ndarray]:
    """Two channels of one phantom: as it is, and turned over in intensity, with another number type."""
    first = phantoms.make(index, SHAPE)[0]
    return [first, (500.0 - 2.0 * first).astype(np.float32)]


def image_of(array: np.ndarray) -> sitk.Image:
    return volume.from_array(array, GRID)


def four_d(values: list[np.ndarray]) -> sitk.Image:
    return sitk.JoinSeries([image_of(value.astype(np.float32)) for value in values])


@pytest.fixture
def scans(tmp_path):
    """Three cases of two files, the last one without labels."""
    for index in range(3):
        for name, array in zip(NAMES, arrays(index), strict=True):
            volume.write_image(image_of(array), tmp_path / f"scans/c{index}_{name}.nii.gz")
        if index < 2:
            volume.write_image(image_of(phantoms.make(index, SHAPE)[1]), tmp_path / f"scans/c{index}_seg.nii.gz")
    return tmp_path / "scans"


LAYOUT = Layout(kind="folder", images="{case}_{channel}.nii.gz", labels="{case}_seg.nii.gz")


def look(folder, layout=LAYOUT):
    files = [path.name for path in folder.iterdir()]
    entries = layouts.list_cases(layout, folder, files, channels=NAMES)
    return list(intake.examine(entries, folder, intake.Identity("d", channels=2)))


def same(read: list[sitk.Image], values: list[np.ndarray]) -> bool:
    grids = all(np.allclose(volume.Grid.of(image).corners_mm(), GRID.corners_mm(), atol=1e-4) for image in read)
    return grids and all(np.array_equal(sitk.GetArrayFromImage(a), b) for a, b in zip(read, values, strict=True))


def test_channels_come_from_files_a_fourth_axis_or_values_per_voxel(tmp_path, scans):
    joined = channels.join([str(scans / f"c0_{name}.nii.gz") for name in NAMES])
    assert same(list(channels.read_channels(joined, 2)), arrays())
    sitk.WriteImage(four_d(arrays()), str(tmp_path / "a.nii.gz"))
    assert same(list(channels.read_channels(str(tmp_path / "a.nii.gz"), 2)), arrays())
    vector = sitk.Compose([image_of(value.astype(np.float32)) for value in arrays()])
    sitk.WriteImage(vector, str(tmp_path / "a.nrrd"))
    assert same(list(channels.read_channels(str(tmp_path / "a.nrrd"), 2)), arrays())


def test_a_row_of_several_files_names_them_all_and_hashes_them_all(scans):
    rows = [row for kind, row in look(scans) if kind == "case"]
    assert [row["image"].count("|") for row in rows] == [1, 1, 1]
    assert rows[0]["image"].endswith("c0_t2.nii.gz") and rows[0]["image"].split("|")[0].endswith("c0_t1.nii.gz")
    before = rows[0]["content_sha256"]
    changed = arrays()[1]
    changed[3, 3, 3] += 1
    volume.write_image(image_of(changed), scans / "c0_t2.nii.gz")
    assert look(scans)[0][1]["content_sha256"] != before


def test_channels_on_different_grids_are_refused(scans):
    moved = image_of(arrays()[1])
    moved.SetOrigin([value + 1 for value in moved.GetOrigin()])
    volume.write_image(moved, scans / "c0_t2.nii.gz")
    volume.write_image(image_of(arrays()[1][1:]), scans / "c1_t2.nii.gz")
    (a, first), (b, second), (c, _) = look(scans)
    assert (a, b, c) == ("quarantine", "quarantine", "case")
    assert "mm beside channel" in first["defect"] and first["advice"] == "resample all channels of a case to one grid"
    assert "11x14x16 voxels where channel" in second["defect"]


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (lambda: image_of(arrays()[0]), "has 1 channels where the dataset has 2"),
        (lambda: four_d([*arrays(), arrays()[0]]), "has 3 channels where the dataset has 2"),
        (lambda: four_d([arrays()[0], np.zeros(SHAPE)]), "channel 2 is constant"),
    ],
)
def test_files_with_other_channels_are_refused(tmp_path, image, word):
    sitk.WriteImage(image(), str(tmp_path / "a.nrrd"))
    with pytest.raises(Refusal, match=word):
        list(channels.read_channels(str(tmp_path / "a.nrrd"), 2))


def test_nan_in_a_channel_and_files_that_are_none_are_refused(tmp_path):
    broken = arrays()[1]
    broken[0, 0, 0] = np.nan
    sitk.WriteImage(four_d([arrays()[0], broken]), str(tmp_path / "a.nrrd"))
    (tmp_path / "b.nrrd").write_text("no image")
    for name, word in (("a", "NaN"), ("b", "cannot be read"), ("c", "is missing")):
        with pytest.raises(Refusal, match=word):
            list(channels.read_channels(str(tmp_path / f"{name}.nrrd"), 2))
    with pytest.raises(Refusal, match="are 3 channels, not 2"):
        list(channels.read_channels("a|b|c", 2))


@pytest.fixture
def index(tmp_path, scans):
    import csv

    rows = [row for _, row in look(scans)]
    with open(tmp_path / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, intake.CASES)
        writer.writeheader()
        writer.writerows(rows)
    one, two = Intensity(kind="window", low=-1000, high=1000), Intensity(kind="percentile", low=0, high=100)
    scale = Prepare(spacing_zyx_mm=phantoms.SPACING_ZYX_MM, intensity=one, channels={"t2": two})
    card = PrepareCard(dataset="d", channels=NAMES, classes=[[1], [2], [3]], prepare=scale)
    (tmp_path / "card.json").write_text(card.model_dump_json())
    verb.run(tmp_path / "card.json", tmp_path / "cases.csv", tmp_path / "p/index.json", 1)
    return tmp_path / "p/index.json"


def test_each_channel_has_its_own_intensities_and_chunks(index):
    assert cache.read_index(index)["channels"] == NAMES
    case = cache.open_case(index, "c0")
    box_CZYX, lo, hi = case.read((0, 0, 0), case.shape_zyx)
    assert case.channels == 2 and box_CZYX.shape == (2, *SHAPE) and (lo, hi) == ((0, 0, 0), SHAPE)
    assert case.image.chunks[0] == 1
    expected = [volume.to_lps(image_of(array))[0].astype(float) for array in arrays()]
    expected[0] = np.clip((expected[0] + 1000) / 2000, 0, 1)
    expected[1] = (expected[1] - expected[1].min()) / (expected[1].max() - expected[1].min())
    assert np.abs(box_CZYX * case.quantum - np.stack(expected)).max() <= case.quantum


def test_the_loader_hands_over_all_channels_of_one_place(index):
    read = regions(index, ["c0", "c1"], Region((8, 20, 8)), seed=1, batch_size=2, steps=3, labels=True)
    for _, _, batch in read:
        region = batch["region_BCZYX"]
        assert region.shape == (2, 2, 8, 20, 8) and batch["labels_BZYX"].shape == (2, 8, 20, 8)
        for (first, second), lo, hi in zip(region.double(), batch["valid_lo_B3"], batch["valid_hi_B3"], strict=True):
            real = tuple(slice(int(a), int(b)) for a, b in zip(lo, hi, strict=True))
            pair = np.stack([first[real].numpy().ravel(), second[real].numpy().ravel()])
            # The second channel is the first one turned over: where one rises the other falls, in the same voxel.
            assert np.corrcoef(pair)[0, 1] < -0.99
