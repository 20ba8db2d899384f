import pytest

from voxprior.data import incoming, phantoms, volume
from voxprior.errors import Refusal


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def cases(folder, count=1, leave_out=None):
    return {scan.case: scan for scan in incoming.list_scans(folder, count, leave_out or folder / "out")}


def test_files_below_a_folder_are_cases_named_by_their_path(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.NRRD", "ward/c.mha", "notes.txt", ".hidden.nii.gz", "out/b.nii.gz", "p.raw")
    assert list(cases(tmp_path)) == ["a", "b", "ward_c"]


def test_numbered_channels_are_joined_and_one_that_is_missing_is_a_defect(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "c.nii.gz")
    found = cases(tmp_path, 2)
    assert [file.name for file in found["a"].files] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert "channel 0001 is missing" in found["b"].defect
    assert len(found["c"].files) == 1
    with pytest.raises(Refusal, match="channel 0001 is missing"):
        found["b"].image(tmp_path)


def test_one_channel_called_0000_as_nnunet_does_loses_its_number_where_all_have_it(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz")
    assert list(cases(tmp_path)) == ["a", "b"]
    touch(tmp_path, "c_2020.nii.gz")
    assert list(cases(tmp_path)) == ["a_0000", "b_0000", "c_2020"]


def test_two_scans_of_one_name_are_both_refused(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nrrd", "b.nii.gz")
    found = incoming.list_scans(tmp_path, 1, tmp_path / "out")
    assert [(scan.case, bool(scan.defect)) for scan in found] == [("a", True), ("a", True), ("b", False)]


def test_series_of_a_folder_beside_files(tmp_path):
    voxels, _ = phantoms.make(1)
    image = volume.from_array(voxels, phantoms.grid_of(voxels.shape))
    for number in (1, 2):
        phantoms.write_series(tmp_path / "visit", image, number)
    touch(tmp_path, "a.nii.gz")
    found = cases(tmp_path)
    assert list(found) == ["a", "visit_s1", "visit_s2"]
    assert found["visit_s1"].is_series and len(found["visit_s1"].files) == len(voxels)
    read = volume.read_scan(found["visit_s2"].image(tmp_path / "lists"))
    assert read.GetSize() == image.GetSize()
    assert "has one channel" in cases(tmp_path, 2)["visit_s1"].defect


def test_the_hash_is_that_of_all_files(tmp_path):
    touch(tmp_path, "a.mhd", "a.raw")
    scan = cases(tmp_path)["a"]
    before = scan.sha256()
    assert scan.sha256() == before
    (tmp_path / "a.raw").write_bytes(b"other voxels")
    assert scan.sha256() != before


def test_nothing_there(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(Refusal, match="holds no scan"):
        cases(tmp_path)
    with pytest.raises(Refusal, match="is missing"):
        cases(tmp_path / "nowhere")
