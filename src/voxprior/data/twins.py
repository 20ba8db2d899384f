"""Names for voxels: what tells that two files hold the same scan.

`content_sha256` names an array as it lies in the file; `twin_sha256` is the same for every copy that could have been
made of a scan without resampling it: under another name, compressed anew, with another header, stored as another number
type or with another intercept, its axes exchanged or flipped.

Axes: Z Y X voxels.
"""

import hashlib
from typing import Any

import numpy as np
import SimpleITK as sitk

Array = np.ndarray[Any, Any]


def content_sha256(image: sitk.Image) -> str:
    """Names a scan by its voxel values and shape, whatever the file, its compression, header or number type.

    Values are hashed as int32 where all are whole numbers in its range, else as float32.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    digest = hashlib.sha256(repr(tuple(int(n) for n in voxels.shape)).encode())
    kind = np.int32 if _is_whole(voxels) else np.float32
    for plane in voxels:
        # + 0 turns minus zero into zero: equal voxels, equal hash.
        digest.update(np.ascontiguousarray(plane.astype(kind) + kind(0)).tobytes())
    return digest.hexdigest()


def twin_sha256(image: sitk.Image) -> str:
    """Names a scan by its voxel values, whichever way its axes run and, for whole numbers, whatever was added to all.

    Each value is mixed to 64 bits, and the mixed values of every plane, along each of the three axes, are added up
    modulo 2^64: a sum does not know the order within its plane. A flip turns one list of sums round, an exchange of
    axes exchanges lists; so the smaller of a list and its reverse, and the three in order, are the same for all 48.

    Two scans share a name by chance if all planes agree in such sums. A copy that was cropped, resampled, padded or
    scaled has another name.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    whole = _is_whole(voxels)
    low = int(voxels.min()) if whole else 0
    sums = [np.zeros(n, np.uint64) for n in voxels.shape]
    for z, plane in enumerate(voxels):
        if whole:
            words = (plane.astype(np.int64) - low).view(np.uint64)
        else:
            words = (plane.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
        mixed = _mix(words)
        rows = mixed.sum(axis=1, dtype=np.uint64)
        sums[1] += rows
        sums[2] += mixed.sum(axis=0, dtype=np.uint64)
        sums[0][z] = rows.sum(dtype=np.uint64)
    lists = sorted(min(some.astype("<u8").tobytes(), some[::-1].astype("<u8").tobytes()) for some in sums)
    digest = hashlib.sha256(b"whole" if whole else b"float")
    for some in lists:
        digest.update(len(some).to_bytes(8, "little") + some)
    return digest.hexdigest()


def _is_whole(voxels: Array) -> bool:
    """Tells whether all values are whole numbers in the range of int32, plane by plane: no second copy of the scan."""
    limit = np.iinfo(np.int32)
    if voxels.dtype.kind not in "iu" and not all(np.array_equal(plane, np.rint(plane)) for plane in voxels):
        return False
    return bool(voxels.min() >= limit.min and voxels.max() <= limit.max)


def _mix(words: Array) -> Array:
    """Spreads 64-bit words over all 64 bits, in place.

    Source: the finaliser of SplitMix64; Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
    """
    words += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words
