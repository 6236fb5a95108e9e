"""Simulated cohorts to try detectors on: patients of one kind or several, their windows, annotations and true spikes.

What is found on one kind of simulation may be a property of that kind. So there are five, see `kinds.KINDS`.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from kinds import EEG, KINDS, kind_patient, share_people

from classifiers.subwindows import SubwindowShape, subwindow_shape
from data_processing import cut_block, time_labels
from recordings.channels import N_CHANNELS
from recordings.scaling import scale_window
from recordings.scenes import PatientSettings
from recordings.window_settings import WindowSettings
from timeseries_dataset import PARTS
from utils import SettingError

SPIKE_RATE = 5.0  # per minute: 2 to 3 % of the sub-windows hold a part of a spike


class CohortSize(NamedTuple):
    """How many patients train, validate and test, and what is recorded of each."""

    train: int
    validation: int
    test: int
    n_blocks: int
    block_seconds: float


class Part(NamedTuple):
    """The windows of some patients of a cohort, in recording order.

    Attributes
    ----------
    windows : float32 array (n, 274, n_times)
    signals : list of float32 arrays (274, n_samples)
        The blocks, scaled as the windows are.
    annotated, truth : int arrays (n * n_subwindows,)
        Whether a sub-window holds a part of a spike: to the annotation, in fact.
    block : int array (n * n_subwindows,)
    kind : str array (n * n_subwindows,)
        One of `KINDS`.
    gain : float32 array (n,)
        The std of a window's block over that of the patient: windows times this are scaled by the patient.
    places : DataFrame
        subject, block, timing, field and peak of every sub-window, see `evaluation.merge_events`.
    spikes : DataFrame
        subject, block and sample of the true spikes that lie in a sub-window.
    """

    windows: np.ndarray
    signals: list[np.ndarray]
    annotated: np.ndarray
    truth: np.ndarray
    block: np.ndarray
    kind: np.ndarray
    gain: np.ndarray
    places: pd.DataFrame
    spikes: pd.DataFrame


class Cohort(NamedTuple):
    """Three sets of patients, and how their windows are cut."""

    train: Part
    validation: Part
    test: Part
    sub: SubwindowShape
    margin: int


def chosen_size(sizes: dict[str, Any], name: str = 'small') -> Any:
    """The size of a benchmark by its word on the command line.

    Raises
    ------
    SettingError
        There is no such size.
    """
    if name not in sizes:
        raise SettingError(f'unknown size {name!r}: one of {", ".join(sizes)}')
    return sizes[name]


def simulate_cohort(
    snr: float,
    seed: int,
    size: CohortSize,
    settings: SimpleNamespace,
    kinds: str | Sequence[str] = tuple(KINDS),
    eeg: str | Path = EEG,
) -> Cohort:
    """Simulate patients who differ in rate and strength of their spikes, in other transients and in annotation.

    Parameters
    ----------
    snr : float
        Mean signal-to-noise ratio of a patient's spikes, see `simulate_patient`; patients differ around it.
    seed : int
    size : CohortSize
    settings : SimpleNamespace
        Of params.py.
    kinds : str or sequence of str
        One of `KINDS` or several, which take turns from patient to patient.
    eeg : path
        Folder of the EDF files that drive the background of the kind 'eeg'.

    Raises
    ------
    SettingError
        Sub-windows that do not fill the inner part of a window.
    DataError
        The recordings of a kind are absent: `kinds.present` tells beforehand.
    """
    made_with = dataclasses.replace(
        WindowSettings.of_run(settings, normal_only=False), standardize='block', reject_artefacts=False
    )
    shape = made_with.shape
    sub = subwindow_shape(shape.window_length, shape.border, round(settings.subwindow_size * settings.sfreq))
    if sub.n_subwindows * sub.subwindow_length != shape.hop:
        raise SettingError(f'subwindow_size = {settings.subwindow_size} leaves a rest of the inner part of a window')
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    people = share_people(eeg, seed, settings.sfreq) if 'eeg' in kinds else {}
    made, subject = [], 0
    for part in PARTS:
        blocks = []
        for _ in range(getattr(size, part)):
            kind, subject = kinds[subject % len(kinds)], subject + 1
            patient = _draw_patient(subject, seed, snr, size, settings.sfreq)
            blocks += _blocks_of_patient(kind, people.get(part), patient, made_with, sub)
        made.append(_joined(blocks))
    return Cohort(*made, sub, shape.half_pulse)


def _draw_patient(subject, seed, snr, size, sfreq):
    """Draw what a patient is like, and how the annotator is."""
    rng = np.random.default_rng([seed, subject, 1])
    return PatientSettings(
        subject=subject,
        n_blocks=size.n_blocks,
        block_seconds=size.block_seconds,
        spike_rate=SPIKE_RATE * rng.lognormal(0, 0.2),
        snr=snr * rng.lognormal(0, 0.3),
        distractor_rate=rng.uniform(1, 7),
        annotation_jitter=rng.uniform(0.005, 0.025),
        annotation_missed=rng.uniform(0.05, 0.3),
        sfreq=sfreq,
        seed=seed,
    )


def _blocks_of_patient(kind, eeg, patient, made_with, sub):
    """Simulate a patient and cut the windows; yields a `Part` of every block."""
    data, truth = kind_patient(kind, eeg, patient)
    spread = np.sqrt(np.mean([signal.var() for signal in data['meg']]))
    for block, (signal, events) in enumerate(zip(data['meg'], data['events'], strict=True)):
        cut, _ = cut_block(signal, events, made_with)
        n = len(cut.windows) * sub.n_subwindows
        samples = truth.loc[truth['block'] == block, 'sample'].to_numpy()
        samples = samples[(samples >= sub.border) & (samples < sub.border + n * sub.subwindow_length)]
        starts = sub.border + sub.subwindow_length * np.arange(n)
        field = in_subwindows(cut.windows, sub).std(axis=1)
        of_block = {'subject': patient.subject, 'block': block}
        yield Part(
            windows=cut.windows,
            signals=[((signal - signal.mean()) / signal.std()).astype(np.float32)],
            annotated=_marked(cut.labels_t, sub),
            truth=_marked(time_labels(len(cut.windows), samples, made_with.shape), sub),
            block=np.full(n, patient.subject * patient.n_blocks + block),
            kind=np.full(n, kind),
            gain=np.full(len(cut.windows), signal.std() / spread, dtype=np.float32),
            places=pd.DataFrame(
                of_block
                | {
                    'timing': starts + sub.subwindow_length / 2,
                    'field': field.max(axis=1),
                    'peak': starts + field.argmax(axis=1),
                }
            ),
            spikes=pd.DataFrame(of_block | {'sample': samples}),
        )


def _marked(labels_t, sub):
    """Whether (n * n_subwindows,) a sub-window holds a marked sample, as 0 or 1."""
    inner = labels_t[:, sub.border : sub.border + sub.n_subwindows * sub.subwindow_length]
    return inner.reshape(-1, sub.subwindow_length).any(axis=1).astype(int)


def _joined(parts):
    """One part of several, in their order."""
    tables = functools.partial(pd.concat, ignore_index=True)
    join = {'signals': lambda lists: list(itertools.chain(*lists)), 'places': tables, 'spikes': tables}
    return Part(
        **{name: join.get(name, np.concatenate)([getattr(part, name) for part in parts]) for name in Part._fields}
    )


def rescaled(cohort: Cohort, scaling: str) -> Cohort:
    """The cohort with windows scaled otherwise than by their block; `places` stay.

    By themselves ('window'), or by their patient ('patient': the std of all blocks about their means).
    """

    def of(part):
        if scaling == 'window':
            return part._replace(windows=np.stack([scale_window(window).astype(np.float32) for window in part.windows]))
        return part._replace(windows=part.windows * part.gain[:, None, None])

    return cohort._replace(**{name: of(getattr(cohort, name)) for name in PARTS})


def in_subwindows(windows: np.ndarray, sub: SubwindowShape) -> np.ndarray:
    """(n * n_subwindows, 274, n_times): the sub-windows of windows (n, 274, times) as they are."""
    inner = windows[..., sub.border : sub.border + sub.n_subwindows * sub.subwindow_length]
    pieces = inner.reshape(len(inner), N_CHANNELS, sub.n_subwindows, sub.subwindow_length)
    return pieces.swapaxes(1, 2).reshape(-1, N_CHANNELS, sub.subwindow_length)


def masked_segments(windows: np.ndarray, cohort: Cohort) -> np.ndarray:
    """The masked segments of windows (n, 274, n_times): (n, 274, n_subwindows, n_masked)."""
    starts = [
        cohort.sub.border + k * cohort.sub.subwindow_length - cohort.margin for k in range(cohort.sub.n_subwindows)
    ]
    n_masked = cohort.sub.subwindow_length + 2 * cohort.margin
    return np.stack([windows[..., start : start + n_masked] for start in starts], axis=2)
