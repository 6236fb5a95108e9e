"""The second look: what recurs within a recording counts for more."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from classifiers.features import N_COURSE, fingerprints
from classifiers.filtered import filter_windows
from classifiers.second_look import Recordings, companions, fit_second_look, second_look

SHAPE, MARGIN = (45, 7, 30), 8
N_FIELD = 6


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def recordings_of(rng, n, n_blocks=3):
    """Sub-windows of no particular field and course."""
    field, course = (unit(rng.standard_normal((n, size))) for size in (N_FIELD, N_COURSE))
    blocks = np.sort(rng.integers(0, n_blocks, n))
    timing = np.concatenate([np.arange((blocks == block).sum()) + 0.5 for block in range(n_blocks)])
    return Recordings(np.concatenate([field, course], axis=1), blocks, timing, np.ones(n, dtype=bool))


def test_fingerprints_are_field_and_course_at_the_peak():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((2, 9, 300)).cumsum(axis=2))
    residuals = torch.from_numpy(rng.standard_normal((2, 9, 7, 46)))
    filters = torch.from_numpy(rng.standard_normal((N_FIELD, 9)))
    prints = fingerprints(filter_windows(x, residuals, filters, SHAPE, MARGIN)).numpy()
    opposite = fingerprints(filter_windows(-x, -residuals, filters, SHAPE, MARGIN)).numpy()
    np.testing.assert_allclose(opposite, prints * ([-1] * N_FIELD + [1] * N_COURSE))
    for window in range(2):
        for k in range(7):
            masked = filters.numpy() @ residuals[window, :, k].numpy()
            power = np.convolve(np.square(masked).mean(axis=0), np.ones(3), mode='same')
            field = masked[:, power.argmax()]
            course = field @ filters.numpy() @ x[window].numpy()
            peak = 45 + 30 * k - 8 + power.argmax()
            around = course[np.clip(np.arange(peak - 45, peak + 46, 3), 0, 299)]
            expected = np.concatenate([unit(field), unit(around)]) * np.sign(course[peak])
            np.testing.assert_allclose(prints[7 * window + k], expected)


@given(st.integers(0, 1000), st.sampled_from([25, 60]))
def test_companions_equal_a_second_implementation(seed, n):
    rng = np.random.default_rng(seed)
    recordings = recordings_of(rng, n)._replace(reference=rng.random(n) < 0.8)
    proba, expected = rng.random(n), []
    for i in range(n):
        pairs = []
        for j in range(n):
            near = abs(recordings.timing[i] - recordings.timing[j]) <= 2
            if recordings.blocks[i] == recordings.blocks[j] and not near and recordings.reference[j]:
                products = recordings.fingerprints[i] * recordings.fingerprints[j]
                alike = max(products[:N_FIELD].sum(), 0) * max(products[N_FIELD:].sum(), 0)
                pairs.append((alike, alike * proba[j]))
        best = max((product for _, product in pairs), default=0)
        expected.append([best, sum(product for _, product in sorted(pairs)[-10:]) / 10])
    np.testing.assert_allclose(companions(proba, recordings), expected, atol=1e-12)


def planted(seed):
    """Scores of spikes of one field and course per recording, beside a heart with another, and singletons."""
    rng = np.random.default_rng(seed)
    recordings = recordings_of(rng, 900)
    labels, heart = rng.random(900) < 0.05, rng.random(900) < 0.1
    heart &= ~labels
    for block in range(3):
        for chosen in (labels, heart):
            rows = chosen & (recordings.blocks == block)
            noisy = []
            for size in (N_FIELD, N_COURSE):
                alike = unit(rng.standard_normal(size)) + 0.3 / size**0.5 * rng.standard_normal((rows.sum(), size))
                noisy.append(unit(alike))
            recordings.fingerprints[rows] = np.concatenate(noisy, axis=1)
    log_odds = rng.normal(-4, 1.5, 900) + 3.5 * labels
    return 1 / (1 + np.exp(-log_odds)), recordings, labels.astype(int), heart


def test_recurring_spikes_gain_more_than_a_recurring_heart():
    scores, recordings, labels, _ = planted(0)
    look = fit_second_look(scores, recordings, labels)
    scores, recordings, labels, heart = planted(1)
    proba = second_look(look, scores, recordings)
    assert average_precision_score(labels, proba) > average_precision_score(labels, scores) + 0.1
    for share in (0.5, 0.8):  # of the spikes found
        beats = [(values[heart] > np.quantile(values[labels == 1], 1 - share)).sum() for values in (scores, proba)]
        assert beats[1] < beats[0]
    assert proba.mean() == pytest.approx(labels.mean(), rel=0.3)  # it is calibrated


@given(st.integers(0, 1000))
def test_a_higher_score_or_a_better_companion_never_lowers_the_probability(seed):
    """Whatever it was fitted on, such as labels that have nothing to do with the scores."""
    rng = np.random.default_rng(seed)
    recordings, scores = recordings_of(rng, 60), rng.random(60)
    look = fit_second_look(scores, recordings, rng.permutation(60) < 5)
    before = second_look(look, scores, recordings)
    raised = scores.copy()
    raised[7] = (1 + raised[7]) / 2
    after = second_look(look, raised, recordings)
    assert after[7] > before[7]
    assert (after >= before).all()


def test_a_recording_alone_has_the_probabilities_that_it_has_among_others():
    scores, recordings, labels, _ = planted(2)
    look = fit_second_look(scores, recordings, labels)
    together, rows = second_look(look, scores, recordings), recordings.blocks == 1
    alone = second_look(look, scores[rows], Recordings(*(values[rows] for values in recordings)))
    np.testing.assert_allclose(alone, together[rows])
