import errno
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from voxprior.configuration import Accepted, Part, Source
from voxprior.data import phantoms, places, sources, transfer, unpack
from voxprior.data.manifest import files_of, read_manifest, write_manifest
from voxprior.errors import Refusal


@pytest.fixture
def archive(tmp_path) -> Path:
    phantoms.write_decathlon(tmp_path / "made" / "Task99", cases=2, shape_zyx=(8, 9, 10))
    path = tmp_path / "made" / "Task99.tar"
    (tmp_path / "made" / "Task99" / "._dataset.json").write_bytes(b"junk")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "made" / "Task99", "Task99")
    return path


@pytest.fixture
def manifest(tmp_path) -> Path:
    return tmp_path / "data" / "raw" / "m" / "manifest.json"


def digest(content: bytes | Path, kind: str = "sha256") -> str:
    return hashlib.new(kind, content.read_bytes() if isinstance(content, Path) else content).hexdigest()


def source(archive: Path, **changes) -> Source:
    known = [Accepted(sha256="0" * 64, contains="official"), Accepted(sha256=digest(archive), contains="2 cases")]
    return Source(**({"kind": "url", "urls": [], "file": "Task99.tar", "accepts": known} | changes))


def fetch(wanted: Source, manifest: Path, mirror: str | Path | None = None) -> dict:
    sources.fetch(wanted, "m", manifest, None if mirror is None else str(mirror), sleep=lambda seconds: None)
    return read_manifest(manifest)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def nothing_is_left(manifest: Path) -> bool:
    """Nothing under a final name: no manifest, no files; and no wrong download to trip over."""
    return names(manifest.parent) == []


# ------------------------------------------------------------------------------------------------- archives
def test_a_dataset_comes_from_a_url_once(site, archive, manifest):
    site.files["/Task99.tar"] = archive.read_bytes()
    wanted = source(archive, urls=[f"{site.url}/Task99.tar"])
    content = fetch(wanted, manifest)
    assert content["archives"] == [
        {
            "file": "Task99.tar",
            "sha256": digest(archive),
            "bytes": archive.stat().st_size,
            "from": f"{site.url}/Task99.tar",
            "contains": "2 cases",
        }
    ]
    root, files = files_of(content, manifest)
    assert "Task99/dataset.json" in files and not any("._" in file for file in files)
    assert all((root / file).is_file() for file in files)
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["fetched.json", "files", "manifest.json"]
    fetch(wanted, manifest)
    assert len(site.asked) == 1
    (root / files[0]).write_bytes(b"damaged")
    assert fetch(wanted, manifest) == content and len(site.asked) == 2


def test_a_manifest_that_the_workflow_deleted_costs_no_download(site, archive, manifest):
    """Snakemake deletes a job's outputs before it runs again, as after every change of the source's description."""
    site.files["/Task99.tar"] = archive.read_bytes()
    wanted = source(archive, urls=[f"{site.url}/Task99.tar"])
    before = fetch(wanted, manifest)
    manifest.unlink()
    assert fetch(wanted.model_copy(update={"urls": ["http://127.0.0.1:1/new"]}), manifest) == before
    assert len(site.asked) == 1
    manifest.unlink()
    less = fetch(wanted.model_copy(update={"members": ["*.json"]}), manifest)  # other files of the same archive
    assert [file["path"] for file in less["files"]] == ["files/Task99/dataset.json"] and len(site.asked) == 2
    with pytest.raises(Refusal, match="is expected"):
        fetch(wanted.model_copy(update={"accepts": [Accepted(sha256="1" * 64)]}), manifest)


def test_an_archive_that_has_come_is_not_fetched_again(site, archive, manifest):
    site.files["/Task99.tar"] = archive.read_bytes()
    (manifest.parent / "incoming").mkdir(parents=True)
    (manifest.parent / "incoming" / "Task99.tar").write_bytes(archive.read_bytes())
    fetch(source(archive, urls=[f"{site.url}/Task99.tar"]), manifest)
    assert site.asked == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (os.urandom(2000), "sha256 .* where sha256 0000"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b"", "is empty|sha256"),
    ],
)
def test_a_wrong_file_is_refused_removed_and_nothing_is_left(site, archive, manifest, content, says):
    site.files["/Task99.tar"] = content
    with pytest.raises(Refusal, match=says) as refusal:
        fetch(source(archive, urls=[f"{site.url}/Task99.tar"]), manifest)
    assert f"{site.url}/Task99.tar" in str(refusal.value) and "it was removed, run again" in str(refusal.value)
    assert nothing_is_left(manifest)


def test_a_file_whose_length_is_a_lie_is_refused(site, archive, manifest):
    site.files["/Task99.tar"], site.always = archive.read_bytes(), "short"
    with pytest.raises(Refusal, match="sha256"):
        fetch(source(archive, urls=[f"{site.url}/Task99.tar"]), manifest)
    with pytest.raises(Refusal, match="is damaged|ends inside"):  # where no hash is known, unpacking tells
        fetch(source(archive, urls=[f"{site.url}/Task99.tar"], accepts=[]), manifest)
    assert nothing_is_left(manifest) and not (manifest.parents[2] / "hashes").exists()


def test_a_part_of_two_files_is_fetched_afresh(site, archive, manifest):
    """Without a validator nobody can tell that the file has changed, until its hash is wrong."""
    right = archive.read_bytes()
    site.files["/Task99.tar"], site.validators = right[::-1], False
    site.faults, site.always = ["drop"], "503"
    wanted = source(archive, urls=[f"{site.url}/Task99.tar"])
    with pytest.raises(Refusal, match="503"):
        fetch(wanted, manifest)
    site.files["/Task99.tar"], site.always = right, ""
    assert fetch(wanted, manifest)["archives"][0]["contains"] == "2 cases"


@pytest.mark.parametrize("members", [["*.nrrd"], []])
def test_a_failure_while_unpacking_leaves_the_earlier_files(archive, manifest, members, monkeypatch):
    before = fetch(source(archive), manifest, archive)
    if not members:
        monkeypatch.setattr(unpack, "_copy", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    manifest.unlink()
    changed = source(archive, members=members, junk=["._*"])
    with pytest.raises(Refusal, match="no member that matches" if members else "does not fit on the disk"):
        fetch(changed, manifest, archive)
    assert not manifest.exists() and not (manifest.parent / "files.part").exists()
    monkeypatch.undo()
    assert fetch(source(archive), manifest) == before


# ------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize("form", ["folder", "folder of folders", "file", "url"])
def test_a_mirror_is_asked_first(site, archive, manifest, form):
    site.files["/Task99.tar"] = archive.read_bytes()
    if form == "folder of folders":
        (archive.parent / "m").mkdir()
        archive.rename(archive.parent / "m" / "Task99.tar")
        archive = archive.parent / "m" / "Task99.tar"
    mirror = {"file": archive, "url": site.url + "/", "folder of folders": archive.parents[1]}.get(form, archive.parent)
    content = fetch(source(archive, urls=["http://127.0.0.1:1/never"]), manifest, mirror)
    assert content["archives"][0]["contains"] == "2 cases"
    assert archive.is_file()  # a mirror's file is not ours to delete


def test_a_wrong_archive_in_a_mirror_is_refused_and_left_there(archive, manifest):
    wanted = source(archive)
    archive.write_bytes(b"another file")
    with pytest.raises(Refusal, match="replace it, or leave this mirror out"):
        fetch(wanted, manifest, archive)
    assert archive.is_file() and nothing_is_left(manifest)


@pytest.mark.parametrize("fault", ["404", "403", "page", "wrong"])
def test_places_are_tried_in_order_until_one_has_the_right_file(site, archive, manifest, fault, capsys):
    site.files |= {"/m/Task99.tar": b"wrong", "/a/Task99.tar": b"wrong", "/b/Task99.tar": archive.read_bytes()}
    site.faults = [] if fault == "wrong" else [fault, fault]
    wanted = source(archive, urls=[f"{site.url}/a/Task99.tar", f"{site.url}/b/Task99.tar"])
    assert fetch(wanted, manifest, f"{site.url}/m")["archives"][0]["from"].endswith("/b/Task99.tar")
    assert [path for path, *_ in site.asked] == ["/m/Task99.tar", "/a/Task99.tar", "/b/Task99.tar"]
    assert capsys.readouterr().err.count("; now the next place is asked") == 2


def test_when_no_place_has_it_all_are_named(site, archive, manifest):
    site.files["/b"] = b"wrong"
    with pytest.raises(
        Refusal, match=r"cannot be had from any of 2 places \(.*/a is not there .*; .*/b has sha256"
    ) as no:
        fetch(source(archive, urls=[f"{site.url}/a", f"{site.url}/b"]), manifest)
    assert "\n" not in str(no.value) and nothing_is_left(manifest)


def test_a_full_disk_ends_the_search(site, archive, manifest, monkeypatch):
    site.files = {"/a": archive.read_bytes(), "/b": archive.read_bytes()}
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(
        Refusal, match=r"does not fit on the disk, it needs [\d,]+ bytes or more and 1,000 are free: make"
    ):
        fetch(source(archive, urls=[f"{site.url}/a", f"{site.url}/b"]), manifest)
    assert [path for path, *_ in site.asked] == ["/a"] and not (manifest.parent / "files").exists()


def test_a_source_without_any_place_says_so(archive, manifest, tmp_path):
    with pytest.raises(Refusal, match=r"no URL for Task99.tar: name a mirror"):
        fetch(source(archive), manifest, tmp_path)


def test_a_wheel_of_a_mirror_is_known_by_its_package_and_version(manifest, tmp_path):
    wheel = tmp_path / "a_package-1.2-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("a/scan.nii", "voxels")
    wanted = Source(kind="index", package="a-package", version="1.2", accepts=[Accepted(sha256=digest(wheel))])
    assert fetch(wanted, manifest, tmp_path)["files"][0]["path"] == "files/a/scan.nii"


def test_pip_brings_a_wheel_and_its_failure_is_a_sentence(manifest, tmp_path, monkeypatch):
    def run(command, **more):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "p-1-py3-none-any.whl", "w") as content:
            content.writestr("a/scan.nii", "voxels")
        return SimpleNamespace(returncode=0, stderr="")

    wanted = Source(kind="index", package="p", version="1")
    monkeypatch.setattr(
        places.subprocess, "run", lambda *a, **b: SimpleNamespace(returncode=1, stderr="\nno such one\n")
    )
    with pytest.raises(Refusal, match=r"pip cannot download p==1 \(no such one\)"):
        fetch(wanted, manifest)
    monkeypatch.setattr(places.subprocess, "run", run)
    assert fetch(wanted, manifest)["archives"][0]["from"] == "package index: p==1"


# ------------------------------------------------------------------------------------------------- hashes
def test_an_unknown_hash_is_trusted_once_and_checked_from_then_on(site, archive, manifest):
    site.files["/Task99.tar"] = archive.read_bytes()
    wanted = source(archive, accepts=[Accepted(contains="first use")], urls=[f"{site.url}/Task99.tar"])
    assert fetch(wanted, manifest)["archives"][0]["contains"] == "first use"
    record = manifest.parents[2] / "hashes" / "m.jsonl"
    assert json.loads(record.read_text()) == {
        "file": "Task99.tar",
        "sha256": digest(archive),
        "bytes": archive.stat().st_size,
        "from": f"{site.url}/Task99.tar",
    }
    moved = record.rename(record.with_name("elsewhere"))
    fetch(wanted, manifest)
    moved.rename(record)
    fetch(wanted, manifest)
    assert len(site.asked) == 1
    for path in sorted(manifest.parent.rglob("*"), reverse=True):  # as a user would, to make room
        path.unlink() if path.is_file() else path.rmdir()
    with tarfile.open(archive, "a") as tar:
        tar.add(archive.parent / "Task99" / "dataset.json", "Task99/more.json")
    site.files["/Task99.tar"] = archive.read_bytes()
    with pytest.raises(
        Refusal, match=r"where sha256 .*, recorded in .*hashes/m.jsonl, is expected.*correct the record"
    ):
        fetch(wanted, manifest)
    record.unlink()
    fetch(wanted, manifest)


def test_a_half_written_record_line_does_not_count(archive, manifest):
    record = manifest.parents[2] / "hashes" / "m.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text('[]\n{"file": "Task99.tar", "sha2')
    fetch(source(archive, accepts=[]), manifest, archive)
    assert json.loads(record.read_text().splitlines()[-1])["sha256"] == digest(archive)
    with pytest.raises(Refusal, match="recorded in"):
        archive.write_bytes(archive.read_bytes() + bytes(10240))
        manifest.parent.joinpath("fetched.json").unlink()
        fetch(source(archive, accepts=[]), manifest, archive)


def test_an_md5_is_checked_where_nothing_better_is_published(site, archive, manifest):
    site.files["/Task99.tar"] = archive.read_bytes()
    wanted = source(archive, accepts=[Accepted(md5=digest(archive, "md5"))], urls=[f"{site.url}/Task99.tar"])
    assert fetch(wanted, manifest)["archives"][0]["sha256"] == digest(archive)
    fetch(wanted, manifest)
    assert len(site.asked) == 1
    other = source(archive, accepts=[Accepted(md5="0" * 32)], urls=[f"{site.url}/Task99.tar"])
    with pytest.raises(Refusal, match=f"md5 {digest(archive, 'md5')} where md5 00000"):
        fetch(other, manifest.parents[1] / "n" / "manifest.json")


def test_a_known_length_is_checked_before_and_after(site, archive, manifest):
    site.files["/Task99.tar"] = archive.read_bytes()
    wanted = source(archive, accepts=[Accepted(bytes=7)], urls=[f"{site.url}/Task99.tar"])
    with pytest.raises(Refusal, match="is another file"):
        fetch(wanted, manifest)
    site.always = "no length"
    with pytest.raises(Refusal, match=r"has 30,720 bytes where \[7\] are expected|bytes where"):
        fetch(wanted, manifest)
    assert nothing_is_left(manifest)


# ------------------------------------------------------------------------------------------------- several files
def scans(number: int) -> dict[str, bytes]:
    return {f"/imaging/case_{i:03d}.nii.gz": gzip.compress(f"scan {i}".encode()) for i in range(number)}


def per_file(site, **changes) -> Source:
    images = Part(
        file="case_{id}/imaging.nii.gz", urls=[f"{site.url}/imaging/case_{{id}}.nii.gz"], ids=["000-002", "004"]
    )
    return Source(kind="url", **({"files": [images]} | changes))


def test_many_files_named_alike_come_one_by_one_and_are_never_fetched_twice(site, manifest):
    site.files = scans(5)
    site.faults = ["", "drop", "", "429", "404"]
    with pytest.raises(Refusal, match=r"case_002.nii.gz is not there"):
        fetch(per_file(site), manifest)
    assert not manifest.exists() and not (manifest.parent / "files").exists()
    content = fetch(per_file(site), manifest)
    assert [file["path"] for file in content["files"]] == [
        f"files/case_{i}/imaging.nii.gz" for i in ("000", "001", "002", "004")
    ]
    assert [path for path, *_ in site.asked].count("/imaging/case_000.nii.gz") == 1
    assert not (manifest.parent / "incoming").exists()
    asked = len(site.asked)
    (manifest.parent / "files/case_001/imaging.nii.gz").write_bytes(b"damaged")
    assert fetch(per_file(site), manifest)["files"] == content["files"]
    assert [path for path, *_ in site.asked[asked:]] == ["/imaging/case_001.nii.gz"]
    site.files["/imaging/case_001.nii.gz"] = gzip.compress(b"another scan")
    (manifest.parent / "files/case_001/imaging.nii.gz").unlink()
    with pytest.raises(Refusal, match="recorded in"):
        fetch(per_file(site), manifest)


def test_archives_and_single_files_make_one_dataset(site, archive, manifest):
    table, labels = b"case;split\n", io.BytesIO()
    with zipfile.ZipFile(labels, "w") as content:
        content.writestr("labelsTs/a.nii", "labels")
        content.writestr("__MACOSX/a.nii", "junk")
    site.files = {"/T.tar": archive.read_bytes(), "/L.zip": labels.getvalue(), "/meta.csv": table}
    files = [
        Part(file="T.tar", urls=[f"{site.url}/T.tar"], accepts=[Accepted(sha256=digest(archive))]),
        Part(file="L.zip", urls=[f"{site.url}/L.zip"], into="Task99"),
        Part(file="tables/meta.csv", urls=[f"{site.url}/meta.csv"], accepts=[Accepted(sha256=digest(table))]),
    ]
    wanted = Source(kind="url", files=files, expects={"imagesTr/*.nii.gz": 2, "labelsTs/*": 1})
    content = fetch(wanted, manifest)
    listed = {file["path"] for file in content["files"]}
    assert {"files/Task99/labelsTs/a.nii", "files/tables/meta.csv", "files/Task99/dataset.json"} <= listed
    assert [archive["file"] for archive in content["archives"]] == ["T.tar", "L.zip", "tables/meta.csv"]
    fetch(wanted, manifest)
    assert len(site.asked) == 3
    manifest.parent.joinpath("fetched.json").unlink()
    with pytest.raises(Refusal, match=r"has 2 files like imagesTr/\*.nii.gz where 3 are expected: complete it"):
        fetch(wanted.model_copy(update={"expects": {"imagesTr/*.nii.gz": 3}}), manifest)


def test_a_fetch_that_is_killed_again_and_again_ends_with_every_byte_right(site, manifest):
    """Killed within the body of a file, four times: nothing half is ever taken for whole, nothing comes twice."""
    content = {f"/imaging/case_{i:03d}.nii.gz": gzip.compress(os.urandom(300_000)) for i in range(5)}
    site.files = dict(content)
    site.faults = ["kill", "", "kill", "kill", "", "", "kill"]
    ends = []
    while not ends or (ends[-1] and len(ends) < 9):
        if not (child := os.fork()):  # much faster than a new interpreter
            try:
                fetch(per_file(site), manifest)
            finally:
                os._exit(not manifest.exists())
        site.victim = child
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert manifest.exists() == (ends[-1] == 0) == (manifest.parent / "files").exists()
    assert ends == [-9, -9, -9, -9, 0]
    for i in ("000", "001", "002", "004"):
        assert (manifest.parent / f"files/case_{i}/imaging.nii.gz").read_bytes() == content[f"/imaging/case_{i}.nii.gz"]
    assert len(site.asked) == 4 + 4  # each file once, and once more after each kill
    assert sum(wanted is not None for _, wanted, _ in site.asked) == 4


def test_half_a_scan_without_a_hash_is_not_trusted(site, manifest):
    site.files = {"/a.nii.gz": gzip.compress(os.urandom(999))[:-20], "/b.nii.gz": b"not gzip"}
    for name, says in (("a", "is damaged"), ("b", "is not a gzip file")):
        part = Part(file=f"{name}.nii.gz", urls=[f"{site.url}/{name}.nii.gz"])
        with pytest.raises(Refusal, match=says):
            fetch(Source(kind="url", files=[part]), manifest)
        assert nothing_is_left(manifest)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": [Part(file="../x.zip")]}, "outside its folder"),
        ({"files": [Part(file="/x.zip")]}, "outside its folder"),
        ({"files": [Part(file="x.zip", into="..")]}, "outside its folder"),
        ({"files": [Part(file="x"), Part(file="x")]}, "names x twice"),
        ({"files": [Part(file="x", ids=["1"])]}, r"has no \{id\}"),
        ({"files": [Part(file="x{id}", ids=["9-1"])]}, "smaller number first"),
        ({"files": [Part(file="x")], "file": "y"}, "keep one of the two"),
        ({}, "neither 'file' nor 'urls'"),
    ],
)
def test_a_wrong_description_is_refused(manifest, changes, says):
    with pytest.raises(Refusal, match=says):
        fetch(Source(kind="url", **changes), manifest)


def test_a_locked_archive_asks_for_its_password_before_the_download(site, manifest, monkeypatch):
    wanted = Source(kind="url", urls=[f"{site.url}/x.zip"], password_from="https://example.org/terms")
    with pytest.raises(Refusal, match=r"get it from https://example.org/terms and set it as .* VOXPRIOR_PASSWORD_M"):
        fetch(wanted, manifest)
    assert site.asked == []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.nii", "voxels")
    site.files["/x.zip"] = content.getvalue()
    monkeypatch.setenv("VOXPRIOR_PASSWORD_M", "secret")
    fetch(wanted, manifest)
    assert all("secret" not in path.read_text(errors="ignore") for path in manifest.parent.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------- in place
def test_scans_in_place_are_listed_not_copied_and_new_ones_are_seen(tmp_path, manifest, monkeypatch):
    folder = phantoms.write_folder(tmp_path / "scans", cases=1, shape_zyx=(8, 9, 10))
    wanted = Source(kind="folder", path=str(folder))
    root, files = files_of(fetch(wanted, manifest), manifest)
    assert root == folder and files == ["images/phantom_000.nii.gz", "labels/phantom_000.nii.gz"]
    assert names(manifest.parent) == ["fetched.json", "manifest.json"]
    phantoms.write_folder(tmp_path / "scans", cases=2, shape_zyx=(8, 9, 10))
    os.utime(folder / files[0], ns=(5, 5))
    read = []
    real = write_manifest.__globals__["sha256_of"]
    monkeypatch.setitem(write_manifest.__globals__, "sha256_of", lambda path: read.append(path.name) or real(path))
    before = manifest.stat()
    fetch(wanted, manifest)
    content = fetch(wanted, manifest)
    assert len(content["files"]) == 4 and len(read) == 4  # at the second time nothing is read again
    assert manifest.stat().st_mtime_ns >= before.st_mtime_ns
    assert all(digest(Path(file["path"])) == file["sha256"] for file in content["files"])


def test_a_folder_that_is_not_there_is_refused(manifest, tmp_path):
    with pytest.raises(Refusal, match="is not a folder: give the folder"):
        fetch(Source(kind="folder", path=str(tmp_path / "nowhere")), manifest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="holds no files: put the scans"):
        fetch(Source(kind="folder", path=str(tmp_path / "empty")), manifest)


# ------------------------------------------------------------------------------------------------- by hand
def test_a_manual_dataset_prints_its_steps_and_then_takes_the_file(archive, manifest, capsys):
    wanted = source(archive, kind="manual", steps="1. Log in.")
    with pytest.raises(Refusal, match=r"manual/m/Task99.tar is missing: follow the steps"):
        fetch(wanted, manifest)
    assert "'m' has to be fetched by hand:\n1. Log in." in capsys.readouterr().err
    place = manifest.parents[2] / "manual" / "m" / "Task99.tar"
    place.parent.mkdir(parents=True)
    (place.parent / "Task99 (1).tar").write_bytes(b"")
    with pytest.raises(Refusal, match=r"missing, Task99 \(1\).tar is there instead: follow"):
        fetch(wanted, manifest)
    (place.parent / "Task99.tar.crdownload").write_bytes(b"")
    with pytest.raises(Refusal, match=r"Task99.tar.crdownload is a download that has not ended: let it end"):
        fetch(wanted, manifest)
    place.write_bytes(b"half")
    with pytest.raises(Refusal, match="sha256 .* is expected: replace it"):
        fetch(wanted, manifest)
    assert place.is_file()  # a person's file is not ours to delete
    place.write_bytes(archive.read_bytes())
    assert fetch(wanted, manifest)["archives"][0]["contains"] == "2 cases"
    place.unlink()
    fetch(wanted, manifest)  # what is here is not asked for again


def test_scans_dropped_unpacked_are_checked_and_used_in_place(archive, manifest, capsys):
    place = manifest.parents[2] / "manual" / "m"
    wanted = source(archive, kind="manual", steps="1.", expects={"imagesTr/*.nii.gz": 2})
    phantoms.write_decathlon(place / "Task99", cases=1, shape_zyx=(8, 9, 10))
    with pytest.raises(Refusal, match=r"manual/m has 1 files like imagesTr/\*.nii.gz where 2 are expected"):
        fetch(wanted, manifest)
    phantoms.write_decathlon(place / "Task99", cases=2, shape_zyx=(8, 9, 10))
    root, files = files_of(fetch(wanted, manifest), manifest)
    assert root == place and "Task99/dataset.json" in files


def test_a_manual_folder_without_archive_is_used_in_place(archive, manifest, capsys):
    wanted = Source(kind="manual", steps="Ask the authors.")
    with pytest.raises(Refusal, match="manual/m is missing: follow the steps"):
        fetch(wanted, manifest)
    assert "Ask the authors." in capsys.readouterr().err
    phantoms.write_decathlon(manifest.parents[2] / "manual" / "m", cases=1, shape_zyx=(8, 9, 10))
    assert len(fetch(wanted, manifest)["files"]) == 3


# ------------------------------------------------------------------------------------------------- manifest
@pytest.mark.parametrize("damage", ["{", '{"format": 9}', "changed"])
def test_a_damaged_manifest_is_refused(tmp_path, damage):
    scans = phantoms.write_folder(tmp_path / "scans", cases=1, shape_zyx=(8, 9, 10))
    manifest = tmp_path / "manifest.json"
    content = fetch(Source(kind="folder", path=str(scans)), manifest)
    content["files"][0]["bytes"] += 1
    manifest.write_text(json.dumps(content) if damage == "changed" else damage)
    with pytest.raises(Refusal, match="delete it and fetch again"):
        read_manifest(manifest)


def test_the_hippocampus_mirror_holds_210_pairs(manifest):
    """The real archive, where a mirror of it is given."""
    import yaml

    mirror = os.environ.get("VOXPRIOR_MIRROR")
    if not mirror:
        pytest.skip("VOXPRIOR_MIRROR names no mirror of Task04_Hippocampus.tar")
    config = Path(__file__).parents[2] / "config" / "datasets" / "hippocampus.yaml"
    content = fetch(Source(**yaml.safe_load(config.read_text())["source"]), manifest, mirror)
    assert sum("/labelsTr/" in file["path"] for file in content["files"]) in (210, 260)
