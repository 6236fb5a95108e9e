"""Several processes that train one network, with gloo on the CPU, against one with batches as large as theirs."""

import multiprocessing
import os
import signal
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from common import OPTIMIZER, PICTURES, clear_patient
from torch import distributed

import loop
import main_train
from loop import make_optimizer, train
from models import build_model
from recordings.pickles import write_pickle
from runs.run_directory import RunDirectory
from system.interruption import asked_to_end
from timeseries_dataset import Batches, batches
from training.distributed import Processes
from training.losses import masked_loss, reconstruction_loss
from utils import run_script, set_seed

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def _one_thread():
    """A process forked from one that has used several threads may wait for the others for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(0)  # loads a part of torch that would otherwise be loaded by every child
    yield
    torch.set_num_threads(threads)


def together(act, n_processes):
    """Run `act(rank)` in so many processes and give their exit statuses."""
    children = [multiprocessing.get_context('fork').Process(target=act, args=(k,)) for k in range(n_processes)]
    for child in children:
        child.start()
    for child in children:
        child.join(600)  # a busy machine is slow
    return [child.exitcode for child in children]


class Windows(torch.utils.data.Dataset):
    """Smooth random windows (n, 1, 6, 40)."""

    epoch = 0

    def __init__(self, n):
        walks = np.random.default_rng(n).normal(size=(n, 1, 6, 40)).cumsum(axis=-1)
        self.x = torch.from_numpy((walks / walks.std()).astype(np.float32))

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return self.x[indices], self.x[indices]


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', ['AE1D', 'wavelets'])
def test_two_processes_learn_as_one_with_the_doubled_batch(tmp_path, name, masked):
    """The last batch of 17 windows is one window, which leaves nothing for the other process."""

    def learn(processes, batch_size):
        set_seed(1)
        settings = {'filters': [2, 2], 'pywt_family': 'haar'} if name == 'wavelets' else {'width': 2}
        model = build_model(name, 6, 40, **settings)
        weights = [1.0] * len(model(torch.zeros(1, 1, 6, 40)))
        loss = masked_loss('mse', weights, (8, 3, 8), margin=2) if masked else reconstruction_loss('mse', weights)
        optimizer, scheduler = make_optimizer(model, **OPTIMIZER)
        share = {'rank': processes.rank, 'size': processes.size}
        loaders = [
            batches(Windows(17), batch_size=batch_size, shuffle=True, seed=0, **share),
            batches(Windows(11), batch_size=batch_size, **share),
        ]
        history = train(
            model, *loaders, loss, optimizer=optimizer, scheduler=scheduler, num_epochs=3, n_epochs_stop=9, device=CPU,
            save=lambda which, state: None, processes=processes,
        )  # fmt: skip
        losses = [[epoch['training loss'], epoch['validation loss']] for epoch in history]
        return losses, model.state_dict()

    def learn_together(rank):
        store = distributed.FileStore(str(tmp_path / 'store'), 2)
        torch.save(learn(Processes(rank, 2, store), 4), tmp_path / f'{rank}.pt')

    assert together(learn_together, 2) == [0, 0]
    losses, weights = learn(loop.ALONE, 8)
    for rank in range(2):
        of_rank, its_weights = torch.load(tmp_path / f'{rank}.pt')
        np.testing.assert_allclose(of_rank, losses, rtol=1e-5)
        for key, value in weights.items():
            torch.testing.assert_close(its_weights[key], value, rtol=1e-3, atol=1e-4)


def test_the_parts_of_all_processes_are_the_batches_of_one():
    order = list(np.random.default_rng(0).permutation(23))
    for size in (1, 2, 3, 5):
        parts = [list(Batches(order, 2, rank, size)) for rank in range(size)]
        whole = [sum(pieces, []) for pieces in zip(*parts, strict=True)]  # noqa: RUF017
        assert whole == [order[first : first + 2 * size] for first in range(0, 23, 2 * size)]
        later = Batches(order, 2, 0, size)
        later.first_batch = 2
        assert list(later) == parts[0][2:]


@pytest.fixture
def main_together(tmp_path, make_windows, monkeypatch):
    """Run main_train.py by so many processes, on simulated patients; gives their exit statuses."""
    for subject in range(1, 4):
        data = clear_patient(subject)
        write_pickle(tmp_path / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    make_windows(tmp_path / 'raw', tmp_path)
    for module, name in PICTURES:
        monkeypatch.setattr(module, name, lambda *arguments: None)

    def run(n_processes, batch_size, kill_in_batch=None, **settings):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]

        def act(rank):
            os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            os.environ |= {'RANK': str(rank), 'WORLD_SIZE': str(n_processes), 'LOCAL_RANK': str(rank)}
            n_batches = 0

            def kill_then_ask():
                nonlocal n_batches
                n_batches += 1
                if rank == 1 and n_batches == kill_in_batch:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return asked_to_end()

            loop.asked_to_end = kill_then_ask
            monkeypatch.setattr('sys.argv', ['main_train.py', *words])
            run_script(main_train.main, '')

        paths = [str(tmp_path / 'windows_ae'), str(tmp_path / 'windows_clf')]
        settings = {'path_extracted_data': paths, 'path_writing_data': str(tmp_path / 'results')} | settings
        settings |= {'classifier': 'threshold', 'width': 1, 'num_epochs': 2, 'bootstrap_samples': 20}
        # The second look's fit enlarges the last digits, which two processes round otherwise.
        settings |= {'batch_size': batch_size, 'device': 'cpu', 'second_look': False}
        words = ['auto', 'AE1D_smaller', *(f'{name}={value}' for name, value in settings.items())]
        return together(act, n_processes)

    return run


def test_two_processes_make_the_predictions_of_one_and_go_on_together(main_together, tmp_path):
    """A signal to one of them ends both, after the same step."""
    assert main_together(1, 8, model_nb=1) == [0]
    assert main_together(2, 4, model_nb=2) == [0, 0]
    assert main_together(2, 4, model_nb=3, kill_in_batch=3) == [75, 75]
    assert main_together(1, 8, model_nb=3) == [2]  # begun by two
    assert main_together(2, 4, model_nb=3) == [0, 0]
    runs = [RunDirectory(tmp_path / 'results' / f'AE1D_smaller_{nb}') for nb in (1, 2, 3)]
    expected, together, interrupted = (pd.read_csv(run.predictions) for run in runs)
    exact = [name for name in expected if name != 'proba']
    pd.testing.assert_frame_equal(expected[exact], together[exact])
    np.testing.assert_allclose(expected['proba'], together['proba'], rtol=1e-5)
    pd.testing.assert_frame_equal(together, interrupted, check_exact=True)
    assert len(pd.read_csv(tmp_path / 'results' / 'summary.csv')) == 3
