"""What an interrupted training goes on from: damaged, foreign and missing checkpoints are named, with a way out."""

import pytest
import torch
from small_networks import fit, losses_of, rhythms, small

from training.checkpoints import checkpoint_saver, load_checkpoint, save_checkpoint
from utils import DataError, set_seed


@pytest.fixture
def trained_to_epoch_2(tmp_path):
    """The paths of the checkpoints of a training of 2 epochs, the second of which was the best."""

    def path_of(which):
        return tmp_path / f'{which}.pth'

    set_seed(0)
    fit(small('AE1D'), rhythms(8), losses_of('AE1D')['plain'], 2, checkpoint_saver(path_of, {}))
    assert [of_epoch['epoch'] for of_epoch in load_checkpoint(path_of('last'))['history']] == [1, 2]
    return path_of


def go_on(path_of, name='AE1D'):
    fit(small(name), rhythms(8), losses_of(name)['plain'], 3, lambda which, state: None, resume=path_of)


def change_last(path_of, change):
    state = load_checkpoint(path_of('last'))
    change(state)
    save_checkpoint(path_of('last'), state)


def test_a_best_checkpoint_that_was_not_written_yet_is_written(trained_to_epoch_2):
    path_of, best = trained_to_epoch_2, load_checkpoint(trained_to_epoch_2('best'))
    change_last(path_of, lambda state: state['history'][0].update({'validation loss': 1e9}))
    path_of('best').unlink()
    fit(small('AE1D'), rhythms(8), losses_of('AE1D')['plain'], 2, checkpoint_saver(path_of, {}), resume=path_of)
    again = load_checkpoint(path_of('best'))
    assert again['epoch'] == 2
    for key, tensor in best['model_state_dict'].items():
        assert torch.equal(again['model_state_dict'][key], tensor)


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: save_checkpoint(path, load_checkpoint(path) | {'validation loss': 0.123}),  # of another training
    ],
)
def test_a_training_does_not_go_on_without_its_best_checkpoint(trained_to_epoch_2, damage):
    change_last(trained_to_epoch_2, lambda state: state['history'][0].update({'validation loss': 0.0}))
    damage(trained_to_epoch_2('best'))
    with pytest.raises(DataError, match=r'best.pth: .*; restore it, or take another model_nb$'):
        go_on(trained_to_epoch_2)


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({'place': 1}, path),
        lambda path: torch.save({key: value for key, value in torch.load(path).items() if key != 'random'}, path),
    ],
)
def test_a_file_that_is_no_checkpoint_of_this_training_is_named(trained_to_epoch_2, damage):
    damage(trained_to_epoch_2('last'))
    with pytest.raises(
        DataError, match=r'^[^\n]*last.pth: not a checkpoint of this .*; restore it, or take another model_nb$'
    ):
        go_on(trained_to_epoch_2)


def test_a_checkpoint_of_another_network_is_named(trained_to_epoch_2):
    with pytest.raises(DataError, match=r'^[^\n]*last.pth: not a checkpoint of this training \(RuntimeError\);'):
        go_on(trained_to_epoch_2, 'AE2D')


def test_lack_of_memory_is_no_damage(trained_to_epoch_2, monkeypatch):
    def fail(self, state):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(torch.optim.Optimizer, 'load_state_dict', fail)
    with pytest.raises(torch.OutOfMemoryError):
        go_on(trained_to_epoch_2)
