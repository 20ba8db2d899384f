"""Copies are found whatever was done to the file, and different scans are never taken for copies."""

import gzip
import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import entries, intake, leakage, phantoms, twins, volume
from voxprior.errors import Refusal


def named(array, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetDirection(direction)
    return twins.twin_sha256(image)


def turned():
    """Every way to exchange and flip three axes."""
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield order, flips


@pytest.mark.parametrize("kind", ["i2", "f4", "fractions"])
def test_all_48_turns_are_one_scan(kind):
    voxels = phantoms.make(0)[0].astype("f4" if kind == "fractions" else kind)
    voxels = voxels + np.float32(0.25) if kind == "fractions" else voxels
    copies = {named(voxels.transpose(order)[tuple(slice(None, None, f) for f in flips)]) for order, flips in turned()}
    assert len(copies) == 1


@pytest.mark.parametrize("kind", ["i4", "i8", "f4", "f8"])
def test_another_number_type_is_the_same_scan(kind):
    voxels = phantoms.make(0)[0]
    assert named(voxels.astype(kind)) == named(voxels)
    assert named((voxels + np.int16(1300)).astype("u2")) == named(voxels)  # HU with another intercept
    fractions = voxels.astype("f4") * np.float32(0.1)
    assert named(fractions.astype("f8")) == named(fractions) != named(voxels)
    minus = fractions.copy()
    minus[fractions == 0] = -0.0
    assert named(minus) == named(fractions)


def test_one_voxel_or_two_exchanged_make_another_scan():
    voxels = phantoms.make(0)[0]
    one, two, moved = voxels.copy(), voxels.copy(), np.roll(voxels, 1, axis=2)
    one[5, 6, 7] += 1
    two[5, 6, 7], two[9, 9, 9] = voxels[9, 9, 9], voxels[5, 6, 7]
    assert voxels[5, 6, 7] != voxels[9, 9, 9]
    shuffled = np.random.default_rng(0).permutation(voxels.ravel()).reshape(voxels.shape)
    names = [named(some) for some in (voxels, one, two, moved, shuffled, voxels[1:], voxels.reshape(28, 24, 26))]
    assert len(set(names)) == len(names)


def test_a_thousand_scans_have_a_thousand_names():
    """Half of them like one another: the same anatomy with other noise, or one slice moved."""
    base, chance, names = phantoms.make(0, (12, 14, 13))[0], np.random.default_rng(0), []
    for number in range(1000):
        if number % 2:
            voxels = phantoms.make(number, (12, 14, 13))[0]
        else:
            voxels = base.copy()
            z, y, x = (chance.integers(n) for n in base.shape)
            voxels[z, y, x] += number + 1
        names.append(named(voxels))
    assert len(set(names)) == 1000


# ------------------------------------------------------------------------------------------------- the gate, on files
def copy_of(path, how):
    """Writes a copy of a scan as people make them; returns its path."""
    image = sitk.ReadImage(str(path))
    copy = path.with_name(f"copy_{how}.nii.gz")
    if how == "renamed":
        copy.write_bytes(path.read_bytes())
    elif how == "re-gzipped":
        copy.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    elif how == "header edited":
        image.SetSpacing([1.5, 1.5, 5.0])
        image.SetOrigin([0, 0, 0])
        image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
        sitk.WriteImage(image, str(copy))
    elif how == "re-cast":
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), str(copy))
    elif how == "as NRRD":
        copy = copy.with_name("copy.nrrd")
        sitk.WriteImage(image, str(copy), useCompression=True)
    elif how == "mirrored":
        sitk.WriteImage(sitk.Flip(image, [True, False, False]), str(copy))
    elif how == "reoriented":
        sitk.WriteImage(sitk.DICOMOrient(image, "PIR"), str(copy))
    return copy


HOWS = ["renamed", "re-gzipped", "header edited", "re-cast", "as NRRD", "mirrored", "reoriented"]


def table(root, dataset, files):
    listed = [entries.Entry(volume.stem(file), file.name, file.name) for file in files]
    rows = []
    for entry in listed:
        # Labels are not what is looked at here: the scan stands in for them.
        ((kind, row),) = intake.examine([entry._replace(label=None)], root, intake.Identity(dataset))
        assert kind == "case", row
        rows.append({**row, "label": row["image"]})
    return rows


@pytest.fixture
def scans(tmp_path):
    files = []
    for number in range(6):
        files.append(tmp_path / f"p{number}.nii.gz")
        grid = phantoms.grid_of(phantoms.SHAPE_ZYX, orientation="RAS")
        volume.write_image(volume.from_array(phantoms.make(number)[0], grid), files[-1])
    return tmp_path, files


FOLD = {"fold": 0, "pool": ["p0", "p1", "p2"], "train": ["p0", "p1"], "val": ["p3"], "test": ["p4", "p5"]}


@pytest.mark.parametrize("how", HOWS)
def test_every_copy_is_found_wherever_it_lies(scans, how):
    root, files = scans
    own = table(root, "d", files)
    for learned in ("p0", "p2"):  # of the training set, and of the pretraining pool alone
        copy = copy_of(root / f"{learned}.nii.gz", how)
        (row,) = table(root, "other", [copy])
        # in another dataset
        (found,) = leakage.find_overlaps([FOLD], [own, [row]])
        assert found == (f"d/{learned}", f"other/{row['case']}", "voxels", (0,))
        # among the study's own test and validation cases, should an intake of long ago have let it pass
        for held in ("p3", "p5"):
            edited = [{**some, "twin_sha256": row["twin_sha256"]} if some["case"] == held else some for some in own]
            (found,) = leakage.find_overlaps([FOLD], [edited])
            assert found == (f"d/{learned}", f"d/{held}", "voxels", (0,))
        # beside the original: intake sets it aside
        twins_ = [entries.Entry(volume.stem(file), file.name, None) for file in (root / f"{learned}.nii.gz", copy)]
        (_, kept), (kind, aside) = intake.examine(twins_, root, intake.Identity("d"))
        assert (kept["case"], kind) == (learned, "quarantine") and learned in aside["defect"]


def test_a_copy_of_what_is_only_tested_or_never_scored_is_no_leak(scans):
    root, files = scans
    own = table(root, "d", files)
    (row,) = table(root, "other", [copy_of(root / "p4.nii.gz", "mirrored")])
    assert not leakage.find_overlaps([FOLD], [own, [row]])
    (row,) = table(root, "other", [copy_of(root / "p0.nii.gz", "mirrored")])
    assert not leakage.find_overlaps([FOLD], [own, [{**row, "label": ""}]])
    # With two folds each is learned from in one of them.
    second = {"fold": 1, "pool": ["p3", "p4", "p5"], "train": ["p4"], "val": [], "test": ["p0", "p1"]}
    assert leakage.find_overlaps([FOLD, second], [own, [row]])[0].folds == (0,)


def test_one_person_in_two_datasets_is_a_leak_too(scans):
    root, files = scans
    own = table(root, "d", files)
    other = [{**own[3], "dataset": "other", "person": own[1]["person"]}]
    assert leakage.find_overlaps([FOLD], [own, other]) == [("d/p1", "other/p3", "person", (0,))]
    everybody = [{**row, "person": "one"} for row in own]  # simulated patients: said elsewhere
    assert not leakage.find_overlaps([FOLD], [everybody])


def test_what_is_only_pretrained_on_is_learned_from_in_every_fold(scans):
    root, files = scans
    own = table(root, "d", files)
    second = {"fold": 1, "pool": ["p3", "p4", "p5"], "train": ["p4"], "val": [], "test": ["p0", "p1"]}
    (copy,) = table(root, "lake", [copy_of(root / "p5.nii.gz", "mirrored")])
    assert leakage.find_overlaps([FOLD, second], [own], [[copy]]) == [("lake/" + copy["case"], "d/p5", "voxels", (0,))]
    (fresh,) = table(root, "lake", [copy_of(root / "p2.nii.gz", "renamed")])  # trained on, never scored
    assert not leakage.find_overlaps([FOLD], [own], [[fresh]])
    person = {**fresh, "person": own[4]["person"]}
    assert leakage.find_overlaps([FOLD], [own], [[person]]) == [("lake/" + fresh["case"], "d/p4", "person", (0,))]
    outside = [{**own[3], "dataset": "other", "person": "x/1"}]
    (found,) = leakage.find_overlaps([FOLD], [own, outside], [[{**fresh, "person": "x/1"}]])
    assert (found.scored, found.shared) == ("other/p3", "person")


def test_overlap_is_refused_in_one_sentence():
    leakage.demand_none([])
    some = [leakage.Overlap(f"d/p{n}", f"o/q{n}", "voxels", (0,)) for n in range(5)]
    with pytest.raises(Refusal, match=r"5 scored cases .*d/p0 and o/q0 share their voxels; .*; and 2 more\): take one"):
        leakage.demand_none(some)
