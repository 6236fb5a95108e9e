"""Small networks, windows that they can learn, and a training of them."""

import numpy as np
import torch
from common import OPTIMIZER, Pairs

from classifiers.subwindows import SubwindowShape
from loop import make_optimizer, train
from models import AUTOENCODERS, build_model
from timeseries_dataset import batches
from training.losses import masked_loss, reconstruction_loss

CPU = torch.device('cpu')
SHAPE = SubwindowShape(12, 3, 8)
SMALL = {'filters': [4, 4, 4], 'pywt_mode': 'periodization', 'embedding_size': 8, 'top_k': 3, 'latent_nodes': 6}
NAMES = sorted(AUTOENCODERS)


def small(name, precision='float32', seed=0):
    torch.manual_seed(seed)
    model = build_model(name, 12, 48, **(SMALL if name == 'wavelets' else {'width': 4}))
    model.precision = precision
    return model


def rhythms(n, seed=0):
    """Windows (n, 1, 12, 48) of a rhythm in any phase, with a little noise."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * (np.arange(48) / 16 + rng.random((n, 1, 1, 1)))
    x = np.cos(phase) * np.linspace(0.5, 1.5, 12)[:, None] + 0.1 * rng.normal(size=(n, 1, 12, 48))
    return torch.from_numpy(x.astype(np.float32))


def losses_of(name):
    weights = [1.0] * (5 if name == 'wavelets' else 1)
    return {'plain': reconstruction_loss('mse', weights), 'masked': masked_loss('mse', weights, SHAPE, 2)}


def fit(model, x, loss, epochs, save=lambda which, state: None, device=CPU, batch_size=4, rate=1e-2, resume=None):
    optimizer, scheduler = make_optimizer(model, **OPTIMIZER | {'learning_rate': rate, 'weight_decay': 5e-4})
    return train(
        model,
        batches(Pairs(x), batch_size=batch_size, shuffle=True, seed=0),
        batches(Pairs(x[:8]), batch_size=batch_size),
        loss,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=epochs,
        n_epochs_stop=100,
        device=device,
        save=save,
        resume=resume,
    )
