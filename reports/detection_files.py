"""The files of the detections in a recording."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd

from recordings.checks import training_warnings
from recordings.layout import Layout
from recordings.marker_files import MARKER_FILE, NewClass, write_marker_classes
from recordings.reading import Recording
from reports.detection_page import write_report
from reports.detections_folder import output_hashes
from reports.dipole import coordinates, interpolated_channels
from reports.event_residuals import EventResidual
from reports.exchange import print_derivative, write_anywave
from reports.foci import Focus, find_foci
from reports.recording_detections import RecordingDetections, bad_seconds
from utils import write_json, writing

UNITS = {
    'bad segments': 's from the first sample of the recording: onset, end',
    'onset, duration': 's, onset from the first sample of the recording, at the peak of the field power',
    'sampling rate, high_pass, low_pass, notch': 'Hz',
    'position': 'm',
    'confidence volume': 'm^3',
    'moment': 'A m',
    'signal': 'T',
    'threshold, proba': 'probability',
}


# Colours of the classes of the groups, which CTF's programs know.
COLORS = ('red', 'blue', 'orange', 'magenta', 'cyan', 'yellow', 'purple', 'brown')


class MarkerStyle(NamedTuple):
    """Name and colour of the class of markers of the detections, and whether each group gets a class of its own."""

    name: str
    color: str
    per_cluster: bool


# --------------------------------------------------------------------------------------------- messages
def recording_warnings(blocks: list[Recording], compensation: set[int], window_length: int) -> list[str]:
    """Warnings of a recording: of its own faults, and of its differences from the recordings of the run.

    Parameters
    ----------
    compensation : set of int
        Compensation grades of the run's recordings.
    window_length : int
        Samples of a window of the run.
    """
    warnings = [warning for block in blocks for warning in block.facts['warnings']]
    warnings += training_warnings(blocks[0].facts['compensation'], compensation)
    if min(block.layout.lengths(block.info['sfreq']).min() for block in blocks) < window_length:
        warnings.append('continuous parts shorter than a window are scored with mirror images of themselves')
    return list(dict.fromkeys(warnings))


def bad_segment_warnings(detections: RecordingDetections, drop: bool) -> list[str]:
    """Warning of detections in segments marked bad: whether they are left out or marked."""
    n_bad = detections.events['bad'].sum()
    if not n_bad:
        return []
    treatment = 'left out' if drop else 'marked in the column bad'
    return [f'{n_bad} detections lie in segments marked bad and are {treatment} (drop_bad_segments)']


def print_result(detections: RecordingDetections, folder: Path, seconds: tuple[float, float, float]) -> None:
    """Print the number of detections, and how long reading, detection and writing took, in s."""
    recorded = detections.seconds
    n_events = len(detections.events)
    reading, scoring, writing_files = seconds
    interpolated = interpolated_channels(detections.blocks)
    print(
        f'{detections.name}: {n_events} detections in {recorded / 60:.2f} min ({60 * n_events / recorded:.1f} per '
        f'minute); interpolated: {", ".join(interpolated) or "none"}; in {folder}\n'
        f'  {recorded / sum(seconds):.1f} times faster than real time: reading {reading:.1f} s, '
        f'detection {scoring:.1f} s, writing {writing_files:.1f} s'
    )


# --------------------------------------------------------------------------------------------- all files
def write_all(
    detections: RecordingDetections,
    folder: Path,
    made_with: dict,
    marker: MarkerStyle,
    residuals_of: Callable[[Recording, np.ndarray], list[EventResidual]],
) -> RecordingDetections:
    """Group the events of a recording and write the files of its detections, detections.json last.

    Parameters
    ----------
    detections : RecordingDetections
    folder : path
        An empty folder.
    made_with : dict
        What detections.json says of the run, and the warnings.
    marker : MarkerStyle
    residuals_of : function
        For the page, see `write_report`.

    Returns
    -------
    RecordingDetections
        With the groups.
    """
    detections, foci = find_foci(detections)
    layout, events = detections.blocks[0].layout, detections.events
    onsets = events['onset'].to_numpy()
    durations = np.zeros(len(onsets))
    with writing(folder / 'probabilities.csv') as temporary:
        detections.subwindows.round({'onset': 6, 'duration': 6}).to_csv(temporary, index=False)
    further = events[
        [name for name in ('bad', 'uncertainty', 'cluster') if name in events]
    ]  # of an ensemble, all three
    write_detections(folder / 'detections.csv', onsets, durations, events['proba'].to_numpy(), further)
    stem = layout.path.resolve().stem if layout.path.suffix != '.pkl' else folder.name
    names = class_names(events['cluster'], marker)
    extras = events[['proba', 'cluster']].assign(bad=events['bad'].astype(int)).to_dict('records')
    write_annotations(folder / f'{stem}-annot.fif', onsets, durations, names, layout, extras)
    write_anywave(folder / f'{stem}_anywave.mrk', events, names)
    if layout.trial:
        own_file = layout.path / MARKER_FILE
        source = own_file if own_file.exists() else None
        write_marker_classes(folder / MARKER_FILE, marker_classes(events, marker), layout, source=source)
    write_report(detections, folder, made_with, foci, residuals_of)
    described = describe_detections(detections, made_with, foci)
    write_json(folder / 'detections.json', described | {'files': output_hashes(folder), 'marker': marker.name})
    return detections


def write_elsewhere(
    path: Path, detections: RecordingDetections, marker: MarkerStyle, *, into_recording: bool, derivatives: str | None
) -> None:
    """Write detections outside of their folder: into the CTF recording `path`, and as derivatives of BIDS."""
    if into_recording and detections.blocks[0].layout.trial:
        write_into_recording(path, detections, marker)
    if derivatives:
        print_derivative(derivatives, path, detections.events, class_names(detections.events['cluster'], marker))


def write_into_recording(path: Path, detections: RecordingDetections, marker: MarkerStyle) -> None:
    """Merge the detections into the marker file of a CTF recording, and print where the earlier file is."""
    path = path / MARKER_FILE
    backup = write_marker_classes(path, marker_classes(detections.events, marker), detections.blocks[0].layout)
    earlier = f', the file before kept as {backup.name}' if backup else ''
    print(f'{path}: class {marker.name} written{earlier}')


def class_names(clusters: pd.Series, marker: MarkerStyle) -> list[str]:
    """Name of the class of markers of each event; with classes per group, <name>_<number>."""
    return [f'{marker.name}_{number}' if number and marker.per_cluster else marker.name for number in clusters]


def marker_classes(events: pd.DataFrame, marker: MarkerStyle) -> list[NewClass]:
    """The classes of markers of events (with onset and cluster), that of single events first; it may be empty."""
    names = np.array(class_names(events['cluster'], marker), dtype=object)
    onsets = events['onset'].to_numpy()
    numbers = range(1, events['cluster'].max() + 1) if marker.per_cluster and len(events) else ()
    colors = {f'{marker.name}_{number}': COLORS[(number - 1) % len(COLORS)] for number in numbers}
    return [
        NewClass(name, color, onsets[names == name]) for name, color in ({marker.name: marker.color} | colors).items()
    ]


def describe_detections(detections: RecordingDetections, made_with: dict, foci: list[Focus]) -> dict:
    """The content of detections.json but for files and marker; arguments as in `write_all`."""
    block, minutes, events = detections.blocks[0], detections.minutes, detections.events
    layout, facts = block.layout, block.facts
    return {
        'recording': layout.path.resolve().name,
        'block': None if layout.path.suffix != '.pkl' else facts['file'],
        'warnings': made_with['warnings'],
        **made_with,
        'system': facts['system'],
        'compensation': facts['compensation'],
        'interpolated channels': interpolated_channels(detections.blocks),
        'sampling rate': layout.sfreq,
        'continuous parts': detections.n_parts,
        'minutes': minutes,
        'detections': len(events),
        'detections per minute': len(events) / minutes,
        'detections in bad segments': events['bad'].sum(),
        'bad segments': bad_seconds(detections.blocks),
        'groups': [describe_focus(focus, minutes) for focus in foci],
        'events in no group': (events['cluster'] == 0).sum(),
        'coordinates': coordinates(block.info),
        'units': UNITS,
    }


def describe_focus(focus: Focus, minutes: float) -> dict:
    """What detections.json says of a group of events in a recording of so many minutes."""
    return {
        'cluster': focus.number,
        'events': focus.n_events,
        'events per minute': focus.n_events / minutes,
        'mean probability': focus.proba,
        'position': focus.dipole.position,
        'orientation': focus.dipole.orientation,
        'moment': focus.dipole.moment,
        'goodness of fit': focus.dipole.goodness,
        'confidence volume': focus.dipole.confidence,
    }


# ------------------------------------------------------------------------------------------ review files
def write_detections(
    path: str | Path,
    onsets: np.ndarray,
    durations: np.ndarray,
    probas: np.ndarray,
    further: pd.DataFrame | None = None,
) -> None:
    """Write detections.csv, one row per event.

    Parameters
    ----------
    path : path
    onsets, durations : array (n_events,)
        In s from the recording's first sample, as MNE's browser counts.
    probas : array (n_events,)
        Probabilities.
    further : DataFrame (n_events rows), optional
        Columns to write behind these; True becomes 1.
    """
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
    if further is not None:
        booleans = further.select_dtypes(bool).columns
        table = table.join(further.astype(dict.fromkeys(booleans, np.int64)).reset_index(drop=True))
    with writing(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f')


def write_annotations(
    path: str | Path,
    onsets: np.ndarray,
    durations: np.ndarray,
    label: str | list[str],
    layout: Layout,
    extras: list[dict] | None = None,
) -> None:
    """Write MNE annotations, to set on the recording or to add to its own.

    Parameters
    ----------
    path : path
        A name that ends in -annot.fif.
    onsets, durations : array (n_events,)
        In s from the recording's first sample, as MNE's browser counts.
    label : str or list of str
        Description of every annotation.
    layout : Layout
        Of the recording.
    extras : list of dict, optional
        Further facts of every annotation, which MNE keeps with it.
    """
    # Annotations with a date count from that date, those without from the first sample.
    start = layout.first_time if layout.meas_date else 0.0
    onsets = np.asarray(onsets) + start
    annotations = mne.Annotations(onsets, durations, label, orig_time=layout.meas_date, extras=extras)
    with writing(path) as temporary:
        annotations.save(temporary, overwrite=True, verbose='error')
