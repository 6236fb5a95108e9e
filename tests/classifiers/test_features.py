"""What the classifier sees of a masked window."""

import numpy as np
import pytest
import torch

from classifiers import features as features_module
from classifiers.features import N_POWERS, append_relative_power, subtract_block_median
from classifiers.filtered import filter_windows, spatial_filters

SHAPE, MARGIN = (45, 7, 30), 8
N_CHANNELS = 12


def all_features(x, residuals, filters):
    windows = filter_windows(*map(torch.from_numpy, (x, residuals, filters)), SHAPE, MARGIN)
    return features_module.spike_features(windows).numpy()


def spike_features(x, residuals, filters):
    """Without those of durations, which have a test of their own."""
    return np.delete(all_features(x, residuals, filters), [*range(5, 13), *range(-21, 0)], axis=1)


@pytest.fixture
def planted():
    """Windows of noise with a wave of one field in sub-window 3 of the first; the residual is the signal itself."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal((3, N_CHANNELS, 300))
    wave = np.exp(-0.5 * ((np.arange(300) - 151) / 4) ** 2) - 0.4 * np.exp(-0.5 * ((np.arange(300) - 175) / 10) ** 2)
    x[0] -= 5 * rng.standard_normal((N_CHANNELS, 1)) * wave
    return x, masked_parts(x), wave


def masked_parts(x):
    starts = [SHAPE[0] + k * SHAPE[2] - MARGIN for k in range(SHAPE[1])]
    return np.stack([x[..., start : start + SHAPE[2] + 2 * MARGIN] for start in starts], axis=2)


def test_filters_are_principal_components_with_a_residual_of_variance_1():
    rng = np.random.default_rng(0)
    x, residuals = rng.standard_normal((2, 6, 6)) @ rng.standard_normal((2, 6, 500))
    filters = spatial_filters(x @ x.T / 500, residuals @ residuals.T / 500, 4)
    np.testing.assert_allclose(np.square(filters @ residuals).mean(axis=1), 1)
    components = np.linalg.svd(x, full_matrices=False)[0].T[:4]
    cosines = np.abs((filters * components).sum(axis=1)) / np.linalg.norm(filters, axis=1)
    np.testing.assert_allclose(cosines, 1)


def test_the_wave_is_found_where_it_is_and_followed(planted):
    x, residuals, wave = planted
    features = spike_features(x, residuals, np.eye(N_CHANNELS))
    assert features.shape[0] == 21
    assert np.argmax(features[:, 0]) == 3
    assert features[3, 5] == 151 - (45 + 3 * 30)  # the peak, from the sub-window's start
    # Its neighbour on the left masks the flank up to sample 143, but not the peak.
    assert features[2, 5] == 30 + MARGIN - 2
    at = 151 + np.arange(-45, 46, 3)
    course = features[3, 10 : 10 + len(at)]
    np.testing.assert_allclose(course / course[15], wave[at] / wave[151], atol=0.1)
    height = np.square(x[0, :, 150:153]).mean()
    assert features[3, 0] == pytest.approx(np.log(height), rel=1e-4)


def features_one_by_one(signal, masked, residual, first):
    """Features of one sub-window: filtered window and residual, residual (channels, n_masked), its sample."""
    n_components, n_masked = masked.shape
    mean_power = np.square(masked).mean(axis=0)
    power = np.array([sum(mean_power[max(t - 1, 0) : t + 2]) / 3 for t in range(n_masked)])
    peak = power.argmax()
    height, at, typical = power[peak], first + peak, np.median(np.square(signal).mean(axis=0))
    field = np.square(signal).mean(axis=0)
    pattern = masked[:, peak] / np.linalg.norm(masked[:, peak])
    course, of_masked = pattern @ signal / np.sqrt(n_components), pattern @ masked / np.sqrt(n_components)
    near = [min(max(at + t, 0), len(course) - 1) for t in range(-45, 46)]  # sample 45 is the peak
    inside = power[MARGIN : n_masked - MARGIN]
    channels = np.abs(residual[:, peak]) / np.linalg.norm(residual[:, peak])
    features = [*np.log([height, height / typical, power.mean(), inside.mean(), inside.max()])]
    features += [peak - MARGIN, abs(peak - (n_masked - 1) / 2)]
    features += [np.square(of_masked).sum() / mean_power.sum(), channels.max(), (channels**4).sum()]
    features += [course[near[k]] * np.sign(course[at]) / np.sqrt(height) for k in range(0, 91, 3)]
    features += [of_masked[t] / np.sqrt(height) if 0 <= t < n_masked else 0.0 for t in range(peak - 12, peak + 13, 2)]
    around = [-45, -30, -20, -14, -10, -6, -3, 0, 3, 6, 10, 14, 20, 30, 45]
    features += [np.log(np.sqrt(field[near[45 + t]] / typical) + 1e-6) for t in around]
    return features


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_features_equal_a_second_implementation(dtype):
    """In float32, as in a run, to 1e-4; the peaks lie at either end of what is masked too."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, N_CHANNELS, 300)).cumsum(axis=2) / 5
    filters, residuals = (
        rng.standard_normal((9, N_CHANNELS)),
        masked_parts(x) + rng.standard_normal((N_CHANNELS, 7, 46)),
    )
    residuals[0, :, 0, 0] += 30
    residuals[0, :, 6, 45] += 30
    arrays = [array.astype(dtype) for array in (x, residuals, filters)]
    tolerance = {'rtol': 1e-4, 'atol': 1e-4} if dtype == np.float32 else {'rtol': 1e-9, 'atol': 1e-9}
    features = spike_features(*arrays)
    assert features.dtype == dtype
    for window in range(4):
        for k in range(7):
            residual = residuals[window, :, k]
            first = SHAPE[0] + SHAPE[2] * k - MARGIN
            expected = features_one_by_one(filters @ x[window], filters @ residual, residual, first)
            np.testing.assert_allclose(features[7 * window + k], expected, **tolerance)


def test_neither_polarity_nor_place_in_the_helmet_matters(planted):
    x, residuals, _ = planted
    features = spike_features(x, residuals, np.eye(N_CHANNELS))
    np.testing.assert_allclose(spike_features(-x, -residuals, np.eye(N_CHANNELS)), features, atol=1e-5)
    order = np.random.default_rng(1).permutation(N_CHANNELS)
    moved = spike_features(x[:, order], residuals[:, order], np.eye(N_CHANNELS))
    np.testing.assert_allclose(moved, features, atol=1e-5)


def test_flat_windows_have_finite_features():
    x = np.zeros((1, N_CHANNELS, 300))
    assert np.isfinite(spike_features(x, masked_parts(x), np.eye(N_CHANNELS))).all()


def test_power_is_compared_within_a_block():
    features = np.arange(64.0).reshape(4, 16)
    both = append_relative_power(features, np.array([0, 1, 0, 0]))
    np.testing.assert_array_equal(both[:, :16], features)
    np.testing.assert_array_equal(both[:, 16:], np.repeat([[-32.0], [0.0], [0.0], [16.0]], N_POWERS, axis=1))


@pytest.mark.parametrize('shape', [(200,), (200, 1), (200, 3)])
def test_medians_of_blocks_are_taken_of_the_rows_named(shape):
    rng = np.random.default_rng(0)
    values, blocks, is_named = rng.normal(size=shape).astype(np.float32), rng.integers(0, 5, 200), rng.random(200) < 0.5
    for chosen in (None, is_named):
        named = np.full(200, True) if chosen is None else chosen
        expected = [value - np.median(values[named & (blocks == block)], axis=0)
                    for value, block in zip(values, blocks, strict=True)]  # fmt: skip
        relative = subtract_block_median(values, blocks, chosen)
        np.testing.assert_array_equal(relative, expected)
        assert relative.dtype == np.float32
