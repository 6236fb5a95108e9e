"""Turn a patient's recordings into data_raw_NNN.pkl, or read a corrected annotation back into it.

    python create_data_raw.py N REC [REC ...] [name=value ...]

Reads   the recordings of patient N: CTF folders (.ds), FIF files, and what else MNE reads (BTi/4D, KIT, ...). A word
        that ends in .mrk or -annot.fif is the annotation of the recording before it, instead of its own.
Writes  path_raw_data/data_raw_NNN.pkl, one block per recording, and data_raw_NNN.json, the record: facts and warnings.
With reannot_labels=..., the corrected markers of these recordings go into `reannot` of the existing file instead.
"""

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recordings.bad_segments import segments_in_block
from recordings.checks import compensation_warnings, marker_warnings, read_checked
from recordings.data_raw import check_rate, find_data_raw, read_data_raw, read_record
from recordings.filters import check_filters
from recordings.identity import identify
from recordings.pickles import read_pickle, write_pickle
from recordings.planning import RecordingPlan, chosen_labels, plan_recordings
from runs.settings import read_command
from system.files import json_text, locked, sync
from utils import DataError, SettingError, run_script, write_faults, writing

Labels = str | list[str]  # one or more patterns of labels


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


def create_data_raw(
    path: Path, number: int, planned: list[RecordingPlan], settings: dict[str, Any], include: Labels, exclude: Labels
) -> None:
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
    include, exclude : str or list of str
        A label that matches a pattern of `include` and none of `exclude` marks spikes.
    """
    names = [name for plan in planned for name in plan.blocks]
    hashes = [digest for plan in planned for digest in [identify(plan.path)['sha256']] * len(plan.blocks)]
    check_target(path, number, names, hashes)
    data = {'meg': [], 'events': [], 'reannot': [], 'file': []}
    records, warnings = [], []
    for plan in planned:
        labels = spike_labels(plan.labels, include, exclude)
        times = np.concatenate([[], *(plan.labels[label] for label in labels['spike_labels'])])
        for recording in read_checked(plan.path, plan.markers, **settings):
            samples = recording.layout.to_samples(times, settings['sfreq'])
            data['meg'].append(recording.meg)
            data['events'].append(np.unique(samples))
            data['reannot'].append(np.zeros(0, dtype=np.int64))
            data['file'].append(recording.name)
            facts = recording.facts | labels | {'spikes': len(samples), 'sha256': hashes[len(records)]}
            records.append(facts | {'warnings': recording.facts['warnings'] + label_warnings(labels)})
            print_facts(facts)
        name = plan.path.resolve().name
        warnings += print_warnings([f'{name}: {warning}' for warning in records[-1]['warnings']])
    grades = {record['file']: record['compensation'] for record in records}
    warnings += print_warnings([f'patient {number}: {warning}' for warning in compensation_warnings(grades)])
    record = {
        'patient': number,
        'warnings': warnings,
        'settings': settings,
        'recordings': records,
        'reannotated': False,
    }
    with write_faults(path), locked(path):
        check_target(path, number, names, hashes)  # again: another process may have written meanwhile
        write_with_record(path, data, record, remake=True)
    print(f'{path}: {len(records)} blocks, {sum(map(len, data["events"]))} spikes')


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


def spike_labels(labels: dict[str, np.ndarray], include: Labels, exclude: Labels) -> dict[str, Any]:
    """Number of markers per label, the labels that mark spikes, and those that mark none because of `exclude`."""
    spikes = chosen_labels(list(labels), include, exclude)
    return {
        'labels': {label: len(times) for label, times in labels.items()},
        'spike_labels': spikes,
        'excluded_labels': [label for label in chosen_labels(list(labels), include) if label not in spikes],
    }


def label_warnings(labels: dict) -> list[str]:
    """Warn of a recording with markers of which none marks a spike; `labels` are those of `spike_labels`."""
    if not labels['labels'] or labels['spike_labels']:
        return []
    return ['no label matches spike_labels without spike_labels_exclude, so it has no spikes']


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


def reannotate(path: Path, planned: list[RecordingPlan], labels: Labels, *, sfreq: float) -> None:
    """Write the markers of some recordings into `reannot` of their blocks; everything else stays the same.

    Parameters
    ----------
    path : Path
        The data_raw file.
    planned : list of RecordingPlan
        The recordings, with their corrected markers.
    labels : str or list of str
        Patterns of the labels that mark spikes.
    sfreq : float
        Sampling rate of the file, in Hz.

    Raises
    ------
    DataError
        A recording is no block of the file, or of another length; no marker has one of the labels.
    """
    check_rate(path, sfreq)
    data = read_data_raw(path)
    lengths = [(Path(name).name, signal.shape[1]) for name, signal in zip(data['file'], data['meg'], strict=True)]
    del data
    hashes = {block['file']: block.get('sha256') for block in read_record(path).get('recordings', [])}
    n_markers = Counter()
    for plan in planned:
        n_markers.update({label: len(times) for label, times in plan.labels.items()})
    if not chosen_labels(list(n_markers), labels):
        labels_there = ', '.join(n_markers) or 'none'
        raise DataError(f'{path}: no marker matches reannot_labels = {labels!r}; found {labels_there}')
    spikes, segments, messages = {}, {}, []
    for plan in planned:
        plan_spikes, plan_messages = _corrected_spikes(plan, lengths, labels, path=path, sfreq=sfreq)
        _check_same_samples(plan, hashes, path)
        spikes |= plan_spikes
        segments |= {name: segments_in_block(plan.segments, layout, sfreq) for name, layout in plan.blocks.items()}
        messages += plan_messages
    messages += _write_reannotation(path, spikes, segments)
    counted = ', '.join(f'{label} {n_markers[label]}' for label in chosen_labels(list(n_markers), labels))
    print(*messages, f'labels that counted: {counted}', sep='\n')
    print(f'{path}: reannot of {len(spikes)} blocks written, events unchanged')


def _check_same_samples(plan, hashes, path):
    """Refuse a recording that only shares its name with a block; `hashes` are by name, None from earlier versions."""
    earlier = {hashes.get(name) for name in plan.blocks} - {None}
    if earlier and earlier != {identify(plan.path)['sha256']}:
        raise DataError(f'{plan.path}: not the recording that {path.name} was made from; take that one')


def _corrected_spikes(plan, lengths, labels, *, path, sfreq):
    """Spikes of a recording by the index of their block, and messages; `lengths` are name and samples per block."""
    names = [name for name, _ in lengths]
    times = np.concatenate([[], *(plan.labels[label] for label in chosen_labels(list(plan.labels), labels))])
    messages = [f'warning: {plan.path}: {warning}' for warning in marker_warnings(plan.labels, plan.layout)]
    spikes, n_double = {}, 0
    for name, layout in plan.blocks.items():
        if names.count(name) != 1:
            raise DataError(f'{path}: has {names.count(name)} blocks named {name}; it holds {", ".join(names)}')
        block = names.index(name)
        length = layout.lengths(sfreq).sum()
        if length != lengths[block][1]:
            raise DataError(
                f'{plan.path}: {length} samples at sfreq = {sfreq:g}, but its block in {path.name} has '
                f'{lengths[block][1]}; take the recording that it was made from'
            )
        samples = layout.to_samples(times, sfreq)
        spikes[block] = np.unique(samples)
        n_double += len(samples) - len(spikes[block])
        messages.append(f'{name}: re-annotated spikes {len(spikes[block])}')
        if not len(spikes[block]):
            messages.append(f'warning: {name}: an empty reannot means none was done, so its events still count')
    if n_double:
        messages.append(f'warning: {plan.path}: {n_double} markers are double and count once')
    return spikes, messages


def _write_reannotation(path, spikes, segments):
    """Write spikes by the index of their block and bad segments by its name; return messages."""
    content = read_pickle(path)  # as it is stored, so that only `reannot` changes
    reannot = list(content['reannot'])
    for block, samples in spikes.items():
        reannot[block] = samples
    if isinstance(content, pd.DataFrame):
        content['reannot'] = pd.Series(reannot, index=content.index, dtype=object)
    else:
        content['reannot'] = reannot
    record = read_record(path)
    if record:
        for recording in record.get('recordings', []):
            recording['bad_segments'] = segments.get(recording['file'], recording.get('bad_segments', []))
        write_with_record(path, content, record | {'reannotated': True}, remake=False)
        return []
    write_pickle(path, content)
    if any(segments.values()):
        return [f'warning: {path}: has no .json with it, where bad segments are stored; they are not used']
    return []


def main(words: list[str]) -> None:
    """Make or re-annotate a data_raw file as params.py and the command line say."""
    positional, settings = read_command(words, n_positional=len(words))
    if len(positional) < 2:
        raise SettingError('usage: python create_data_raw.py N REC [REC ...] [name=value ...]')
    if not re.fullmatch('[0-9]{1,9}', positional[0]):
        raise SettingError(f'N = {positional[0]!r}: must be the number of the patient')
    number = int(positional[0])
    reading: dict[str, Any] = {
        'sfreq': settings.sfreq,
        'high_pass': settings.high_pass,
        'low_pass': settings.low_pass,
        'notch': settings.notch,
        'bad_channels': [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels,
        'trials': settings.trials,
    }
    check_filters(**{name: reading[name] for name in ('sfreq', 'high_pass', 'low_pass', 'notch')})
    planned = plan_recordings(
        positional[1:],
        window_size=settings.window_size,
        **{name: reading[name] for name in ('sfreq', 'low_pass', 'bad_channels', 'trials')},
    )
    if settings.reannot_labels is None:
        path = Path(settings.path_raw_data) / f'data_raw_{number:03d}.pkl'
        create_data_raw(path, number, planned, reading, settings.spike_labels, settings.spike_labels_exclude)
    else:
        path = find_data_raw(settings.path_raw_data, number)[number]
        with write_faults(path), locked(path):
            reannotate(path, planned, settings.reannot_labels, sfreq=settings.sfreq)


if __name__ == '__main__':
    run_script(main, __doc__)
