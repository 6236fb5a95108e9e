"""A folder of detections is of one recording, keeps what reviewers changed, and is old or new, never a mix."""

import contextlib
import json
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest
from common import at_call, default_signals, in_child, kill, names

import detect
from classification import Detections
from recordings.channels import N_CHANNELS
from recordings.marker_files import read_marker_file, write_marker_file
from recordings.opening import open_recording, read_layout
from recordings.pickles import write_pickle
from reports import detection_files
from utils import DataError, run_script, write_json

OUTPUTS = ['detections.csv', 'detections.json', 'probabilities.csv', 'report.html']
CTF_OUTPUTS = sorted([*OUTPUTS, 'MarkerFile.mrk', 'run01-annot.fif', 'run01_anywave.mrk'])


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A run that finds a spike in the middle of every block, in no time; `run.proba` is its probability."""
    run = SimpleNamespace(path=tmp_path / 'run', name='run', params=tmp_path / 'run' / 'params.json', proba=0.9)
    run.checkpoint = lambda which, network=None: run.params
    write_json(run.params, {'settings': {}, 'split': {}})

    def score(trained, meg, part_lengths):
        middle = meg.shape[1] // 2
        row = {'part': 0, 'proba': run.proba}
        return Detections(
            pd.DataFrame([row | {'onset': 0, 'end': meg.shape[1], 'pred': 1}]),
            pd.DataFrame([row | {'sample': middle}]),
        )

    decision = {'threshold': 0.5, 'policy': 'f1', 'calibration': None}
    reader = SimpleNamespace(device='cpu')
    monkeypatch.setattr(detect, 'find_run', lambda *arguments: run)
    monkeypatch.setattr(detect, 'settings_of_run', lambda run, settings: settings)
    monkeypatch.setattr(
        detect,
        'load_run',
        lambda settings, *more: SimpleNamespace(settings=settings, decision=decision, window_length=300, reader=reader),
    )
    monkeypatch.setattr(detect, 'score_block', score)
    monkeypatch.setattr(
        'reports.detection_files.write_report',
        lambda detections, folder, *rest: (folder / 'report.html').write_text(detections.name),
    )
    monkeypatch.setattr(detect, 'set_seed', lambda seed: None)
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)
    monkeypatch.setattr('recordings.filters.preprocess', lambda signal, **settings: signal[:, ::2])
    return run


def apply(*recordings, **settings):
    detect.main(['run', *map(str, recordings), *(f'{name}={value}' for name, value in settings.items())])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def noise(seed, n_samples=900):
    return 1e-12 * np.random.default_rng(seed).normal(size=(N_CHANNELS, n_samples))


@pytest.fixture
def make_patient(make_ds, make_fif, tmp_path):
    """A recording of a patient in the patient's folder, all of them with the same name, length and date."""

    def make(number, kind='.ds'):
        folder = tmp_path / f'patient{number}'
        folder.mkdir(exist_ok=True)
        if kind == '.ds':
            path = make_ds('run01', {'MLC11': noise(number)[0]}).rename(folder / 'run01.ds')
        elif kind == '.fif':
            path = make_fif('run01', noise(number)).rename(folder / 'run01_raw.fif')
        else:
            path = folder / 'data_raw_001.pkl'
            blocks = [noise(number, 400), noise(number + 100, 500)]
            write_pickle(path, {'meg': blocks, 'events': [[], []], 'reannot': [[], []], 'file': ['a', 'b']})
        return path

    return make


@pytest.fixture
def patient4(make_patient):
    return make_patient(4)


@pytest.fixture
def recorded(make_patient):
    return make_patient(4, '.fif')


def layout_of(path):
    with open_recording(path) as raw:
        return read_layout(raw, path)


def mark(ds, name, onset=0.5):
    write_marker_file(ds / 'MarkerFile.mrk', np.array([onset]), layout_of(ds), name=name, color='red')


def classes(path):
    return [marker_class.name for marker_class in read_marker_file(path)[1]]


# ------------------------------------------------------------------------------------------- one recording only
@pytest.mark.parametrize(('kind', 'copied'), [('.ds', False), ('.fif', False), ('.pkl', False), ('.fif', True)])
def test_two_patients_never_share_a_folder(make_patient, tmp_path, kind, copied):
    path, twin = make_patient(4, kind), make_patient(9, kind)
    if copied:  # the same data at two places: nobody knows whose
        shutil.rmtree(twin.parent)
        shutil.copytree(path.parent, twin.parent)
    apply(path, output=tmp_path / 'o')
    [folder] = (tmp_path / 'o').iterdir()
    before = {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}
    with pytest.raises(DataError) as fault:
        apply(twin, output=tmp_path / 'o')
    message = (
        f'{folder}: holds the detections of {path}, another recording; move it away or give output= another folder'
    )
    assert str(fault.value) == message
    assert {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()} == before
    apply(twin, output=tmp_path / 'p')
    apply(path, output=tmp_path / 'o')
    assert names(tmp_path / 'o') == [folder.name]


@pytest.mark.parametrize('kind', ['.ds', '.fif', '.pkl'])
def test_a_recording_is_the_same_by_a_link_and_at_a_new_place(make_patient, tmp_path, kind):
    path = make_patient(4, kind)
    apply(path, output=tmp_path / 'o')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links' / path.name).symlink_to(path)
    apply(tmp_path / 'links' / path.name, output=tmp_path / 'o')
    moved = path.parent.rename(tmp_path / 'archive') / path.name
    apply(moved, output=tmp_path / 'o')
    [record] = {file.read_text() for file in (tmp_path / 'o').rglob('detections.json') if 'block_01' not in str(file)}
    assert json.loads(record)['identity']['path'] == str(moved)
    with pytest.raises(DataError, match=f'holds the detections of {moved}, another recording'):
        apply(make_patient(9, kind), output=tmp_path / 'o')


@pytest.mark.parametrize('kind', ['.ds', '.fif', '.pkl'])
def test_other_data_in_the_place_of_a_recording_are_another_recording(make_patient, tmp_path, kind):
    path = make_patient(4, kind)
    apply(path)
    replacement = make_patient(9, kind)
    with contextlib.suppress(NotADirectoryError):
        shutil.rmtree(path)
    os.rename(replacement, path)
    with pytest.raises(DataError, match=rf'holds the detections of other data that were at {path} before; move'):
        apply(path)


def test_what_changes_around_the_data_makes_no_other_recording(make_patient):
    path = make_patient(4, '.fif')
    apply(path)
    raw = mne.io.read_raw_fif(path, preload=True, verbose='error')
    raw.info['bads'] = ['MLC11']
    raw.set_annotations(mne.Annotations([1.0], 0.0, 'spike'))
    raw.save(path, overwrite=True, verbose='error')
    apply(path)
    stored = make_patient(4, '.pkl')
    apply(stored)
    content = {'meg': [noise(4, 400), noise(104, 500)], 'events': [[7], []], 'reannot': [[9], []], 'file': ['a', 'b']}
    write_pickle(stored, content)
    apply(stored)


def test_detections_of_earlier_versions_are_known_by_their_place(make_patient, tmp_path):
    path = make_patient(4)
    for output in ({}, {'output': tmp_path / 'o'}):
        apply(path, **output)
        folder = (output.get('output') or path.parent) / 'run01_detections'
        record = json.loads((folder / 'detections.json').read_text())
        write_json(folder / 'detections.json', {key: record[key] for key in record if key not in ('identity', 'files')})
    apply(path, marker_color='blue')
    # Of a marker file whose hash is not known, a copy is kept; the others are as they would be now.
    assert names(path.parent / 'run01_detections') == sorted([*CTF_OUTPUTS, 'MarkerFile.mrk.1'])
    with pytest.raises(DataError, match=r'holds detections of an earlier version, which do not say of which run01\.ds'):
        apply(path, output=tmp_path / 'o')


@pytest.mark.parametrize('content', ['', '[]', '{"recording": "run01.ds", "identity": 7}', '{"name": "x"}'])
def test_a_record_from_elsewhere_is_refused(patient4, content):
    folder = patient4.parent / 'run01_detections'
    folder.mkdir()
    (folder / 'detections.json').write_text(content)
    with pytest.raises(DataError, match=r'detections\.json: not from detect\.py; move it away or give output='):
        apply(patient4)
    assert contents(folder) == {'detections.json': content.encode()}


def test_another_process_that_came_first_keeps_its_folder(make_patient, monkeypatch, tmp_path):
    """Both find no folder when they start."""
    path, twin = make_patient(4), make_patient(9)
    score = detect.score_block

    def slowly(*arguments):
        monkeypatch.setattr(detect, 'score_block', score)
        apply(path, output=tmp_path / 'o')
        return score(*arguments)

    monkeypatch.setattr(detect, 'score_block', slowly)
    with pytest.raises(DataError, match=f'holds the detections of {path}, another recording'):
        apply(twin, output=tmp_path / 'o')
    assert json.loads((tmp_path / 'o' / 'run01_detections' / 'detections.json').read_text())['identity']['path'] == str(
        path
    )


# ------------------------------------------------------------------------------------------------- corrections
def test_other_classes_are_those_of_the_recording_as_it_is_now(patient4):
    own, output = patient4 / 'MarkerFile.mrk', patient4.parent / 'run01_detections' / 'MarkerFile.mrk'
    for name in ('left', 'deleted'):
        mark(patient4, name)
    apply(patient4)
    assert classes(output) == ['left', 'deleted', 'detected_spike']
    own.unlink()
    for name in ('left', 'added'):
        mark(patient4, name, 0.7)
    apply(patient4)
    assert classes(output) == ['left', 'added', 'detected_spike']
    assert read_marker_file(output)[1][:2] == read_marker_file(own)[1]
    own.unlink()
    apply(patient4)
    assert classes(output) == ['detected_spike']
    assert names(output.parent) == CTF_OUTPUTS


def test_what_a_reviewer_changed_is_kept_and_what_nobody_changed_is_not(patient4, run, capsys):
    apply(patient4)
    folder = patient4.parent / 'run01_detections'
    untouched = contents(folder)
    run.proba = 0.8
    apply(patient4)
    assert names(folder) == CTF_OUTPUTS
    assert contents(folder)['detections.csv'] != untouched['detections.csv']

    mne.Annotations([1.0], 0.0, 'corrected').save(folder / 'run01-annot.fif', overwrite=True, verbose='error')
    (folder / 'MarkerFile.mrk').write_bytes(untouched['MarkerFile.mrk'].replace(b'green', b'black'))
    (folder / 'detections.csv').write_text('onset,duration,probas\n1.0,0.0,1.0\n')
    (folder / 'corrected-annot.fif').write_bytes(b'of the reviewer')
    (folder / 'run01-annot.fif.1').symlink_to('nowhere')
    (folder / 'pictures').mkdir(mode=0o700)
    (folder / 'pictures' / 'focus.png').write_bytes(b'seen')
    changed = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    capsys.readouterr()
    apply(patient4)
    expected = {
        'MarkerFile.mrk.1': changed['MarkerFile.mrk'],
        'detections.csv.1': changed['detections.csv'],
        'run01-annot.fif.2': changed['run01-annot.fif'],
        'corrected-annot.fif': b'of the reviewer',
    }
    others = ['pictures', 'run01-annot.fif.1']
    assert names(folder) == sorted([*CTF_OUTPUTS, *expected, *others])
    assert {name: (folder / name).read_bytes() for name in expected} == expected
    assert (folder / 'pictures' / 'focus.png').read_bytes() == b'seen'
    assert (folder / 'run01-annot.fif.1').is_symlink()
    assert f'{folder}/run01-annot.fif: changed since it was written, kept as run01-annot.fif.2' in (
        capsys.readouterr().out
    )
    apply(patient4)
    assert names(folder) == sorted([*CTF_OUTPUTS, *expected, *others])
    assert names(patient4.parent) == ['run01.ds', 'run01_detections']


def test_a_folder_keeps_its_mode_and_a_link_to_it_stays_one(patient4, tmp_path):
    folder = tmp_path / 'disk' / 'detections'
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    link = patient4.parent / 'run01_detections'
    link.symlink_to(folder)
    for _ in range(2):
        apply(patient4)
        assert link.is_symlink()
        assert names(folder) == CTF_OUTPUTS
        assert folder.stat().st_mode & 0o777 == 0o750
    assert names(tmp_path / 'disk') == ['detections']


# ---------------------------------------------------------------------------------------- killed at any moment
POINTS = [
    (detection_files, 'write_detections', 1),
    (detection_files, 'write_report', 1),
    (detection_files, 'write_json', 1),
    (os, 'link', 1),
    (os, 'rename', 1),
    (os, 'rename', 2),
    (shutil, 'rmtree', 2),
    (shutil, 'rmtree', 3),
]


@pytest.mark.parametrize(('module', 'function', 'call'), POINTS)
def test_killed_at_any_step_it_leaves_the_old_or_the_new(recorded, run, monkeypatch, tmp_path, module, function, call):
    output = tmp_path / 'o'
    folder = output / 'run01_raw_detections'
    apply(recorded, output=output)
    (folder / 'corrected-annot.fif').write_bytes(b'of the reviewer')
    old = contents(folder)
    run.proba = 0.8

    def child():
        at_call(module, function, call, kill, monkeypatch)
        apply(recorded, output=output)

    assert in_child(child) == -signal.SIGKILL
    left = contents(folder) if folder.exists() else {}
    if (function, call) == ('rename', 2):
        assert left == {}  # for a moment there is neither
    elif left != old:  # all of it, with what the reviewer added
        assert function == 'rmtree'
        assert left.keys() == old.keys()
        assert left['detections.json'] != old['detections.json']
        assert left['detections.csv'] != old['detections.csv']
    apply(recorded, output=output)
    assert names(output) == [folder.name]
    assert contents(folder).keys() == old.keys()


def test_killed_the_first_time_it_leaves_no_folder(recorded, monkeypatch):
    def child():
        at_call(detection_files, 'write_report', 1, kill, monkeypatch)
        apply(recorded)

    assert in_child(child) == -signal.SIGKILL
    assert not (recorded.parent / 'run01_raw_detections').exists()
    apply(recorded)
    assert names(recorded.parent) == [recorded.name, 'run01_raw_detections']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_old_and_nothing_else(recorded, run, monkeypatch, number):
    apply(recorded)
    folder = recorded.parent / 'run01_raw_detections'
    old = contents(folder)
    run.proba = 0.8

    def child():
        default_signals()
        at_call(detection_files, 'write_report', 1, lambda: os.kill(os.getpid(), number), monkeypatch)
        sys.argv = ['detect.py', 'run', str(recorded)]
        run_script(detect.main, '')

    assert in_child(child) == 128 + number
    assert contents(folder) == old
    assert names(recorded.parent) == [recorded.name, 'run01_raw_detections']


def test_a_full_disk_leaves_the_old_and_names_what_the_user_knows(recorded, run, monkeypatch):
    apply(recorded)
    folder = recorded.parent / 'run01_raw_detections'
    old = contents(folder)

    def full():
        raise OSError(28, 'No space left on device', 'x')

    at_call(pd.DataFrame, 'to_csv', 1, full, monkeypatch)
    with pytest.raises(DataError, match=rf'^{folder}/probabilities\.csv: cannot be written \(No space left'):
        apply(recorded)
    assert contents(folder) == old
    assert names(recorded.parent) == [recorded.name, 'run01_raw_detections']
