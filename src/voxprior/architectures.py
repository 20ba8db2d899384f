"""Pydantic models of a backbone's sizes, one per family; strict. `configuration.Backbone` holds one of them."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from voxprior.strict import Positive, Strict, ZyxVox


def _without_default(schema: dict[str, Any]) -> None:
    """Leaves a field out of what the workflow fills in."""
    schema.pop("default", None)


class Vit(Strict):
    """Sizes of a vision transformer encoder and its UNETR decoder, or with `kind: primus` of Primus."""

    # No defaults in the schema for `kind`, `learnt_zyx`, `norm_eps`: they would change the cards of every transformer.
    patch_vox: Positive = 16
    width: Positive = Field(768, description="divisible by 6 (3-D sine-cosine positions) and by heads")
    depth: Positive = 12
    heads: Positive = 12
    mlp_ratio: float = 4.0
    decoder_channels: Positive = Field(16, description="UNETR decoder: channels at full resolution")
    learnt_zyx: ZyxVox | None = Field(
        None, json_schema_extra=_without_default, description="tokens of a grid with learnt positions; absent: sines"
    )
    norm_eps: float | None = Field(None, gt=0, json_schema_extra=_without_default, description="absent: 1e-6")
    kind: Literal["vit", "primus"] | None = Field(None, json_schema_extra=_without_default)

    @model_validator(mode="after")
    def _primus_has_its_parts(self) -> Self:
        if self.kind == "primus" and (self.learnt_zyx is None or self.width % (6 * self.heads)):
            raise ValueError("a primus needs learnt_zyx and a width of heads times a multiple of 6, give it both")
        return self


class Cnn(Strict):
    """Sizes of a convolutional residual encoder: STU-Net's, or with `kind: resenc` nnU-Net's."""

    # No default in the schema: what it filled in would change the cards of every STU-Net.
    kind: Literal["stunet", "resenc"] | None = Field(None, json_schema_extra=_without_default)
    channels: list[Positive] = Field([32, 64, 128, 256, 512, 512], description="one entry per stage")
    blocks: Positive | list[Positive] = Field(1, description="residual blocks per stage; resenc: a list, one per stage")
    pretrained_stages: Positive = Field(5, description="stages down to the mask unit; deeper ones are always fresh")


class Swin(Strict):
    """Sizes of MONAI's Swin transformer with SwinUNETR's decoder."""

    width: Positive = Field(48, multiple_of=12, description="channels of the patch embedding")
    depths: list[Positive] = Field([2, 2, 2, 2], min_length=4, max_length=4, description="blocks per stage")
    heads: list[Positive] = Field([3, 6, 12, 24], min_length=4, max_length=4, description="attention heads per stage")
    window: Positive = Field(7, description="side of a window in cells")
    children: Literal["all", "repeated"] = Field("all", description="repeated: merges cells as MONAI before 1.5 did")
    pretrained_stages: Positive = Field(5, le=5, description="maps down to the pretrained one; deeper ones are fresh")
