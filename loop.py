"""The training loop and the validation loop, the same for every network."""

import copy
import math
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from system.interruption import Interrupted, asked_to_end, check_interruption, finishing_steps
from training.checkpoints import random_state, set_random_state
from training.distributed import ALONE, Processes
from training.losses import Loss
from utils import SettingError

OPTIMIZERS = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}

# Batches from one look at the loss to the next: a look waits for all that has been asked of a GPU.
LOOK_EVERY = {'cpu': 1, 'cuda': 50}


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
