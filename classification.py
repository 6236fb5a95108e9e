"""From a trained autoencoder to decisions: sub-windows, what the classifiers see of them, calibration, threshold."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import precision_recall_curve
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_processing import window_shape
from evaluation import merge_events
from loop import load_checkpoint
from models import build_model
from models.boosting import BoostedTrees
from models.features import beside_block, less_block_median, peak_score, spatial_filters, spike_features
from models.mean_error import MeanError
from models.sfcn import SfcnClassifier
from models.svm import SupportVectors
from timeseries_dataset import RecordingWindows, batches
from utils import DataError


class SubwindowShape(NamedTuple):
    """How the inner part of a window is cut, in samples: from `border`, `n_sub` pieces of `n_times`."""

    border: int
    n_sub: int
    n_times: int

    def cut(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, ..., times) to the sub-windows (batch * n_sub, ..., n_times), window after window."""
        inner = maps[..., self.border : self.border + self.n_sub * self.n_times]
        return inner.unflatten(-1, (self.n_sub, self.n_times)).movedim(-2, 1).flatten(0, 1)


def subwindow_shape(n_times: int, border: int, subwindow: int) -> SubwindowShape:
    """Cut the inner part of a window of `n_times` samples into as many whole pieces of `subwindow` as fit."""
    return SubwindowShape(border, (n_times - 2 * border) // subwindow, subwindow)


# ---------------------------------------------------------------------------------------- sub-windows
def subwindow_table(table: pd.DataFrame, labels_t: np.ndarray, shape: SubwindowShape) -> pd.DataFrame:
    """One row per sub-window, window after window.

    Parameters
    ----------
    table : DataFrame
        Rows of the id table, one per window.
    labels_t : uint8 array (n_windows, n_times of a window)
        Their marked samples.

    Returns
    -------
    DataFrame
        subject, block, timing (centre of the sub-window, in samples of the block), test (1 where a marked sample
        lies in the sub-window).
    """
    first = shape.border
    inner = labels_t[:, first : first + shape.n_sub * shape.n_times]
    test = inner.reshape(len(table), shape.n_sub, shape.n_times).any(axis=2)
    centre = first + shape.n_times * (np.arange(shape.n_sub) + 0.5)  # from the window's start
    start = table['timing'].to_numpy()[:, None] - labels_t.shape[1] / 2
    return pd.DataFrame(
        {
            'subject': np.repeat(table['subject'].to_numpy(), shape.n_sub),
            'block': np.repeat(table['block'].to_numpy(), shape.n_sub),
            'timing': (start + centre).ravel(),
            'test': test.ravel().astype(np.int64),
        }
    )


def field_peaks(x: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """Peak of the global field power (std over channels) in every sub-window of x (batch, 1, channels, times).

    Returns
    -------
    tensor (batch * n_sub, 2)
        The field power at its peak, and the peak's sample counted from the sub-window's first.
    """
    value, sample = shape.cut(x[:, 0].std(dim=1, correction=0)).max(dim=-1)
    return torch.stack([value, sample.to(value.dtype)], dim=1)


def with_peaks(table: pd.DataFrame, peaks: np.ndarray, shape: SubwindowShape) -> pd.DataFrame:
    """Add to a table of sub-windows the columns `field` and `peak` (in samples of the block) of `field_peaks`."""
    field, sample = peaks.T
    first = table['timing'].to_numpy() - shape.n_times / 2
    # As float64, which a CSV gives back as it was.
    return table.assign(field=field.astype(np.float64), peak=np.round(first + sample).astype(np.int64))


# --------------------------------------------------------------------------- what the classifiers read
N_FILTERS = 60  # spatial filters of the features and of the score
# Windows at once in the networks when a recording is scored: on a CPU more are no faster, a GPU takes them all.
BATCH_SIZE = {'cpu': 8, 'cuda': 64}


class Masking(NamedTuple):
    """What is needed, with masking, to read what a sub-window's context does not predict.

    Attributes
    ----------
    margin : int
        Samples masked on either side of a sub-window: half a pulse, so that a spike is masked whole.
    filters : float32 array (n_filters, channels) or None
        Spatial filters of the training windows, where the classifier reads them.
    """

    margin: int
    filters: np.ndarray | None = None


def error_cards(errors: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """The original's error cards (batch * n_sub, levels, channels, n_times) of errors (batch, pairs, channels, times):
    cut to the inner part of the window, each plane z-scored there."""
    inner = slice(shape.border, shape.border + shape.n_sub * shape.n_times)
    cards = zscore_planes(errors[:, levels, :, inner])
    return SubwindowShape(0, shape.n_sub, shape.n_times).cut(cards)


def zscore_planes(cards: torch.Tensor) -> torch.Tensor:
    """Scale every plane of error cards (batch, pairs, channels, times) to mean 0, std 1; flat planes become zeros."""
    std, mean = torch.std_mean(cards, dim=(2, 3), correction=0, keepdim=True)
    return (cards - mean) / torch.where(std > 0, std, 1.0)


def error_statistics(errors: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """Statistics per channel (batch * n_sub, n_features) of errors (batch, pairs, channels, times).

    Per level: the logarithms of the mean and of the maximum over time of every channel, then deciles of both over the
    channels, which say the same wherever in the head a spike is.
    """
    errors = shape.cut(errors[:, levels])  # (batch * n_sub, levels, channels, n_times)
    per_channel = torch.stack([errors.mean(dim=-1), errors.amax(dim=-1)], dim=-2).clamp(min=1e-30).log()
    deciles = torch.quantile(per_channel, torch.linspace(0, 1, 11, device=errors.device), dim=-1).movedim(0, -1)
    return torch.cat([per_channel, deciles], dim=-1).flatten(1)


def mean_error(errors: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """Logarithm (batch * n_sub, 1) of the mean over levels, channels and samples of errors (batch, pairs, channels,
    times)."""
    return shape.cut(errors[:, levels]).mean(dim=(1, 2, 3)).clamp(min=1e-30).log()[:, None]


def latent_statistics(latents: list[torch.Tensor], n_times: int, shape: SubwindowShape) -> torch.Tensor:
    """Mean and log std over time of every row of the latent maps (batch * n_sub, n_features).

    A map (batch, ..., times / 2^k) is first brought back to the window's `n_times` samples by nearest neighbour.
    """
    features = []
    for latent in latents:
        column = torch.arange(n_times, device=latent.device) * latent.shape[-1] // n_times
        rows = shape.cut(latent.flatten(1, -2)[..., column])  # (batch * n_sub, rows, n_times)
        std, mean = torch.std_mean(rows, dim=-1, correction=0)
        features += [mean, std.clamp(min=1e-6).log()]
    return torch.cat(features, dim=1)


def masked_cards(
    x: torch.Tensor, residuals: torch.Tensor, shape: SubwindowShape, levels: list[int], masking: Masking
) -> torch.Tensor:
    """Error cards as `error_cards` gives, of residuals (batch, pairs, channels, n_sub, n_times + 2 margin)."""
    cards = residuals[..., masking.margin : masking.margin + shape.n_times].square()[:, levels].flatten(-2)
    return SubwindowShape(0, shape.n_sub, shape.n_times).cut(zscore_planes(cards))


def masked_features(
    x: torch.Tensor, residuals: torch.Tensor, shape: SubwindowShape, levels: list[int], masking: Masking
) -> torch.Tensor:
    """Features at the peak of the signal's residual (batch * n_sub, n_features), see `features.spike_features`;
    whatever the levels."""
    arrays = x[:, 0].cpu().numpy(), residuals[:, 0].cpu().numpy()
    return torch.from_numpy(spike_features(*arrays, masking.filters, shape, masking.margin))


def masked_peak(
    x: torch.Tensor, residuals: torch.Tensor, shape: SubwindowShape, levels: list[int], masking: Masking
) -> torch.Tensor:
    """How large and brief the signal's residual is (batch * n_sub, 1), see `features.peak_score`."""
    arrays = x[:, 0].cpu().numpy(), residuals[:, 0].cpu().numpy()
    return torch.from_numpy(peak_score(*arrays, masking.filters, shape, masking.margin))[:, None]


def window_errors(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, masking: Masking | None) -> torch.Tensor:
    """Squared errors of whole windows (batch, n_pairs, channels, times), for pictures.

    With masking, those of the sub-windows, masked in turn; NaN outside them.
    """
    if masking is None:
        return model.error_cards(x)
    cards = model.masked_error_cards(x, shape, masking.margin).flatten(-2)
    outside = (shape.border, x.shape[-1] - shape.border - cards.shape[-1])
    return nn.functional.pad(cards, outside, value=torch.nan)


class ClassifierSpec(NamedTuple):
    """A classifier: its class, what it reads of the autoencoder, and the settings it takes.

    Every class has `fit(train, validation, checkpoint)`, `predict_proba(inputs)`, `save(path, beside)` and
    `load(path)`.

    Attributes
    ----------
    make : type
    inputs : callable or None
        From errors to what it reads, as `error_cards`; None for the latent maps.
    masked_inputs : callable or None
        The same from masked residuals, as `masked_cards`; None where masking makes no difference.
    relative_to_block : callable or None
        With masking, what compares the inputs (n, ...) with those of their block: see `features.append_relative`.
    settings : tuple of str
        The settings of params.py that it takes.
    """

    make: type
    inputs: Callable[..., torch.Tensor] | None
    masked_inputs: Callable[..., torch.Tensor] | None = None
    relative_to_block: Callable[..., np.ndarray] | None = None
    settings: tuple[str, ...] = ('seed',)

    @property
    def needs_filters(self) -> bool:
        """Whether, with masking, it reads the spatial filters: what is compared with its block is filtered."""
        return self.relative_to_block is not None


_SFCN_SETTINGS = tuple(field.name for field in dataclasses.fields(SfcnClassifier))
CLASSIFIERS = {
    'sfcn': ClassifierSpec(SfcnClassifier, error_cards, masked_cards, settings=_SFCN_SETTINGS),
    'hgb': ClassifierSpec(BoostedTrees, error_statistics, masked_features, beside_block),
    'svm': ClassifierSpec(SupportVectors, error_statistics, masked_features, beside_block),
    'latent': ClassifierSpec(BoostedTrees, None),
    'threshold': ClassifierSpec(MeanError, mean_error, masked_peak, less_block_median, settings=()),
}


class Examples(NamedTuple):
    """Sub-windows as a classifier sees them.

    Attributes
    ----------
    inputs : float32 array (n, ...)
    labels : int array (n,)
        1 where an annotated spike is.
    """

    inputs: np.ndarray
    labels: np.ndarray


class SubwindowData(NamedTuple):
    """What one pass over windows leaves of their sub-windows, window after window.

    Attributes
    ----------
    inputs : float32 array (n, ...)
        What the classifier reads.
    peaks : float32 array (n, 2)
        Field power at its peak, and the peak's sample, see `field_peaks`.
    errors : float32 array (n_windows, n_pairs, n_inner) or None
        Squared errors of the windows' inner part, averaged over channels; None where the classifier reads none.
    """

    inputs: np.ndarray
    peaks: np.ndarray
    errors: np.ndarray | None


def levels_of(levels: str | list[int], n_pairs: int) -> list[int]:
    """The setting `levels` as a list: 'all' is every (reconstruction, target) pair."""
    return list(range(n_pairs)) if levels == 'all' else list(levels)


class SubwindowReader(NamedTuple):
    """Turns windows into what a classifier reads of their sub-windows, in training, test and detection alike.

    Attributes
    ----------
    autoencoder : Module
    spec : ClassifierSpec
    shape : SubwindowShape
    levels : list of int
        The (reconstruction, target) pairs that are read.
    masking : Masking or None
    device : torch.device
    """

    autoencoder: nn.Module
    spec: ClassifierSpec
    shape: SubwindowShape
    levels: list[int]
    masking: Masking | None
    device: torch.device

    def read(
        self, loader: DataLoader, blocks: np.ndarray | None = None, reference: np.ndarray | None = None
    ) -> SubwindowData:
        """Read the sub-windows of a loader's windows, in one pass.

        Parameters
        ----------
        blocks : array (n,), optional
            What tells the blocks of the sub-windows apart, because with masking inputs are compared with their block;
            all of one block where not given.
        reference : bool array (n,), optional
            The sub-windows that they are compared with; all where not given.
        """
        inputs, peaks, *errors = gather(self.autoencoder, loader, self._read_batch, self.device, 'errors')
        if self.masking and self.spec.relative_to_block:
            blocks = np.zeros(len(inputs), dtype=np.int64) if blocks is None else blocks
            inputs = self.spec.relative_to_block(inputs, blocks, reference)
        return SubwindowData(inputs, peaks, errors[0] if errors else None)

    def _read_batch(self, model, x):
        """Inputs, field peaks and errors averaged over channels of one batch of windows."""
        shape, levels, peaks = self.shape, self.levels, field_peaks(x, self.shape)
        if self.spec.inputs is None:
            return latent_statistics(model.latent(x), x.shape[-1], shape), peaks
        if self.masking and self.spec.masked_inputs:
            residuals = model.masked_residuals(x, shape, self.masking.margin)
            inputs = self.spec.masked_inputs(x, residuals, shape, levels, self.masking)
            errors = residuals[..., self.masking.margin : self.masking.margin + shape.n_times].square()
            return inputs, peaks, errors.mean(dim=2).flatten(-2)
        errors = model.error_cards(x)
        inner = slice(shape.border, shape.border + shape.n_sub * shape.n_times)
        return self.spec.inputs(errors, shape, levels), peaks, errors[..., inner].mean(dim=2)


def masking_margin(shape: SubwindowShape, pulse_width: float, sfreq: float) -> int:
    """Samples to mask on either side of a sub-window: half a pulse, but at least one sample must stay at the ends."""
    return min(round(pulse_width / 2 * sfreq), shape.border - 1)


def measure_filters(
    autoencoder: nn.Module, loader: DataLoader, shape: SubwindowShape, margin: int, device: torch.device
) -> np.ndarray:
    """Spatial filters (N_FILTERS, channels) of a loader's windows, float32, see `features.spatial_filters`."""
    autoencoder.eval()
    signal, residual, n_windows = 0.0, 0.0, 0
    with torch.no_grad():
        for x, _ in tqdm(loader, desc='filters', leave=False, disable=None, unit='batch'):
            x = x.to(device, non_blocking=True)
            residuals = autoencoder.masked_residuals(x, shape, margin)[:, 0]
            signal = signal + len(x) * _covariance(x[:, 0])
            residual = residual + len(x) * _covariance(residuals)
            n_windows += len(x)
    return spatial_filters(signal / n_windows, residual / n_windows, N_FILTERS).astype(np.float32)


def _covariance(maps):
    """Mean product of channels (channels, channels), float64, of maps (batch, channels, ...)."""
    rows = maps.movedim(1, 0).flatten(1).double()
    return (rows @ rows.T / rows.shape[1]).cpu().numpy()


def gather(
    model: nn.Module,
    loader: DataLoader,
    extract: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]],
    device: torch.device,
    description: str,
) -> list[np.ndarray]:
    """Apply `extract(model, x)` to the windows of a loader, without gradients, and put the rows of each of the tensors
    that it gives together.

    Returns
    -------
    list of float32 arrays
        In the loader's order.
    """
    model.eval()
    gathered, n_windows, n_read = [], len(loader.dataset), 0
    with torch.no_grad():
        for x, _ in tqdm(loader, desc=description, leave=False, disable=None, unit='batch'):
            tensors = [rows.cpu().numpy() for rows in extract(model, x.to(device, non_blocking=True))]
            if not gathered:  # all at once: putting batches together later would take the memory twice
                per_window = [len(rows) // len(x) for rows in tensors]
                gathered = [
                    np.empty((n_windows * n, *rows.shape[1:]), rows.dtype)
                    for n, rows in zip(per_window, tensors, strict=True)
                ]
            for whole, n, rows in zip(gathered, per_window, tensors, strict=True):
                whole[n * n_read : n * n_read + len(rows)] = rows
            n_read += len(x)
    return gathered


class TrainedRun(NamedTuple):
    """A finished run, ready to score windows.

    Attributes
    ----------
    settings : dict
        Those of its params.json.
    reader : SubwindowReader
    classifier
        See `ClassifierSpec`.
    decision : dict
        calibration, threshold and policy, as chosen on its validation set.
    """

    settings: dict
    reader: SubwindowReader
    classifier: object
    decision: dict

    def score(self, data: SubwindowData) -> np.ndarray:
        """Calibrated probabilities (n,) of sub-windows."""
        return calibrate(self.decision['calibration'], self.classifier.predict_proba(data.inputs))


def load_run(
    settings: dict, autoencoder: Path, classifier: Path, device: torch.device, precision: str = 'float32'
) -> TrainedRun:
    """Load what a finished run left.

    Parameters
    ----------
    settings : dict
        The settings in its params.json.
    autoencoder, classifier : paths
        Its best checkpoints.
    precision : str
        Of the networks, whatever they were trained in: 'float32' or 'bfloat16'.

    Raises
    ------
    DataError
        A checkpoint is missing, damaged, or of a run with other windows.
    """
    lengths = ('window_size', 'spike_spacing_from_border', 'pulse_width', 'sfreq')
    window = window_shape(**{name: settings[name] for name in lengths})
    shape = subwindow_shape(window.n_times, window.border, round(settings['subwindow_size'] * settings['sfreq']))
    model = load_autoencoder(autoencoder, window.n_times)
    model.to(device).precision = precision
    spec, arguments = CLASSIFIERS[settings['classifier']], settings | {'device': device, 'precision': precision}
    try:
        loaded = spec.make(**{name: arguments[name] for name in spec.settings}).load(classifier)
        state = load_checkpoint(classifier)
        decision, masking = state['decision'], None
        if settings['masking']:
            filters = state['filters']
            masking = Masking(state['margin'], None if filters is None else filters.numpy())
    except (KeyError, TypeError, RuntimeError) as fault:
        raise DataError(
            f'{classifier}: not a {settings["classifier"]} of this project ({type(fault).__name__})'
        ) from fault
    levels = levels_of(settings['levels'], 1 if settings['model'] != 'wavelets' else len(settings['filters']) + 2)
    return TrainedRun(settings, SubwindowReader(model, spec, shape, levels, masking, device), loaded, decision)


def load_autoencoder(path: Path, window_length: int) -> nn.Module:
    """The autoencoder of a checkpoint, on the CPU.

    Raises
    ------
    DataError
        The checkpoint is missing, damaged, or of windows of another length (in samples).
    """
    state = load_checkpoint(path)
    try:
        network = state['network']
        model = build_model(network['name'], network['n_channels'], network['n_times'], **network['settings'])
        model.load_state_dict(state['model_state_dict'])
    except (KeyError, TypeError, RuntimeError) as fault:
        raise DataError(f'{path}: not an autoencoder of this project ({type(fault).__name__})') from fault
    if network['n_times'] != window_length:
        raise DataError(
            f'{path}: trained on windows of {network["n_times"]} samples, but its run says window_size x sfreq '
            f'= {window_length}: its checkpoint or params.json is of another run'
        )
    return model


# ---------------------------------------------------------------------------- scoring a whole block
class Detections(NamedTuple):
    """What a run says of a block.

    Attributes
    ----------
    subwindows : DataFrame
        In order, tiling the block: part, onset, end (samples of the block, end excluded), proba, pred.
    events : DataFrame
        sample (the highest peak of the field power), part and proba (the highest) of every event.
    """

    subwindows: pd.DataFrame
    events: pd.DataFrame


def place_windows(lengths: Iterable[int], shape: SubwindowShape, n_times: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Lay windows over a block so that their sub-windows tile every continuous part of it.

    In each part the windows that fit lie as in training. Others, moved by whole sub-windows, score what these leave at
    both ends; what they show beyond the ends are mirror images. No window shows two parts.

    Parameters
    ----------
    lengths : iterable of int
        Samples of the continuous parts.
    n_times : int
        Samples of a window.

    Returns
    -------
    samples : int array (n_windows, n_times)
        Sample of the block that each window shows at each of its samples.
    table : DataFrame
        One row per sub-window, window after window: part; timing, its centre in samples of the part; onset and end in
        samples of the block, cut at the ends of the part; kept, False where another window scores it; reference, True
        in the windows that lie as in training.
    """
    samples, tables, offset = [], [], 0
    before = math.ceil(shape.border / shape.n_times)  # sub-windows before the first window's first
    for part, length in enumerate(lengths):
        end = math.ceil((length - shape.border) / shape.n_times)
        n_fit = max(0, (length - n_times) // (shape.n_sub * shape.n_times) + 1)
        # Number of each window's first sub-window, which is its place in sub-windows too.
        firsts = [*range(0, n_fit * shape.n_sub, shape.n_sub), *range(-before, 0, shape.n_sub)]
        reached = max((first + shape.n_sub for first in firsts), default=0)
        while reached < end:
            firsts.append(min(reached, end - shape.n_sub))
            reached = firsts[-1] + shape.n_sub
        starts = np.array(firsts) * shape.n_times
        margins = max(0, -starts.min()), max(0, starts.max() + n_times - length)
        shown = np.pad(np.arange(length), margins, mode='reflect' if length > 1 else 'edge')
        samples.append(offset + shown[starts[:, None] + margins[0] + np.arange(n_times)])

        number = (np.array(firsts)[:, None] + np.arange(shape.n_sub)).ravel()
        kept = np.zeros(len(number), dtype=bool)
        kept[np.unique(number, return_index=True)[1]] = True  # the first, so that training's windows come first
        onset = shape.border + number * shape.n_times
        tables.append(
            pd.DataFrame(
                {
                    'part': part,
                    'timing': onset + shape.n_times / 2,
                    'onset': offset + np.clip(onset, 0, length),
                    'end': offset + np.clip(onset + shape.n_times, 0, length),
                    'kept': kept & (-before <= number) & (number < end),
                    'reference': np.arange(len(number)) < n_fit * shape.n_sub,
                }
            )
        )
        offset += length
    return np.concatenate(samples), pd.concat(tables, ignore_index=True)


def score_block(trained: TrainedRun, meg: np.ndarray, part_lengths: list[int]) -> Detections:
    """Apply a run to every sample of a block, scaled as in training.

    Parameters
    ----------
    meg : array (274, n_samples)
        In tesla.
    part_lengths : list of int
        Samples of its continuous parts.
    """
    reader, standardize = trained.reader, trained.settings['standardize']
    shape, device = reader.shape, reader.device
    window_length = round(trained.settings['window_size'] * trained.settings['sfreq'])
    samples, table = place_windows(part_lengths, shape, window_length)
    # With masking, sub-windows are compared with those that training would have, where there are any.
    reference = table['reference'].to_numpy() | (not table['reference'].any())
    loader = batches(RecordingWindows(meg, samples, standardize), batch_size=BATCH_SIZE[device.type])
    data = reader.read(loader, reference=reference)
    proba = trained.score(data)
    field, peak = data.peaks.T
    window, number = np.divmod(np.arange(len(table)), shape.n_sub)
    # A peak in a mirror image is that of the sample it shows.
    peak = samples[window, shape.border + number * shape.n_times + np.round(peak).astype(np.int64)]
    pred = (proba >= trained.decision['threshold']).astype(int)
    table = table.assign(proba=proba, field=field, peak=peak, pred=pred)
    table = table[table['kept']].sort_values(['part', 'timing'], ignore_index=True)
    events = merge_events(table.rename(columns={'part': 'block'}).assign(subject=0), shape.n_times)
    return Detections(
        table[['part', 'onset', 'end', 'proba', 'pred']],
        events.rename(columns={'block': 'part'})[['sample', 'part', 'proba']],
    )


# ---------------------------------------------------------------------------- calibration, threshold
def fit_calibration(method: str, proba: np.ndarray, test: np.ndarray) -> dict:
    """Fit on validation what turns the classifier's scores into probabilities.

    Parameters
    ----------
    method : str
        'temperature': logit / temperature + offset, of least cross-entropy (Guo et al., ICML 2017; the offset takes
        back the weight of the spikes in the loss, as in Platt scaling). The order of the scores is kept. 'isotonic':
        the best rising steps.
    proba, test : arrays (n,)
        Scores between 0 and 1, and labels.

    Returns
    -------
    dict
        Plain numbers, for `calibrate`.
    """
    if method == 'isotonic':
        steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(proba, test)
        return {'method': method, 'x': steps.X_thresholds_.tolist(), 'y': steps.y_thresholds_.tolist()}
    score = _logit(proba)

    def cross_entropy(parameters):
        value = score * np.exp(-parameters[0]) + parameters[1]
        return np.mean(np.logaddexp(0, value) - test * value)

    # The bounds keep a perfectly separated validation set from an infinitely steep answer.
    found = minimize(cross_entropy, [0.0, 0.0], method='L-BFGS-B', bounds=[(-3, 5), (-20, 20)])
    return {'method': method, 'temperature': float(np.exp(found.x[0])), 'offset': float(found.x[1])}


def calibrate(calibration: dict, proba: np.ndarray) -> np.ndarray:
    """Probabilities (n,) of scores (n,) by what `fit_calibration` found."""
    if calibration['method'] == 'isotonic':
        return np.interp(proba, calibration['x'], calibration['y'])
    return expit(_logit(proba) / calibration['temperature'] + calibration['offset'])


def _logit(proba):
    return logit(np.clip(np.asarray(proba, dtype=np.float64), 1e-12, 1 - 1e-12))


def best_f1_threshold(test: np.ndarray, proba: np.ndarray) -> float:
    """The probability from which on calling a spike gives the best F1 (the lowest such, to call no fewer).

    Halfway to the next lower probability, so that the last digits of a probability decide nothing.
    """
    precision, recall, thresholds = precision_recall_curve(test, proba)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = thresholds[np.argmax(f1[:-1])]  # the last point of the curve has no threshold
    lower = proba[proba < best]
    return float((best + lower.max()) / 2 if len(lower) else best)


def threshold_from_curve(
    curve: pd.DataFrame, policy: str, *, target_sensitivity: float, false_alarm_budget: float
) -> tuple[float, str, str]:
    """Threshold by what it does to events.

    Parameters
    ----------
    curve : DataFrame
        threshold, sensitivity and 'false alarms/min' on validation, from the highest threshold down.
    policy : str
        'sensitivity': the highest threshold that reaches `target_sensitivity` (the lowest of the curve where none
        does). 'false_alarms': the lowest that no more than `false_alarm_budget` false alarms per minute come with, at
        it and at every higher one (far below it, events grow together and false alarms seem to fall).

    Returns
    -------
    threshold : float
    asked, reached : str
        What was asked for, and what the threshold does on validation.
    """
    if policy == 'sensitivity':
        reached = curve['sensitivity'] >= target_sensitivity
        row = reached.idxmax() if reached.any() else curve.index[-1]
    else:
        over = curve['false alarms/min'] > false_alarm_budget
        row = over.idxmax() - 1 if over.any() else curve.index[-1]
    asked = {
        'sensitivity': f'event sensitivity of at least {target_sensitivity:g}',
        'false_alarms': f'at most {false_alarm_budget:g} false alarms per minute',
    }[policy]
    threshold, sensitivity, alarms = curve.loc[row, ['threshold', 'sensitivity', 'false alarms/min']]
    return float(threshold), asked, f'event sensitivity {sensitivity:.2f} at {alarms:.2f} false alarms per minute'
