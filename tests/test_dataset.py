"""The id table, the split, and the batches."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timeseries_dataset import (
    PARTS,
    WindowDataset,
    batches,
    id_table,
    open_directory,
    split_units,
    split_windows,
    with_parts,
)
from utils import DataError, SettingError

MADE_WITH = {'sfreq': 150, 'window_size': 2.0, 'spike_spacing_from_border': 0.3, 'standardize': 'block'}
SPLIT = {'validation_fraction': 0.25, 'test_fraction': 0.25, 'seed': 0}


@pytest.fixture
def patients(recordings, write_raw, make_windows, tmp_path):
    """Windows of three patients, opened: (autoencoder's set, classifier's set)."""
    for number in (1, 2, 5):
        path = write_raw(recordings(seed=number), number)
    make_windows(path.parent, tmp_path)
    return tuple(open_directory(tmp_path / name, 3, False, MADE_WITH) for name in ('windows_ae', 'windows_clf'))


def test_the_id_table_has_a_row_per_window(patients):
    _, clf = patients
    table = id_table(clf)
    assert len(table) == sum(len(one.labels) for one in clf) == 3 * (2 + 3)
    assert table['subject'].unique().tolist() == [1, 2, 5]
    for row in table.itertuples():
        one = clf[row.patient]
        found = (one.subject, one.blocks[row.window], one.timing[row.window], one.labels[row.window])
        assert found == (row.subject, row.block, row.timing, row.label)


@given(st.lists(st.booleans(), min_size=3, max_size=30), st.integers(0, 99), st.tuples(*[st.floats(0.01, 0.48)] * 2))
def test_every_unit_has_one_part_and_every_part_a_unit_with_spikes(has_spike, seed, fractions):
    has_spike = [True, True, True, *has_spike]
    parts = split_units(list(range(len(has_spike))), has_spike, fractions, seed)
    assert sorted(parts) == list(range(len(has_spike)))
    assert {parts[i] for i, spike in enumerate(has_spike) if spike} == set(PARTS)


def blocks_table(spikes_of_patients):
    rows = [(s, b, n) for s, spikes in spikes_of_patients.items() for b, n in enumerate(spikes)]
    return pd.DataFrame(rows, columns=['subject', 'block', 'label'])


def test_no_patient_is_on_both_sides_and_both_sets_have_the_same_partition(patients):
    ae, clf = (id_table(one) for one in patients)
    parts, by = split_windows(clf, split='auto', **SPLIT)
    assert by == 'patient'
    for table in (ae, clf):
        with_part = with_parts(table, parts, by)
        assert len(with_part) == len(table)
        assert (with_part.groupby('subject')['part'].nunique() == 1).all()
    sides = [with_parts(t, parts, by).groupby('subject')['part'].first().to_dict() for t in (ae, clf)]
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == set(PARTS)


def test_few_patients_are_split_by_block():
    table = blocks_table({1: [1, 1, 1, 0], 2: [1, 1, 1, 1]})
    parts, by = split_windows(table, split='auto', **SPLIT)
    assert by == 'block'
    assert len(parts) == 8
    assert set(parts['part']) == set(PARTS)
    with pytest.raises(DataError, match=r"2 patients with spikes: split='patient' needs three.*split='block'"):
        split_windows(table, split='patient', **SPLIT)
    with pytest.raises(DataError, match='2 blocks with spikes: three are needed'):
        split_windows(blocks_table({1: [1, 1, 0]}), split='block', **SPLIT)


def test_patients_that_only_the_autoencoder_has_are_trained_on():
    parts, by = split_windows(blocks_table({1: [1], 2: [1], 3: [1]}), split='patient', **SPLIT)
    joined = with_parts(blocks_table({3: [0], 9: [0]}), parts, by)
    assert joined.loc[joined['subject'] == 9, 'part'].tolist() == ['train']


def test_windows_made_with_other_settings_are_refused_by_name(patients, tmp_path):
    directory = tmp_path / 'windows_ae'
    with pytest.raises(SettingError, match=r'300 samples, but window_size x sfreq is 150'):
        open_directory(directory, 3, False, MADE_WITH | {'window_size': 1.0})
    with pytest.raises(SettingError, match=r"made with standardize = 'block', but standardize is True now"):
        open_directory(directory, 3, False, MADE_WITH | {'standardize': True})
    with pytest.raises(SettingError, match=r'made with spike_spacing_from_border = 0\.3'):
        open_directory(directory, 3, False, MADE_WITH | {'spike_spacing_from_border': 0.2})
    assert len(open_directory(directory, 3, False, MADE_WITH | {'window_size': 2, 'sfreq': 150.0})) == 3
    for sidecar in directory.glob('*_settings.json'):
        sidecar.unlink()  # as the original code leaves them
    assert len(open_directory(directory, 3, False, MADE_WITH | {'standardize': True})) == 3
    (directory / 'data_raw_001_b3_settings.json').write_text('{}')
    with pytest.raises(DataError, match=r'data_raw_001_b3_settings\.json: not the settings'):
        open_directory(directory, 3, False, MADE_WITH)


def test_a_batch_holds_the_windows_asked_for_in_their_order(patients):
    _, clf = patients
    table = id_table(clf)
    dataset = WindowDataset(clf, table, zscore=False)
    order = [7, 0, 14, 3, 7]
    x, target = dataset.__getitems__(order)
    assert x.shape == (5, 1, 274, 300)
    assert x.dtype == torch.float32
    for i, index in enumerate(order):
        row = table.iloc[index]
        np.testing.assert_array_equal(x[i, 0], clf[int(row['patient'])].windows[int(row['window'])])
    assert torch.equal(x, target)
    assert torch.equal(dataset[3][0], x[3])


def test_zscore_and_noise(patients):
    _, clf = patients
    table = id_table(clf)
    raw, _ = WindowDataset(clf, table, zscore=False).__getitems__([4, 2])
    dataset = WindowDataset(clf, table, zscore=True, noise=0.2, seed=3)
    x, target = dataset.__getitems__([4, 2])
    for i in range(2):
        window = raw[i].double()
        expected = (window - window.mean()) / window.std(correction=0)
        torch.testing.assert_close(target[i].double(), expected, rtol=1e-4, atol=1e-5)
    noise = (x - target).double()
    assert abs(noise.mean()) < 4 * 0.2 / noise.numel() ** 0.5
    assert abs(noise.std() / 0.2 - 1) < 0.01
    dataset.epoch = 1
    assert not torch.equal(x, dataset.__getitems__([4, 2])[0])
    assert torch.equal(target, dataset.__getitems__([4, 2])[1])


def test_workers_give_the_same_batches_as_none(patients):
    _, clf = patients
    seen = []
    for workers in (0, 2):
        dataset = WindowDataset(clf, id_table(clf), zscore=True, noise=0.2, seed=5)
        loader = batches(dataset, batch_size=4, shuffle=True, seed=5, num_workers=workers)
        epochs = []
        for epoch in (1, 2):
            dataset.epoch = epoch
            epochs += [x for x, _ in loader]
        seen.append(epochs)
    assert [len(x) for x in seen[0]] == [4, 4, 4, 3] * 2
    for alone, with_workers in zip(*seen, strict=True):
        assert torch.equal(alone, with_workers)
    assert not torch.equal(seen[0][0], seen[0][4])  # another order, other noise in the second epoch
