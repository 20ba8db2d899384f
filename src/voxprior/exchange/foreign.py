"""Name maps from other projects' checkpoints to our encoders; one function per layout.

Sources of the names: nnssl and nnU-Net: dynamic-network-architectures 0.4.4 (Apache-2.0); STU-Net: the authors'
nnU-Net variant (Apache-2.0); MONAI: `monai.networks.nets` 1.6 (Apache-2.0).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from voxprior.errors import Refusal
from voxprior.exchange import nnunet
from voxprior.exchange.names import Taken, rename
from voxprior.nets.backbones import Backbone

Reader = Callable[[Mapping[str, Tensor], Backbone, Path], Taken]
INHERITED = "decoder: the encoder alone is inherited"


def read_nnssl(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads ResEnc from a checkpoint of nnssl or nnU-Net.

    Raises:
        Refusal: the backbone is no ResEnc, or the checkpoint is a Primus, which has no backbone here.
    """
    if any(name.startswith("eva.") or ".eva." in name for name in state):
        raise Refusal(f"{path} is a Primus, which voxprior has no backbone for: take a ResEnc checkpoint of nnssl")
    if not backbone.is_resenc:
        raise Refusal(f"{backbone.name} is no ResEnc, which nnssl's checkpoints are: name resenc_l as --backbone")
    return rename(state, nnunet.encoder_name, path)


def read_stunet(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads STU-Net's context path from the authors' checkpoints; our names are theirs.

    Raises:
        Refusal: the backbone is no STU-Net.
    """
    if backbone.family != "cnn" or backbone.is_resenc:
        raise Refusal(f"{backbone.name} is no STU-Net: name stunet_s, stunet_b, stunet_l or stunet_h as --backbone")

    def rule(name: str) -> tuple[str | None, str]:
        name = name.removeprefix("module.")
        return (name, "") if name.startswith("conv_blocks_context.") else (None, INHERITED)

    return rename(state, rule, path)


READERS: dict[str, Reader] = {"nnssl": read_nnssl, "stunet": read_stunet}
