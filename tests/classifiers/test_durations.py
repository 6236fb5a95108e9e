"""The score of `threshold`: what is brief and long at once."""

import numpy as np
import pytest
import torch

from classifiers import durations
from classifiers.filtered import filter_windows

SHAPE, MARGIN = (45, 7, 30), 8
N_CHANNELS, MIDDLE = 12, 150  # the middle of sub-window 3


def score_of(x, residuals, filters=None):
    filters = np.eye(x.shape[1], dtype=x.dtype) if filters is None else filters
    windows = filter_windows(*map(torch.from_numpy, (x, residuals, filters)), SHAPE, MARGIN)
    return durations.duration_score(windows)[:, 0].numpy()


def masked_parts(x):
    starts = [SHAPE[0] + k * SHAPE[2] - MARGIN for k in range(SHAPE[1])]
    return np.stack([x[..., start : start + SHAPE[2] + 2 * MARGIN] for start in starts], axis=2)


def noise(seed=0, n_windows=1):
    """Background whose power falls with frequency."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal((n_windows, N_CHANNELS, 300))) / np.arange(1, 152) ** 0.5
    return np.fft.irfft(spectrum, 300)


def filtered_one_by_one(course):
    """A time course filtered by either wave, sample by sample: (2, times)."""
    rows = []
    for width in (4, 18):
        t = np.arange(-36, 37) / (width / 2)
        wave = (1 - t**2) * np.exp(-(t**2) / 2)
        wave -= wave.mean()
        wave /= np.sqrt((wave**2).sum())
        padded = np.pad(course, 36)
        rows.append([(padded[first : first + 73] * wave).sum() for first in range(len(course))])
    return np.array(rows)


def products(fields):
    """Power of the brief and the long field (components, 2) and their product."""
    return [first @ second for first, second in ((fields[:, 0],) * 2, (fields[:, 1],) * 2, fields.T)]


def one_by_one(signal, masked, first):
    """Score and features of one sub-window: filtered window, filtered residual, and the residual's first sample."""
    bands, of_masked = (np.array([filtered_one_by_one(course) for course in rows]) for rows in (signal, masked))
    typical = np.sqrt(np.median((bands**2).sum(axis=0), axis=1))[None, :, None]
    bands, of_masked = bands / typical, of_masked / typical
    heights = []
    for t in range(masked.shape[1]):
        least = [max(min(products(fields)), 0.01) for fields in (bands[..., first + t], of_masked[..., t])]
        heights.append(0.75 * np.log(least[0]) + 0.25 * np.log(least[1]))
    peak = np.argmax(heights)
    at = first + peak
    pattern = bands[..., at].sum(axis=1)
    power = (pattern / np.linalg.norm(pattern) @ signal) ** 2 / np.median((signal**2).sum(axis=0))
    quantiles = np.log(np.quantile(power, [0.5, 0.9]) + 1e-4)
    both = [products(bands[..., at]), products(of_masked[..., peak])]
    near = [min(max(at + offset, 0), signal.shape[1] - 1) for offset in (-40, -25, -15, -10, 10, 15, 25, 40)]
    neighbours = [value for t in near for value in products(bands[..., t])[:2]]
    cosines = [product / np.sqrt(brief * long + 1e-9) for brief, long, product in both]
    score = heights[peak] - 0.25 * quantiles[0]
    powers = [score, heights[peak], *np.log(np.clip(np.ravel(both), 0.01, None))]
    others = [*cosines, *quantiles, peak - MARGIN, *np.log(np.clip(neighbours, 0.01, None))]
    return score, powers, others


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_score_and_features_equal_a_second_implementation(dtype):
    rng = np.random.default_rng(0)
    x = noise(n_windows=2)
    residuals = masked_parts(x) + 0.1 * rng.standard_normal((N_CHANNELS, 7, 46))
    filters = rng.standard_normal((5, N_CHANNELS))
    arrays = [array.astype(dtype) for array in (x, residuals, filters)]
    scores, windows = score_of(*arrays), filter_windows(*map(torch.from_numpy, arrays), SHAPE, MARGIN)
    powers, others = (values.flatten(0, 1).numpy() for values in durations.duration_features(windows))
    assert scores.dtype == powers.dtype == others.dtype == dtype
    scaled = filters / np.linalg.norm(filters, axis=1, keepdims=True) ** 0.5
    tolerance = {'rtol': 0, 'atol': 2e-3 if dtype == np.float32 else 1e-9}
    for window in range(2):
        for k in range(7):
            expected = one_by_one(scaled @ x[window], scaled @ residuals[window, :, k], SHAPE[0] + 30 * k - MARGIN)
            for values, wanted in zip((scores, powers, others), expected, strict=True):
                np.testing.assert_allclose(values[7 * window + k], wanted, **tolerance)


@pytest.mark.parametrize('width', [2, 3, 6])  # samples: 22 to 67 ms wide at half height
def test_a_spike_stands_out_of_rhythms_muscle_and_blinks_that_are_as_large(width):
    """Each of one field and as high; the spike has the highest score, narrow or wide."""
    t = np.arange(300) - MIDDLE
    near = np.exp(-0.5 * (t / 40) ** 2)
    rng = np.random.default_rng(1)
    courses = {
        'spike': np.exp(-0.5 * (t / width) ** 2) - 0.4 * np.exp(-0.5 * ((t - 3 * width) / (1.5 * width)) ** 2),
        'alpha': np.cos(2 * np.pi * 10 / 150 * t) * near,
        'muscle': np.cos(2 * np.pi * 45 / 150 * t) * near,
        'blink': np.exp(-0.5 * (t / 25) ** 2),
    }
    x = 0.3 * noise(n_windows=len(courses)) + rng.standard_normal((N_CHANNELS, 1)) * np.stack(
        [course[None] for course in courses.values()]
    )
    score = dict(zip(courses, score_of(x, masked_parts(x)).reshape(len(courses), 7)[:, 3], strict=True))
    assert score['spike'] > max(value for name, value in score.items() if name != 'spike') + 0.5


def test_two_fields_at_one_time_count_less_than_one():
    """A slow wave of one field and a fast one of another are no spike."""
    t = np.arange(300) - MIDDLE
    slow, fast = np.exp(-0.5 * (t / 9) ** 2), np.exp(-0.5 * (t / 1.5) ** 2)
    fields = np.zeros((2, N_CHANNELS, 1))
    fields[0, :4] = fields[1, 6:10] = 3.0
    x = 0.3 * noise(n_windows=2)
    x[0] += fields[0] * (slow + fast)
    x[1] += fields[0] * slow + fields[1] * fast
    one_field, two_fields = score_of(x, masked_parts(x)).reshape(2, 7)[:, 3]
    assert one_field > two_fields + 0.5


def test_neither_polarity_nor_place_nor_unit_matters():
    x = noise(n_windows=2)
    x[0] += 2 * np.exp(-0.5 * ((np.arange(300) - MIDDLE) / 4) ** 2)
    residuals = masked_parts(x) / 2
    scores = score_of(x, residuals)
    np.testing.assert_allclose(score_of(-x, -residuals), scores)
    np.testing.assert_allclose(score_of(1e3 * x, 1e3 * residuals), scores)
    order = np.random.default_rng(1).permutation(N_CHANNELS)
    np.testing.assert_allclose(score_of(x[:, order], residuals[:, order]), scores)


def test_a_field_that_is_always_there_counts_less():
    """As the heart's: the same wave of a field that is in the window before and after has a lower score."""
    spike = np.exp(-0.5 * ((np.arange(300) - MIDDLE) / 3) ** 2)
    rhythm = np.cos(2 * np.pi * 7 / 150 * (np.arange(300) - MIDDLE))
    x, field = 0.3 * noise(n_windows=2), np.zeros((2, N_CHANNELS, 1))
    field[0, :4] = field[1, 6:10] = 1.0
    x += 0.3 * field[:1] * rhythm
    x += 3 * field * spike
    same, different = score_of(x, masked_parts(x)).reshape(2, 7)[:, 3]
    assert different > same


def test_flat_windows_have_a_finite_score():
    x = np.zeros((1, N_CHANNELS, 300))
    assert np.isfinite(score_of(x, masked_parts(x))).all()
