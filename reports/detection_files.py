"""The files of the detections in a recording."""

from pathlib import Path

import mne
import numpy as np
import pandas as pd

from classification import Detections
from recordings.checks import training_warnings
from recordings.layout import Layout
from recordings.marker_files import MARKER_FILE, write_marker_file
from recordings.reading import Recording
from reports.detection_page import bad_seconds, in_bad_segments, seconds_of_events, seconds_of_subwindows, write_report
from reports.detections_folder import output_hashes
from reports.dipole import coordinates, interpolated_channels, locate
from utils import write_json, writing


def without_bad_segments(found: Detections, block: Recording) -> Detections:
    """What was found in a block, without the events in segments marked bad."""
    return found._replace(events=found.events[~in_bad_segments(block, found.events['sample'])])


def recording_warnings(blocks: list[Recording], trained_on: set[int], window_length: int) -> list[str]:
    """What is wrong with a recording, also beside the compensation grades and windows that the run was trained on."""
    warnings = [warning for block in blocks for warning in block.facts['warnings']]
    warnings += training_warnings(blocks[0].facts['compensation'], trained_on)
    if min(block.layout.lengths(block.info['sfreq']).min() for block in blocks) < window_length:
        warnings.append('continuous parts shorter than a window are judged with mirror images of themselves')
    return list(dict.fromkeys(warnings))


def bad_segment_warnings(blocks: list[Recording], found: list[Detections], drop: bool) -> list[str]:
    """Detections in segments marked bad, and what becomes of them: dropped, or marked."""
    n_bad = seconds_of_events(blocks, found)['bad'].sum()
    if not n_bad:
        return []
    fate = 'left out' if drop else 'marked in the column bad'
    return [f'{n_bad} detections lie in segments marked bad and are {fate} (drop_bad_segments)']


# ------------------------------------------------------------------------------------------ what is left
def write_all(name: str, folder: Path, blocks: list[Recording], found: list[Detections], made_with: dict, marker: dict):
    """Write the detections of a recording, detections.json last.

    Parameters
    ----------
    made_with : dict
        What detections.json says of the run.
    marker : dict
        name and color of the class of markers.
    """
    layout, facts = blocks[0].layout, blocks[0].facts
    events, subwindows = seconds_of_events(blocks, found), seconds_of_subwindows(blocks, found)
    onsets = events['onset'].to_numpy()
    with writing(folder / 'probabilities.csv') as temporary:
        subwindows.round({'onset': 6, 'duration': 6}).to_csv(temporary, index=False)
    zeros = np.zeros(len(onsets))
    write_detections(folder / 'detections.csv', onsets, zeros, events['proba'].to_numpy(), events['bad'].to_numpy())
    stem = layout.path.resolve().stem if layout.path.suffix != '.pkl' else folder.name
    write_annotations(folder / f'{stem}-annot.fif', onsets, np.zeros(len(onsets)), marker['name'], layout)
    if layout.trial:
        own = layout.path / MARKER_FILE
        write_marker_file(folder / MARKER_FILE, onsets, layout, source=own if own.exists() else None, **marker)
    minutes = sum(block.facts['seconds'] for block in blocks) / 60
    source, average, n_averaged = locate(blocks, found)
    write_report(name, folder, blocks, found, made_with, source, average, n_averaged)
    dipole = None
    if source:
        dipole = {
            'events averaged': n_averaged,
            'position': source.position,
            'orientation': source.orientation,
            'moment': source.moment,
            'goodness of fit': source.goodness,
            'coordinates': coordinates(blocks[0].info),
        }
    write_json(
        folder / 'detections.json',
        {
            'recording': layout.path.resolve().name,
            'files': output_hashes(folder),
            'block': None if layout.path.suffix != '.pkl' else facts['file'],
            'warnings': made_with['warnings'],
            **made_with,
            'system': facts['system'],
            'compensation': facts['compensation'],
            'interpolated channels': interpolated_channels(blocks),
            'sampling rate': layout.sfreq,
            'continuous parts': sum(len(block.layout.parts) for block in blocks),
            'minutes': minutes,
            'detections': len(events),
            'detections per minute': len(events) / minutes,
            'detections in bad segments': events['bad'].sum(),
            'bad segments': bad_seconds(blocks),
            'marker': marker['name'],
            'dipole': dipole,
            'units': {
                'bad segments': 's from the first sample of the recording: onset, end',
                'onset, duration': 's, onset from the first sample of the recording, at the peak of the field power',
                'sampling rate, high_pass, low_pass, notch': 'Hz',
                'position': 'm',
                'moment': 'A m',
                'signal': 'T',
                'threshold, proba': 'probability',
            },
        },
    )


def print_result(name, folder, blocks, found, seconds):
    """Say how much was found, and how long reading, judging and writing took."""
    recorded = sum(block.facts['seconds'] for block in blocks)
    n_events = sum(len(one.events) for one in found)
    read, judged, written = seconds
    interpolated = interpolated_channels(blocks)
    print(
        f'{name}: {n_events} detections in {recorded / 60:.2f} min ({60 * n_events / recorded:.1f} per minute); '
        f'interpolated: {", ".join(interpolated) or "none"}; in {folder}\n'
        f'  {recorded / sum(seconds):.1f} times faster than real time: reading {read:.1f} s, detection {judged:.1f} s, '
        f'writing {written:.1f} s'
    )


# ------------------------------------------------------------------------------------------ review files
def write_detections(
    path: str | Path, onsets: np.ndarray, durations: np.ndarray, probas: np.ndarray, bad: np.ndarray | None = None
) -> None:
    """Write detections.csv, one row per event: `onset` and `duration` in s, as MNE's browser counts, and `probas`; and
    where `bad` is given, 1 for events in segments marked bad.
    """
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
    if bad is not None:
        table['bad'] = np.asarray(bad, dtype=np.int64)
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
        notes.save(temporary, overwrite=True, verbose='error')
