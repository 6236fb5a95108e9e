"""The id table, the split, and the batches."""

import errno
import json
import os
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import timeseries_dataset
from runs.splits import balance, fold_units, listed_patients, split_folds, split_units, split_windows, with_parts
from timeseries_dataset import PARTS, WindowDataset, batches, id_table, open_directory, prefetched
from utils import DataError, SettingError

MADE_WITH = {'sfreq': 150, 'window_size': 2.0, 'spike_spacing_from_border': 0.3, 'standardize': 'block'}
SPLIT = {'validation_fraction': 0.25, 'test_fraction': 0.25, 'seed': 0, 'fixed': {}}


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
    assert len(table) == sum(len(opened.labels) for opened in clf) == 3 * (2 + 3)
    assert table['subject'].unique().tolist() == [1, 2, 5]
    for row in table.itertuples():
        opened = clf[row.patient]
        expected = (opened.subject, opened.blocks[row.window], opened.timing[row.window], opened.labels[row.window])
        assert expected == (row.subject, row.block, row.timing, row.label)


@given(st.lists(st.booleans(), min_size=3, max_size=30), st.integers(0, 99), st.tuples(*[st.floats(0.01, 0.48)] * 2))
def test_every_unit_has_one_part_and_every_part_a_unit_with_spikes(has_spike, seed, fractions):
    has_spike = [True, True, True, *has_spike]
    shares = dict(zip(PARTS, (1 - sum(fractions), *fractions), strict=True))
    parts = split_units(list(range(len(has_spike))), has_spike, shares, seed)
    assert sorted(parts) == list(range(len(has_spike)))
    assert {parts[i] for i, spike in enumerate(has_spike) if spike} == set(PARTS)


def blocks_table(spikes_of_patients):
    rows = [(s, b, n) for s, spikes in spikes_of_patients.items() for b, n in enumerate(spikes)]
    return pd.DataFrame(rows, columns=['subject', 'block', 'label'])


def test_no_patient_is_on_both_sides_and_both_sets_have_the_same_partition(patients):
    ae, clf = (id_table(opened) for opened in patients)
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


def test_patients_on_a_list_go_to_its_part_and_the_others_to_the_parts_without_one():
    table = blocks_table({subject: [2, 0] for subject in range(1, 10)})
    parts, by = split_windows(table, split='auto', **SPLIT | {'fixed': {4: 'test', 7: 'test'}}, closed=('test',))
    part = parts.groupby('subject')['part'].first()
    assert by == 'patient'
    assert set(part[part == 'test'].index) == {4, 7}
    assert (part == 'validation').sum() == 2  # a quarter to three quarters of the seven others
    everything = {1: 'train', 2: 'validation', 3: 'test'}
    parts, _ = split_windows(table, split='auto', **SPLIT | {'fixed': everything}, closed=PARTS)
    part = parts.groupby('subject')['part'].first()
    assert part[[1, 2, 3]].tolist() == ['train', 'validation', 'test']
    assert set(part.drop([1, 2, 3])) == {'unused'}


def test_lists_of_patients_in_text_files(tmp_path):
    path = tmp_path / 'patients.txt'
    path.write_text('4\n\n 12\r\n7\n')
    assert listed_patients('test_patients', str(path)) == [4, 12, 7]
    assert listed_patients('test_patients', None) is None
    assert listed_patients('test_patients', (3, 1)) == [3, 1]
    path.write_text('4\nfive\n')
    with pytest.raises(DataError, match=r'patients\.txt \(setting test_patients\): one patient number per line'):
        listed_patients('test_patients', str(path))
    with pytest.raises(DataError, match=r'test_patients = .*none\.txt.*cannot be read'):
        listed_patients('test_patients', str(tmp_path / 'none.txt'))


@given(st.lists(st.integers(0, 9), min_size=4, max_size=25), st.integers(-1, 4).filter(lambda k: k not in (0, 1)))
def test_folds_test_every_patient_once_and_share_the_spikes_out(n_spikes, n_splits):
    units = [f'patient {i}' for i in range(len(n_spikes))]
    folds = fold_units(units, n_spikes, n_splits, seed=0)
    assert sorted(unit for fold in folds for unit in fold) == sorted(units)
    if n_splits == -1:
        assert all(len(fold) == 1 for fold in folds)
        return
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    # Neighbours in the order of their spikes are in different folds, so no sum is off by more than the largest count.
    sums = [sum(n_spikes[units.index(unit)] for unit in fold) for fold in folds]
    assert max(sums) - min(sums) <= max(n_spikes)


def test_no_fold_has_a_patient_on_two_sides():
    table = blocks_table({1: [3], 2: [0], 3: [2, 1], 4: [1], 5: [4], 6: [0, 0], 7: [2]})
    for n_splits in (3, -1):
        folds = split_folds(table, n_splits=n_splits, validation_fraction=0.25, seed=3)
        assert len(folds) == (3 if n_splits == 3 else 7)
        for fold in folds:
            assert sorted(fold['subject']) == [1, 2, 3, 4, 5, 6, 7]
            spiking = fold[~fold['subject'].isin([2, 6])]
            assert {'train', 'validation'} <= set(spiking['part'])
        tested = [subject for fold in folds for subject in fold.loc[fold['part'] == 'test', 'subject']]
        assert sorted(tested) == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(DataError, match='7 patients are too few for n_splits = 8'):
        split_folds(table, n_splits=8, validation_fraction=0.25, seed=3)
    with pytest.raises(DataError, match='leaves 1 patients with spikes'):
        split_folds(blocks_table({1: [3], 2: [1]}), n_splits=-1, validation_fraction=0.25, seed=3)


def test_balancing_drops_spike_free_training_windows_only():
    table = pd.DataFrame({'label': [0] * 20 + [1] * 5 + [0] * 10 + [1], 'part': ['train'] * 25 + ['test'] * 11})
    balanced = balance(table, seed=0)
    assert balanced.loc[20:, 'part'].equals(table.loc[20:, 'part'])
    assert (balanced['part'][:20] == 'train').sum() == 5
    assert (balanced['part'][:20] == 'unused').sum() == 15


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


def test_windows_are_searched_for_nan_only_where_no_sidecar_calls_them_finite(patients, tmp_path):
    directory = tmp_path / 'windows_ae'
    windows = np.memmap(directory / 'data_raw_002_b3_windows_bi', '<f4', 'r+')
    windows[-1] = np.nan
    windows.flush()
    assert len(open_directory(directory, 3, False, MADE_WITH)) == 3  # checked when written: not read now
    sidecar = directory / 'data_raw_002_b3_settings.json'
    content = json.loads(sidecar.read_text())
    assert content.pop('finite') is True
    sidecar.write_text(json.dumps(content))  # as an earlier version wrote it
    with pytest.raises(DataError, match=r'data_raw_002_b3_windows_bi: window \d+ holds NaN'):
        open_directory(directory, 3, False, MADE_WITH)
    sidecar.unlink()  # as the original code leaves them
    with pytest.raises(DataError, match=r'data_raw_002_b3_windows_bi: window \d+ holds NaN'):
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


def test_a_fraction_of_the_windows_gets_the_noise_that_all_would_get(patients):
    _, clf = patients
    table = id_table(clf)
    rows = list(range(len(table)))
    every, half = (WindowDataset(clf, table, zscore=True, noise=0.2, noisy_fraction=f, seed=3) for f in (1.0, 0.5))
    for epoch in (0, 1):
        every.epoch = half.epoch = epoch
        (noisy, clean), (partly, _) = every.__getitems__(rows), half.__getitems__(rows)
        has_noise = (partly != clean).flatten(1).any(dim=1)
        assert 0 < has_noise.sum() < len(rows)
        assert torch.equal(partly[has_noise], noisy[has_noise])
        assert torch.equal(partly[~has_noise], clean[~has_noise])


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


def test_a_gpu_gets_every_window_once_before_there_is_noise(patients, monkeypatch):
    """Without a GPU at hand: a stand-in notes what is sent to it, and leaves it where it is."""
    _, clf = patients
    sent = []

    def send(values, device):
        sent.append((values, device))
        return values

    monkeypatch.setattr(timeseries_dataset, 'to_device', send)
    here, there = (
        WindowDataset(clf, id_table(clf), zscore=True, noise=0.2, seed=5, device=device) for device in ('cpu', 'cuda')
    )
    for (x, target), (expected, clean) in zip(batches(there, batch_size=4), batches(here, batch_size=4), strict=True):
        assert torch.equal(x, expected)
        assert torch.equal(target, clean)
    to_gpu = [values for values, device in sent if device.type == 'cuda']
    assert torch.equal(torch.cat(to_gpu), torch.cat([clean for _, clean in batches(here, batch_size=4)]))


def test_without_noise_input_and_target_are_one_tensor_that_is_sent_once(patients):
    _, clf = patients
    for workers in (0, 1):
        for x, target in batches(WindowDataset(clf, id_table(clf), zscore=True), batch_size=4, num_workers=workers):
            assert x is target


def test_batches_read_ahead_are_the_same_and_faults_arrive(patients):
    _, clf = patients
    dataset = WindowDataset(clf, id_table(clf), zscore=False)
    loader = batches(dataset, batch_size=4)
    for ahead, (x, _) in zip(prefetched(loader), loader, strict=True):
        assert torch.equal(ahead[0], x)
    dataset.window = dataset.window + 10**9
    with pytest.raises(IndexError):
        list(prefetched(loader))


def test_what_grows_with_the_study_lies_in_a_file(monkeypatch):
    monkeypatch.setattr(timeseries_dataset, 'LARGEST_IN_MEMORY', 100)
    assert not isinstance(timeseries_dataset.empty_array((5, 5), np.dtype('f4')), np.memmap)
    large = timeseries_dataset.empty_array((13, 2), np.dtype('f4'))
    assert isinstance(large, np.memmap)
    large[:] = np.arange(26).reshape(13, 2)
    assert (large[[12, 3]] == [[24, 25], [6, 7]]).all()  # after its file is closed too
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'posix_fallocate', mock.Mock(side_effect=full))
    with pytest.raises(SettingError, match=r'TMPDIR: .* 0\.0 GB .* \(No space left on device\); let TMPDIR name'):
        timeseries_dataset.empty_array((50,), np.dtype('f4'))
