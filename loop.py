"""The training loop and the validation loop, the same for every network, and the checkpoints they leave."""

import copy
import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.autoencoder import at_full_length, hide
from utils import DataError, SettingError, without_waiting, writing

CRITERIA = {'mse': nn.MSELoss, 'mae': nn.L1Loss}
OPTIMIZERS = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}

# Batches from one look at the loss to the next: a look waits for all that has been asked of a GPU.
LOOK_EVERY = {'cpu': 1, 'cuda': 50}

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
        first, last = without_waiting(torch.stack([first, first + length]), x.device)
        pairs = model(hide(x, first, last), target)
        times = torch.arange(x.shape[-1], device=x.device)
        hidden = (times >= first[:, None]) & (times < last[:, None])  # (batch, times)
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, pairs, strict=True):
            errors = at_full_length(compare(reconstruction, wanted), x.shape[-1]).mean(dim=1)
            total = total + share * (errors * hidden).sum() / hidden.sum()
        return total

    return loss


def _mean_loss(model, loader, loss, device, optimizer=None, description='validate'):
    """Mean loss over the loader's items; with an optimizer, a step after every batch."""
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    bar = tqdm(loader, desc=description, leave=False, disable=None, unit='batch')
    for number, (x, target) in enumerate(bar, start=1):
        x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
        value = loss(model, x, target)
        total, count = total + value.detach().double() * len(x), count + len(x)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        if number % LOOK_EVERY[device.type] == 0 or number == len(loader):
            mean = total.item() / count  # of all batches: one loss that is not finite shows in every later look
            if not math.isfinite(mean):
                raise SettingError(
                    f'{description}: the loss is {mean}: lower learning_rate (of the classifier: '
                    'classifier_learning_rate)'
                )
            bar.set_postfix(loss=f'{mean:.4g}')
    return mean


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
    validate_first: bool = False,
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
    validate_first : bool
        Count the weights at the start as epoch 0: for a model that is trained further, which may already be at its
        best.

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

    def record(epoch, training_loss, validation_loss, rate, seconds):
        nonlocal best, best_weights
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
        return improved

    if validate_first:
        loss_at_start = validate(model, validation_loader, loss, device)
        record(0, math.nan, loss_at_start, optimizer.param_groups[0]['lr'], 0.0)
        tqdm.write(f'  at the start   validation loss {loss_at_start:.5f}')
    for epoch in range(1, num_epochs + 1):
        start = time.perf_counter()
        train_loader.dataset.epoch = epoch
        rate = optimizer.param_groups[0]['lr']
        model.train()
        training_loss = _mean_loss(model, train_loader, loss, device, optimizer, f'epoch {epoch}')
        training_seconds = time.perf_counter() - start
        validation_loss = validate(model, validation_loader, loss, device)
        scheduler.step(*[validation_loss] * isinstance(scheduler, ReduceLROnPlateau))
        improved = record(epoch, training_loss, validation_loss, rate, time.perf_counter() - start)
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
