"""The crop as the methods that paint it see it: float32, mirrored, and nothing else.

Axes: B samples, C channels, Z Y X voxels.
"""

from torch import Tensor, nn

from voxprior.maths.augment import flip
from voxprior.maths.batch import Batch, volume_from


class Mirror(nn.Module):
    """Turns stored regions into volumes and mirrors each along the axes that its row says.

    A module, so that it is compiled with the networks: as written it is eight kernels over the crops on a GPU, compiled
    one, which chooses for each voxel where to read.
    """

    compiled = True

    def forward(self, region_BCZYX: Tensor, quantum_B: Tensor, flipped_B3: Tensor) -> Tensor:
        """Returns the volumes, float32; `region_BCZYX` and `quantum_B` as in `methods/contract.py`."""
        batch: Batch = {"region_BCZYX": region_BCZYX, "quantum_B": quantum_B}
        return flip(volume_from(batch), flipped_B3)
