"""The patients of a whole study, from a table (patient,recording[,markers]) or from a BIDS folder."""

import csv
import re
from pathlib import Path

from recordings.bids import DERIVATIVES, EVENTS, bids_patients, is_bids, sidecar
from utils import DataError

COLUMNS = ('patient', 'recording', 'markers')


def is_cohort(word: str) -> bool:
    """Whether a word of a command line names a study: a .csv file, or a BIDS folder."""
    return Path(word).suffix == '.csv' or is_bids(Path(word))


def read_cohort(word: str, patient: int | list[int] | bool = False) -> dict[int, list[str]]:
    """Read which recordings the patients of a study have.

    Parameters
    ----------
    word : str
        A table, or a BIDS folder.
    patient : int, list of int, or False
        The setting of this name.

    Returns
    -------
    dict
        Patient number to the words of a command line: recordings, each followed by its file of markers if it has one.
        Of BIDS, that is its _events.tsv.

    Raises
    ------
    DataError
        The table or folder is faulty, or does not have a chosen patient. Whether the recordings exist is not checked.
    """
    path = Path(word)
    if path.suffix == '.csv':
        patients = _read_table(path)
    else:
        patients = {
            number: [str(name) for file in recordings for name in (file, sidecar(file, EVENTS)) if name.exists()]
            for number, recordings in bids_patients(path).items()
        }
    numbers = patients if patient is False else [patient] if isinstance(patient, int) else patient
    for number in numbers:
        if number not in patients:
            raise DataError(f'{path}: has no patient {number} (setting patient)')
    return {number: patients[number] for number in sorted(set(numbers))}


def cohort_output(word: str) -> str | None:
    """Where the detections in a study go by default: of BIDS, a folder of derivatives; None for next to recordings."""
    return str(Path(word) / DERIVATIVES) if is_bids(Path(word)) else None


def _read_table(path):
    """Read patient number to words; relative paths start at the folder of the table."""
    patients, line_of, previous = {}, {}, None
    for line, (patient, recording, markers) in _rows(path):
        where = f'{path}: line {line}'
        if not re.fullmatch('[0-9]{1,9}', patient):
            raise DataError(f'{where}: patient {patient!r} is not the number of a patient; correct it')
        number = int(patient)
        if number in patients and number != previous:
            raise DataError(
                f'{where}: patient {number} comes a second time, after others; put the lines of a patient together, or '
                'give each patient a number of its own'
            )
        if not recording:
            raise DataError(f'{where}: no recording; correct it or leave out the line')
        file = path.parent / recording
        same = line_of.setdefault(file.resolve(), line)
        if same != line:
            raise DataError(f'{where}: {recording} is in line {same} already; leave one of them')
        patients.setdefault(number, []).extend([str(file), *([str(path.parent / markers)] if markers else [])])
        previous = number
    if not patients:
        raise DataError(f'{path}: has no line below patient,recording')
    return patients


def _rows(path):
    """Number of the line, and patient, recording and markers, of every row that is not empty."""
    try:
        with path.open(encoding='utf-8-sig', newline='') as stream:
            rows = [(reader.line_num, row) for reader in [csv.reader(stream)] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f'{path}: cannot be read ({fault}); it must be a table in UTF-8') from fault
    rows = [(line, [value.strip() for value in row]) for line, row in rows if any(map(str.strip, row))]
    titles = [title.lower() for title in rows[0][1]] if rows else []
    if titles not in (list(COLUMNS[:2]), list(COLUMNS)):
        content = f'has the columns {",".join(titles)}' if rows else 'is empty'
        raise DataError(f'{path}: {content}; its first line must be patient,recording or patient,recording,markers')
    for line, row in rows[1:]:
        if len(row) != len(titles):
            raise DataError(
                f'{path}: line {line}: {len(row)} values in {len(titles)} columns; put names with commas in quotes'
            )
        yield line, (*row, '')[:3]
