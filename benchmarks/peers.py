"""Published networks for spikes in MEG, rebuilt to be compared with: FAMED, EMS-Net, BIOT and H-BIOT.

Written from the papers' descriptions, and from the layers and settings that H-BIOT's authors list for their own
versions of the other networks (README and settings file of github.com/Malchemis/HBIOT, commit 9b9424c, MIT licence).
No weights are taken from anywhere. What differs from the publications:

- all see 274 channels at the cohort's rate, and sub-windows of 200 ms (FAMED's paper: 1 s at 1 kHz);
- EMS-Net's first layer over channels has the same weights everywhere, as in H-BIOT's version (paper: weights of their
  own at each place);
- attention is linear in H-BIOT too, as in BIOT (the settings file of H-BIOT: full);
- FAMED is its classifier alone, without the network that marks single samples;
- sizes are those that two cores can train; the word `published` takes the published ones, for a GPU.

    python benchmarks/peers.py [tiny | small | published] [name=value ...]

trains them on cohorts of all kinds, with the product's `forest` on masked errors beside them, and writes peers.csv.
"""

import functools
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from baselines import network_scores
from cohort_steps import NARROW, SNR, on_residuals, residuals_of, train_autoencoder
from cohorts import Cohort, CohortSize, Part, chosen_size, in_subwindows, simulate_cohort
from kinds import present
from quality_table import figures_of
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional

from models.sfcn import SFCN
from runs.settings import read_command
from timeseries_dataset import PARTS
from training.losses import spike_loss
from utils import choose_device, run_script, set_seed, writing

# Recipe of H-BIOT's authors for all their networks: focal loss, Adam with weight decay, a rate that halves when the
# validation stops improving, an early stop on validation PR-AUC.
RATE, WEIGHT_DECAY, BATCH, PATIENCE, RATE_PATIENCE, FOCAL_GAMMA = 3e-4, 1e-4, 32, 5, 3, 2.0


class NetworkSize(NamedTuple):
    """Maps of FAMED and of the 2D CNN, size of the transformers, and most epochs of all."""

    width: int
    embedding: int
    heads: int
    depth: int
    most_epochs: int


SMALL, PUBLISHED = NetworkSize(8, 32, 4, 2, 12), NetworkSize(16, 256, 4, 4, 100)
# Networks, cohorts, patients: training, validation, test, blocks of each, seconds of a block.
SIZES = {
    'tiny': (SMALL._replace(most_epochs=2), 1, CohortSize(5, 5, 5, 1, 30)),
    'small': (SMALL, 1, CohortSize(10, 5, 10, 1, 40)),
    'published': (PUBLISHED, 5, CohortSize(30, 10, 20, 4, 180)),
}


def main(words: list[str]) -> None:
    """Train every network on every cohort, and print and write the table."""
    positional, settings = read_command(words, n_positional=1)
    network, n_cohorts, patients = chosen_size(SIZES, *positional)
    device, kinds = choose_device(settings.device), present()
    rows = []
    for seed in range(settings.seed, settings.seed + n_cohorts):
        set_seed(seed)
        cohort = simulate_cohort(SNR['medium'], seed, patients, settings, kinds)
        started = time.perf_counter()
        trained = train_autoencoder(cohort, NARROW, seed, device)
        ours = on_residuals(cohort, residuals_of(trained, cohort, device), seed)
        for name, outputs in itertools.chain([('forest on masked errors', ours)], peers(cohort, seed, device, network)):
            score = {'outputs': outputs, 'key': {part: getattr(cohort, part) for part in ('validation', 'test')}}
            rows.append({'cohort': seed, 'detector': name, 's': time.perf_counter() - started})
            rows[-1] |= figures_of(score, settings) | by_kind(outputs['test'], cohort.test)
            print(pd.Series(rows[-1]).to_frame().T.to_string(index=False, float_format='{:.3f}'.format), flush=True)
            started = time.perf_counter()
    table = pd.DataFrame(rows).groupby('detector', sort=False).mean().drop(columns='cohort')
    print(table.to_string(float_format='{:.3f}'.format))
    with writing(Path(settings.path_writing_data) / 'peers.csv') as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def by_kind(scores: np.ndarray, test: Part) -> dict:
    """PR-AUC, to the truth, on the test patients of each kind."""
    kinds = {kind: test.kind == kind for kind in np.unique(test.kind)}
    return {kind: average_precision_score(test.truth[rows], scores[rows]) for kind, rows in kinds.items()}


class EMSNet(nn.Module):
    """EMS-Net: features of each channel by one 1D network, features over neighbouring channels, weighed at the end.

    References
    ----------
    Zheng et al., "EMS-Net: a deep learning method for autodetecting epileptic magnetoencephalography spikes", IEEE
    Transactions on Medical Imaging 39, 2020.
    """

    def __init__(self, n_channels: int, n_times: int):
        super().__init__()

        def stage(n_in, n_out, kernel, last):
            """Two convolutions, then half of the times, or one."""
            layers = [
                nn.Conv1d(n_in, n_out, kernel), nn.LeakyReLU(0.1), nn.Conv1d(n_out, n_out, kernel), nn.LeakyReLU(0.1),
            ]  # fmt: skip
            return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1) if last else nn.MaxPool1d(2), nn.Dropout(0.5))

        def dense(n_in, n_out):
            return nn.Sequential(nn.Linear(n_in, n_out), nn.LeakyReLU(0.1))

        # The second stage of three convolutions of 3 would leave nothing of 30 samples: its last pair pads.
        self.local = nn.Sequential(stage(1, 16, 5, False), stage(16, 32, 3, False), _padded_pair(32, 64), nn.Flatten())
        self.local_dense = dense(64, 64)
        self.overall = nn.Sequential(
            nn.Conv2d(1, 16, (9, n_times)), nn.LeakyReLU(0.1), nn.Conv2d(16, 64, 1), nn.LeakyReLU(0.1),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), dense(64, 64),
        )  # fmt: skip
        self.weights = nn.Parameter(torch.ones(2))
        self.output = nn.Sequential(
            dense(64 * n_channels + 64, 512), nn.Dropout(0.5), dense(512, 256), dense(256, 128), nn.Linear(128, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of sub-windows (batch, 1, channels, times)."""
        local = self.local_dense(self.local(x.flatten(0, 2)[:, None])).reshape(len(x), -1)
        return self.output(torch.cat([self.weights[0] * local, self.weights[1] * self.overall(x)], dim=1))[:, 0]


def _padded_pair(n_in, n_out):
    return nn.Sequential(
        nn.Conv1d(n_in, n_out, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv1d(n_out, n_out, 3, padding=1),
        nn.LeakyReLU(0.1), nn.AdaptiveMaxPool1d(1), nn.Dropout(0.5),
    )  # fmt: skip


class _Excitation(nn.Module):
    """Weigh maps (batch, maps, height, width) by what is in them: each map as a whole, and each place in all maps."""

    def __init__(self, n_maps):
        super().__init__()
        self.of_maps = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(n_maps, n_maps // 4, 1), nn.ReLU(), nn.Conv2d(n_maps // 4, n_maps, 1)
        )
        self.of_places = nn.Conv2d(n_maps, 1, 1)

    def forward(self, x):
        return x * self.of_maps(x).sigmoid() + x * self.of_places(x).sigmoid()


class _Residual(nn.Module):
    """A bottleneck with a dilated convolution, excitation, and whole examples left out at random in training."""

    def __init__(self, n_in, n_out, stride, drop=0.2):
        super().__init__()
        middle = n_out // 4
        self.drop = drop
        self.path = nn.Sequential(
            nn.Conv2d(n_in, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, padding=2, dilation=2, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, n_out, 1, bias=False), nn.BatchNorm2d(n_out), _Excitation(n_out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        path = self.path(x)
        if self.training:
            is_on = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            path = path * is_on / (1 - self.drop)
        return functional.relu(path + self.shortcut(x))


class Famed(nn.Module):
    """The classifier of FAMED: a residual network over channels and times, dilated, with squeeze and excitation.

    References
    ----------
    Hirano et al., "Fully-automated spike detection and dipole analysis of epileptic MEG using deep learning", IEEE
    Transactions on Medical Imaging 41, 2022.
    """

    def __init__(self, width: int):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width // 2, 3, padding=1), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d((4, 1)),
        ]  # fmt: skip
        n_in = width
        for level in range(4):
            n_out = 4 * width * 2**level
            layers += [_Residual(n_in, n_out, 1 if level == 0 else 2), _Residual(n_out, n_out, 1)]
            n_in = n_out
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(n_in, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of sub-windows (batch, 1, channels, times)."""
        return self.layers(x)[:, 0]


class _Tokens(nn.Module):
    """A transformer over the tokens of one sub-window: stretches of 2/3 of it, half overlapping, channel by channel."""

    def __init__(self, n_channels, n_times, embedding, heads, depth):
        super().__init__()
        self.size = 2 * n_times // 3
        self.embed = nn.Linear(self.size, embedding)
        self.channel = nn.Parameter(0.02 * torch.randn(n_channels, 1, embedding))
        n_tokens = (n_times - self.size) // (self.size // 2) + 1
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, embedding))
        self.summary = nn.Parameter(0.02 * torch.randn(1, 1, embedding))
        self.transformer = transformer(embedding, heads, depth)

    def forward(self, x):
        """(n, channels, times) to tokens (n, 1 + channels * tokens of each, embedding), of which the first is free."""
        tokens = self.embed(x.unfold(-1, self.size, self.size // 2)) + self.channel + self.position
        return self.transformer(torch.cat([self.summary.expand(len(x), -1, -1), tokens.flatten(1, 2)], dim=1))


class _Layer(nn.Module):
    """A layer of a transformer, whose attention grows with the number of tokens and not with its square.

    Every token reads one summary per head, which weighs all tokens: the softmax is over what is asked for in the one,
    and over the tokens in the other (Shen et al., "Efficient attention", WACV 2021), as BIOT's authors have it.
    """

    def __init__(self, embedding, heads):
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(embedding)
        self.split = nn.Linear(embedding, 3 * embedding, bias=False)
        self.join = nn.Sequential(nn.Linear(embedding, embedding), nn.Dropout(0.2))
        self.then = nn.Sequential(
            nn.LayerNorm(embedding), nn.Linear(embedding, 4 * embedding), nn.GELU(), nn.Dropout(0.2),
            nn.Linear(4 * embedding, embedding), nn.Dropout(0.2),
        )  # fmt: skip

    def forward(self, tokens):
        """Tokens (n, tokens, embedding), each with what it reads of all."""
        queries, keys, values = self.split(self.before(tokens)).unflatten(2, (3, self.heads, -1)).unbind(2)
        summary = torch.einsum('nthi,nthj->nhij', keys.softmax(dim=1), values)
        tokens = tokens + self.join(torch.einsum('nthi,nhij->nthj', queries.softmax(dim=3), summary).flatten(2))
        return tokens + self.then(tokens)


def transformer(embedding: int, heads: int, depth: int) -> nn.Sequential:
    """Layers of attention, normalised before each step and at the end."""
    return nn.Sequential(*(_Layer(embedding, heads) for _ in range(depth)), nn.LayerNorm(embedding))


class Biot(nn.Module):
    """BIOT: tokens of every channel, with what channel and when, through a transformer; a token of its own is read.

    References
    ----------
    Yang, Westover and Sun, "BIOT: biosignal transformer for cross-data learning in the wild", NeurIPS 2023.
    """

    def __init__(self, n_channels: int, n_times: int, embedding: int, heads: int, depth: int):
        super().__init__()
        self.tokens = _Tokens(n_channels, n_times, embedding, heads, depth)
        self.output = nn.Sequential(nn.GELU(), nn.Linear(embedding, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of sub-windows (batch, 1, channels, times)."""
        return self.output(self.tokens(x[:, 0])[:, 0])[:, 0]


class HBiot(nn.Module):
    """H-BIOT: each sub-window of a window by the transformer of BIOT, then a second transformer over sub-windows.

    It reads the inner sub-windows and one more on either side. Of a sub-window, its own token and the mean of the
    others go on.

    References
    ----------
    github.com/Malchemis/HBIOT, poster of the same name.
    """

    def __init__(self, sub, n_channels: int, embedding: int, heads: int, depth: int):
        super().__init__()
        self.sub = sub
        self.tokens = _Tokens(n_channels, sub.subwindow_length, embedding, heads, depth)
        self.order = nn.Parameter(0.02 * torch.randn(sub.n_subwindows + 2, 1, embedding))
        self.transformer = transformer(embedding, heads, depth)
        self.output = nn.Sequential(nn.GELU(), nn.Linear(2 * embedding, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, n_subwindows) of windows (batch, 1, channels, times)."""
        length, n = self.sub.subwindow_length, self.sub.n_subwindows + 2
        first = self.sub.border - length
        pieces = x[:, 0, :, first : first + n * length].unflatten(-1, (n, length)).movedim(2, 1).flatten(0, 1)
        tokens = self.tokens(pieces)
        read = torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        read = read.unflatten(0, (len(x), n)) + self.order
        mixed = self.transformer(read.flatten(1, 2)).unflatten(1, (n, 2)).flatten(2)
        return self.output(mixed[:, 1:-1])[..., 0]


def peers(cohort: Cohort, seed: int, device: torch.device, size: NetworkSize):
    """Yield the name and {part: scores} of every network; the parts are validation and test."""
    shape = cohort.train.windows.shape[1], cohort.sub.subwindow_length
    raw = {name: in_subwindows(getattr(cohort, name).windows, cohort.sub) for name in PARTS}
    labels = {name: getattr(cohort, name).annotated for name in PARTS}
    transformer_size = size.embedding, size.heads, size.depth
    for name, make in {
        'FAMED': functools.partial(Famed, size.width),
        '2D CNN': functools.partial(SFCN, 1, *shape, width=size.width),
        'EMS-Net': functools.partial(EMSNet, *shape),
        'BIOT': functools.partial(Biot, *shape, *transformer_size),
    }.items():
        yield name, scores_of(make, raw, labels, seed, device, BATCH, size.most_epochs)
    windows = {name: getattr(cohort, name).windows for name in PARTS}
    labels = {name: of_part.reshape(-1, cohort.sub.n_subwindows) for name, of_part in labels.items()}
    make = functools.partial(HBiot, cohort.sub, shape[0], *transformer_size)
    # Windows hold as many labels as sub-windows: a batch has about as many of them.
    batch = max(BATCH // cohort.sub.n_subwindows, 1) * 2
    yield 'H-BIOT', scores_of(make, windows, labels, seed, device, batch, size.most_epochs)


def scores_of(make, maps: dict, labels: dict, seed: int, device: torch.device, batch: int, most_epochs: int) -> dict:
    """Scores {part: (n,)} by a network, trained until validation PR-AUC has not risen for `PATIENCE` epochs.

    `maps` are {part: (n, channels, times)}, and `labels` {part: (n,) or (n, n_subwindows)}.
    """
    set_seed(seed)
    network = make().to(device)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, 'max', 0.5, RATE_PATIENCE)
    share = labels['train'].mean()
    loss = spike_loss('focal', (1 - share) / share, focal_gamma=FOCAL_GAMMA)
    best, best_scores, waited = -1.0, {}, 0
    for _ in range(most_epochs):
        network.train()
        n = len(maps['train'])
        for chosen in np.array_split(rng.permutation(n), -(-n // batch)):
            x = torch.from_numpy(maps['train'][chosen])[:, None].to(device)
            value = loss(network, x, torch.from_numpy(labels['train'][chosen].astype(np.float32)).to(device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        validation = network_scores(network, maps['validation'], device).ravel()
        reached = average_precision_score(labels['validation'].ravel(), validation)
        scheduler.step(reached)
        waited += 1
        if reached > best:
            best, waited = reached, 0
            best_scores = {'validation': validation, 'test': network_scores(network, maps['test'], device).ravel()}
        if waited == PATIENCE:
            break
    return best_scores


if __name__ == '__main__':
    run_script(main, __doc__)
