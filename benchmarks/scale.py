"""Cost per window at growing numbers of patients, and the arithmetic of every model: the figures behind scale.md.

    python benchmarks/scale.py [N_PATIENTS ...]

Each patient has 15 blocks of 3 minutes; all have the same recording, so that a tenth of 123 patients takes 4 GB of
disk, in a temporary folder that is removed. Processor time is that of the step alone; it includes waiting for the disk
only where the kernel copies. Default: 3, 6 and 12 patients.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification import SubwindowReader
from classifiers.specs import CLASSIFIERS
from classifiers.subwindows import SubwindowShape
from data_processing import create_windows
from loop import make_optimizer, train
from models import AUTOENCODERS, build_model
from recordings.channels import N_CHANNELS
from recordings.pickles import write_pickle
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from recordings.window_settings import WindowSettings
from runs.settings import read_command
from timeseries_dataset import WindowDataset, batches, id_table, open_directory
from training.losses import reconstruction_loss
from utils import set_seed

N_BLOCKS, SECONDS = 15, 180
CPU = torch.device('cpu')


def main(words):
    """Print both tables."""
    print('| model | GFLOP forward / window | parameters |\n|---|---|---|')
    for name, (_, names) in AUTOENCODERS.items():
        _, settings = read_command([])
        # In float64 the graph of `wavelets` is a product, as on a GPU; what a CPU does in its place is not counted.
        model = build_model(name, N_CHANNELS, 300, **{key: getattr(settings, key) for key in names}).eval().double()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 1, N_CHANNELS, 300, dtype=torch.float64))
        n_parameters = sum(weights.numel() for weights in model.parameters())
        print(f'| {name} | {counter.get_total_flops() / 1e9:.2f} | {n_parameters} |', flush=True)

    print('\nProcessor ms per window')
    print('| patients | windows | GB on disk | making | opening and checking | reading an epoch | training an epoch | '
          'classifier inputs | peak MB of training |')  # fmt: skip
    print('|' + '---|' * 9)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / 'raw'
        simulate(raw)
        for n_patients in map(int, words or ('3', '6', '12')):
            for number in range(1, n_patients + 1):
                path = raw / f'data_raw_{number:03d}.pkl'
                if not path.exists():
                    os.link(raw / 'data_raw_001.pkl', path)
            # A process of its own for each: memory that was once taken counts for ever.
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                print(pool.apply(measure, (folder, n_patients)), flush=True)


def simulate(raw):
    """Write the recording: three blocks, five times."""
    patient = PatientSettings(
        subject=1,
        n_blocks=3,
        block_seconds=SECONDS,
        spike_rate=2.0,
        snr=2.5,
        distractor_rate=4.0,
        annotation_jitter=0.01,
        annotation_missed=0.1,
        sfreq=150,
        seed=0,
    )
    data, _ = simulate_patient(patient)
    repeated = {key: list(values) * (N_BLOCKS // 3) for key, values in data.items()}
    # Arrays of their own: a file that names one many times is refused.
    write_pickle(raw / 'data_raw_001.pkl', repeated | {'meg': [signal.copy() for signal in repeated['meg']]})


def measure(folder, n_patients):
    """A row of the second table."""
    torch.set_num_threads(1)
    set_seed(0)
    folder = Path(folder)
    _, settings = read_command([])
    spent = {}

    def step(name, act):
        start = time.process_time()
        result = act()
        spent[name] = time.process_time() - start
        return result

    made_with = {name: getattr(settings, name) for name in (
        'nb_best_blocks', 'sfreq', 'window_size', 'spike_spacing_from_border', 'pulse_width', 'standardize'
    )}  # fmt: skip
    window_settings = WindowSettings(normal_only=False, reject_artefacts=False, artefact_threshold=20.0, **made_with)
    nb_best_blocks, directory = made_with.pop('nb_best_blocks'), folder / f'windows_{n_patients}'
    patients = list(range(1, n_patients + 1))
    step('making', lambda: create_windows(
        folder / 'raw', directory, window_settings, patient=patients, include_spike_free=False
    ))  # fmt: skip
    opened = step('opening', lambda: open_directory(directory, nb_best_blocks, False, made_with))
    table = id_table(opened)
    dataset = WindowDataset(opened, table, zscore=False)
    loader = batches(dataset, batch_size=32, shuffle=True)
    step('reading', lambda: sum(len(x) for x, _ in loader))

    # A narrow network: what must stay flat is the cost of everything around it.
    model = build_model('AE1D_smaller', N_CHANNELS, 300, width=1)
    optimizer, scheduler = make_optimizer(
        model, optimizer='adam', learning_rate=1e-3, weight_decay=0.0, scheduler='step', stepLR=50, gammaLR=0.8,
        plateau_patience=5,
    )  # fmt: skip
    few = batches(WindowDataset(opened[:1], table[table['patient'] == 0][:32], zscore=False), batch_size=32)
    step('training', lambda: train(
        model, loader, few, reconstruction_loss('mse', [1.0]), optimizer=optimizer, scheduler=scheduler, num_epochs=1,
        n_epochs_stop=9, device=CPU, save=lambda which, state: None,
    ))  # fmt: skip
    # getrusage would give the peak of the process that started this one, where that is higher.
    peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
    in_order = batches(dataset, batch_size=32)
    shape = SubwindowShape(45, 7, 30)
    reader = SubwindowReader(model, CLASSIFIERS['hgb'], shape, [0], None, CPU)
    inputs = step('inputs', lambda: reader.read(in_order)).inputs
    assert len(inputs) == 7 * len(table)
    assert np.isfinite(inputs).all()
    size = sum(path.stat().st_size for path in (folder / f'windows_{n_patients}').iterdir()) / 1e9
    costs = ' | '.join(f'{1000 * seconds / len(table):.2f}' for seconds in spent.values())
    return f'| {n_patients} | {len(table)} | {size:.2f} | {costs} | {peak:.0f} |'


if __name__ == '__main__':
    main(sys.argv[1:])
