"""Figures of sub-windows and events, each against a second implementation or by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from evaluation.epochs import EPOCH_METRICS, epoch_metrics
from evaluation.events import (
    annotated_spikes,
    count_hits,
    event_shares,
    match,
    match_events,
    merge_events,
    pulse_lengths,
    sensitivity_curve,
    spikes_of_pulses,
)
from evaluation.intervals import Evaluation, bootstrap, compare, draw_patients, intervals
from evaluation.metrics import MAIN_METRICS, batchwise, calibration_error, subwindow_metrics, with_predictions
from utils import DataError

scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=1, max_size=40)


def table_of(rows, subject=3, block=0, n_times=30):
    """Neighbouring sub-windows of (test, proba in tenths), the field's peak in the middle of each."""
    timing = np.arange(len(rows)) * float(n_times) + 60
    return pd.DataFrame(
        {
            'subject': subject,
            'block': block,
            'timing': timing,
            'test': [test for test, _ in rows],
            'field': 1.0,
            'peak': timing.astype(int),
        }
    ), np.array([p for _, p in rows]) / 10


def evaluated(predictions, spikes, tolerance=0.1):
    spikes = pd.DataFrame(spikes, columns=['subject', 'block', 'sample'])
    return Evaluation(predictions, spikes, subwindow_length=30, tolerance=tolerance, sfreq=150, batch_size=8)


# -------------------------------------------------------------------------------------- sub-windows
@given(scored)
def test_figures_by_counting(rows):
    table, proba = table_of(rows)
    predictions = with_predictions(table.iloc[::-1], proba[::-1], threshold=0.5)
    assert predictions['timing'].is_monotonic_increasing
    counts = {(t, p): 0 for t in (0, 1) for p in (0, 1)}
    for t, p in rows:
        counts[t, int(p >= 5)] += 1
    metrics = subwindow_metrics(predictions, batch_size=8)
    tp, tn, fp, fn = counts[1, 1], counts[0, 0], counts[0, 1], counts[1, 0]
    assert metrics['confusion matrix'] == [[tn, fp], [fn, tp]]
    assert predictions['true'].sum() == tp + tn

    def same(name, part, whole):
        assert metrics[name] == pytest.approx(part / whole if whole else math.nan, nan_ok=True)

    same('accuracy', tp + tn, len(rows))
    same('sensitivity', tp, tp + fn)
    same('specificity', tn, tn + fp)
    same('precision', tp, (tp + fp) * (tp + fn > 0))
    same('f1-score', 2 * tp, (2 * tp + fp + fn) * (tp + fn > 0))
    same('PR-AUC of chance', tp + fn, len(rows))
    same('Brier score', sum((p / 10 - t) ** 2 for t, p in rows), len(rows))
    # ROC-AUC: the share of (spike, other) pairs in the right order, ties one half
    pairs = [(a > b) + 0.5 * (a == b) for x, a in rows for y, b in rows if x == 1 and y == 0]
    same('ROC-AUC', sum(pairs), len(pairs))
    assert math.isnan(metrics['PR-AUC']) == (len(pairs) == 0)


def test_the_originals_batchwise_figures():
    test, pred = np.array([1, 1, 0, 0, 0, 1]), np.array([1, 0, 1, 0, 0, 0])
    metrics = batchwise(test, pred, batch_size=4)
    first = (1 / (2 + 1e-7), 1 / (2 + 1e-7))
    assert metrics['recall_m'] == pytest.approx((first[0] + 0) / 2)
    assert metrics['precision_m'] == pytest.approx((first[1] + 0) / 2)
    assert metrics['f1_m'] == pytest.approx(2 * first[0] * first[1] / (sum(first) + 1e-7) / 2)


def test_calibration_error_by_hand():
    proba = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 20)
    test = np.concatenate([np.arange(20) < round(20 * p) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]).astype(int)
    assert calibration_error(test, proba) == pytest.approx(0, abs=1e-12)  # equal probabilities stay together
    order = np.random.default_rng(0).permutation(100)
    assert calibration_error(test[order], (proba**2)[order]) == pytest.approx(calibration_error(test, proba**2))
    assert calibration_error(test, proba**2) == pytest.approx(np.mean(np.abs(proba - proba**2)))
    assert calibration_error(np.array([1, 1]), np.array([1.0, 1.0])) == 0
    assert calibration_error(np.array([0, 0]), np.array([1.0, 1.0])) == 1


@given(st.lists(scored, min_size=1, max_size=4))
def test_figures_of_epochs_by_trying_every_threshold(epochs):
    history, tried = [], []  # (F1, threshold) of every epoch
    for rows in epochs:
        test = np.array([1, 0, *(t for t, _ in rows)])
        proba = np.array([0.9, 0.2, *(p / 10 for _, p in rows)])

        def shares(threshold, test=test, proba=proba):
            called = proba >= threshold
            hits = (called & (test == 1)).sum()
            precision = hits / called.sum() if called.any() else math.nan
            return {'recall': hits / test.sum(), 'precision': precision, 'F1': 2 * hits / (test.sum() + called.sum())}

        metrics = epoch_metrics(test, proba, 8, history)
        history.append(metrics)
        assert list(metrics) == list(EPOCH_METRICS)
        tried.append(max((shares(p)['F1'], -p) for p in proba))
        assert max(of_epoch['F1'] for of_epoch in history) == pytest.approx(max(tried)[0])
        at_threshold, at_half = shares(metrics['threshold']), shares(0.5)
        assert metrics['PR-AUC'] == pytest.approx(average_precision_score(test, proba))
        for name in ('recall', 'precision', 'F1'):
            assert metrics[name] == pytest.approx(at_threshold[name], nan_ok=True)
            assert metrics[f'{name} at 0.5'] == pytest.approx(at_half[name], nan_ok=True)
        assert metrics['recall_m'] == pytest.approx(batchwise(test, np.round(proba), 8)['recall_m'])
    best = max(range(len(tried)), key=lambda k: history[k]['F1'])
    assert all(of_epoch['threshold'] == history[best]['threshold'] for of_epoch in history[best:])


# ------------------------------------------------------------------------------------------- events
times = st.lists(st.integers(0, 30), max_size=4)


@given(times, times, st.integers(0, 12))
def test_matching_has_as_many_pairs_as_can_be_and_of_those_the_closest(detected, annotated, tolerance):
    i, j = match(detected, annotated, tolerance)
    assert len(set(i)) == len(i) == len(set(j)) == len(j)
    distances = [abs(detected[a] - annotated[b]) for a, b in zip(i, j, strict=True)]
    assert all(distance <= tolerance for distance in distances)
    best = (0, 0)
    for n in range(1, min(len(detected), len(annotated)) + 1):
        for rows in itertools.permutations(range(len(detected)), n):
            for columns in itertools.combinations(range(len(annotated)), n):
                lengths = [abs(detected[a] - annotated[b]) for a, b in zip(rows, columns, strict=True)]
                if max(lengths) <= tolerance:
                    best = max(best, (n, -sum(lengths)))
    assert (len(distances), -sum(distances)) == best


long_times = st.lists(st.integers(0, 200), max_size=40)


@given(long_times, long_times, st.floats(0, 12))
def test_counting_hits_counts_the_pairs_of_the_matching(detected, annotated, tolerance):
    pairs, _ = match(detected, annotated, tolerance)
    assert count_hits(np.sort(detected).astype(int), np.sort(annotated).astype(int), tolerance) == len(pairs)


@pytest.mark.parametrize(
    ('detected', 'annotated', 'hits'),
    [
        ([100, 110], [104], [1, 0]),  # two detections for one spike: the nearer one, the other is a false alarm
        ([100], [92, 109], [1]),  # one detection between two spikes finds one
        ([100], [115], [1]),  # at the tolerance
        ([100], [116], [0]),  # beyond it
        ([100, 112], [110, 124], [1, 1]),  # first come first served would take 100-110 and leave 112-124: both do
        ([110, 122], [100, 112], [1, 1]),
    ],
)
def test_events_and_spikes_are_matched_one_to_one(detected, annotated, hits):
    events = pd.DataFrame({'subject': 1, 'block': 0, 'sample': detected})
    spikes = pd.DataFrame({'subject': 1, 'block': 0, 'sample': annotated})
    events, spikes = match_events(events, spikes, tolerance=15)
    assert events['hit'].tolist() == hits
    assert spikes['hit'].sum() == sum(hits)
    assert events['error'].isna().tolist() == [not hit for hit in hits]


def test_events_of_one_block_do_not_find_spikes_of_another():
    events = pd.DataFrame({'subject': [1, 2], 'block': [0, 0], 'sample': [100, 100]})
    spikes = pd.DataFrame({'subject': [1, 2], 'block': [1, 0], 'sample': [100, 101]})
    events, spikes = match_events(events, spikes, tolerance=15)
    assert events['hit'].tolist() == spikes['hit'].tolist() == [0, 1]
    assert events['error'][1] == -1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.booleans(), st.integers(0, 9)), max_size=25))
def test_merging_equals_a_walk_along_the_recording(rows):
    rows = sorted(rows, key=lambda row: row[0])
    table = pd.DataFrame(rows, columns=['block', 'pred', 'gap', 'field']).assign(subject=5)
    table['timing'] = 15.0 + 30 * np.arange(len(rows)) + 30 * table['gap'].astype(int).cumsum()
    table['peak'] = table['timing'].astype(int) + 3
    table['proba'] = table['field'] / 10
    expected, last = [], None
    for row in table.itertuples():
        if row.pred:
            if last and last.pred and last.block == row.block and row.timing - last.timing == 30:
                expected[-1].append(row)
            else:
                expected.append([row])
        last = row
    events = merge_events(table, 30)
    assert len(events) == len(expected)
    for event, members in zip(events.itertuples(), expected, strict=True):
        highest = max(members, key=lambda row: row.field)
        assert (event.onset, event.end) == (members[0].timing - 15, members[-1].timing + 15)
        assert (event.block, event.sample, event.proba) == (highest.block, highest.peak, max(m.proba for m in members))


@given(st.lists(st.integers(0, 25), min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 10))
def test_spikes_are_found_again_from_their_pulses(distances, half, first):
    """Apart by more than a pulse, all of them; two that overlap, both."""
    spikes = first + half + np.cumsum([0] + [2 * half + 2 + d for d in distances[1:]])
    marked = np.zeros(spikes[-1] + half + 5, dtype=bool)
    for spike in spikes:
        marked[max(spike - half, 0) : spike + half + 1] = True
    assert spikes_of_pulses(marked, 2 * half + 1).tolist() == spikes.tolist()
    marked = np.zeros(60, dtype=bool)
    marked[10 : 10 + 2 * half + 1] = marked[14 : 14 + 2 * half + 1] = True
    if half >= 2:
        assert spikes_of_pulses(marked, 2 * half + 1).tolist() == [10 + half, 14 + half]


def test_a_pulse_cut_off_by_the_end_of_the_signal():
    marked = np.zeros(40, dtype=bool)
    marked[:5] = marked[36:] = True
    assert spikes_of_pulses(marked, 9).tolist() == [0, 40]


def test_annotated_spikes_are_those_that_mark_a_scored_subwindow():
    """Two windows of 100 samples, hop 60, border 20: scored from 20 to 140, half pulse 3."""
    labels_t = np.zeros((2, 100), dtype=np.uint8)
    for spike in (10, 18, 75, 138, 150):
        for row, start in ((0, 0), (1, 60)):
            places = np.arange(spike - 3, spike + 4) - start
            labels_t[row, places[(places >= 0) & (places < 100)]] = 1
    table = pd.DataFrame({'subject': 4, 'block': 2, 'timing': [50.0, 110.0]})
    subwindows = pd.DataFrame({'subject': 4, 'block': 2, 'timing': [35.0, 65.0, 95.0, 125.0]})
    spikes = annotated_spikes(table, labels_t, subwindows, {4: 7}, 30)
    assert list(spikes.itertuples(index=False, name=None)) == [(4, 2, 18), (4, 2, 75), (4, 2, 138)]


@pytest.mark.parametrize('pulse', [1, 2, 4, 6, 15, 16])
def test_pulses_of_other_scripts_are_as_long_as_they_are(pulse):
    """Two windows of 100 samples, hop 60, and pulses of `pulse` samples whose middle is the spike."""
    expected = 15
    spikes = [30, 75, 105]
    marked = np.zeros(160, dtype=np.uint8)
    for spike in spikes:
        marked[spike - pulse // 2 : spike - pulse // 2 + pulse] = 1
    labels_t = np.stack([marked[:100], marked[60:]])
    assert pulse_lengths([labels_t, 0 * labels_t], expected) == [pulse, expected]
    table = pd.DataFrame({'subject': 4, 'block': 2, 'timing': [50.0, 110.0]})
    subwindows = pd.DataFrame({'subject': 4, 'block': 2, 'timing': [35.0, 65.0, 95.0, 125.0]})
    annotated = annotated_spikes(table, labels_t, subwindows, {4: pulse}, 30)
    assert annotated['sample'].tolist() == spikes


def test_a_pulse_that_is_longer_where_spikes_meet_or_shorter_where_they_lie_between_samples():
    single, pair = np.zeros((1, 100), dtype=np.uint8), np.zeros((1, 100), dtype=np.uint8)
    single[0, 20:35] = pair[0, 20:45] = 1
    assert pulse_lengths([single, pair], 15) == [15, 15]
    assert pulse_lengths([pair], 15) == [25]
    between = np.zeros((1, 100), dtype=np.uint8)
    between[0, 20:34] = 1  # around 26.5
    assert pulse_lengths([between], 15) == [15]
    assert spikes_of_pulses(between[0] > 0, 15).tolist() == [27]
    assert spikes_of_pulses(single[0] > 0, 14).tolist() == [27]  # not two, a sample apart


def test_event_figures_and_the_curve():
    rows = [(0, 1), (1, 9), (0, 2), (0, 6), (1, 7), (0, 0), (1, 3), (0, 1), (0, 8), (0, 0)]
    table, proba = table_of(rows)
    spikes = [(3, 0, 90 + 4), (3, 0, 180 - 6), (3, 0, 240)]
    evaluation = evaluated(with_predictions(table, proba, 0.55), spikes)
    # Events: row 1 (found), rows 3 and 4 merged at the first peak 150 (174 is 24 off: not found), row 8 (false).
    assert evaluation.events['sample'].tolist() == [90, 150, 300]
    assert evaluation.events['hit'].tolist() == [1, 0, 0]
    result = evaluation.result
    assert result['event sensitivity'] == pytest.approx(1 / 3)
    assert result['event precision'] == pytest.approx(1 / 3)
    assert result['event F1'] == pytest.approx(1 / 3)
    assert result['minutes'] == pytest.approx(10 * 0.2 / 60)
    assert result['false alarms/min'] == pytest.approx(2 / (10 * 0.2 / 60))
    assert result['timing error median (ms)'] == pytest.approx(-4 / 150 * 1000)

    curve = evaluation.curve
    assert curve['threshold'].is_monotonic_decreasing
    assert (curve.iloc[0]['sensitivity'], curve.iloc[0]['false alarms/min']) == (0, 0)
    for row in curve.itertuples(index=False):
        at_threshold = evaluated(with_predictions(table, proba, row[0]), spikes).result
        expected = (at_threshold['event sensitivity'], at_threshold['false alarms/min'])
        assert (row[1], row[2]) == pytest.approx(expected)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 1), scored), min_size=1, max_size=5), st.data())
def test_the_curve_is_that_of_events_matched_threshold_by_threshold(blocks, data):
    tables, probas, spikes = [], [], []
    for number, (subject, _, rows) in enumerate(blocks):
        table, proba = table_of(rows, subject=subject, block=number)
        shift = data.draw(st.lists(st.integers(-14, 14), min_size=len(rows), max_size=len(rows)))
        heights = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
        tables.append(table.assign(peak=table['peak'] + shift, field=np.array(heights, float)))
        probas.append(proba)
        spikes += [(subject, number, sample) for sample in data.draw(st.lists(st.integers(40, 1300), max_size=6))]
    table = pd.concat(tables, ignore_index=True)
    predictions = with_predictions(table, np.concatenate(probas), 0.5)
    spikes = pd.DataFrame(spikes, columns=['subject', 'block', 'sample'], dtype=np.int64)
    curve = sensitivity_curve(predictions, spikes, 30, 15.0, 150)
    for threshold, sensitivity, alarms in curve.itertuples(index=False):
        chosen = predictions.assign(pred=(predictions['proba'] >= threshold).astype(int))
        events, _ = match_events(merge_events(chosen, 30), spikes, 15.0)
        hits = events['hit'].sum()
        assert sensitivity == hits / len(spikes) if len(spikes) else math.isnan(sensitivity)
        assert alarms == (len(events) - hits) / (len(predictions) * 30 / 150 / 60)


def test_the_curve_of_patients_without_spikes_is_of_false_alarms_alone():
    table, proba = table_of([(0, 1), (0, 9), (0, 2)])
    none = pd.DataFrame(columns=['subject', 'block', 'sample'])
    curve = sensitivity_curve(with_predictions(table, proba, 0.5), none, 30, 15, 150)
    assert curve['sensitivity'].isna().all()
    assert curve['false alarms/min'].iloc[1] == pytest.approx(1 / 0.01)


# -------------------------------------------------------------------- patients, intervals, two runs
def cohort(seed, subjects=(1, 2, 3, 4), skill=1.0):
    """Predictions of patients, the last one spike-free, and their spikes."""
    rng = np.random.default_rng(seed)
    tables, probas, spikes = [], [], []
    for subject in subjects:
        test = (np.random.default_rng(subject).random(40) < 0.15).astype(int) * (subject != subjects[-1])
        table, _ = table_of([(t, 0) for t in test], subject=subject)
        tables.append(table)
        probas.append(np.clip(rng.normal(0.3 + 0.3 * skill * test, 0.15), 0.01, 0.99))
        spikes += [(subject, 0, sample) for sample in table.loc[test == 1, 'peak']]
    predictions = with_predictions(pd.concat(tables, ignore_index=True), np.concatenate(probas), 0.45)
    return evaluated(predictions, spikes)


def test_a_patient_without_spikes_counts_by_false_alarms_and_never_as_zero():
    evaluation = cohort(0)
    free = evaluation.patients.set_index('subject').loc[4]
    for name in ('PR-AUC', 'ROC-AUC', 'sensitivity', 'f1-score', 'event sensitivity', 'event precision', 'event F1'):
        assert math.isnan(free[name])
    assert free['events'] > 0
    assert free['false alarms/min'] == pytest.approx(free['events'] / free['minutes'])
    others = evaluation.patients['subject'] != 4
    means = evaluation.means()
    assert means['PR-AUC'] == pytest.approx(evaluation.patients.loc[others, 'PR-AUC'].mean())
    assert means['false alarms/min'] == pytest.approx(evaluation.patients['false alarms/min'].mean())


def test_without_spikes_or_without_detections_nothing_crashes():
    table, proba = table_of([(0, 1), (0, 2), (0, 1)])
    for threshold, rate in ((0.5, 0.0), (0.05, 100.0)):
        result = evaluated(with_predictions(table, proba, threshold), []).result
        assert result['false alarms/min'] == pytest.approx(rate)
        assert math.isnan(result['event sensitivity'])
        assert math.isnan(result['timing error median (ms)'])
    assert event_shares({'spikes': 0, 'events': 0, 'hits': 0, 'minutes': 1})['false alarms/min'] == 0


def test_a_draw_of_every_patient_once_gives_the_figures_themselves():
    evaluation = cohort(1)
    metrics = bootstrap(evaluation.predictions, evaluation.patients, np.ones((1, 4), dtype=int)).iloc[0]
    assert list(metrics.index) == MAIN_METRICS
    for name in MAIN_METRICS:
        assert metrics[name] == pytest.approx(evaluation.result[name], rel=1e-12)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 50))
def test_a_resampled_cohort_is_the_cohort_with_patients_repeated(weights, seed):
    evaluation = cohort(seed)
    predictions = evaluation.predictions.round({'proba': 1})  # ties
    metrics = bootstrap(predictions, evaluation.patients, np.array([weights])).iloc[0]
    rows = np.repeat(np.arange(160), np.repeat(weights, 40))
    test, proba, pred = (predictions[name].to_numpy()[rows] for name in ('test', 'proba', 'pred'))
    if not 0 < test.sum() < len(test):
        assert math.isnan(metrics['PR-AUC'])
        return
    assert metrics['PR-AUC'] == pytest.approx(average_precision_score(test, proba), rel=1e-12)
    assert metrics['ROC-AUC'] == pytest.approx(roc_auc_score(test, proba), rel=1e-12)
    assert metrics['f1-score'] == pytest.approx(f1_score(test, pred))
    patients = evaluation.patients
    alarms = (patients['events'] - patients['hits']) @ weights / (patients['minutes'] @ weights)
    assert metrics['false alarms/min'] == pytest.approx(alarms)


def test_intervals_over_patients():
    evaluation = cohort(2)
    bounds = intervals(evaluation, 400, seed=0)
    assert bounds == intervals(evaluation, 400, seed=0)
    for name in MAIN_METRICS:
        low, high = bounds[name]
        assert low <= evaluation.result[name] <= high
    weights = draw_patients(4, 400, seed=0)
    assert (weights.sum(axis=1) == 4).all()
    single = cohort(2, subjects=(1,))
    assert all(math.isnan(low) for low, _ in intervals(single, 10, seed=0).values())


def test_the_better_of_two_runs():
    weak, strong = cohort(3, skill=0.5), cohort(4, skill=1.5)
    runs = [(evaluation.predictions, evaluation.patients) for evaluation in (weak, strong)]
    table = compare(*runs, 300, seed=0)
    row = table.loc['PR-AUC']
    assert row['difference'] == pytest.approx(strong.result['PR-AUC'] - weak.result['PR-AUC'])
    assert 0 < row['low'] <= row['difference'] <= row['high']
    same = compare(runs[0], runs[0], 50, seed=0)
    assert (same[['difference', 'low', 'high']] == 0).all(axis=None)
    elsewhere = cohort(3, subjects=(11, 12, 13))
    with pytest.raises(DataError, match='no test patient in common'):
        compare(runs[0], (elsewhere.predictions, elsewhere.patients), 10, seed=0)
    moved = runs[0][0].assign(timing=runs[0][0]['timing'] + 1)
    with pytest.raises(DataError, match='other sub-windows'):
        compare(runs[1], (moved, runs[0][1]), 10, seed=0)


def test_the_brier_score_is_scikit_learns():
    evaluation = cohort(5)
    expected = brier_score_loss(evaluation.predictions['test'], evaluation.predictions['proba'])
    assert evaluation.result['Brier score'] == pytest.approx(expected)
