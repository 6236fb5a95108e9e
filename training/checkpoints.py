"""Checkpoints, and the state of random numbers that they keep."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from utils import DataError, writing


def random_state() -> dict:
    """The state of the random numbers of Python, NumPy and torch, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    state = {
        'python': random.getstate(),
        'numpy': (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        'torch': torch.get_rng_state(),
    }
    return state | ({'cuda': torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_random_state(state: dict) -> None:
    """Go on with the random numbers from what `random_state` gave."""
    random.setstate(state['python'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'])


# ----------------------------------------------------------------------------------------- checkpoints
def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    content = io.BytesIO()  # on a full disk, torch.save to a file ends in an error of its own that says nothing
    torch.save(state, content)
    with writing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def checkpoint_saver(path_of: Callable[[str], Path], description: dict) -> Callable[[str, dict], None]:
    """Callback for `train` that writes 'best' and 'last' checkpoints.

    Parameters
    ----------
    path_of : callable
        From 'best' or 'last' to the path.
    description : dict
        What is needed to build the network again; stored under 'network'.
    """

    def save(which, state):
        save_checkpoint(path_of(which), state | {'network': description})

    return save


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, weights and plain values only.

    Raises
    ------
    DataError
        The file is missing, damaged or not a checkpoint.
    """
    if not Path(path).is_file():
        raise DataError(f'{path}: no such file')
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums that it writes
        if not damaged:
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: not a checkpoint of this project ({type(fault).__name__})') from fault
    raise DataError(f'{path}: not a checkpoint of this project any more: {damaged} in it is damaged')


def is_of_training(checkpoint: dict, history: list[dict]) -> bool:
    """Whether a checkpoint is that of an epoch of a training, by its validation loss."""
    figures = [(of_epoch['epoch'], of_epoch['validation loss']) for of_epoch in history]
    return (checkpoint.get('epoch'), checkpoint.get('validation loss')) in figures
