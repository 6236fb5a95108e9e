"""The window definitions, against a second implementation written sample by sample."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from common import make_window_files, window_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing import best_blocks, cut_block
from recordings.data_raw import annotated_spikes
from recordings.window_files import LABEL_FILES
from recordings.window_settings import WindowShape, window_shape
from utils import DataError, SettingError

OPTIONS = {'normal_only': False, 'standardize': False, 'reject_artefacts': False, 'artefact_threshold': 5.0}


def windows_by_hand(signal, spikes, shape, normal_only, standardize, reject_artefacts, artefact_threshold):
    """The contract's section "Windows", one sample at a time."""
    n_samples = signal.shape[1]
    n_times, border, h = shape
    hop = n_times - 2 * border
    block = signal.astype(np.float64)
    rows = []
    k = 0
    while k * hop + n_times <= n_samples:
        start = k * hop
        k += 1
        label = 0
        label_t = [0] * n_times
        for s in spikes:
            if start + border <= s < start + n_times - border:
                label = 1
            for t in range(n_times):
                if abs(start + t - s) <= h:
                    label_t[t] = 1
        window = block[:, start : start + n_times]
        if normal_only and 1 in label_t:
            continue
        if reject_artefacts and np.abs(window - block.mean()).max() > artefact_threshold * block.std():
            continue
        if standardize in ('window', True):
            constant = np.unique(window).size == 1
            window = np.zeros_like(window) if constant else (window - window.mean()) / window.std()
        elif standardize == 'block':
            constant = np.unique(window).size == 1
            window = np.zeros_like(window) if constant else (window - block.mean()) / block.std()
        rows.append((window.astype(np.float32), label, start + n_times / 2, label_t))
    return rows


@st.composite
def cases(draw):
    n_times = draw(st.integers(2, 12))
    border = draw(st.integers(0, (n_times - 1) // 2))
    shape = WindowShape(n_times, border, draw(st.integers(0, 5)))
    n_samples = draw(st.integers(1, 60))
    spikes = draw(st.lists(st.integers(0, n_samples - 1), max_size=5))
    scale = draw(st.sampled_from([1.0, 1e-13]))
    signal = np.random.default_rng(draw(st.integers(0, 10**6))).normal(0, scale, (3, n_samples))
    if draw(st.booleans()):
        signal[:, : n_samples // 2] = signal[0, 0]  # windows without variance
    options = {
        'normal_only': draw(st.booleans()),
        'standardize': draw(st.sampled_from(['window', True, 'block', False])),
        'reject_artefacts': draw(st.booleans()),
        'artefact_threshold': draw(st.sampled_from([1.5, 2.5])),
    }
    return signal.astype(draw(st.sampled_from(['f4', 'f8']))), np.array(spikes, dtype=float), shape, options


@settings(max_examples=300)
@given(cases())
def test_windows_equal_a_second_implementation(case):
    signal, spikes, shape, options = case
    expected = windows_by_hand(signal, spikes, shape, **options)
    cut, counts = cut_block(signal, spikes, window_settings(shape, **options))

    assert cut.windows.dtype == np.dtype('<f4')
    assert cut.windows.shape == (len(expected), 3, shape.window_length)
    assert (cut.labels.dtype, cut.labels_t.dtype, cut.timing.dtype) == (np.int64, np.uint8, np.float64)
    for i, (window, label, centre, label_t) in enumerate(expected):
        np.testing.assert_allclose(cut.windows[i], window, rtol=1e-5, atol=1e-6 * np.abs(window).max())
        assert cut.labels[i] == label
        assert cut.timing[i] == centre
        assert cut.labels_t[i].tolist() == label_t
    assert counts.kept == len(expected)
    assert counts.annotated == len(spikes)
    n_fitting = max(0, (signal.shape[1] - shape.window_length) // shape.hop + 1)
    assert counts.kept + counts.with_artefact + counts.with_spike == n_fitting
    if options['normal_only']:
        assert not cut.labels_t.any()
        assert counts.covered == 0
    else:
        inside = (spikes >= shape.border) & (spikes < shape.border + n_fitting * shape.hop)
        assert counts.covered + counts.dropped == inside.sum()


@given(st.integers(0, 10), st.integers(1, 12), st.integers(0, 60))
def test_every_spike_of_the_covered_stretch_is_in_the_inner_part_of_one_window(border, hop, spike):
    shape = WindowShape(hop + 2 * border, border, 1)
    cut, _ = cut_block(np.ones((1, 80)), np.array([float(spike)]), window_settings(shape, **OPTIONS))
    n_windows = len(cut.labels)
    assert cut.labels.sum() == (border <= spike < border + n_windows * hop)


def test_spikes_on_the_borders_of_the_inner_part():
    shape = WindowShape(window_length=10, border=2, half_pulse=1)  # hop 6
    signal = np.ones((1, 10))
    made_with = window_settings(shape, **OPTIONS)
    labels = {s: cut_block(signal, np.array([float(s)]), made_with)[0].labels[0] for s in range(10)}
    assert [s for s, label in labels.items() if label] == [2, 3, 4, 5, 6, 7]


def test_a_block_shorter_than_a_window_gives_none():
    cut, counts = cut_block(np.ones((2, 9)), np.array([3.0]), window_settings(WindowShape(10, 2, 1), **OPTIONS))
    assert cut.windows.shape == (0, 2, 10)
    assert (counts.kept, counts.annotated, counts.covered) == (0, 1, 0)


def test_a_window_without_variance_is_zeros_and_counted():
    signal = np.full((2, 20), 3.3e-12)
    signal[:, 10:] = np.random.default_rng(0).normal(size=(2, 10))
    for standardize in ('window', 'block'):
        made_with = window_settings(WindowShape(10, 0, 1), **OPTIONS | {'standardize': standardize})
        cut, counts = cut_block(signal, np.zeros(0), made_with)
        assert counts.flat == 1
        assert not cut.windows[0].any()
        assert cut.windows[1].any()


def test_durations_become_samples_by_rounding():
    seconds = {'window_size': 2.0, 'spike_spacing_from_border': 0.3, 'pulse_width': 0.1, 'sfreq': 150}
    assert window_shape(**seconds) == WindowShape(300, 45, 8)  # 7.5 rounds to the even 8
    assert window_shape(**seconds).hop == 210
    with pytest.raises(SettingError, match=r'spike_spacing_from_border.*window_size'):
        window_shape(**seconds | {'spike_spacing_from_border': 1.0})


def test_the_blocks_with_the_most_spikes_in_recording_order():
    assert best_blocks([1, 5, 3, 5, 5], 2) == [1, 3]  # ties: the earlier
    assert best_blocks([0, 0, 0], 2) == [0, 1]
    assert best_blocks([1, 2, 3], 1) == [2]
    assert best_blocks([1, 2, 3], 0) == [0, 1, 2]
    assert best_blocks([1], 3) == [0]


def test_reannotation_replaces_the_events_of_its_block_only():
    data = {
        'events': [np.array([1.0]), np.array([2.0])],
        'reannot': [np.zeros(0), np.array([7.0, 9.0])],
    }
    assert [times.tolist() for times in annotated_spikes(data)] == [[1.0], [7.0, 9.0]]


# ------------------------------------------------------------------------------------------- the files
def make(raw_directory, directory, **changes):
    arguments = {
        'path_raw_data': raw_directory,
        'directory': directory,
        'patient': False,
        'nb_best_blocks': 2,
        'include_spike_free': False,
        'sfreq': 150,
        'window_size': 2.0,
        'spike_spacing_from_border': 0.3,
        'pulse_width': 0.1,
        **OPTIONS,
        'standardize': 'window',
    }
    make_window_files(**arguments | changes)


def read_columns(stem):
    return {name: pickle.loads(Path(f'{stem}_{name}.pkl').read_bytes()) for name in LABEL_FILES}


def test_the_five_files_of_a_patient(recordings, write_raw, tmp_path, capsys):
    raw = recordings(lengths=(720, 600, 930), events=((100, 400), (), (500,)))
    path = write_raw(raw, number=4)
    make(path.parent, tmp_path / 'clf')
    stem = tmp_path / 'clf' / 'data_raw_004_b2'
    names = {f'{stem.name}_{name}.pkl' for name in LABEL_FILES} | {f'{stem.name}_windows_bi'}
    names |= {f'{stem.name}_settings.json'}
    assert {file.name for file in stem.parent.iterdir()} == names

    columns = read_columns(stem)
    assert columns['blocks'].tolist() == [0] * 3 + [2] * 4  # block 1 has the fewest spikes
    assert columns['timing'].tolist() == [150.0, 360, 570, 150, 360, 570, 780]
    assert columns['labels'].tolist() == [1, 1, 0, 0, 0, 1, 0]  # inner parts start at 45, 255, 465, ...
    windows = np.fromfile(f'{stem}_windows_bi', dtype='<f4').reshape(7, 274, 300)
    expected = raw['meg'][2][:, 210:510]
    np.testing.assert_allclose(windows[4], (expected - expected.mean()) / expected.std(), rtol=1e-5, atol=1e-6)

    output = capsys.readouterr().out
    assert 'patient 004: blocks 0, 2: windows kept 7, dropped 0' in output
    assert 'spikes annotated 3, covered 3, dropped 0, in the margins of the block 0' in output

    make(path.parent, tmp_path / 'ae', normal_only=True)
    normal = read_columns(tmp_path / 'ae' / 'data_raw_004_b2')
    without_spike = ~columns['labels_t'].any(axis=1)
    assert normal['timing'].tolist() == columns['timing'][without_spike].tolist()
    assert not normal['labels_t'].any()


def test_patients_without_spikes_are_left_out_unless_asked_for(recordings, write_raw, tmp_path, capsys):
    path = write_raw(recordings(events=((), ())))
    make(path.parent, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert 'patient 001: skipped, no spike annotated' in capsys.readouterr().out
    make(path.parent, tmp_path / 'out', include_spike_free=True)
    assert len(list((tmp_path / 'out').iterdir())) == 6
    make(path.parent, tmp_path / 'out')  # the windows of the earlier run would be trained on
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing_of_its_patient(recordings, write_raw, tmp_path):
    path = write_raw(recordings())
    make(path.parent, tmp_path / 'out')
    for name in ('timing', 'labels'):
        pickle_path = tmp_path / 'out' / f'data_raw_001_b2_{name}.pkl'
        pickle_path.unlink(missing_ok=True)
        pickle_path.mkdir()
        with pytest.raises(DataError, match=f'data_raw_001_b2_{name}.pkl: cannot be written'):
            make(path.parent, tmp_path / 'out')
        assert list((tmp_path / 'out').iterdir()) == [pickle_path]
        pickle_path.rmdir()


def test_windows_of_200_ms_as_plain_classifiers_take_them(recordings, write_raw, run_script, paths, tmp_path):
    write_raw(recordings(lengths=(300,), events=((100,),)))
    ended = run_script('create_windows_clf.py', *paths, 'window_size=0.2', 'spike_spacing_from_border=0.03')
    assert (ended.returncode, ended.stderr) == (0, '')
    columns = read_columns(tmp_path / 'windows_clf' / 'data_raw_001_b3')
    assert columns['timing'].tolist() == [22.0 * k + 15 for k in range(13)]  # 4.5 samples round to 4
    assert np.flatnonzero(columns['labels']).tolist() == [4]  # inner part 92 to 113


def test_a_patient_with_no_window_to_keep_leaves_no_file(recordings, write_raw, tmp_path, capsys):
    path = write_raw(recordings(lengths=(299,), events=((100,),)))
    make(path.parent, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []
    assert 'nothing written' in capsys.readouterr().out


def test_artefacts_are_dropped_and_their_spikes_counted(recordings, write_raw, tmp_path, capsys):
    raw = recordings(lengths=(930,), events=((150, 600),))
    raw['meg'][0][7, 151] = 1e-9
    path = write_raw(raw)
    make(path.parent, tmp_path / 'out', reject_artefacts=True, artefact_threshold=20.0)
    assert read_columns(tmp_path / 'out' / 'data_raw_001_b2')['timing'].tolist() == [360, 570, 780]
    assert 'spikes annotated 2, covered 1, dropped 1' in capsys.readouterr().out


def test_a_block_that_is_not_finite_when_scaled_is_refused_by_name(recordings, write_raw, tmp_path):
    raw = recordings(lengths=(720, 720), events=((100,), (100,)))
    raw['meg'][1] = raw['meg'][1].astype(np.float64) * 1e-200  # the squares of which are 0
    path = write_raw(raw)
    with pytest.raises(DataError, match=rf'{path.name}: block 1 \({raw["file"][1]}\): samples 0 to 300 are NaN'):
        make(path.parent, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []
