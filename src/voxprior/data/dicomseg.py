"""DICOM SEG of a label map that lies on a DICOM series: one object, one segment per class, for a PACS.

Needs highdicom (`pip install voxprior[dicom]`), and nothing else of the package does.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.data import anatomy
from voxprior.errors import Refusal
from voxprior.maths.regions import union
from voxprior.whole import whole

MAKER = "voxprior"
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient")


class Classes(NamedTuple):
    """Names of classes 1 to K, and, where they overlap, to which each painted one belongs (`maths/regions.py`)."""

    names: Sequence[str]
    overlapping: Sequence[Sequence[int]] = ()

    def segments(self, ids_ZYX: Any) -> Any:
        """Makes what highdicom takes: a label map, or a map of each class behind one another, (Z, Y, X, K)."""
        if not self.overlapping:
            return np.ascontiguousarray(ids_ZYX)
        numbers = range(1, len(self.names) + 1)
        return np.stack([np.isin(ids_ZYX, union(self.overlapping, n)) for n in numbers], axis=-1).astype(np.uint8)


def demand() -> None:
    """Checks that DICOM SEG can be written.

    Raises:
        Refusal: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise Refusal("--dicom-seg needs highdicom, which is not installed: pip install 'voxprior[dicom]'")


def write(ids: sitk.Image, classes: Classes, slices: Sequence[Path], version: str, path: Path) -> None:
    """Writes a label map as a binary DICOM SEG, by rename.

    Segment n is class n, named as in the study, with SNOMED CT codes where `anatomy` knows them. Each frame refers to
    the slice it lies on; patient and study are the series'. A class without a voxel has a segment and no frame.

    Args:
        ids: label map, 0 to K, on the grid of the series.
        classes: 1 to K.
        slices: the series' files in the order of `ids`' slices.
        version: of the software.
        path: `….dcm`.

    Raises:
        Refusal: a slice lacks what a SEG refers to.
    """
    import highdicom as hd
    import pydicom

    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in slices]
    for source, file in zip(sources, slices, strict=True):
        lacking = next((name for name in NEEDED if not source.get(name)), None)
        if lacking:
            raise Refusal(f"{file} has no {lacking}, which a DICOM SEG must refer to: export the series again")
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            source.setdefault(name, "")  # type 2: must be there, may be empty
        for name in ("StudyDate", "StudyTime", "ReferringPhysicianName"):
            source.setdefault(name, "")
        if not source.get("SliceThickness"):
            source.SliceThickness = ids.GetSpacing()[2]
    try:
        seg = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=classes.segments(sitk.GetArrayViewFromImage(ids)),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, name, version) for number, name in enumerate(classes.names, 1)],
            series_instance_uid=hd.UID(),
            series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=version,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="Labels of a voxprior model; research use",
        )
    except (AttributeError, TypeError, ValueError) as error:
        # Whatever else the series lacks or holds in a form that DICOM does not allow.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(
            f"{slices[0].parent} cannot be referred to by a DICOM SEG ({reason}): leave out --dicom-seg"
        ) from None
    seg.SeriesDescription = f"Segmentation by {MAKER}, research use"
    with whole(path) as part:
        seg.save_as(part)


def _segment(number: int, name: str, version: str) -> Any:
    import highdicom as hd
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    of = anatomy.coded(name)
    algorithm = hd.AlgorithmIdentificationSequence(name=MAKER, family=codes.DCM.ArtificialIntelligence, version=version)
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=of.category,
        segmented_property_type=of.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=None if of.region is None else [of.region],
    )
    if of.side is not None:
        side = Dataset()
        side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning = of.side.value, "SCT", of.side.meaning
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return segment
