"""Pictures for which the windows of a run are looked at again: errors beside labels, contrast, latent maps, traces."""

import functools
from types import SimpleNamespace

import numpy as np
import torch

from classification import Hidden, gather, latent_statistics, shown_errors
from data_raw import channel_names, ctf275_info
from evaluation import Evaluation
from run_data import Data, windows_of_part, zscored
from saving_functions import RunDirectory, plot_contrast, plot_error_maps, plot_latent, plot_topographies, plot_traces
from timeseries_dataset import WindowDataset, batches


def show_errors(
    run: RunDirectory,
    evaluation: Evaluation,
    threshold: float,
    autoencoder: torch.nn.Module,
    data: Data,
    hidden: Hidden | None,
    settings: SimpleNamespace,
    device: torch.device,
) -> None:
    """Pictures for which the windows are looked at again: errors beside labels, contrast, latent maps, topographies,
    and traces of hits, false alarms and misses."""
    n_times, n_sub_times = data.clf_patients[0].windows.shape[2], data.shape.n_times
    rows = data.clf_table[data.clf_table['part'] == 'test'].reset_index(drop=True)
    labels_t = np.stack(
        [data.clf_patients[p].labels_t[w] for p, w in zip(rows['patient'], rows['window'], strict=True)]
    )
    dataset = WindowDataset(data.clf_patients, rows, zscore=zscored(settings.standardize))
    autoencoder.eval()

    def look(subject, block, sample):
        """The window whose centre is nearest, its errors, and the sample's place in it."""
        of_block = rows[(rows['subject'] == subject) & (rows['block'] == block)]
        row = (of_block['timing'] - sample).abs().idxmin()
        start = round(rows['timing'][row] - n_times / 2)
        x = dataset.__getitems__([row])[0]
        with torch.no_grad():
            errors = shown_errors(autoencoder, x.to(device), data.shape, hidden).cpu().numpy()[0]
        return row, start, x[0, 0].numpy(), errors

    names = channel_names()
    predictions = evaluation.predictions
    spikes, events = evaluation.spikes, evaluation.events
    if len(spikes):
        maps, seen = [], set()
        for _, spike in spikes.iloc[np.unique(np.linspace(0, len(spikes) - 1, 12).astype(int))].iterrows():
            row, start, _, errors = look(*spike[['subject', 'block', 'sample']])
            if row not in seen and len(maps) < 3:
                seen.add(row)
                judged = predictions[
                    (predictions['subject'] == spike['subject'])
                    & (predictions['block'] == spike['block'])
                    & predictions['timing'].between(start, start + n_times)
                ]
                title = f'patient {spike["subject"]}, block {spike["block"]}, {start / settings.sfreq:.1f} s'
                maps.append((title, errors[0], labels_t[row], (judged['timing'] - start, judged['proba'])))
        plot_error_maps(run, maps, names, settings.sfreq, threshold)

    inner = slice(data.shape.border, data.shape.border + data.shape.n_sub * n_sub_times)
    extract = lambda model, x: shown_errors(model, x, data.shape, hidden).mean(dim=2)  # noqa: E731
    over_time = gather(autoencoder, windows_of_part(data, 'test', settings), extract, device, 'contrast')
    plot_contrast(run, over_time[:, :, inner], labels_t[:, inner].astype(bool), level_names(settings))

    latents, labels = {}, {}
    for part in ('train', 'test'):
        of_part = data.clf_table[data.clf_table['part'] == part]
        chosen = np.unique(np.linspace(0, len(of_part) - 1, 300).astype(int))
        some = WindowDataset(data.clf_patients, of_part.iloc[chosen], zscore=zscored(settings.standardize))
        extract = functools.partial(latent_statistics, shape=data.shape, levels=[])
        latents[part] = gather(autoencoder, batches(some, batch_size=settings.batch_size), extract, device, 'latent')
        judged = data.subwindows[part]['test'].to_numpy().reshape(-1, data.shape.n_sub)
        labels[part] = judged[chosen].ravel()
    plot_latent(run, latents, labels)

    shown = []
    for title, table in (
        ('found', events[events['hit'] == 1].sort_values('proba', ascending=False)),
        ('false alarm', events[events['hit'] == 0].sort_values('proba', ascending=False)),
        ('missed', spikes[spikes['hit'] == 0]),
    ):
        for _, one in table.head(3).iterrows():
            subject, block, sample = one[['subject', 'block', 'sample']].astype(int)
            _, start, x, errors = look(subject, block, sample)
            near = spikes[(spikes['subject'] == subject) & (spikes['block'] == block)]['sample'] - start
            heading = f'{title}: patient {subject}, block {block}, {sample / settings.sfreq:.2f} s'
            shown.append((title, heading, x, errors[0], sample - start, near.tolist()))
    plot_traces(run, shown, settings.sfreq)
    plot_topographies(run, [one for one in shown if one[0] != 'missed'], ctf275_info(settings.sfreq), n_sub_times // 4)


def level_names(settings: SimpleNamespace) -> list[str]:
    """Names of the (reconstruction, target) pairs of the model."""
    if settings.model != 'wavelets':
        return ['signal']
    n_levels = len(settings.filters)
    details = [f'detail {k}: {settings.sfreq / 2 ** (k + 1):.3g}-{settings.sfreq / 2**k:.3g} Hz'
               for k in range(1, n_levels + 1)]  # fmt: skip
    return ['signal', *details, f'approximation: below {settings.sfreq / 2 ** (n_levels + 1):.3g} Hz']
