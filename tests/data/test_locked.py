import base64
import io
import zipfile

import pytest

from voxprior.data import locked, unpack
from voxprior.errors import Refusal

# Made by pyzipper 0.4.0, an independent implementation: key length -> archive with the members a/scan.nii, which is
# "voxels" 50 times, deflated (5 times and stored, with 192 bits), and a/empty.txt. Password: open sesame.
LOCKED = {
    128: (
        "UEsDBBQAAQBjADJ/dV0AAAAAIAAAACwBAAAKAAsAYS9zY2FuLm5paQGZBwACAEFFAQgAUjgQLShkk3SyE/0SGXxZpH+xRidiU2Y4uMCwsp4V"
        "81FQSwMEFAABAGMAMn91XQAAAAAWAAAAAAAAAAsACwBhL2VtcHR5LnR4dAGZBwACAEFFAQgAlNPytS4b5khDC97I3h6bYAA3bfc4x1BLAQIU"
        "AxQAAQBjADJ/dV0AAAAAIAAAACwBAAAKAAsAAAAAAAAAAACAAQAAAABhL3NjYW4ubmlpAZkHAAIAQUUBCABQSwECFAMUAAEAYwAyf3VdAAAA"
        "ABYAAAAAAAAACwALAAAAAAAAAAAAgAFTAAAAYS9lbXB0eS50eHQBmQcAAgBBRQEIAFBLBQYAAAAAAgACAIcAAACdAAAAAAA="
    ),
    192: (
        "UEsDBBQAAQBjADJ/dV0AAAAANgAAAB4AAAAKAAsAYS9zY2FuLm5paQGZBwACAEFFAgAA3Y7ejBIJo1uLVL65LHdKEYILTRI0ZRISKljFIVlz"
        "igyVYV0kQSuZTnkWK1iT8/X6kx1MQEpJUEsDBBQAAQBjADJ/dV0AAAAAGAAAAAAAAAALAAsAYS9lbXB0eS50eHQBmQcAAgBBRQIAACPS2U/R"
        "JAazkYBhD9rL7C1eTMGaNTTpFFBLAQIUAxQAAQBjADJ/dV0AAAAANgAAAB4AAAAKAAsAAAAAAAAAAACAAQAAAABhL3NjYW4ubmlpAZkHAAIA"
        "QUUCAABQSwECFAMUAAEAYwAyf3VdAAAAABgAAAAAAAAACwALAAAAAAAAAAAAgAFpAAAAYS9lbXB0eS50eHQBmQcAAgBBRQIAAFBLBQYAAAAA"
        "AgACAIcAAAC1AAAAAAA="
    ),
    256: (
        "UEsDBBQAAQBjADJ/dV0AAAAAKAAAACwBAAAKAAsAYS9zY2FuLm5paQGZBwACAEFFAwgAp0ty4MXJpkvVwbkA5Mh0Gerxu9QP5n2F7SdDkRx9"
        "CBCtK3DGj27mfFBLAwQUAAEAYwAyf3VdAAAAAB4AAAAAAAAACwALAGEvZW1wdHkudHh0AZkHAAIAQUUDCAC2T8Q60ZEf46r44Xea/igA451b"
        "Yry6uo0DqdY3gXVQSwECFAMUAAEAYwAyf3VdAAAAACgAAAAsAQAACgALAAAAAAAAAAAAgAEAAAAAYS9zY2FuLm5paQGZBwACAEFFAwgAUEsB"
        "AhQDFAABAGMAMn91XQAAAAAeAAAAAAAAAAsACwAAAAAAAAAAAIABWwAAAGEvZW1wdHkudHh0AZkHAAIAQUUDCABQSwUGAAAAAAIAAgCHAAAA"
        "rQAAAAAA"
    ),
}


@pytest.fixture(params=LOCKED)
def archive(request, tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(base64.b64decode(LOCKED[request.param]))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def test_members_locked_with_aes_are_unpacked(archive, folder):
    unpack.extract(archive, folder, [], [], "open sesame")
    assert (folder / "a/scan.nii").read_bytes() in (b"voxels" * 50, b"voxels" * 5)
    assert (folder / "a/empty.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("password", "says"), [("sesame", "not unlocked by the password"), ("", "locked by a password")]
)
def test_a_wrong_or_missing_password_is_said(archive, folder, password, says):
    with pytest.raises(Refusal, match=says):
        unpack.extract(archive, folder, [], [], password)
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("what", ["body", "proof"])
def test_a_member_that_was_changed_is_noticed(archive, folder, what):
    raw = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as content:
        size = content.getinfo("a/scan.nii").compress_size
    start = 30 + len("a/scan.nii") + 11
    raw[start + size - (1 if what == "proof" else 12)] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(unpack.Damaged, match="is damaged|ends inside|more bytes"):
        unpack.extract(archive, folder, [], [], "open sesame")


def test_counters_go_on_across_blocks(archive, monkeypatch):
    monkeypatch.setattr(locked, "BLOCK_BYTES", 16)
    with zipfile.ZipFile(archive) as content, open(archive, "rb") as file:
        info = content.getinfo("a/scan.nii")
        blocks = list(locked.blocks_of(file, info, "open sesame"))
    assert b"".join(blocks) == b"voxels" * (info.file_size // 6)
    assert len(blocks) > 1


def test_other_ways_of_locking_are_refused():
    info = zipfile.ZipInfo("a")
    info.compress_type = locked.METHOD
    for extra in (b"", b"\x01\x99\x07\x00\x02\x00AE\x09\x08\x00", b"\x01\x99\x07\x00\x02\x00AE\x01\x0c\x00"):
        info.extra = extra
        with pytest.raises(Refusal, match="in a way that is not known here"):
            next(locked.blocks_of(io.BytesIO(), info, "x"))
