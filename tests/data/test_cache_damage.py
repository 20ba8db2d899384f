"""Whatever is done to a prepared dataset's files, opening a case says so, and prepare makes it anew."""

import json
import os
import shutil

import blosc2
import numpy as np
import pytest

from voxprior.data import cache, memory, phantoms, prepare, processes
from voxprior.errors import Refusal
from voxprior.whole import write_json

RECIPE = prepare.Recipe("k1", (3.0, 2.0, 2.0), "window", -1000.0, 1000.0, ((1,), (2, 3)))
OLD_NS = 1_600_000_000_000_000_000


def rows_of(folder):
    names = ("phantom_000", "phantom_001")
    files = [{kind[:-1]: f"{folder}/{kind}/{name}.nii.gz" for kind in ("images", "labels")} for name in names]
    return [dict.fromkeys(("case", "patient", "person"), name) | two for name, two in zip(names, files, strict=True)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a prepared dataset whose arrays are old enough to be trusted by size and time."""
    folder = tmp_path_factory.mktemp("damage")
    phantoms.write_folder(folder / "scans", cases=2, orientation="LPS")
    entries = list(prepare.prepare_all(rows_of(folder / "scans"), folder / "p", RECIPE, 1))
    write_json(
        folder / "p/index.json", {"format": cache.FORMAT, "key": "k1", "quantum": prepare.QUANTUM, "cases": entries}
    )
    return folder


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made / "p", tmp_path / "p")
    for sidecar in (tmp_path / "p/volumes").glob("*.json"):
        content = json.loads(sidecar.read_text())
        for file in content["stamps"]:
            os.utime(tmp_path / "p" / file, ns=(OLD_NS, OLD_NS))
            content["stamps"][file] = cache.stamp(tmp_path / "p" / file)
        sidecar.write_text(json.dumps(content))
    return tmp_path / "p"


def flipped(part):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(part * (len(content) - 1))] ^= 1 << int(part * 1000) % 8
        path.write_bytes(content)

    return damage


def cut(part):
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def other_version(path):
    array = blosc2.open(str(path))[...]
    path.unlink()
    blosc2.asarray(array, urlpath=str(path), meta={"voxprior": {"format": 99, "key": "k1"}})


def same_size(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {
    **{f"bit at {part:.2f}": flipped(part) for part in np.linspace(0, 1, 19)},
    **{f"cut to {part:.2f}": cut(part) for part in (0.01, 0.2, 0.5, 0.9, 0.999)},
    "empty": cut(0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "zeros": same_size,
    "another case's": lambda path: shutil.copy(str(path).replace("_000", "_001"), path),
    "another version": other_version,
    "text": lambda path: path.write_text("no array"),
}


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_noticed_and_mended(place, made, damage, kind):
    path = place / "volumes" / {"image": "phantom_000.b2nd", "label": "phantom_000.label.b2nd"}[kind]
    whole = path.read_bytes()
    DAMAGES[damage](path)
    with pytest.raises(Refusal, match=f"{path.name} .*rerun 'prepare'"):
        cache.open_case(place / "index.json", "phantom_000")
    cache.open_case(place / "index.json", "phantom_001")
    list(prepare.prepare_all(rows_of(made / "scans"), place, RECIPE, 1))
    cache.open_case(place / "index.json", "phantom_000")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 1, 20, 200, -2, -20])
def test_a_cut_index_is_noticed(place, size):
    path = place / "index.json"
    path.write_text(path.read_text()[:size])
    with pytest.raises(Refusal, match=r"index.json is damaged"):
        cache.open_case(path, "phantom_000")


def test_an_untouched_file_is_not_read_through_and_a_touched_one_is(place, monkeypatch):
    read = []
    monkeypatch.setattr(cache, "sha256_of", lambda path: read.append(str(path)) or "another")
    cache.open_case(place / "index.json", "phantom_000")
    assert not read
    os.utime(place / "volumes/phantom_001.b2nd")
    with pytest.raises(Refusal, match="damaged or stale"):
        cache.open_case(place / "index.json", "phantom_001")
    assert len(read) == 1


def test_a_file_as_young_as_its_sidecar_is_not_trusted(place, monkeypatch):
    """Both may have been written within one tick of the file system's clock."""
    path, sidecar = place / "volumes/phantom_000.b2nd", place / "volumes/phantom_000.json"
    changed = sidecar.stat().st_mtime_ns - cache.TICK_NS // 2
    os.utime(path, ns=(changed, changed))
    content = json.loads(sidecar.read_text())
    content["stamps"]["volumes/phantom_000.b2nd"] = cache.stamp(path)
    sidecar.write_text(json.dumps(content))
    os.utime(sidecar, ns=(changed + 10, changed + 10))
    monkeypatch.setattr(cache, "sha256_of", lambda path: "another")
    with pytest.raises(Refusal, match="damaged or stale"):
        cache.open_case(place / "index.json", "phantom_000")


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.uint16, np.float32])
def test_percentiles_are_numpys(kind):
    voxels = np.random.default_rng(0).gamma(2, 30, (7, 9, 11)).astype(kind)
    voxels = voxels - np.asarray(40, kind) if kind == np.int16 else voxels
    assert np.allclose(prepare.percentiles(voxels, 0.5, 97.3), np.percentile(voxels, (0.5, 97.3)), rtol=1e-6)


def test_places_are_counted_and_spread():
    labels = phantoms.make(1)[1]
    counts, places = prepare.find_places(labels, 5)
    assert counts == [int((labels == n).sum()) for n in range(1, 6)]
    for number, voxels in places.items():
        all_N = np.flatnonzero(labels == number)
        picked = all_N[np.linspace(0, len(all_N) - 1, min(1024, len(all_N))).astype(int)]
        assert np.array_equal(np.ravel_multi_index(tuple(voxels.T), labels.shape), picked)


# ------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize(
    ("asked", "need", "free", "expected"), [(4, 10, 100, 4), (4, 40, 100, 2), (4, 400, 100, 1), (4, 40, None, 4)]
)
def test_workers_fit_into_the_free_memory(asked, need, free, expected):
    assert processes.fitting(asked, need, free) == expected


def test_the_need_grows_with_the_scan_and_the_result():
    row = {"shape_zyx": "100 200 200", "spacing_zyx_mm": "5.0 1.0 1.0"}
    coarse = prepare.Recipe("k", (5.0, 2.0, 2.0), "window", 0.0, 1.0, ())
    fine = prepare.Recipe("k", (1.0, 1.0, 1.0), "window", 0.0, 1.0, ())
    voxels = 100 * 200 * 200
    assert prepare.need_bytes(row, coarse) == prepare.FIXED_BYTES + 11 * voxels
    assert prepare.need_bytes(row, fine) == prepare.FIXED_BYTES + (8 + 3 * 5) * voxels


def test_the_strictest_limit_counts(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    assert memory.free_bytes(tmp_path) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.free_bytes(tmp_path) == 8000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/one\n")
    job = tmp_path / "sys/fs/cgroup/jobs"
    (job / "one").mkdir(parents=True)
    for folder, most in ((job / "one", "max"), (job, "5000000")):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert memory.free_bytes(tmp_path) == 2500000
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/x\n")
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("1000\n")
    (old / "memory.usage_in_bytes").write_text("400\n")
    assert memory.free_bytes(tmp_path) == 600
