import json

import blosc2
import numpy as np
import pytest

from voxprior.data import cache, phantoms, prepare
from voxprior.errors import Refusal
from voxprior.whole import write_json

RECIPE = prepare.Recipe("k1", (3.0, 2.0, 2.0), "window", -1000.0, 1000.0, ((1,), (2, 3), ()))


def rows_of(folder, count):
    return [
        {
            "case": f"phantom_{i:03d}",
            "patient": str(i),
            "person": str(i),
            "image": str(folder / f"images/phantom_{i:03d}.nii.gz"),
            "label": str(folder / f"labels/phantom_{i:03d}.nii.gz") if i < 2 else "",
            "content_sha256": str(i),
            "shape_zyx": "36 40 44",
            "spacing_zyx_mm": "3.0 2.0 2.0",
        }
        for i in range(count)
    ]


@pytest.fixture
def index(tmp_path):
    scans = phantoms.write_folder(tmp_path / "scans", cases=2, unlabelled=1, orientation="LPS")
    entries = list(prepare.prepare_all(rows_of(scans, 3), tmp_path / "p", RECIPE, 1))
    content = {"format": cache.FORMAT, "key": "k1", "quantum": prepare.QUANTUM, "classes": [1, 2], "cases": entries}
    write_json(tmp_path / "p" / "index.json", content)
    return tmp_path / "p" / "index.json"


def test_a_case_holds_scaled_intensities_and_study_ids(index):
    voxels, labels = phantoms.make(0)
    case = cache.open_case(index, "phantom_000")
    box, lo, hi = case.read((0, 0, 0), case.shape_zyx)
    assert np.abs(box * case.quantum - np.clip((voxels + 1000) / 2000, 0, 1)).max() <= case.quantum
    assert box.dtype == np.int16 and (lo, hi) == ((0, 0, 0), case.shape_zyx)
    expected = np.array([0, 1, 2, 2])[labels]
    assert np.array_equal(case.read_label((0, 0, 0), case.shape_zyx), expected)
    assert case.class_voxels == ((expected == 1).sum(), (expected == 2).sum(), 0)
    for number in (1, 2):
        assert (expected[tuple(case.places(number).T)] == number).all()


@pytest.mark.parametrize("lo", [(0, 0, 0), (5, 7, 3), (-4, -6, -2), (20, 25, 20), (-30, 0, 0)])
def test_a_box_is_cut_and_padded_like_an_array(index, lo):
    case = cache.open_case(index, "phantom_001")
    size = (36, 9, 11) if lo[0] < -10 else (8, 9, 11)
    (whole,) = case.image[...]
    padded = np.pad(whole, 40)
    expected = padded[tuple(slice(a + 40, a + 40 + n) for a, n in zip(lo, size, strict=True))]
    box, valid_lo, valid_hi = case.read(lo, size)
    assert np.array_equal(box, expected[None])
    real = np.pad(np.ones_like(whole), 40)[tuple(slice(a + 40, a + 40 + n) for a, n in zip(lo, size, strict=True))]
    inside = np.zeros(size)
    inside[tuple(slice(a, b) for a, b in zip(valid_lo, valid_hi, strict=True))] = 1
    assert np.array_equal(real, inside)


def test_an_unlabelled_case_has_no_label(index):
    assert cache.open_case(index, "phantom_002").label is None


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "gone"])
def test_a_damaged_array_is_noticed_when_it_is_opened(index, damage):
    path = index.parent / "volumes/phantom_000.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"bit": bytes(content), "truncated": content[:-10], "empty": b""}[damage])
    with pytest.raises(Refusal, match="phantom_000.b2nd .*rerun 'prepare'"):
        cache.open_case(index, "phantom_000")


def test_an_array_of_another_card_is_noticed(index):
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"key": "k2"}))
    with pytest.raises(Refusal, match="another card"):
        cache.open_case(index, "phantom_000")


@pytest.mark.parametrize(("text", "word"), [("{", "damaged"), ("[]", "damaged"), ('{"format": 7}', "format 7")])
def test_a_damaged_index_is_refused(index, text, word):
    index.write_text(text)
    with pytest.raises(Refusal, match=word):
        cache.read_index(index)


def test_finished_cases_are_kept_and_damaged_or_changed_ones_redone(index, tmp_path, monkeypatch):
    done = []
    make = prepare._make
    monkeypatch.setattr(prepare, "_make", lambda row, *rest: done.append(row["case"]) or make(row, *rest))
    rows = rows_of(tmp_path / "scans", 3)
    before = json.loads(index.read_text())["cases"]
    assert list(prepare.prepare_all(rows, index.parent, RECIPE, 1)) == before
    assert done == []
    (index.parent / "volumes/phantom_000.b2nd").write_bytes(b"cut")
    rows[1]["content_sha256"] = "another scan"
    assert list(prepare.prepare_all(rows, index.parent, RECIPE, 1)) == before
    assert done == ["phantom_000", "phantom_001"]


def test_percentiles_are_the_scans_own(tmp_path):
    voxels = phantoms.make(0)[0]
    recipe = prepare.Recipe("k", (3.0, 2.0, 2.0), "percentile", 10.0, 90.0, ())
    scaled = prepare.intensity_map("scan", voxels, recipe)(voxels.astype(np.float32))
    assert abs((scaled == 0).mean() - 0.1) < 0.02 and abs((scaled == 1).mean() - 0.1) < 0.02
    voxels[:] = 5
    voxels[0, 0, 0] = 9
    with pytest.raises(Refusal, match="intensity 5 at both percentiles"):
        prepare.intensity_map("scan", voxels, recipe)


def test_files_do_not_depend_on_the_number_of_cores(tmp_path):
    array = phantoms.make(0)[0]
    before = blosc2.set_nthreads(1)
    one = cache.write_array(tmp_path / "a.b2nd", array, "k")
    blosc2.set_nthreads(3)
    three = cache.write_array(tmp_path / "a.b2nd", array, "k")
    blosc2.set_nthreads(before)
    assert one == three


def test_what_is_learned_from_is_named_by_cases_order_content_and_what_else(index):
    names = ["phantom_000", "phantom_002"]
    key = cache.content_key(index, names, "encoder")
    assert key == cache.content_key(index, list(names), "encoder")
    others = [
        (names[::-1], "encoder"),
        (names[:1], "encoder"),
        (names, None),
        (["phantom_000", "phantom_001"], "encoder"),
    ]
    content = json.loads(index.read_text())
    content["cases"][0]["label_sha256"] = "corrected"
    write_json(index.parent / "other.json", content)
    keys = {cache.content_key(index, *other) for other in others} | {
        cache.content_key(index.parent / "other.json", names, "encoder")
    }
    assert len(keys) == 5 and key not in keys
