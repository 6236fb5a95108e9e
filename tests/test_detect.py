"""detect.py: every sample scored as in training, files for the reviewer, and the way back."""

import hashlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest
import torch
from common import N_BLOCKS, SFREQ, SHORT_TRAINING, write_fif
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

import create_data_raw
import main_train
from classification import load_run, score_block
from classifiers.features import N_POWERS
from classifiers.subwindows import place_windows, subwindow_shape
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.data_raw import read_data_raw
from recordings.marker_files import read_marker_file
from recordings.pickles import read_pickle, write_pickle
from recordings.reading import read_recording
from reports.recording_detections import seconds_of_events, seconds_of_subwindows
from runs.run_directory import RunDirectory
from utils import DataError

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}


def loaded(trained):
    settings = json.loads(trained.run.params.read_text())['settings']
    best = trained.run.checkpoint('best'), trained.run.checkpoint('best', 'forest')
    return load_run(settings, *best, torch.device('cpu'))


# ------------------------------------------------------------------------------------------ every sample
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 30),
    st.integers(0, 11),
)
def test_subwindows_tile_every_part_as_in_training(lengths, subwindow_length, n_subwindows, border, rest):
    n_times = 2 * border + n_subwindows * subwindow_length + rest % subwindow_length
    shape = subwindow_shape(n_times, border, subwindow_length)
    samples, table = place_windows(lengths, shape, n_times)
    scored = table[table['kept']].sort_values(['part', 'timing'])
    # Every sample once, in order, no sub-window empty.
    tiled = np.concatenate([np.arange(*ends) for ends in scored[['onset', 'end']].itertuples(index=False)])
    np.testing.assert_array_equal(tiled, np.arange(sum(lengths)))
    assert (scored['end'] > scored['onset']).all()
    ends = np.cumsum(lengths)
    hop = n_subwindows * subwindow_length
    for part, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        rows = np.flatnonzero(table['part'] == part)
        windows = samples[rows[::n_subwindows] // n_subwindows]
        # No window shows another part; the windows that fit come first and are those of training.
        assert windows.min() >= end - length
        assert windows.max() < end
        fitting = [np.arange(start, start + n_times) for start in range(0, length - n_times + 1, hop)]
        np.testing.assert_array_equal(windows[: len(fitting)], np.reshape(fitting, (-1, n_times)) + end - length)
        assert table['kept'].to_numpy()[rows[: len(fitting) * n_subwindows]].all()
    # A sub-window shows the samples that its row names, and mirror images of them beyond the ends.
    window, number = np.divmod(np.flatnonzero(table['kept']), n_subwindows)
    for row, w, i in zip(table[table['kept']].itertuples(), window, number, strict=True):
        shown = samples[w, border + i * subwindow_length :][:subwindow_length]
        assert set(range(row.onset, row.end)) <= set(shown)
        if row.end - row.onset == subwindow_length:
            np.testing.assert_array_equal(shown, np.arange(row.onset, row.end))


def test_windows_that_leave_inner_samples_out_are_laid_closer():
    shape = subwindow_shape(300, 45, 40)
    assert shape.n_subwindows * shape.subwindow_length == 200 < 300 - 90
    samples, table = place_windows([900], shape, 300)
    assert samples[1, 0] == 200
    assert math.isclose((table['end'] - table['onset'])[table['kept']].sum(), 900)


def test_probabilities_are_those_of_the_runs_own_test(trained, apply, tmp_path):
    predictions = pd.read_csv(trained.run.predictions)
    [block] = set(predictions['block'])
    apply(trained.recordings[block], output=tmp_path)
    folder = tmp_path / f'run{block}_raw_detections'
    scored = pd.read_csv(folder / 'probabilities.csv')
    middle = SFREQ * (scored['onset'] + scored['duration'] / 2)
    inside = scored[(middle >= predictions['timing'].min() - 0.1) & (middle <= predictions['timing'].max() + 0.1)]
    assert len(inside) == len(predictions)
    np.testing.assert_allclose(inside['proba'], predictions['proba'], atol=1e-6)
    np.testing.assert_array_equal(inside['pred'], predictions['pred'])
    assert scored['duration'].sum() == pytest.approx(20)
    np.testing.assert_allclose(scored['onset'][1:], (scored['onset'] + scored['duration'])[:-1], atol=2e-6)

    # The block of the data_raw made of it is the same signal; the other blocks are left out.
    content = read_pickle(trained.folder / 'raw' / 'data_raw_001.pkl')
    write_pickle(tmp_path / 'data_raw_007.pkl', {key: values[block : block + 1] for key, values in content.items()})
    apply(tmp_path / 'data_raw_007.pkl')
    for name in ('probabilities.csv', 'detections.csv'):
        assert (tmp_path / 'data_raw_007_detections' / 'block_00' / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    'changes',
    [
        {'classifier': 'finetuned', 'classifier_width': 4, 'classifier_num_epochs': 1, 'pretraining_epochs': 1},
        {'features': 'spectrum'},
    ],
    ids=['finetuned', 'spectrum'],
)
def test_what_is_trained_on_the_autoencoder_of_a_run_detects_as_it_was_tested(trained, apply, tmp_path, changes):
    """A network on whole windows, and what knows the spectrum of the block; by mode clf."""
    paths = {'path_extracted_data': [str(trained.folder / 'windows_ae'), str(trained.folder / 'windows_clf')],
             'path_writing_data': trained.folder / 'results'}  # fmt: skip
    words = [f'{name}={value}' for name, value in (paths | SHORT_TRAINING | {'model_nb': 1} | changes).items()]
    main_train.main(['clf', 'AE1D_smaller', *words])
    numbers = (int(path.name.rpartition('_')[2]) for path in (trained.folder / 'results').glob('AE1D_smaller_*'))
    run = RunDirectory(trained.folder / 'results' / f'AE1D_smaller_{max(numbers)}')
    predictions = pd.read_csv(run.predictions)
    [block] = set(predictions['block'])
    apply(trained.recordings[block], run=run.path, output=tmp_path)
    scored = pd.read_csv(tmp_path / f'run{block}_raw_detections' / 'probabilities.csv')
    middle = SFREQ * (scored['onset'] + scored['duration'] / 2)
    inside = scored[(middle >= predictions['timing'].min() - 0.1) & (middle <= predictions['timing'].max() + 0.1)]
    assert len(inside) == len(predictions)
    np.testing.assert_allclose(inside['proba'], predictions['proba'], rtol=1e-3)  # float32, in other batches


def test_lack_of_memory_is_no_damaged_checkpoint(trained, monkeypatch):
    def fail(self, path):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr('classifiers.forest.RandomForest.load', fail)
    with pytest.raises(torch.OutOfMemoryError):
        loaded(trained)


def test_spikes_in_the_margins_are_found(trained):
    """A spike cut to 7 samples from the beginning, then to 7 from the end, of a recording."""
    run, spikes = loaded(trained), read_data_raw(trained.folder / 'raw' / 'data_raw_001.pkl')['events'][2]
    whole = score_block(run, trained.meg[2], [3000])
    surest = int(whole.events.loc[whole.events['proba'].idxmax(), 'sample'])
    assert abs(spikes - surest).min() <= 2
    for first, last, sample in ((surest - 7, 3000, 7), (0, surest + 8, surest)):
        detected = score_block(run, trained.meg[2][:, first:last], [last - first])
        assert sample in detected.events['sample'].tolist()


def test_nothing_is_scored_across_a_gap(trained):
    """But for the medians of the block, which all its parts have in common."""
    score = SimpleNamespace(predict_proba=lambda inputs: expit(inputs[:, :-N_POWERS].mean(axis=1, dtype=np.float64)))
    decision = {'calibration': {'method': 'temperature', 'temperature': 1.0, 'offset': 0.0}, 'threshold': 0.5}
    run = loaded(trained)._replace(classifier=score, decision=decision)
    signal, rng = trained.meg[2], np.random.default_rng(0)
    parts = [1000, 100, 1900]
    permuted = signal.copy()
    permuted[:, 1100:] = permuted[:, 1100 + rng.permutation(1900)]  # same mean and standard deviation
    expected, scored = (score_block(run, meg, parts).subwindows for meg in (signal, permuted))
    assert expected['end'].tolist()[-1] == 3000
    before = (expected['part'] < 2).to_numpy()
    np.testing.assert_allclose(expected['proba'][before], scored['proba'][before], atol=1e-6)
    assert abs(expected['proba'][~before] - scored['proba'][~before]).max() > 0.01


# -------------------------------------------------------------------------------------------- round trip
def test_the_round_trip(trained, apply, make_windows, tmp_path, capsys):
    raw = tmp_path / 'raw'
    shutil.copytree(trained.folder / 'raw', raw)
    path = trained.recordings[2]
    apply(path, pictures=True, output=tmp_path)
    folder = tmp_path / 'run2_raw_detections'
    assert sorted(file.name for file in folder.iterdir()) == [
        'detections.csv', 'detections.json', 'probabilities.csv', 'report.html', 'run2_raw-annot.fif',
        'run2_raw_anywave.mrk',
    ]  # fmt: skip
    output = capsys.readouterr().out
    assert 'times faster than real time' in output
    onsets = pd.read_csv(folder / 'detections.csv')['onset'].to_numpy()
    assert len(onsets) >= 3

    # MNE's browser shows them at the same times, whatever the first sample.
    original = mne.io.read_raw_fif(path, verbose='error')
    notes = mne.read_annotations(folder / 'run2_raw-annot.fif')
    original.set_annotations(original.annotations + notes)
    events, ids = mne.events_from_annotations(original, verbose='error')
    shown = events[events[:, 2] == ids['detected_spike'], 0] - original.first_samp
    np.testing.assert_array_equal(shown, np.rint(onsets * SFREQ))

    # The reviewer deletes two and adds one.
    added = original.first_time + 11.1
    corrected = mne.Annotations([*notes.onset[2:], added], 0.0, 'detected_spike', orig_time=notes.orig_time)
    corrected.save(folder / 'corrected-annot.fif', verbose='error')
    before = read_data_raw(raw / 'data_raw_001.pkl')
    words = [str(path), str(folder / 'corrected-annot.fif'), 'reannot_labels=detected_spike', f'path_raw_data={raw}']
    create_data_raw.main(['1', *words])
    after = read_data_raw(raw / 'data_raw_001.pkl')
    expected = np.sort([*np.rint(onsets[2:] * SFREQ), 1665])
    np.testing.assert_array_equal(after['reannot'][2], expected)
    for block in range(N_BLOCKS):
        np.testing.assert_array_equal(after['events'][block], before['events'][block])

    make_windows(raw, tmp_path, nb_best_blocks=0)
    stem = tmp_path / 'windows_clf' / 'data_raw_001_b0'
    timing, labels, blocks = (read_pickle(f'{stem}_{name}.pkl') for name in ('timing', 'labels', 'blocks'))
    for block in range(N_BLOCKS):
        spikes = expected if block == 2 else before['events'][block]
        inner = [(abs(spikes + 0.25 - centre) < 105).any() for centre in timing[blocks == block]]
        np.testing.assert_array_equal(labels[blocks == block], inner)


def test_the_page_and_the_record_say_where_it_all_comes_from(trained, apply, tmp_path):
    apply(trained.recordings[1], pictures=True, output=tmp_path, bad_channels=[])
    folder = tmp_path / 'run1_raw_detections'
    record = json.loads((folder / 'detections.json').read_text())
    decision = loaded(trained).decision
    assert record['recording'] == 'run1_raw.fif'
    assert (record['threshold'], record['policy']) == (decision['threshold'], decision['policy'])
    for name, value in record['checkpoints'].items():
        assert hashlib.sha256((trained.run.path / name).read_bytes()).hexdigest() == value
    assert set(record['checkpoints']) == {'best_AE1D_smaller_1.pth', 'best_forest_1.pth'}
    assert record['settings']['low_pass'] == 50
    assert record['sampling rate'] == SFREQ
    assert record['interpolated channels'] == []
    assert record['detections'] == len(pd.read_csv(folder / 'detections.csv')) > 0
    assert record['detections per minute'] == 3 * record['detections']
    # The largest group is a focus of a simulated head: the dipole lies within it.
    assert 0.02 < np.linalg.norm(np.array(record['groups'][0]['position'])) < 0.1
    assert record['groups'][0]['goodness of fit'] > 0.5
    table = pd.read_csv(folder / 'detections.csv')
    assert list(table) == ['onset', 'duration', 'probas', 'bad', 'cluster']
    assert [group['events'] for group in record['groups']] == table['cluster'].value_counts().drop(
        0, errors='ignore'
    ).tolist()
    notes = mne.read_annotations(folder / 'run1_raw-annot.fif')
    assert [note['cluster'] for note in notes.extras] == table['cluster'].tolist()
    np.testing.assert_allclose([note['proba'] for note in notes.extras], table['probas'], atol=1e-6)
    page = (folder / 'report.html').read_text()
    for words in (
        f'{decision["threshold"]:.4f}',
        decision['policy'],
        'per minute',
        'Surest events',
        'not a localisation',
    ):
        assert words in page
    assert page.count('data:image/png') >= 3


def test_a_recording_without_any_detection(trained, apply, tmp_path):
    rng = np.random.default_rng(0)
    quiet = 1e-13 * np.cumsum(rng.normal(size=(N_CHANNELS, 600)), axis=1)
    write_fif(tmp_path / 'quiet_raw.fif', quiet, [])
    run = tmp_path / 'AE1D_smaller_9'
    shutil.copytree(trained.run.path, run)
    for which in ('best', 'last'):
        (run / f'{which}_AE1D_smaller_1.pth').rename(run / f'{which}_AE1D_smaller_9.pth')
    state = torch.load(run / 'best_forest_1.pth', weights_only=True)
    state['decision']['threshold'] = 1.1
    torch.save(state, run / 'best_forest_9.pth')
    apply(tmp_path / 'quiet_raw.fif', pictures=True, run=run)
    folder = tmp_path / 'quiet_raw_detections'
    assert (folder / 'detections.csv').read_text() == 'onset,duration,probas,bad,cluster\n'
    assert json.loads((folder / 'detections.json').read_text())['groups'] == []
    assert 'No sub-window reaches the threshold' in (folder / 'report.html').read_text()


@pytest.mark.skipif(not shutil.which('xvfb-run'), reason='no virtual display: install xvfb')
@pytest.mark.skipif(not find_spec('mne_qt_browser'), reason='requirements-review.txt is not installed')
def test_a_round_with_a_reviewer_at_the_window(trained, apply, make_windows, tmp_path):
    """Detect, review under a virtual display, re-annotate, make windows, fine-tune, as docs/review.md says."""
    raw, path, folder = tmp_path / 'raw', trained.recordings[2], tmp_path / 'run2_raw_detections'
    shutil.copytree(trained.folder / 'raw', raw)
    apply(path, output=tmp_path)
    detected = pd.read_csv(folder / 'detections.csv')
    words = [str(path), 'reviewer=robot', f'output={tmp_path}', f'path_raw_data={raw}']
    robot = Path(__file__).with_name('reports') / 'review_robot.py'
    command = ['xvfb-run', '-a', '-s', '-screen 0 1280x1024x24', sys.executable, str(robot), str(tmp_path), *words]
    environment = os.environ | {'QT_QPA_PLATFORM': 'xcb', 'HOME': str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / f'{name}.png').stat().st_size > 20_000 for name in ('shown', 'moved', 'corrected'))
    log = pd.read_csv(folder / 'review_log.csv')
    assert log['change'].value_counts()[['deleted', 'added']].tolist() == [1, 1]
    assert set(log['reviewer']) == {'robot'}
    # Every detection is in the log, as itself or as the marker beside it.
    assert all(abs(log['onset'] - onset).min() <= 0.1 for onset in detected['onset'])
    assert (folder / 'run2_raw-annot.fif.1').is_file()

    [line] = [line for line in ended.stdout.splitlines() if line.startswith('python create_data_raw.py 1 ')]
    before = read_data_raw(raw / 'data_raw_001.pkl')
    create_data_raw.main(shlex.split(line)[2:])
    after = read_data_raw(raw / 'data_raw_001.pkl')
    left = log.loc[log['change'] != 'deleted', 'onset'].to_numpy()
    np.testing.assert_array_equal(after['reannot'][2], np.unique(np.rint(left * SFREQ)))
    np.testing.assert_array_equal(after['events'][2], before['events'][2])
    make_windows(raw, tmp_path, nb_best_blocks=0)
    paths = [
        f'path_raw_data={raw}',
        f'path_extracted_data={[str(tmp_path / "windows_ae"), str(tmp_path / "windows_clf")]}',
        f'path_writing_data={trained.folder / "results"}',
    ]
    tiny = [f'{name}={value}' for name, value in (SHORT_TRAINING | {'num_epochs': 1}).items()]
    before = set((trained.folder / 'results').glob('AE1D_smaller_*'))
    main_train.main(['ft', 'AE1D_smaller', 'model_nb=1', *tiny, *paths])
    [made] = set((trained.folder / 'results').glob('AE1D_smaller_*')) - before
    assert (made / 'metrics.json').is_file()


# ------------------------------------------------------------------------------------------ CTF recordings
def test_the_recording_is_not_touched_unless_asked(trained, apply, make_ds, monkeypatch, shared, capsys):
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)
    names = ctf275_info(SFREQ)['ch_names']
    signals = dict(zip(names, trained.meg[2].astype(np.float64), strict=True))
    ds = make_ds('patient', signals, n_trials=2, sfreq=float(SFREQ), before_sync=30)
    shutil.copyfile(shared / 'ctf' / 'example_MarkerFile.mrk', ds / 'MarkerFile.mrk')
    before = {file.name: file.read_bytes() for file in ds.iterdir()}
    apply(ds)
    assert {file.name: file.read_bytes() for file in ds.iterdir()} == before
    folder = ds.parent / 'patient_detections'
    record = json.loads((folder / 'detections.json').read_text())
    assert record['interpolated channels'] == ['MRF66', 'MRO52']
    onsets = pd.read_csv(folder / 'detections.csv')['onset'].to_numpy()
    assert len(onsets) > 1
    assert [of_class.name for of_class in read_marker_file(folder / 'MarkerFile.mrk')[1]] == [
        'HDAC006',
        'detected_spike',
    ]

    capsys.readouterr()
    apply(ds, markers_into_recording=True)
    assert 'the file before kept as MarkerFile.mrk.1' in capsys.readouterr().out
    after = {file.name: file.read_bytes() for file in ds.iterdir()}
    assert after.pop('MarkerFile.mrk.1') == before['MarkerFile.mrk']
    merged = after.pop('MarkerFile.mrk')
    assert merged == (folder / 'MarkerFile.mrk').read_bytes()
    assert after.items() <= before.items()
    raw = mne.io.read_raw_ctf(ds, verbose='error')
    events, ids = mne.events_from_annotations(raw, verbose='error')
    np.testing.assert_array_equal(events[events[:, 2] == ids['detected_spike'], 0], np.rint(onsets * SFREQ))
    apply(ds, markers_into_recording=True)
    assert (ds / 'MarkerFile.mrk').read_bytes() == merged
    (ds / 'MarkerFile.mrk').write_bytes(merged.replace(b'+0.', b'+0,'))
    with pytest.raises(DataError, match=r'patient\.ds/MarkerFile\.mrk: .* decimal point'):
        apply(ds)


def test_continuous_parts_apart_give_the_times_of_the_recording(trained, tmp_path):
    raw = mne.io.RawArray(trained.meg[2].astype(np.float64), ctf275_info(SFREQ), verbose='error')
    raw.set_annotations(mne.Annotations([8.0], 0.0, 'EDGE boundary'))
    raw.save(tmp_path / 'two_raw.fif', verbose='error')
    run = loaded(trained)
    blocks = read_recording(tmp_path / 'two_raw.fif', **READING | {'trials': 'apart'})
    scored = [score_block(run, block.meg, block.layout.lengths(SFREQ).tolist()) for block in blocks]
    subwindows = seconds_of_subwindows(blocks, scored)
    assert subwindows['onset'].iloc[0] == 0
    np.testing.assert_allclose(subwindows['onset'][1:], (subwindows['onset'] + subwindows['duration'])[:-1], atol=1e-9)
    assert subwindows['duration'].sum() == pytest.approx(20)
    events = seconds_of_events(blocks, scored)
    assert events['onset'].is_monotonic_increasing
    assert (events['onset'] > 8).any()
