"""The files of a review: what is read when it begins, and what is written when it ends."""

import getpass
import json
import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recordings.checks import marker_warnings, read_checked
from recordings.data_raw import read_record
from recordings.identity import identify
from recordings.layout import Note
from recordings.marker_files import MARKER_FILE, NewClass, check_replaceable, write_marker_classes
from recordings.opening import open_recording, read_annotations, read_notes
from recordings.planning import chosen_labels
from recordings.reading import Recording
from reports.detection_files import write_annotations
from reports.detections_folder import RECORD, check_is_of
from reports.review_events import COLUMNS, events_of_notes, with_markers
from system.files import back_up, locked, sha256
from utils import DataError, SettingError, write_faults, writing

LOG = 'review_log.csv'
COLORS = ('green', 'red', 'blue', 'orange', 'magenta', 'cyan', 'yellow')  # which CTF's programs know
LOG_COLUMNS = ['reviewed', 'reviewer', 'change', 'onset', 'label', 'label_before', 'proba', 'cluster']


class Review(NamedTuple):
    """A recording and its events, before the review.

    Attributes
    ----------
    path, folder : Path
        The recording, and the folder of its detections.
    identity : dict
        From `identify`.
    block : Recording
    events : DataFrame
        From `events_of_notes`.
    threshold : float
        Of the detections; 0.5 where there are none.
    """

    path: Path
    folder: Path
    identity: dict
    block: Recording
    events: pd.DataFrame
    threshold: float

    @property
    def annotations(self) -> Path:
        """The file of annotations, which a review replaces."""
        return self.folder / f'{self.path.resolve().stem}-annot.fif'


def open_review(path: Path, output: str | None, reading: dict[str, Any], patterns: tuple, tolerance: float) -> Review:
    """Read a recording, its detections or what an earlier review made of them, and an expert's markers.

    The markers of the recording itself count at the first review of its detections only: later ones find them,
    corrected, in the file of annotations.

    Parameters
    ----------
    path : Path
        The recording.
    output : str or None
        The setting of this name.
    reading : dict
        The keyword arguments of `read_recording`, for a recording without detections.
    patterns : (str or list of str, str or list of str)
        The settings spike_labels and spike_labels_exclude.
    tolerance : float
        The setting of this name, in s: within it, a marker and a detection are one event.

    Returns
    -------
    Review

    Raises
    ------
    DataError
        The recording cannot be read, or the folder or the annotations are of another one.
    SettingError
        The path is no recording.
    """
    if path.suffix == '.pkl':
        raise SettingError(f'{path}: review.py opens recordings; name the one that this file was made from')
    if not path.exists():
        raise DataError(f'{path}: no such recording; correct the path')
    folder = Path(output or path.absolute().parent) / f'{path.resolve().stem}_detections'
    identity = identify(path)
    check_is_of(folder, path, identity)
    record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).exists() else {}
    settings = {name: record.get('settings', {}).get(name, value) for name, value in reading.items()}
    [block] = read_checked(path, **settings | {'trials': 'join'})
    review = Review(path, folder, identity, block, pd.DataFrame(columns=COLUMNS), record.get('threshold', 0.5))
    written = record.get('files', {}).get(review.annotations.name)
    is_first = not (folder / LOG).exists() or (written and written == sha256(review.annotations))
    return review._replace(events=_events(review, patterns, tolerance if is_first else None))


def _events(review, patterns, tolerance):
    """The events to show; with a tolerance, the markers of the recording among them."""
    with open_recording(review.path) as raw:
        notes = read_notes(raw, review.block.layout, review.annotations) if review.annotations.exists() else []
        events = events_of_notes(notes)
        if tolerance is not None:
            own = read_annotations(raw, review.block.layout)
            notes = [Note(label, time, 0.0) for label in chosen_labels(list(own), *patterns) for time in own[label]]
            events = with_markers(events, events_of_notes(notes), tolerance)
    by_label = {label: group['time'].to_numpy() for label, group in events.groupby('label')}
    warnings = marker_warnings(by_label, review.block.layout)
    inside = [len(review.block.layout.to_samples([time], review.block.layout.sfreq)) > 0 for time in events['time']]
    if len(events) and not any(inside):
        raise DataError(f'{review.annotations}: no annotation lies within {review.path}; take those made for it')
    for warning in [*review.block.facts['warnings'], *warnings]:
        print(f'warning: {review.path.name}: {warning}')
    return events[inside].reset_index(drop=True)


def ask_reviewer() -> str:
    """Ask at the terminal who reviews; without an answer, it is the name of the user.

    Raises
    ------
    SettingError
        There is nobody to ask.
    """
    user = getpass.getuser()
    try:
        return input(f'reviewer [{user}]: ').strip() or user
    except EOFError as fault:
        raise SettingError('reviewer = None, and there is no terminal to ask at; give reviewer=NAME') from fault


# ------------------------------------------------------------------------------------------- the result
def save_review(
    review: Review, corrected: pd.DataFrame, bad: list[Note], *, reviewer: str, into_recording: bool
) -> None:
    """Write the corrected annotations, for CTF the marker file, and the log; print what is written.

    The earlier files are kept under the next free name (`.1`, `.2`, ...).

    Parameters
    ----------
    review : Review
    corrected : DataFrame
        From `corrected_events`.
    bad : list of Note
        Segments that the reviewer marked bad.
    reviewer : str
    into_recording : bool
        Whether the marker file of the CTF recording itself is written too.
    """
    left, layout = corrected[corrected['change'] != 'deleted'], review.block.layout
    extras = [
        {'cluster': event.cluster} | ({} if np.isnan(event.proba) else {'proba': event.proba})
        for event in left.itertuples()
    ]
    onsets = [*left['time'], *(note.onset for note in bad)]
    durations = [*[0.0] * len(left), *(note.duration for note in bad)]
    labels = [*left['label'], *(note.label for note in bad)]
    with write_faults(review.folder), locked(review.folder / LOG):
        if review.annotations.exists():
            print(f'{review.annotations}: the file before kept as {back_up(review.annotations).name}')
        written = np.array(onsets), np.array(durations)
        write_annotations(review.annotations, *written, labels, layout, [*extras, *({} for _ in bad)])
        if layout.trial:
            own = review.path / MARKER_FILE
            classes = _classes(corrected)
            backup = write_marker_classes(
                review.folder / MARKER_FILE, classes, layout, source=own if own.exists() else None
            )
            print(
                f'{review.folder / MARKER_FILE}: written'
                + (f', the file before kept as {backup.name}' if backup else '')
            )
            if into_recording:
                check_replaceable(own)
                write_marker_classes(own, classes, layout)
        _log(review.folder / LOG, corrected, reviewer)
    counts = corrected['change'].value_counts()
    changes = ', '.join(f'{counts.get(change, 0)} {change}' for change in ('kept', 'renamed', 'deleted', 'added'))
    print(f'{review.annotations}: {changes}; {len(bad)} segments marked bad; log in {LOG}')


def _classes(corrected):
    """The classes of markers of all labels before and after; one that nothing is left of is empty."""
    left = corrected[corrected['change'] != 'deleted']
    labels = sorted({*corrected['label'], *corrected['label_before']} - {''})
    return [
        NewClass(label, COLORS[i % len(COLORS)], left.loc[left['label'] == label, 'time'].to_numpy())
        for i, label in enumerate(labels)
    ]


def _log(path, corrected, reviewer):
    """Add a row per event to the log."""
    rows = corrected.rename(columns={'time': 'onset'}).assign(
        reviewed=time.strftime('%Y-%m-%dT%H:%M:%S'), reviewer=reviewer
    )
    earlier = path.read_text() if path.exists() else ''
    with writing(path) as temporary:
        temporary.write_text(earlier + rows[LOG_COLUMNS].to_csv(index=False, header=not earlier, float_format='%.6f'))


def command_of_way_back(
    review: Review, corrected: pd.DataFrame, patterns: tuple, path_raw_data: str, further: list[str]
) -> str:
    """The command that reads a review back into `reannot`, with comments where it cannot be given in full.

    Parameters
    ----------
    review : Review
    corrected : DataFrame
        From `corrected_events`.
    patterns : (str or list of str, str or list of str)
        The settings spike_labels and spike_labels_exclude.
    path_raw_data : str
        The setting of this name.
    further : list of str
        Words of the command line that belong to that command too.

    Returns
    -------
    str
    """
    left = list(dict.fromkeys(corrected.loc[corrected['change'] != 'deleted', 'label']))
    labels = [name for name in left if name in set(review.events['label']) or chosen_labels([name], *patterns)]
    if not labels:
        return '# no spike is left; without one, the earlier annotation of the block still counts'
    number, note = 'N', f'# N: the number of the patient; no file in {path_raw_data} holds this recording yet\n'
    for path in sorted(Path(path_raw_data).glob('data_raw_*.pkl')):
        hashes = {recording.get('sha256') for recording in read_record(path).get('recordings', [])}
        if review.identity['sha256'] in hashes:
            number, note = str(int(path.stem.rpartition('_')[2])), ''
    words = [number, str(review.path), str(review.annotations), f'reannot_labels={json.dumps(labels)}', *further]
    return note + shlex.join(['python', 'create_data_raw.py', *words])
