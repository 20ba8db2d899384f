"""What a pretraining method is: the types that one file beside its paper shares with the training loop.

`methods/<m>.py` offers `TITLE`, `Config`, `region(config, backbone)`, `Model` and `accepts(backbone)`; DESIGN in
`docs/architecture.md`. `Batch` is a plain dict of tensors:

    region_BCZYX   int16, prepared intensities (float = int16 * quantum, in [0, 1]); padding holds the minimum, 0;
                   C = `encoder.channels_in`
    quantum_B      float32
    spacing_mm_B3  float32, Z Y X
    valid_lo_B3    int64, first real voxel of the region per axis (0 unless padded)
    valid_hi_B3    int64, first voxel beyond the real ones
    labels_BZYX    uint8; in fine-tuning only

What a file may offer besides:

    suits(config, shapes_vox, spacings_mm)
                                         None, or why it cannot pretrain on volumes of these sizes, Z Y X; asked of
                                         the pool before the first step
    recipe(config, batch_size)           fields of `configuration.Recipe` that the method's numbers replace, or None
    parameter_groups(config)             {regular expression: {"rate": factor, "decay": value}}, see `engine.step`
    Model.teacher                        the network that follows by EMA, no gradient; `summary.json` tells how far it
                                         moved from where it started
    Model.encoder_state()                what segmentation inherits, where that is not `encoder.state_dict()` as it is
    Model.measures()                     {name: number} about the network; taken before the first step and after the
                                         last, both written into `summary.json`
    Model.pictures(views)                {name: (B, Z, Y, X) float32 in [0, 1]}, shown in the report in this order;
                                         `points_<name>` (B, K, 3), Z Y X in voxels of picture <name>: the K-th points
                                         of all pictures belong together; a point that is not valid is NaN

Fields of `Views` that hold what the student sees have names that begin with `volume`. Loss terms of weight 0 are
monitors: logged, and nothing else.

Axes: B samples, C channels, Z Y X voxels.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from voxprior.maths.batch import Batch, Term

__all__ = ["Batch", "Method", "Term"]


class Method(Protocol):
    """What the loop asks of a model. `segment.model.Model` offers the same."""

    encoder: nn.Module
    student_voxels: int  # voxels per sample that enter the student, all views, before masking

    def views(self, batch: Batch, key_B: Tensor) -> Any:
        """Cuts, augments and masks on the device; all chance comes from the keys."""

    def forward(self, views: Any, progress: float) -> dict[str, Term]:
        """Returns the loss terms. `progress` runs from 0 to 1 over the run."""

    def after_step(self, progress: float, total_steps: int) -> None:
        """Updates what follows the student: EMA, centre. The length turns half-lives, shares of the run, into steps."""
