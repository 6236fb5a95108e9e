"""What a test means, in the words of those who read recordings."""

import numpy as np

from evaluation.intervals import Evaluation

FEW_PATIENTS = 10  # with fewer, an interval over patients is rough


def summary_sentences(metrics: dict, evaluation: Evaluation) -> list[str]:
    """Who was tested, how many minutes, what was found of what, false alarms, and how sure this is.

    Parameters
    ----------
    metrics : dict
        The content of metrics.json.
    evaluation : Evaluation
    """
    test = metrics['test']
    n_patients = len(metrics['test patients'])
    free = int((evaluation.patients['spikes'] == 0).sum())
    without = f', {free} of them without annotated spikes' if free else ''
    return [
        f'{_several(n_patients, "patient")} tested{without}: {metrics["tested on"]}.',
        f'{_several(test["blocks"], "recording")}, {test["minutes"]:.1f} minutes: {metrics["test blocks"]} of each '
        'patient.',
        _hits(test, metrics['intervals']),
        _false_alarms(test, metrics['intervals']),
        _how_sure(test, n_patients),
        'A research tool: every detection needs an expert’s eye, and what is not detected may still be a spike.',
    ]


def _several(n, noun):
    return f'{n} {noun}' + 's' * (n != 1)


def _hits(test, intervals):
    if not test['spikes']:
        return 'Experts have annotated no spike in them: nothing can be said of how many are found.'
    share = test['event sensitivity']
    return (
        f'Found: {test["hits"]} of {_several(test["spikes"], "annotated spike")} ({share:.0%}'
        f'{_range(intervals["event sensitivity"], "{:.0%}")}).'
    )


def _false_alarms(test, intervals):
    if not test['events']:
        return 'No detection, and so no false alarm.'
    precision = '' if not test['spikes'] else f'; {test["event precision"]:.0%} of the detections are annotated spikes'
    return (
        f'False alarms: {test["events"] - test["hits"]} detections that no expert has annotated, '
        f'{test["false alarms/min"]:.2f} per minute{_range(intervals["false alarms/min"], "{:.2f}")}{precision}.'
    )


def _how_sure(test, n_patients):
    timing = test['timing error interquartile range (ms)']
    near = f' Half of the found spikes are placed within a range of {timing:.0f} ms.' if np.isfinite(timing) else ''
    if n_patients < 2:
        return f'How sure: one patient says nothing about others.{near}'
    rough = f' With {n_patients} patients they are rough.' if n_patients < FEW_PATIENTS else ''
    return f'How sure: the ranges hold in 95 of 100 samples of such patients.{rough}{near}'


def _range(interval, form):
    low, high = interval
    return f', between {form.format(low)} and {form.format(high)}' if np.isfinite(low) else ''
