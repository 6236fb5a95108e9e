"""The same work for every patient of a study: several at a time, and a table at the end."""

import contextlib
import functools
import io
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from system.faults import describe
from system.processes import process_map
from utils import ROOT, DataError, SettingError

MADE, SKIPPED, REFUSED = 'made', 'skipped', 'refused'


def run_patients(
    work: Callable[[int, list[str]], tuple[str, str]], patients: dict[int, list[str]], n_jobs: int
) -> None:
    """Do the same work for every patient, whatever becomes of the others, and print a table of the results.

    Parameters
    ----------
    work : callable
        Takes the patient's number and words; returns MADE or SKIPPED, and what was made, or why not. With several jobs
        it is sent to other processes.
    patients : dict
        Patient number to words, from `read_cohort`.
    n_jobs : int
        Patients at a time.

    Raises
    ------
    DataError
        A patient was refused, or a process was killed.
    """
    rows = []
    try:
        with process_map(min(n_jobs, len(patients))) as map_patients:
            for row, printed in map_patients(functools.partial(_result, work), patients.items()):
                rows.append(row)
                print(f'--- patient {row[0]:03d}: {row[1]}\n{printed}', end='', flush=True)
    except BrokenProcessPool as fault:
        raise DataError('a process was killed, as when the memory is used up: set n_jobs lower') from fault
    print('patient  result   what')
    for number, result, what in rows:
        print(f'{number:7d}  {result:7s}  {what}')
    refused = [number for number, result, _ in rows if result == REFUSED]
    if refused:
        numbers = ', '.join(map(str, refused))
        raise DataError(f'{len(refused)} of {len(rows)} patients refused ({numbers}): the table above says why')


def share_threads(n_jobs: int) -> None:
    """Give this process its share of the processor's threads, where several of them compute at a time."""
    import torch  # here, because create_data_raw.py does not need it

    if n_jobs > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // n_jobs))


def _result(work, numbered):
    """Number, result and reason of a patient, and what the work printed."""
    number, words = numbered
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            result, what = work(number, words)
        except (DataError, SettingError) as fault:
            result, what = REFUSED, str(fault)
        except Exception as fault:
            result, what = REFUSED, describe(fault, ROOT)[0]
    return (number, result, ' '.join(what.split())), printed.getvalue()
