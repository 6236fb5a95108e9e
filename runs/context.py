"""The task of a call of main_train.py, the same for every fold."""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from runs.source import Source
from training.distributed import Processes


class RunContext(NamedTuple):
    """The task of a call of main_train.py, the same for every fold.

    Attributes
    ----------
    mode : str
    command : str
        As it was typed.
    source : Source or None
        The run that modes ft and clf start from.
    settings : namespace
    saved : dict
        The settings as params.json holds them.
    device : torch.device
    processes : Processes
    """

    mode: str
    command: str
    source: Source | None
    settings: SimpleNamespace
    saved: dict
    device: torch.device
    processes: Processes
