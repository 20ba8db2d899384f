"""Phantoms: small scans made by code, for tests and trials without any data.

A phantom is a body (an ellipsoid) with organs (ellipsoids of different intensity) in air, noise on top. Intensities are
HU-like. Nothing learned on phantoms says anything about patients.

Axes: Z Y X voxels.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data import volume
from voxprior.data.series import own_locale

SHAPE_ZYX = (24, 28, 26)
SPACING_ZYX_MM = (3.0, 2.0, 2.0)

# How raw axes x y z run in the world, for files that are not stored in LPS.
ORIENTATIONS = {
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "PIR": (0, 0, -1, 1, 0, 0, 0, -1, 0),
    "LAS": (1, 0, 0, 0, -1, 0, 0, 0, 1),
    "tilted": (1, 0, 0, 0, 0.96, -0.28, 0, 0.28, 0.96),
}


CLASSES = ("one", "two", "three")  # names of the classes 1, 2, 3 where each has a file of its own


def make(
    seed: int = 0, shape_zyx: tuple[int, int, int] = SHAPE_ZYX, classes: int = 3
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Makes one phantom: (volume int16, labels uint8 with 1..classes), both (Z, Y, X). Same seed, same phantom."""
    chance = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape_zyx], indexing="ij"))
    intensity = np.full(shape_zyx, -1000.0)
    labels = np.zeros(shape_zyx, np.uint8)
    intensity[((grid / 0.9) ** 2).sum(axis=0) < 1] = 0
    for index in range(classes):
        angle = 2 * np.pi * index / classes + chance.uniform(-0.2, 0.2)
        centre = np.array([chance.uniform(-0.15, 0.15), 0.42 * np.sin(angle), 0.42 * np.cos(angle)])
        radius = chance.uniform(0.24, 0.34, 3)
        organ = (((grid - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0) < 1
        intensity[organ] = -400 + 800 * (index + 1) / classes
        labels[organ] = index + 1
    return (intensity + chance.normal(0, 25, shape_zyx)).round().astype(np.int16), labels


def grid_of(
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    orientation: str = "LPS",
) -> volume.Grid:
    """Makes a raw grid with a crooked origin in one of `ORIENTATIONS`."""
    z, y, x = shape_zyx
    spacing = (float(spacing_zyx_mm[2]), float(spacing_zyx_mm[1]), float(spacing_zyx_mm[0]))
    return volume.Grid((x, y, z), spacing, (-10.5, 20.25, -300.0), tuple(float(d) for d in ORIENTATIONS[orientation]))


def series(
    cases: int,
    unlabelled: int,
    seed: int,
    shape_zyx: tuple[int, int, int],
    grid: volume.Grid,
) -> Iterator[tuple[str, sitk.Image, np.ndarray[Any, Any] | None]]:
    """Makes (name, image, labels) of `phantom_000`, ...; the last `unlabelled` ones have no labels."""
    for index in range(cases + unlabelled):
        voxels, labels = make(seed + index, shape_zyx)
        yield f"phantom_{index:03d}", volume.from_array(voxels, grid), labels if index < cases else None


def write_decathlon(
    folder: str | Path,
    cases: int = 4,
    unlabelled: int = 0,
    seed: int = 0,
    shape_zyx: tuple[int, int, int] = SHAPE_ZYX,
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    orientation: str = "LPS",
) -> Path:
    """Writes phantoms in the layout of the Medical Segmentation Decathlon and returns the folder.

    Cases are `phantom_000`, ...; the unlabelled ones lie in `imagesTs`.
    """
    folder = Path(folder)
    content: dict[str, Any] = {"name": "phantom", "labels": {"0": "background"}, "training": [], "test": []}
    grid = grid_of(shape_zyx, spacing_zyx_mm, orientation)
    for name, scan, labels in series(cases, unlabelled, seed, shape_zyx, grid):
        image = f"{'imagesTs' if labels is None else 'imagesTr'}/{name}.nii.gz"
        volume.write_image(scan, folder / image)
        if labels is not None:
            volume.write_image(volume.from_array(labels, grid), folder / "labelsTr" / f"{name}.nii.gz")
            content["training"].append({"image": f"./{image}", "label": f"./labelsTr/{name}.nii.gz"})
        else:
            content["test"].append(f"./{image}")
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_folder(
    folder: str | Path,
    cases: int = 4,
    unlabelled: int = 0,
    seed: int = 0,
    shape_zyx: tuple[int, int, int] = SHAPE_ZYX,
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    orientation: str = "RAS",
) -> Path:
    """Writes phantoms as `images/{case}.nii.gz` and `labels/{case}.nii.gz` and returns the folder."""
    folder = Path(folder)
    grid = grid_of(shape_zyx, spacing_zyx_mm, orientation)
    for name, scan, labels in series(cases, unlabelled, seed, shape_zyx, grid):
        volume.write_image(scan, folder / "images" / f"{name}.nii.gz")
        if labels is not None:
            volume.write_image(volume.from_array(labels, grid), folder / "labels" / f"{name}.nii.gz")
    return folder


def write_per_class(
    folder: str | Path,
    cases: int = 4,
    unlabelled: int = 0,
    seed: int = 0,
    shape_zyx: tuple[int, int, int] = SHAPE_ZYX,
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    orientation: str = "RAS",
) -> Path:
    """Writes phantoms as `{case}/ct.nii.gz` and binary `{case}/segmentations/{class}.nii.gz` and returns the folder.

    The classes are named as in `CLASSES`.
    """
    folder = Path(folder)
    grid = grid_of(shape_zyx, spacing_zyx_mm, orientation)
    for name, scan, labels in series(cases, unlabelled, seed, shape_zyx, grid):
        volume.write_image(scan, folder / name / "ct.nii.gz")
        if labels is not None:
            for value, of in enumerate(CLASSES, 1):
                binary = (labels == value).astype(np.uint8)
                volume.write_image(volume.from_array(binary, grid), folder / name / "segmentations" / f"{of}.nii.gz")
    return folder


def write_series(folder: str | Path, scan: sitk.Image, number: int = 1, patient: str = "", leave_out: int = -1) -> Path:
    """Writes a scan as a DICOM series, `IM<place>.dcm` in shuffled order, and returns the folder.

    Args:
        folder: where to; it may hold other series.
        scan: int16; its z axis becomes the slices.
        number: SeriesNumber, also the end of the SeriesInstanceUID.
        patient: PatientID.
        leave_out: place of a slice that is not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    column = np.asarray(scan.GetDirection()).reshape(3, 3)
    for place in range(scan.GetSize()[2]):
        if place == leave_out:
            continue
        plane = scan[:, :, place]
        position = scan.TransformIndexToPhysicalPoint((0, 0, place))
        for key, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",  # CT image storage
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{number}.{place + 1}",
            "0008|0060": "CT",
            "0010|0020": patient,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.7",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.8.{number}",
            "0020|0011": str(number),
            "0020|0013": str(place + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.6f}" for value in (*column[:, 0], *column[:, 1])),
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            plane.SetMetaData(key, value)
        # Names in another order than the slices: whoever sorts by name gets a scrambled volume.
        writer.SetFileName(str(folder / f"IM{(place * 7) % 101:03d}_{number}.dcm"))
        with own_locale():
            writer.Execute(plane)
    return folder
