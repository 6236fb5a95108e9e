"""data_raw_NNN.pkl: no re-annotation is lost, the record tells the truth, and killed processes leave nothing."""

import json
import os
import pickle
import signal
import stat

import mne
import numpy as np
import pytest
from common import at_call, in_child, kill, names

import create_data_raw
from recordings import checks
from recordings.channels import N_CHANNELS
from recordings.data_raw import read_data_raw
from recordings.pickles import read_pickle, write_pickle
from utils import DataError, write_json


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr('recordings.filters.preprocess', lambda signal, **settings: signal[:, ::2])


@pytest.fixture
def path(make_fif):
    """A recording, with a spike, of which data_raw_001.pkl in `raw` is made."""
    signal = 1e-12 * np.random.default_rng(0).normal(size=(N_CHANNELS, 900))
    return make_fif('run01', signal, notes=[(1.0, 'spike')])


@pytest.fixture
def raw(path, tmp_path):
    run(path, raw=tmp_path / 'raw')
    return tmp_path / 'raw'


def run(path, *words, raw):
    create_data_raw.main(['1', str(path), *words, f'path_raw_data={raw}'])


def correct(path, raw):
    notes = mne.Annotations([2.0], 0.0, 'corrected')
    notes.save(raw.parent / 'corrected-annot.fif', overwrite=True, verbose='error')
    run(path, str(raw.parent / 'corrected-annot.fif'), 'reannot_labels=corrected', raw=raw)


BOTH = ['data_raw_001.json', 'data_raw_001.pkl']


def contents(raw):
    return [(raw / name).read_bytes() for name in BOTH]


@pytest.mark.parametrize('how', ['flag lost', 'by hand'])
def test_a_reannotation_is_found_in_the_pickle_itself(path, raw, how):
    if how == 'flag lost':
        correct(path, raw)
        record = json.loads((raw / 'data_raw_001.json').read_text())
        assert record['reannotated'] is True
        write_json(raw / 'data_raw_001.json', record | {'reannotated': False})
    else:
        content = read_pickle(raw / 'data_raw_001.pkl')
        write_pickle(raw / 'data_raw_001.pkl', content | {'reannot': [[300]]})
    before = contents(raw)
    with pytest.raises(DataError, match=r'data_raw_001\.pkl: holds a re-annotation'):
        run(path, raw=raw)
    assert contents(raw) == before
    assert names(raw) == BOTH


@pytest.mark.parametrize('act', [run, correct], ids=['made anew', 're-annotated'])
def test_another_patients_recording_of_the_same_name_and_length_is_refused(path, raw, make_fif, act):
    before = contents(raw)
    path.unlink()
    signal = 1e-12 * np.random.default_rng(1).normal(size=(N_CHANNELS, 900))
    namesake = make_fif('run01', signal, notes=[(1.0, 'spike')])
    with pytest.raises(DataError, match=r'(not from these recordings|not the recording that data_raw_001\.pkl)'):
        act(namesake, raw=raw)
    assert contents(raw) == before
    assert names(raw) == BOTH


def test_a_recording_that_was_moved_is_still_the_same(path, raw, tmp_path):
    moved = tmp_path / 'elsewhere' / path.name
    moved.parent.mkdir()
    path.rename(moved)
    run(moved, 'low_pass=40', raw=raw)
    assert json.loads((raw / 'data_raw_001.json').read_text())['settings']['low_pass'] == 40


def test_a_record_of_an_earlier_version_has_names_alone(path, raw):
    record = json.loads((raw / 'data_raw_001.json').read_text())
    for block in record['recordings']:
        del block['sha256']
    write_json(raw / 'data_raw_001.json', record)
    correct(path, raw)
    assert len(read_data_raw(raw / 'data_raw_001.pkl')['reannot'][0]) == 1


def test_a_file_that_cannot_be_searched_is_not_replaced(path, raw):
    (raw / 'data_raw_001.pkl').write_bytes(b'damaged')
    with pytest.raises(DataError, match=r'exists, and cannot be searched for a re-annotation; move it away first'):
        run(path, raw=raw)
    assert (raw / 'data_raw_001.pkl').read_bytes() == b'damaged'


@pytest.mark.parametrize('act', [run, correct], ids=['made anew', 're-annotated'])
@pytest.mark.parametrize('call', [1, 2], ids=['file', 'record'])
def test_a_full_disk_changes_neither_file_nor_record(path, raw, monkeypatch, act, call):
    before = contents(raw)
    words = ['low_pass=40'] if act is run else []

    def full():
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        at_call(os, 'fsync', call, full, patch)
        with pytest.raises(DataError, match=r'cannot be written \(No space left on device\)'):
            act(path, *words, raw=raw)
    assert contents(raw) == before
    assert names(raw) == BOTH


POINTS = [(pickle, 'dump', 1), (os, 'fsync', 1), (os, 'fsync', 2), (os, 'replace', 1), (os, 'replace', 2)]


@pytest.mark.parametrize(('module', 'function', 'call'), POINTS)
def test_killed_while_making_it_leaves_nothing_that_is_wrong(path, raw, monkeypatch, module, function, call):
    before = contents(raw)

    def child():
        at_call(module, function, call, kill, monkeypatch)
        run(path, 'low_pass=40', raw=raw)

    assert in_child(child) == -signal.SIGKILL
    if function == 'replace':  # the file to be made anew is gone, so that no record says wrong things of it
        assert not (raw / 'data_raw_001.pkl').exists()
    else:
        assert contents(raw) == before
    run(path, 'low_pass=40', raw=raw)
    assert names(raw) == BOTH
    assert json.loads((raw / 'data_raw_001.json').read_text())['settings']['low_pass'] == 40


@pytest.mark.parametrize(('module', 'function', 'call'), POINTS)
def test_killed_while_reannotating_it_loses_nothing(path, raw, monkeypatch, module, function, call):
    old = (raw / 'data_raw_001.pkl').read_bytes()

    def child():
        at_call(module, function, call, kill, monkeypatch)
        correct(path, raw)

    assert in_child(child) == -signal.SIGKILL
    assert (raw / 'data_raw_001.pkl').read_bytes() == old
    correct(path, raw)
    assert names(raw) == BOTH
    assert [times.tolist() for times in read_data_raw(raw / 'data_raw_001.pkl')['reannot']] == [[300]]
    with pytest.raises(DataError, match='holds a re-annotation'):
        run(path, raw=raw)


def test_a_reannotation_that_comes_meanwhile_is_kept(path, raw, monkeypatch):
    read, calls = checks.read_recording, []

    def slowly(*arguments, **settings):
        if not calls:
            calls.append(True)
            correct(path, raw)
        return read(*arguments, **settings)

    monkeypatch.setattr('recordings.checks.read_recording', slowly)
    with pytest.raises(DataError, match='holds a re-annotation'):
        run(path, raw=raw)
    assert [len(times) for times in read_data_raw(raw / 'data_raw_001.pkl')['reannot']] == [1]


def test_a_private_file_elsewhere_stays_private_and_elsewhere(path, raw, tmp_path):
    link, stored = raw / 'data_raw_001.pkl', tmp_path / 'disk' / 'data_raw_001.pkl'
    stored.parent.mkdir()
    link.rename(stored)
    stored.chmod(0o600)
    link.symlink_to(stored)
    for act in (run, correct):
        act(path, raw=raw)
        assert link.is_symlink()
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        assert names(stored.parent) == ['data_raw_001.pkl']
