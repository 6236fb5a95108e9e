"""Detections that a reviewer can open: CSV, CTF marker file, MNE annotations, and where the spikes come from."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd

from create_data_raw import Layout, MarkerClass, read_marker_file, sphere_centre
from utils import DataError, writing

MARKER_TITLE = b'NUMBER OF MARKERS:'


# ------------------------------------------------------------------------------------------ review files
def write_detections(path: str | Path, onsets: np.ndarray, durations: np.ndarray, probas: np.ndarray) -> None:
    """Write detections.csv, one row per event: `onset` and `duration` in s, as MNE's browser counts, and `probas`."""
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
    with writing(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f')


def write_annotations(path: str | Path, onsets: np.ndarray, durations: np.ndarray, label: str, layout: Layout) -> None:
    """Write MNE annotations (a name that ends in -annot.fif), to set on the recording or to add to its own.

    `onsets` are in s from the recording's first sample, as MNE's browser counts.
    """
    # Annotations with a date count from that date, those without from the first sample.
    start = layout.first_time if layout.meas_date else 0.0
    notes = mne.Annotations(np.asarray(onsets) + start, durations, label, orig_time=layout.meas_date)
    with writing(path) as temporary:
        # MNE insists on its ending, which the temporary name lacks.
        named = temporary.with_name(temporary.name + '-annot.fif')
        try:
            notes.save(named, verbose='error')
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def write_marker_file(
    path: str | Path, onsets: np.ndarray, layout: Layout, *, name: str, color: str, source: str | Path | None = None
) -> Path | None:
    """Write a class of markers into a CTF marker file.

    The other classes of an existing file stay byte for byte; a class of the same name is replaced in its place. The
    existing file is kept under the next free name MarkerFile.mrk.1, .2, ...

    Parameters
    ----------
    path : path
        The marker file to write.
    onsets : array
        In s from the recording's first sample.
    layout : Layout
        Of the CTF recording.
    name, color : str
        Of the class.
    source : path, optional
        Marker file whose classes are taken where `path` does not exist yet.

    Returns
    -------
    Path or None
        The backup, where there was a file.

    Raises
    ------
    DataError
        The existing file is faulty (nothing is written), or the recording is no CTF recording.
    """
    path = Path(path)
    if layout.trial is None:
        raise DataError(f'{layout.path}: no CTF recording; its detections are in the CSV and -annot.fif files')
    existing = path if path.exists() else source
    if existing is None:
        head = f'PATH OF DATASET:\n{layout.path.resolve()}\n\n\n'.encode() + MARKER_TITLE + b'\n0\n\n\n'
        classes = []
    else:
        head, classes = read_marker_file(existing)
    end = head.splitlines(keepends=True)[0].lstrip(head.splitlines()[0])
    numbers = [_class_number(marker_class) for marker_class in classes]
    own = next((i for i, marker_class in enumerate(classes) if marker_class.name == name), len(classes))
    number = numbers[own] if own < len(classes) else max(numbers, default=0) + 1
    contents = [marker_class.content for marker_class in classes]
    contents[own : own + 1] = [_class_content(name, color, number, onsets, layout).replace(b'\n', end)]
    if own and not contents[own - 1].endswith((b'\n', b'\r')):
        contents[own] = end + contents[own]
    lines = head.splitlines(keepends=True)
    count = [line.rstrip() for line in lines].index(MARKER_TITLE) + 1
    lines[count] = lines[count].replace(lines[count].strip(), str(len(contents)).encode())

    backup = None
    if path.exists():
        backup = next(
            free for free in (path.with_name(f'{path.name}.{i}') for i in itertools.count(1)) if not free.exists()
        )
        with writing(backup) as temporary:
            temporary.write_bytes(path.read_bytes())
    with writing(path) as temporary:
        temporary.write_bytes(b''.join(lines) + b''.join(contents))
    return backup


def _class_number(marker_class: MarkerClass) -> int:
    words = [line.strip() for line in marker_class.content.splitlines()]
    number = words[words.index(b'CLASSID:') + 1] if b'CLASSID:' in words[:-1] else b''
    return int(number) if number.isdigit() else 0


def _class_content(name: str, color: str, number: int, onsets: np.ndarray, layout: Layout) -> bytes:
    n_samples, before_sync = layout.trial
    trials, samples = np.divmod(np.rint(np.sort(onsets) * layout.sfreq).astype(np.int64), n_samples)
    rows = [
        f'{trial:20d}\t\t\t\t{(sample - before_sync) / layout.sfreq:+20.12f}\n'
        for trial, sample in zip(trials, samples, strict=True)
    ]
    return (
        f'CLASSGROUPID:\n3\nNAME:\n{name}\nCOMMENT:\n\nCOLOR:\n{color}\nEDITABLE:\nYes\nCLASSID:\n{number}\n'
        f'NUMBER OF SAMPLES:\n{len(rows)}\nLIST OF SAMPLES:\nTRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n'
        f'{"".join(rows)}\n\n'
    ).encode()


# ---------------------------------------------------------------------------------- where spikes come from
class Source(NamedTuple):
    """A single equivalent dipole.

    Attributes
    ----------
    sample : int
        Sample of the average at which it was fitted.
    topography : array (274,)
        Field there, in tesla.
    position, orientation : array (3,)
        In metres, and of length 1: x to the right, y to the front, z up, in head coordinates where the recording has
        the head's position, else in those of the helmet.
    moment : float
        In A m.
    goodness : float
        Share of the field's power that the dipole explains, from 0 to 1.
    """

    sample: int
    topography: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    moment: float
    goodness: float


def average_events(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], before: int, after: int
) -> tuple[np.ndarray | None, int]:
    """Average the signal around events.

    Parameters
    ----------
    blocks : iterable of (array (274, n_samples), array (n_events,))
        Signal in tesla, and events in samples of it.
    before, after : int
        Samples before and after an event; events nearer to an end of their block are left out.

    Returns
    -------
    average : array (274, before + after + 1), or None without any event
    n_events : int
        Events averaged.
    """
    total, n_events = 0.0, 0
    for signal, events in blocks:
        for event in np.asarray(events, dtype=np.int64):
            if before <= event < signal.shape[1] - after:
                total = total + signal[:, event - before : event + after + 1].astype(np.float64)
                n_events += 1
    return (total / n_events, n_events) if n_events else (None, 0)


def fit_source(average: np.ndarray, info: mne.Info, interpolated: list[str], *, search: slice) -> Source:
    """Fit a single equivalent dipole to an average of events, at its peak, with MNE and a spherical head.

    Parameters
    ----------
    average : array (274, n_samples)
        In tesla.
    info : mne.Info
        Where the channels and the head were; the centre of the sphere is that of the sensors.
    interpolated : list of str
        Channels that say nothing of their own and are left out of the fit.
    search : slice
        Samples in which the peak, the largest std over channels, is looked for.
    """
    sample = int(np.arange(average.shape[1])[search][average[:, search].std(axis=0).argmax()])
    topography = average[:, sample]
    evoked = mne.EvokedArray(topography[:, None], info.copy(), verbose='error')
    evoked.info['bads'] = list(interpolated)
    sphere = mne.make_sphere_model(r0=sphere_centre(info), head_radius=None, verbose='error')
    dipole, _ = mne.fit_dipole(evoked, mne.make_ad_hoc_cov(info, verbose='error'), sphere, verbose='error')
    return Source(sample, topography, dipole.pos[0], dipole.ori[0], float(dipole.amplitude[0]), dipole.gof[0] / 100)
