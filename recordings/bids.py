"""BIDS: the recordings of a folder (sub-*/[ses-*/]meg), and the events and bad channels beside a recording."""

import csv
import re
from pathlib import Path

from recordings.layout import Note
from utils import DataError

EVENTS = '_events.tsv'
DERIVATIVES = 'derivatives/spike_detections'  # where detect.py writes in a BIDS folder
FORMATS = ('.ds', '.fif', '.con', '.sqd', '')  # KIT: .con and .sqd; BTi: a folder without extension
NO_PATIENTS = ('task-noise', 'acq-crosstalk', 'acq-calibration')  # empty rooms, and files of MaxFilter
NOT_GIVEN = ('', 'n/a')


def is_bids(path: Path) -> bool:
    """Whether a path is a folder with subjects of BIDS."""
    return path.is_dir() and path.suffix != '.ds' and any(path.glob('sub-*'))


def bids_patients(root: Path) -> dict[int, list[Path]]:
    """Find the MEG recordings of the subjects of a BIDS folder, without empty rooms.

    Parameters
    ----------
    root : Path
        The folder with the folders `sub-*`.

    Returns
    -------
    dict
        Number at the end of the subject's name to recordings, in order of sessions and names. A subject without MEG
        is left out.

    Raises
    ------
    DataError
        There is no MEG, a subject has no number, or two have the same.
    """
    patients, names = {}, {}
    for folder in sorted(root.glob('sub-*')):
        recordings = _recordings(folder)
        if folder.name == 'sub-emptyroom' or not recordings:
            continue
        match = re.fullmatch(r'sub-.*?0*([0-9]{1,9})', folder.name)
        if not match:
            raise DataError(
                f'{folder}: {folder.name} does not end in a number, by which patients are called; write a cohort.csv '
                'with patient,recording'
            )
        number = int(match[1])
        if number in names:
            raise DataError(
                f'{root}: {names[number]} and {folder.name} would both be patient {number}; write a cohort.csv with '
                'patient,recording'
            )
        names[number], patients[number] = folder.name, recordings
    if not patients:
        raise DataError(f'{root}: no MEG recording (sub-*/[ses-*/]meg/*_meg.ds, .fif, ...) in this BIDS folder')
    return patients


def _recordings(folder):
    """The recordings of a subject; of one that is split into several files, the first."""
    candidates = [*folder.glob('meg/*_meg*'), *folder.glob('ses-*/meg/*_meg*')]
    return sorted(
        path
        for path in candidates
        if path.stem.endswith('_meg')
        and (path.suffix in FORMATS and (path.suffix or path.is_dir()))
        and not any(f'_{entity}_' in path.name for entity in NO_PATIENTS)
        and int((re.search(r'_split-(\d+)_', path.name) or [0, 1])[1]) == 1
    )


def sidecar(path: Path, suffix: str) -> Path:
    """The file beside a recording of BIDS whose name ends in `suffix`, such as _events.tsv; it may not exist."""
    return path.with_name(re.sub(r'(_split-\d+)?_meg$', '', path.stem) + suffix)


def bad_in_sidecar(path: Path) -> list[str]:
    """Names of the channels whose status is bad in the _channels.tsv beside a recording of BIDS; else none."""
    table = sidecar(path, '_channels.tsv')
    if not path.stem.endswith('_meg') or not table.is_file():
        return []
    return [row['name'] for row in read_tsv(table, 'name') if row.get('status') == 'bad']


def read_events(path: str | Path) -> list[Note]:
    """Read a table of events, *_events.tsv of BIDS, whose onsets count from the first sample.

    Returns
    -------
    list of Note
        The label is `trial_type`, or where that is not given `value`.

    Raises
    ------
    DataError
        The table cannot be read, or a time is no number.
    """
    notes = []
    for number, row in enumerate(read_tsv(path, 'onset'), start=2):
        given = {name: value for name, value in row.items() if value and value not in NOT_GIVEN}
        label = given.get('trial_type') or given.get('value') or 'n/a'
        try:
            notes.append(Note(label, float(given['onset']), float(given.get('duration', 0))))
        except (KeyError, ValueError) as fault:
            raise DataError(f'{path}: line {number}: onset and duration must be numbers, in s') from fault
    return notes


def read_tsv(path: str | Path, column: str) -> list[dict[str, str]]:
    """Read a table with a line of titles, of which `column` must be one, and tabs between columns."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as stream:
            table = csv.DictReader(stream, delimiter='\t')
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f'{path}: cannot be read ({fault})') from fault
    if column not in (table.fieldnames or []):
        raise DataError(f'{path}: has no column {column!r}; its columns must be separated by tabs')
    return rows
