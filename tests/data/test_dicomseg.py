"""DICOM SEG: read back by highdicom, it says the same of the same places in the patient."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import anatomy, dicomseg, phantoms, series, volume
from voxprior.errors import Refusal

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")
CLASSES = ["liver", "kidney_left", "odd_thing"]


def write_ct(folder, orientation="LPS", shape_zyx=(7, 12, 10), leave_out=()):
    """Writes a synthetic CT series with pydicom, files in another order than the slices: (files by place, voxels)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape_zyx).astype(np.int16)
    grid = phantoms.grid_of(shape_zyx, (3.0, 1.5, 1.25), orientation)
    matrix = np.reshape(grid.direction, (3, 3))
    study, one_series, frame, files = generate_uid(), generate_uid(), generate_uid(), []
    for place, plane in enumerate(voxels):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, one_series, frame
        data.Modality, data.PatientID, data.PatientName, data.SeriesNumber = "CT", "P1", "Doe^Jane", 4
        data.InstanceNumber = place + 1
        data.ImagePositionPatient = (np.array(grid.origin_xyz_mm) + matrix[:, 2] * 3.0 * place).tolist()
        data.ImageOrientationPatient = [*matrix[:, 0].tolist(), *matrix[:, 1].tolist()]
        data.PixelSpacing, data.SliceThickness = [1.5, 1.25], 3.0
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = plane.tobytes()
        for name in leave_out:
            delattr(data, name)
        files.append(folder / f"IM{(place * 5) % 11:02d}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files, voxels


def test_classes_that_overlap_are_segments_that_overlap(tmp_path):
    files, voxels = write_ct(tmp_path / "ct", "LPS")
    series.write(sorted((tmp_path / "ct").iterdir()), tmp_path / "ct.series.json", "ct")
    image = volume.read_scan(tmp_path / "ct.series.json")
    painted = np.zeros(voxels.shape, np.uint8)
    painted[1:4, 2:9, 2:9], painted[2, 4:7, 4:7] = 1, 2
    named = dicomseg.Classes(["whole", "core"], [[1], [1, 2]])
    ordered = series.files_of(tmp_path / "ct.series.json")
    dicomseg.write(volume.from_array(painted, volume.Grid.of(image)), named, ordered, "1", tmp_path / "seg.dcm")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    found = seg.get_volume(combine_segments=False).array
    assert [int(found[..., n].sum()) for n in (0, 1)] == [int((painted > 0).sum()), int((painted == 2).sum())]
    assert len(files) == voxels.shape[0]


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "tilted"])
def test_it_is_read_back_with_the_same_voxels_at_the_same_places(orientation, tmp_path):
    files, voxels = write_ct(tmp_path / "ct", orientation)
    series.write(sorted((tmp_path / "ct").iterdir()), tmp_path / "ct.series.json", "ct")
    image = volume.read_scan(tmp_path / "ct.series.json")
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[1:3, 2:9, 3:7], labels[2:5, 6, 1] = 1, 2  # of class 3 there is nothing
    ids = volume.from_array(labels, volume.Grid.of(image))
    ordered = series.files_of(tmp_path / "ct.series.json")
    assert [file.name for file in ordered] == [file.name for file in files]
    dicomseg.write(ids, dicomseg.Classes(CLASSES), ordered, "1.2", tmp_path / "seg.dcm")

    seg = hd.seg.segread(tmp_path / "seg.dcm")
    first = pydicom.dcmread(files[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert seg[name].value == first[name].value
    assert seg.SeriesInstanceUID != first.SeriesInstanceUID
    referred = {uid for _, _, uid in seg.get_source_image_uids()}
    assert referred <= {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2, 3)] == CLASSES
    # Voxels in the world, by highdicom's own geometry against SimpleITK's.
    found = seg.get_volume(combine_segments=True)
    places = found.map_indices_to_reference(np.argwhere(found.array > 0))
    there = [ids.TransformPhysicalPointToIndex(place.tolist()) for place in places]
    assert len(there) == np.count_nonzero(labels)
    assert [labels[z, y, x] for x, y, z in there] == found.array[found.array > 0].tolist()
    again = [ids.TransformIndexToPhysicalPoint(index) for index in there]
    np.testing.assert_allclose(places, again, atol=1e-4)


def test_each_frame_refers_to_the_slice_it_lies_on(tmp_path):
    files, voxels = write_ct(tmp_path / "ct")
    labels = np.zeros(voxels.shape, np.uint8)
    labels[3] = 1
    image = sitk.GetImageFromArray(labels)
    dicomseg.write(image, dicomseg.Classes(CLASSES), files, "1", tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    (source,) = frame.DerivationImageSequence[0].SourceImageSequence
    assert source.ReferencedSOPInstanceUID == pydicom.dcmread(files[3]).SOPInstanceUID


def test_names_become_codes(tmp_path):
    files, voxels = write_ct(tmp_path / "ct")
    image = sitk.GetImageFromArray((voxels > 0).astype(np.uint8))
    dicomseg.write(image, dicomseg.Classes(CLASSES), files, "1", tmp_path / "seg.dcm")
    liver, kidney, odd = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    kind = liver.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("10200004", "SCT", "Liver")
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    kind = odd.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodingSchemeDesignator == "99VOXPRIOR"
    assert kind.CodeMeaning == "odd thing"
    assert len(kind.CodeValue) <= 16
    assert liver.SegmentAlgorithmType == "AUTOMATIC"


def test_codes_of_other_names():
    assert anatomy.coded("liver_tumour").region.meaning == "Liver"
    assert anatomy.coded("liver_tumour").category.meaning == "Morphologically Abnormal Structure"
    assert anatomy.coded("vertebrae_T12").kind.meaning == "T12 vertebra"
    assert anatomy.coded("anterior").kind.scheme_designator == "99VOXPRIOR"
    assert anatomy.coded("a").kind.value != anatomy.coded("b").kind.value


def test_most_of_totalsegmentators_classes_have_a_code():
    import yaml

    dataset = Path(__file__).parents[2] / "config/datasets/totalsegmentator.yaml"
    found = [anatomy.coded(name) for name in yaml.safe_load(dataset.read_text())["classes"]]
    assert sum(one.kind.scheme_designator == "SCT" for one in found) == 107  # docs/predict.md says so
    assert len({(one.kind.value, one.side) for one in found}) > 90


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("FrameOfReferenceUID", r"\.dcm has no FrameOfReferenceUID"),
        ("PixelSpacing", r"ct cannot be referred to by a DICOM SEG \(.*PixelSpacing.*\): leave out"),
    ],
)
def test_slices_that_lack_what_a_seg_refers_to_are_refused(tmp_path, lacking, said):
    files, voxels = write_ct(tmp_path / "ct", leave_out=[lacking])
    labels = sitk.GetImageFromArray((voxels > 0).astype(np.uint8))
    with pytest.raises(Refusal, match=said):
        dicomseg.write(labels, dicomseg.Classes(CLASSES), files, "1", tmp_path / "s.dcm")
    assert not (tmp_path / "s.dcm").exists()


def test_a_scan_without_any_class_is_written_too(tmp_path):
    files, voxels = write_ct(tmp_path / "ct")
    dicomseg.write(
        sitk.GetImageFromArray(np.zeros(voxels.shape, np.uint8)),
        dicomseg.Classes(CLASSES),
        files,
        "1",
        tmp_path / "s.dcm",
    )
    assert not hd.seg.segread(tmp_path / "s.dcm").get_volume(combine_segments=True).array.any()


def test_without_highdicom_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dicomseg, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"pip install 'voxprior\[dicom\]'"):
        dicomseg.demand()
