"""How fast detect.py is, and how much memory it takes: a 3-minute recording, MEGA in full width, two kinds of file.

    python benchmarks/detection.py [REC.ds]

The networks are not trained, which changes neither; OMP_NUM_THREADS says how many threads. Processor time, with one
thread, is what other work on the machine changes least; it includes the start of Python. Each recording is a FIF file
of 274 channels at 1200 Hz and, given a CTF recording for its header, a .ds whose absent channels are interpolated.
"""

import itertools
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mne
import numpy as np
import torch

from classifiers.features import FEATURES_VERSION, append_relative_power, spike_features
from classifiers.filtered import filter_windows
from classifiers.inputs import N_FILTERS
from classifiers.specs import CLASSIFIERS, Examples
from models import AUTOENCODERS, build_model
from models.sfcn import SFCN
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from runs.run_directory import RunDirectory
from runs.settings import read_command
from training.checkpoints import save_checkpoint
from utils import ROOT, SettingError, run_script, set_seed, write_json

SECONDS, SFREQ = 180, 1200


def main(words: list[str]) -> None:
    """Print a table: times faster than real time, memory."""
    if len(words) > 1:
        raise SettingError('usage: python benchmarks/detection.py [REC.ds]')
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        kinds = [('sfcn', None), ('sfcn', 'context'), ('forest', 'context')]
        runs = {kind: folder / f'wavelets_{number}' for number, kind in enumerate(kinds)}
        for kind, run in runs.items():
            make_run(run, *kind)
        signal, spikes = simulate()
        recordings = [write_fif(folder / 'simulated_raw.fif', signal, spikes)]
        if words:
            recordings.append(write_ds(folder / 'simulated.ds', signal, Path(words[0])))
        del signal
        print(
            '\n| recording | classifier | masking | times real time | reading | detection | writing | processor time |'
            ' largest memory |'
        )
        print('|---|---|---|---|---|---|---|---|---|')
        for path, (kind, run) in itertools.product(recordings, runs.items()):
            detect = [sys.executable, str(ROOT / 'detect.py'), str(run), str(path), f'output={folder / run.name}_found']
            ended = subprocess.run([sys.executable, '-c', MEASURE, *detect], capture_output=True, text=True, check=True)
            seconds, kilobytes = ended.stdout.split('\n')[-2].split()
            cells = list(re.search(FIGURES, ended.stdout).groups())
            cells += [f'{float(seconds):.1f} s', f'{int(kilobytes) / 1e6:.2f} GB']
            print(f'| {path.suffix} | {kind[0]} | {kind[1]} | {" | ".join(cells)} |', flush=True)


FIGURES = r'([\d.]+) times .* reading ([\d.]+ s), detection ([\d.]+ s), writing ([\d.]+ s)'
# Of a process that starts one other: user and system time of that other, in s, and its largest memory, in kB.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def make_run(path, classifier, masking):
    """A run directory with networks as they are before training, trees taught noise, and otherwise default settings."""
    _, settings = read_command([f'classifier={classifier}', f'masking={masking}', 'model=wavelets'])
    set_seed(0)
    run, rng = RunDirectory(path), np.random.default_rng(0)
    path.mkdir()
    chosen = {name: getattr(settings, name) for name in AUTOENCODERS['wavelets'][1]}
    model = build_model('wavelets', N_CHANNELS, 300, **chosen)
    network = {'name': 'wavelets', 'n_channels': N_CHANNELS, 'n_times': 300, 'settings': chosen}
    save_checkpoint(run.checkpoint('best'), {'model_state_dict': model.state_dict(), 'network': network})
    filters = torch.from_numpy(rng.normal(size=(N_FILTERS, N_CHANNELS)).astype(np.float32))
    kind = CLASSIFIERS[classifier]
    values = vars(settings) | {'device': torch.device('cpu')}
    spike_classifier = kind.make(**{name: values[name] for name in kind.settings})
    if classifier == 'sfcn':
        description = {'n_planes': len(settings.filters) + 2, 'n_channels': N_CHANNELS, 'n_times': 30}
        spike_classifier.state = {'model_state_dict': SFCN(**description).state_dict(), 'network': description}
    else:
        masked = torch.zeros(1, N_CHANNELS, 7, 46)
        windows = filter_windows(torch.zeros(1, N_CHANNELS, 300), masked, filters, (45, 7, 30), 8)
        features = spike_features(windows).numpy()
        n_features = append_relative_power(features, np.zeros(7)).shape[1]
        noise = Examples(rng.normal(size=(2000, n_features)), rng.integers(0, 2, 2000))
        spike_classifier.fit(noise, noise, None)
    calibration = {'method': 'temperature', 'temperature': 1.0, 'offset': 0.0}
    decision = {'calibration': calibration, 'threshold': 0.5, 'policy': 'none'}
    state = {'decision': decision, 'margin': 8, 'filters': filters, 'features_version': FEATURES_VERSION}
    spike_classifier.save(run.checkpoint('best', classifier), state)
    write_json(run.params, {'command': '', 'settings': vars(settings) | {'path_raw_data': str(path)}, 'split': {}})
    write_json(run.metrics, {})


def simulate():
    """Signal at 1200 Hz, (274, n_samples) float32, and its spikes in s."""
    patient = PatientSettings(
        subject=1, n_blocks=1, block_seconds=SECONDS, spike_rate=6.0, snr=3.0, distractor_rate=4.0,
        annotation_jitter=0.0, annotation_missed=0.0, sfreq=150, seed=0,
    )  # fmt: skip
    data, _ = simulate_patient(patient)
    times = np.arange(SECONDS * SFREQ) / SFREQ
    signal = np.array(
        [np.interp(times, np.arange(SECONDS * 150) / 150, row) for row in data['meg'][0]], dtype=np.float32
    )
    return signal, data['events'][0] / 150


def write_fif(path, signal, spikes):
    """Write a FIF recording with its spikes as annotations."""
    raw = mne.io.RawArray(signal.astype(np.float64), ctf275_info(SFREQ), verbose='error')
    raw.set_annotations(mne.Annotations(spikes, 0.0, 'spike'))
    raw.save(path, verbose='error')
    return path


def write_ds(path, signal, real):
    """A CTF recording with the header of a real one."""
    path.mkdir()
    for suffix in ('res4', 'hc'):
        shutil.copyfile(real / f'{real.stem}.{suffix}', path / f'{path.stem}.{suffix}')
    info = mne.io.read_raw_ctf(real, verbose='error').info
    n_samples = signal.shape[1]
    with (path / f'{path.stem}.res4').open('r+b') as stream:
        stream.seek(1288)
        stream.write(struct.pack('>i', n_samples))
        stream.seek(1296)
        stream.write(struct.pack('>ddhxxi', SFREQ, SECONDS, 1, 0))
    rows = dict(zip(ctf275_info(SFREQ)['ch_names'], signal, strict=True))
    with (path / f'{path.stem}.meg4').open('wb') as stream:
        stream.write(b'MEG41CP\0')
        for ch in info['chs']:
            name = ch['ch_name'].split('-')[0]
            clock = np.arange(1, n_samples + 1) / SFREQ
            values = clock if name == 'SCLK01' else rows.get(name, np.zeros(n_samples))
            stream.write(np.rint(values / ch['cal']).astype('>i4').tobytes())
    return path


if __name__ == '__main__':
    run_script(main, __doc__)
