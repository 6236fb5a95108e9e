"""The training loop and the validation loop, the same for every network, and the checkpoints they leave."""

import contextlib
import copy
import datetime
import io
import json
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.autoencoder import at_full_length, hide
from utils import (
    DataError,
    Interrupted,
    SettingError,
    asked_to_end,
    check_interruption,
    finishing_steps,
    without_waiting,
    writing,
)

CRITERIA = {'mse': nn.MSELoss, 'mae': nn.L1Loss}
OPTIMIZERS = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}

# Batches from one look at the loss to the next: a look waits for all that has been asked of a GPU.
LOOK_EVERY = {'cpu': 1, 'cuda': 50}

# Gives the mean loss of a batch (input, target) and takes (network, input, target). Where several processes share the
# batch, it takes `part` besides, see `Batches.part`, and gives this part's share of the mean over the whole batch.
Loss = Callable[..., torch.Tensor]


def reconstruction_loss(criterion: str, weights: list[float]) -> Loss:
    """Loss of an autoencoder: the criterion between each reconstruction and its target, summed with weights.

    Parameters
    ----------
    criterion : str
        One of `CRITERIA`.
    weights : list of float
        One per (reconstruction, target) pair; divided by their sum.
    """
    compare = CRITERIA[criterion](reduction='sum')
    shares = [weight / sum(weights) for weight in weights]

    def loss(model, x, target, part=None):
        n_windows = len(x) if part is None else part[2]
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, model(x, target), strict=True):
            total = total + share * compare(reconstruction, wanted) / (n_windows * math.prod(wanted.shape[1:]))
        return total

    return loss


def masked_loss(criterion: str, weights: list[float], shape: tuple[int, int, int], margin: int = 0) -> Loss:
    """Loss of an autoencoder that reconstructs a hidden stretch of each window from what lies around it.

    The criterion is taken where the input was hidden, and summed over the pairs with weights.

    Parameters
    ----------
    criterion : str
        One of `CRITERIA`.
    weights : list of float
        One per (reconstruction, target) pair; divided by their sum.
    shape : (border, n_sub, n_times)
        The sub-windows that will be judged, in samples: from `border` on, `n_sub` of `n_times`.
    margin : int
        Samples that will be hidden on either side of them, at most `border`.

    Notes
    -----
    In training, a stretch of half to twice the judged length is hidden anywhere in the inner part of each window, from
    torch's random numbers. In evaluation the windows of a batch take turns with the sub-windows.
    """
    compare = CRITERIA[criterion](reduction='none')
    shares = [weight / sum(weights) for weight in weights]
    border, n_sub, n_times = shape
    begin, end = border - margin, border + n_sub * n_times + margin
    judged = n_times + 2 * margin

    def loss(model, x, target, part=None):
        # Drawn for the whole batch, whatever part of it this is.
        mine, n_windows = (slice(None), len(x)) if part is None else (slice(*part[:2]), part[2])
        if model.training:
            length = torch.randint(max(judged // 2, 1), min(2 * judged, end - begin) + 1, (n_windows,))
            first = begin + (torch.rand(n_windows) * (end - begin - length + 1)).long()
        else:
            length = torch.full((n_windows,), judged)
            first = begin + torch.arange(n_windows) % n_sub * n_times
        n_hidden, length, first = int(length.sum()), length[mine], first[mine]
        first, last = without_waiting(torch.stack([first, first + length]), x.device)
        pairs = model(hide(x, first, last), target)
        times = torch.arange(x.shape[-1], device=x.device)
        hidden = (times >= first[:, None]) & (times < last[:, None])  # (batch, times)
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, pairs, strict=True):
            errors = compare(reconstruction, wanted).flatten(1, -2).mean(dim=1, keepdim=True)  # (batch, 1, time_k)
            total = total + share * (at_full_length(errors, x.shape[-1])[:, 0] * hidden).sum() / n_hidden
        return total

    return loss


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
    def first(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.rank == 0

    def once(self, act: Callable[[], Any]) -> Any:
        """Act in the first process alone, and give all of them the result, which JSON must be able to hold.

        The others look for it from time to time, however long it takes, so that signals still reach them.
        """
        if self.size == 1:
            return act()
        self._n_answers += 1
        key = f'answer {self._n_answers}'
        if self.first:
            result = act()
            self._store.set(key, json.dumps(result))
            return result
        while not self._store.check([key]):
            time.sleep(0.05)
        return json.loads(self._store.get(key))

    @contextlib.contextmanager
    def training(self, model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """Within this block, give the model whose gradients are those of all processes together."""
        if self.size == 1:
            yield model
            return
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
            yield DistributedDataParallel(_with_shared_statistics(model, device), forward_sync_buffers=False)
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


def started_together() -> Processes:
    """The processes that torchrun started with this one, by its environment variables; or this one alone."""
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        return ALONE
    store, rank, size = next(distributed.rendezvous('env://'))
    return Processes(rank, size, store)


def _with_shared_statistics(model, device):
    """Have batch norm take its statistics from the parts of all processes."""
    if device.type == 'cuda':
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm2d
    return model


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does, which is for GPUs only: batch norm over the parts of all processes."""

    def forward(self, maps):
        if not self.training:
            return super().forward(maps)
        given, maps = maps.dtype, maps.float()  # sums over a batch are no task for bfloat16
        over, shape = (0, 2, 3), (1, -1, 1, 1)
        n_values = maps.new_full((1,), maps.numel() / maps.shape[1])
        *sums, n_values = _Summed.apply(torch.cat([maps.sum(over), n_values]))
        mean = torch.stack(sums) / n_values
        centred = maps - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / n_values
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n_values / (n_values - 1), self.momentum)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(given)


class _Summed(torch.autograd.Function):
    """Sum over the processes, of values on the way forth and of gradients on the way back."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient


# ------------------------------------------------------------------------------------------ the epochs
def _start_of_epoch():
    """Where an epoch is: batches done, the sums of their losses and windows, and the seconds they took."""
    return {'batches': 0, 'total': 0.0, 'windows': 0, 'seconds': 0.0}


def _mean_loss(model, loader, loss, device, processes, place, optimizer=None, description='validate'):
    """Mean loss over the loader's items; with an optimizer, a step after every batch. Keeps `place` up to date.

    Raises
    ------
    Interrupted
        A signal came, to whichever process; a step is finished first.
    """
    loader.batch_sampler.first = place['batches']
    bar = tqdm(loader, desc=description, leave=False, disable=None, unit='batch', initial=place['batches'])
    start = time.perf_counter() - place['seconds']
    unseen = torch.zeros((), dtype=torch.float64, device=device)  # sum of the losses since the last look
    for x, target in bar:
        x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
        n_windows, part = len(x), {}
        if processes.size > 1:
            part['part'] = loader.batch_sampler.part(place['batches'])
            n_windows = part['part'][2]
        value = loss(model, x, target, **part)
        unseen = unseen + value.detach().double() * n_windows
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            (value * processes.size).backward()  # several processes take the mean of their gradients
            optimizer.step()
        place['batches'] += 1
        place['windows'] += n_windows
        # One process may look as soon as a signal comes, several only all together.
        due = place['batches'] % LOOK_EVERY[device.type] == 0 or place['batches'] == len(loader)
        if due or (processes.size == 1 and asked_to_end()):
            number, asked = processes.sum(torch.stack([unseen, unseen.new_tensor(asked_to_end())])).tolist()
            if not math.isfinite(number):  # of a sum: one loss that is not finite shows in the next look
                raise SettingError(
                    f'{description}: the loss is {number}: lower learning_rate (of the classifier: '
                    'classifier_learning_rate)'
                )
            unseen = torch.zeros_like(unseen)
            place['total'] += number
            place['seconds'] = time.perf_counter() - start
            bar.set_postfix(loss=f'{place["total"] / place["windows"]:.4g}')
            if asked:
                raise Interrupted('a signal')
    return place['total'] / place['windows']


def validate(
    model: nn.Module, loader: DataLoader, loss: Loss, device: torch.device, processes: Processes = ALONE
) -> float:
    """Mean loss over the items of a loader, in evaluation mode and without gradients."""
    model.eval()
    with torch.no_grad():
        return _mean_loss(model, loader, loss, device, processes, _start_of_epoch())


def train(
    model: nn.Module,
    train_loader: DataLoader,
    validation_loader: DataLoader,
    loss: Loss,
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    num_epochs: int,
    n_epochs_stop: int,
    device: torch.device,
    save: Callable[[str, dict], None],
    validate_first: bool = False,
    state: dict | None = None,
    processes: Processes = ALONE,
) -> list[dict]:
    """Train until `num_epochs`, or until the validation loss has not fallen for `n_epochs_stop` epochs.

    On return the model has the weights of its best epoch.

    Parameters
    ----------
    model : Module
        On `device`.
    train_loader, validation_loader : DataLoader
        Of (input, target), see `timeseries_dataset.batches`; the training dataset's attribute `epoch` is set before
        every epoch.
    loss : callable
        (model, input, target) to the mean loss of the batch, see `Loss`.
    save : callable
        Called with 'best' or 'last', and the state: the original's six keys, `scheduler_state_dict` and `history`; in
        'last', also `best_model_state_dict`, the `place` within the epoch that is under way, and the state of all
        random numbers.
    validate_first : bool
        Count the weights at the start as epoch 0: for a model that is trained further, which may already be at its
        best.
    state : dict, optional
        The 'last' of a training that was interrupted: it goes on from there, and ends as if it had not been.
    processes : Processes
        That train together, each with its part of every batch.

    Returns
    -------
    list of dict
        One per epoch: epoch, training loss, validation loss, learning rate, seconds.

    Raises
    ------
    SettingError
        The loss is no longer finite.
    Interrupted
        A signal came. The step was finished, and 'last' saved.
    """
    history, best_weights, place = [], None, _start_of_epoch()
    figures = {'epoch': 0, 'training loss': math.nan, 'validation loss': math.nan}
    figures['learning rate'] = optimizer.param_groups[0]['lr']
    if state:
        model.load_state_dict(state['model_state_dict'])
        optimizer.load_state_dict(state['optimizer_state_dict'])
        scheduler.load_state_dict(state['scheduler_state_dict'])
        figures, history, place = ({name: state[name] for name in figures}, state['history'], state['place'])
        best_weights = state['best_model_state_dict']
        set_random_state(state['random'])

    def save_state(which):
        content = figures | {
            'model_state_dict': model.state_dict(),
            'optimizer_state_dict': optimizer.state_dict(),
            'scheduler_state_dict': scheduler.state_dict(),
            'history': history,
        }
        if which == 'last':
            content |= {'best_model_state_dict': best_weights, 'place': place, 'random': random_state()}
        save(which, content)

    def best():
        return min(history, key=lambda h: h['validation loss'])['epoch']

    def end_epoch(training_loss, validation_loss, rate, seconds):
        nonlocal best_weights
        figures.update({'training loss': training_loss, 'validation loss': validation_loss, 'learning rate': rate})
        history.append(figures | {'seconds': seconds})
        place.update(_start_of_epoch())
        improved = best() == figures['epoch']
        if improved:
            best_weights = copy.deepcopy(model.state_dict())
        # In this order: if the second is never written, the first still says what it holds.
        save_state('last')
        if improved:
            save_state('best')
        return improved

    with finishing_steps(), processes.training(model, device) as shared:
        if history and best() == figures['epoch'] and not place['batches']:
            save_state('best')
        try:
            if validate_first and not history:
                loss_at_start = validate(model, validation_loader, loss, device, processes)
                end_epoch(math.nan, loss_at_start, figures['learning rate'], 0.0)
                tqdm.write(f'  at the start   validation loss {loss_at_start:.5f}')
            while figures['epoch'] < num_epochs and not (history and figures['epoch'] - best() >= n_epochs_stop):
                epoch = figures['epoch'] + 1
                train_loader.dataset.epoch = epoch
                rate = optimizer.param_groups[0]['lr']
                model.train()
                description = f'epoch {epoch}'
                training_loss = _mean_loss(shared, train_loader, loss, device, processes, place, optimizer, description)
                start = time.perf_counter()
                training_seconds = place['seconds']
                validation_loss = validate(model, validation_loader, loss, device, processes)
                with warnings.catch_warnings():
                    # Where the epoch goes on after its last step, this optimizer has made none itself.
                    warnings.filterwarnings('ignore', message='Detected call of `lr_scheduler.step')
                    scheduler.step(*[validation_loss] * isinstance(scheduler, ReduceLROnPlateau))
                figures['epoch'] = epoch
                seconds = training_seconds + time.perf_counter() - start
                improved = end_epoch(training_loss, validation_loss, rate, seconds)
                speed = len(train_loader.dataset) / training_seconds
                tqdm.write(
                    f'  epoch {epoch:3d}  training loss {training_loss:.5f}  validation loss {validation_loss:.5f}'
                    f'{"  best" if improved else "      "}  {speed:.0f} items/s'
                )
        except Interrupted:
            save_state('last')
            processes.sum(torch.zeros(1, device=device))  # no process ends before the first has written
            check_interruption()
            raise
    if figures['epoch'] - best() >= n_epochs_stop:
        tqdm.write(f'  no better validation loss for {n_epochs_stop} epochs: stopped')
    model.load_state_dict(best_weights)
    return history


def random_state() -> dict:
    """The state of the random numbers of Python, NumPy and torch, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    state = {
        'python': random.getstate(),
        'numpy': (name, torch.from_numpy(keys.astype(np.int64)), *rest),
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


def make_optimizer(
    model: nn.Module,
    *,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    scheduler: str,
    stepLR: int,
    gammaLR: float,
    plateau_patience: int,
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimizer of a model, and the schedule of its learning rate.

    Parameters that a model marks with `no_decay` are left out of the weight decay.

    Parameters
    ----------
    optimizer : str
        One of `OPTIMIZERS`.
    scheduler : str
        'step': the rate is multiplied by `gammaLR` every `stepLR` epochs. 'plateau': it is multiplied by `gammaLR`
        when the validation loss has not fallen for `plateau_patience` epochs.
    """
    decayed = [p for p in model.parameters() if not getattr(p, 'no_decay', False)]
    groups = [{'params': decayed}]
    if others := [p for p in model.parameters() if getattr(p, 'no_decay', False)]:
        groups.append({'params': others, 'weight_decay': 0.0})
    # One kernel for all weights, where there is a GPU.
    fused = next(model.parameters()).is_cuda or None
    made = OPTIMIZERS[optimizer](groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    if scheduler == 'plateau':
        return made, ReduceLROnPlateau(made, factor=gammaLR, patience=plateau_patience)
    return made, StepLR(made, step_size=stepLR, gamma=gammaLR)


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Give an optimizer the saved state of another run (its moments), but keep its own rate and weight decay."""
    optimizer.load_state_dict(optimizer.state_dict() | {'state': state['state']})


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
        The file is missing or is not a checkpoint.
    """
    if not Path(path).is_file():
        raise DataError(f'{path}: no such file')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: not a checkpoint of this project ({type(fault).__name__})') from fault
