"""detect.py: every sample scored as in training, files for the reviewer, the way back, and faults."""

import hashlib
import json
import math
import os
import re
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
from common import NO_DIPOLE, clear_patient
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

import create_data_raw
import detect
import main_train
from classification import load_run, place_windows, score_block
from classifiers.features import N_POWERS
from classifiers.subwindows import subwindow_shape
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.data_raw import read_data_raw
from recordings.marker_files import read_marker_file
from recordings.pickles import read_pickle, write_pickle
from recordings.reading import read_recording
from reports import detection_planning
from reports.recording_detections import seconds_of_events, seconds_of_subwindows
from runs.run_directory import RunDirectory
from training.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError, SettingError, write_json

SFREQ, FIRST_SAMP, N_BLOCKS = 150, 1234, 4
TRAINING = {
    'nb_best_blocks': 0,
    'width': 1,
    'batch_size': 16,
    'num_epochs': 2,
    'bootstrap_samples': 20,
}
READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}


def write_fif(path, signal, spikes):
    raw = mne.io.RawArray(signal.astype(np.float64), ctf275_info(SFREQ), first_samp=FIRST_SAMP, verbose='error')
    raw.set_meas_date(1.0e9)
    raw.set_annotations(mne.Annotations(np.asarray(spikes) / SFREQ, 0.0, 'spike'))
    raw.save(path, verbose='error')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, make_windows):
    """A patient simulated and written as FIF, its data_raw and windows, and a run on them: folder, recordings, run."""
    folder = tmp_path_factory.mktemp('trained')
    data = clear_patient(1, n_blocks=N_BLOCKS, block_seconds=20, spike_rate=18.0, sfreq=SFREQ)
    recordings = [folder / f'run{i}_raw.fif' for i in range(N_BLOCKS)]
    for path, signal, spikes in zip(recordings, data['meg'], data['events'], strict=True):
        write_fif(path, signal, spikes)
    create_data_raw.main(['1', *map(str, recordings), f'path_raw_data={folder / "raw"}'])
    made = read_data_raw(folder / 'raw' / 'data_raw_001.pkl')
    for events, spikes in zip(made['events'], data['events'], strict=True):
        np.testing.assert_array_equal(events, spikes)
    make_windows(folder / 'raw', folder, nb_best_blocks=0)
    paths = {
        'path_raw_data': folder / 'raw',
        'path_extracted_data': [str(folder / 'windows_ae'), str(folder / 'windows_clf')],
        'path_writing_data': folder / 'results',
    }
    main_train.main(['auto', 'AE1D_smaller', *(f'{name}={value}' for name, value in (paths | TRAINING).items())])
    return SimpleNamespace(
        folder=folder, recordings=recordings, run=RunDirectory(folder / 'results' / 'AE1D_smaller_1'), meg=made['meg']
    )


@pytest.fixture
def apply(trained, monkeypatch):
    """Run detect.py on recordings; the pictures only where asked for, because they take a second."""

    def run(*recordings, pictures=False, run=trained.run.path, **settings):
        with monkeypatch.context() as patch:
            if not pictures:
                patch.setattr('reports.detection_files.write_report', lambda *arguments: None)
                patch.setattr('reports.foci.fit_dipoles', lambda fields, *rest: [NO_DIPOLE] * len(fields))
            words = [f'{name}={value}' for name, value in settings.items()]
            detect.main([str(run), *map(str, recordings), *words])

    return run


def loaded(trained):
    settings = json.loads(trained.run.params.read_text())['settings']
    best = trained.run.checkpoint('best'), trained.run.checkpoint('best', 'hgb')
    return load_run(settings, *best, torch.device('cpu'))


def test_a_classifier_of_earlier_features_is_refused(trained, tmp_path):
    settings = json.loads(trained.run.params.read_text())['settings']
    state = load_checkpoint(trained.run.checkpoint('best', 'hgb'))
    del state['features_version']
    save_checkpoint(tmp_path / 'earlier.pth', state)
    with pytest.raises(DataError, match=r'earlier\.pth: the features of `hgb` have changed since; train .* again'):
        load_run(settings, trained.run.checkpoint('best'), tmp_path / 'earlier.pth', torch.device('cpu'))


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


def test_a_network_on_whole_windows_detects_as_it_was_tested(trained, apply, tmp_path):
    """Trained by mode clf on the autoencoder of the run."""
    paths = {'path_extracted_data': [str(trained.folder / 'windows_ae'), str(trained.folder / 'windows_clf')],
             'path_writing_data': trained.folder / 'results'}  # fmt: skip
    changes = {'model_nb': 1, 'classifier': 'finetuned', 'classifier_num_epochs': 1, 'classifier_width': 4}
    words = [f'{name}={value}' for name, value in (paths | TRAINING | changes).items()]
    main_train.main(['clf', 'AE1D_smaller', *words])
    run = RunDirectory(trained.folder / 'results' / 'AE1D_smaller_2')
    predictions = pd.read_csv(run.predictions)
    [block] = set(predictions['block'])
    apply(trained.recordings[block], run=run.path, output=tmp_path)
    scored = pd.read_csv(tmp_path / f'run{block}_raw_detections' / 'probabilities.csv')
    middle = SFREQ * (scored['onset'] + scored['duration'] / 2)
    inside = scored[(middle >= predictions['timing'].min() - 0.1) & (middle <= predictions['timing'].max() + 0.1)]
    assert len(inside) == len(predictions)
    np.testing.assert_allclose(inside['proba'], predictions['proba'], rtol=1e-3)  # float32, in other batches


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
    assert set(record['checkpoints']) == {'best_AE1D_smaller_1.pth', 'best_hgb_1.pth'}
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
    state = torch.load(run / 'best_hgb_1.pth', weights_only=True)
    state['decision']['threshold'] = 1.1
    torch.save(state, run / 'best_hgb_9.pth')
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
    tiny = [f'{name}={value}' for name, value in (TRAINING | {'num_epochs': 1}).items()]
    main_train.main(['ft', 'AE1D_smaller', 'model_nb=1', *tiny, *paths])
    assert (trained.folder / 'results' / 'AE1D_smaller_2' / 'metrics.json').is_file()


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


# ------------------------------------------------------------------------------------------- a whole study
@pytest.fixture
def study(trained, tmp_path):
    """A table of two patients, with two and one recordings of their own."""
    for number in range(3):
        shutil.copyfile(trained.recordings[number], tmp_path / f'rec{number}_raw.fif')
    table = tmp_path / 'cohort.csv'
    table.write_text('patient,recording\n1,rec0_raw.fif\n1,rec1_raw.fif\n5,rec2_raw.fif\n')
    return table


def results(printed):
    """Number, result and reason of every patient in the table at the end."""
    return re.findall(r'^ +(\d+)  (made|skipped|refused) +(.*)$', printed, re.MULTILINE)


def test_a_study_is_detected_in_and_then_skipped_until_something_changes(trained, apply, study, capsys):
    apply(study, output=study.parent / 'out')
    first = results(capsys.readouterr().out)
    assert [row[:2] for row in first] == [('1', 'made'), ('5', 'made')]
    folders = [study.parent / 'out' / '001' / f'rec{i}_raw_detections' for i in (0, 1)]
    folders.append(study.parent / 'out' / '005' / 'rec2_raw_detections')
    n_events = [len(pd.read_csv(folder / 'detections.csv')) for folder in folders]
    assert f'{n_events[0] + n_events[1]} detections in 2 recordings' in first[0][2]
    alone = study.parent / 'alone'
    apply(study.parent / 'rec2_raw.fif', output=alone)
    for name in ('detections.csv', 'probabilities.csv'):
        assert (alone / 'rec2_raw_detections' / name).read_bytes() == (folders[2] / name).read_bytes()
    capsys.readouterr()
    apply(study, output=study.parent / 'out')
    assert [row[1] for row in results(capsys.readouterr().out)] == ['skipped', 'skipped']
    (folders[1] / 'detections.csv').unlink()
    apply(study, output=study.parent / 'out')
    made, skipped = results(capsys.readouterr().out)
    assert made[1:] == ('made', f'{n_events[1]} detections in 1 recordings; 1 made before')
    assert skipped[1] == 'skipped'
    for change in ({'marker_name': 'mine'}, {'marker_name': 'mine', 'overwrite': True}):
        apply(study, output=study.parent / 'out', patient=5, **change)
        assert [row[:2] for row in results(capsys.readouterr().out)] == [('5', 'made')]


def test_one_faulty_patient_does_not_stop_the_detection_in_others(apply, study, capsys):
    (study.parent / 'rec1_raw.fif').unlink()
    with pytest.raises(DataError, match=r'1 of 2 patients refused \(1\): the table above says why'):
        apply(study)
    refused, made = results(capsys.readouterr().out)
    assert 'rec1_raw.fif: no such recording' in refused[2]
    assert made[1] == 'made'
    assert not (study.parent / 'rec0_raw_detections').exists()
    assert (study.parent / 'rec2_raw_detections' / 'detections.json').is_file()


def test_a_recording_that_the_run_was_trained_on_is_said(trained, apply, tmp_path, capsys):
    apply(trained.recordings[1], output=tmp_path)
    warning = 'the run has seen this recording: it is in data_raw_001.pkl, of a patient of its training'
    assert f'warning: run1_raw.fif: {warning}' in capsys.readouterr().out
    assert warning in json.loads((tmp_path / 'run1_raw_detections' / 'detections.json').read_text())['warnings'][0]
    write_fif(tmp_path / 'new_raw.fif', trained.meg[1][:, ::-1], [])
    apply(tmp_path / 'new_raw.fif')
    assert 'has seen' not in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- bad input
@pytest.fixture
def spoiled(trained, tmp_path):
    """A copy of the run in which one thing was changed."""

    def make(change):
        run = tmp_path / 'AE1D_smaller_1'
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained.run.path, run)
        change(run)
        return run

    return make


def other_setting(name, value):
    def change(run):
        params = json.loads((run / 'params.json').read_text())
        params['settings'][name] = value
        write_json(run / 'params.json', params)

    return change


def only_folds(run):
    (run / 'fold_1').mkdir()
    (run / 'best_AE1D_smaller_1.pth').unlink()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (other_setting('window_size', 1.0), r'best_AE1D_smaller_1\.pth: trained on windows of 300 samples.*= 150'),
        (other_setting('window_size', 'long'), r"params\.json: window_size = 'long'"),
        (other_setting('low_pass', 80.0), None),  # what data_raw_001.json says counts
        (lambda run: (run / 'params.json').unlink(), r'params\.json: not the settings of a run'),
        (lambda run: (run / 'metrics.json').unlink(), 'not finished, metrics.json is missing'),
        (lambda run: (run / 'best_AE1D_smaller_1.pth').unlink(), r'best_AE1D_smaller_1\.pth: no such file'),
        (lambda run: (run / 'best_hgb_1.pth').unlink(), r'best_hgb_1\.pth: no such file'),
        (lambda run: (run / 'best_hgb_1.pth').write_bytes(b'x'), r'best_hgb_1\.pth: not a checkpoint'),
        (
            lambda run: shutil.copyfile(run / 'best_hgb_1.pth', run / 'best_AE1D_smaller_1.pth'),
            r'best_AE1D_smaller_1\.pth: not an autoencoder',
        ),
        (
            lambda run: shutil.copyfile(run / 'best_AE1D_smaller_1.pth', run / 'best_hgb_1.pth'),
            r'best_hgb_1\.pth: not a hgb',
        ),
        (only_folds, 'fold 1 of the cross-validation is missing .* take one fold, such as AE1D_smaller_1/fold_1'),
    ],
)
def test_faults_of_a_run(trained, spoiled, apply, tmp_path, change, message):
    run = spoiled(change)
    if message is None:
        apply(trained.recordings[0], run=run, output=tmp_path / 'out')
        record = json.loads((tmp_path / 'out' / 'run0_raw_detections' / 'detections.json').read_text())
        assert record['settings']['low_pass'] == 50
        return
    with pytest.raises(DataError, match=message):
        apply(trained.recordings[0], run=run, output=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_settings_of_the_run_count_and_differences_are_said(trained, apply, tmp_path, capsys):
    apply(trained.recordings[3], output=tmp_path, window_size=1.0, standardize='window', low_pass=40)
    output = capsys.readouterr().out
    for words in (
        'window_size = 1.0 now, but run AE1D_smaller_1 has 2.0',
        "standardize = 'window' now",
        'low_pass = 40',
    ):
        assert f'warning: {words}' in output
    with_others = (tmp_path / 'run3_raw_detections' / 'probabilities.csv').read_bytes()
    apply(trained.recordings[3], output=tmp_path)
    assert (tmp_path / 'run3_raw_detections' / 'probabilities.csv').read_bytes() == with_others


def test_a_fold_of_a_cross_validation_is_a_run(trained, apply, tmp_path):
    fold = tmp_path / 'AE1D_smaller_1' / 'fold_2'
    shutil.copytree(trained.run.path, fold)
    apply(trained.recordings[3], run='AE1D_smaller_1/fold_2', path_writing_data=tmp_path, output=tmp_path)
    assert (tmp_path / 'run3_raw_detections' / 'detections.csv').is_file()


def test_faults_of_recordings_and_folders(trained, apply, tmp_path):
    fif, out = trained.recordings[0], tmp_path / 'out'
    write_fif(tmp_path / 'short_raw.fif', np.zeros((N_CHANNELS, 299)), [])
    with pytest.raises(DataError, match=r'short_raw\.fif: is 1\.99 s long, shorter than a window'):
        apply(fif, tmp_path / 'short_raw.fif', output=out)
    with pytest.raises(DataError, match=r'none_raw\.fif: no such recording'):
        apply(tmp_path / 'none_raw.fif', output=out)
    with pytest.raises(DataError, match=r'data_raw_003\.pkl: no such recording'):
        apply(tmp_path / 'data_raw_003.pkl', output=out)
    with pytest.raises(SettingError, match=r'go into .* too'):
        apply(fif, fif, output=out)
    with pytest.raises(SettingError, match='an annotation, not a recording'):
        apply(fif, tmp_path / 'x-annot.fif', output=out)
    with pytest.raises(SettingError, match='lies in a CTF recording'):
        apply(fif, output=tmp_path / 'patient.ds')
    write_pickle(
        tmp_path / 'data_raw_004.pkl',
        {'meg': [np.zeros((N_CHANNELS, 299))], 'events': [[]], 'reannot': [[]], 'file': ['x']},
    )
    with pytest.raises(DataError, match=r'data_raw_004\.pkl: every block is shorter than a window of 300 samples'):
        apply(tmp_path / 'data_raw_004.pkl', output=out)
    with pytest.raises(SettingError, match='usage'):
        apply()
    with pytest.raises(SettingError, match="marker_name = 'my spike': must be a word"):
        apply(fif, output=out, marker_name='my spike')
    with pytest.raises(DataError, match='AE1D_7: no such run'):
        apply(fif, run='AE1D_7', output=out)
    assert not out.exists()
    out.write_text('a file in its place')
    with pytest.raises(DataError, match='out: is no folder'):
        apply(fif, output=out)
    assert out.read_text() == 'a file in its place'
    out.unlink()
    (out / 'run0_raw_detections').mkdir(parents=True)
    write_json(out / 'run0_raw_detections' / 'detections.json', {'recording': 'run0_raw.ds'})
    with pytest.raises(DataError, match=r'holds the detections of run0_raw\.ds'):
        apply(fif, output=out)


def test_a_folder_that_is_read_only(trained, apply, tmp_path, monkeypatch):
    """As any user but root sees it."""
    monkeypatch.setattr(detection_planning.os, 'access', lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(DataError, match=r'cannot be written; give output= a folder of yours'):
        apply(trained.recordings[0], output=tmp_path / 'new')
    assert list(tmp_path.iterdir()) == []


def test_data_raw_made_otherwise_is_refused(trained, apply, tmp_path):
    path = tmp_path / 'data_raw_001.pkl'
    shutil.copyfile(trained.folder / 'raw' / path.name, path)
    record = json.loads((trained.folder / 'raw' / 'data_raw_001.json').read_text())
    record['settings']['low_pass'] = 40.0
    write_json(path.with_suffix('.json'), record)
    with pytest.raises(DataError, match=r'data_raw_001\.pkl: made with low_pass = 40\.0, but the run with 50'):
        apply(path)


def test_windows_that_leave_inner_samples_out_are_laid_closer():
    shape = subwindow_shape(300, 45, 40)
    assert shape.n_subwindows * shape.subwindow_length == 200 < 300 - 90
    samples, table = place_windows([900], shape, 300)
    assert samples[1, 0] == 200
    assert math.isclose((table['end'] - table['onset'])[table['kept']].sum(), 900)
