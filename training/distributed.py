"""Several processes that train one network together."""

import contextlib
import datetime
import json
import os
import time
import warnings
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


# ------------------------------------------------------------------------------------ several processes
class Processes:
    """The processes that train one network together: this one alone, or those that torchrun started, one per GPU.

    Attributes
    ----------
    rank, size : int
        Which of how many this is. The first alone reads and writes run directories.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: distributed.Store | None = None):
        self.rank, self.size, self._store = rank, size, store
        self._n_answers = self._n_groups = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.rank == 0

    def on_main_process(self, act: Callable[[], Any]) -> Any:
        """Act in the first process alone, and give all of them the result, which JSON must be able to hold.

        The others look for it from time to time, however long it takes, so that signals still reach them.
        """
        if self.size == 1:
            return act()
        assert self._store is not None
        self._n_answers += 1
        key = f'answer {self._n_answers}'
        if self.is_main:
            result = act()
            self._store.set(key, json.dumps(result))
            return result
        while not self._store.check([key]):
            time.sleep(0.05)
        return json.loads(self._store.get(key))

    @contextlib.contextmanager
    def training(self, model: nn.Module, device: torch.device) -> Generator[nn.Module]:
        """Within this block, give the model whose gradients are those of all processes together."""
        if self.size == 1:
            yield model
            return
        assert self._store is not None
        self._n_groups += 1
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        distributed.init_process_group(
            'nccl' if device.type == 'cuda' else 'gloo',
            store=distributed.PrefixStore(f'group {self._n_groups}', self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=datetime.timedelta(hours=1),
        )
        try:
            # A word about speed, of a thousandth: gradients of weights that are laid out channels last.
            warnings.filterwarnings('ignore', message='Grad strides do not match bucket view')
            # Buffers are the same everywhere already, because batch norm takes its statistics from the whole batch.
            yield DistributedDataParallel(_share_batch_statistics(model, device), forward_sync_buffers=False)
        finally:
            # Gloo's threads take Python's lock to let go of the last step, and destroying waits for them while it holds
            # that lock: let them end first, or both may wait for ever.
            time.sleep(0.2)
            distributed.destroy_process_group()

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers


ALONE = Processes()


def init_distributed() -> Processes:
    """The processes that torchrun started with this one, by its environment variables; or this one alone."""
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        return ALONE
    store, rank, size = next(distributed.rendezvous('env://'))
    return Processes(rank, size, store)


def _share_batch_statistics(model, device):
    """Have batch norm take its statistics from the parts of all processes."""
    if device.type == 'cuda':
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm2d
    return model


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does, which is for GPUs only: batch norm over the parts of all processes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        maps = input.float()  # sums over a batch are no task for bfloat16
        over, shape = (0, 2, 3), (1, -1, 1, 1)
        n_values = maps.new_full((1,), maps.numel() / maps.shape[1])
        *sums, n_values = _Summed.apply(torch.cat([maps.sum(over), n_values]))
        mean = torch.stack(sums) / n_values
        centred = maps - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / n_values
        with torch.no_grad():
            self.get_buffer('num_batches_tracked').add_(1)
            momentum = float(self.momentum or 0)
            self.get_buffer('running_mean').lerp_(mean, momentum)
            self.get_buffer('running_var').lerp_(variance * n_values / (n_values - 1), momentum)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


class _Summed(torch.autograd.Function):
    """Sum over the processes, of values on the way forth and of gradients on the way back."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, *gradients):
        gradient = gradients[0].clone()
        distributed.all_reduce(gradient)
        return gradient
