"""The record of the split in params.json, by which other runs know who was seen and whether the windows changed."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd

from runs.source import Source
from runs.split_data import SplitData
from timeseries_dataset import PARTS

N_COMPARED = 8  # windows of a patient that tell whether the signal is still the same: reading all takes minutes


def split_record(mode: str, split: SplitData, source: Source | None, settings: SimpleNamespace) -> dict:
    """The content of 'split' in params.json.

    Returns
    -------
    dict
        by : str, what is kept apart; train, validation, test : list of int, the patients; blocks : list of (subject,
        block, part), of a split by block; started from : str or None, the source run; seen before : list of int,
        patients that earlier runs have seen; autoencoder saw annotations : bool, whether annotations chose its
        windows; windows, signal : str, see `windows_digest` and `signal_digest`.
    """
    only_ae = set(split.ae_table.loc[split.ae_table['part'] == 'train', 'subject'].tolist())
    blocks = split.clf_table[['subject', 'block', 'part']].drop_duplicates() if split.split_by == 'block' else None
    annotated = settings.classifier != 'threshold'
    if source:
        annotated = source.split['autoencoder saw annotations'] or (annotated and mode == 'ft')
    return {
        'by': split.split_by,
        **{part: split.patients_of(part) for part in PARTS},
        'train': sorted(only_ae | set(split.patients_of('train'))),
        'blocks': [] if blocks is None else blocks.values.tolist(),
        'started from': source.run.name if source else None,
        'seen before': sorted(source.seen) if source else [],
        'autoencoder saw annotations': annotated,
        'windows': windows_digest(split),
        'signal': signal_digest(split),
    }


def windows_digest(split: SplitData) -> str:
    """SHA-256 of the tables of windows, labels and parts: it tells whether they are still the same."""
    digest = hashlib.sha256()
    for table in (split.ae_table, split.clf_table, *split.subwindows.values()):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def signal_digest(split: SplitData) -> str:
    """SHA-256 of windows spread evenly over those of every patient: windows made anew otherwise have another."""
    digest = hashlib.sha256()
    for patient_windows in (*split.ae_patients, *split.clf_patients):
        windows = patient_windows.windows
        for index in np.unique(np.linspace(0, len(windows) - 1, N_COMPARED).astype(int)):
            digest.update(np.ascontiguousarray(windows[index]).tobytes())
    return digest.hexdigest()
