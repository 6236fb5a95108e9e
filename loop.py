"""The training loop and the validation loop, the same for every network."""

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.autoencoder import at_full_length, hide
from utils import SettingError

CRITERIA = {'mse': nn.MSELoss, 'mae': nn.L1Loss}
OPTIMIZERS = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}

# Gives the mean loss of a batch (input, target) and takes (network, input, target).
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def reconstruction_loss(criterion: str, weights: list[float]) -> Loss:
    """Loss of an autoencoder: the criterion between each reconstruction and its target, summed with weights.

    Parameters
    ----------
    criterion : str
        One of `CRITERIA`.
    weights : list of float
        One per (reconstruction, target) pair; divided by their sum.
    """
    compare = CRITERIA[criterion]()
    shares = [weight / sum(weights) for weight in weights]

    def loss(model, x, target):
        pairs = zip(shares, model(x, target), strict=True)
        return sum(share * compare(reconstruction, wanted) for share, (reconstruction, wanted) in pairs)

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

    def loss(model, x, target):
        if model.training:
            length = torch.randint(max(judged // 2, 1), min(2 * judged, end - begin) + 1, (len(x),))
            first = begin + (torch.rand(len(x)) * (end - begin - length + 1)).long()
        else:
            length = torch.full((len(x),), judged)
            first = begin + torch.arange(len(x)) % n_sub * n_times
        pairs = model(hide(x, first, first + length), target)
        times = torch.arange(x.shape[-1])
        hidden = ((times >= first[:, None]) & (times < (first + length)[:, None])).to(x.device)  # (batch, times)
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, pairs, strict=True):
            errors = at_full_length(compare(reconstruction, wanted), x.shape[-1]).mean(dim=1)
            total = total + share * (errors * hidden).sum() / hidden.sum()
        return total

    return loss


def _mean_loss(model, loader, loss, device, optimizer=None, description='validate'):
    """Mean loss over the loader's items; with an optimizer, a step after every batch."""
    total, count = 0.0, 0
    bar = tqdm(loader, desc=description, leave=False, disable=None, unit='batch')
    for x, target in bar:
        x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
        value = loss(model, x, target)
        number = value.item()
        if not math.isfinite(number):
            raise SettingError(
                f'{description}: the loss is {number}: lower learning_rate (of the classifier: '
                'classifier_learning_rate)'
            )
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        total, count = total + number * len(x), count + len(x)
        bar.set_postfix(loss=f'{total / count:.4g}')
    return total / count


def validate(model: nn.Module, loader: DataLoader, loss: Loss, device: torch.device) -> float:
    """Mean loss over the items of a loader, in evaluation mode and without gradients."""
    model.eval()
    with torch.no_grad():
        return _mean_loss(model, loader, loss, device)


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
) -> list[dict]:
    """Train until `num_epochs`, or until the validation loss has not fallen for `n_epochs_stop` epochs.

    On return the model has the weights of its best epoch.

    Parameters
    ----------
    model : Module
        On `device`.
    train_loader, validation_loader : DataLoader
        Of (input, target); the training dataset's attribute `epoch` is set before every epoch.
    loss : callable
        (model, input, target) to the mean loss of the batch.
    save : callable
        Called with 'best' or 'last', and the state: the original's six keys, `scheduler_state_dict` and `history`.

    Returns
    -------
    list of dict
        One per epoch: epoch, training loss, validation loss, learning rate, seconds.

    Raises
    ------
    SettingError
        The loss is no longer finite.
    """
    history, best, best_weights = [], math.inf, None
    for epoch in range(1, num_epochs + 1):
        start = time.perf_counter()
        train_loader.dataset.epoch = epoch
        rate = optimizer.param_groups[0]['lr']
        model.train()
        training_loss = _mean_loss(model, train_loader, loss, device, optimizer, f'epoch {epoch}')
        training_seconds = time.perf_counter() - start
        validation_loss = validate(model, validation_loader, loss, device)
        scheduler.step()
        seconds = time.perf_counter() - start
        figures = {
            'epoch': epoch,
            'training loss': training_loss,
            'validation loss': validation_loss,
            'learning rate': rate,
        }
        history.append(figures | {'seconds': seconds})
        state = figures | {
            'model_state_dict': model.state_dict(),
            'optimizer_state_dict': optimizer.state_dict(),
            'scheduler_state_dict': scheduler.state_dict(),
            'history': history,
        }
        improved = validation_loss < best
        if improved:
            best, best_weights = validation_loss, copy.deepcopy(model.state_dict())
            save('best', state)
        save('last', state)
        speed = len(train_loader.dataset) / training_seconds
        tqdm.write(
            f'  epoch {epoch:3d}  training loss {training_loss:.5f}  validation loss {validation_loss:.5f}'
            f'{"  best" if improved else "      "}  {speed:.0f} items/s'
        )
        if epoch - min(history, key=lambda h: h['validation loss'])['epoch'] >= n_epochs_stop:
            tqdm.write(f'  no better validation loss for {n_epochs_stop} epochs: stopped')
            break
    model.load_state_dict(best_weights)
    return history


def make_optimizer(
    model: nn.Module, *, optimizer: str, learning_rate: float, weight_decay: float, stepLR: int, gammaLR: float
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimizer of a model, and the schedule that multiplies its rate by `gammaLR` every `stepLR` epochs.

    Parameters that a model marks with `no_decay` are left out of the weight decay.
    """
    decayed = [p for p in model.parameters() if not getattr(p, 'no_decay', False)]
    groups = [{'params': decayed}]
    if others := [p for p in model.parameters() if getattr(p, 'no_decay', False)]:
        groups.append({'params': others, 'weight_decay': 0.0})
    made = OPTIMIZERS[optimizer](groups, lr=learning_rate, weight_decay=weight_decay)
    return made, StepLR(made, step_size=stepLR, gamma=gammaLR)
