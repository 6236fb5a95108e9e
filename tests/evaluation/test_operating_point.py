"""Calibration, and the threshold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import f1_score

from evaluation.operating_point import best_f1_threshold, calibrate, fit_calibration, threshold_from_curve


def test_temperature_finds_the_scores_that_were_bent():
    rng = np.random.default_rng(0)
    logit = rng.normal(-2, 2, 20_000)
    test = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(int)
    bent = 1 / (1 + np.exp(-(logit + 3.5) * 2))  # as if spikes had weighed e^3.5 times, and too steep
    calibration = fit_calibration('temperature', bent, test)
    assert calibration['temperature'] == pytest.approx(2, rel=0.05)
    assert calibration['offset'] == pytest.approx(-3.5, abs=0.15)
    proba = calibrate(calibration, bent)
    assert (np.argsort(proba, kind='stable') == np.argsort(bent, kind='stable')).mean() > 0.999
    assert proba.mean() == pytest.approx(test.mean(), abs=1e-3)


def test_temperature_has_the_least_cross_entropy():
    rng = np.random.default_rng(2)
    logit = rng.normal(-3, 2, 400)
    test = (rng.random(400) < 1 / (1 + np.exp(-0.6 * logit))).astype(int)
    calibration = fit_calibration('temperature', 1 / (1 + np.exp(-logit)), test)

    def cross_entropy(parameters):
        value = parameters[0] * logit + parameters[1]
        return np.sum(np.logaddexp(0, value) - test * value)

    best = minimize(cross_entropy, [1.0, 0.0], method='Nelder-Mead', options={'xatol': 1e-9, 'fatol': 1e-12}).x
    assert [1 / calibration['temperature'], calibration['offset']] == pytest.approx(best.tolist(), abs=1e-6)


@pytest.mark.parametrize('proba', [[0.9, 0.8, 0.2, 0.1], [0.3, 0.3, 0.3, 0.3]])
def test_calibration_never_turns_the_order_round(proba):
    """Where the scores are of no use, it gives the share of spikes."""
    calibration = fit_calibration('temperature', np.array(proba), np.array([0, 0, 0, 1]))
    calibrated = calibrate(calibration, np.array([0.1, 0.5, 0.9]))
    assert (np.diff(calibrated) > 0).all()
    np.testing.assert_allclose(calibrated, 0.25, atol=1e-4)


def test_isotonic_steps_rise_and_keep_the_mean():
    rng = np.random.default_rng(1)
    score = rng.random(500)
    test = (rng.random(500) < score**3).astype(int)
    calibration = fit_calibration('isotonic', score, test)
    proba = calibrate(calibration, score)
    assert (np.diff(proba[np.argsort(score)]) >= 0).all()
    assert proba.mean() == pytest.approx(test.mean())
    assert np.isfinite(calibrate(calibration, np.array([0.0, 1.0]))).all()


def test_perfectly_separated_scores_are_calibrated_to_finite_numbers():
    calibration = fit_calibration('temperature', np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))
    proba = calibrate(calibration, np.array([0.0, 0.5, 1.0]))
    assert np.isfinite(proba).all()
    assert (np.diff(proba) >= 0).all()


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=2, max_size=40).filter(
        lambda rows: any(label for label, _ in rows)
    )
)
def test_the_threshold_has_the_best_f1_of_all(rows):
    test, proba = np.array([label for label, _ in rows]), np.array([p / 10 for _, p in rows])
    threshold = best_f1_threshold(test, proba)
    best = max(f1_score(test, proba >= t) for t in np.unique(proba))
    assert f1_score(test, proba >= threshold) == pytest.approx(best, abs=1e-12)


def test_thresholds_by_what_they_do_to_events():
    curve = pd.DataFrame(
        {
            'threshold': [0.9, 0.7, 0.5, 0.3, 0.1],
            'sensitivity': [0.0, 0.4, 0.8, 0.7, 0.9],
            'false alarms/min': [0.0, 0.5, 2.0, 0.8, 4.0],
        }
    )
    limits = {'target_sensitivity': 0.7, 'false_alarm_budget': 1.0}
    assert threshold_from_curve(curve, 'sensitivity', **limits) == (
        0.5,
        'event sensitivity of at least 0.7',
        'event sensitivity 0.80 at 2.00 false alarms per minute',
    )
    assert threshold_from_curve(curve, 'false_alarms', **limits)[0] == 0.7  # 0.3 comes after one that is over
    assert threshold_from_curve(curve, 'sensitivity', **limits | {'target_sensitivity': 0.95})[0] == 0.1
    assert threshold_from_curve(curve, 'false_alarms', **limits | {'false_alarm_budget': 9})[0] == 0.1
    assert threshold_from_curve(curve, 'false_alarms', **limits | {'false_alarm_budget': 0})[0] == 0.9
