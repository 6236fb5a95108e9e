"""What several test files use: settings of an optimizer, a patient with obvious spikes, a process of its own."""

import multiprocessing
import os
import signal
from dataclasses import fields
from pathlib import Path

import mne
import numpy as np
from torch.utils.data import Dataset

import create_data_raw
import main_train
from data_processing import create_windows
from recordings.channels import ctf275_info
from recordings.layout import Layout
from recordings.reading import Recording
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from recordings.window_settings import WindowSettings
from reports import run_results
from reports.dipole import Dipole

# Stands for a fit where a test is not about it.
NO_DIPOLE = Dipole(np.zeros(3), np.zeros(3), 0.0, 0.0, 0.0)

# What draws the pictures and the page of a run, for tests that do without.
PICTURES = [(main_train, 'plot_losses'), (main_train, 'plot_windows'), (run_results, 'plot_metrics'),
            (run_results, 'write_report')]  # fmt: skip

# Of the patient that the fixture `trained` writes as FIF.
SFREQ, FIRST_SAMP, N_BLOCKS = 150, 1234, 4
SHORT_TRAINING = {
    'nb_best_blocks': 0,
    'width': 1,
    'batch_size': 16,
    'num_epochs': 2,
    'bootstrap_samples': 20,
}

OPTIMIZER = {
    'optimizer': 'adam',
    'learning_rate': 1e-2,
    'weight_decay': 0.0,
    'scheduler': 'step',
    'stepLR': 50,
    'gammaLR': 0.8,
    'plateau_patience': 5,
}

# The settings of the windows of most tests.
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


class Pairs(Dataset):
    """(input, target) windows from memory, with the interface of WindowDataset; the target is the input by default."""

    epoch = 0

    def __init__(self, x, target=None):
        self.x, self.target = x, x if target is None else target

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return self.x[indices], self.target[indices]


def write_fif(path, signal, spikes):
    """A recording that begins late, with its spikes as annotations."""
    raw = mne.io.RawArray(signal.astype(np.float64), ctf275_info(SFREQ), first_samp=FIRST_SAMP, verbose='error')
    raw.set_meas_date(1.0e9)
    raw.set_annotations(mne.Annotations(np.asarray(spikes) / SFREQ, 0.0, 'spike'))
    raw.save(path, verbose='error')


def clear_patient(subject, **changes):
    """Recordings of a patient with strong spikes, all of them annotated where they are."""
    settings = {
        'subject': subject,
        'n_blocks': 2,
        'block_seconds': 18,
        'spike_rate': 20.0,
        'snr': 8.0,
        'distractor_rate': 1.0,
        'annotation_jitter': 0.0,
        'annotation_missed': 0.0,
        'sfreq': 150,
        'seed': 0,
    }
    data, _ = simulate_patient(PatientSettings(**settings | changes))
    return data


def window_settings(shape, **options):
    """Settings that give windows of a shape: at 1 Hz, seconds are samples."""
    seconds = {
        'nb_best_blocks': 0,
        'sfreq': 1.0,
        'window_size': shape.window_length,
        'spike_spacing_from_border': shape.border,
        'pulse_width': 2 * shape.half_pulse,
    }
    return WindowSettings(**seconds | options)


def make_window_files(path_raw_data, directory, **settings):
    """Call `create_windows` with its settings by name, those of `WindowSettings` among them."""
    window = {field.name: settings.pop(field.name) for field in fields(WindowSettings)}
    create_windows(path_raw_data, directory, WindowSettings(**window), **settings)


def run_create_data_raw(number, *words, raw):
    """Call create_data_raw.py for a patient, with a folder for the result."""
    create_data_raw.main([str(number), *map(str, words), f'path_raw_data={raw}'])


def marker_file(*classes, end='\n'):
    """A marker file of (name, [(trial, time as text)])."""
    text = f'PATH OF DATASET:\n/data/patient.ds\n\n\nNUMBER OF MARKERS:\n{len(classes)}\n\n\n'
    for number, (name, rows) in enumerate(classes, 1):
        text += f'CLASSGROUPID:\n3\nNAME:\n{name}\nCOMMENT:\nby hand, à la main\nCOLOR:\nblue\nEDITABLE:\nYes\n'
        text += f'CLASSID:\n{number}\nNUMBER OF SAMPLES:\n{len(rows)}\nLIST OF SAMPLES:\n'
        text += 'TRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n'
        text += ''.join(f'{trial:20d}\t\t\t\t{time:>20s}\n' for trial, time in rows) + '\n\n'
    return text.replace('\n', end).encode('latin-1')


SPIKES = ('spike', [(0, '+0.5'), (1, '-0.25'), (1, '+1')])  # of a marker file


def in_child(act):
    """Call `act` in a process of its own, forked from this one; gives its exit status, negative for a signal."""
    child = multiprocessing.get_context('fork').Process(target=act)
    child.start()
    child.join(120)
    return child.exitcode


def kill():
    """End this process at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def default_signals():
    """Have signals do what they usually do, though this process may have been started in the background."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def at_call(module, function, call, act, monkeypatch):
    """Have the call of this number of a function do something else first."""
    genuine, calls = getattr(module, function), []

    def instead(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            act()
        return genuine(*arguments, **keywords)

    monkeypatch.setattr(module, function, instead)


def names(folder):
    """Names of what a folder holds, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def recording_of(meg, *, parts=None, bad_segments=(), sfreq=150.0):
    """A recording (274, n_samples) in tesla as read_recording gives it, of CTF-275, without gaps where not said."""
    parts = [(0, meg.shape[1])] if parts is None else parts
    layout = Layout(Path('x_raw.fif'), sfreq, parts, None, 0.0, None)
    facts = {
        'seconds': meg.shape[1] / sfreq, 'interpolated': [], 'file': 'x', 'warnings': [], 'system': 'CTF-275',
        'compensation': 3, 'bad_segments': list(bad_segments),
    }  # fmt: skip
    return Recording('x', meg, layout, ctf275_info(sfreq), facts)
