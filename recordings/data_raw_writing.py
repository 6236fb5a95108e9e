"""From a patient's recordings to data_raw_NNN.pkl and its record, data_raw_NNN.json."""

import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recordings.checks import compensation_warnings, listed, read_checked
from recordings.data_raw import read_data_raw, read_record
from recordings.identity import identify
from recordings.planning import RecordingPlan, chosen_labels, input_hash
from system.files import json_text, locked, sync
from utils import DataError, write_faults, writing

Labels = str | list[str]  # one or more patterns of labels


class SpikeLabels(NamedTuple):
    """Patterns of labels: one that matches `include` and not `exclude` marks spikes."""

    include: Labels
    exclude: Labels

    def facts(self, labels: dict[str, np.ndarray]) -> dict[str, Any]:
        """Number of markers per label, labels that mark spikes, and those that mark none because of `exclude`."""
        spikes = chosen_labels(list(labels), self.include, self.exclude)
        return {
            'labels': {label: len(times) for label, times in labels.items()},
            'spike_labels': spikes,
            'excluded_labels': [label for label in chosen_labels(list(labels), self.include) if label not in spikes],
        }

    def warnings(self, facts: dict[str, Any]) -> list[str]:
        """Warn of a recording with markers of which none marks a spike; `facts` are those of `facts`."""
        if not facts['labels'] or facts['spike_labels']:
            return []
        there = ', '.join(f'{label!r} ({n})' for label, n in facts['labels'].items())
        return [
            f'no spikes in it, because none of its labels matches spike_labels = {self.include!r} without '
            f'spike_labels_exclude; its labels are {there}'
        ]


def create_data_raw(
    path: Path, number: int, planned: list[RecordingPlan], settings: dict[str, Any], patterns: SpikeLabels
) -> tuple[int, int]:
    """Read the recordings one after the other and write data_raw_NNN.pkl and its record.

    Parameters
    ----------
    path : Path
        The data_raw file to write.
    number : int
        Of the patient.
    planned : list of RecordingPlan
        The recordings.
    settings : dict
        The arguments of `read_recording`.
    patterns : SpikeLabels
        Of the labels that mark spikes.

    Returns
    -------
    n_blocks, n_spikes : int
    """
    names, hashes = block_names(planned), block_hashes(planned)
    check_target(path, number, names, hashes)
    data = {'meg': [], 'events': [], 'reannot': [], 'file': []}
    records, warnings = [], []
    for plan in planned:
        labels = patterns.facts(plan.labels)
        times = np.concatenate([[], *(plan.labels[label] for label in labels['spike_labels'])])
        for recording in read_checked(plan.path, plan.markers, **settings):
            samples = recording.layout.to_samples(times, settings['sfreq'])
            data['meg'].append(recording.meg)
            data['events'].append(np.unique(samples))
            data['reannot'].append(np.zeros(0, dtype=np.int64))
            data['file'].append(recording.name)
            facts = recording.facts | labels | {'spikes': len(samples), 'sha256': hashes[len(records)]}
            records.append(facts | {'warnings': recording.facts['warnings'] + patterns.warnings(labels)})
            print_facts(facts)
        name = plan.path.resolve().name
        warnings += print_warnings([f'{name}: {warning}' for warning in records[-1]['warnings']])
    grades = {record['file']: record['compensation'] for record in records}
    of_patient = compensation_warnings(grades) + shared_warnings(path, names, hashes)
    warnings += print_warnings([f'patient {number}: {warning}' for warning in of_patient])
    record = {
        'patient': number,
        'warnings': warnings,
        'settings': settings,
        'recordings': records,
        'reannotated': False,
        'input': input_hash(planned, hashes, settings, patterns),
    }
    with write_faults(path), locked(path):
        check_target(path, number, names, hashes)  # again: another process may have written meanwhile
        write_with_record(path, data, record, remake=True)
    n_spikes = sum(map(len, data['events']))
    print(f'{path}: {len(records)} blocks, {n_spikes} spikes')
    return len(records), n_spikes


# ------------------------------------------------------------------------- what a file is made from
def block_names(planned: list[RecordingPlan]) -> list[str]:
    """Names of the blocks of some recordings."""
    return [name for plan in planned for name in plan.blocks]


def block_hashes(planned: list[RecordingPlan]) -> list[str]:
    """SHA-256 of the samples of every block's recording, from `identify`."""
    return [digest for plan in planned for digest in [identify(plan.path)['sha256']] * len(plan.blocks)]


def is_unchanged(path: Path, planned: list[RecordingPlan], settings: dict[str, Any], patterns: SpikeLabels) -> bool:
    """Whether a data_raw file is there and would be made the same again (never of one of an earlier version).

    Raises
    ------
    DataError
        Its record is damaged, or a recording cannot be read.
    """
    made_from = read_record(path).get('input')
    if made_from is None or not path.is_file():
        return False
    return made_from == input_hash(planned, block_hashes(planned), settings, patterns)


def shared_warnings(path: Path, names: list[str], hashes: list[str]) -> list[str]:
    """Warn of recordings that are in the data_raw file of another patient too, by the records in the same folder."""
    warnings = []
    for record_path in sorted(path.parent.glob('data_raw_*.json')):
        theirs = {block.get('sha256') for block in read_record(record_path).get('recordings', [])}
        both = list(dict.fromkeys(name for name, digest in zip(names, hashes, strict=True) if digest in theirs))
        if both and record_path != path.with_suffix('.json'):
            warnings.append(
                f'{listed(both)}: the same samples are in {record_path.with_suffix(".pkl").name}; a patient with two '
                'numbers can be in training and test at once: remove one of the files'
            )
    return warnings


def check_target(path: Path, number: int, names: list[str], hashes: list[str]) -> None:
    """Refuse to replace a data_raw file that came from elsewhere or holds a re-annotation.

    Parameters
    ----------
    path : Path
        The data_raw file to write.
    number : int
        Of the patient.
    names : list of str
        Names of the blocks to write.
    hashes : list of str
        Of the samples of their recordings, from `identify`: another patient's recordings may have the same names.

    Raises
    ------
    DataError
        The folder holds such a file of this patient.
    """
    for existing in path.parent.glob('data_raw_*.pkl'):
        match = re.fullmatch(r'data_raw_(\d+)\.pkl', existing.name)
        if match and int(match[1]) == number:
            record = read_record(existing)
            earlier = record.get('recordings', [])
            same_names = [recording['file'] for recording in earlier] == names
            # files of earlier versions have no hashes, so that their names have to do
            if not same_names or any(
                block.get('sha256', new) != new for block, new in zip(earlier, hashes, strict=True)
            ):
                raise DataError(
                    f'{existing}: exists, and not from these recordings; move it away or take another number'
                )
            if record.get('reannotated') or holds_reannotation(existing):
                raise DataError(f'{existing}: holds a re-annotation, which would be lost; move it away first')


def holds_reannotation(path: Path) -> bool:
    """Whether an expert's corrections are in a data_raw file, whatever its record says.

    Returns
    -------
    bool

    Raises
    ------
    DataError
        The file cannot be read.
    """
    try:
        return any(map(len, read_data_raw(path)['reannot']))
    except DataError as fault:
        raise DataError(f'{path}: exists, and cannot be searched for a re-annotation; move it away first') from fault


def write_with_record(path: Path, content: dict | pd.DataFrame, record: dict, *, remake: bool) -> None:
    """Write data_raw_NNN.pkl and data_raw_NNN.json, both or none.

    Both are complete before the first gets its name. A process killed between the two renames leaves no contradiction:
    of an existing file that is made anew, the record alone, and the same command makes the file; of one that is
    re-annotated, a record that says so too early.

    Parameters
    ----------
    path : Path
        The data_raw file.
    content : dict or DataFrame
        Its content.
    record : dict
        The content of its record.
    remake : bool
        Whether the file is made anew, and not re-annotated.
    """
    with writing(path) as new_file:
        with new_file.open('wb') as stream:
            pickle.dump(content, stream, protocol=4)
        sync(new_file)  # a full disk shows here, not between the renames
        with writing(path.with_suffix('.json')) as new_record:
            new_record.write_text(json_text(record))
            sync(new_record)
            if remake:
                path.resolve().unlink(missing_ok=True)


def print_warnings(warnings: list[str]) -> list[str]:
    """Print warnings, and return them."""
    for warning in warnings:
        print(f'warning: {warning}')
    return warnings


def print_facts(facts: dict) -> None:
    """Print a summary of a block: its recording, channels and labels."""
    meaning = dict.fromkeys(facts['spike_labels'], ' (spikes)') | dict.fromkeys(facts['excluded_labels'], ' (excluded)')
    labels = [f'{label} {n}{meaning.get(label, "")}' for label, n in facts['labels'].items()]
    print(
        f'{facts["file"]}: {facts["seconds"]:.1f} s at {facts["sampling_rate"]:g} Hz in {facts["continuous_parts"]} '
        f'continuous parts; {facts["system"]}, compensation grade {facts["compensation"]} kept; interpolated: '
        f'{", ".join(facts["interpolated"]) or "none"}; labels: {", ".join(labels) or "none"}'
    )
