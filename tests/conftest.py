"""Fixtures shared by the tests."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from data_processing import N_CHANNELS, create_windows

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
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)

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


WINDOWS = {
    'patient': False,
    'nb_best_blocks': 3,
    'include_spike_free': False,
    'sfreq': 150,
    'window_size': 2.0,
    'spike_spacing_from_border': 0.3,
    'pulse_width': 0.1,
    'standardize': 'block',
    'reject_artefacts': False,
    'artefact_threshold': 20.0,
}


@pytest.fixture(scope='session')
def make_windows():
    """Make the windows of a directory of data_raw files, both sets, as the scripts do by default."""

    def make(raw_directory, directory, **changes):
        for name, normal_only in (('windows_ae', True), ('windows_clf', False)):
            create_windows(
                path_raw_data=raw_directory, directory=directory / name, normal_only=normal_only, **WINDOWS | changes
            )

    return make
