"""Scans that somebody wants segmented: a file, a folder of files, a folder of DICOM series."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from voxprior.data import channels, dicom, series
from voxprior.data.entries import join_channels
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.data.volume import SUFFIXES, stem
from voxprior.errors import Refusal

NUMBERED = re.compile(r"(.+)_(\d{4})")  # nnU-Net's way: <case>_0000.nii.gz is the first channel
APART = (".mhd", ".nhdr")  # headers whose voxels lie in a file beside them


class Scan(NamedTuple):
    """One scan: `files` are its file, or one per channel, or the slices of a DICOM series (`is_series`).

    `defect` says why it cannot be segmented.
    """

    case: str
    files: tuple[Path, ...]
    is_series: bool = False
    defect: str = ""

    @property
    def name(self) -> str:
        """What a message calls it."""
        return str(self.files[0].parent if self.is_series else self.files[0])

    def sha256(self) -> str:
        """Names the content of its files."""
        beside = [other for file in self.files if file.suffix in APART for other in file.parent.glob(f"{stem(file)}.*")]
        return sha256_of_json([sha256_of(file) for file in (*self.files, *sorted(beside))])

    def image(self, folder: Path) -> str:
        """Says where to read it, as the case table does; the list of a series is written into `folder`.

        Raises:
            Refusal: it has a defect; a series' slices are not one volume.
        """
        if self.defect:
            raise Refusal(f"{self.name}: {self.defect}: mend or rename it")
        if not self.is_series:
            return channels.join([str(file) for file in self.files])
        listed = folder / f"{self.case}{series.SUFFIX}"
        series.write(self.files, listed, self.name)
        return str(listed)


def list_scans(given: Path, count: int, leave_out: Path) -> list[Scan]:
    """Lists the scans of a file or a folder with all below it, in the order of their names.

    A file's case is its name without the suffix, with the folders between it and `given` in front; channels in files of
    their own end with `_0000`, `_0001`, ...

    Args:
        given: a file or a folder.
        count: channels that a scan must have.
        leave_out: what lies below this folder is no input.

    Raises:
        Refusal: missing, or nothing in it could be a scan.
    """
    if given.is_file():
        return [Scan(stem(given), (given,))]
    if not given.is_dir():
        raise Refusal(f"{given} is missing: give a scan, a folder of scans or a folder of DICOM slices")
    files = [
        path.relative_to(given).as_posix()
        for path in sorted(given.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and leave_out.resolve() not in path.resolve().parents
    ]
    found = _volumes([file for file in files if file.lower().endswith(SUFFIXES)], given, count)
    rest = [file for file in files if not file.lower().endswith((*SUFFIXES, ".raw", ".zraw"))]
    found += _series(rest, given, count)
    if not found:
        raise Refusal(f"{given} holds no scan ({', '.join(SUFFIXES)} or DICOM): give the folder that does")
    claims = Counter(scan.case for scan in found)
    twice = "{} scans would have this name"
    return [
        scan if claims[scan.case] == 1 else scan._replace(defect=twice.format(claims[scan.case]))
        for scan in sorted(found, key=lambda scan: scan.case)
    ]


def _volumes(files: Sequence[str], root: Path, count: int) -> list[Scan]:
    """Lists image files; those of several channels are joined where their names are numbered."""
    names = {file: "_".join([*Path(file).parts[:-1], stem(file)]) for file in files}
    numbered = {file: hit for file, name in names.items() if (hit := NUMBERED.fullmatch(name))}
    if count == 1:
        plain = len(numbered) == len(names) and {hit[2] for hit in numbered.values()} == {"0000"}
        return [Scan(numbered[file][1] if plain else name, (root / file,)) for file, name in names.items()]
    alone = [Scan(name, (root / file,)) for file, name in names.items() if file not in numbered]
    joined = join_channels(
        [(hit[1], hit[2], file) for file, hit in numbered.items()], [f"{n:04d}" for n in range(count)]
    )
    return alone + [
        Scan(entry.case, tuple(root / file for file in entry.channels or (entry.image,)), defect=entry.defect)
        for entry in joined
    ]


def _series(files: Sequence[str], root: Path, count: int) -> list[Scan]:
    """Lists the DICOM series of each folder."""
    layout = SimpleNamespace(kind="dicom", root=".", images=None, labels=None)
    entries = dicom.dicom(layout, root, list(files), (), ())
    only = f"a DICOM series has one channel and the model takes {count}" if count > 1 else ""
    return [
        Scan(entry.case, tuple(root / file for file in entry.slices or (entry.image,)), True, entry.defect or only)
        for entry in entries
    ]
