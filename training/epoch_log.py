"""The course of training in files that can be read while it runs: losses.csv, and TensorBoard's where it is there."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from evaluation.epochs import EPOCH_METRICS
from utils import DataError, writing

# Without the seconds, so that the same settings give the same file. The figures of spikes are of classifiers alone.
COLUMNS = ('network', 'epoch', 'training loss', 'validation loss', 'learning rate', *EPOCH_METRICS)


def epoch_logger(folder: Path, network: str) -> Callable[[list[dict]], None]:
    """Callback for `loop.train` that writes the history of a network at the end of every epoch.

    Parameters
    ----------
    folder : Path
        The run directory. It gets `losses.csv`, where the rows of other networks stay, and, if the package
        `tensorboard` is installed, event files in `tensorboard/<network>`.
    network : str
        Its name in the column `network`.

    Returns
    -------
    callable
        Takes the history, see `loop.train`.
    """
    writer = None
    if importlib.util.find_spec('tensorboard'):
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        writer = SummaryWriter(str(folder / 'tensorboard' / network))

    def log(history: list[dict]) -> None:
        write_losses(folder / 'losses.csv', network, history)
        if writer:
            metrics = history[-1]
            for name in COLUMNS[2:]:
                if math.isfinite(metrics.get(name, math.nan)):
                    writer.add_scalar(name, metrics[name], metrics['epoch'])
            writer.flush()

    return log


def write_losses(path: Path, network: str, history: list[dict]) -> None:
    """Write the rows of a network into losses.csv, whole or not at all; rows of other networks stay.

    Raises
    ------
    DataError
        The file that is there is no such table.
    """
    table = pd.DataFrame([{'network': network} | of_epoch for of_epoch in history], columns=list(COLUMNS))
    if path.is_file():
        try:
            earlier = pd.read_csv(path)
            table = pd.concat([earlier[earlier['network'] != network], table], ignore_index=True)
        except (KeyError, ValueError) as fault:
            raise DataError(f'{path}: not a table of losses ({fault}); move it away') from fault
    with writing(path) as temporary:
        table.to_csv(temporary, index=False)
