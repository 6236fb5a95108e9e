"""How fast on a GPU? Training, inference, loading and detection in the fast path, beside plain PyTorch in the same run.

    python benchmarks/gpu.py [name=value ...]

Takes one CUDA GPU; without one it says so and measures the CPU, with small batches. Every model in full size (`width`,
`filters` make it smaller). 'plain' is the model as float32 layers in PyTorch's default layout and with its default
settings (by which recent GPUs convolve in TF32), stepped by a plain Adam; 'eager' has the setting `precision` and the
project's layouts; 'compiled', on a GPU, is training as main_train.py does it. All start from the same weights and see
the same batches. Arithmetic is counted for the plain layers, so that work saved counts as speed, and set beside a
matrix product of the same run. Prints as it goes, and writes gpu.csv and gpu_other.csv into path_writing_data.
"""

import contextlib
import datetime
import functools
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from autoencoders import plain_layers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from classification import SubwindowReader, TrainedRun, score_block
from classifiers.forest import RandomForest
from classifiers.inputs import Masking, masking_margin
from classifiers.specs import CLASSIFIERS, Examples
from classifiers.subwindows import subwindow_shape
from loop import make_optimizer, validate
from models import AUTOENCODERS, build_model
from recordings.channels import N_CHANNELS
from recordings.patient_windows import PatientWindows
from recordings.scaling import block_statistics, scale
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from runs.network_settings import loss_weights
from runs.settings import read_command
from timeseries_dataset import WindowDataset, batches, id_table
from training.losses import masked_loss, reconstruction_loss
from utils import SettingError, choose_device, choose_precision, run_script, set_seed, to_device, writing

N_TIMES = 300
RATE = 1e-3  # learning rate
IMPORTANT = ('AE1D', 'AE2D', 'wavelets', 'AE1D_smaller', 'AE2D_smaller')  # what is measured first


class Size(NamedTuple):
    """How much is measured.

    Attributes
    ----------
    most : int
        Windows per batch, where `batch_size` is not less: what the plain AE2D leaves room for on a GPU of 40 GB.
    windows : int
        Training windows held.
    learnt : int
        Steps of training before the validation losses are compared.
    repeats, in_a_row : int
        Times that a speed is measured, and batches each time.
    product : int
        Rows and columns of the matrix product.
    """

    most: int
    windows: int
    learnt: int
    repeats: int
    in_a_row: int
    product: int


ON_GPU = Size(most=64, windows=512, learnt=50, repeats=3, in_a_row=3, product=8192)
ON_CPU = Size(most=2, windows=4, learnt=2, repeats=3, in_a_row=1, product=1024)


def main(words: list[str]) -> None:
    """Measure, what matters most first, and print each figure when it is known."""
    _, settings = read_command(words)
    device = choose_device(settings.device)
    size = ON_GPU if device.type == 'cuda' else ON_CPU
    settings.precision = choose_precision(settings.precision, device)
    settings.batch_size = min(settings.batch_size, size.most)
    set_seed(settings.seed)
    torch.use_deterministic_algorithms(False)  # PyTorch has none for the plain layers' upsampling
    print(describe(settings, device), flush=True)
    peak = matrix_product(size, settings, device)
    windows, recording = simulate(size, settings)
    print("\n| model | largest difference from float32 on the CPU / output's std |\n|---|---|")
    for name in IMPORTANT:
        print(f'| {name} | {difference(name, windows[:2], settings, device):.1e} |', flush=True)

    directory, rows = Path(settings.path_writing_data), []
    training = serve(windows[: size.windows], True, settings.augmentation, settings, device)
    validation = serve(windows[size.windows :], True, 0.0, settings, device)
    for name in IMPORTANT[:3]:
        compare_versions(name, peak, training, validation, size, settings, device, rows, directory)
    others = []
    detection = measure_detection(recording, settings, device)
    loading = measure_loading(windows[: size.windows], size, settings, device)
    for row in itertools.chain(detection, loading):
        others.append(row)
        print_row(others)
        write_table(directory / 'gpu_other.csv', others)
    for name in IMPORTANT[3:]:
        compare_versions(name, peak, training, validation, size, settings, device, rows, directory)


def compare_versions(name, peak, training, validation, size, settings, device, rows, directory) -> None:
    """Measure the versions of a model, beside the plain one, and add them to the table."""
    flops, plain = count_flops(name, settings, device), {}
    for version in ('plain', 'eager', 'compiled')[: 3 if device.type == 'cuda' else 2]:
        try:
            row = measure_model(name, version, flops, peak, training, validation, size, settings, device)
        except torch.OutOfMemoryError as fault:
            raise SettingError(f'batch_size = {settings.batch_size}: too large for {device}: lower it') from fault
        plain = plain or row
        row['times plain'] = row['training windows/s'] / plain['training windows/s']
        row['inference, times plain'] = row['inference windows/s'] / plain['inference windows/s']
        row['validation loss / plain'] = row['validation loss'] / plain['validation loss']
        rows.append(row)
        print_row(rows)
        write_table(directory / 'gpu.csv', rows)


def describe(settings: SimpleNamespace, device: torch.device) -> str:
    """The machine, the versions, the date and what is measured, in a line."""
    if device.type == 'cuda':
        card = torch.cuda.get_device_properties(device)
        where = f'{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}'
    else:
        where = f'no GPU: the CPU is measured, with small batches, on {torch.get_num_threads()} threads'
    versions = f'Python {platform.python_version()}, PyTorch {torch.__version__}, {datetime.date.today()}'
    return f'{where}; {versions}; precision {settings.precision}, batches of {settings.batch_size}'


def matrix_product(size: Size, settings: SimpleNamespace, device: torch.device) -> float:
    """TFLOP/s of a large matrix product in the precision of the fast path."""
    dtype = getattr(torch, settings.precision)
    a, b = torch.randn(2, size.product, size.product, device=device).to(dtype)
    tflops = 2 * size.product**3 / median_seconds(lambda: a @ b, 5, device) / 1e12
    print(f'matrix product {size.product} x {size.product}, {settings.precision}: {tflops:.4g} TFLOP/s', flush=True)
    return tflops


def simulate(size: Size, settings: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation windows (n, 274, 300) of one simulated block, scaled by block, and the block.

    The block is 3 minutes long, (274, n_samples) in tesla.
    """
    patient = PatientSettings(
        subject=1, n_blocks=1, block_seconds=180, spike_rate=6.0, snr=3.0, distractor_rate=4.0, annotation_jitter=0.0,
        annotation_missed=0.0, sfreq=150, seed=settings.seed,
    )  # fmt: skip
    data, _ = simulate_patient(patient)
    signal = data['meg'][0]
    deviations = np.empty(signal.shape, '<f4')
    scaled = scale(deviations, *block_statistics(signal, deviations))
    # The last fifth is for validation.
    last = scaled.shape[1] - N_TIMES
    starts = np.linspace(0, 0.8 * last - N_TIMES, size.windows).astype(int).tolist()
    starts += np.linspace(0.8 * last, last, max(size.windows // 8, 2)).astype(int).tolist()
    return np.stack([scaled[:, start : start + N_TIMES] for start in starts]).astype(np.float32), signal


def serve(
    windows: np.ndarray, preload: bool, noise: float, settings: SimpleNamespace, device: torch.device
) -> DataLoader:
    """Batches of windows, held on the device or read as from the files, in the order of training."""
    none = np.zeros(len(windows), dtype=np.int64)
    opened = PatientWindows(0, Path(), windows, none, none, none, np.zeros((len(windows), 0), dtype=np.uint8))
    dataset = WindowDataset([opened], id_table([opened]), zscore=False, noise=noise, preload=preload, device=device)
    return batches(dataset, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)


# ---------------------------------------------------------------------------------------------- the models
class Plain(nn.Module):
    """A convolutional autoencoder in plain layers, with the weights of the project's."""

    def __init__(self, name: str, width: int, weights: list[torch.Tensor]):
        super().__init__()
        self.layers, self.reduction = plain_layers(name, width), 16 if 'smaller' in name else 4
        names = self.layers.state_dict().keys()
        self.layers.load_state_dict(dict(zip(names, weights, strict=True)))

    def forward(self, x, target=None):
        """(reconstruction, target) pairs, as the project's models give."""
        padded = F.pad(x, (0, -x.shape[-1] % self.reduction, 0, 0), mode='replicate')
        return [(self.layers(padded)[..., : x.shape[-1]], x if target is None else target)]


def make(name: str, version: str, settings: SimpleNamespace, device: torch.device) -> nn.Module:
    """The model of a name on the device: always with the same weights."""
    set_seed(settings.seed)
    torch.use_deterministic_algorithms(False)
    chosen = {key: getattr(settings, key) for key in AUTOENCODERS[name][1]}
    model = build_model(name, N_CHANNELS, N_TIMES, **chosen)
    if version != 'plain':
        model.precision = settings.precision
    elif name != 'wavelets':
        model = Plain(name, settings.width, list(model.state_dict().values()))
    return model.to(device)


def default_precision(version: str, settings: SimpleNamespace, device: torch.device) -> None:
    """Have the device compute as PyTorch does by default, for the plain version, or as `precision` says."""
    choose_precision(settings.precision, device)
    if version == 'plain' and device.type == 'cuda':
        torch.set_float32_matmul_precision('highest')
        torch.backends.cudnn.allow_tf32 = True


def make_loss(name: str, settings: SimpleNamespace) -> Callable:
    """The loss of the settings."""
    weights = loss_weights(SimpleNamespace(**vars(settings) | {'model': name}))
    if not settings.masking:
        return reconstruction_loss(settings.criterion, weights)
    shape = shape_of(settings)
    return masked_loss(settings.criterion, weights, shape, masking_margin(shape, settings.pulse_width, settings.sfreq))


def shape_of(settings):
    """The sub-windows of the settings."""
    border, length = (round(seconds * settings.sfreq) for seconds in
                      (settings.spike_spacing_from_border, settings.subwindow_size))  # fmt: skip
    return subwindow_shape(N_TIMES, border, length)


def count_flops(name: str, settings: SimpleNamespace, device: torch.device) -> tuple[float, float]:
    """Arithmetic per window of the plain layers, forwards, and forwards and backwards."""
    model = make(name, 'plain', settings, device)
    x, counts = torch.zeros(1, 1, N_CHANNELS, N_TIMES, device=device), []
    for backwards in (False, True):
        with FlopCounterMode(display=False) as counter:
            total = sum(output.mean() for output, _ in model(x))
            if backwards:
                total.backward()
        counts.append(counter.get_total_flops())
    return tuple(counts)


def difference(name: str, windows: np.ndarray, settings: SimpleNamespace, device: torch.device) -> float:
    """Largest difference of the reconstructions from those in float32 on the CPU, over their std."""
    exact = SimpleNamespace(**vars(settings) | {'precision': 'float32'})
    torch.set_float32_matmul_precision('highest')
    outputs = []
    for of, target in ((exact, torch.device('cpu')), (settings, device)):
        x = torch.from_numpy(windows)[:, None].to(target)
        default_precision('eager', of, target)
        with torch.no_grad():
            outputs.append(make(name, 'eager', of, target).eval()(x)[0][0].cpu())
    return ((outputs[1] - outputs[0]).abs().max() / outputs[0].std()).item()


def measure_model(name, version, flops, peak, training, validation, size, settings, device) -> dict:
    """Speed of training and inference of a version of a model, memory, and validation loss after some training."""
    default_precision(version, settings, device)
    model, loss, batch = make(name, version, settings, device), make_loss(name, settings), settings.batch_size
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    if version == 'compiled':
        model.compile_training((batch, 1, N_CHANNELS, N_TIMES))
    compiling = time.perf_counter() - started
    if version == 'plain':
        optimizer = torch.optim.Adam(model.parameters(), RATE)
    else:
        optimizer, _ = make_optimizer(
            model, optimizer='adam', learning_rate=RATE, weight_decay=0.0, scheduler='step', stepLR=50, gammaLR=1.0,
            plateau_patience=1,
        )  # fmt: skip
    torch.manual_seed(settings.seed)
    model.train()
    one_step = functools.partial(step, model, optimizer, loss)
    done = 0
    while done < size.learnt:
        training.dataset.epoch = done
        for x, target in itertools.islice(training, size.learnt - done):
            one_step(x, target)
            done += 1
    validation_loss = validate(model, validation, loss, device)
    model.train()
    x, target = next(iter(training))
    seconds = median_seconds(lambda: [one_step(x, target) for _ in range(size.in_a_row)], size.repeats, device)
    seconds /= size.in_a_row * len(x)
    from_loader = median_seconds(lambda: [one_step(*batch) for batch in training], 1, device, warm_up=False)
    from_loader /= len(training.dataset)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == 'cuda' else np.nan
    model.eval()

    def infer():
        with torch.no_grad():
            for _ in range(size.in_a_row):
                model(x)

    inference = median_seconds(infer, size.repeats, device) / (size.in_a_row * len(x))
    return {
        'model': name,
        'version': version,
        'training windows/s': 1 / seconds,
        'times plain': np.nan,
        'TFLOP/s': flops[1] / seconds / 1e12,
        'of the matrix product': flops[1] / seconds / 1e12 / peak,
        'share waiting for batches': 1 - seconds / from_loader,
        'peak GiB': memory,
        'validation loss': validation_loss,
        'validation loss / plain': np.nan,
        'inference windows/s': 1 / inference,
        'inference, times plain': np.nan,
        'inference TFLOP/s': flops[0] / inference / 1e12,
        'compiling s': compiling if version == 'compiled' else np.nan,
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable, x: torch.Tensor, target: torch.Tensor):
    """A step of training."""
    value = loss(model, x, target)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()


# -------------------------------------------------------------------------------- loading and detection
def measure_loading(windows, size, settings, device):
    """Batches with noise, as training takes them: from windows held on the device, and read in the main process."""
    for preload, where in ((True, 'gathered on the device'), (False, 'read in the main process')):
        loader = serve(windows, preload, settings.augmentation, settings, device)

        def read(loader=loader):
            for x, target in loader:
                to_device(x, device), to_device(target, device)

        rate = len(windows) / median_seconds(read, size.repeats, device)
        yield {'what': f'batches with noise, {where}', 'value': rate, 'unit': 'windows/s'}


def measure_detection(recording: np.ndarray, settings: SimpleNamespace, device: torch.device):
    """Detection in a recording of 3 minutes that is in memory, by the default pipeline: MEGA, masking, trees.

    The network is not taught anything, which changes no speed, and the trees learn noise, which makes large ones.

    Yields
    ------
    dict
        what, value, unit.
    """
    default_precision('eager', settings, device)
    model, shape = make('wavelets', 'eager', settings, device).eval(), shape_of(settings)
    rng = np.random.default_rng(settings.seed)
    filters = torch.from_numpy(rng.normal(size=(60, N_CHANNELS)).astype(np.float32)).to(device)
    masking = Masking(masking_margin(shape, settings.pulse_width, settings.sfreq), filters)
    reader = SubwindowReader(model, CLASSIFIERS['forest'], shape, [0], masking, device)
    x = rng.normal(size=(1, N_CHANNELS, N_TIMES)).astype(np.float32)
    n_features = reader.read(serve(x, False, 0.0, settings, device)).inputs.shape[1]
    noise = Examples(rng.normal(size=(2000, n_features)), rng.integers(0, 2, 2000))
    trees = RandomForest(seed=settings.seed)
    with contextlib.redirect_stdout(None):
        trees.fit(noise, noise, None)
    decision = {'calibration': {'method': 'temperature', 'temperature': 1.0, 'offset': 0.0}, 'threshold': 0.5}
    chosen = vars(settings) | {'classifier': 'forest', 'masking': 'context', 'standardize': 'block'}
    trained = TrainedRun(chosen, reader, trees, decision)
    lengths = [recording.shape[1]]
    repeats = 5 if device.type == 'cuda' else 1
    started = time.perf_counter()
    score_block(trained, recording, lengths)
    first = time.perf_counter() - started
    for what, seconds in (
        ('first', first),
        ('later', median_seconds(lambda: score_block(trained, recording, lengths), repeats, device, warm_up=False)),
    ):
        yield {'what': f'detection in 3 minutes after loading, {what} recording', 'value': seconds, 'unit': 's'}


# ------------------------------------------------------------------------------------------- measuring
def median_seconds(work: Callable, repeats: int, device: torch.device, warm_up: bool = True) -> float:
    """Median time of a piece of work, until the device has done it."""
    times = []
    for _ in range(repeats + warm_up):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_up:])


def _wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def print_row(rows: list[dict]) -> None:
    """Print the last row of a Markdown table, and its head before the first."""
    if len(rows) == 1:
        print('\n| ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * len(rows[0]))
    cells = [f'{value:.4g}' if isinstance(value, float) else str(value) for value in rows[-1].values()]
    print('| ' + ' | '.join(cell.replace('nan', '') for cell in cells) + ' |', flush=True)


def write_table(path: Path, rows: list[dict]) -> None:
    """Write what is known so far."""
    with writing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == '__main__':
    run_script(main, __doc__)
