"""Turn a patient's recordings into data_raw_NNN.pkl, or read a corrected annotation back into it.

    python create_data_raw.py N REC [REC ...] [name=value ...]

Reads   the recordings of patient N: CTF folders (.ds), FIF files, and what else MNE reads (BTi/4D, KIT, ...). A word
        that ends in .mrk or -annot.fif is the annotation of the recording before it, instead of its own.
Writes  path_raw_data/data_raw_NNN.pkl, one block per recording, and data_raw_NNN.json: what was found and done.
With reannot_labels=..., the corrected markers of these recordings go into `reannot` of the existing file instead.
"""

import fnmatch
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_raw import find_data_raw, read_data_raw, read_record
from files import locked, sync
from pickles import read_pickle, write_pickle
from recordings import (
    Layout,
    block_layouts,
    check_filters,
    check_recording,
    filter_seconds,
    open_recording,
    read_annotations,
    read_layout,
    read_recording,
)
from settings import read_command
from utils import DataError, SettingError, json_text, run_script, write_faults, writing


class Planned(NamedTuple):
    """A recording to read, as its header and markers describe it: blocks by name, times in seconds by label."""

    path: Path
    blocks: dict[str, Layout]
    labels: dict[str, np.ndarray]


def plan_recordings(
    words: list[str], *, sfreq: float, window_size: float, low_pass: float, bad_channels: list[str], trials: str
) -> list[Planned]:
    """Check every recording before the first is read: header, channels, rate, length, markers.

    Parameters
    ----------
    words : list of str
        Paths of recordings; one that ends in .mrk or -annot.fif is the annotation of the recording before it.
    """
    pairs = []
    for word in words:
        if not word.endswith(('.mrk', '-annot.fif', '-annot.fif.gz')):
            pairs.append([Path(word), None])
        elif pairs and pairs[-1][1] is None:
            pairs[-1][1] = Path(word)
        else:
            raise SettingError(f'{word}: an annotation comes after its recording, one for each')
    planned = []
    for path, markers in pairs:
        with open_recording(path) as raw:
            check_recording(raw, path, low_pass=low_pass, bad_channels=bad_channels)
            layout = read_layout(raw, path)
            labels = read_annotations(raw, layout, markers)
        blocks = block_layouts(path, layout, trials)
        longest = max((block.lengths(sfreq).sum() for block in blocks.values()), default=0)
        if longest < round(window_size * sfreq):
            which = 'its longest continuous part is' if trials == 'apart' else 'is'
            raise DataError(
                f'{path}: {which} {longest / sfreq:.3g} s long, shorter than a window (window_size = {window_size}); '
                'leave it out'
            )
        planned.append(Planned(path, blocks, labels))
    names = [name for plan in planned for name in plan.blocks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{name}: two recordings of this name; data_raw tells its blocks by name, rename one')
    return planned


def check_target(path: Path, number: int, names: list[str]) -> None:
    """Refuse to replace a data_raw file that came from elsewhere or holds a re-annotation."""
    for other in path.parent.glob('data_raw_*.pkl'):
        found = re.fullmatch(r'data_raw_(\d+)\.pkl', other.name)
        if found and int(found[1]) == number:
            record = read_record(other)
            if [recording['file'] for recording in record.get('recordings', [])] != names:
                raise DataError(f'{other}: exists, and not from these recordings; move it away or take another number')
            if record.get('reannotated') or holds_reannotation(other):
                raise DataError(f'{other}: holds a re-annotation, which would be lost; move it away first')


def holds_reannotation(path: Path) -> bool:
    """Whether an expert's corrections are in a data_raw file, whatever its record says."""
    try:
        return any(map(len, read_data_raw(path)['reannot']))
    except DataError as fault:
        raise DataError(f'{path}: exists, and cannot be searched for a re-annotation; move it away first') from fault


def chosen_labels(labels: list[str], include: str | list[str], exclude: str | list[str] = ()) -> list[str]:
    """Labels that match a pattern of `include` and none of `exclude`; * stands for anything, case does not matter."""

    def matches(label, patterns):
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch.fnmatchcase(label.lower(), pattern.lower()) for pattern in patterns)

    return [label for label in labels if matches(label, include) and not matches(label, exclude)]


def create_data_raw(path: Path, number: int, planned: list[Planned], settings: dict, include, exclude) -> None:
    """Read the recordings one after the other and write data_raw_NNN.pkl and its record.

    Parameters
    ----------
    settings : dict
        The arguments of `read_recording`.
    include, exclude : list of str
        Patterns of the labels that mark spikes.
    """
    names = [name for plan in planned for name in plan.blocks]
    check_target(path, number, names)
    data = {'meg': [], 'events': [], 'reannot': [], 'file': []}
    records = []
    for plan in planned:
        spikes = chosen_labels(list(plan.labels), include, exclude)
        times = np.concatenate([[], *(plan.labels[label] for label in spikes)])
        counts = {label: len(found) for label, found in plan.labels.items()}
        n_inside = 0
        for recording in read_recording(plan.path, **settings):
            samples = recording.layout.to_samples(times, settings['sfreq'])
            n_inside += len(samples)
            data['meg'].append(recording.meg)
            data['events'].append(np.unique(samples))
            data['reannot'].append(np.zeros(0, dtype=np.int64))
            data['file'].append(recording.name)
            records.append(recording.facts | {'labels': counts, 'spike_labels': spikes, 'spikes': len(samples)})
            print_facts(records[-1], high_pass=settings['high_pass'])
        if n_inside < len(times):
            print(f'warning: {plan.path}: {len(times) - n_inside} spikes lie outside of the recorded samples, left out')
        if counts and not spikes:
            print(
                f'warning: {plan.path}: no label matches spike_labels without spike_labels_exclude, so it has no spikes'
            )
    record = {'patient': number, 'settings': settings, 'recordings': records, 'reannotated': False}
    with write_faults(path), locked(path):
        check_target(path, number, names)  # again: another process may have written meanwhile
        write_with_record(path, data, record, remake=True)
    print(f'{path}: {len(records)} blocks, {sum(map(len, data["events"]))} spikes')


def write_with_record(path: Path, content: dict | pd.DataFrame, record: dict, *, remake: bool) -> None:
    """Write data_raw_NNN.pkl and data_raw_NNN.json, both or none.

    Both are complete before the first gets its name. What a process killed between the two renames leaves says nothing
    wrong: of an existing file that is made anew, the record alone, and the same command makes the file; of one that is
    re-annotated, a record that says so too early.
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


def print_facts(facts: dict, *, high_pass: float) -> None:
    """Print what was found in a recording and done to it."""
    labels = [f'{label} {n}{" (spikes)" * (label in facts["spike_labels"])}' for label, n in facts['labels'].items()]
    print(
        f'{facts["file"]}: {facts["seconds"]:.1f} s at {facts["sampling_rate"]:g} Hz in {facts["continuous_parts"]} '
        f'continuous parts; {facts["system"]}, compensation grade {facts["compensation"]} kept; interpolated: '
        f'{", ".join(facts["interpolated"]) or "none"}; labels: {", ".join(labels) or "none"}'
    )
    if facts['system'] != 'CTF-275':
        left_out = f'without {", ".join(facts["left_out"])}; ' if facts['left_out'] else ''
        print(f'warning: {facts["file"]}: {facts["system"]}; {left_out}what CTF-275 would have shown is an estimate')
    if facts['flat']:
        print(f'warning: {facts["file"]}: flat channels {", ".join(facts["flat"])}; name them in bad_channels')
    if facts['shortest_part'] < filter_seconds(high_pass):
        print(
            f'warning: {facts["file"]}: a continuous part of {facts["shortest_part"]:.1f} s is shorter than the '
            f'high-pass filter ({filter_seconds(high_pass):.1f} s), which distorts slow waves in it'
        )


def reannotate(path: Path, planned: list[Planned], labels: str | list[str], *, sfreq: float) -> None:
    """Put the markers of some recordings into `reannot` of their blocks; everything else stays as it is.

    Raises
    ------
    DataError
        A recording is no block of the file, or of another length; no marker has one of the labels.
    """
    data = read_data_raw(path)
    names = [Path(name).name for name in data['file']]
    lengths = [signal.shape[1] for signal in data['meg']]
    content = read_pickle(path)  # as it was stored, to be written again
    del data
    reannot = list(content['reannot'])
    found = {label: len(times) for plan in planned for label, times in plan.labels.items()}
    if not chosen_labels(list(found), labels):
        raise DataError(f'{path}: no marker matches reannot_labels = {labels!r}; found {", ".join(found) or "none"}')
    said = []
    for plan in planned:
        times = np.concatenate([[], *(plan.labels[label] for label in chosen_labels(list(plan.labels), labels))])
        n_inside = 0
        for name, layout in plan.blocks.items():
            if names.count(name) != 1:
                raise DataError(f'{path}: has {names.count(name)} blocks named {name}; it holds {", ".join(names)}')
            block = names.index(name)
            if layout.lengths(sfreq).sum() != lengths[block]:
                raise DataError(
                    f'{plan.path}: {layout.lengths(sfreq).sum()} samples at sfreq = {sfreq:g}, but its block in '
                    f'{path.name} has {lengths[block]}; take the recording that it was made from'
                )
            reannot[block] = np.unique(layout.to_samples(times, sfreq))
            n_inside += len(reannot[block])
            said.append(f'{name}: re-annotated spikes {len(reannot[block])}')
            if not len(reannot[block]):
                said.append(f'warning: {name}: an empty reannot means none was done, so its events still count')
        if n_inside < len(times):
            lost = len(times) - n_inside
            said.append(f'warning: {plan.path}: {lost} markers double, or outside of the recorded samples')
    if isinstance(content, pd.DataFrame):
        content['reannot'] = pd.Series(reannot, index=content.index, dtype=object)
    else:
        content['reannot'] = reannot
    record = read_record(path)
    if record:
        write_with_record(path, content, record | {'reannotated': True}, remake=False)
    else:
        write_pickle(path, content)
    print(*said, sep='\n')
    print(f'{path}: reannot of {sum(len(plan.blocks) for plan in planned)} blocks written, events as they were')


def main(words: list[str]) -> None:
    """Make or re-annotate a data_raw file as params.py and the command line say."""
    positional, settings = read_command(words, n_positional=len(words))
    if len(positional) < 2:
        raise SettingError('usage: python create_data_raw.py N REC [REC ...] [name=value ...]')
    if not re.fullmatch('[0-9]{1,9}', positional[0]):
        raise SettingError(f'N = {positional[0]!r}: must be the number of the patient')
    number = int(positional[0])
    reading = {
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
