"""GL-MAE: masked autoencoding of large and small views, tied to what a teacher makes of each large view unmasked.

Paper: Zhuang et al., "Advancing volumetric medical image segmentation via global-local masked autoencoder", IEEE TMI
2025, arXiv 2306.08913. Its body was not at hand and the authors published no pretraining code, hence `eq. ?`.

Verified (framework figure, table of data sets, released model file): p global views of 160^3 and q local views of 96^3;
student sees views with most patches removed and reconstructs them by mean squared error; teacher follows by EMA and
sees each global view complete, and its class token, projected, is the anchor of the student's class tokens of masked
global and local views (the pair of a view with its own masked version included); ViT-B with a learnt class token,
frozen positions, decoder of 8 blocks; 1600 epochs. NOT verified, therefore fields of `Config` with the default named
in docs/methods/glmae.md: how large the views are, p, q, the mask ratio, the form of the consistency (DINO's is likely:
the checkpoints have its layout), its pairs and temperatures, all weights, EMA, decoder width. No result was reproduced.

Departures, and why:
- One position table per grid: the released loader interpolates one table, which is half as far from the other grid's
  as that is from zero.
- Masked = round(ratio * N) exactly; only visible patches are embedded, only masked ones predicted.
- Intensities are the study's prepared ones, and views are drawn inside the real part of a volume.
- The EMA's half-life and all epochs are shares of the run; `schedule: released` keeps DINO's literal momentum.
- Cosines with the prototypes, softmax, cross-entropy, targets and the centre are float32.
- Where `crop_mode: fixed` pads, views are averaged by their real masked patches, not one by one.

Axes: B samples, V views of a sample (p or q), W = B V, C channels (1), Z Y X voxels, N patches (Z-major), K visible, M
masked patches or, of embeddings, K prototypes, L = 1 + K tokens, P values of a patch, D width of the encoder.

Dictionary: paper word -> ours. x -> region; t_1, t_2 -> `Kind` local, global; t_m -> masked; s(.), P_s -> `student`;
m(.), P_m -> `teacher`; E_c, global context embedding -> `anchor_BVK`; E_g, E_l -> `embedding_BVK`; L_R^g, L_R^l ->
`global_reconstruction`, `local_reconstruction`; L_gg, L_gl -> `global_to_global`, `global_to_local`; r -> mask ratio.
"""

import copy
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import consistency
from voxprior.maths.boxes import Region
from voxprior.maths.crops import cut
from voxprior.maths.ema import follow, taught
from voxprior.maths.masking import split
from voxprior.maths.patches import grid, patchify
from voxprior.maths.positions import check_width
from voxprior.maths.schedules import cosine, momentum_from_half_life
from voxprior.methods.contract import Batch, Term
from voxprior.methods.mae import Decoder, PatchError, show
from voxprior.methods.manyviews import Draws, Kind
from voxprior.nets.backbones import Backbone
from voxprior.nets.dino import Centre, Embedder, Prototypes, byol_mlp, dino_projector
from voxprior.nets.vit import ViT

TITLE = "GL-MAE"


class Config(BaseModel):
    """The numbers of GL-MAE; docs/methods/glmae.md says of each where it comes from, and which are guesses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, description="raised when the same numbers give other results")
    region_vox: tuple[int, int, int] = Field((320, 320, 320), description="most that is read of a volume, Z Y X")
    crop_mode: Literal["resized", "fixed"] = Field(
        "resized", description="boxes of random extent brought to the view's size, or plain crops at the stored spacing"
    )
    global_views: int = Field(2, ge=1, description="p")
    global_vox: tuple[int, int, int] = Field((160, 160, 160), description="Z Y X, multiples of the patch")
    global_share: tuple[float, float] = Field((0.5, 1.0), description="least and largest share of each side; resized")
    global_mask_ratio: float = Field(0.6, gt=0, lt=1)
    local_views: int = Field(8, ge=1, description="q")
    local_vox: tuple[int, int, int] = Field((96, 96, 96), description="Z Y X, multiples of the patch")
    local_share: tuple[float, float] = Field((0.25, 0.5), description="least and largest share of each side; resized")
    local_mask_ratio: float = Field(0.6, gt=0, lt=1)
    flip: float = Field(0.2, ge=0, le=1, description="probability of a flip, per view and axis")
    decoder_width: int = Field(576, ge=6, description="a multiple of 6 and of decoder_heads")
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(12, ge=1)
    decoder_class_token: bool = Field(True, description="the class token travels through the decoder")
    standardise_target: bool = Field(True, description="predict patches standardised with their own mean and variance")
    variance_eps: float = Field(1e-6, gt=0, description="added to a patch's variance; larger = noise counts for less")
    consistency: Literal["dino", "byol"] = Field("dino", description="cross-entropy of soft assignments, or angle")
    gg_pairs: Literal["same", "all", "cross"] = Field("all", description="global-to-global pairs, by index of the view")
    head_hidden: int = Field(2048, ge=1, description="width inside projector and predictor")
    head_width: int = Field(256, ge=1, description="width that the projector gives")
    prototypes: int = Field(4096, ge=2, description="dino")
    student_temperature: float = Field(0.1, gt=0, description="dino")
    teacher_temperature: tuple[float, float] = Field((0.04, 0.07), description="dino; before and after the warm-up")
    temperature_warmup: float = Field(30 / 1600, ge=0, le=1, description="dino; share of the run")
    centre_momentum: float = Field(0.9, ge=0, le=1, description="dino")
    frozen_share: float = Field(1 / 1600, ge=0, le=1, description="dino; share of the run with fixed prototypes")
    global_weight: float = Field(1.0, ge=0, description="of global reconstruction")
    local_weight: float = Field(1.0, ge=0, description="beta_1, of local reconstruction")
    gg_weight: float = Field(1.0, ge=0, description="beta_2, of global-to-global consistency")
    gl_weight: float = Field(1.0, ge=0, description="beta_3, of global-to-local consistency")
    schedule: Literal["share", "released"] = Field("share", description="teacher: half-life, or momentum as released")
    half_life_share: float = Field(0.0093, gt=0, description="of the teacher at the start, as a share of the run")
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher at the start; released")
    export: Literal["student", "teacher"] = Field("student", description="whose encoder segmentation inherits")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        check_width(self.decoder_width, "decoder_width")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is no multiple of decoder_heads {self.decoder_heads}")
        for name in ("region_vox", "global_vox", "local_vox"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be positive")
        for name in ("global_share", "local_share"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest <= 1:
                raise ValueError(f"{name} {least}, {largest} must rise within (0, 1]")
        if min(self.teacher_temperature) <= 0:
            raise ValueError(f"teacher_temperature {self.teacher_temperature} must be positive")
        if self.gg_pairs == "cross" and self.global_views == 1:
            raise ValueError("gg_pairs cross needs two global_views: there is no other view to compare with")
        return self


def accepts(backbone: Backbone) -> str | None:
    """Says why a backbone cannot be pretrained by GL-MAE, or None where it can."""
    if backbone.family == "vit":
        return None
    what, advice = "a convolutional network", "use anatomask there"
    if backbone.family == "swin":
        what, advice = "a Swin", "start it from scratch or from a file"
    return f"GL-MAE drops masked patches before the encoder, which {what} cannot do: {advice}"


def kinds(config: Config, patch_vox: int) -> tuple[Kind, Kind]:
    """Lists the global and the local kind of view.

    Raises:
        Refusal: a view is not a multiple of the patch, or is a single patch.
    """
    numbers = (
        ("global", config.global_views, config.global_vox, config.global_share, config.global_mask_ratio),
        ("local", config.local_views, config.local_vox, config.local_share, config.local_mask_ratio),
    )
    for name, _, size, _, _ in numbers:
        if grid(size, patch_vox) == (1, 1, 1):
            raise Refusal(f"a view of one patch of {patch_vox} voxels leaves nothing to hide: make {name}_vox larger")
    first, second = (Kind(*of, grid(of[2], patch_vox)) for of in numbers)
    return first, second


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the whole prepared volume, up to a bound.

    Raises:
        Refusal: a view is not a multiple of the backbone's patch, or is a single patch.
    """
    kinds(config, backbone.unit_vox)
    return Region(config.region_vox, whole=True)


class Views(NamedTuple):
    """What one step sees of each kind: voxels, which patches are hidden, which are real, and mm per voxel."""

    volume_global_BVCZYX: Tensor
    masked_global_BVN: Tensor
    valid_global_BVN: Tensor
    mm_global_BV: Tensor
    volume_local_BVCZYX: Tensor
    masked_local_BVN: Tensor
    valid_local_BVN: Tensor
    mm_local_BV: Tensor


def monitor(value: Tensor) -> Term:
    """Makes a term that is logged as the mean of its values and trains nothing."""
    return Term(value.sum(), value.new_full((), float(value.numel())), 0.0)


class Model(nn.Module):
    """GL-MAE on the contract of `methods.contract`."""

    def __init__(self, config: Config, encoder: ViT) -> None:
        super().__init__()
        self.config = config
        self.patch_vox = encoder.unit_vox
        self.error = PatchError(config.standardise_target, config.variance_eps)  # eq. ?, L_R^g and L_R^l
        self.whole, self.part = kinds(config, self.patch_vox)
        self.draws_whole, self.draws_part = (
            Draws(kind, self.patch_vox, config.crop_mode == "resized", config.flip) for kind in (self.whole, self.part)
        )
        values = self.patch_vox**3  # of one channel: what counts as a voxel
        self.student_voxels = sum(kind.views * kind.patches * values for kind in (self.whole, self.part))
        dino, sizes = config.consistency == "dino", (config.head_hidden, config.head_width)
        projector = (dino_projector if dino else byol_mlp)(encoder.width, *sizes)
        self.student = Embedder(encoder, projector, Prototypes(config.head_width, config.prototypes) if dino else None)
        shape = config.decoder_width, config.decoder_depth, config.decoder_heads
        self.decoder = Decoder(*shape, encoder.width, values * encoder.channels_in)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        if dino:
            self.centre = Centre(config.prototypes)
        else:
            self.predictor = byol_mlp(config.head_width, config.head_hidden, config.head_width)

    @property
    def encoder(self) -> ViT:
        """The student's encoder."""
        return self.student.encoder

    def encoder_state(self) -> dict[str, Tensor]:
        """Returns what segmentation inherits: the student's encoder, or the teacher's where `export` says so."""
        chosen = self.student if self.config.export == "student" else self.teacher
        return chosen.encoder.state_dict()

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Cuts, mirrors and masks p global and q local views of each sample. Figure of the framework, t_1, t_2, t_m."""
        made: list[Tensor] = []
        real = batch["valid_lo_B3"], batch["valid_hi_B3"]
        for kind, draws in ((self.whole, self.draws_whole), (self.part, self.draws_part)):
            lo_BV3, hi_BV3, flipped_BV3, *others = draws(*real, batch["spacing_mm_B3"], key_B)
            of = batch["region_BCZYX"], lo_BV3, hi_BV3, kind.size_zyx
            made += [cut(*of, *real, flipped_BV3, batch["quantum_B"]), *others]
        return Views(*made)

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Returns the four loss terms and the monitors. eq. ?; L = L_R^g + beta_1 L_R^l + beta_2 L_gg + beta_3 L_gl."""
        config, frozen = self.config, progress < self.config.frozen_share
        global_WNP = patchify(views.volume_global_BVCZYX.flatten(0, 1), self.patch_vox)
        local_WNP = patchify(views.volume_local_BVCZYX.flatten(0, 1), self.patch_vox)
        anchor_WK = taught(self.teacher.anchors, global_WNP, self.whole.grid_zyx)
        terms, embedded = {}, []
        for kind, patch_WNP, masked_BVN, valid_BVN, weight in (
            (self.whole, global_WNP, views.masked_global_BVN, views.valid_global_BVN, config.global_weight),
            (self.part, local_WNP, views.masked_local_BVN, views.valid_local_BVN, config.local_weight),
        ):
            visible_WK, masked_WM = split(masked_BVN.flatten(0, 1), kind.visible)
            token_WLD, predicted_WMP = self.predict(kind, patch_WNP, visible_WK, masked_WM)
            total, count = self.error(predicted_WMP, patch_WNP, masked_WM, valid_BVN.flatten(0, 1))
            terms[f"{kind.name}_reconstruction"] = Term(total, count, weight)
            embedded.append(self.student.embed(token_WLD[:, 0], frozen).unflatten(0, (-1, kind.views)))
        terms |= self.agreement(anchor_WK.unflatten(0, (-1, self.whole.views)), embedded, progress)
        return terms | {
            "mm_per_voxel_global": monitor(views.mm_global_BV),
            "mm_per_voxel_local": monitor(views.mm_local_BV),
        }

    def predict(self, kind: Kind, patch_WNP: Tensor, visible_WK: Tensor, masked_WM: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the visible patches and predicts the masked ones: (W, 1 + K, D) and (W, M, P). Figure, s(.)."""
        token_WLD = self.student.tokens(patch_WNP, kind.grid_zyx, visible_WK)
        kept_WLD = token_WLD if self.config.decoder_class_token else token_WLD[:, 1:]
        return token_WLD, self.decoder(kept_WLD, visible_WK, masked_WM, kind.grid_zyx)

    def teacher_temperature(self, progress: float) -> float:
        """Rises in a line from the first temperature to the second during the warm-up, and stays there."""
        first, second = self.config.teacher_temperature
        if progress >= self.config.temperature_warmup:
            return second
        return first + (second - first) * progress / self.config.temperature_warmup

    def agreement(self, anchor_BVK: Tensor, embedded: list[Tensor], progress: float) -> dict[str, Term]:
        """Compares the student's global and local embeddings with the anchors. eq. ?, L_gg and L_gl; and monitors.

        The centre that is used here is moved in `after_step`, by the rows noted here while gradients are recorded.
        """
        config, names = self.config, ("global_to_global", "global_to_local")
        rules = zip(names, embedded, (config.gg_pairs, "all"), (config.gg_weight, config.gl_weight), strict=True)
        if config.consistency == "byol":
            terms = {
                name: Term(*consistency.cosine_distance(anchor_BVK, self.predictor(student_BVK), pairs), weight)
                for name, student_BVK, pairs, weight in rules
            }
            return terms | {"teacher_likeness": Term(*consistency.likeness(anchor_BVK), 0.0)}
        q_BVK = consistency.assign(anchor_BVK, self.centre.mean_K, self.teacher_temperature(progress))
        tau = config.student_temperature
        terms = {
            name: Term(*consistency.cross_entropy(q_BVK, student_BVK, tau, pairs), weight)
            for name, student_BVK, pairs, weight in rules
        }
        if torch.is_grad_enabled():
            self.centre.note(anchor_BVK.flatten(0, 1))
        entropy_BV, norm = consistency.entropy(q_BVK), self.centre.mean_K.norm()
        return terms | {"teacher_entropy": monitor(entropy_BV), "centre_norm": monitor(norm)}

    @torch.no_grad()
    def after_step(self, progress: float, total_steps: int) -> None:
        """Moves the teacher behind the updated student, then the centre, over all processes. DINO, 2021, section 3.1.

        theta_m = momentum theta_m + (1 - momentum) theta_s, the momentum rising to 1 along half a cosine;
        c = 0.9 c + 0.1 mean of the teacher's rows.
        """
        config, released = self.config, self.config.schedule == "released"
        start = config.momentum if released else momentum_from_half_life(config.half_life_share, total_steps)
        follow(self.teacher, self.student, cosine(start, 1.0, progress))
        if config.consistency == "dino":
            self.centre.move(config.centre_momentum)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows the first global and the first local view of each sample, see `mae.show`."""
        eps = self.config.variance_eps if self.config.standardise_target else None
        pictures: dict[str, Tensor] = {}
        for prefix, kind, volume_BVCZYX, masked_BVN in (
            ("", self.whole, views.volume_global_BVCZYX, views.masked_global_BVN),
            ("local_", self.part, views.volume_local_BVCZYX, views.masked_local_BVN),
        ):
            patch_BNP = patchify(volume_BVCZYX[:, 0], self.patch_vox)
            visible_BK, masked_BM = split(masked_BVN[:, 0], kind.visible)
            predicted_BMP = self.predict(kind, patch_BNP, visible_BK, masked_BM)[1]
            shown = show(patch_BNP, masked_BM, predicted_BMP, kind.grid_zyx, self.patch_vox, eps)
            pictures |= {prefix + name: picture_BZYX for name, picture_BZYX in shown.items()}
        return pictures
