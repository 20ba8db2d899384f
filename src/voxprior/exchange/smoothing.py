"""Smooths scans before they get much coarser, as voxprior prepares them; copied into MONAI bundles, so it stands alone.

Axes: C channels, X Y Z voxels, as MONAI orders them.

Source: Cardoso et al., "Scale factor point spread function matching: beyond aliasing in image resampling", 2015.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform


class SmoothBeforeSpacingd(MapTransform):
    """Blurs axes that a following `Spacingd` makes more than 1.5 times coarser; others are left as they are.

    Args:
        keys: of images with an affine, in the orientation that `Spacingd` gets.
        pixdim: the new spacing, X Y Z in mm.
    """

    above = 1.5  # below, linear interpolation itself blurs more

    def __init__(self, keys: Any, pixdim: Sequence[float]) -> None:
        super().__init__(keys)
        self.pixdim = tuple(pixdim)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with smoothed images."""
        out = dict(data)
        for key in self.key_iterator(out):
            image_CXYZ = out[key]
            for axis, new in enumerate(self.pixdim):
                factor = new / float(image_CXYZ.pixdim[axis])
                if factor > self.above:
                    image_CXYZ = self._smooth(image_CXYZ, axis + 1, factor)
            out[key] = image_CXYZ
        return out

    @staticmethod
    def _smooth(image_CXYZ: Any, axis: int, factor: float) -> Any:
        """Blurs one axis by a Gaussian that turns an old voxel into a new one: variance (k^2 - 1) / (8 ln 2) voxels."""
        place = torch.arange(image_CXYZ.shape[axis], dtype=torch.float64)
        variance = (factor**2 - 1) / (8 * math.log(2))
        kernel = torch.exp(-((place[:, None] - place[None]) ** 2) / (2 * variance))
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(image_CXYZ.dtype)
        return torch.movedim(torch.movedim(image_CXYZ, axis, -1) @ kernel.T, -1, axis)
