"""From a trained autoencoder to probabilities: reading sub-windows, applying a trained run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from classifiers.copies import COPIES
from classifiers.features import FEATURES_VERSION, fingerprints, spike_features
from classifiers.filtered import filter_windows
from classifiers.inputs import Masking, latent_statistics
from classifiers.second_look import Recordings, second_look
from classifiers.specs import CLASSIFIERS, Classifier, ClassifierSpec, load_classifier
from classifiers.spectral import BlockSpectra
from classifiers.stacked import FeaturesAndWindows
from classifiers.subwindows import SubwindowShape, field_peaks, place_windows, subwindow_shape
from evaluation.events import merge_events
from evaluation.operating_point import calibrate
from models import build_model
from models.autoencoder import Autoencoder
from recordings.window_settings import window_shape
from timeseries_dataset import RecordingWindows, batches, empty_array, prefetched
from training.checkpoints import load_checkpoint
from utils import DataError, to_device

# Windows at once in the networks when nothing is trained: on a CPU more are no faster, because their maps leave the
# cache; a GPU takes them all.
BATCH_SIZE = {'cpu': 8, 'cuda': 64}


class SubwindowData(NamedTuple):
    """What is read of the sub-windows of windows, window after window.

    Attributes
    ----------
    inputs : float32 array (n, ...)
        What the classifier reads; the dataset of windows itself, where it reads these.
    peaks : float32 array (n, 2)
        Field power at its peak, and the peak's sample, see `field_peaks`.
    errors : float32 array (n_windows, n_levels, n_inner) or None
        Squared errors of the windows' inner part in the pairs that are read, averaged over channels; None where the
        classifier reads none.
    fingerprints : float32 array (n, ...) or None
        What sub-windows are alike by, see `features.fingerprints`; None without filters.
    blocks : array (n,)
        What tells their blocks apart.
    reference : bool array (n,)
        Those that the others of their block are compared with.
    """

    inputs: Any
    peaks: np.ndarray
    errors: np.ndarray | None
    fingerprints: np.ndarray | None
    blocks: np.ndarray
    reference: np.ndarray

    def recordings(self, timing: np.ndarray) -> Recordings:
        """What the second look knows of the sub-windows, whose centres are given in sub-windows."""
        assert self.fingerprints is not None
        return Recordings(self.fingerprints, self.blocks, timing, self.reference)


def levels_read(spec: ClassifierSpec, levels: str | list[int], n_pairs: int, masking: str | None) -> list[int]:
    """The (reconstruction, target) pairs that a classifier reads, by the settings `levels` and `masking`.

    'all' is every pair; with masking, classifiers of filtered residuals read the signal alone.
    """
    if masking and spec.needs_filters:
        return [0]
    return list(range(n_pairs)) if isinstance(levels, str) else list(levels)


class SubwindowReader(NamedTuple):
    """Turns windows into what a classifier reads of their sub-windows, in training, test and detection alike.

    Attributes
    ----------
    autoencoder : Autoencoder
    spec : ClassifierSpec
    shape : SubwindowShape
    levels : list of int
        The (reconstruction, target) pairs that are read.
    masking : Masking or None
    device : torch.device
    change : callable, optional
        What windows are changed by before they are read, see `copies.COPIES`.
    """

    autoencoder: Autoencoder
    spec: ClassifierSpec
    shape: SubwindowShape
    levels: list[int]
    masking: Masking | None
    device: torch.device
    change: Callable[[torch.Tensor], torch.Tensor] | None = None

    def read(
        self, loader: DataLoader, blocks: np.ndarray | None = None, reference: np.ndarray | None = None
    ) -> SubwindowData:
        """Read the sub-windows of a loader's windows, in one pass; in two, where spectra of blocks are measured first.

        Parameters
        ----------
        blocks : array (n,), optional
            What tells the blocks of the sub-windows apart, because with masking inputs are compared with their block,
            and may be predicted from its spectrum; all of one block where not given.
        reference : bool array (n,), optional
            The sub-windows that they are compared with, and that spectra are measured on; all where not given.
        """
        n = len(loader.dataset) * self.shape.n_subwindows  # ty: ignore[invalid-argument-type]
        blocks = np.zeros(n, dtype=np.int64) if blocks is None else blocks
        reference = np.ones(n, dtype=bool) if reference is None else reference
        spectra = self._measure_spectra(loader, blocks, reference)
        extract = functools.partial(self._read_batch, spectra=spectra)
        gathered = gather(self.autoencoder, loader, extract, self.device, 'errors')
        inputs = gathered.get('inputs', loader.dataset)
        if self.masking and self.spec.relative_to_block:
            inputs = self.spec.relative_to_block(inputs, blocks, reference)
        if self.spec.reads_windows and 'inputs' in gathered:
            inputs = FeaturesAndWindows(inputs, loader.dataset)  # ty: ignore[invalid-argument-type]
        read = {'errors': gathered.get('errors'), 'fingerprints': gathered.get('fingerprints')}
        return SubwindowData(inputs, gathered['peaks'], blocks=blocks, reference=reference, **read)

    def read_copies(self, loader: DataLoader, blocks: np.ndarray, copies: str | None) -> list[np.ndarray]:
        """Inputs (n, ...) of copies of a loader's windows, see `copies.COPIES`; `blocks` as `read` takes them."""
        return [self._replace(change=change).read(loader, blocks).inputs for change in COPIES[copies]]

    def _measure_spectra(self, loader, blocks, reference):
        """The spectra of the blocks of a loader's windows, where they are to predict what is masked."""
        if not self.masking or self.masking.features != 'spectrum':
            return None
        assert self.masking.filters is not None
        of_windows = slice(None, None, self.shape.n_subwindows)
        with torch.no_grad():
            return BlockSpectra(
                self.masking.filters,
                self.shape,
                self.masking.margin,
                blocks=blocks[of_windows],
                windows=(self._changed(to_device(x, self.device)) for x, _ in prefetched(loader)),
                counted=reference[of_windows],
            )

    def _changed(self, x):
        return self.change(x) if self.change else x

    def _read_batch(self, model, x, rows, spectra):
        """What is found in one batch of windows: the field peaks, and what the classifier needs."""
        x = self._changed(x)
        of_batch = {'peaks': field_peaks(x, self.shape)}
        if self.masking and (self.spec.masked_inputs or self.masking.filters is not None):
            if spectra:
                residuals = spectra.residuals(x, rows)
            else:
                residuals = self.masking.read(model, x, self.shape, self.levels)
            return of_batch | self._read_masked(x, residuals, self.masking)
        if self.spec.inputs is None and self.spec.reads_windows:
            return of_batch
        if self.spec.inputs is None:
            return of_batch | {'inputs': latent_statistics(model.latent(x), x.shape[-1], self.shape)}
        errors = model.error_cards(x, self.levels)
        inner = slice(self.shape.border, self.shape.border + self.shape.n_subwindows * self.shape.subwindow_length)
        return of_batch | {'inputs': self.spec.inputs(errors, self.shape), 'errors': errors[..., inner].mean(dim=2)}

    def _read_masked(self, x, residuals, masking):
        """Inputs, errors averaged over channels, and fingerprints of one batch, as far as they are needed."""
        shape, of_batch, windows = self.shape, {}, None
        if masking.filters is not None:
            windows = filter_windows(x[:, 0], residuals[:, 0], masking.filters, shape, masking.margin)
            of_batch['fingerprints'] = fingerprints(windows)
        if self.spec.masked_inputs:
            read = (windows,) if self.spec.needs_filters else (residuals, shape, masking.margin)
            of_batch['inputs'] = self.spec.masked_inputs(*read)
        if masking.features == 'residual':
            errors = residuals[..., masking.margin : masking.margin + shape.subwindow_length].square()
            of_batch['errors'] = errors.mean(dim=2).flatten(-2)
        return of_batch


def gather(
    model: Autoencoder,
    loader: DataLoader,
    extract: Callable[[Autoencoder, torch.Tensor, slice], dict[str, torch.Tensor]],
    device: torch.device,
    description: str,
) -> dict[str, np.ndarray]:
    """Apply `extract(model, x, rows)` to the windows of a loader, which are those rows of it, without gradients.

    Parameters
    ----------
    extract : callable
        Gives tensors by name, with the same number of rows for every window, such as one per sub-window.
    description : str
        For the progress bar.

    Returns
    -------
    dict of float32 arrays
        The rows of each of the tensors, in the loader's order; large ones in a file, see `empty_array`.
    """
    model.eval()
    n_windows = len(loader.dataset)  # ty: ignore[invalid-argument-type]
    gathered: dict[str, np.ndarray] = {}
    n_read = 0
    with torch.no_grad():
        shown = tqdm(prefetched(loader), desc=description, total=len(loader), leave=False, disable=None, unit='batch')
        for x, _ in shown:
            for name, tensor in extract(model, to_device(x, device), slice(n_read, n_read + len(x))).items():
                rows = tensor.cpu().numpy()
                n = len(rows) // len(x)  # rows for every window
                if name not in gathered:  # all at once: putting batches together later would take the memory twice
                    gathered[name] = empty_array((n_windows * n, *rows.shape[1:]), rows.dtype)
                gathered[name][n * n_read : n * n_read + len(rows)] = rows
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
    classifier: Classifier
    decision: dict

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return round(self.settings['window_size'] * self.settings['sfreq'])

    @property
    def subwindow_length(self) -> int:
        """Samples of a sub-window."""
        return self.reader.shape.subwindow_length

    def score(self, data: SubwindowData, timing: np.ndarray | None = None) -> np.ndarray:
        """Calibrated probabilities (n,) of sub-windows.

        Parameters
        ----------
        data : SubwindowData
        timing : array (n,), optional
            Their centres for the second look, see `second_look.Recordings`; without gaps and in order where not given.
        """
        scores = self.classifier.predict_proba(data.inputs)
        if self.decision.get('second look'):
            timing = np.arange(len(scores)) if timing is None else timing
            scores = second_look(self.decision['second look'], scores, data.recordings(timing))
        return calibrate(self.decision['calibration'], scores)


class Ensemble(NamedTuple):
    """Runs with the same windows, such as the folds of a cross-validation: the mean of their probabilities counts.

    Attributes
    ----------
    members : list of TrainedRun
    decision : dict
        threshold and policy.
    """

    members: list[TrainedRun]
    decision: dict

    @property
    def settings(self) -> dict:
        """Settings of the first member, which shares with the others what decides the windows."""
        return self.members[0].settings

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return self.members[0].window_length

    @property
    def subwindow_length(self) -> int:
        """Samples of a sub-window."""
        return self.members[0].subwindow_length


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
    OutOfMemoryError
        Of the device.
    MemoryError
        Of the machine.
    """
    lengths = ('window_size', 'spike_spacing_from_border', 'pulse_width', 'sfreq')
    window = window_shape(**{name: settings[name] for name in lengths})
    shape = subwindow_shape(window.window_length, window.border, round(settings['subwindow_size'] * settings['sfreq']))
    model = load_autoencoder(autoencoder, window.window_length)
    model.to(device)
    model.precision = precision
    spec = CLASSIFIERS[settings['classifier']]
    arguments = settings | {'device': device, 'precision': precision, 'shape': shape, 'autoencoder': model}
    arguments['pseudo_labelled'] = None  # nothing is trained here
    try:
        made = spec.make(**{name: arguments[name] for name in spec.settings})
        loaded = load_classifier(made, classifier, settings['classifier'])
        state = load_checkpoint(classifier)
        if settings['masking'] and spec.masked_inputs is spike_features:
            check_features(state, classifier, settings['classifier'])
        decision, masking = state['decision'], None
        if settings['masking']:
            filters = state['filters']
            filters = None if filters is None else filters.to(device)
            masking = Masking(state['margin'], filters, state.get('features', 'residual'))
    except (DataError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(
            f'{classifier}: not a {settings["classifier"]} of this project ({type(fault).__name__})'
        ) from fault
    n_pairs = 1 if settings['model'] != 'wavelets' else len(settings['filters']) + 2
    levels = levels_read(spec, settings['levels'], n_pairs, settings['masking'])
    return TrainedRun(settings, SubwindowReader(model, spec, shape, levels, masking, device), loaded, decision)


def check_features(state: dict, path: Path, name: str) -> None:
    """Refuse the checkpoint of a classifier that was trained on the features of an earlier version.

    Raises
    ------
    DataError
        It was.
    """
    if state.get('features_version') != FEATURES_VERSION:
        raise DataError(f'{path}: the features of `{name}` have changed since; train the classifier again (mode clf)')


def load_autoencoder(path: Path, window_length: int) -> Autoencoder:
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
    except Exception as fault:  # a damaged file can raise anything at all
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

    Of an ensemble, both have `uncertainty`: the standard deviation of its members' probabilities (of an event, that
    where its probability is the highest); NaN of a single member.
    """

    subwindows: pd.DataFrame
    events: pd.DataFrame


def score_block(trained: TrainedRun | Ensemble, meg: np.ndarray, part_lengths: list[int]) -> Detections:
    """Apply a run, or several, to every sample of a block, scaled as in training.

    Parameters
    ----------
    trained : TrainedRun or Ensemble
    meg : array (274, n_samples)
        In tesla.
    part_lengths : list of int
        Samples of its continuous parts.
    """
    if isinstance(trained, Ensemble):
        tables = [score_subwindows(member, meg, part_lengths) for member in trained.members]
        probas = np.stack([table['proba'] for table in tables])
        spread = probas.std(axis=0, ddof=1) if len(probas) > 1 else np.full(probas.shape[1], np.nan)
        table = tables[0].assign(proba=probas.mean(axis=0), uncertainty=spread)
    else:
        table = score_subwindows(trained, meg, part_lengths)
    table['pred'] = (table['proba'] >= trained.decision['threshold']).astype(int)
    in_order = table.rename(columns={'part': 'block'}).assign(subject=0)
    events = merge_events(in_order, trained.subwindow_length).rename(columns={'block': 'part'})
    more = [name for name in ('uncertainty',) if name in table]
    return Detections(
        table[['part', 'onset', 'end', 'proba', 'pred', *more]], events[['sample', 'part', 'proba', *more]]
    )


def score_subwindows(trained: TrainedRun, meg: np.ndarray, part_lengths: list[int]) -> pd.DataFrame:
    """Probabilities of the sub-windows that tile a block, without the decision; see `score_block`.

    Returns
    -------
    DataFrame
        In order: part, timing, onset, end, proba, field and peak (see `merge_events`).
    """
    reader, standardize = trained.reader, trained.settings['standardize']
    shape, device = reader.shape, reader.device
    samples, table = place_windows(part_lengths, shape, trained.window_length)
    # With masking, sub-windows are compared with those that training would have, where there are any.
    reference = table['reference'].to_numpy() | (not table['reference'].any())
    loader = batches(RecordingWindows(meg, samples, standardize), batch_size=BATCH_SIZE[device.type])
    data = reader.read(loader, reference=reference)
    proba = trained.score(data, ((table['onset'] + table['end']) / 2 / shape.subwindow_length).to_numpy())
    field, peak = data.peaks.T
    window, number = np.divmod(np.arange(len(table)), shape.n_subwindows)
    # A peak in a mirror image is that of the sample it shows.
    peak = samples[window, shape.border + number * shape.subwindow_length + np.round(peak).astype(np.int64)]
    table = table.assign(proba=proba, field=field, peak=peak)
    return table[table['kept']].sort_values(['part', 'timing'], ignore_index=True)
