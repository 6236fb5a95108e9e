"""Annotated spikes: marker files, labels of several recordings, and the way back from the reviewer."""

import mne
import numpy as np
import pandas as pd
import pytest
from common import SPIKES, marker_file
from common import run_create_data_raw as run

from recordings.channels import N_CHANNELS, ctf275_info
from recordings.data_raw import read_data_raw
from recordings.marker_files import read_marker_file, write_marker_file
from recordings.opening import open_recording, read_annotations, read_layout
from recordings.pickles import read_pickle, write_pickle
from utils import DataError

NAMES = ctf275_info(150)['ch_names']


# -------------------------------------------------------------------------------------------- marker files
def test_the_real_marker_file_reads_as_mne_reads_it(shared):
    path = shared / 'ctf' / 'example_MarkerFile.mrk'
    head, [marker_class] = read_marker_file(path)
    assert head + marker_class.content == path.read_bytes()
    assert {marker_class.name: marker_class.markers} == mne.io.ctf.markers._get_markers(path)
    assert len(marker_class.markers) == 36


def test_numbers_of_a_marker_file_may_have_a_sign(tmp_path):
    path = tmp_path / 'MarkerFile.mrk'
    plain = marker_file(SPIKES)
    path.write_bytes(plain)
    expected = read_marker_file(path)[1][0]
    for number, signed in (
        (b'MARKERS:\n1', b'MARKERS:\n+1'),
        (b'SAMPLES:\n3', b'SAMPLES:\n+3'),
        (b' 1\t', b'+1\t'),
        (b'CLASSID:\n1', b'CLASSID:\n+1'),
    ):
        assert number in plain
        path.write_bytes(plain.replace(number, signed))
        assert read_marker_file(path)[1][0]._replace(content=b'') == expected._replace(content=b'')


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_markers_of_a_ctf_recording_whatever_their_line_ends(make_ds, tmp_path, end):
    path = make_ds('marked', {'MLC11': np.zeros(1200)}, n_trials=2, before_sync=150)
    (path / 'MarkerFile.mrk').write_bytes(marker_file(SPIKES, ('artefact', []), end=end))
    link = tmp_path / 'under another name.ds'
    link.symlink_to(path)
    with open_recording(link) as raw:
        layout = read_layout(raw, link)
        annotations = read_annotations(raw, layout)
    assert list(annotations) == ['spike', 'artefact']
    np.testing.assert_allclose(annotations['spike'], [1.0, 2.25, 3.5])  # trials of 2 s, 0.5 s before the sync point
    assert layout.to_samples(annotations['spike'], 150).tolist() == [150, 338, 525]


FAULTS = [
    (lambda text: text[:150], 'cut off|not a whole'),
    (lambda text: text.replace(b'MARKERS:\n1', b'MARKERS:\n2'), 'NUMBER OF MARKERS is 2, but 1 classes'),
    (lambda text: text.replace(b'SAMPLES:\n3', b'SAMPLES:\n4'), "class 'spike': NUMBER OF SAMPLES is 4, but 3"),
    (lambda text: text.replace(b'+0.5', b'+0,5'), r"class 'spike': '0\\t\\t\\t\\t +\+0,5' is no trial number and time"),
    (lambda text: text.replace(b'-0.25', b'\xe2\x88\x920.25'), 'with a decimal point'),
    (lambda text: text.replace(b'NUMBER OF', b'NOMBRE DE'), 'NUMBER OF MARKERS'),
    (lambda text: b'', 'NUMBER OF MARKERS'),
    (lambda text: text.replace(b'MARKERS:\n1', b'MARKERS:\none'), "'one' is no number"),
]


@pytest.mark.parametrize(('spoil', 'message'), FAULTS)
def test_faults_of_a_marker_file(tmp_path, spoil, message):
    path = tmp_path / 'MarkerFile.mrk'
    path.write_bytes(spoil(marker_file(SPIKES)))
    with pytest.raises(DataError, match=message) as fault:
        read_marker_file(path)
    assert str(path) in str(fault.value)


def test_a_marker_file_without_classes(tmp_path):
    path = tmp_path / 'MarkerFile.mrk'
    path.write_bytes(marker_file())
    assert read_marker_file(path) == (marker_file(), [])


# --------------------------------------------------------------------------------------- annotation and back
def test_spikes_of_several_recordings_and_what_was_found(make_fif, tmp_path, capsys):
    rng = np.random.default_rng(0)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 1500))
    first = make_fif('one', signal, first_samp=700, notes=[(1.0, 'spike'), (2.5, 'spike_R'), (3.0, 'artefact')])
    second = make_fif('two', signal, notes=[(1.0, 'detected_spike')])
    run(12, first, second, raw=tmp_path)
    data = read_data_raw(tmp_path / 'data_raw_012.pkl')
    assert data['file'] == [first.name, second.name]
    assert [events.tolist() for events in data['events']] == [[150, 375], []]
    output = capsys.readouterr().out
    assert 'labels: spike 1 (spikes), spike_R 1 (spikes), artefact 1' in output
    assert f'warning: {second.name}: no spikes in it, because none of its labels matches spike_labels' in output
    before = (tmp_path / 'data_raw_012.pkl').read_bytes()
    run(12, first, second, raw=tmp_path)  # the same again
    assert (tmp_path / 'data_raw_012.pkl').read_bytes() == before
    with pytest.raises(DataError, match='not from these recordings'):
        run(12, first, raw=tmp_path)
    (tmp_path / 'data_raw_012.json').unlink()
    with pytest.raises(DataError, match='not from these recordings'):
        run(12, first, second, raw=tmp_path)
    assert (tmp_path / 'data_raw_012.pkl').read_bytes() == before


@pytest.fixture
def reviewed(make_ds, make_fif, no_interpolation, tmp_path):
    """A CTF and a FIF recording whose data_raw_003.pkl is made."""
    rng = np.random.default_rng(1)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 3000))
    ds = make_ds('run1', dict(zip(NAMES, signal, strict=True)), n_trials=2, before_sync=60)
    (ds / 'MarkerFile.mrk').write_bytes(marker_file(SPIKES))
    fif = make_fif('run2', signal, notes=[(4.0, 'spike')])
    run(3, ds, fif, raw=tmp_path / 'raw')
    return ds, fif


def test_the_way_back_from_the_reviewer(reviewed, tmp_path, make_windows, capsys):
    ds, fif = reviewed
    raw = tmp_path / 'raw'
    before = read_data_raw(raw / 'data_raw_003.pkl')
    assert [events.tolist() for events in before['events']] == [[105, 742, 930], [600]]
    with open_recording(ds) as opened:
        layout = read_layout(opened, ds)
    mark = {'layout': layout, 'name': 'detected_spike', 'color': 'green'}
    write_marker_file(ds / 'MarkerFile.mrk', np.array([1.0, 3.0, 5.0, 7.0]), **mark)
    write_marker_file(ds / 'MarkerFile.mrk', np.array([1.0, 7.0, 8.0]), **mark)  # two deleted, one added

    run(3, ds, 'reannot_labels=detected_spike', raw=raw)
    after = read_data_raw(raw / 'data_raw_003.pkl')
    assert [spikes.tolist() for spikes in after['reannot']] == [[150, 1050, 1200], []]
    for block in range(2):
        np.testing.assert_array_equal(after['events'][block], before['events'][block])
        np.testing.assert_array_equal(after['meg'][block], before['meg'][block])
    assert after['file'] == before['file']
    make_windows(raw, tmp_path, nb_best_blocks=0)
    stem = tmp_path / 'windows_clf' / 'data_raw_003_b0'
    timing, labels, blocks = (read_pickle(f'{stem}_{name}.pkl') for name in ('timing', 'labels', 'blocks'))
    inner = [abs(np.array([150, 1050, 1200]) - centre).min() < 105 for centre in timing[blocks == 0]]
    np.testing.assert_array_equal(labels[blocks == 0], inner)
    with pytest.raises(DataError, match='holds a re-annotation'):
        run(3, ds, fif, raw=raw)


def test_a_correction_that_does_not_fit_changes_nothing(reviewed, make_ds, make_fif, tmp_path, capsys):
    ds, fif = reviewed
    raw = tmp_path / 'raw'
    before = (raw / 'data_raw_003.pkl').read_bytes()
    with pytest.raises(DataError, match=r"no marker matches reannot_labels = 'right'; found spike"):
        run(3, ds, 'reannot_labels=right', raw=raw)
    elsewhere = make_fif('other', np.zeros((N_CHANNELS, 900)), notes=[(1.0, 'spike')])
    with pytest.raises(DataError, match=r'0 blocks named other_raw\.fif'):
        run(3, elsewhere, 'reannot_labels=spike', raw=raw)
    (tmp_path / 'again').mkdir()
    longer = elsewhere.rename(tmp_path / 'again' / fif.name)
    with pytest.raises(DataError, match=r'450 samples at sfreq = 150, but its block in .* has 1500'):
        run(3, longer, 'reannot_labels=spike', raw=raw)
    with pytest.raises(DataError, match='no file of patient 4'):
        run(4, ds, 'reannot_labels=spike', raw=raw)
    assert (raw / 'data_raw_003.pkl').read_bytes() == before


@pytest.mark.parametrize('form', [dict, pd.DataFrame])
def test_a_correction_in_a_file_of_its_own(reviewed, tmp_path, capsys, form):
    ds, fif = reviewed
    stored = tmp_path / 'raw' / 'data_raw_003.pkl'
    write_pickle(stored, form(read_pickle(stored)))
    notes = mne.Annotations([2.0, 9.0], 0.0, 'detected_spike')
    notes.save(tmp_path / 'corrected-annot.fif', verbose='error')
    (tmp_path / 'corrected.mrk').write_bytes(marker_file(('detected_spike', [])))
    words = [ds, tmp_path / 'corrected.mrk', fif, tmp_path / 'corrected-annot.fif']
    run(3, *words, 'reannot_labels=detected_spike', raw=tmp_path / 'raw')
    assert isinstance(read_pickle(stored), form)
    assert [spikes.tolist() for spikes in read_data_raw(stored)['reannot']] == [[], [300, 1350]]
    assert 'warning: run1.ds: an empty reannot means none was done' in capsys.readouterr().out
