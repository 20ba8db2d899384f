"""Label maps on the grid of their image: checks that one lies there, and merges a file per class into one.

Axes: Z Y X voxels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.data import volume
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.data.repairs import NEAR_VOX
from voxprior.errors import Refusal
from voxprior.maths import regions
from voxprior.whole import write_json


def fit(path: Path, label: volume.Grid, image: volume.Grid) -> list[str]:
    """Checks that a label map lies on its image, by where the corner voxels are in the world; names a repair.

    Raises:
        Refusal: another number of voxels, or a corner further away than `repairs.FAR_VOX`.
    """
    advice = "export both on one grid, or correct the header that is wrong"
    apart_mm = label.demand_same(path, image, "its image", advice)
    voxel_mm = min(image.spacing_xyz_mm)
    return [f"label geometry off by {apart_mm:.2g} mm, the image's is used"] if apart_mm > NEAR_VOX * voxel_mm else []


class Counted(NamedTuple):
    """A label map and how often each value from 0 to 65535 stands in it."""

    image: sitk.Image
    counts: np.ndarray[Any, Any]

    @classmethod
    def of(cls, image: sitk.Image) -> "Counted":
        """Counts the values of a label map."""
        return cls(image, count_values(image))


def count_values(label: sitk.Image) -> np.ndarray[Any, Any]:
    """Counts the voxels of every value from 0 to 65535, plane by plane."""
    counts = np.zeros(1 << 16, np.int64)
    for plane in sitk.GetArrayViewFromImage(label):
        found = np.bincount(plane.ravel())
        counts[: len(found)] += found
    return counts


def check_values(
    path: Path, counts: np.ndarray[Any, Any], classes: Mapping[str, Sequence[int]], ignore: Sequence[int] = ()
) -> list[str]:
    """Compares the values in a label map with the dataset's classes; names what becomes background.

    Args:
        path: the file, for the message.
        counts: voxels of each value, see `count_values`.
        classes: class name -> its values; empty: nothing is known of them.
        ignore: values that mean "not known".

    Raises:
        Refusal: values beside 0, and none of them belongs to a class: this is another dataset's map.
    """
    if not classes:
        return []
    known = {value for values in classes.values() for value in values} | set(ignore)
    present = [int(value) for value in np.flatnonzero(counts) if value]
    strange = [value for value in present if value not in known]
    if not present:
        return ["the label map is empty, every voxel is background"]
    shown = ", ".join(map(str, strange[:5])) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
    if len(strange) == len(present):
        raise Refusal(
            f"{path} holds the label values {shown} and none of the dataset's classes: correct 'classes' in the "
            "dataset's file, or the label map"
        )
    voxels = int(counts[strange].sum())
    return [f"label values of no class ({shown}; {voxels} voxels) read as background"] if strange else []


def to_own_values(labels_ZYX: np.ndarray[Any, Any], values: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """Turns the study's class ids back into the values of a dataset's own files: the inverse of preparing labels.

    Args:
        labels_ZYX: ids 0, 1, ..., K.
        values: `values[i]` lists the dataset's values of class i + 1. Of a class with several values the first is
            taken: which of them a voxel had cannot be known. Where classes overlap, the values of later ones are not
            taken, unless no other is left. A class that the dataset does not have becomes 0.

    Returns:
        uint8, or uint16 where a value needs it.
    """
    own = np.array([0, *own_values(values)])
    return own.astype(np.uint8 if own.max() <= 255 else np.uint16)[labels_ZYX]


def own_values(values: Sequence[Sequence[int]]) -> list[int]:
    """Says with which of a dataset's own values each class is written (see `to_own_values`); 0: it has none."""
    painted = regions.painted_values(values)
    return [(left or some or [0])[0] for some, left in zip(values, painted, strict=True)]


@dataclass(frozen=True)
class ClassFiles:
    """Makes one label map, `<folder>/<case>.nii.gz`, of a case's binary files, one per class.

    `values` names the value of each class in that map. Where files overlap, the class with the greatest value is kept.
    """

    folder: Path
    values: Mapping[str, int]

    @classmethod
    def of(cls, classes: Mapping[str, list[int]], folder: Path) -> "ClassFiles":
        """Takes the classes of a dataset.

        Raises:
            Refusal: a class has not exactly one value, or one above 255; two classes share a value.
        """
        for name, values in classes.items():
            if len(values) != 1 or not 1 <= values[0] <= 255:
                raise Refusal(
                    f"class {name} has the values {values}, and a layout with {{class}} needs one from 1 to 255: "
                    "correct 'classes' in the dataset's file"
                )
        taken = {values[0]: name for name, values in classes.items()}
        for name, values in classes.items():
            if taken[values[0]] != name:
                raise Refusal(
                    f"classes {name} and {taken[values[0]]} both have the value {values[0]}, and a layout with "
                    "{class} needs one of its own for each: correct 'classes' in the dataset's file"
                )
        # By value: cards sort their keys, so the order in the dataset's file does not come this far.
        return cls(folder, {name: value for value, name in sorted(taken.items())})

    def merge(self, case: str, files: Mapping[str, Path], image: volume.Grid) -> tuple[Path, list[str]]:
        """Merges the files of a case and returns the label map, on the image's grid, and the repairs.

        A label map that is whole and was merged from the same files is left alone: `<case>.json` beside it says so.

        Args:
            case: its name.
            files: one file per class in `values`; all must exist.
            image: grid of the case's image.

        Raises:
            Refusal: a file cannot be read as a label map, lies on another grid, or is not binary.
        """
        path, sidecar = self.folder / f"{case}.nii.gz", self.folder / f"{case}.json"
        hashes = {name: sha256_of(files[name]) for name in self.values}
        source = sha256_of_json([dict(self.values), hashes, image.to_json()])
        done = _read(sidecar)
        if done.get("source") == source and path.is_file() and sha256_of(path) == done["label_sha256"]:
            return path, done["repairs"]
        merged_ZYX, repairs = self._merge(files, image)
        volume.write_image(volume.from_array(merged_ZYX, image), path)
        write_json(sidecar, {"source": source, "label_sha256": sha256_of(path), "repairs": repairs})
        return path, repairs

    def _merge(self, files: Mapping[str, Path], image: volume.Grid) -> tuple[np.ndarray[Any, Any], list[str]]:
        merged_ZYX = np.zeros(image.shape_zyx, np.uint8)
        twice_ZYX = np.zeros(image.shape_zyx, bool)
        repairs: list[str] = []
        for name, value in self.values.items():
            label, repaired = volume.read_label(files[name])
            repairs += repaired + fit(files[name], volume.Grid.of(label), image)
            voxels_ZYX = sitk.GetArrayViewFromImage(label)
            inside_ZYX = voxels_ZYX != 0
            if not np.array_equal(inside_ZYX * voxels_ZYX.max(), voxels_ZYX):
                raise Refusal(
                    f"{files[name]} holds more than one value beside 0, and a file of one class must be binary: export "
                    "it again, or give the layout one label file without {class}"
                )
            twice_ZYX |= inside_ZYX & (merged_ZYX != 0)
            merged_ZYX[inside_ZYX] = value
        overlapping = int(np.count_nonzero(twice_ZYX))
        if overlapping:
            repairs.append(f"{overlapping} voxels in files of several classes, the class of the greatest value kept")
        return merged_ZYX, list(dict.fromkeys(repairs))


def _read(sidecar: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(sidecar.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
