"""benchmarks/label_budget.py: whose labels are used, and what is compared with what."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))

from cohort_steps import examples
from cohorts import Cohort, Part
from label_budget import REFERENCE, first_patients, paired_differences

from classifiers.subwindows import subwindow_shape
from classifiers.windows import subwindow_labels

SHAPE = subwindow_shape(20, 4, 4)


def part():
    """Three patients of two blocks, two windows each."""
    n = 3 * 2 * 2
    subject, block = (np.repeat(values, 2 * 3) for values in ([1, 1, 2, 2, 3, 3], range(6)))
    places = pd.DataFrame({'subject': subject, 'block': block % 2})
    spikes = pd.DataFrame({'subject': [1, 2, 2, 3], 'block': 0, 'sample': 5})
    annotated = np.random.default_rng(0).integers(0, 2, 3 * n)
    windows = np.arange(n)[:, None, None] * np.ones((1, 2, 20), dtype=np.float32)
    signals, kind = [np.zeros((2, 30))] * 6, np.full(3 * n, 'dipoles')
    return Part(windows, signals, annotated, annotated, block, kind, np.ones(n), places, spikes)


def test_the_labels_of_the_first_patients_alone_are_used():
    cohort = Cohort(part(), part(), part(), SHAPE, 2)
    two = first_patients(cohort, 2)
    assert two.test is cohort.test
    assert (len(two.train.windows), len(two.train.signals), len(two.train.gain)) == (8, 4, 8)
    assert sorted(set(two.train.places['subject'])) == sorted(set(two.train.spikes['subject'])) == [1, 2]
    inputs, labels_t = examples(two.train, cohort)
    labels = subwindow_labels(torch.from_numpy(labels_t), SHAPE).numpy().ravel()
    np.testing.assert_array_equal(labels, cohort.train.annotated[:24])
    assert torch.equal(inputs.__getitems__([5])[0], torch.full((1, 1, 2, 20), 5.0))


def test_differences_are_those_of_the_same_patients():
    detectors = ['finetuned, pretrained', 'finetuned, scratch', 'finetuned, frozen', REFERENCE]
    rows = []
    for subject, (pretrained, reference) in enumerate([(0.5, 0.2), (0.9, 0.8)]):
        for detector, value in zip(detectors, (pretrained, 0.4, 0.3, reference), strict=True):
            unit = {'kind': 'eeg', 'seed': 0, 'patients': 3, 'subject': subject}
            rows.append(unit | {'detector': detector, 'PR-AUC': value})
    differences = paired_differences(pd.DataFrame(rows))
    assert differences.loc[('finetuned, pretrained - finetuned, scratch', 3), 'mean'] == pytest.approx(0.3)
    row = differences.loc[(f'finetuned, pretrained - {REFERENCE}', 3)]
    assert row['mean'] == pytest.approx(0.2)
    assert row['low'] < 0.1 < 0.3 < row['high']
