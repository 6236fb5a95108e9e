"""Fixtures shared by the tests."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mne
import numpy as np
import pytest
from common import N_BLOCKS, NO_DIPOLE, SFREQ, SHORT_TRAINING, WINDOWS, clear_patient, make_window_files, write_fif
from hypothesis import settings

import create_data_raw
import detect
import main_train
from recordings.channels import N_CHANNELS, ctf275_info, sphere_centre
from recordings.data_raw import read_data_raw
from runs.run_directory import RunDirectory

# A slow machine is no failure, and the same commit gives the same answer.
settings.register_profile('project', deadline=None, derandomize=True)
settings.load_profile('project')

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def recordings():
    """Build the content of a data_raw file: noise of the given lengths, with spikes at the given samples."""

    def build(lengths=(700, 900), events=((300,), (400, 650)), seed=0):
        rng = np.random.default_rng(seed)
        return {
            'meg': [rng.normal(0, 3e-13, (N_CHANNELS, n)) for n in lengths],
            'events': [np.asarray(times, dtype=np.int64) for times in events],
            'reannot': [np.zeros(0, dtype=np.int64) for _ in lengths],
            'file': [f'block_{i:02d}.ds' for i in range(len(lengths))],
        }

    return build


@pytest.fixture
def write_raw(tmp_path):
    """Write the content of data_raw_<number>.pkl into tmp_path/raw and return its path."""

    def write(content, number=1):
        path = tmp_path / 'raw' / f'data_raw_{number:03d}.pkl'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return path

    return write


@pytest.fixture(scope='session')
def run_script():
    """Run a script of the repository as its users do and return the finished process."""

    def run(script, *words, cwd=ROOT):
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        # On the CPU, whatever the machine has: what is compared byte for byte is the same only there.
        environment = os.environ | {'CUDA_VISIBLE_DEVICES': ''}
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=environment)

    return run


@pytest.fixture
def paths(tmp_path):
    """The path settings of a run in tmp_path, as words of a command line."""
    windows = [str(tmp_path / 'windows_ae'), str(tmp_path / 'windows_clf')]
    return [
        f'path_raw_data={tmp_path / "raw"}',
        f'path_extracted_data={windows}',
        f'path_writing_data={tmp_path / "results"}',
    ]


@pytest.fixture(scope='session')
def make_windows():
    """Make the windows of a directory of data_raw files, all sets, as the scripts do by default."""

    def make(raw_directory, directory, **changes):
        for name, normal_only in (('windows_ae', True), ('windows_clf', False)):
            make_window_files(raw_directory, directory / name, normal_only=normal_only, **WINDOWS | changes)
        if (WINDOWS | changes)['nb_best_blocks']:
            testing = {'nb_best_blocks': 0, 'include_spike_free': True, 'normal_only': False}
            make_window_files(raw_directory, directory / 'windows_clf', **WINDOWS | changes | testing)

    return make


@pytest.fixture(scope='session')
def shared():
    """The folder of real recordings, `shared` in or beside the repository; without it, the test is skipped."""
    for folder in (ROOT / 'shared', ROOT.parent / 'shared'):
        if folder.is_dir():
            return folder
    pytest.skip('no folder shared/ with real recordings')


@pytest.fixture
def make_ds(shared, tmp_path):
    """Build a CTF recording from the real one: its header with other lengths, and the given signals.

    `signals` are in tesla by plain channel name; `clock` is in s, one value per sample, running on by default.
    """

    def make(name, signals, *, n_trials=1, sfreq=300.0, before_sync=0, clock=None):
        real = shared / 'ctf' / 'testdata_ctf_short_discontinuous.ds'
        path = tmp_path / f'{name}.ds'
        path.mkdir(parents=True)
        for suffix in ('res4', 'hc'):
            shutil.copyfile(real / f'{real.stem}.{suffix}', path / f'{name}.{suffix}')
        info = mne.io.read_raw_ctf(real, verbose='error').info
        n_samples = len(next(iter(signals.values()))) // n_trials
        with (path / f'{name}.res4').open('r+b') as stream:
            stream.seek(1288)
            stream.write(struct.pack('>i', n_samples))
            stream.seek(1296)
            stream.write(struct.pack('>dd', sfreq, n_samples * n_trials / sfreq))
            stream.write(struct.pack('>hxxi', n_trials, before_sync))
        counts = np.zeros((info['nchan'], n_samples * n_trials))
        for row, ch in enumerate(info['chs']):
            plain = ch['ch_name'].split('-')[0]
            if plain == 'SCLK01':
                counts[row] = (np.arange(1, n_samples * n_trials + 1) / sfreq if clock is None else clock) / ch['cal']
            elif plain in signals:
                counts[row] = signals[plain] / ch['cal']
        counts = np.rint(counts).astype('>i4').reshape(info['nchan'], n_trials, n_samples).swapaxes(0, 1)
        (path / f'{name}.meg4').write_bytes(b'MEG41CP\0' + counts.tobytes())
        return path

    return make


@pytest.fixture
def make_fif(tmp_path):
    """Build a FIF recording of CTF-275 (274 channels, or those of `info`) with annotations [(seconds, label)]."""

    def make(name, signal, *, sfreq=300.0, info=None, first_samp=0, notes=(), dated=True):
        info = ctf275_info(sfreq) if info is None else info
        raw = mne.io.RawArray(signal, info, first_samp=first_samp, verbose='error')
        if dated:
            raw.set_meas_date(1.0e9)
        raw.set_annotations(mne.Annotations([onset for onset, _ in notes], 0.0, [label for _, label in notes]))
        path = tmp_path / f'{name}_raw.fif'
        raw.save(path, verbose='error')
        return path

    return make


@pytest.fixture
def no_interpolation(monkeypatch):
    """Leave bad channels as they are, for tests of something else: MNE takes seconds for them."""
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


@pytest.fixture(scope='session')
def dipole_fields():
    """Fields (n_channels, n_dipoles), std 1 over channels, of dipoles in a sphere around the sensors' centre + `off`.

    Also gives their positions and orientations, in head coordinates.
    """

    def make(info, n_dipoles, *, seed=0, off=(0, 0, 0)):
        rng = np.random.default_rng(seed)
        centre = sphere_centre(info) + off
        upwards = rng.normal(size=(n_dipoles, 3))
        upwards[:, 2] = np.abs(upwards[:, 2])
        upwards /= np.linalg.norm(upwards, axis=1, keepdims=True)
        positions = centre + upwards * rng.uniform(0.03, 0.08, (n_dipoles, 1))
        orientations = np.cross(upwards, rng.normal(size=(n_dipoles, 3)))  # a sphere shows no radial dipole
        orientations /= np.linalg.norm(orientations, axis=1, keepdims=True)
        dipoles = mne.Dipole(
            np.arange(n_dipoles) / info['sfreq'], positions, np.ones(n_dipoles), orientations, np.full(n_dipoles, 100.0)
        )
        sphere = mne.make_sphere_model(r0=centre, head_radius=None, verbose='error')
        forwards, _ = mne.make_forward_dipole(dipoles, sphere, info, verbose='error')
        fields = np.hstack([f['sol']['data'] for f in (forwards if isinstance(forwards, list) else [forwards])])
        return fields / fields.std(axis=0), positions, orientations

    return make


@pytest.fixture(scope='session')
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
    main_train.main(['auto', 'AE1D_smaller', *(f'{name}={value}' for name, value in (paths | SHORT_TRAINING).items())])
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
