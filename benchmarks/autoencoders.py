"""Do the autoencoders learn, and how fast? Each against the best linear code with as many values.

    python benchmarks/autoencoders.py [name=value ...]

Simulates patients, trains every autoencoder on normal windows of some, and reports on the others: the error relative
to predicting zero, beside that of principal components with as many values per window, fitted on the same training
windows; the error around spikes over the error elsewhere; the error on white noise; the size, cost and speed of a
training step at full size against a matrix product. Prints the tables and writes autoencoders.csv, speed.csv and
autoencoders.png into path_writing_data. Takes about 30 minutes on 2 cores.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl

mpl.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from data_processing import create_windows
from models import AUTOENCODERS, build_model
from recordings.channels import N_CHANNELS
from recordings.pickles import write_pickle
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from recordings.window_settings import WindowSettings
from runs.network_settings import loss_weights
from runs.settings import read_command
from timeseries_dataset import open_directory
from training.losses import reconstruction_loss
from utils import choose_device, run_script, set_seed, writing

N_TIMES = 300
N_TRAINING, N_VALIDATION = 5, 3  # patients
N_BLOCKS = 3
# What two cores can afford; a GPU takes the original's width. `channels` is how many of the 274 a training step sees:
# AE1D codes each channel alone, so any will do; AE2D sees neighbours, so its are a run in CTF order.
BUDGET = {
    'AE1D': {'width': 16, 'epochs': 40, 'rate': 5e-3, 'channels': 24},
    'AE1D_smaller': {'width': 16, 'epochs': 60, 'rate': 5e-3, 'channels': 24},
    'AE2D': {'width': 8, 'epochs': 70, 'rate': 5e-3, 'channels': 48},
    'AE2D_smaller': {'width': 8, 'epochs': 32, 'rate': 5e-3, 'channels': 48},
    'wavelets': {'epochs': 10, 'rate': 2e-3, 'channels': N_CHANNELS},
}


def main(words: list[str]) -> None:
    """Run both parts and write the tables and the picture."""
    _, settings = read_command(words)
    device = choose_device(settings.device)
    set_seed(settings.seed)
    speed = pd.DataFrame(measure_speed(settings))
    print(speed.to_string(index=False, float_format='{:.3g}'.format), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        train_windows, validation, labels_t = simulate_windows(Path(folder), settings)
    print(f'{len(train_windows)} training windows, {len(validation)} validation windows', flush=True)
    rows = []
    for name in AUTOENCODERS:
        rows.append(measure_learning(name, train_windows, validation, labels_t, settings, device))
        print(pd.DataFrame(rows[-1:]).to_string(index=False, float_format='{:.4g}'.format), flush=True)
    table = pd.DataFrame(rows)
    print(table.T.to_string(float_format='{:.4g}'.format))
    directory = Path(settings.path_writing_data)
    for frame, name in ((table, 'autoencoders.csv'), (speed, 'speed.csv')):
        with writing(directory / name) as temporary:
            frame.to_csv(temporary, index=False)
    plot(table, directory / 'autoencoders.png')


# ------------------------------------------------------------------------------------------------ learning
def simulate_windows(folder: Path, settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal windows of the training patients, all windows of the validation patients, and their labels_t."""
    for subject in range(1, N_TRAINING + N_VALIDATION + 1):
        patient = PatientSettings(
            subject=subject,
            n_blocks=N_BLOCKS,
            block_seconds=settings.simulated_seconds,
            spike_rate=settings.simulated_spike_rate,
            snr=settings.simulated_snr,
            distractor_rate=settings.simulated_distractor_rate,
            annotation_jitter=0.0,
            annotation_missed=0.0,
            sfreq=settings.sfreq,
            seed=settings.seed,
        )
        data, _ = simulate_patient(patient)
        write_pickle(folder / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    made = {}
    durations = {'sfreq': settings.sfreq, 'window_size': N_TIMES / settings.sfreq}
    for part, normal_only, patients in (
        ('train', True, list(range(1, N_TRAINING + 1))),
        ('validation', False, list(range(N_TRAINING + 1, N_TRAINING + N_VALIDATION + 1))),
    ):
        made_with = dataclasses.replace(
            WindowSettings.of_run(settings, normal_only=normal_only),
            nb_best_blocks=0,
            reject_artefacts=False,
            **durations,
        )
        create_windows(folder / 'raw', folder / part, made_with, patient=patients, include_spike_free=True)
        opened = open_directory(folder / part, 0, False, durations)
        made[part] = np.concatenate([patient_windows.windows for patient_windows in opened])
        labels_t = np.concatenate([patient_windows.labels_t for patient_windows in opened])
    return made['train'], made['validation'], labels_t


def measure_learning(name, train_windows, validation, labels_t, settings, device):
    """Train one autoencoder and compare it with linear codes of as many values."""
    budget = BUDGET[name]
    chosen = {key: getattr(settings, key) for key in AUTOENCODERS[name][1]} | (
        {'width': budget['width']} if 'width' in budget else {}
    )
    set_seed(settings.seed)
    model = build_model(name, N_CHANNELS, N_TIMES, **chosen).to(device)
    settings.model = name
    loss = reconstruction_loss('mse', loss_weights(settings))
    print(f'{name}: {sum(p.numel() for p in model.parameters())} parameters', flush=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=budget['rate'])
    batch_size, n_batches = 16, len(train_windows) // 16
    scheduler = OneCycleLR(optimizer, budget['rate'], total_steps=budget['epochs'] * n_batches, pct_start=0.2)
    rng = np.random.default_rng(settings.seed)
    started = time.perf_counter()
    for _ in range(budget['epochs']):
        model.train()
        order = rng.permutation(len(train_windows))[: n_batches * batch_size].reshape(n_batches, batch_size)
        for chosen_windows in order:
            channels = np.arange(N_CHANNELS)
            if '1D' in name:
                channels = np.sort(rng.choice(N_CHANNELS, budget['channels'], replace=False))
            elif '2D' in name:
                channels = channels[: budget['channels']] + rng.integers(N_CHANNELS - budget['channels'] + 1)
            x = torch.from_numpy(train_windows[chosen_windows][:, channels])[:, None].to(device)
            value = loss(model, x, x)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()
    seconds = (time.perf_counter() - started) / budget['epochs']

    normal = ~labels_t.any(axis=1)
    errors = reconstruction_errors(model, validation, device)
    power = (validation[normal].astype(np.float64) ** 2).mean()
    inner = slice(45, N_TIMES - 45)
    over_time = errors.mean(axis=1)[:, inner]  # (windows, times): the outer samples are never scored
    around = labels_t[:, inner].astype(bool)
    noise = np.random.default_rng(1).normal(0, train_windows.std(), (64, N_CHANNELS, N_TIMES)).astype(np.float32)
    n_latent = sum(z[0].numel() for z in model.latent(torch.zeros(1, 1, N_CHANNELS, N_TIMES, device=device)))
    return {
        'model': name,
        'width': budget.get('width', 'full'),
        'parameters': sum(p.numel() for p in model.parameters()),
        'latent values': n_latent,
        'compression': N_CHANNELS * N_TIMES / n_latent,
        'error / predicting zero': errors[normal].mean() / power,
        'PCA over time': pca_error(train_windows, validation[normal], n_latent, axis=2),
        'PCA over space': pca_error(train_windows, validation[normal], n_latent, axis=1),
        'error at spikes / elsewhere': over_time[around].mean() / over_time[~around].mean(),
        'power at spikes / elsewhere': spike_power(validation, labels_t, inner),
        'white noise: error / predicting zero': reconstruction_errors(model, noise, device).mean() / noise.var(),
        's per epoch': seconds,
    }


def reconstruction_errors(model, windows, device):
    """Squared errors (n, channels, times) of the reconstructed signal."""
    model.eval()
    with torch.no_grad():
        cards = [model.error_cards(torch.from_numpy(part)[:, None].to(device))[:, 0].cpu().numpy() for part in
                 np.array_split(windows, -(-len(windows) // 16))]  # fmt: skip
    return np.concatenate(cards)


def spike_power(windows, labels_t, inner):
    """Mean signal power around spikes over that elsewhere: what the ratio of the errors must be compared with."""
    power = (windows.astype(np.float64) ** 2).mean(axis=1)[:, inner]
    around = labels_t[:, inner].astype(bool)
    return power[around].mean() / power[~around].mean()


def pca_error(train_windows, validation, n_latent, axis):
    """Error relative to predicting zero of principal components fitted on the training windows.

    Parameters
    ----------
    n_latent : int
        Values per window that the code may take.
    axis : int
        2: components over time, shared by the channels. 1: components over space, shared by the samples.
    """
    size, times_used = train_windows.shape[axis], train_windows.shape[3 - axis]
    rows = np.moveaxis(train_windows, axis, -1).reshape(-1, size).astype(np.float64)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    components = vectors[:, size - n_latent // times_used :]
    rows = np.moveaxis(validation, axis, -1).reshape(-1, size).astype(np.float64)
    return 1 - ((rows @ components) ** 2).sum() / (rows**2).sum()


# --------------------------------------------------------------------------------------------------- speed
def plain_layers(name, width):
    """The convolutional autoencoder `name` as plain layers in PyTorch's default layout, to measure against."""
    kernel, n_poolings = (1 if '1D' in name else 5, 5), 4 if 'smaller' in name else 2

    def stage(n_in, n_out, activation=True):
        layers = [nn.Conv2d(n_in, n_out, kernel, padding='same'), nn.BatchNorm2d(n_out)]
        return layers + [nn.LeakyReLU(0.2)] * activation

    maps = [1, width, 2 * width, 4 * width, 8 * width, 1]
    layers = []
    for layer in range(5):
        layers += stage(maps[layer], maps[layer + 1], layer < 4)
        layers += [nn.MaxPool2d((1, 2))] * (layer < n_poolings)
    maps = [1, 8 * width, 4 * width, 2 * width, width, 1]
    for layer in range(5):
        layers += [nn.Upsample(scale_factor=(1, 2))] * (0 < layer <= n_poolings)
        layers += stage(maps[layer], maps[layer + 1], layer < 4)
    return nn.Sequential(*layers)


def measure_speed(settings):
    """One training step at batch 32 and full size: time, and arithmetic per second beside a matrix product's.

    Arithmetic is counted for the plain layers of each model (forward and twice as much backward), so that work saved
    counts as speed.
    """
    size = 4096
    a, b = torch.randn(size, size), torch.randn(size, size)
    peak = 2 * size**3 / _best_time(lambda: a @ b, 5) / 1e9
    x = torch.randn(32, 1, N_CHANNELS, N_TIMES)
    # A length that the poolings divide, for the plain layers; the arithmetic is scaled to 300 samples.
    divisible = torch.zeros(1, 1, N_CHANNELS, 304)
    models, flops = {'AE1D, plain NCHW': plain_layers('AE1D', 32)}, {}
    for name in AUTOENCODERS:
        models[name] = build_model(name, N_CHANNELS, N_TIMES, **_full_size(name, settings))
        counted = models[name] if name == 'wavelets' else plain_layers(name, settings.width)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            counted(divisible)
        flops[name] = counter.get_total_flops() * N_TIMES / divisible.shape[-1]
    flops['AE1D, plain NCHW'] = flops['AE1D']
    rows = []
    for name, model in models.items():
        batch = x if '2D' not in name else x[:8]  # a step of AE2D at batch 32 takes a minute

        def step(model=model, batch=batch):
            output = model(batch)
            pairs = output if isinstance(output, list) else [(output, batch)]
            sum((reconstruction - target).square().mean() for reconstruction, target in pairs).backward()

        seconds = _best_time(step, 2) / len(batch)
        rows.append(
            {
                'model': name,
                'parameters': sum(p.numel() for p in model.parameters()),
                'GFLOP forward / window': flops[name] / 1e9,
                'batch': len(batch),
                's / window': seconds,
                'windows / s': 1 / seconds,
                'GFLOP/s of the plain layers': 3 * flops[name] / 1e9 / seconds,
                'matrix product GFLOP/s': peak,
            }
        )
        print(f'  speed of {name}: {seconds * 1e3:.0f} ms per window', flush=True)
    return rows


def _full_size(name, settings):
    return {key: getattr(settings, key) for key in AUTOENCODERS[name][1]}


def _best_time(work, repeats):
    work()  # warm-up
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


# ------------------------------------------------------------------------------------------------- picture
def plot(table, path):
    """Error of every model beside that of linear codes of its size."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout='constrained')
    places = np.arange(len(table))
    columns = {
        'error / predicting zero': ('autoencoder', '#0072B2'),
        'PCA over time': ('PCA over time, as many values', '#E69F00'),
        'PCA over space': ('PCA over space, as many values', '#999999'),
    }
    for offset, (column, (label, colour)) in enumerate(columns.items()):
        bars = axis.bar(places + 0.27 * (offset - 1), table[column], 0.25, color=colour, label=label)
        axis.bar_label(bars, fmt='{:.3f}', fontsize=8)
    ticks = [f'{name}\n{n} values' for name, n in zip(table['model'], table['latent values'], strict=True)]
    axis.set_xticks(places, ticks)
    axis.set(ylabel='squared error / signal power', title='Normal windows of simulated patients not seen in training')
    axis.legend()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    run_script(main, __doc__)
