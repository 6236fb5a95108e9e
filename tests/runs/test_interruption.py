"""Runs that are killed and go on, and folds that are trained apart: the same files as of a run left alone."""

import itertools
import json
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from common import PICTURES, clear_patient, default_signals

import loop
import main_train
from recordings.pickles import write_pickle
from reports import run_results
from runs.run_directory import RunDirectory, new_run_directory
from system.interruption import asked_to_end
from training.checkpoints import load_checkpoint
from utils import set_seed

TRAINING = {
    'masking': None,
    'classifier': 'sfcn',
    'width': 1,
    'batch_size': 4,
    'num_epochs': 3,
    'n_epochs_stop': 2,
    'classifier_width': 2,
    'classifier_batch_size': 128,
    'classifier_learning_rate': 1e-3,
    'classifier_num_epochs': 3,
    'bootstrap_samples': 20,
    'scheduler': 'plateau',
    'plateau_patience': 0,
}


@pytest.fixture(scope='module')
def windows(tmp_path_factory, make_windows):
    """Windows of four simulated patients: a folder with windows_ae and windows_clf."""
    folder = tmp_path_factory.mktemp('windows')
    for subject in range(1, 5):
        data = clear_patient(subject)
        write_pickle(folder / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    make_windows(folder / 'raw', folder)
    return folder


@pytest.fixture
def run(windows, tmp_path, monkeypatch):
    """Run main_train.py in a process of its own, on the windows, without pictures; `kill=(signal, k)` sends it a signal
    in the k-th batch of its training or validation. Gives its exit status."""
    for module, name in PICTURES:
        monkeypatch.setattr(module, name, lambda *arguments: None)
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    # One thread: a process forked from one that has used several may wait for the others for ever.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(0)  # loads a part of torch that would otherwise be loaded by every child

    def in_child(words, kill):
        default_signals()
        batches = 0

        def kill_then_ask():
            nonlocal batches
            batches += 1
            if kill and batches == kill[1]:
                os.kill(os.getpid(), kill[0])
            return asked_to_end()

        loop.asked_to_end = kill_then_ask
        sys.argv = ['main_train.py', *words]
        sys.stdout, sys.stderr = (open(tmp_path / name, 'w') for name in ('output', 'faults'))  # noqa: SIM115
        main_train.run_script(main_train.main, '')

    def start(*positional, kill=None, results='results', **settings):
        settings = TRAINING | {'path_writing_data': str(tmp_path / results)} | settings
        paths = [str(windows / 'windows_ae'), str(windows / 'windows_clf')]
        words = [*positional, f'path_extracted_data={paths}', *(f'{name}={value}' for name, value in settings.items())]
        child = multiprocessing.get_context('fork').Process(target=in_child, args=(words, kill))
        child.start()
        child.join(120)
        return child.exitcode

    yield start
    torch.set_num_threads(threads)


def contents(folder):
    """What a run directory holds, by file: bytes of tables, values of checkpoints without the seconds they took."""
    files = {}
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        if path.suffix == '.csv' or path.name == 'metrics.json':
            files[name] = path.read_bytes()
        elif path.suffix == '.pth':
            files |= {f'{name} {key}': value for key, value in flat(load_checkpoint(path)) if 'seconds' not in key}
        elif path.is_file():
            # The card names checkpoints by their hash, and they hold seconds.
            assert path.name in ('params.json', '.lock', 'model_card.md')
    return files


def flat(value, key=''):
    """Numbers, names and tensors of nested dicts and lists, each with its place."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list | tuple):
        value = enumerate(value)
    else:
        return [(key, value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value))]
    return [pair for name, item in value for pair in flat(item, f'{key} {name}')]


def assert_same(first, second):
    first, second = contents(first), contents(second)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_run_killed_again_and_again_ends_as_one_left_alone(run, tmp_path):
    masking = {'masking': 'context', 'model_nb': 1}
    assert run('auto', 'AE1D_smaller', results='alone', **masking) == 0
    rng = np.random.default_rng(0)
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
    statuses = []
    while not statuses or statuses[-1]:
        number = signals[len(statuses) % 5]
        statuses.append(run('auto', 'AE1D_smaller', kill=(number, int(rng.integers(1, 14))), **masking))
        assert statuses[-1] in (0, -9 if number == signal.SIGKILL else 75), (tmp_path / 'faults').read_text()
    assert len(statuses) > 4
    assert_same(tmp_path / 'alone' / 'AE1D_smaller_1', tmp_path / 'results' / 'AE1D_smaller_1')
    summary = (tmp_path / 'results' / 'summary.csv').read_bytes()
    assert summary == (tmp_path / 'alone' / 'summary.csv').read_bytes()
    assert not list((tmp_path / 'results').rglob('*.tmp*'))


def test_a_step_is_finished_and_at_most_one_epoch_is_done_again(run, tmp_path):
    path = tmp_path / 'results' / 'AE1D_smaller_1' / 'last_AE1D_smaller_1.pth'
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGUSR1, 2)) == 75
    state = load_checkpoint(path)
    assert (state['epoch'], state['place']['batches'], state['history']) == (0, 2, [])
    stderr = (tmp_path / 'faults').read_text()
    assert stderr == 'error: interrupted by SIGUSR1: model_nb=1 goes on with the run\n'
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGTERM, 1)) == 75
    assert load_checkpoint(path)['place']['batches'] == 3
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGKILL, 10)) == -signal.SIGKILL
    state = load_checkpoint(path)
    assert state['epoch'] == len(state['history']) >= 1
    assert state['place']['batches'] == 0


def test_interrupted_between_the_networks_and_while_the_results_are_written(run, tmp_path, monkeypatch):
    assert run('auto', 'AE1D_smaller', results='alone', model_nb=1) == 0
    steps = [(run_results, name) for name in ('save_evaluation', 'save_summary_row', 'write_json')]
    steps.insert(0, (main_train, 'make_reader'))
    for module, name in steps:

        def killed(*arguments, **settings):
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            assert run('auto', 'AE1D_smaller', model_nb=1) == 75
    assert not (tmp_path / 'results' / 'AE1D_smaller_1' / 'metrics.json').exists()
    assert run('auto', 'AE1D_smaller', model_nb=1) == 0
    assert_same(tmp_path / 'alone' / 'AE1D_smaller_1', tmp_path / 'results' / 'AE1D_smaller_1')
    assert len((tmp_path / 'results' / 'summary.csv').read_text().splitlines()) == 2
    assert run('auto', 'AE1D_smaller', model_nb=1) == 2
    assert 'model_nb = 1: ' in (tmp_path / 'faults').read_text()


def test_folds_trained_apart_and_a_killed_cross_validation_make_the_same_tables(run, tmp_path):
    settings = {'n_splits': 2, 'model_nb': 3, 'num_epochs': 2, 'classifier': 'threshold'}
    assert run('cv', 'AE1D_smaller', results='alone', **settings) == 0
    for fold in (2, 1):
        assert run('cv', 'AE1D_smaller', results='apart', fold=fold, **settings) == 0
    assert run('cv', 'AE1D_smaller', results='apart', fold=2, **settings) == 0
    assert 'finished before' in (tmp_path / 'output').read_text()
    assert run('cv', 'AE1D_smaller', results='apart', **settings) == 0
    assert_same(tmp_path / 'alone' / 'AE1D_smaller_3', tmp_path / 'apart' / 'AE1D_smaller_3')

    # The second fold is killed; the first is not trained again.
    assert run('cv', 'AE1D_smaller', kill=(signal.SIGTERM, 32), **settings) == 75
    assert not (tmp_path / 'results' / 'AE1D_smaller_3' / 'fold_2' / 'metrics.json').exists()
    first = tmp_path / 'results' / 'AE1D_smaller_3' / 'fold_1' / 'metrics.json'
    written = first.stat().st_mtime_ns
    assert run('cv', 'AE1D_smaller', **settings) == 0
    assert first.stat().st_mtime_ns == written
    assert_same(tmp_path / 'alone' / 'AE1D_smaller_3', tmp_path / 'results' / 'AE1D_smaller_3')

    assert run('cv', 'AE1D_smaller', fold=3, results='none', **settings) == 2
    assert 'fold = 3: n_splits = 2 makes the folds 1 to 2' in (tmp_path / 'faults').read_text()
    assert run('auto', 'AE1D_smaller', fold=1, results='none', **settings) == 2
    assert not (tmp_path / 'none').exists()


def test_fine_tuning_and_the_classifier_alone_go_on_by_their_own_number(run, tmp_path):
    short = {'num_epochs': 1, 'classifier_num_epochs': 1}
    for results in ('alone', 'results'):
        assert run('auto', 'AE1D_smaller', results=results, **short) == 0
    for nb, mode, kill in ((2, 'ft', (signal.SIGTERM, 5)), (3, 'clf', (signal.SIGKILL, 3))):
        assert run(mode, 'AE1D_smaller', results='alone', model_nb=1, **short) == 0
        assert run(mode, 'AE1D_smaller', model_nb=1, kill=kill, **short) in (75, -9)
        assert run(mode, 'AE1D_smaller', model_nb=nb, **short) == 0
        assert_same(tmp_path / 'alone' / f'AE1D_smaller_{nb}', tmp_path / 'results' / f'AE1D_smaller_{nb}')
    # What the source lacks is told before anything is trained or made.
    for mode, name, fault in (
        ('ft', 'best_sfcn_1.pth', 'no such file'),
        ('clf', 'last_AE1D_smaller_1.pth', 'no such file'),
    ):
        (tmp_path / 'results' / 'AE1D_smaller_1' / name).unlink()
        assert run(mode, 'AE1D_smaller', model_nb=1, **short) == 1
        stderr = (tmp_path / 'faults').read_text()
        assert stderr.startswith('error: ')
        assert stderr.endswith(f'{name}: {fault}\n')
    source = tmp_path / 'results' / 'AE1D_smaller_1'
    (source / 'last_AE1D_smaller_1.pth').write_bytes((source / 'last_sfcn_1.pth').read_bytes())
    assert run('clf', 'AE1D_smaller', model_nb=1, **short) == 1
    assert (
        'last_AE1D_smaller_1.pth: not of the training of best_AE1D_smaller_1.pth' in (tmp_path / 'faults').read_text()
    )
    (source / 'best_sfcn_1.pth').write_bytes((source / 'best_AE1D_smaller_1.pth').read_bytes())
    assert run('ft', 'AE1D_smaller', model_nb=1, **short) == 1
    assert 'best_sfcn_1.pth: not a sfcn of this project: restore it' in (tmp_path / 'faults').read_text()
    assert len(list((tmp_path / 'results').glob('AE1D_smaller_*'))) == 3


def test_a_job_that_slurm_starts_again_goes_on_with_its_own_run(run, tmp_path, monkeypatch):
    assert run('auto', 'AE1D_smaller', kill=(signal.SIGUSR1, 8)) == 75
    monkeypatch.setenv('SLURM_JOB_ID', '8')
    assert run('auto', 'AE1D_smaller', kill=(signal.SIGUSR1, 8)) == 75  # another job, another run
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    assert run('auto', 'AE1D_smaller') == 0
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    assert run('auto', 'AE1D_smaller') == 0
    first, second = (
        tmp_path / 'results' / f'AE1D_smaller_{nb}' / f'AE1D_smaller_{nb}_cvpredictions.csv' for nb in (1, 2)
    )
    assert first.read_bytes() == second.read_bytes()
    assert run('auto', 'AE1D_smaller') == 0
    assert 'AE1D_smaller_1: finished before' in (tmp_path / 'output').read_text()
    assert len(list((tmp_path / 'results').glob('AE1D_smaller_*'))) == 2


def test_an_unfinished_run_keeps_its_settings(run, windows, tmp_path, monkeypatch):
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGTERM, 3)) == 75
    stderr = tmp_path / 'faults'
    assert run('auto', 'AE1D_smaller', model_nb=1, num_epochs=9) == 2
    assert 'num_epochs = 9: run AE1D_smaller_1 was begun with 3: leave the word out' in stderr.read_text()
    assert run('auto', 'AE1D_smaller', model_nb=1, resume=False) == 2
    assert 'is unfinished: take another number, or resume=True' in stderr.read_text()
    assert run('cv', 'AE1D_smaller', model_nb=1) == 2
    assert 'is unfinished, of mode auto: finish it with python main_train.py auto AE1D_smaller' in stderr.read_text()
    with RunDirectory(tmp_path / 'results' / 'AE1D_smaller_1').locked():
        assert run('auto', 'AE1D_smaller', model_nb=1) == 2
    assert 'another process is working on this run' in stderr.read_text()
    # What params.py says by now does not count.
    monkeypatch.delitem(TRAINING, 'n_epochs_stop')
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGTERM, 3)) == 75
    assert (
        'n_epochs_stop = 10 now, but run AE1D_smaller_1 was begun with 2, which is used'
        in (tmp_path / 'output').read_text()
    )
    params = tmp_path / 'results' / 'AE1D_smaller_1' / 'params.json'
    path = windows / 'windows_clf' / 'data_raw_002_b3_windows_bi'
    content = path.read_bytes()
    path.write_bytes(np.negative(np.frombuffer(content, np.float32)).tobytes())  # the same tables, another signal
    try:
        assert run('auto', 'AE1D_smaller', model_nb=1) == 1
    finally:
        path.write_bytes(content)
    assert 'the windows, or who is in which part, have changed' in stderr.read_text()
    begun = json.loads(params.read_text())
    del begun['settings']['second_look'], begun['split']['signal']  # as an earlier version would have begun it
    params.write_text(json.dumps(begun))
    assert run('auto', 'AE1D_smaller', model_nb=1, kill=(signal.SIGTERM, 1)) == 75
    assert 'begun by a version without second_look: the values of now are used' in (tmp_path / 'output').read_text()
    assert json.loads(params.read_text())['settings']['second_look'] is True  # from now on
    begun['split']['windows'] = 'of other windows'
    params.write_text(json.dumps(begun))
    assert run('auto', 'AE1D_smaller', model_nb=1) == 1
    assert 'the windows, or who is in which part, have changed' in stderr.read_text()
    # Files of somebody else, without params.json: neither taken over nor removed.
    foreign = tmp_path / 'results' / 'AE1D_smaller_7' / 'notes.csv'
    foreign.parent.mkdir()
    foreign.write_text('mine')
    assert run('auto', 'AE1D_smaller', model_nb=7) == 2
    assert foreign.read_text() == 'mine'


def make_runs(arguments):
    folder, n_runs = arguments
    return [new_run_directory(folder, 'AE1D', None).number for _ in range(n_runs)]


def test_no_two_processes_get_the_same_run_number(tmp_path):
    with multiprocessing.get_context('fork').Pool(8) as pool:
        numbers = pool.map(make_runs, [(tmp_path, 25)] * 8, chunksize=1)
    assert sorted(itertools.chain(*numbers)) == list(range(1, 201))
