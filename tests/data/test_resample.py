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
    found = resample.resample_labels(labels, spacing, shape, new_spacing, slab=5)
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
