"""From a trained autoencoder to decisions: sub-windows, what the classifiers see of them, calibration, threshold."""

import dataclasses
import functools
from collections.abc import Callable
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
from loop import load_checkpoint
from models import build_model
from models.boosting import BoostedTrees
from models.features import beside_block, less_block_median, peak_score, spatial_filters, spike_features
from models.mean_error import MeanError
from models.sfcn import SfcnClassifier
from models.svm import SupportVectors
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


# --------------------------------------------------------------------------- what the classifiers see
# Gives the inputs (batch * n_sub, ...) of a classifier and takes (model, x, shape, levels): an autoencoder, windows
# (batch, 1, channels, times), the shape of the sub-windows, and the (reconstruction, target) pairs to use, as indices.
# With masking they take `hidden` besides.
Inputs = Callable[..., torch.Tensor]

# Spatial filters of the features and of the score.
N_FILTERS = 60


class Hidden(NamedTuple):
    """What is needed, with masking, to look at what a sub-window's context does not foretell.

    Attributes
    ----------
    margin : int
        Samples hidden on either side of a sub-window: half a pulse, so that a spike is hidden whole.
    filters : float32 array (n_filters, channels) or None
        Spatial filters of the training windows, where the classifier takes them.
    """

    margin: int
    filters: np.ndarray | None = None


def error_cards(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """The original's error cards (batch * n_sub, levels, channels, n_times): squared errors, cut to the inner part of
    the window, each plane z-scored there."""
    inner = slice(shape.border, shape.border + shape.n_sub * shape.n_times)
    cards = zscore_planes(model.error_cards(x)[:, levels, :, inner])
    return SubwindowShape(0, shape.n_sub, shape.n_times).cut(cards)


def zscore_planes(cards: torch.Tensor) -> torch.Tensor:
    """Scale every plane of error cards (batch, pairs, channels, times) to mean 0, std 1; flat planes become zeros."""
    std, mean = torch.std_mean(cards, dim=(2, 3), correction=0, keepdim=True)
    return (cards - mean) / torch.where(std > 0, std, 1.0)


def error_statistics(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """Statistics of the squared errors per channel (batch * n_sub, n_features).

    Per level: the logarithms of the mean and of the maximum over time of every channel, then deciles of both over the
    channels, which say the same wherever in the head a spike is.
    """
    errors = shape.cut(model.error_cards(x)[:, levels])  # (batch * n_sub, levels, channels, n_times)
    per_channel = torch.stack([errors.mean(dim=-1), errors.amax(dim=-1)], dim=-2).clamp(min=1e-30).log()
    deciles = torch.quantile(per_channel, torch.linspace(0, 1, 11, device=x.device), dim=-1).movedim(0, -1)
    return torch.cat([per_channel, deciles], dim=-1).flatten(1)


def mean_error(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """Logarithm of the mean squared error over levels, channels and samples (batch * n_sub, 1)."""
    errors = shape.cut(model.error_cards(x)[:, levels])
    return errors.mean(dim=(1, 2, 3)).clamp(min=1e-30).log()[:, None]


def latent_statistics(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int]) -> torch.Tensor:
    """Mean and log std over time of every row of the latent maps (batch * n_sub, n_features).

    A map (batch, ..., times / 2^k) is first brought back to the window's length by nearest neighbour. All maps are
    used, whatever the levels: those are levels of the errors.
    """
    n_times, features = x.shape[-1], []
    for latent in model.latent(x):
        column = torch.arange(n_times, device=x.device) * latent.shape[-1] // n_times
        rows = shape.cut(latent.flatten(1, -2)[..., column])  # (batch * n_sub, rows, n_times)
        std, mean = torch.std_mean(rows, dim=-1, correction=0)
        features += [mean, std.clamp(min=1e-6).log()]
    return torch.cat(features, dim=1)


def masked_cards(
    model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int], hidden: Hidden
) -> torch.Tensor:
    """Error cards as `error_cards` gives, of sub-windows that were hidden in turn."""
    cards = model.masked_error_cards(x, shape, hidden.margin)[:, levels].flatten(-2)
    return SubwindowShape(0, shape.n_sub, shape.n_times).cut(zscore_planes(cards))


def masked_features(
    model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int], hidden: Hidden
) -> torch.Tensor:
    """Features at the peak of what the context does not foretell (batch * n_sub, n_features), see
    `features.spike_features`. They are of the signal, whatever the levels."""
    residuals = model.masked_residuals(x, shape, hidden.margin)[:, 0].cpu().numpy()
    return torch.from_numpy(spike_features(x[:, 0].cpu().numpy(), residuals, hidden.filters, shape, hidden.margin))


def masked_peak(
    model: nn.Module, x: torch.Tensor, shape: SubwindowShape, levels: list[int], hidden: Hidden
) -> torch.Tensor:
    """How large and brief what the context does not foretell is (batch * n_sub, 1), see `features.peak_score`."""
    residuals = model.masked_residuals(x, shape, hidden.margin)[:, 0].cpu().numpy()
    score = peak_score(x[:, 0].cpu().numpy(), residuals, hidden.filters, shape, hidden.margin)
    return torch.from_numpy(score)[:, None]


def shown_errors(model: nn.Module, x: torch.Tensor, shape: SubwindowShape, hidden: Hidden | None) -> torch.Tensor:
    """Squared errors of whole windows (batch, n_pairs, channels, times), for pictures.

    With masking, those of the sub-windows, hidden in turn; NaN outside them.
    """
    if hidden is None:
        return model.error_cards(x)
    cards = model.masked_error_cards(x, shape, hidden.margin).flatten(-2)
    outside = (shape.border, x.shape[-1] - shape.border - cards.shape[-1])
    return nn.functional.pad(cards, outside, value=torch.nan)


class Kind(NamedTuple):
    """A kind of classifier.

    Every class has `fit(train, validation, checkpoint)`, `predict_proba(inputs)`, `save(path, beside)` and
    `load(path)`.

    Attributes
    ----------
    make : type
    inputs : callable
        What it sees, see `Inputs`.
    masked : callable or None
        What it sees with masking='context'; None for the same.
    beside : callable or None
        With masking, what compares the inputs (n, ...) with those of their block: see `features.beside_block`.
    settings : tuple of str
        The settings of params.py that it takes.
    """

    make: type
    inputs: Inputs
    masked: Inputs | None = None
    beside: Callable[..., np.ndarray] | None = None
    settings: tuple[str, ...] = ('seed',)

    @property
    def needs_filters(self) -> bool:
        """Whether, with masking, it takes the spatial filters: what is compared with its block is filtered."""
        return self.beside is not None


_OF_SFCN = tuple(field.name for field in dataclasses.fields(SfcnClassifier))
CLASSIFIERS = {
    'sfcn': Kind(SfcnClassifier, error_cards, masked_cards, settings=_OF_SFCN),
    'hgb': Kind(BoostedTrees, error_statistics, masked_features, beside_block),
    'svm': Kind(SupportVectors, error_statistics, masked_features, beside_block),
    'latent': Kind(BoostedTrees, latent_statistics),
    'threshold': Kind(MeanError, mean_error, masked_peak, less_block_median, settings=()),
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


def levels_of(levels: str | list[int], n_pairs: int) -> list[int]:
    """The setting `levels` as a list: 'all' is every (reconstruction, target) pair."""
    return list(range(n_pairs)) if levels == 'all' else list(levels)


def classifier_inputs(
    autoencoder: nn.Module,
    loader: DataLoader,
    classifier: str,
    shape: SubwindowShape,
    levels: list[int],
    hidden: Hidden | None,
    device: torch.device,
) -> np.ndarray:
    """What the classifier of a name sees of the sub-windows of a loader's windows, see `Kind`; with masking, not yet
    compared with its block. `hidden` is None without masking."""
    kind = CLASSIFIERS[classifier]
    extract = functools.partial(kind.inputs, shape=shape, levels=levels)
    if hidden and kind.masked:
        extract = functools.partial(kind.masked, shape=shape, levels=levels, hidden=hidden)
    return gather(autoencoder, loader, extract, device, 'errors')


def beside_their_block(
    classifier: str, inputs: np.ndarray, blocks: np.ndarray, hidden: Hidden | None, usual: np.ndarray | None = None
) -> np.ndarray:
    """With masking, compare inputs (n, ...) with those of their block.

    Parameters
    ----------
    blocks : array (n,)
        What tells the blocks apart.
    usual : bool array (n,), optional
        The rows that every row is compared with; all where not given.
    """
    beside = CLASSIFIERS[classifier].beside
    return beside(inputs, blocks, usual) if hidden and beside else inputs


def hidden_margin(shape: SubwindowShape, pulse_width: float, sfreq: float) -> int:
    """Samples to hide on either side of a sub-window: half a pulse, but at least one sample must stay at the ends."""
    return min(round(pulse_width / 2 * sfreq), shape.border - 1)


def measure_filters(
    autoencoder: nn.Module, loader: DataLoader, shape: SubwindowShape, margin: int, device: torch.device
) -> np.ndarray:
    """Spatial filters (N_FILTERS, channels) of a loader's windows, float32, see `features.spatial_filters`."""
    autoencoder.eval()
    signal, unforeseen, n_windows = 0.0, 0.0, 0
    with torch.no_grad():
        for x, _ in tqdm(loader, desc='filters', leave=False, disable=None, unit='batch'):
            x = x.to(device, non_blocking=True)
            residuals = autoencoder.masked_residuals(x, shape, margin)[:, 0]
            signal = signal + len(x) * _covariance(x[:, 0])
            unforeseen = unforeseen + len(x) * _covariance(residuals)
            n_windows += len(x)
    return spatial_filters(signal / n_windows, unforeseen / n_windows, N_FILTERS).astype(np.float32)


def _covariance(maps):
    """Mean product of channels (channels, channels), float64, of maps (batch, channels, ...)."""
    rows = maps.movedim(1, 0).flatten(1).double()
    return (rows @ rows.T / rows.shape[1]).cpu().numpy()


def gather(
    model: nn.Module,
    loader: DataLoader,
    extract: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    device: torch.device,
    description: str,
) -> np.ndarray:
    """Apply `extract(model, x)` to the windows of a loader, without gradients, and put the rows together.

    Returns
    -------
    float32 array
        In the loader's order.
    """
    model.eval()
    gathered, n_windows, done = None, len(loader.dataset), 0
    with torch.no_grad():
        for x, _ in tqdm(loader, desc=description, leave=False, disable=None, unit='batch'):
            rows = extract(model, x.to(device, non_blocking=True)).cpu().numpy()
            if gathered is None:  # all at once: putting batches together later would take the memory twice
                gathered = np.empty((n_windows * (len(rows) // len(x)), *rows.shape[1:]), dtype=rows.dtype)
            gathered[done : done + len(rows)] = rows
            done += len(rows)
    return gathered


class TrainedRun(NamedTuple):
    """A finished run, ready to judge windows.

    Attributes
    ----------
    settings : dict
        Those of its params.json.
    autoencoder : Module
    classifier
        See `Kind`.
    decision : dict
        calibration, threshold and policy, as chosen on its validation set.
    shape : SubwindowShape
    levels : list of int
    hidden : Hidden or None
        With masking.
    device : torch.device
    """

    settings: dict
    autoencoder: nn.Module
    classifier: object
    decision: dict
    shape: SubwindowShape
    levels: list[int]
    hidden: Hidden | None
    device: torch.device

    def inputs(self, loader: DataLoader) -> np.ndarray:
        """What the classifier sees of the sub-windows (n_windows * n_sub, ...) of a loader's windows."""
        kind = self.settings['classifier']
        return classifier_inputs(self.autoencoder, loader, kind, self.shape, self.levels, self.hidden, self.device)

    def judge(
        self, inputs: np.ndarray, blocks: np.ndarray | None = None, usual: np.ndarray | None = None
    ) -> np.ndarray:
        """Calibrated probabilities (n,) of inputs (n, ...) of whole blocks: with masking they are compared with them.

        `blocks` (n,) tells the blocks apart; None where there is one. `usual`: see `beside_their_block`.
        """
        blocks = np.zeros(len(inputs), dtype=np.int64) if blocks is None else blocks
        inputs = beside_their_block(self.settings['classifier'], inputs, blocks, self.hidden, usual)
        return calibrate(self.decision['calibration'], self.classifier.predict_proba(inputs))

    def predict_proba(self, loader: DataLoader, blocks: np.ndarray | None = None) -> np.ndarray:
        """Calibrated probabilities (n_windows * n_sub,) of the sub-windows of a loader's windows.

        Where a block is too large for one loader, call `inputs` piece by piece and `judge` on all of them.
        """
        return self.judge(self.inputs(loader), blocks)


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
    kind = CLASSIFIERS[settings['classifier']]
    taken = settings | {'device': device, 'precision': precision}
    state = load_checkpoint(autoencoder)
    try:
        network = state['network']
        model = build_model(network['name'], network['n_channels'], network['n_times'], **network['settings'])
        model.to(device).load_state_dict(state['model_state_dict'])
        model.precision = precision
    except (KeyError, TypeError, RuntimeError) as fault:
        raise DataError(f'{autoencoder}: not an autoencoder of this project ({type(fault).__name__})') from fault
    if network['n_times'] != window.n_times:
        raise DataError(
            f'{autoencoder}: trained on windows of {network["n_times"]} samples, but its run says window_size x sfreq '
            f'= {window.n_times}: its checkpoint or params.json is of another run'
        )
    try:
        judge = kind.make(**{name: taken[name] for name in kind.settings}).load(classifier)
        beside = load_checkpoint(classifier)
        decision, hidden = beside['decision'], None
        if settings['masking']:
            filters = beside['filters']
            hidden = Hidden(beside['margin'], None if filters is None else filters.numpy())
    except (KeyError, TypeError, RuntimeError) as fault:
        raise DataError(
            f'{classifier}: not a {settings["classifier"]} of this project ({type(fault).__name__})'
        ) from fault
    levels = levels_of(settings['levels'], 1 if settings['model'] != 'wavelets' else len(settings['filters']) + 2)
    return TrainedRun(settings, model, judge, decision, shape, levels, hidden, device)


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
