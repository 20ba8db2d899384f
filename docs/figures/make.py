"""Makes the figures of the methods' pages from the methods' own functions, on phantoms.

    python docs/figures/make.py              all of them, beside this file
    python docs/figures/make.py mae pgl      some

A figure of a method is one function below. What is shown is what the code does with these views, masks and points; only
AnatoMask's needs a network that has learned something, and trains one for a minute.

Axes: Z Y X voxels, B samples, V views, N patches (Z-major).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import yaml
from drawing import BLUE, HIDDEN, ORANGE, WIDTH, Array, Canvas

from voxprior.data import phantoms
from voxprior.maths import chance, pairs, patches
from voxprior.maths.batch import Batch
from voxprior.maths.places import draw_boxes
from voxprior.methods import anatomask as anatomask_method
from voxprior.methods import byol as byol_method
from voxprior.methods import glmae as glmae_method
from voxprior.methods import mae as mae_method
from voxprior.methods import pgl as pgl_method
from voxprior.methods import spark as spark_method
from voxprior.nets.backbones import Backbone
from voxprior.nets.sparse import visible_pyramid
from voxprior.study import pictures

HERE = Path(__file__).parent
MARGIN, GAP = 10, 12


# ------------------------------------------------------------------------------------------------ material
def backbone(name: str) -> Backbone:
    """Reads a backbone of the project."""
    numbers = yaml.safe_load((HERE.parents[1] / f"config/backbones/{name}.yaml").read_text(encoding="utf-8"))
    return Backbone(name, numbers["family"], numbers[numbers["family"]])


def encoder(name: str) -> torch.nn.Module:
    """Builds an untrained encoder, the same every time."""
    torch.manual_seed(0)
    return backbone(name).encoder()


def phantom(shape_zyx: tuple[int, int, int], seeds: tuple[int, ...] = (3,)) -> Batch:
    """Makes a batch of phantoms, -900 to 600 HU as 0 to 1: air is flat, as it is in a window for organs."""
    made = [np.clip((phantoms.make(seed, shape_zyx)[0] + 900) / 1500 * 1000, 0, 1000) for seed in seeds]
    size_B3 = torch.tensor([shape_zyx] * len(seeds))
    return {
        "region_BCZYX": torch.from_numpy(np.stack(made).astype(np.int16))[:, None],
        "quantum_B": torch.full((len(seeds),), 1e-3),
        "spacing_mm_B3": torch.full((len(seeds), 3), 3.0),
        "valid_lo_B3": torch.zeros_like(size_B3),
        "valid_hi_B3": size_B3,
    }


def keys(seed: int, samples: int = 1) -> torch.Tensor:
    """Makes keys of a step."""
    return chance.keys(seed, 0, torch.arange(samples))


def layer(flag_BN: torch.Tensor, grid_zyx: tuple[int, int, int]) -> Array:
    """Takes the middle layer of the first sample's patches: (y, x)."""
    return flag_BN[0].unflatten(0, grid_zyx)[grid_zyx[0] // 2].numpy()


def middle(volume_ZYX: torch.Tensor) -> Array:
    """Takes the middle axial plane."""
    return volume_ZYX[volume_ZYX.shape[0] // 2].float().numpy()


def columns(count: int) -> tuple[float, list[float]]:
    """Shares the width among `count` panels: (width of each, where each starts)."""
    width = (WIDTH - 2 * MARGIN - GAP * (count - 1)) / count
    return width, [MARGIN + (width + GAP) * place for place in range(count)]


def standardised(patch_BNV: torch.Tensor, grid_zyx: tuple[int, int, int], patch_vox: int) -> Array:
    """Shows standardised patches: -2 to 2 deviations as black to white."""
    whole = patches.unpatchify(patches.standardise(patch_BNV), grid_zyx, patch_vox)[0, 0]
    # The plane in the middle of the middle layer of patches, which is the layer that `layer` takes.
    return ((whole[(grid_zyx[0] // 2) * patch_vox + patch_vox // 2].numpy() + 2) / 4).clip(0, 1)


def plane_of_layer(volume_ZYX: torch.Tensor, patch_vox: int) -> Array:
    """Takes the plane in the middle of the middle layer of patches."""
    cells = volume_ZYX.shape[0] // patch_vox
    return volume_ZYX[(cells // 2) * patch_vox + patch_vox // 2].float().numpy()


# ------------------------------------------------------------------------------------------------ MAE3D, SparK
def hidden_and_predicted(
    canvas: Canvas, volume_ZYX: torch.Tensor, masked_BN: torch.Tensor, grid_zyx: tuple[int, int, int], words: list[str]
) -> float:
    """Draws a crop, what is left of it, and what is to be predicted; returns where the row ends."""
    width, starts = columns(3)
    patch_vox = volume_ZYX.shape[0] // grid_zyx[0]
    hidden_YX = layer(masked_BN, grid_zyx)
    crop = plane_of_layer(volume_ZYX, patch_vox)
    target = standardised(patches.patchify(volume_ZYX[None, None], patch_vox), grid_zyx, patch_vox)
    for x, name, image in zip(starts, words, (crop, crop, target), strict=True):
        canvas.text(x, 24, name)
        canvas.image(x, 32, width, image)
    canvas.cells(starts[1], 32, width, hidden_YX, HIDDEN)
    canvas.cells(starts[2], 32, width, ~hidden_YX, HIDDEN)
    return 32 + width


def mae() -> str:
    """MAE3D: the encoder gets the visible patches alone, the decoder predicts the hidden ones."""
    config = mae_method.Config(crop_vox=(24, 96, 96), decoder_width=12, decoder_depth=1, decoder_heads=2)
    model = mae_method.Model(config, encoder("vit_tiny"))
    views = model.views(phantom(config.crop_vox), keys(5))
    canvas = Canvas("MAE3D: of a crop's patches a quarter is encoded, and the hidden ones are predicted")
    words = ["a crop", "encoder sees", "decoder predicts"]
    below = hidden_and_predicted(canvas, views.volume_BCZYX[0, 0], views.masked_BN, model.grid_zyx, words)
    hidden = int(views.masked_BN[0].sum())
    canvas.paragraph(
        MARGIN,
        below + 24,
        f"Patches of {model.patch_vox} voxels; {hidden} of {views.masked_BN.shape[1]} are hidden (blue), drawn anew "
        "for every crop. The encoder never computes a hidden patch. To predict: "
        "the hidden patches, each standardised by its own mean and deviation.",
    )
    return canvas.svg()


def spark() -> str:
    """SparK: masks at every stride, so that hidden voxels reach nothing."""
    config = spark_method.Config(crop_vox=(24, 96, 96), decoder_width=32)
    network = encoder("stunet_tiny")
    model = spark_method.Model(config, network)
    views = model.views(phantom(config.crop_vox), keys(5))
    grid_zyx = patches.grid(config.crop_vox, network.unit_vox)
    canvas = Canvas("SparK: hidden cubes stay hidden at every stride of a convolutional encoder")
    words = ["a crop", "encoder sees", "decoder paints"]
    below = hidden_and_predicted(canvas, views.volume_BCZYX[0, 0], views.masked_BN, grid_zyx, words)
    pyramid = visible_pyramid(views.masked_BN, grid_zyx, 4)
    top = canvas.paragraph(
        MARGIN,
        below + 24,
        f"{int(views.masked_BN[0].sum())} of {views.masked_BN.shape[1]} cubes of {network.unit_vox} voxels are hidden "
        "(blue). After every convolution "
        "and norm hidden voxels are set to zero again, at every stride:",
    )
    width, starts = columns(4)
    crop = plane_of_layer(views.volume_BCZYX[0, 0], network.unit_vox)
    for stage, (x, visible) in enumerate(zip(starts, pyramid, strict=True)):
        side = 2**stage
        seen_YX = middle(visible.voxels_B1ZYX[0, 0])
        coarse = crop.reshape(96 // side, side, 96 // side, side).mean((1, 3))
        canvas.image(x, top, width, coarse)
        # One square per hidden cube, not per voxel: the mask is the same at every stride.
        canvas.cells(x, top, width, ~seen_YX[:: 8 // side, :: 8 // side].astype(bool), HIDDEN)
        canvas.text(x, top + width + 18, f"stride {side}", "faint")
    return canvas.svg()


# ------------------------------------------------------------------------------------------------ GL-MAE
def glmae() -> str:
    """GL-MAE: global and local views of one scan, and the teacher's whole view."""
    config = glmae_method.Config(
        region_vox=(48, 128, 128), global_vox=(24, 80, 80), local_vox=(16, 48, 48), local_views=4, decoder_width=12,
        decoder_depth=1, decoder_heads=2, head_hidden=8, head_width=8, prototypes=8,
    )  # fmt: skip
    model = glmae_method.Model(config, encoder("vit_tiny"))
    batch, key_B = phantom(config.region_vox), keys(4)
    views = model.views(batch, key_B)
    scan = middle(batch["region_BCZYX"][0, 0].float() * 1e-3)
    width, starts = columns(3)
    canvas = Canvas("GL-MAE: global and local views of one scan; a teacher sees global views whole")
    kinds = ((model.whole, BLUE, views.masked_global_BVN), (model.part, ORANGE, views.masked_local_BVN))
    canvas.text(starts[0], 24, "a scan")
    canvas.image(starts[0], 32, width, scan)
    for kind, colour, _ in kinds:
        key_W = chance.bits(key_B, kind.name, (kind.views,)).flatten()
        lo_BV3, hi_BV3 = draw_boxes(key_W, batch["valid_lo_B3"], batch["valid_hi_B3"], kind.size_zyx, kind.share)
        scale = width / scan.shape[1]
        for (_, y, x), (_, far_y, far_x) in zip(lo_BV3[0].tolist(), hi_BV3[0].tolist(), strict=True):
            canvas.box(starts[0] + scale * x, 32 + scale * y, scale * (far_x - x), scale * (far_y - y), colour)
    for view, whole in enumerate(views.volume_global_BVCZYX[0, :, 0], start=1):
        canvas.text(starts[view], 24, "teacher sees all" if view == 1 else "of both")
        canvas.image(starts[view], 32, width, plane_of_layer(whole, model.patch_vox))
        canvas.box(starts[view], 32, width, width, BLUE)
    top = 32 + width + 34
    canvas.text(MARGIN, top - 8, "student sees a part of every view")
    narrow, places = columns(6)
    shown = [(kind, colour, masked, view) for kind, colour, masked in kinds for view in range(kind.views)]
    for x, (kind, colour, masked_BVN, view) in zip(places, shown, strict=True):
        volume = (views.volume_global_BVCZYX if kind is model.whole else views.volume_local_BVCZYX)[0, view, 0]
        canvas.image(x, top, narrow, plane_of_layer(volume, model.patch_vox))
        canvas.cells(x, top, narrow, layer(masked_BVN[:, view], kind.grid_zyx), HIDDEN)
        canvas.box(x, top, narrow, narrow, colour)
    canvas.paragraph(
        MARGIN,
        top + narrow + 24,
        "Blue: global views, orange: local views, on the scan as seen from the head. The student predicts the hidden "
        "patches of each. And its class token of every view must agree with the teacher's of the whole global views.",
    )
    return canvas.svg()


# ------------------------------------------------------------------------------------------------ AnatoMask
def trained(steps: int) -> tuple[Any, Batch, list[dict[str, Any]]]:
    """Trains AnatoMask on phantoms; keeps the model as it was at the start, half-way and at the end."""
    config = anatomask_method.Config(crop_vox=(24, 64, 64), decoder_width=16, flip=0.0)
    model = anatomask_method.Model(config, encoder("stunet_tiny")).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch = phantom(config.crop_vox, (3, 4))
    kept = []
    for step in range(steps):
        progress = step / max(steps - 1, 1)
        if step in (0, steps // 2):
            kept.append({name: value.clone() for name, value in model.state_dict().items()})
        views = model.views(batch, chance.keys(0, step, torch.arange(2)))
        term = model(views, progress)["reconstruction"]
        (term.sum / term.count).backward()
        optimiser.step()
        optimiser.zero_grad()
        model.after_step(progress, steps)
    return model, batch, [*kept, {name: value.clone() for name, value in model.state_dict().items()}]


def anatomask(steps: int = 120) -> str:
    """AnatoMask: the teacher's error, the hard patches, and the random fill at three moments of a run."""
    model, batch, kept = trained(steps)
    unit = model.encoder.unit_vox
    views = model.views(batch, keys(7, 2))
    patch_BNV = patches.patchify(views.volume_BCZYX, unit)
    width, starts = columns(3)
    canvas = Canvas("AnatoMask: what a teacher paints badly is hidden from the student, more of it as the run goes on")
    crop, highest = plane_of_layer(views.volume_BCZYX[0, 0], unit), 0.0
    for x, state, progress in zip(starts, kept, (0.0, 0.5, 1.0), strict=True):
        model.load_state_dict(state)
        score_BN = model.score(views, patch_BNV)
        hard = anatomask_method.hard_count(model.config, model.masked, progress)
        masked_BN, hard_BN = model.student_mask(views, patch_BNV, hard)
        canvas.text(x, 24, f"{progress:.0%} of the run")
        canvas.image(x, 32, width, crop)
        error_YX = layer(score_BN, model.cells_zyx)
        ranked_YX = np.isfinite(error_YX)
        highest = highest or float(score_BN[0].max())  # the same colours for all three
        for level in range(5):  # five steps of the report's heat map
            colour = matplotlib.colors.to_hex(matplotlib.colormaps[pictures.HEAT](level / 4))
            share_YX = np.where(ranked_YX, error_YX, 0).clip(0, highest) / highest
            canvas.cells(x, 32, width, ranked_YX & ((share_YX * 4.999).astype(int) == level), colour)
        top = 32 + width + GAP
        canvas.image(x, top, width, crop)
        hard_YX, hidden_YX = layer(hard_BN, model.cells_zyx), layer(masked_BN, model.cells_zyx)
        canvas.cells(x, top, width, hidden_YX & ~hard_YX, HIDDEN)
        canvas.cells(x, top, width, hard_YX, ORANGE, "#000")
        canvas.text(x, top + width + 18, f"{hard} of {model.masked} hard", "faint")
    canvas.paragraph(
        MARGIN,
        top + width + 44,
        "Above: the teacher's error where it could not see, from dark (least) to "
        "bright; flat air is never hard. Below: hidden from the student are the "
        "patches with the largest error (orange) and random ones (blue). One layer "
        f"of the crop; counts are of all its patches. A run of {steps} steps on phantoms.",
    )
    return canvas.svg()


# ------------------------------------------------------------------------------------------------ BYOL, PGL
PAIR = {"view_vox": (32, 64, 64), "min_overlap": 0.3, "head_hidden": 32, "head_out": 16, "noise": 0.0}


def pair_of_boxes(canvas: Canvas, batch: Batch, views: Any, shown: dict[str, Array]) -> tuple[float, list[float]]:
    """Draws the scan with both boxes and what they share, and both views beside it: (width, starts of the panels)."""
    width, starts = columns(3)
    scan = middle(batch["region_BCZYX"][0, 0].float() * 1e-3)
    scale = width / scan.shape[1]
    canvas.text(starts[0], 24, "a scan")
    canvas.image(starts[0], 32, width, scan)
    for view, colour in enumerate((BLUE, ORANGE)):
        (_, y, x), (_, far_y, far_x) = views.lo_BV3[0, view].tolist(), views.hi_BV3[0, view].tolist()
        canvas.box(starts[0] + scale * x, 32 + scale * y, scale * (far_x - x), scale * (far_y - y), colour)
    for place, (name, colour) in enumerate((("a", BLUE), ("b", ORANGE)), start=1):
        turned = [axis for axis, flag in zip("zyx", views.flipped_BV3[0, place - 1].tolist(), strict=True) if flag]
        canvas.text(starts[place], 24, f"view {name}" + (f", {' '.join(turned)} flipped" if turned else ""))
        canvas.image(starts[place], 32, width, shown[f"view_{name}"])
        canvas.box(starts[place], 32, width, width, colour)
    return width, starts


def byol() -> str:
    """BYOL: both views become one vector each."""
    model = byol_method.Model(byol_method.Config(**PAIR), encoder("stunet_tiny")).eval()
    batch = phantom((48, 128, 128))
    views = model.views(batch, keys(53))
    canvas = Canvas("BYOL: two views of one scan are averaged over space, and their two vectors must agree")
    shown = {}
    for view, (name, picture) in enumerate(model.pictures(views).items()):
        # The plane of the view that lies in the middle of the scan, which is the one that is drawn of it.
        box = views.lo_BV3[0, view, 0], views.hi_BV3[0, view, 0], views.flipped_BV3[0, view, 0]
        u = float(pairs.to_view(torch.tensor(batch["region_BCZYX"].shape[2] / 2), *box))
        shown[name] = picture[0, int((u + 1) / 2 * picture.shape[1])].numpy()
    width, starts = pair_of_boxes(canvas, batch, views, shown)
    with torch.no_grad():
        vector_VC = model.features(model.encoder, views.volume_BVCZYX)[0].mean((1, 2, 3))
    low, high = float(vector_VC.min()), float(vector_VC.max())
    top = 32 + width + 34
    for place, vector_C in enumerate(vector_VC, start=1):
        canvas.arrow(starts[place] + width / 2, 32 + width + 4, starts[place] + width / 2, top - 6)
        for number, value in enumerate(vector_C[:16].tolist()):
            colour = matplotlib.colors.to_hex(matplotlib.colormaps[pictures.HEAT]((value - low) / (high - low)))
            canvas.block(starts[place] + width / 16 * number, top, width / 16 + 0.3, 16, colour)
    canvas.text(starts[0], top + 13, "mean over space:", "faint")
    canvas.paragraph(
        MARGIN,
        top + 44,
        "The views are PGL's: boxes that overlap, flipped and changed in intensity "
        "each on its own (here without noise). Student and teacher each turn a view into one vector "
        "(here 16 channels of an untrained encoder); the student predicts the "
        "teacher's vector of the other view. Where anything lies is lost.",
    )
    return canvas.svg()


def pgl() -> str:
    """PGL: the same boxes, compared place by place."""
    model = pgl_method.Model(pgl_method.Config(**PAIR), encoder("stunet_tiny")).eval()
    batch = phantom((48, 128, 128))
    views = model.views(batch, keys(53))
    compared = int((model.places(views).weight_BN > 0).sum())
    canvas = Canvas("PGL: two views of one scan are compared where they show the same anatomy")
    stored = {name: value.numpy() for name, value in model.pictures(views).items()}
    drawn = {column.name: column for column in pictures.columns(stored, side_px=64)}
    tiles = {f"view_{name}": drawn[f"view {name}"].image for name in "ab"}
    width, starts = pair_of_boxes(canvas, batch, views, tiles)
    scan_scale = width / batch["region_BCZYX"].shape[4]
    for place, name in enumerate("ab", start=1):
        for mark in drawn[f"view {name}"].marks:
            colour = pictures.POINTS[mark.number - 1]
            canvas.point(
                starts[place] + mark.right_px * width / 64, 32 + mark.down_px * width / 64, mark.number, colour
            )
    for mark in drawn["view a"].marks:
        lo, hi, flipped = (value[0, 0] for value in (views.lo_BV3, views.hi_BV3, views.flipped_BV3))
        u_YX = torch.tensor([mark.down_px, mark.right_px]) / 32 - 1
        y, x = pairs.to_volume(u_YX, lo[1:], hi[1:], flipped[1:]).tolist()
        canvas.point(starts[0] + scan_scale * x, 32 + scan_scale * y, mark.number, pictures.POINTS[mark.number - 1])
    canvas.paragraph(
        MARGIN,
        32 + width + 24,
        "Equal numbers are equal places of the body. Both feature maps are read "
        "exactly there, between the centres of their cells, corrected for where the "
        "encoder looks; every place of one view predicts the same place of the "
        f"other. Here {compared} places are compared, six of one plane are shown.",
    )
    return canvas.svg()


FIGURES: dict[str, Callable[[], str]] = {
    "mae": mae, "spark": spark, "glmae": glmae, "anatomask": anatomask, "byol": byol, "pgl": pgl,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Writes the named figures, or all."""
    torch.set_num_threads(1)
    for name in names or FIGURES:
        path = HERE / f"{name}.svg"
        path.write_text(FIGURES[name](), encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
