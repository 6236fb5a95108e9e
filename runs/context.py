"""What a call of main_train.py is to do, the same for every fold."""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from runs.source import Source
from training.distributed import Processes


class RunContext(NamedTuple):
    """What a call of main_train.py is to do, the same for every fold.

    Attributes
    ----------
    mode, command : str
    source : Source or None
        The run that it starts from.
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
