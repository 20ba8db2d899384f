import io
import stat
import tarfile
import zipfile

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
    ],
)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_that_could_do_harm_is_refused_and_leaves_nothing(tmp_path, bad, word, suffix):
    archive = tar_with(tmp_path / f"x.{suffix}", GOOD, bad)
    with pytest.raises(Refusal, match=word):
        unpack.unpack(archive, tmp_path / "files", [], [])
    assert list(tmp_path.iterdir()) == [archive]


def test_zip_members_outside_and_links_are_refused(tmp_path):
    for name, mode in (("../evil", stat.S_IFREG), ("link", stat.S_IFLNK)):
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w") as content:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            content.writestr(info, "x")
        with pytest.raises(Refusal, match="do not use this archive"):
            unpack.unpack(archive, tmp_path / "files", [], [])


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "FLOOR_BYTES", 1 << 20)
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("zeros", bytes(4 << 20))
    with pytest.raises(Refusal, match="far beyond its size"):
        unpack.unpack(archive, tmp_path / "files", [], [])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_a_truncated_archive_is_refused(tmp_path, suffix):
    archive = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("a", b"x" * 5000)
    else:
        tar_with(archive, ("a", bytes(range(256)) * 200, tarfile.REGTYPE))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(Refusal, match="damaged|ends inside"):
        unpack.unpack(archive, tmp_path / "files", [], [])
    assert not (tmp_path / "files").exists()


def test_only_wanted_members_come_and_junk_does_not(tmp_path):
    archive = tar_with(
        tmp_path / "x.tar",
        GOOD,
        ("a/._scan.nii", b"junk", tarfile.REGTYPE),
        ("__MACOSX/scan.nii", b"junk", tarfile.REGTYPE),
        ("b/readme.txt", b"text", tarfile.REGTYPE),
    )
    unpack.unpack(archive, tmp_path / "files", ["*.nii"], ["._*", "__MACOSX"])
    assert [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "files").rglob("*.*")] == ["files/a/scan.nii"]
    with pytest.raises(Refusal, match="no member that matches"):
        unpack.unpack(archive, tmp_path / "files", ["*.nrrd"], [])
    assert (tmp_path / "files/a/scan.nii").read_bytes() == b"voxels"  # the earlier files stay
