"""Turn recordings into data_raw_NNN.pkl, one patient or a whole study, or read a corrected annotation back into it.

    python create_data_raw.py N REC [REC ...] [name=value ...]
    python create_data_raw.py cohort.csv [name=value ...]
    python create_data_raw.py BIDS_FOLDER [name=value ...]

Reads   the recordings of patient N: CTF folders (.ds), FIF files, and what else MNE reads (BTi/4D, KIT, ...). A word
        that ends in .mrk, -annot.fif or _events.tsv is the annotation of the recording before it, instead of its own.
        cohort.csv: a table patient,recording[,markers] with a line per recording; paths start at its folder.
        BIDS_FOLDER: a folder with sub-*/[ses-*/]meg; a subject's number is that at the end of its name.
Writes  path_raw_data/data_raw_NNN.pkl, one block per recording, and data_raw_NNN.json, the record: facts and warnings.
        Of a study, n_jobs patients at a time; files that would be made the same again stay (overwrite=True makes them).
With reannot_labels=..., the corrected markers of these recordings go into `reannot` of the existing files instead.
"""

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recordings.cohorts import is_cohort, read_cohort
from recordings.data_raw import find_data_raw
from recordings.data_raw_writing import SpikeLabels, create_data_raw, is_unchanged
from recordings.filters import check_filters
from recordings.planning import plan_recordings
from recordings.reannotation import reannotate
from runs.patient_jobs import MADE, SKIPPED, run_patients
from runs.settings import read_command
from system.files import locked
from utils import SettingError, run_script, write_faults

FILTERS = ('sfreq', 'high_pass', 'low_pass', 'notch')


def main(words: list[str]) -> None:
    """Make or re-annotate data_raw files as params.py and the command line say.

    Raises
    ------
    SettingError
        The command line is not understood.
    DataError
        A recording or the table is faulty.
    """
    positional, settings = read_command(words, n_positional=len(words))
    check_filters(**{name: getattr(settings, name) for name in FILTERS})
    if len(positional) == 1 and is_cohort(positional[0]):
        patients = read_cohort(positional[0], settings.patient)
        run_patients(functools.partial(make_patient, settings=settings, is_study=True), patients, settings.n_jobs)
        return
    if len(positional) < 2:
        raise SettingError('usage: python create_data_raw.py N REC [REC ...] | cohort.csv | BIDS_FOLDER')
    if not re.fullmatch('[0-9]{1,9}', positional[0]):
        raise SettingError(f'N = {positional[0]!r}: must be the number of the patient')
    make_patient(int(positional[0]), positional[1:], settings=settings)


def make_patient(
    number: int, words: list[str], *, settings: SimpleNamespace, is_study: bool = False
) -> tuple[str, str]:
    """Make or re-annotate the data_raw file of a patient.

    Parameters
    ----------
    number : int
        Of the patient.
    words : list of str
        Recordings, each followed by its file of markers if it has one.
    settings : namespace
    is_study : bool
        Whether a file that would be made the same again stays.

    Returns
    -------
    result, what : str
        Of `run_patients`.
    """
    bad_channels = [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels
    reading: dict[str, Any] = {name: getattr(settings, name) for name in (*FILTERS, 'trials')} | {
        'bad_channels': bad_channels
    }
    planned = plan_recordings(
        words,
        window_size=settings.window_size,
        **{name: reading[name] for name in ('sfreq', 'low_pass', 'bad_channels', 'trials')},
    )
    if settings.reannot_labels is not None:
        path = find_data_raw(settings.path_raw_data, number)[number]
        with write_faults(path), locked(path):
            reannotate(path, planned, settings.reannot_labels, sfreq=settings.sfreq)
        return MADE, f'reannot of {len(planned)} recordings'
    path = Path(settings.path_raw_data) / f'data_raw_{number:03d}.pkl'
    patterns = SpikeLabels(settings.spike_labels, settings.spike_labels_exclude)
    if is_study and not settings.overwrite and is_unchanged(path, planned, reading, patterns):
        return SKIPPED, 'made before from the same recordings, markers and settings'
    n_blocks, n_spikes = create_data_raw(path, number, planned, reading, patterns)
    return MADE, f'{n_blocks} blocks, {n_spikes} spikes'


if __name__ == '__main__':
    run_script(main, __doc__)
