"""The training loop and the validation loop, the same for every network."""

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from system.interruption import Interrupted, asked_to_end, check_interruption, finishing_steps
from training.checkpoints import is_of_training, load_checkpoint, random_state, set_random_state
from training.distributed import ALONE, Processes
from training.losses import Loss
from utils import DataError, SettingError, to_device

OPTIMIZERS = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}

# Batches from one look at the loss to the next: a look waits for all that has been asked of a GPU.
LOOK_EVERY = {'cpu': 1, 'cuda': 50}


# ------------------------------------------------------------------------------------------ the epochs
@dataclasses.dataclass
class EpochProgress:
    """Where an epoch is: batches done, the sums of their losses and windows, and the seconds they took."""

    batches: int = 0
    total: float = 0.0
    windows: int = 0
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Mean loss of the windows done."""
        return self.total / self.windows


@dataclasses.dataclass
class Runner:
    """Takes batches through a network.

    Attributes
    ----------
    loss : callable
        See `training.losses.Loss`.
    device : torch.device
    processes : Processes
        That share every batch.
    """

    loss: Loss
    device: torch.device
    processes: Processes = ALONE
    _stopping: bool = False  # whether a signal came to any process

    def run(
        self,
        model: nn.Module,
        loader: DataLoader,
        progress: EpochProgress,
        optimizer: torch.optim.Optimizer | None = None,
        description: str = 'validate',
    ) -> float:
        """Mean loss over the loader's items; with an optimizer, a step after every batch.

        Parameters
        ----------
        progress : EpochProgress
            Where to begin; kept up to date.
        description : str
            For the progress bar and errors.

        Returns
        -------
        float

        Raises
        ------
        SettingError
            The loss is no longer finite.
        Interrupted
            A signal came, to whichever process; a step is finished first.
        """
        sampler: Any = loader.batch_sampler  # see `timeseries_dataset.Batches`
        sampler.first_batch = progress.batches
        bar = tqdm(loader, desc=description, leave=False, disable=None, unit='batch', initial=progress.batches)
        start = time.perf_counter() - progress.seconds
        unread = torch.zeros((), dtype=torch.float64, device=self.device)  # sum of the losses since the last look
        for x, target in bar:
            part = sampler.part(progress.batches) if self.processes.size > 1 else None
            n_windows = len(x) if part is None else part[2]
            value = self._step(model, x, target, part, optimizer)
            unread = unread + value.double() * n_windows
            progress.batches += 1
            progress.windows += n_windows
            # One process may look as soon as a signal comes, several only all together.
            due = progress.batches % LOOK_EVERY[self.device.type] == 0 or progress.batches == len(loader)
            if due or (self.processes.size == 1 and asked_to_end()):
                progress.total += self._look(unread, description)
                unread = torch.zeros_like(unread)
                progress.seconds = time.perf_counter() - start
                bar.set_postfix(loss=f'{progress.mean_loss:.4g}')
                if self._stopping:
                    raise Interrupted('a signal')
        return progress.mean_loss

    def _step(self, model, x, target, part, optimizer):
        """Loss of a batch, detached; with an optimizer, a step."""
        sent = to_device(x, self.device)
        x, target = sent, sent if target is x else to_device(target, self.device)
        value = self.loss(model, x, target) if part is None else self.loss(model, x, target, part=part)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            (value * self.processes.size).backward()  # several processes take the mean of their gradients
            optimizer.step()
        return value.detach()

    def _look(self, unread, description):
        """Sum of the losses since the last look, over all processes, as a number; notes whether a signal came."""
        total, stopping = self.processes.sum(torch.stack([unread, unread.new_tensor(asked_to_end())])).tolist()
        self._stopping = bool(stopping)
        if not math.isfinite(total):  # of a sum: one loss that is not finite shows in the next look
            raise SettingError(
                f'{description}: the loss is {total}: lower learning_rate (of the classifier: classifier_learning_rate)'
            )
        return total


def validate(
    model: nn.Module, loader: DataLoader, loss: Loss, device: torch.device, processes: Processes = ALONE
) -> float:
    """Mean loss over the items of a loader, in evaluation mode and without gradients."""
    model.eval()
    with torch.no_grad():
        return Runner(loss, device, processes).run(model, loader, EpochProgress())


@dataclasses.dataclass
class Training:
    """A training under way, and what its checkpoints hold.

    Attributes
    ----------
    model, optimizer, scheduler
    save : callable
        Called with 'best' or 'last', and the state.
    log : callable
        Called with the history at the end of every epoch.
    metrics : dict
        Of the last finished epoch: epoch, training loss, validation loss, learning rate.
    early_stop_on : str
        See `train`.
    measure : callable
        See `train`.
    history : list of dict
        The metrics of every epoch, what `measure` adds, and its seconds.
    best_weights : dict or None
    progress : EpochProgress
        Of the epoch under way.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    save: Callable[[str, dict], None]
    log: Callable[[list[dict]], None]
    metrics: dict
    early_stop_on: str = 'loss'
    measure: Callable[[list[dict]], dict] = lambda history: {}
    history: list[dict] = dataclasses.field(default_factory=list)
    best_weights: dict | None = None
    progress: EpochProgress = dataclasses.field(default_factory=EpochProgress)

    def resume(self, path_of: Callable[[str], Path]) -> None:
        """Go on from the 'last' checkpoint of an interrupted training, random numbers included.

        Parameters
        ----------
        path_of : callable
            From 'best' or 'last' to the path of the checkpoint.

        Raises
        ------
        DataError
            It is damaged or of another network, or the 'best' that belongs to it is.
        OutOfMemoryError
            Of the device.
        """
        path, way_out = path_of('last'), 'restore it, or take another model_nb'
        try:
            state = load_checkpoint(path)
            self.model.load_state_dict(state['model_state_dict'])
            self.optimizer.load_state_dict(state['optimizer_state_dict'])
            self.scheduler.load_state_dict(state['scheduler_state_dict'])
            self.metrics = {name: state[name] for name in self.metrics}
            self.history, self.best_weights = state['history'], state['best_model_state_dict']
            self.progress = EpochProgress(**state['place'])
            set_random_state(state['random'])
            best_is_written = self.history and (self.best_epoch < self.epoch or self.progress.batches)
            if best_is_written and not is_of_training(load_checkpoint(path_of('best')), self.history):
                raise DataError(f'{path_of("best")}: not of the training of {path.name}')
        except DataError as fault:
            raise DataError(f'{fault}; {way_out}') from fault
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as fault:
            raise DataError(f'{path}: not a checkpoint of this training ({type(fault).__name__}); {way_out}') from fault
        if self.history and not best_is_written:
            self.save_state('best')

    def save_state(self, which: str) -> None:
        """Write the 'best' or 'last' checkpoint."""
        content = self.metrics | {
            'model_state_dict': self.model.state_dict(),
            'optimizer_state_dict': self.optimizer.state_dict(),
            'scheduler_state_dict': self.scheduler.state_dict(),
            'history': self.history,
        }
        if which == 'last':
            content |= {
                'best_model_state_dict': self.best_weights,
                'place': dataclasses.asdict(self.progress),
                'random': random_state(),
            }
        self.save(which, content)

    @property
    def epoch(self) -> int:
        """The last finished epoch."""
        return self.metrics['epoch']

    @property
    def best_epoch(self) -> int:
        """The epoch of the smallest validation loss, or largest PR-AUC on validation, the first of them."""
        return best_epoch(self.history, self.early_stop_on)

    def end_epoch(self, metrics: dict, seconds: float) -> bool:
        """Note an epoch's metrics, write the checkpoints, and say whether it is the best so far."""
        self.metrics = metrics
        self.history.append(metrics | self.measure(self.history) | {'seconds': seconds})
        self.progress = EpochProgress()
        improved = self.best_epoch == self.epoch
        if improved:
            self.best_weights = copy.deepcopy(self.model.state_dict())
        # In this order: if the second is never written, the first still says what it holds.
        self.save_state('last')
        if improved:
            self.save_state('best')
        self.log(self.history)
        return improved


def best_epoch(history: list[dict], early_stop_on: str) -> int:
    """The first epoch of the smallest validation loss ('loss'), or of the largest PR-AUC on validation ('pr_auc')."""
    if early_stop_on == 'pr_auc':
        return max(history, key=lambda of_epoch: of_epoch['PR-AUC'])['epoch']
    return min(history, key=lambda of_epoch: of_epoch['validation loss'])['epoch']


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
    log: Callable[[list[dict]], None] = lambda history: None,
    measure: Callable[[list[dict]], dict] = lambda history: {},
    early_stop_on: str = 'loss',
    validate_first: bool = False,
    resume: Callable[[str], Path] | None = None,
    processes: Processes = ALONE,
) -> list[dict]:
    """Train until `num_epochs`, or until the validation has not become better for `n_epochs_stop` epochs.

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
    optimizer, scheduler
        From `make_optimizer`.
    num_epochs, n_epochs_stop : int
    device : torch.device
    save : callable
        Called with 'best' or 'last', and the state: the original's six keys, `scheduler_state_dict` and `history`; in
        'last', also `best_model_state_dict`, the `place` within the epoch that is under way, and the state of all
        random numbers.
    log : callable
        Called with the history at the end of every epoch.
    measure : callable
        Called with the history after every validation, gives more figures of it for the history.
    early_stop_on : str
        What makes an epoch the best: 'loss', or 'pr_auc' for the figure PR-AUC of `measure`.
    validate_first : bool
        Count the weights at the start as epoch 0: for a model that is trained further, which may already be at its
        best.
    resume : callable, optional
        From 'best' or 'last' to the path of the checkpoint of a training that was interrupted: it goes on from there,
        and ends as if it had not been.
    processes : Processes
        That train together, each with its part of every batch.

    Returns
    -------
    list of dict
        One per epoch: epoch, training loss, validation loss, learning rate, what `measure` gives, seconds.

    Raises
    ------
    Interrupted
        A signal came. The step was finished, and 'last' saved.
    SettingError
        The loss is no longer finite.
    DataError
        What it goes on from is damaged.
    """
    metrics = {'epoch': 0, 'training loss': math.nan, 'validation loss': math.nan}
    metrics['learning rate'] = optimizer.param_groups[0]['lr']
    training = Training(model, optimizer, scheduler, save, log, metrics, early_stop_on, measure)
    runner = Runner(loss, device, processes)
    if resume:
        training.resume(resume)
    with finishing_steps(), processes.training(model, device) as shared_model:
        try:
            interrupted_at_start = resume is not None and not training.progress.batches
            if (validate_first or interrupted_at_start) and not training.history:
                at_start = validate(model, validation_loader, loss, device, processes)
                training.end_epoch(training.metrics | {'validation loss': at_start}, 0.0)
                tqdm.write(f'  at the start   validation loss {at_start:.5f}')
            while training.epoch < num_epochs and not _stops(training, n_epochs_stop):
                _train_epoch(training, runner, shared_model, train_loader, validation_loader)
        except Interrupted:
            training.save_state('last')
            processes.sum(torch.zeros(1, device=device))  # no process ends before the first has written
            check_interruption()
            raise
    if _stops(training, n_epochs_stop):
        stopped_on = {'loss': 'loss', 'pr_auc': 'PR-AUC'}[early_stop_on]
        tqdm.write(f'  no better validation {stopped_on} for {n_epochs_stop} epochs: stopped')
    assert training.best_weights is not None
    model.load_state_dict(training.best_weights)
    return training.history


def _stops(training, n_epochs_stop):
    """Whether the validation has not become better for so many epochs."""
    return bool(training.history) and training.epoch - training.best_epoch >= n_epochs_stop


def _train_epoch(training, runner, shared_model, train_loader, validation_loader):
    """One epoch of training and its validation, with a line on the screen."""
    epoch, progress = training.epoch + 1, training.progress
    train_loader.dataset.epoch = epoch
    rate = training.optimizer.param_groups[0]['lr']
    training.model.train()
    training_loss = runner.run(shared_model, train_loader, progress, training.optimizer, f'epoch {epoch}')
    start = time.perf_counter()
    validation_loss = validate(training.model, validation_loader, runner.loss, runner.device, runner.processes)
    with warnings.catch_warnings():
        # Where the epoch goes on after its last step, this optimizer has made none itself.
        warnings.filterwarnings('ignore', message='Detected call of `lr_scheduler.step')
        if isinstance(training.scheduler, ReduceLROnPlateau):
            training.scheduler.step(validation_loss)
        else:
            training.scheduler.step()
    seconds = progress.seconds + time.perf_counter() - start
    metrics = {'epoch': epoch, 'training loss': training_loss, 'validation loss': validation_loss}
    improved = training.end_epoch(metrics | {'learning rate': rate}, seconds)
    speed = len(train_loader.dataset) / progress.seconds
    best = '  best' if improved else '      '
    tqdm.write(
        f'  epoch {epoch:3d}  training loss {training_loss:.5f}  validation loss {validation_loss:.5f}{best}  '
        f'{speed:.0f} items/s'
    )


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

    Parameters that a model marks with `no_decay` are left out of the weight decay; those with a mark `rate` learn as
    many times faster.

    Parameters
    ----------
    optimizer : str
        One of `OPTIMIZERS`.
    scheduler : str
        'step': the rate is multiplied by `gammaLR` every `stepLR` epochs. 'plateau': it is multiplied by `gammaLR`
        when the validation loss has not fallen for `plateau_patience` epochs.
    """
    groups: dict[tuple, dict] = {}
    for parameter in model.parameters():
        undecayed, rate = getattr(parameter, 'no_decay', False), getattr(parameter, 'rate', 1.0)
        group = {'params': [], 'lr': rate * learning_rate, 'weight_decay': 0.0 if undecayed else weight_decay}
        groups.setdefault((undecayed, rate), group)['params'].append(parameter)
    # One kernel for all weights, where there is a GPU.
    fused = next(model.parameters()).is_cuda or None
    # Those with weight decay first, as in checkpoints of earlier versions.
    in_order = [groups[key] for key in sorted(groups)]
    made = OPTIMIZERS[optimizer](in_order, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    if scheduler == 'plateau':
        return made, ReduceLROnPlateau(made, factor=gammaLR, patience=plateau_patience)
    return made, StepLR(made, step_size=stepLR, gamma=gammaLR)


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Give an optimizer the saved state of another run (its moments), but keep its own rate and weight decay."""
    optimizer.load_state_dict(optimizer.state_dict() | {'state': state['state']})
