"""What the autoencoder does not predict of the signal around an event: why the detector thinks so."""

from typing import NamedTuple

import numpy as np
import torch

from classification import Ensemble, TrainedRun
from classifiers.subwindows import place_windows
from recordings.reading import Recording
from timeseries_dataset import RecordingWindows


class EventResidual(NamedTuple):
    """The residual in the sub-window of an event.

    Attributes
    ----------
    offsets : int array (n_samples,)
        Samples from the event.
    residual : array (274, n_samples)
        In tesla.
    """

    offsets: np.ndarray
    residual: np.ndarray


def event_residuals(trained: TrainedRun | Ensemble, block: Recording, events: np.ndarray) -> list[EventResidual]:
    """Signal less its reconstruction in the sub-windows of events, each masked if the run masks.

    Parameters
    ----------
    block : Recording
    events : int array (n_events,)
        Samples of the block.

    Returns
    -------
    list of EventResidual
        Empty where the run's classifier does not look at the autoencoder's residuals. Of an ensemble, those of its
        first member.
    """
    trained = trained.members[0] if isinstance(trained, Ensemble) else trained
    reader, standardize = trained.reader, trained.settings['standardize']
    looks_elsewhere = reader.spec.reads_windows or (reader.masking and reader.masking.features != 'residual')
    if looks_elsewhere or not len(events):
        return []
    shape, model = reader.shape, reader.autoencoder.eval()
    lengths = block.layout.lengths(block.info['sfreq']).tolist()
    shown, table = place_windows(lengths, shape, trained.window_length)
    scored = np.flatnonzero(table['kept'])
    order = scored[table['onset'].to_numpy()[scored].argsort(kind='stable')]
    rows = order[np.searchsorted(table['onset'].to_numpy()[order], events, side='right') - 1]
    windows, numbers = np.divmod(rows, shape.n_subwindows)
    batch, _ = RecordingWindows(block.meg, shown, standardize).__getitems__(windows.tolist())
    margin = reader.masking.margin if reader.masking else 0
    residuals = []
    for x, event, window, number in zip(batch[:, None], events, windows, numbers, strict=True):
        first = shape.border + number * shape.subwindow_length
        span = slice(first - margin, first + shape.subwindow_length + margin)
        with torch.no_grad():
            x = x.to(reader.device)
            if reader.masking:
                of_pairs = model.masked_residuals(x, (first, 1, shape.subwindow_length), margin, [0])
                residual = of_pairs[0, 0, :, 0]
            else:
                reconstruction, target = model(x)[0]
                residual = (target - reconstruction).reshape(x.shape[2:])[:, span]
        offsets = np.arange(shape.subwindow_length + 2 * margin) - margin
        at = np.flatnonzero(shown[window, first : first + shape.subwindow_length] == event)[0]
        unit = block.meg[:, shown[window]].std() / max(float(x.std(correction=0)), 1e-12)  # of the scaled signal, in T
        residuals.append(EventResidual(offsets - at, unit * residual.cpu().numpy().astype(np.float64)))
    return residuals
