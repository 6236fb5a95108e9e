"""losses.csv and TensorBoard's event files, written at the end of every epoch."""

import importlib.util
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from evaluation.epochs import EPOCH_METRICS
from training.epoch_log import epoch_logger
from utils import DataError


def history(n_epochs, loss=1.0):
    return [
        {'epoch': k, 'training loss': loss / k, 'validation loss': 2 * loss / k, 'learning rate': 0.1, 'seconds': 3.0}
        for k in range(1, n_epochs + 1)
    ]


def without_tensorboard(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)


def test_losses_of_both_networks_are_there_after_every_epoch(tmp_path, monkeypatch):
    without_tensorboard(monkeypatch)
    for network, n_epochs in (('AE1D', 3), ('sfcn', 2)):
        log = epoch_logger(tmp_path, network)
        for k in range(1, n_epochs + 1):
            log(history(k))
            table = pd.read_csv(tmp_path / 'losses.csv')
            assert table['epoch'][table['network'] == network].tolist() == list(range(1, k + 1))
    assert table['network'].tolist() == ['AE1D'] * 3 + ['sfcn'] * 2
    assert table['validation loss'].tolist() == [2.0, 1.0, 2 / 3, 2.0, 1.0]
    assert list(table)[:5] == ['network', 'epoch', 'training loss', 'validation loss', 'learning rate']
    assert list(table)[5:] == list(EPOCH_METRICS)  # of classifiers alone
    assert table[list(EPOCH_METRICS)].isna().all(axis=None)
    epoch_logger(tmp_path, 'AE1D')(history(4))  # goes on after an interruption
    assert pd.read_csv(tmp_path / 'losses.csv')['network'].tolist() == ['sfcn'] * 2 + ['AE1D'] * 4
    assert [path.name for path in tmp_path.iterdir()] == ['losses.csv']


def test_another_file_of_that_name_is_not_written_over(tmp_path, monkeypatch):
    without_tensorboard(monkeypatch)
    (tmp_path / 'losses.csv').write_text('a,b\n1,2\n')
    with pytest.raises(DataError, match=r'losses\.csv: not a table of losses'):
        epoch_logger(tmp_path, 'AE1D')(history(1))
    assert (tmp_path / 'losses.csv').read_text() == 'a,b\n1,2\n'


def test_tensorboard_gets_the_scalars_of_the_last_epoch_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, epoch):
            written.append((self.folder, name, value, epoch))

        def flush(self):
            written.append('flushed')

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'tensorboard')
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', SimpleNamespace(SummaryWriter=Writer))
    log = epoch_logger(tmp_path, 'AE1D')
    log([*history(1), history(2)[1] | {'training loss': float('nan')}])
    folder = str(tmp_path / 'tensorboard' / 'AE1D')
    values = {'validation loss': 1.0, 'learning rate': 0.1}
    assert written == [*((folder, name, value, 2) for name, value in values.items()), 'flushed']
