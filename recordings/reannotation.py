"""An expert's corrected markers, read back into `reannot` of a data_raw file."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from recordings.bad_segments import segments_in_block
from recordings.checks import marker_warnings
from recordings.data_raw import check_rate, read_data_raw, read_record
from recordings.data_raw_writing import Labels, write_with_record
from recordings.identity import identify
from recordings.pickles import read_pickle, write_pickle
from recordings.planning import RecordingPlan, chosen_labels
from utils import DataError


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
