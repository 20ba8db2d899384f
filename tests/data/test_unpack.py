import errno
import io
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from voxprior.data import unpack
from voxprior.errors import Refusal


def tar_with(path, *members):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "/etc/hosts"
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


GOOD = ("a/scan.nii", b"voxels", tarfile.REGTYPE)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (("../evil", b"x", tarfile.REGTYPE), "leads outside"),
        (("a/../../evil", b"x", tarfile.REGTYPE), "leads outside"),
        (("/tmp/evil", b"x", tarfile.REGTYPE), "leads outside"),
        (("a\\..\\..\\evil", b"x", tarfile.REGTYPE), "leads outside"),
        (("C:/evil", b"x", tarfile.REGTYPE), "leads outside"),
        (("a/link", b"", tarfile.SYMTYPE), "link or device"),
        (("a/link", b"", tarfile.LNKTYPE), "link or device"),
        (("a/pipe", b"", tarfile.FIFOTYPE), "link or device"),
        (GOOD, "a name twice"),
        (("./a//scan.nii", b"x", tarfile.REGTYPE), "a name twice"),
        (("a", b"x", tarfile.REGTYPE), "as a file and as a folder"),
        (("a/scan.nii/b", b"x", tarfile.REGTYPE), "as a file and as a folder"),
    ],
)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_that_could_do_harm_is_refused_before_anything_is_written(tmp_path, folder, bad, word, suffix):
    archive = tar_with(tmp_path / f"x.{suffix}", GOOD, bad)
    with pytest.raises(Refusal, match=word):
        unpack.extract(archive, folder, [], [])
    assert names(tmp_path) == [archive.name]


def test_zip_members_outside_and_links_are_refused(tmp_path, folder):
    for name, mode in (("../evil", stat.S_IFREG), ("link", stat.S_IFLNK)):
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w") as content:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            content.writestr(info, "x")
        with pytest.raises(Refusal, match="do not use this archive"):
            unpack.extract(archive, folder, [], [])


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpack, "FLOOR_BYTES", 1 << 20)
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("zeros", bytes(4 << 20))
    with pytest.raises(Refusal, match="far beyond its size"):
        unpack.extract(archive, folder, [], [])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_a_truncated_archive_is_refused(tmp_path, folder, suffix):
    archive = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("a", b"x" * 5000)
    else:
        tar_with(archive, ("a", bytes(range(256)) * 200, tarfile.REGTYPE))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(unpack.Damaged, match="damaged|ends inside"):
        unpack.extract(archive, folder, [], [])


def test_only_wanted_members_come_and_junk_does_not(tmp_path, folder):
    archive = tar_with(
        tmp_path / "x.tar",
        GOOD,
        ("a/._scan.nii", b"junk", tarfile.REGTYPE),
        ("__MACOSX/scan.nii", b"junk", tarfile.REGTYPE),
        ("b/readme.txt", b"text", tarfile.REGTYPE),
    )
    unpack.extract(archive, folder, ["*.nii"], ["._*", "__MACOSX"])
    assert names(folder) == ["a/scan.nii"]
    with pytest.raises(Refusal, match="no member that matches"):
        unpack.extract(archive, folder, ["*.nrrd"], [])
    assert (folder / "a/scan.nii").read_bytes() == b"voxels"  # the earlier files stay


def test_a_bomb_in_a_compressed_tar_is_noticed_while_it_is_listed(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpack, "FLOOR_BYTES", 1 << 20)
    archive = tar_with(tmp_path / "x.tar.gz", *((f"{i}", bytes(1 << 20), tarfile.REGTYPE) for i in range(8)))
    listed = []
    real = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda tar: listed.append(1) or real(tar))
    with pytest.raises(Refusal, match="would grow to"):
        unpack.extract(archive, folder, [], [])
    assert len(listed) < 5 and names(folder) == []


def test_too_many_members_are_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_MEMBERS", 3)
    archive = tar_with(tmp_path / "x.tar", *((f"{i}", b"", tarfile.REGTYPE) for i in range(4)))
    with pytest.raises(Refusal, match="more than 3 files"):
        unpack.extract(archive, folder, [], [])


def test_a_zip_that_understates_its_size_is_refused(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("a", bytes(1000))
    raw = bytearray(archive.read_bytes())
    place = raw.index(b"PK\x01\x02") + 24  # the uncompressed size in the directory
    raw[place : place + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(raw)
    with pytest.raises(Refusal, match="damaged|more bytes than it announces"):
        unpack.extract(archive, folder, [], [])


def test_a_damaged_member_is_noticed_by_its_checksum(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a", b"voxels" * 100)
    archive.write_bytes(archive.read_bytes().replace(b"voxels", b"voxelz", 1))
    with pytest.raises(unpack.Damaged, match="Bad CRC"):
        unpack.extract(archive, folder, [], [])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_refused(tmp_path, folder, suffix, content):
    archive = tmp_path / f"x.{suffix}"
    archive.write_bytes(content)
    with pytest.raises(Refusal, match="is damaged"):
        unpack.extract(archive, folder, [], [])


def test_a_locked_zip_says_what_to_do(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a", b"voxels")
    raw = bytearray(archive.read_bytes())
    for mark, ahead in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + ahead] |= 1
    archive.write_bytes(raw)
    with pytest.raises(Refusal, match="locked by a password: unpack it by hand and use the folder"):
        unpack.extract(archive, folder, [], [])


def test_a_method_that_python_cannot_read_says_what_to_do(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a", b"voxels")
    raw = bytearray(archive.read_bytes())
    for mark, ahead in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        raw[raw.index(mark) + ahead] = 9  # deflate64
    archive.write_bytes(raw)
    with pytest.raises(Refusal, match="cannot be read here .*: unpack it by hand"):
        unpack.extract(archive, folder, [], [])


def test_a_name_too_long_for_the_disk_is_a_refusal(tmp_path, folder):
    archive = tar_with(tmp_path / "x.tar", ("a" * 300, b"x", tarfile.REGTYPE))
    with pytest.raises(Refusal, match="a member that cannot be written"):
        unpack.extract(archive, folder, [], [])


def test_too_full_a_disk_is_noticed_before_and_while_unpacking(tmp_path, folder, monkeypatch):
    archive = tar_with(tmp_path / "x.tar", GOOD)
    monkeypatch.setattr(unpack.shutil, "disk_usage", lambda place: SimpleNamespace(free=5))
    with pytest.raises(Refusal, match="files does not fit on the disk, it needs 6 bytes or more and 5 are free"):
        unpack.extract(archive, folder, [], [])
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpack, "_copy", full)
    with pytest.raises(Refusal, match=r"files does not fit on the disk, it needs [\d,]+ bytes"):
        unpack.extract(archive, folder, [], [])


def test_files_that_are_there_are_never_written_over(tmp_path, folder):
    (folder / "a").mkdir()
    (folder / "a/scan.nii").write_bytes(b"another archive's")
    with pytest.raises(Refusal, match="cannot be written .File exists."):
        unpack.extract(tar_with(tmp_path / "x.tar", GOOD), folder, [], [])
    assert (folder / "a/scan.nii").read_bytes() == b"another archive's"
