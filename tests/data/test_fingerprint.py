import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import fingerprint, phantoms, volume
from voxprior.data.labels import Counted

CLASSES = {"one": [1], "two": [2], "rest": [3, 4]}


def measured(seed=0, shape=(40, 52, 36), orientation="LPS", spacing=(5.0, 1.0, 2.0), samples=20_000):
    voxels, labels = phantoms.make(seed, shape)
    grid = phantoms.grid_of(shape, spacing, orientation)
    image, label = volume.from_array(voxels, grid), volume.from_array(labels, grid)
    counted = Counted.of(label)
    case = fingerprint.measure(volume.Grid.of(image), counted, CLASSES)
    case["channels"].append(fingerprint.sample(image, counted, CLASSES, samples))
    return case, voxels, labels


@pytest.mark.parametrize(("orientation", "order"), [("LPS", [0, 1, 2]), ("RAS", [0, 1, 2]), ("PIR", [1, 2, 0])])
def test_axes_are_those_of_the_prepared_array(orientation, order):
    case, _, _ = measured(orientation=orientation)
    voxels, grid = volume.to_lps(
        volume.from_array(np.zeros((40, 52, 36)), phantoms.grid_of((40, 52, 36), (5.0, 1.0, 2.0), orientation))
    )
    assert case["size_zyx_vox"] == list(voxels.shape) == [(40, 52, 36)[axis] for axis in order]
    assert case["spacing_zyx_mm"] == list(grid.spacing_zyx_mm) == [(5.0, 1.0, 2.0)[axis] for axis in order]


def test_volumes_are_exact_and_samples_are_those_of_the_scan():
    case, voxels, labels = measured(samples=3000)
    assert case["class_ml"]["two"] == pytest.approx((labels == 2).sum() * 10 / 1000)
    (taken,) = case["channels"]
    assert 2000 < len(taken["all"]) <= 3000 and 2000 < len(taken["foreground"]) <= 3000
    for some, of in ((taken["all"], voxels), (taken["foreground"], voxels[labels > 0])):
        assert np.isin(some, of).all()
        for share in (5, 50, 95):
            below = (of < np.percentile(some, share)).mean()
            assert below == pytest.approx(share / 100, abs=0.03)
    whole = measured(samples=10**6)[0]["channels"][0]
    assert whole["all"] == voxels.ravel().tolist() and whole["foreground"] == voxels[labels > 0].tolist()


def test_samples_do_not_stay_in_one_column():
    ramp = np.tile(np.arange(64), (64, 64, 1))
    image = sitk.GetImageFromArray(ramp)
    assert "class_ml" not in fingerprint.measure(volume.Grid.of(image), None, {})
    case = fingerprint.sample(image, None, {}, 64 * 64)
    assert case.keys() == {"all"} and np.unique(case["all"]).size == 64
    assert np.mean(case["all"]) == pytest.approx(31.5, abs=0.5)


def test_cases_are_put_together():
    cases = [measured(seed)[0] for seed in range(3)]
    cases[2] = {key: cases[2][key] for key in ("size_zyx_vox", "spacing_zyx_mm")}
    cases[2]["channels"] = [{"all": measured(2)[0]["channels"][0]["all"]}]
    told = fingerprint.summarise("d", "ct", cases)
    assert (told["cases"], told["labelled"]) == (3, 2)
    assert told["size_zyx_vox"]["median"] == [40, 52, 36] and told["extent_zyx_mm"]["max"] == [200, 52, 72]
    assert told["classes"]["one"]["cases"] == 2 and told["classes"]["rest"]["volume_ml"]["min"] > 0
    pooled = np.concatenate([case["channels"][0]["foreground"] for case in cases[:2]])
    assert told["intensity"]["foreground"]["p99.5"] == pytest.approx(np.percentile(pooled, 99.5), rel=1e-4)
    window = told["proposal"]["prepare"]["intensity"]
    assert window["kind"] == "window" and window["low"] == np.floor(np.percentile(pooled, 0.5))
    unlabelled = fingerprint.summarise("d", "mr", cases[2:])
    assert "foreground" not in unlabelled["intensity"] and unlabelled["classes"] == {}
    assert unlabelled["proposal"]["prepare"]["intensity"] == {"kind": "percentile", "low": 0.5, "high": 99.5}


def spacing_of(sizes, spacings):
    return fingerprint.propose_spacing(np.array(sizes, float), np.array(spacings, float))[0]


def test_the_proposed_spacing_is_the_median_but_for_thick_slices():
    assert spacing_of([[100, 90, 90]] * 3, [[1, 1, 1], [2, 1, 1], [3, 1, 3]]) == [2, 1, 1]
    # 5 mm slices, some of 1 mm: the finest tenth
    thick = [[5, 0.8, 0.8]] * 8 + [[1.25, 0.8, 0.8]] * 2
    assert spacing_of([[80, 512, 512]] * 10, thick) == [
        pytest.approx(np.percentile([5] * 8 + [1.25] * 2, 10)),
        0.8,
        0.8,
    ]
    # never finer than the other axes
    assert spacing_of([[80, 512, 512]] * 10, [[5, 0.8, 0.8]] * 8 + [[0.5, 0.8, 0.8]] * 2)[0] == 0.8
    # long voxels but as many of them, or thick by less than three times: medians
    assert spacing_of([[400, 512, 512]] * 10, thick)[0] == 5
    assert spacing_of([[80, 512, 512]] * 10, [[2.3, 0.8, 0.8]] * 10)[0] == 2.3
    # whichever axis it is
    assert spacing_of([[512, 512, 80]] * 2, [[0.8, 0.8, 4]] * 2) == [0.8, 0.8, 4]


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((300, 300, 300), (1, 1, 1), [128, 128, 128]),
        ((300, 512, 512), (2, 1, 1), [80, 160, 160]),
        ((35, 50, 35), (1, 1, 1), [48, 64, 48]),
        ((20, 512, 512), (5, 0.8, 0.8), [32, 256, 256]),
    ],
)
def test_the_proposed_crop_fits_scan_and_device(size, spacing, expected):
    crop, why = fingerprint.propose_crop(np.array(size), spacing)
    assert crop == expected and "median scan" in why
    assert np.prod(crop) <= fingerprint.CROP_VOXELS
    assert all(side % 16 == 0 and side < n + 16 for side, n in zip(crop, size, strict=True))


def test_every_channel_has_its_own_intensities():
    cases = [measured(seed)[0] for seed in range(2)]
    for case in cases:
        (first,) = case["channels"]
        case["channels"].append({kind: [3 * value + 7 for value in some] for kind, some in first.items()})
    told = fingerprint.summarise("d", "ct", cases, ["CT", "PET"])
    assert told["intensity"] == told["channels"]["CT"] != told["channels"]["PET"]
    proposed = told["proposal"]["prepare"]
    assert proposed["channels"].keys() == {"PET"} and proposed["channels"]["PET"] != proposed["intensity"]
    relative = fingerprint.summarise("d", "mr", cases, ["T1", "T2"])["proposal"]["prepare"]
    assert "channels" not in relative  # percentiles of each scan go for all of them
