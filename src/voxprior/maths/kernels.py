"""Loops over voxels for the CPU, compiled by numba: what array operations would do in many passes over memory.

Compiled once per machine and kept on disk (numba's cache, beside this file or in the user's cache folder), for one
signature each, so that no call ever compiles a second variant. They release the interpreter and use one thread: cases
and samples are what runs side by side. Import this where it is used, not at the top of a module that others import for
something else: numba costs 0.2 s, and machines that train on a GPU may lack it.

Axes: C channels, Z Y X voxels.
"""

from typing import Any

import numba
import numpy as np

UNKNOWN = 255  # label of what lies beyond the crop (see `augment`)
TIE = np.float32(1e-6)  # shares this near count as equal, per label value: rounding must not choose


def compiled(signature: str) -> Any:
    """Compiles a loop for one signature; sums may be reordered, NaN and infinity keep their meaning."""
    fast = {"contract", "reassoc", "nsz", "arcp"}
    return numba.njit(signature, cache=True, nogil=True, error_model="numpy", fastmath=fast)


# ------------------------------------------------------------------------------------------------- resampling
@compiled("void(f4[:, ::1], i4[::1], f4[:, ::1], i4[::1], f4[:, ::1], f4[::1], f4[:, ::1])")
def resample_plane(plane_YX, first_y, weight_y, first_x, weight_x, row_X, out_YX):  # type: ignore[no-untyped-def]
    """Resamples a slice: output voxel i of an axis is the weighted sum of the voxels from `first[i]` on.

    Args:
        plane_YX: the slice.
        first_y, first_x: (voxels out,) first voxel in.
        weight_y, weight_x: (voxels out, taps).
        row_X: scratch, as long as a row of the slice.
        out_YX: the result.
    """
    for y in range(out_YX.shape[0]):
        row_X[:] = weight_y[y, 0] * plane_YX[first_y[y]]
        for tap in range(1, weight_y.shape[1]):
            share = weight_y[y, tap]
            if share != 0.0:
                row_X += share * plane_YX[first_y[y] + tap]
        for x in range(out_YX.shape[1]):
            total = np.float32(0.0)
            for tap in range(weight_x.shape[1]):
                total += weight_x[x, tap] * row_X[first_x[x] + tap]
            out_YX[y, x] = total


@compiled("u2(u2[::1], f4[::1])")
def _winner(label_8, share_8):  # type: ignore[no-untyped-def]
    """Finds the label with the largest sum of shares among eight corners; ties go to the lowest label."""
    first, second, several = label_8[0], label_8[0], False
    total_1, total_2 = share_8[0], np.float32(0.0)
    for corner in range(1, 8):
        label = label_8[corner]
        if label == first:
            total_1 += share_8[corner]
        elif second == first or label == second:
            second = label
            total_2 += share_8[corner]
        else:
            several = True
    if not several:
        return second if total_2 - TIE * np.float32(second) > total_1 - TIE * np.float32(first) else first
    best, found = np.float32(-1.0), first
    for corner in range(8):
        label = label_8[corner]
        total = -TIE * np.float32(label)
        for other in range(8):
            if label_8[other] == label:
                total += share_8[other]
        if total > best:
            best, found = total, label
    return found


@compiled("void(u2[:, ::1], u2[:, ::1], f4, i4[::1], f4[:, ::1], i4[::1], f4[:, ::1], u2[:, ::1])")
def resample_labels_plane(  # type: ignore[no-untyped-def]
    below_YX, above_YX, share_above, first_y, weight_y, first_x, weight_x, out_YX
):
    """Resamples label maps between two slices: each voxel gets the label with the largest linear share.

    That is one-hot linear interpolation for any number of classes: only eight voxels can have a share.

    Args:
        below_YX, above_YX: neighbouring slices.
        share_above: weight of the second one.
        first_y, first_x, weight_y, weight_x: as in `resample_plane`, two taps.
        out_YX: the result.
    """
    label_8, share_8 = np.empty(8, np.uint16), np.empty(8, np.float32)
    for y in range(out_YX.shape[0]):
        y0 = first_y[y]
        y1 = min(y0 + 1, below_YX.shape[0] - 1)
        for x in range(out_YX.shape[1]):
            x0 = first_x[x]
            x1 = min(x0 + 1, below_YX.shape[1] - 1)
            label = below_YX[y0, x0]
            if (
                label == below_YX[y0, x1] and label == below_YX[y1, x0] and label == below_YX[y1, x1]
                and label == above_YX[y0, x0] and label == above_YX[y0, x1]
                and label == above_YX[y1, x0] and label == above_YX[y1, x1]
            ):  # fmt: skip
                out_YX[y, x] = label
                continue
            for corner in range(8):
                far_y, far_x = (corner >> 1) & 1, corner & 1
                plane = above_YX if corner >= 4 else below_YX
                label_8[corner] = plane[y1 if far_y else y0, x1 if far_x else x0]
                share = share_above if corner >= 4 else np.float32(1.0) - share_above
                share_8[corner] = share * weight_y[y, far_y] * weight_x[x, far_x]
            out_YX[y, x] = _winner(label_8, share_8)


# ------------------------------------------------------------------------------------------------- warping
@compiled("u1(f4[:, :, :, ::1], u1[:, :, ::1], f4[::1], u2[::1], f4[::1], f4[::1])")
def _look_up_at_edge(volume_CZYX, labels_ZYX, at_3, label_8, share_8, out_C):  # type: ignore[no-untyped-def]
    """Looks up one place where some of the eight voxels around it lie beyond the sample: adds the image to `out_C`."""
    z0, y0, x0 = int(np.floor(at_3[0])), int(np.floor(at_3[1])), int(np.floor(at_3[2]))
    bz, by, bx = at_3[0] - np.float32(z0), at_3[1] - np.float32(y0), at_3[2] - np.float32(x0)
    for corner in range(8):
        dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
        one = np.float32(1)
        share = (bz if dz else one - bz) * (by if dy else one - by) * (bx if dx else one - bx)
        z, y, x = z0 + dz, y0 + dy, x0 + dx
        share_8[corner], label_8[corner] = share, UNKNOWN
        if 0 <= z < labels_ZYX.shape[0] and 0 <= y < labels_ZYX.shape[1] and 0 <= x < labels_ZYX.shape[2]:
            label_8[corner] = labels_ZYX[z, y, x]
            for c in range(out_C.shape[0]):
                out_C[c] += share * volume_CZYX[c, z, y, x]
    return _winner(label_8, share_8)


@compiled("void(f4[:, :, :, ::1], u1[:, :, ::1], f4[:, ::1], f4[:, :, :, ::1], f4[:, :, :, ::1], u1[:, :, ::1])")
def warp(volume_CZYX, labels_ZYX, map_34, shift_3ZYX, out_CZYX, moved_ZYX):  # type: ignore[no-untyped-def]
    """Resamples image (linear) and labels (one-hot linear) of a sample in one pass, as `augment.warp` describes.

    Args:
        volume_CZYX, labels_ZYX: the sample.
        map_34: voxel of the result -> voxel of the sample, Z Y X: a matrix, and what is added in the last column.
        shift_3ZYX: added too, for each voxel of the result; empty: nothing is.
        out_CZYX, moved_ZYX: the result.
    """
    label_8, share_8 = np.empty(8, np.uint16), np.empty(8, np.float32)
    at_3, out_C = np.empty(3, np.float32), np.empty(volume_CZYX.shape[0], np.float32)
    deep, high, wide = labels_ZYX.shape
    last_z, last_y, last_x = np.float32(deep - 1), np.float32(high - 1), np.float32(wide - 1)
    # Steps to the eight corners in a flat array. Unsigned: numba would look for negative indices at each access.
    volume_CN, labels_N = volume_CZYX.reshape(volume_CZYX.shape[0], -1), labels_ZYX.reshape(-1)
    i1, i2, i4 = np.uintp(1), np.uintp(wide), np.uintp(high * wide)
    i3, i5, i6, i7 = i1 + i2, i1 + i4, i2 + i4, i1 + i2 + i4
    rows, columns = moved_ZYX.shape[0] * moved_ZYX.shape[1], moved_ZYX.shape[2]
    for zy in range(rows):
        z, y = zy // moved_ZYX.shape[1], zy % moved_ZYX.shape[1]
        row_3 = map_34[:, 0] * np.float32(z) + map_34[:, 1] * np.float32(y) + map_34[:, 3]
        for x in range(columns):
            at_z, at_y, at_x = row_3[0], row_3[1], row_3[2]
            at_z += map_34[0, 2] * np.float32(x)
            at_y += map_34[1, 2] * np.float32(x)
            at_x += map_34[2, 2] * np.float32(x)
            if shift_3ZYX.size > 0:
                at_z += shift_3ZYX[0, z, y, x]
                at_y += shift_3ZYX[1, z, y, x]
                at_x += shift_3ZYX[2, z, y, x]
            if not (at_z >= 0 and at_y >= 0 and at_x >= 0 and at_z < last_z and at_y < last_y and at_x < last_x):
                moved_ZYX[z, y, x], out_C[:] = UNKNOWN, 0
                if -1 < at_z < deep and -1 < at_y < high and -1 < at_x < wide:
                    at_3[0], at_3[1], at_3[2] = at_z, at_y, at_x
                    moved_ZYX[z, y, x] = _look_up_at_edge(volume_CZYX, labels_ZYX, at_3, label_8, share_8, out_C)
                for c in range(volume_CN.shape[0]):
                    out_CZYX[c, z, y, x] = out_C[c]
                continue
            z0, y0, x0 = np.int32(at_z), np.int32(at_y), np.int32(at_x)
            bz, by, bx = at_z - np.float32(z0), at_y - np.float32(y0), at_x - np.float32(x0)
            az, ay, ax = np.float32(1) - bz, np.float32(1) - by, np.float32(1) - bx
            i = (np.uintp(z0) * np.uintp(high) + np.uintp(y0)) * np.uintp(wide) + np.uintp(x0)
            for c in range(volume_CN.shape[0]):
                v = volume_CN[c]
                near = ay * (ax * v[i] + bx * v[i + i1]) + by * (ax * v[i + i2] + bx * v[i + i3])
                far = ay * (ax * v[i + i4] + bx * v[i + i5]) + by * (ax * v[i + i6] + bx * v[i + i7])
                out_CZYX[c, z, y, x] = az * near + bz * far
            label = labels_N[i]
            unlike = (labels_N[i + i1] ^ label) | (labels_N[i + i2] ^ label) | (labels_N[i + i3] ^ label)
            unlike |= (labels_N[i + i4] ^ label) | (labels_N[i + i5] ^ label)
            unlike |= (labels_N[i + i6] ^ label) | (labels_N[i + i7] ^ label)
            if unlike != 0:
                for corner in range(8):
                    dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                    share_8[corner] = (bz if dz else az) * (by if dy else ay) * (bx if dx else ax)
                    label_8[corner] = labels_N[i + np.uintp(dz) * i4 + np.uintp(dy) * i2 + np.uintp(dx)]
                label = _winner(label_8, share_8)
            moved_ZYX[z, y, x] = label


# ------------------------------------------------------------------------------------------------- chance
@compiled("void(i8, f4[::1])")
def uniform(start, out_N):  # type: ignore[no-untyped-def]
    """Fills an array with `chance.uniform`'s numbers, bit for bit, from the sample's `chance.start`."""
    for position in range(out_N.shape[0]):
        x = np.uint64(start) + np.uint64(position) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        out_N[position] = np.float32(np.int64(x >> np.uint64(40))) * np.float32(2.0**-24)


# ------------------------------------------------------------------------------------------------- counting
@compiled("void(u1[::1], i8[::1])")
def count_labels(labels_N, count_K):  # type: ignore[no-untyped-def]
    """Counts the voxels of each label, in place: NumPy's bincount would first turn the map into 64-bit integers."""
    for n in range(labels_N.shape[0]):
        count_K[labels_N[n]] += 1


@compiled("void(u1[::1], i8[:, ::1], i8[::1], i8[:, ::1])")
def find_labels(labels_N, wanted_KP, picks_K, found_KP):  # type: ignore[no-untyped-def]
    """Finds voxels of all labels in one pass: `found[k, p]` is where label k stands for the `wanted[k, p]`-th time.

    Args:
        labels_N: the map.
        wanted_KP: counted from 0, ascending in each row.
        picks_K: how many of each row are wanted.
        found_KP: the result.
    """
    seen_K, next_K = np.zeros_like(picks_K), np.zeros_like(picks_K)
    for n in range(labels_N.shape[0]):
        label = labels_N[n]
        if next_K[label] < picks_K[label]:
            if wanted_KP[label, next_K[label]] == seen_K[label]:
                found_KP[label, next_K[label]] = n
                next_K[label] += 1
            seen_K[label] += 1
