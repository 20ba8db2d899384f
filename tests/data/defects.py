"""The corpus of bad input: scans, labels and folders that are broken in one way each, made by code.

`python tests/data/defects.py --table docs/results/bad_input.csv` runs `voxprior intake` (or `fetch`) on each of them
and writes what it says. `test_defects.py` runs the same and compares.

Each dataset holds a good case and a bad one: the good one must always get through.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

SHAPE_ZYX = (12, 14, 13)
SPACING_XYZ_MM = (2.0, 2.0, 3.0)
COLUMNS = ("defect", "outcome", "exit", "says", "picture")
PLAIN = {"kind": "folder", "images": "images/{case}.nii.gz", "labels": "labels/{case}.nii.gz"}
GOOD = "a_good"  # before `bad` in the order of names: of twins the first is kept
CLASSES = {"one": [1], "two": [2], "three": [3]}


class Defect(NamedTuple):
    """One way to be broken.

    `make` changes a whole dataset (folder with `images/` and `labels/`, cases `a_good` and `bad`) before it is fetched,
    `after` between fetching and intake. `outcome`: accepted, repaired, quarantined, refused (the whole command).
    """

    name: str
    outcome: str
    make: Callable[[Path], None]
    layout: dict[str, Any] = PLAIN
    classes: dict[str, list[int]] = CLASSES
    after: Callable[[Path], None] | None = None
    patient: str | None = None
    archive: str = ""
    channels: tuple[str, ...] = ("image",)


class Seen(NamedTuple):
    """What the command line did with it."""

    outcome: str
    exit: int
    says: str
    picture: bool
    seconds: float
    output: str


DEFECTS: list[Defect] = []


def defect(name: str, outcome: str, **more: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Adds what is decorated to the corpus."""

    def add(make: Callable[[Path], None]) -> Callable[[Path], None]:
        DEFECTS.append(Defect(name, outcome, make, **more))
        return make

    return add


# ------------------------------------------------------------------------------------------------- making files
def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    from voxprior.data import phantoms

    return phantoms.make(seed, SHAPE_ZYX)


def save(path: Path, array: np.ndarray, **changes: Any) -> Path:
    """Writes an array with the corpus's geometry, or another spacing, origin or direction."""
    image = sitk.GetImageFromArray(array, isVector=changes.get("vector", False))
    if image.GetDimension() == 3:
        image.SetSpacing(changes.get("spacing", SPACING_XYZ_MM))
        image.SetOrigin(changes.get("origin", (-10.0, 20.0, 30.0)))
        image.SetDirection(changes.get("direction", (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def bad_scan(folder: Path) -> Path:
    return folder / "images" / "bad.nii.gz"


def bad_label(folder: Path) -> Path:
    return folder / "labels" / "bad.nii.gz"


def poke(path: Path, *fields: tuple[int, str, Any]) -> Path:
    """Changes fields of a NIfTI-1 header: (byte, struct format, values)."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset, form, values in fields:
        struct.pack_into("<" + form, content, offset, *np.atleast_1d(values).tolist())
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def sform(path: Path, change: Callable[[np.ndarray], np.ndarray | None], qform: bool) -> None:
    """Changes the sform; without `qform` the file has none."""
    rows = np.array(struct.unpack_from("<12f", gzip.decompress(path.read_bytes()), 280)).reshape(3, 4)
    changed = change(rows)
    poke(path, (280, "12f", (rows if changed is None else changed).ravel()), (252, "h", int(qform)))


def write_dataset(folder: Path) -> None:
    """Writes a dataset of two good cases, one of them called `bad`."""
    for seed, case in enumerate((GOOD, "bad")):
        voxels, labels = phantom(seed)
        save(folder / "images" / f"{case}.nii.gz", voxels)
        save(folder / "labels" / f"{case}.nii.gz", labels)


# ------------------------------------------------------------------------------------------------- what voxels hold
@defect("NaN", "quarantined")
def _(folder):
    voxels = phantom(1)[0].astype("f4")
    voxels[3, 4, 5:9] = np.nan
    save(bad_scan(folder), voxels)


@defect("infinite", "quarantined")
def _(folder):
    voxels = phantom(1)[0].astype("f8")
    voxels[3, 4, 5] = -np.inf
    save(bad_scan(folder), voxels)


@defect("all zero", "quarantined")
def _(folder):
    save(bad_scan(folder), np.zeros(SHAPE_ZYX, "i2"))


@defect("constant", "quarantined")
def _(folder):
    save(bad_scan(folder), np.full(SHAPE_ZYX, -1024, "i2"))


@defect("complex numbers", "quarantined")
def _(folder):
    save(bad_scan(folder), phantom(1)[0].astype("c8"))


# ------------------------------------------------------------------------------------------------- how many axes
@defect("2-D", "quarantined")
def _(folder):
    save(bad_scan(folder), phantom(1)[0][6])


@defect("4-D, two frames", "quarantined")
def _(folder):
    image = sitk.GetImageFromArray(phantom(1)[0])
    sitk.WriteImage(sitk.JoinSeries([image, image + 1]), str(bad_scan(folder)))


@defect("4-D, one frame", "accepted")
def _(folder):
    x, y, z = SHAPE_ZYX[::-1]
    poke(bad_scan(folder), (40, "8h", (4, x, y, z, 1, 1, 1, 1)))


@defect("5-D", "quarantined")
def _(folder):
    x, y, z = SHAPE_ZYX[::-1]
    poke(bad_scan(folder), (40, "8h", (5, x, y, z // 2, 1, 2, 1, 1)))


@defect("colours", "quarantined")
def _(folder):
    save(bad_scan(folder), np.stack([phantom(1)[1]] * 3, -1), vector=True)


@defect("one slice", "quarantined")
def _(folder):
    save(bad_scan(folder), phantom(1)[0][6:7])


# ------------------------------------------------------------------------------------------------- spacing
for _name, _value in [("zero", 0.0), ("negative", -2.0), ("NaN", np.nan), ("huge", 3000.0), ("tiny (metres)", 0.002)]:
    DEFECTS.append(
        Defect(f"spacing {_name}", "quarantined", lambda folder, v=_value: poke(bad_scan(folder), (80, "f", v)))
    )


@defect("two spacings in one header", "quarantined")
def _(folder):
    sform(bad_scan(folder), lambda rows: rows * [[1.5, 1, 1, 1]], qform=False)


@defect("two spacings, 0.5 % apart", "repaired")
def _(folder):
    sform(bad_scan(folder), lambda rows: rows * [[1.005, 1, 1, 1]], qform=False)


# ------------------------------------------------------------------------------------------------- direction
TILTED = (1, 0, 0, 0, 0.96, -0.28, 0, 0.28, 0.96)
for _name, _direction in [
    ("left-handed", (1, 0, 0, 0, -1, 0, 0, 0, 1)),
    ("axes exchanged", (0, 0, -1, 1, 0, 0, 0, -1, 0)),
    ("tilted by 16 degrees", TILTED),
]:

    def _turn(folder, direction=_direction):  # fmt: skip
        for kind, array in zip(("images", "labels"), phantom(1), strict=True):
            save(folder / kind / "bad.nii.gz", array, direction=direction)

    DEFECTS.append(Defect(_name, "accepted", _turn))


def shear(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: rows + np.array([[0, rows[1, 1] * np.tan(np.radians(degrees)), 0, 0], [0] * 4, [0] * 4])


def shear_both(folder: Path, degrees: float, qform: bool) -> None:
    for path in (bad_scan(folder), bad_label(folder)):
        sform(path, shear(degrees), qform)


@defect("sheared by 0.4 degrees", "repaired")
def _(folder):
    shear_both(folder, 0.4, qform=False)


@defect("sheared by 0.4 degrees, right qform", "repaired")
def _(folder):
    shear_both(folder, 0.4, qform=True)


@defect("sheared by 14 degrees", "quarantined")
def _(folder):
    shear_both(folder, 14.0, qform=False)


def save_mha(folder: Path, matrix: str, cut: int | None = None) -> None:
    """Writes the bad case as MetaImage, with another matrix in its header."""
    path = save(folder / "images" / "bad.mha", phantom(1)[0])
    bad_scan(folder).unlink()
    content = path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = " + matrix.encode())
    path.write_bytes(content[:cut])


ANY = {**PLAIN, "images": "images/{case}.*"}


@defect("MetaImage sheared by 0.3 degrees", "repaired", layout=ANY)
def _(folder):
    save_mha(folder, "1 0 0 0.005 0.9999875 0 0 0 1")


@defect("MetaImage sheared by 30 degrees", "quarantined", layout=ANY)
def _(folder):
    save_mha(folder, "1 0 0 0.5 0.8660254 0 0 0 1")


@defect("direction of length 2", "quarantined", layout=ANY)
def _(folder):
    save_mha(folder, "2 0 0 0 1 0 0 0 1")


@defect("direction with two equal axes", "quarantined", layout=ANY)
def _(folder):
    save_mha(folder, "1 0 0 1 0 0 0 0 1")


@defect("sform of zeros", "quarantined")
def _(folder):
    sform(bad_scan(folder), lambda rows: rows * 0, qform=False)


@defect("sform with NaN", "quarantined")
def _(folder):
    sform(bad_scan(folder), lambda rows: rows * [[np.nan, 1, 1, 1]], qform=True)


@defect("origin NaN", "quarantined")
def _(folder):
    poke(bad_scan(folder), (254, "h", 0), (268, "f", np.nan))


@defect("sform and qform exchange left and right", "quarantined")
def _(folder):
    sform(bad_scan(folder), lambda rows: rows * [[-1], [1], [1]], qform=True)


@defect("sform and qform 40 mm apart", "repaired")
def _(folder):
    for path in (bad_scan(folder), bad_label(folder)):
        sform(path, lambda rows: rows + np.array([0, 0, 0, 40]), qform=True)


@defect("neither sform nor qform", "repaired")
def _(folder):
    for path in (bad_scan(folder), bad_label(folder)):
        poke(path, (252, "2h", (0, 0)))


# ------------------------------------------------------------------------------------------------- damaged files
@defect("zero bytes", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(b"")


@defect("truncated gzip", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(bad_scan(folder).read_bytes()[:2000])


@defect("gzip cut in the header", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(bad_scan(folder).read_bytes()[:60])


@defect("one bit flipped", "quarantined")
def _(folder):
    content = bytearray(bad_scan(folder).read_bytes())
    content[len(content) // 2] ^= 0x10
    bad_scan(folder).write_bytes(bytes(content))


@defect("whole gzip, too few voxels", "quarantined")
def _(folder):
    content = gzip.decompress(bad_scan(folder).read_bytes())
    bad_scan(folder).write_bytes(gzip.compress(content[:-700]))


@defect("a header that announces a terabyte", "quarantined")
def _(folder):
    poke(bad_scan(folder), (40, "8h", (3, 8000, 8000, 8000, 1, 1, 1, 1)))


@defect("plain NIfTI, truncated", "quarantined", layout=ANY)
def _(folder):
    content = gzip.decompress(bad_scan(folder).read_bytes())
    bad_scan(folder).unlink()
    (folder / "images" / "bad.nii").write_bytes(content[:-700])


@defect("wrong magic", "quarantined")
def _(folder):
    poke(bad_scan(folder), (344, "4B", tuple(b"xyz\0")))


@defect("magic of a pair of files", "quarantined")
def _(folder):
    poke(bad_scan(folder), (344, "4B", tuple(b"ni1\0")))


@defect("text in a gzip", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(gzip.compress(b"patient,age\n1,40\n" * 99))


@defect("text called .nii.gz", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(b"patient,age\n1,40\n" * 99)


@defect("a picture called .nii", "quarantined", layout=ANY)
def _(folder):
    sitk.WriteImage(sitk.GetImageFromArray(phantom(1)[1][6]), str(folder / "p.png"))
    bad_scan(folder).unlink()
    (folder / "p.png").rename(folder / "images" / "bad.nii")


@defect("a zip called .nii.gz", "quarantined")
def _(folder):
    with zipfile.ZipFile(bad_scan(folder), "w") as content:
        content.writestr("scan.nii", b"x" * 999)


@defect("NIfTI called .nii.gz that is not compressed", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes(gzip.decompress(bad_scan(folder).read_bytes()))


@defect("MetaImage, truncated", "quarantined", layout=ANY)
def _(folder):
    save_mha(folder, "1 0 0 0 1 0 0 0 1", cut=1500)


MHD = {**PLAIN, "images": "images/{case}.mhd", "labels": "labels/{case}.nii.gz"}


@defect("MetaImage without its voxels", "quarantined", layout=MHD)
def _(folder):
    for seed, case in enumerate((GOOD, "bad")):
        save(folder / "images" / f"{case}.mhd", phantom(seed)[0])
    next((folder / "images").glob("bad.*raw")).unlink()


@defect("NRRD, wrong magic", "quarantined", layout=ANY)
def _(folder):
    path = save(folder / "images" / "bad.nrrd", phantom(1)[0])
    bad_scan(folder).unlink()
    path.write_bytes(b"XXXX" + path.read_bytes()[4:])


@defect("NRRD, truncated", "quarantined", layout=ANY)
def _(folder):
    path = save(folder / "images" / "bad.nrrd", phantom(1)[0])
    bad_scan(folder).unlink()
    path.write_bytes(path.read_bytes()[:1500])


@defect("NaN in NRRD", "quarantined", layout=ANY)
def _(folder):
    voxels = phantom(1)[0].astype("f4")
    voxels[0, 0, 0] = np.nan
    save(folder / "images" / "bad.nrrd", voxels)
    bad_scan(folder).unlink()


def nothing(folder: Path) -> None:
    """Leaves the dataset as it is: the defect comes after it was fetched."""


def _loop(folder: Path) -> None:
    bad_scan(folder).unlink()
    bad_scan(folder).symlink_to(bad_scan(folder).name)


def _dangling(folder: Path) -> None:
    bad_scan(folder).unlink()
    bad_scan(folder).symlink_to("gone.nii.gz")


def _folder(folder: Path) -> None:
    bad_scan(folder).unlink()
    bad_scan(folder).mkdir()


DEFECTS += [
    Defect("missing since it was fetched", "quarantined", nothing, after=lambda folder: bad_scan(folder).unlink()),
    Defect("not readable", "quarantined", nothing, after=lambda folder: bad_scan(folder).chmod(0)),
    Defect("a link to itself", "quarantined", nothing, after=_loop),
    Defect("a link to nothing", "quarantined", nothing, after=_dangling),
    Defect("a folder of that name", "quarantined", nothing, after=_folder),
]


# ------------------------------------------------------------------------------------------------- labels
@defect("labels int64", "accepted")
def _(folder):
    save(bad_label(folder), phantom(1)[1].astype("i8"))


@defect("labels float64", "repaired")
def _(folder):
    save(bad_label(folder), phantom(1)[1].astype("f8"))


@defect("labels with fractions", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1] * np.float32(0.5))


@defect("labels NaN", "quarantined")
def _(folder):
    labels = phantom(1)[1].astype("f4")
    labels[0, 0, 0] = np.nan
    save(bad_label(folder), labels)


@defect("labels negative", "quarantined")
def _(folder):
    save(bad_label(folder), -phantom(1)[1].astype("i2"))


@defect("labels beyond 65535", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1].astype("i4") * 40_000)


@defect("labels 0 2 5", "accepted", classes={"one": [2], "two": [5]})
def _(folder):
    for seed, case in enumerate((GOOD, "bad")):
        save(folder / "labels" / f"{case}.nii.gz", np.array([0, 2, 5, 2], "u1")[phantom(seed)[1]])


@defect("a label value of no class", "repaired")
def _(folder):
    labels = phantom(1)[1]
    labels[2, 3, 3:8] = 7
    save(bad_label(folder), labels)


@defect("only label values of no class", "quarantined")
def _(folder):
    save(bad_label(folder), np.where(phantom(1)[1] > 0, 255, 0).astype("u1"))


@defect("empty labels", "repaired")
def _(folder):
    save(bad_label(folder), np.zeros(SHAPE_ZYX, "u1"))


@defect("labels of another shape", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1][:, :, 1:])


@defect("labels of another spacing", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1], spacing=(2.0, 2.0, 3.5))


@defect("labels 0.1 mm beside", "repaired")
def _(folder):
    save(bad_label(folder), phantom(1)[1], origin=(-9.9, 20.0, 30.0))


@defect("labels 10 mm beside", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1], origin=(-10.0, 20.0, 40.0))


@defect("labels upside down", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1], direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))


@defect("labels of zero bytes", "quarantined")
def _(folder):
    bad_label(folder).write_bytes(b"")


@defect("labels truncated", "quarantined")
def _(folder):
    bad_label(folder).write_bytes(bad_label(folder).read_bytes()[:-30])


@defect("labels 2-D", "quarantined")
def _(folder):
    save(bad_label(folder), phantom(1)[1][6])


PER_CLASS = {"kind": "folder", "images": "images/{case}.nii.gz", "labels": "labels/{case}/{class}.nii.gz"}


def per_class(folder: Path, skip: str = "", change: str = "") -> None:
    for seed, case in enumerate((GOOD, "bad")):
        labels = phantom(seed)[1]
        for number, name in enumerate(CLASSES, 1):
            wrong = case == "bad" and name == change
            if case == GOOD or name != skip:
                save(folder / "labels" / case / f"{name}.nii.gz", labels if wrong else (labels == number).astype("u1"))


@defect("no file of one class", "quarantined", layout=PER_CLASS)
def _(folder):
    per_class(folder, skip="two")


@defect("a class's file with several values", "quarantined", layout=PER_CLASS)
def _(folder):
    per_class(folder, change="two")


# ------------------------------------------------------------------------------------------------- which file is which
@defect("no label", "accepted")
def _(folder):
    bad_label(folder).unlink()


@defect("no image", "quarantined")
def _(folder):
    bad_scan(folder).unlink()


@defect("listed and missing", "quarantined", layout={"kind": "decathlon"})
def _(folder):
    bad_scan(folder).unlink()
    pairs = [{"image": f"./images/{c}.nii.gz", "label": f"./labels/{c}.nii.gz"} for c in (GOOD, "bad")]
    (folder / "dataset.json").write_text(json.dumps({"training": pairs}))


@defect("two scans of one name", "quarantined", layout={**PLAIN, "images": "images/**/{case}.nii.gz"})
def _(folder):
    save(folder / "images" / "again" / "bad.nii.gz", phantom(7)[0])


@defect("two labels of one name", "quarantined", layout={**PLAIN, "labels": "labels/**/{case}.nii.gz"})
def _(folder):
    save(folder / "labels" / "again" / "bad.nii.gz", phantom(1)[1])


@defect("a copy of another case", "quarantined")
def _(folder):
    bad_scan(folder).write_bytes((folder / "images" / "a_good.nii.gz").read_bytes())


@defect("a copy of another case, mirrored, as float64", "quarantined")
def _(folder):
    mirrored = {"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1), "origin": (14.0, 20.0, 30.0)}
    save(bad_scan(folder), phantom(0)[0][:, :, ::-1].astype("f8"), **mirrored)
    save(bad_label(folder), phantom(0)[1][:, :, ::-1], **mirrored)


@defect("a name that shows no patient", "quarantined", patient="^(a_good)$")
def _(folder):
    nothing(folder)


def rename(folder: Path, name: str) -> None:
    for path in (bad_scan(folder), bad_label(folder)):
        (path.parent / name).parent.mkdir(exist_ok=True)
        path.rename(path.parent / name)


for _name, _file in {
    "name with umlauts and other letters": "Müller-扫描-Ωμέγα.nii.gz",
    "name with spaces, quotes and commas": 'it\'s "the", second scan.nii.gz',
    "name of 240 letters": "x" * 233 + ".nii.gz",
}.items():
    DEFECTS.append(Defect(_name, "accepted", lambda folder, file=_file: rename(folder, file)))


@defect("path of 1,400 letters", "accepted", layout={**PLAIN, "images": "**/{case}.nii.gz", "labels": None})
def _(folder):
    deep = folder.joinpath(*["y" * 200] * 7)
    deep.mkdir(parents=True)
    bad_scan(folder).rename(deep / "bad.nii.gz")
    for label in (folder / "labels").iterdir():
        label.unlink()


# ------------------------------------------------------------------------------------------------- DICOM series
SERIES = {"kind": "dicom", "images": "dicom/{case}"}


def series_of(folder: Path, seed: int, name: str, **more: Any) -> Path:
    """Writes a phantom as a series, `IM<place>.dcm` below `dicom/<name>`."""
    from voxprior.data import phantoms, volume

    image = volume.from_array(phantom(seed)[0], phantoms.grid_of(SHAPE_ZYX, orientation=more.pop("axes", "LPS")))
    return phantoms.write_series(folder / "dicom" / name, image[more.pop("cut", slice(None)), :, :], **more)


def both_series(folder: Path, **more: Any) -> list[Path]:
    """Writes a good series and another one: the other one's files in the order of their slices."""
    series_of(folder, 0, GOOD)
    return sorted(series_of(folder, 1, "bad", number=2, **more).iterdir())


@defect("DICOM, two series in one folder", "accepted", layout=SERIES)
def _(folder):
    both_series(folder)
    series_of(folder, 2, "bad", number=3)


@defect("DICOM, a slice is missing", "quarantined", layout=SERIES)
def _(folder):
    both_series(folder, leave_out=5)


@defect("DICOM, a slice stands twice", "quarantined", layout=SERIES)
def _(folder):
    files = both_series(folder)
    files[3].with_name("copy.dcm").write_bytes(files[3].read_bytes())


@defect("DICOM, slices of two sizes under one UID", "quarantined", layout=SERIES)
def _(folder):
    files = both_series(folder)
    other = sorted(series_of(folder, 1, "other", number=2, cut=slice(0, 9)).iterdir())
    files[-1].write_bytes(other[-1].read_bytes())
    for path in other:
        path.unlink()


@defect("DICOM, slices of two orientations under one UID", "quarantined", layout=SERIES)
def _(folder):
    files = both_series(folder)
    other = sorted(series_of(folder, 1, "other", number=2, axes="tilted").iterdir())
    files[-1].write_bytes(other[-1].read_bytes())
    for path in other:
        path.unlink()


@defect("DICOM, a slice of zeros", "quarantined", layout=SERIES)
def _(folder):
    both_series(folder)[2].write_bytes(b"\0" * 300)


@defect("DICOM, a slice cut off", "quarantined", layout=SERIES)
def _(folder):
    path = both_series(folder)[2]
    path.write_bytes(path.read_bytes()[:-200])


@defect("DICOM, one slice only", "quarantined", layout=SERIES)
def _(folder):
    for path in both_series(folder)[1:]:
        path.unlink()


# ------------------------------------------------------------------------------------------------- channels
def four_d(path: Path, *channels: np.ndarray) -> Path:
    """Writes channels along a fourth axis."""
    images = [sitk.GetImageFromArray(channel.astype("f4")) for channel in channels]
    for image in images:
        image.SetSpacing(SPACING_XYZ_MM)
    sitk.WriteImage(sitk.JoinSeries(images), str(path), useCompression=True)
    return path


def both_channels(folder: Path) -> Path:
    """Gives both cases two channels along a fourth axis, without labels: the bad one's file."""
    for seed, case in enumerate((GOOD, "bad")):
        voxels = phantom(seed)[0]
        four_d(folder / "images" / f"{case}.nii.gz", voxels, voxels[::-1])
        (folder / "labels" / f"{case}.nii.gz").unlink()
    return bad_scan(folder)


TWO = ("first", "second")


@defect("two channels, along a fourth axis", "accepted", channels=TWO)
def _(folder):
    both_channels(folder)


@defect("two channels, truncated gzip", "quarantined", channels=TWO)
def _(folder):
    path = both_channels(folder)
    path.write_bytes(path.read_bytes()[:-40])


@defect("two channels, NaN in the second", "quarantined", channels=TWO)
def _(folder):
    voxels = phantom(1)[0].astype("f4")
    broken = voxels.copy()
    broken[2, 3, 4] = np.nan
    four_d(both_channels(folder), voxels, broken)


@defect("two channels, the second is constant", "quarantined", channels=TWO)
def _(folder):
    voxels = phantom(1)[0]
    four_d(both_channels(folder), voxels, np.zeros_like(voxels))


@defect("two channels, three in the file", "quarantined", channels=TWO)
def _(folder):
    voxels = phantom(1)[0]
    four_d(both_channels(folder), voxels, voxels[::-1], voxels)


@defect("two channels, a spacing of zero", "quarantined", channels=TWO)
def _(folder):
    poke(both_channels(folder), (80, "f", 0.0))


# ------------------------------------------------------------------------------------------------- whole datasets
@defect("no case at all", "refused")
def _(folder):
    (folder / "images").rename(folder / "scans")
    (folder / "labels").rename(folder / "masks")


@defect("no case that can be used", "refused")
def _(folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")


@defect("dataset.json is no JSON", "refused", layout={"kind": "decathlon"})
def _(folder):
    (folder / "dataset.json").write_text("{'training': []")


# Each archive lies beside the folder and is fetched as a mirror holds it.
@defect("archive with a member ../", "refused", archive="scans.tar")
def _(folder):
    with tarfile.open(folder / "scans.tar", "w") as tar:
        info = tarfile.TarInfo("../outside.nii.gz")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))


@defect("archive with a link", "refused", archive="scans.tar")
def _(folder):
    with tarfile.open(folder / "scans.tar", "w") as tar:
        info = tarfile.TarInfo("images/bad.nii.gz")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hosts"
        tar.addfile(info)


@defect("archive bomb", "refused", archive="scans.zip")
def _(folder):
    with zipfile.ZipFile(folder / "scans.zip", "w") as content:
        content.writestr("images/bad.nii", b"")
    written = bytearray((folder / "scans.zip").read_bytes())
    struct.pack_into("<I", written, written.index(b"PK\1\2") + 24, 0xF0000000)  # announces 4 GB
    (folder / "scans.zip").write_bytes(bytes(written))


@defect("archive truncated", "refused", archive="scans.zip")
def _(folder):
    with zipfile.ZipFile(folder / "scans.zip", "w") as content:
        content.write(bad_scan(folder), "images/bad.nii.gz")
    (folder / "scans.zip").write_bytes((folder / "scans.zip").read_bytes()[:900])


# ------------------------------------------------------------------------------------------------- running
@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """Gives up the rights of root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def command(*arguments: str) -> tuple[int, str]:
    """Runs the command line in this process: (exit code, all that it printed)."""
    from voxprior.__main__ import main

    said, before = io.StringIO(), sys.argv
    sys.argv = ["voxprior", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return int(code), said.getvalue()


def run(one: Defect, place: Path) -> Seen:
    """Makes the dataset in an empty folder, which must be the working folder, and shows it to the command line."""
    from voxprior.data.manifest import write_manifest

    folder = Path("scans")
    write_dataset(folder)
    one.make(folder)
    began = time.monotonic()
    if one.archive:
        source = {"kind": "url", "file": one.archive, "accepts": [{}]}
        Path("card.json").write_text(json.dumps({"dataset": "own", "source": source}))
        code, said = command("fetch", "--card", "card.json", "--output", "raw/own/manifest.json", "--mirror", "scans")
        return _judge(one, code, said, time.monotonic() - began)
    write_manifest(Path("raw/manifest.json"), "own", folder, [])
    if one.after:
        one.after(folder)
    card = {"dataset": "own", "layout": one.layout, "classes": one.classes, "patient": one.patient}
    card |= {"channels": one.channels}
    Path("card.json").write_text(json.dumps(card))
    Path("intake").mkdir(mode=0o777)
    for open_to_all in (place, Path("intake")):
        os.chmod(open_to_all, 0o777)
    options = {"card": "card.json", "manifest": "raw/manifest.json"}
    options |= {name: f"intake/{name}.csv" for name in ("cases", "quarantine")}
    if one.name == "not readable":
        _load_all(card, options)
    with somebody() if one.name == "not readable" else contextlib.nullcontext():
        code, said = command("intake", *[word for name, path in options.items() for word in (f"--{name}", path)])
    return _judge(one, code, said, time.monotonic() - began)


def _load_all(card: dict[str, Any], options: dict[str, str]) -> None:
    """Shows another bad dataset to the command line: somebody without rights may not import what it imports."""
    from voxprior.data.manifest import write_manifest

    here, other = Path.cwd(), Path("other")
    other.mkdir()
    os.chdir(other)
    try:
        write_dataset(Path("scans"))
        bad_scan(Path("scans")).write_bytes(b"")
        write_manifest(Path("raw/manifest.json"), "own", Path("scans"), [])
        Path("card.json").write_text(json.dumps(card))
        command("intake", *[word for name, path in options.items() for word in (f"--{name}", path)])
    finally:
        os.chdir(here)


def _judge(one: Defect, code: int, said: str, seconds: float) -> Seen:
    """Tells from the tables what happened to the bad case."""
    here = Path.cwd().resolve().as_posix() + "/"
    if code:
        last = said.strip().splitlines()[-1].replace(here, "")
        return Seen("refused", code, last.removeprefix("voxprior: "), False, seconds, said)
    cases, aside = (_table(f"intake/{name}.csv") for name in ("cases", "quarantine"))
    if GOOD not in [row["case"] for row in cases]:
        return Seen("good case lost", code, "", False, seconds, said)
    if aside:
        row = aside[0]
        picture = bool(row.get("picture")) and Path(row["picture"]).is_file()
        says = f"{row['file']} {row['defect']}: {row['advice']}".replace(here, "")
        return Seen("quarantined", code, says, picture, seconds, said)
    repairs = next(row["repairs"] for row in cases if row["case"] != GOOD)
    return Seen("repaired" if repairs else "accepted", code, repairs, False, seconds, said)


def _table(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row_of(one: Defect, seen: Seen) -> dict[str, str]:
    """Writes one row of the table."""
    says = seen.says if len(seen.says) <= 400 else seen.says[:200] + " ... " + seen.says[-190:]
    picture = "yes" if seen.picture else ""
    return dict(zip(COLUMNS, (one.name, seen.outcome, str(seen.exit), says, picture), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    table = parser.parse_args().table.resolve()
    rows, before = [], Path.cwd()
    for one in DEFECTS:
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o777)
            os.chdir(place)
            seen = run(one, Path(place))
            os.chdir(before)
        rows.append(row_of(one, seen))
        wrong = "" if seen.outcome == one.outcome else f"  <- expected {one.outcome}"
        print(f"{seen.seconds:5.2f} s  {one.name}: {seen.outcome} {seen.says}{wrong}")
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
