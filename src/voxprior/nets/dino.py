"""What teacher and student compare: a transformer with a class token, and heads that are thrown away afterwards.

Axes: R rows (views of all samples), N patches, K visible patches or, of embeddings, prototypes, V values of a patch,
D width of the encoder, E width that the projector gives.

Source: Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), 2021, section 3.1 and
appendix C; Grill et al., "Bootstrap your own latent" (BYOL), 2020, section 3.1.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.maths.consistency import product
from voxprior.nets.vit import ViT


def dino_projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Builds DINO's three linear layers with GELU: (R, D) -> (R, E). No statistics cross samples.

    Weights start with DINO's deviation of 0.02 at its width of 2048, and in proportion wider where the head is
    narrower: at 256 an output of 0.01 would be brought to length 1, and its gradient a hundredfold with it.
    """
    layers = nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02 * math.sqrt(2048 / hidden))
            nn.init.zeros_(layer.bias)
    return layers


def byol_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Builds BYOL's projector or predictor: linear, norm, activation, linear: (R, inputs) -> (R, outputs).

    Layer norm where BYOL has batch norm: batches of a few volumes have no statistics worth the name.
    """
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )  # fmt: skip


class Prototypes(nn.Module):
    """Compares a row with K learnt directions: cosines in [-1, 1], (R, E) -> (R, K) float32.

    DINO's weight-normalised last layer with its gain fixed to 1. The norm is taken in `forward`, so the weight is an
    ordinary parameter that can be copied, averaged and saved.
    """

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.direction_KE = nn.Parameter(torch.empty(count, inputs))
        nn.init.kaiming_uniform_(self.direction_KE, a=math.sqrt(5))

    def forward(self, row_RE: Tensor, frozen: bool = False) -> Tensor:
        """Returns the cosines; `frozen`: the directions get no gradient at all, so no optimiser touches them."""
        direction_KE = self.direction_KE.detach() if frozen else self.direction_KE
        return product(F.normalize(row_RE.float(), dim=-1), F.normalize(direction_KE.float(), dim=-1).mT)


class Embedder(nn.Module):
    """Encoder, learnt class token and heads: all that teacher and student both have.

    The class token starts as N(0, 0.02^2) and has no position. There is no `forward`: what is compiled are the parts,
    which the student calls one by one.
    """

    def __init__(self, encoder: ViT, projector: nn.Module, prototypes: Prototypes | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_token_D = nn.Parameter(torch.empty(encoder.width).normal_(std=0.02))
        self.projector = projector
        self.prototypes = prototypes

    def tokens(self, patch_RNV: Tensor, grid_zyx: tuple[int, int, int], visible_RK: Tensor | None = None) -> Tensor:
        """Encodes the class token and the visible patches, or all patches: (R, 1 + K, D)."""
        class_R1D = self.class_token_D.expand(len(patch_RNV), 1, -1)
        return self.encoder(patch_RNV, grid_zyx, visible_RK, class_R1D)

    def embed(self, class_RD: Tensor, frozen: bool = False) -> Tensor:
        """Projects class tokens: cosines with the prototypes (R, K), or (R, E) where there are none."""
        row_RE = self.projector(class_RD)
        return row_RE if self.prototypes is None else self.prototypes(row_RE, frozen)

    def anchors(self, patch_RNV: Tensor, grid_zyx: tuple[int, int, int]) -> Tensor:
        """Embeds complete views: (R, K) or (R, E)."""
        return self.embed(self.tokens(patch_RNV, grid_zyx)[:, 0])


class Centre(nn.Module):
    """The running mean of a teacher's rows, over all processes: what keeps one prototype from winning everywhere.

    Rows are noted while a loss is computed with the old mean, and count after the step. Between steps nothing is noted,
    so the mean is all there is to save.
    """

    mean_K: Tensor
    noted_K1: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("mean_K", torch.zeros(count))
        self.register_buffer("noted_K1", torch.zeros(count + 1), persistent=False)  # sum of the rows, and their number

    @torch.no_grad()
    def note(self, row_RK: Tensor) -> None:
        """Adds rows to those that `move` will count."""
        number = torch.full((1,), float(len(row_RK)), device=row_RK.device)
        self.noted_K1.add_(torch.cat([row_RK.float().sum(0), number]))

    @torch.no_grad()
    def move(self, momentum: float) -> None:
        """Moves the mean: momentum * mean + (1 - momentum) * mean of the noted rows. DINO, 2021, equation 4.

        Where no row was noted it stays.
        """
        if dist.is_initialized():
            dist.all_reduce(self.noted_K1)
        number = self.noted_K1[-1]
        goal_K = torch.where(number > 0, self.noted_K1[:-1] / number, self.mean_K)
        self.mean_K.lerp_(goal_K, 1.0 - momentum)
        self.noted_K1.zero_()
