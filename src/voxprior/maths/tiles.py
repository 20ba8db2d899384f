"""Loops of sliding-window inference for the CPU, compiled by numba (see `kernels`): add windows' logits, pick labels.

torch adds a window to a part of a larger array row by row, with a call for each row and a pass over the sums for each
window; here windows that lie side by side are added row by row while the row is at hand. The largest of many classes
takes torch a pass and two temporary arrays per class; here it is one pass in order.

Axes: B windows, C classes, Z Y X voxels.
"""

import numpy as np

from voxprior.maths.kernels import compiled


@compiled("void(f4[:, :, :, ::1], f4[:, :, :, :, ::1], f4[:, :, ::1], i8[::1], i8[::1], i8[:, ::1])")
def add_weighted(sums_CZYX, logits_BCZYX, weights_ZYX, place_z, place_y, place_x):  # type: ignore[no-untyped-def]
    """Adds logits times weights of windows that differ in their place along X alone, in place.

    Args:
        sums_CZYX: what is added to.
        logits_BCZYX, weights_ZYX: the windows.
        place_z, place_y: (window's side,) where each of its slices and rows lies in the sums; below 0: nowhere.
        place_x: (B, 3) per window: first voxel in the sums, first voxel in the window, voxels.
    """
    for c in range(sums_CZYX.shape[0]):
        for z in range(len(place_z)):
            for y in range(len(place_y)):
                if place_z[z] < 0 or place_y[y] < 0:
                    continue
                row_X, weights_X = sums_CZYX[c, place_z[z], place_y[y]], weights_ZYX[z, y]
                for b in range(len(place_x)):
                    to, of, count = place_x[b, 0], place_x[b, 1], place_x[b, 2]
                    sums_X = row_X[to : to + count]
                    logits_X, by_X = logits_BCZYX[b, c, z, y, of : of + count], weights_X[of : of + count]
                    for x in range(count):
                        sums_X[x] += logits_X[x] * by_X[x]


@compiled("b1(f4[::1], i8, i8[::1], i8[::1], u1[:, :, ::1])")
def pick_labels(sums_N, sums_at, sums_4, shape_4, labels_ZYX):  # type: ignore[no-untyped-def]
    """Finds the class with the largest sum, the first of equals; tells whether all largest are finite, and none NaN.

    Args:
        sums_N: all of the memory that the sums are a part of, so that one compiled variant serves parts of any array.
        sums_at: where they begin in it.
        sums_4: their strides in elements, C Z Y; along X they lie in order.
        shape_4: their shape, C Z Y X.
        labels_ZYX: the result.
    """
    best_X, label_X = np.empty(shape_4[3], np.float32), np.empty(shape_4[3], np.uint32)
    wrong = np.uint32(0)
    for z in range(shape_4[1]):
        for y in range(shape_4[2]):
            first = sums_at + z * sums_4[1] + y * sums_4[2]
            best_X[:] = sums_N[first : first + shape_4[3]]
            label_X[:] = 0
            for c in range(1, shape_4[0]):
                row_X = sums_N[first + c * sums_4[0] : first + c * sums_4[0] + shape_4[3]]
                number = np.uint32(c)
                for x in range(shape_4[3]):
                    value, best = row_X[x], best_X[x]
                    # "Not at most" is true for NaN too, which then stays: nothing is greater than it.
                    better = not (value <= best) and best == best
                    best_X[x] = value if better else best
                    label_X[x] = number if better else label_X[x]
            for x in range(shape_4[3]):
                labels_ZYX[z, y, x] = label_X[x]
                wrong |= np.uint32(not (abs(best_X[x]) <= np.float32(3.4028235e38)))
    return wrong == 0
