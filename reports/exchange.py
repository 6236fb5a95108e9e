"""Detections in the formats of other programs: AnyWave's markers, and derivatives of BIDS with HED tags."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from runs.run_directory import git_revision
from system.files import back_up, sha256
from utils import DataError, write_faults, write_json, writing

PIPELINE = 'meg-spike-detection'
BIDS_VERSION = '1.10.0'
HED_VERSION, HED_TAGS = 'score_2.1.0', 'Epileptiform-interictal-activity, Spike'  # of the library SCORE
DESCRIPTION, TABLE_HASH = 'dataset_description.json', 'TableSHA256'
BIDS_NAME = re.compile(r'sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*_meg')
COLUMNS = {
    'onset': {'Description': 'Peak of the field power, from the first sample of the recording', 'Units': 's'},
    'duration': {'Description': 'Always 0: an event is its peak', 'Units': 's'},
    'trial_type': {'Description': 'Class of the markers'},
    'proba': {'Description': 'Highest calibrated probability of a sub-window of the event, from 0 to 1'},
    'uncertainty': {'Description': 'How far the members of the ensemble disagree'},
    'bad': {'Description': 'Whether the event lies in a segment marked bad', 'Levels': {'0': 'no', '1': 'yes'}},
    'cluster': {'Description': 'Group of events of like field and course, the largest is 1; 0: in no group'},
}


# Of the labels in AnyWave: Okabe and Ito's, told apart by colour-blind readers.
HUES = ('#009e73', '#0072b2', '#d55e00', '#cc79a7', '#56b4e9', '#e69f00')


# ------------------------------------------------------------------------------------------------ AnyWave
def write_anywave(path: str | Path, events: pd.DataFrame, names: list[str]) -> None:
    """Write markers for AnyWave: label, value, onset, duration, colour, separated by tabs.

    Parameters
    ----------
    path : path
    events : DataFrame
        onset (s from the first sample of the recording), proba (the value).
    names : list of str
        Label of each event.
    """
    # AnyWave tells a colour from names of channels by the #.
    hues = {name: HUES[number % len(HUES)] for number, name in enumerate(sorted(set(names)))}
    rows = [
        f'{name}\t{proba:.4f}\t{onset:.6f}\t0\t{hues[name]}\n'
        for name, onset, proba in zip(names, events['onset'], events['proba'], strict=True)
    ]
    with writing(path) as temporary:
        temporary.write_text('// AnyWave Marker File\n' + ''.join(rows), encoding='utf-8')


# --------------------------------------------------------------------------------------------------- BIDS
def derivative_name(recording: Path) -> str:
    """Path, in a folder of derivatives, of the table of the detections in a recording of BIDS.

    Raises
    ------
    DataError
        The recording has no name of BIDS.
    """
    stem = re.sub(r'_split-[0-9]+(?=_meg$)', '', recording.resolve().stem)
    if not BIDS_NAME.fullmatch(stem):
        raise DataError(
            f'{recording}: has no name of BIDS (sub-01_task-rest_meg.fif), which bids_derivatives needs; leave this '
            'setting out'
        )
    entities = dict(entity.split('-', 1) for entity in stem.removesuffix('_meg').split('_'))
    folders = [f'{entity}-{entities[entity]}' for entity in ('sub', 'ses') if entity in entities]
    return '/'.join([*folders, 'meg', stem.removesuffix('_meg') + '_desc-spikes_events.tsv'])


def check_derivatives_of(recordings: list[Path], root: str | None) -> None:
    """Check, before the first is read, that recordings can have derivatives of their own in a folder; None for none.

    Raises
    ------
    DataError
        A recording has no name of BIDS, two have the same, or the folder holds something else.
    """
    if root is None:
        return
    check_derivatives(Path(root))
    names = [derivative_name(path) for path in recordings]
    for path, name in zip(recordings, names, strict=True):
        if names.count(name) > 1:
            raise DataError(f'{path}: another recording has the same name of BIDS; detect them one by one')


def check_derivatives(root: Path) -> None:
    """Check that a folder is new, empty, or holds derivatives that this project made.

    Raises
    ------
    DataError
        It holds something else.
    """
    description = root / DESCRIPTION
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    try:
        makers = [maker['Name'] for maker in json.loads(description.read_text())['GeneratedBy']]
    except (OSError, ValueError, KeyError, TypeError):
        makers = []
    if PIPELINE not in makers:
        raise DataError(f'{root}: is no folder of BIDS derivatives of {PIPELINE}; name an empty one')


def write_derivative(root: Path, name: str, events: pd.DataFrame, classes: list[str]) -> Path | None:
    """Write the detections in a recording as a derivative of BIDS: the table, its columns, and the dataset's file.

    Parameters
    ----------
    root : path
        Folder of the derivatives.
    name : str
        From `derivative_name`.
    events : DataFrame
        onset in s from the first sample of the recording, proba, bad, cluster.
    classes : list of str
        Class of the markers of each event.

    Returns
    -------
    Path or None
        A backup of the earlier table, if a person has changed it.

    Raises
    ------
    DataError
        The folder holds something else, or cannot be written.
    """
    table = pd.DataFrame({'onset': events['onset'].to_numpy(), 'duration': 0.0, 'trial_type': classes})
    further = events[[column for column in COLUMNS if column in events and column not in table]]
    text = table.join(further.reset_index(drop=True).astype({'bad': np.int64})).to_csv(
        sep='\t', index=False, float_format='%.6f', na_rep='n/a'
    )
    columns = {column: COLUMNS[column] for column in (*table, *further)}
    columns['trial_type'] = COLUMNS['trial_type'] | {'HED': dict.fromkeys(sorted(set(classes)), HED_TAGS)}
    path = root / name
    sidecar = path.with_suffix('.json')
    check_derivatives(root)
    with write_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (root / DESCRIPTION).exists():
            write_json(root / DESCRIPTION, describe_dataset())
        backup = back_up(path) if is_changed(path, sidecar) else None
        words = {'Description': 'Epileptic spikes that a trained network detected'}
        write_json(sidecar, words | columns | {TABLE_HASH: hashlib.sha256(text.encode()).hexdigest()})
        with writing(path) as temporary:
            temporary.write_bytes(text.encode())
    return backup


def print_derivative(root: str, recording: Path, events: pd.DataFrame, classes: list[str]) -> None:
    """Write the derivative of a recording, see `write_derivative`, and print where it is."""
    name = derivative_name(recording)
    backup = write_derivative(Path(root), name, events, classes)
    earlier = f', the changed file before kept as {backup.name}' if backup else ''
    print(f'{Path(root) / name}: written{earlier}')


def is_changed(table: Path, sidecar: Path) -> bool:
    """Whether a table has changed since it was written, by the hash in the file of its columns."""
    try:
        return table.exists() and json.loads(sidecar.read_text())[TABLE_HASH] != sha256(table)
    except (OSError, ValueError, KeyError, TypeError):
        return True  # not as it was written


def describe_dataset() -> dict:
    """What dataset_description.json says of the derivatives."""
    return {
        'Name': 'Epileptic spikes detected in MEG',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'HEDVersion': HED_VERSION,
        'GeneratedBy': [{'Name': PIPELINE, 'Version': git_revision() or 'unknown'}],
    }
