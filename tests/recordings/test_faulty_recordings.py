"""Recordings that no scanner should have left: each is refused in one line, or read as it should be."""

import os
import shutil
import struct
import subprocess
import sys

import mne
import numpy as np
import pytest

import create_data_raw
from recordings.channels import N_CHANNELS
from recordings.data_raw import read_data_raw, read_record
from recordings.filters import check_filters, resample
from recordings.marker_files import read_marker_file, write_marker_file
from recordings.opening import open_recording, read_layout
from recordings.reading import read_recording
from reports.run_page import printable
from utils import ROOT, DataError, SettingError

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}
LATIN_1 = os.fsdecode('café'.encode('latin-1'))  # as a name of a file with bytes that are not UTF-8 comes


def in_header(offset, code, value):
    """Write a number into the .res4 file."""

    def spoil(path):
        with (path / f'{path.stem}.res4').open('r+b') as stream:
            stream.seek(offset)
            stream.write(struct.pack(code, value))

    return spoil


def marker_file(row):
    head = 'PATH OF DATASET:\n/data/patient.ds\n\n\nNUMBER OF MARKERS:\n1\n\n\nCLASSGROUPID:\n3\nNAME:\nspike\n'
    rows = f'NUMBER OF SAMPLES:\n1\nLIST OF SAMPLES:\nTRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n{row}\n\n'
    return lambda path: (path / 'MarkerFile.mrk').write_text(head + rows)


def dangling(path):
    (path / 'MarkerFile.mrk').symlink_to(path / 'nowhere.mrk')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (in_header(1288, '>i', 0), 'says 1 trials of 0 samples'),
        (in_header(1288, '>i', -1), 'of -1 samples'),
        (in_header(1292, '>h', 0), 'of 900 samples, 0 channels'),
        (in_header(1312, '>h', 0), 'says 0 trials of 900 samples'),
        (in_header(1312, '>h', -1), 'says -1 trials of 900 samples'),
        (in_header(1296, '>d', 0.0), 'and 0 Hz'),
        (in_header(1296, '>d', -300.0), 'and -300 Hz'),
        (in_header(1296, '>d', np.nan), 'and nan Hz'),
        (in_header(1296, '>d', 1e30), r'and 1e\+30 Hz'),
        (marker_file('1' * 400 + '\t0.5'), 'is no trial number and time in seconds'),
        (marker_file('1' * 5000 + '\t0.5'), 'is no trial number and time in seconds'),
        (dangling, r'MarkerFile\.mrk: no such file, or a link to nothing'),
        (lambda path: (path / 'MarkerFile.mrk').mkdir(), r'MarkerFile\.mrk: no such file, or a link to nothing'),
    ],
)
def test_faults_of_a_ctf_recording(make_ds, tmp_path, spoil, message):
    path = make_ds('bad', {'MLC11': np.zeros(900)})
    spoil(path)
    with pytest.raises(DataError, match=message) as fault:
        create_data_raw.main(['1', str(path), f'path_raw_data={tmp_path / "raw"}'])
    assert str(path) in str(fault.value)
    assert not (tmp_path / 'raw').exists()


def test_pipes_are_no_files(make_ds, tmp_path):
    """Who reads one waits for ever."""
    os.mkfifo(tmp_path / 'pipe_raw.fif')
    with pytest.raises(DataError, match='is neither a file nor a folder'):
        create_data_raw.main(['1', str(tmp_path / 'pipe_raw.fif'), f'path_raw_data={tmp_path}'])
    path = make_ds('head', {'MLC11': np.zeros(900)})
    (path / 'head.hc').unlink()
    os.mkfifo(path / 'head.hc')
    with pytest.raises(DataError, match='MNE cannot read it'), open_recording(path):
        pass


def sensors(n, loc):
    """MEG sensors (magnetometers) of another system, `loc` of each (12,) or its header's NaN."""
    info = mne.create_info([f'OPM{i:03d}' for i in range(n)], 300.0, 'mag')
    for ch, of_sensor in zip(info['chs'], loc, strict=True):
        ch['loc'][:] = of_sensor
    return info


def helmet(n):
    """`loc` (n, 12) of sensors that look outwards on a half sphere of 11 cm."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(n, 3))
    out[:, 2] = np.abs(out[:, 2])
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    aside = np.cross(out, [1, 0, 0])
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return np.hstack([0.11 * out, np.cross(aside, out), aside, out])


def test_sensors_without_positions_are_refused_by_name(make_fif, tmp_path):
    signal = 1e-12 * np.random.default_rng(0).normal(size=(70, 900))

    def read(name, loc, **changes):
        return read_recording(make_fif(name, signal, info=sensors(70, loc)), **READING | changes)

    lacking, flat, millimetres = helmet(70), helmet(70), helmet(70)
    lacking[3] = np.nan
    flat[:, 2] = 0.1
    millimetres[:, :3] *= 1000
    with pytest.raises(DataError, match=r'none_raw\.fif: does not say where 70 of its 70 sensors are, such as OPM000'):
        read('none', np.full((70, 12), np.nan))
    with pytest.raises(DataError, match=r'does not say where 1 of its 70 sensors are, such as OPM003; .*bad_channels'):
        read('lacking', lacking)
    with pytest.raises(DataError, match=r'its sensors span 0\.\d+ x 0\.\d+ x 0 m, which is no helmet'):
        read('flat', flat)
    with pytest.raises(DataError, match=r'which is no helmet; .* in metres'):
        read('millimetres', millimetres)
    [recording] = read('named', lacking, bad_channels=['OPM003'])
    assert recording.facts['left_out'] == ['OPM003']
    assert np.isfinite(recording.meg).all()
    assert recording.meg.any()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'notch': 0.5}, 'notch = 0.5: must be 1 Hz or more'),
        ({'notch': [50.0, 1e-9]}, 'must be 1 Hz or more'),
        ({'notch': [50.0, 50.4]}, r'MNE has no such filter \(.*\); set them further apart'),
        ({'low_pass': 74.999}, 'low_pass = 74.999: must rise, and stay 0.01 Hz or more below half of sfreq'),
        ({'high_pass': 50.0}, 'must rise'),
    ],
)
def test_filters_that_cannot_be(changes, message):
    filters = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None}
    with pytest.raises(SettingError, match=message):
        check_filters(**filters | changes)


@pytest.mark.parametrize(('sfreq', 'n_new'), [(0.02, 150000), (149.9999, 20), (150.0001, 20), (1e6, 1)])
def test_any_rate_can_be_resampled(sfreq, n_new):
    new = resample(np.ones((2, 20)), sfreq, 150)
    np.testing.assert_allclose(new, np.ones((2, n_new)))


def test_bytes_in_a_path_that_are_not_utf_8(make_ds, make_fif, tmp_path):
    """A folder and a recording named in Latin-1: console, JSON, pickle, marker file and MNE take it."""
    folder = tmp_path / LATIN_1
    folder.mkdir()
    signal = 1e-12 * np.random.default_rng(0).normal(size=(N_CHANNELS, 900))
    fif = shutil.move(make_fif('one', signal, notes=[(1.0, 'spike')]), folder / f'{LATIN_1}_raw.fif')
    command = [sys.executable, ROOT / 'create_data_raw.py', '1', fif, f"path_raw_data='{folder}'"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, '')
    assert r'caf\udce9_raw.fif: 3.0 s at 300 Hz' in ended.stdout
    data = read_data_raw(folder / 'data_raw_001.pkl')
    assert (data['file'], data['events'][0].tolist()) == ([f'{LATIN_1}_raw.fif'], [150])
    assert read_record(folder / 'data_raw_001.pkl')['recordings'][0]['file'] == f'{LATIN_1}_raw.fif'
    ds = shutil.move(make_ds(LATIN_1, {'MLC11': np.zeros(900)}), folder)
    with open_recording(ds) as raw:
        layout = read_layout(raw, ds)
    write_marker_file(folder / 'MarkerFile.mrk', np.array([1.0]), layout, name='spike', color='green')
    head, [spikes] = read_marker_file(folder / 'MarkerFile.mrk')
    assert os.fsencode(ds) in head
    assert spikes.markers == [(0, 1.0)]
    assert printable(f'{fif} à') == f'{tmp_path}/caf\\udce9/caf\\udce9_raw.fif à'
