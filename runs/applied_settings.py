"""The settings of a finished run, with which recordings are read and scored."""

from pathlib import Path

from recordings.data_raw import read_record
from recordings.filters import check_filters
from runs.run_directory import RunDirectory, load_params
from runs.settings import check_settings
from timeseries_dataset import PARTS, WINDOW_SETTINGS
from utils import DataError, SettingError

FILTERS = ('sfreq', 'high_pass', 'low_pass', 'notch')
PREPROCESSING = (*FILTERS, 'trials')
# Settings that turn signal into sub-windows: those of the run are used, whatever params.py says.
OF_THE_RUN = (*PREPROCESSING, *(name for name in WINDOW_SETTINGS if name not in PREPROCESSING), 'subwindow_size')
# Settings of now that decide what the files of detections are.
OF_DETECTIONS = (
    'bids_derivatives',
    'drop_bad_segments',
    'marker_name',
    'marker_color',
    'markers_per_cluster',
    'markers_into_recording',
)


def settings_of_run(run: RunDirectory, now: dict) -> dict:
    """The settings with which the data of a run were made; prints a warning of those that differ now.

    The settings of preprocessing come from the data_raw_NNN.json of its patients, as far as these exist.

    Parameters
    ----------
    run : RunDirectory
    now : dict
        The settings of params.py and the command line.

    Raises
    ------
    DataError
        params.json is missing or damaged, or the patients were preprocessed in different ways.
    """
    params = load_params(run)
    saved = params['settings']
    missing = [name for name in OF_THE_RUN if name not in saved]
    if missing:
        print(f'warning: run {run.name} does not say its {", ".join(missing)}: those of params.py are used')
    settings = now | saved
    recorded = {}
    for path, record in records_of_run(params, settings['path_raw_data']):
        made_with = record.get('settings', {})
        for name in PREPROCESSING:
            if name in made_with and recorded.setdefault(name, made_with[name]) != made_with[name]:
                raise DataError(
                    f'{path}: made with {name} = {made_with[name]!r}, others of run {run.name} with '
                    f'{recorded[name]!r}: no recording can be preprocessed as all of them; make them again'
                )
    if 'sfreq' in saved and recorded.get('sfreq', saved['sfreq']) != saved['sfreq']:
        raise DataError(
            f'{run.params}: trained with sfreq = {settings["sfreq"]!r}, but the data_raw files of its patients in '
            f'{settings["path_raw_data"]} are made with {recorded["sfreq"]!r} now; make them again with '
            f'sfreq={settings["sfreq"]!r}, or train the run again'
        )
    settings |= recorded
    try:
        check_settings({name: settings[name] for name in now})
        check_filters(**{name: settings[name] for name in FILTERS})
    except SettingError as fault:
        raise DataError(f'{run.params}: {fault}') from fault
    for name in OF_THE_RUN:
        if settings[name] != now[name]:
            print(f'warning: {name} = {now[name]!r} now, but run {run.name} has {settings[name]!r}, which is used')
    return settings


def records_of_run(params: dict, path_raw_data: str) -> list[tuple[Path, dict]]:
    """Paths of the data_raw files of a run's patients, and their records, which are empty where there are none."""
    numbers = sorted({number for part in PARTS for number in params['split'].get(part, ())})
    paths = [Path(path_raw_data) / f'data_raw_{number:03d}.pkl' for number in numbers]
    return [(path, read_record(path)) for path in paths]


def seen_by_run(run: RunDirectory, path_raw_data: str) -> dict[str, str]:
    """Where a run has seen recordings: to data_raw file and part, from that file's path, and SHA-256 of samples.

    The hashes are there as far as records say.
    """
    params = load_params(run)
    seen = {}
    for part, word in (('validation', 'validation'), ('train', 'training')):  # who is in both was trained on
        of_part = {'split': {part: params['split'].get(part, ())}}
        for path, record in records_of_run(of_part, path_raw_data):
            hashes = [recording.get('sha256') for recording in record.get('recordings', [])]
            for known_by in (str(path.resolve()), *hashes):
                seen[known_by] = f'{path.name}, of a patient of its {word}'
    return seen


def compensation_of_run(run: RunDirectory, path_raw_data: str) -> set[int]:
    """Compensation grades of the recordings of a run's patients, as far as the records of data_raw files say."""
    records = [record for _, record in records_of_run(load_params(run), path_raw_data)]
    grades = {recording.get('compensation') for record in records for recording in record.get('recordings', [])}
    return grades - {None}
