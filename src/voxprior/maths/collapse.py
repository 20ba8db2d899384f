"""How many directions a set of vectors still uses: what tells a collapsed network from a good loss.

Axes: R vectors, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_deviation(vector_RC: Tensor) -> Tensor:
    """Computes the deviation of each channel of the unit vectors, averaged over channels, times sqrt(C): a scalar.

    About 1 for vectors of all directions, 0 where all are the same.
    Source: Chen and He, "Exploring simple Siamese representation learning", 2021, section 4.1.
    """
    return F.normalize(vector_RC.float(), dim=-1).std(0).mean() * vector_RC.shape[1] ** 0.5


def effective_rank(vector_RC: Tensor) -> Tensor:
    """Computes the participation ratio of the unit vectors' covariance S: (tr S)^2 / tr S^2, a scalar.

    n where the vectors fill n directions evenly; at most C, and at most R - 1; 0 where all are the same.
    """
    unit_RC = F.normalize(vector_RC.float(), dim=-1)
    apart_RC = unit_RC - unit_RC.mean(0)
    # S and the vectors' own products have the same eigenvalues: the smaller of the two is computed.
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        product = apart_RC @ apart_RC.T if len(apart_RC) < apart_RC.shape[1] else apart_RC.T @ apart_RC
    squared = product.square().sum()
    return product.diagonal().sum().square() / torch.where(squared > 0, squared, 1.0)
