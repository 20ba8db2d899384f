"""Reads members of zip archives that are locked with AES, which Python's zipfile cannot.

Source: WinZip, "AES encryption information: encryption specification AE-1 and AE-2". A member is: salt, two bytes by
which a wrong password shows, the encrypted bytes, and ten bytes of their HMAC.
"""

import hashlib
import hmac
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from voxprior.errors import Refusal

METHOD = 99  # stands where the compression method should; the method is in the extra field
EXTRA = 0x9901
ROUNDS = 1000
MARK_BYTES, PROOF_BYTES = 2, 10
BLOCK_BYTES = 1 << 20
AES_BYTES = 16


def is_locked_with_aes(info: zipfile.ZipInfo) -> bool:
    """Tells whether a member is locked with AES."""
    return info.compress_type == METHOD


def blocks_of(archive: IO[bytes], info: zipfile.ZipInfo, password: str) -> Iterator[bytes]:
    """Unlocks and decompresses a member: yields its bytes, about a MiB at a time.

    Raises:
        Refusal: the password is wrong, or the member is compressed in a way that is not known here.
        zipfile.BadZipFile: the member is damaged.
    """
    key_bytes, method = _strength_and_method(info)
    archive.seek(info.header_offset)
    header = archive.read(30)  # the local one, whose extra field may be longer than the directory's
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {info.filename}")
    archive.seek(sum(struct.unpack("<HH", header[26:30])), 1)
    salt, mark = archive.read(key_bytes // 2), archive.read(MARK_BYTES)
    keys = hashlib.pbkdf2_hmac("sha1", password.encode(), salt, ROUNDS, 2 * key_bytes + MARK_BYTES)
    if not hmac.compare_digest(keys[2 * key_bytes :], mark):
        raise Refusal(f"{info.filename} is not unlocked by the password given: set the right one")
    left = info.compress_size - len(salt) - MARK_BYTES - PROOF_BYTES
    proof = hmac.new(keys[key_bytes : 2 * key_bytes], digestmod="sha1")
    cipher = Cipher(algorithms.AES(keys[:key_bytes]), modes.ECB()).encryptor()
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if method == zipfile.ZIP_DEFLATED else None
    counter = 1
    while left > 0:
        locked = archive.read(min(BLOCK_BYTES, left))
        if not locked:
            raise zipfile.BadZipFile(f"it ends inside {info.filename}")
        left -= len(locked)
        proof.update(locked)
        # Counter mode with a counter of the lowest byte first, which libraries do not offer: the stream by hand.
        count = -(-len(locked) // AES_BYTES)
        numbers = np.zeros((count, 2), "<u8")
        numbers[:, 0] = np.arange(counter, counter + count)
        counter += count
        stream = np.frombuffer(cipher.update(numbers.tobytes()), np.uint8)[: len(locked)]
        data = (np.frombuffer(locked, np.uint8) ^ stream).tobytes()
        if inflate is None:
            yield data
            continue
        while data:  # at most a MiB at a time, however much it would grow to
            yield inflate.decompress(data, BLOCK_BYTES)
            data = inflate.unconsumed_tail
    if not hmac.compare_digest(proof.digest()[:PROOF_BYTES], archive.read(PROOF_BYTES)):
        raise zipfile.BadZipFile(f"{info.filename} is not what was locked")
    if inflate is not None:
        yield inflate.flush()


def _strength_and_method(info: zipfile.ZipInfo) -> tuple[int, int]:
    """Reads the extra field: (length of the key in bytes, compression method)."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == EXTRA and length >= 7:
            strength, method = struct.unpack("<BH", extra[8:11])
            if strength in (1, 2, 3) and method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return 8 + 8 * strength, method
        extra = extra[4 + length :]
    raise Refusal(f"{info.filename} is locked in a way that is not known here: unpack it by hand and use the folder")
