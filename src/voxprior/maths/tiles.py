"""The class of each voxel from summed logits, on the CPU, compiled by numba (see `kernels`).

In torch the largest of many classes takes a pass over memory and two temporary arrays per class, or strides over the
class axis; here it is one pass in order.

Axes: C classes, Z Y X voxels.
"""

import numpy as np

from voxprior.maths.kernels import compiled


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
