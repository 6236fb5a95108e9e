"""The files of the detections in a recording."""

from pathlib import Path

import mne
import numpy as np
import pandas as pd

from recordings.checks import training_warnings
from recordings.layout import Layout
from recordings.marker_files import MARKER_FILE, write_marker_file
from recordings.reading import Recording
from reports.detection_page import write_report
from reports.detections_folder import output_hashes
from reports.dipole import DipoleFit, coordinates, interpolated_channels, locate
from reports.recording_detections import RecordingDetections, bad_seconds
from utils import write_json, writing

UNITS = {
    'bad segments': 's from the first sample of the recording: onset, end',
    'onset, duration': 's, onset from the first sample of the recording, at the peak of the field power',
    'sampling rate, high_pass, low_pass, notch': 'Hz',
    'position': 'm',
    'moment': 'A m',
    'signal': 'T',
    'threshold, proba': 'probability',
}


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
def write_all(detections: RecordingDetections, folder: Path, made_with: dict, marker: dict[str, str]) -> None:
    """Write the files of a recording's detections, detections.json last.

    Parameters
    ----------
    detections : RecordingDetections
    folder : path
        An empty folder.
    made_with : dict
        What detections.json says of the run, and the warnings.
    marker : dict
        name and color of the class of markers.
    """
    layout, events = detections.blocks[0].layout, detections.events
    onsets = events['onset'].to_numpy()
    durations = np.zeros(len(onsets))
    with writing(folder / 'probabilities.csv') as temporary:
        detections.subwindows.round({'onset': 6, 'duration': 6}).to_csv(temporary, index=False)
    probas, bad = events['proba'].to_numpy(), events['bad'].to_numpy()
    uncertainty = events['uncertainty'].to_numpy() if 'uncertainty' in events else None
    write_detections(folder / 'detections.csv', onsets, durations, probas, bad, uncertainty)
    stem = layout.path.resolve().stem if layout.path.suffix != '.pkl' else folder.name
    write_annotations(folder / f'{stem}-annot.fif', onsets, durations, marker['name'], layout)
    if layout.trial:
        own_file = layout.path / MARKER_FILE
        source = own_file if own_file.exists() else None
        write_marker_file(folder / MARKER_FILE, onsets, layout, source=source, **marker)
    fit = locate(detections)
    write_report(detections, folder, made_with, fit)
    files = output_hashes(folder)
    write_json(folder / 'detections.json', describe_detections(detections, files, made_with, marker['name'], fit))


def describe_detections(
    detections: RecordingDetections, files: dict[str, str], made_with: dict, marker_name: str, fit: DipoleFit | None
) -> dict:
    """The content of detections.json; `files` from `output_hashes`, the rest as in `write_all`."""
    block, minutes, events = detections.blocks[0], detections.minutes, detections.events
    layout, facts = block.layout, block.facts
    return {
        'recording': layout.path.resolve().name,
        'files': files,
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
        'marker': marker_name,
        'dipole': describe_fit(fit, coordinates(block.info)) if fit else None,
        'units': UNITS,
    }


def describe_fit(fit: DipoleFit, origin: str) -> dict:
    """What detections.json says of the dipole; `origin` from `coordinates`."""
    return {
        'events averaged': fit.n_events,
        'position': fit.dipole.position,
        'orientation': fit.dipole.orientation,
        'moment': fit.dipole.moment,
        'goodness of fit': fit.dipole.goodness,
        'coordinates': origin,
    }


# ------------------------------------------------------------------------------------------ review files
def write_detections(
    path: str | Path,
    onsets: np.ndarray,
    durations: np.ndarray,
    probas: np.ndarray,
    bad: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
) -> None:
    """Write detections.csv, one row per event.

    Parameters
    ----------
    path : path
    onsets, durations : array (n_events,)
        In s from the recording's first sample, as MNE's browser counts.
    probas : array (n_events,)
        Probabilities.
    bad : array (n_events,), optional
        1 for events in segments marked bad.
    uncertainty : array (n_events,), optional
        Standard deviation of the probability over the members of an ensemble.
    """
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
    if bad is not None:
        table['bad'] = np.asarray(bad, dtype=np.int64)
    if uncertainty is not None:
        table['uncertainty'] = uncertainty
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
