import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import phantoms, resample, volume


def by_simpleitk(array, spacing, shape, new_spacing, how):
    image = volume.from_array(array, phantoms.grid_of(array.shape, spacing))
    to = sitk.Image(*[int(n) for n in reversed(shape)], image.GetPixelID())
    to.SetSpacing(tuple(reversed(new_spacing)))
    to.SetOrigin(image.GetOrigin())
    to.SetDirection(image.GetDirection())
    return sitk.GetArrayFromImage(sitk.Resample(image, to, sitk.Transform(), how))


@pytest.mark.parametrize("new_spacing", [(3.0, 2.0, 2.0), (1.5, 1.5, 1.5), (4.0, 2.5, 1.0), (2.9, 2.1, 2.2)])
def test_linear_resampling_lies_on_simpleitks_grid(new_spacing):
    spacing = (3.0, 2.0, 2.0)
    voxels = phantoms.make(0)[0].astype(np.float32)
    found = resample.resample_image(voxels, spacing, new_spacing)
    expected = by_simpleitk(voxels, spacing, found.shape, new_spacing, sitk.sitkLinear)
    # Beyond the last centre SimpleITK writes 0 where we repeat the border.
    last = tuple(
        int(np.floor((n - 1) * s / new + 1e-6)) + 1
        for n, s, new in zip(voxels.shape, spacing, new_spacing, strict=True)
    )
    inside = tuple(slice(0, n) for n in last)
    assert np.abs(found[inside] - expected[inside]).max() < 0.01


def test_the_blur_before_coarse_sampling_keeps_the_mean_and_removes_noise():
    noise = np.random.default_rng(0).normal(100, 50, (40, 40, 40)).astype(np.float32)
    coarse = resample.resample_image(noise, (1.0, 1.0, 1.0), (3.0, 3.0, 3.0))
    assert abs(coarse.mean() - 100) < 2
    assert coarse.std() < 50 / 3  # plain linear sampling would keep all of it


def test_weights_sum_to_one_and_keep_a_ramp():
    for blur in (False, True):
        weights = resample.axis_weights(50, 0.7, 12, 3.0, blur)
        assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
        inside = slice(1, 11)
        assert np.allclose((weights @ (np.arange(50) * 0.7))[inside], (np.arange(12) * 3.0)[inside], atol=2e-2)


def test_equal_spacing_changes_nothing():
    voxels = phantoms.make(0)[0]
    assert np.array_equal(resample.resample_image(voxels, (3.0, 2.0, 2.0), (3.0, 2.0, 2.0)), voxels)


@pytest.mark.parametrize("new_spacing", [(1.5, 1.0, 1.0), (4.0, 2.5, 3.0), (1.7, 2.0, 1.3)])
def test_labels_equal_one_hot_linear(new_spacing):
    spacing = (3.0, 2.0, 2.0)
    labels = phantoms.make(3)[1]
    shape = resample.new_shape(labels.shape, spacing, new_spacing)
    found = resample.resample_labels(labels, spacing, shape, new_spacing)
    weights = [
        resample.axis_weights(n, s, m, new, blur=False)
        for n, s, m, new in zip(labels.shape, spacing, shape, new_spacing, strict=True)
    ]
    shares = np.stack(
        [
            np.einsum("az,by,cx,zyx->abc", *weights, (labels == number).astype(float), optimize=True)
            for number in range(4)
        ]
    )
    assert np.array_equal(found, np.argmax(shares - 2e-5 * np.arange(4)[:, None, None, None], axis=0))


def test_resampling_labels_does_not_mix_values():
    labels = np.zeros((10, 10, 10), np.uint16)
    labels[:5], labels[5:] = 1, 300  # a mean of both would be another class
    found = resample.resample_labels(labels, (2.0, 2.0, 2.0), (19, 19, 19), (1.0, 1.0, 1.0))
    assert set(np.unique(found)) == {1, 300}
    assert found.dtype == np.uint16


def test_taps_are_the_matrix():
    for blur in (False, True):
        weights = resample.axis_weights(50, 0.7, 12, 3.0, blur)
        first, weight = resample.taps(weights)
        back = np.zeros_like(weights)
        for row, (start, values) in enumerate(zip(first, weight, strict=True)):
            back[row, start : start + len(values)] = values
        assert np.abs(back - weights).max() < 2e-6
        assert weight.shape[1] == 2 if not blur else weight.shape[1] < 30


def test_any_strides_and_number_types_give_the_same():
    voxels = phantoms.make(2)[0]
    spacing, new_spacing = (3.0, 2.0, 2.0), (4.0, 1.5, 3.5)
    expected = resample.resample_image(voxels.astype(np.float32), spacing, new_spacing)
    turned = np.asfortranarray(voxels.astype(np.int16)[:, ::-1])[:, ::-1]
    assert not turned.flags.c_contiguous
    assert np.array_equal(resample.resample_image(turned, spacing, new_spacing), expected)
    weights = [
        resample.axis_weights(n, s, m, new, blur=True)
        for n, s, m, new in zip(voxels.shape, spacing, expected.shape, new_spacing, strict=True)
    ]
    direct = np.einsum("az,by,cx,zyx->abc", *weights, voxels.astype(float), optimize=True)
    assert np.abs(expected - direct).max() < 0.01


def test_stored_integers_are_the_rounded_result():
    voxels = phantoms.make(2)[0]
    spacing, new_spacing = (3.0, 2.0, 2.0), (2.0, 2.5, 3.5)

    def change(plane):
        return np.clip((plane + 1000) / 2000, 0, 1)

    exact = resample.resample_image(voxels, spacing, new_spacing, change)
    stored = resample.resample_image(voxels, spacing, new_spacing, change, quantum=1 / 4096)
    assert stored.dtype == np.int16
    assert np.abs(stored / 4096 - exact).max() <= 0.5001 / 4096


def test_label_values_are_looked_up_first():
    labels = phantoms.make(3)[1]
    spacing, new_spacing = (3.0, 2.0, 2.0), (2.0, 1.0, 3.0)
    shape = resample.new_shape(labels.shape, spacing, new_spacing)
    ids = np.array([0, 2, 2, 1] + [0] * 252, np.uint8)
    expected = resample.resample_labels(ids[labels], spacing, shape, new_spacing)
    assert np.array_equal(resample.resample_labels(labels, spacing, shape, new_spacing, ids), expected)


def test_many_values_meet_in_one_voxel():
    labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    found = resample.resample_labels(labels, (1.0, 1.0, 1.0), (5, 5, 5), (0.25, 0.25, 0.25))
    shares = np.array([np.linspace(1, 0, 5), np.linspace(0, 1, 5)])
    each = np.einsum("iz,jy,kx->ijkzyx", shares, shares, shares).reshape(8, 5, 5, 5)
    assert np.array_equal(found, np.argmax(each, axis=0))  # argmax too takes the first where several are equal
