"""The recordings of a command, all of them checked before the first is read."""

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recordings.bids import EVENTS
from recordings.checks import check_split, clock_warnings, recording_segments, source_files
from recordings.layout import Layout
from recordings.opening import open_recording, read_annotations, read_layout
from recordings.reading import bad_names, block_layouts, check_recording
from utils import DataError, SettingError


class RecordingPlan(NamedTuple):
    """A recording to read, as its header and markers describe it.

    Attributes
    ----------
    path : Path
        The recording.
    markers : Path or None
        What is read instead of the recording's own markers.
    layout : Layout
        Of all the recording.
    blocks : dict
        Name in `file` to layout.
    labels : dict of arrays (n_markers,)
        Label to times, in s from the first sample of the recording.
    segments : array (n_segments, 2)
        Onset and end of the bad segments, in s from the first sample of the recording.
    files : list of Path
        The files of the recording.
    bads : list of str
        Its bad channels, without suffix.
    """

    path: Path
    markers: Path | None
    layout: Layout
    blocks: dict[str, Layout]
    labels: dict[str, np.ndarray]
    segments: np.ndarray
    files: list[Path]
    bads: list[str]


def plan_recordings(
    words: list[str], *, sfreq: float, window_size: float, low_pass: float, bad_channels: list[str], trials: str
) -> list[RecordingPlan]:
    """Check every recording before the first is read: header, channels, rate, length, markers.

    Parameters
    ----------
    words : list of str
        Paths of recordings; one that ends in .mrk, -annot.fif or _events.tsv is the annotation of the recording before
        it.
    sfreq, window_size, low_pass, bad_channels, trials
        The settings of these names.

    Returns
    -------
    list of RecordingPlan
        In the order of the words.

    Raises
    ------
    DataError
        A recording is faulty, too short, or of the same name as another one.
    SettingError
        An annotation comes without its recording, or no channel has a name of `bad_channels`.
    """
    planned = []
    for path, markers in recordings_with_markers(words):
        with open_recording(path) as raw:
            check_recording(raw, path, low_pass=low_pass, bad_channels=bad_channels)
            layout = read_layout(raw, path)
            labels = read_annotations(raw, layout, markers)
            segments = recording_segments(raw, layout, markers)
            files = source_files(raw)
            cut_short = clock_warnings(raw, layout)
            bads = sorted(bad_names(raw, path, bad_channels))
        blocks = block_layouts(path, layout, trials)
        longest = max((block.lengths(sfreq).sum() for block in blocks.values()), default=0)
        if longest < round(window_size * sfreq):
            which = 'its longest continuous part is' if trials == 'apart' else 'is'
            raise DataError(
                f'{path}: {which} {longest / sfreq:.3g} s long, shorter than a window (window_size = {window_size})'
                f'{"".join(f" ({warning})" for warning in cut_short)}; leave it out'
            )
        planned.append(RecordingPlan(path, markers, layout, blocks, labels, segments, files, bads))
    check_split({plan.path: plan.files for plan in planned})
    names = [name for plan in planned for name in plan.blocks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{name}: two recordings of this name; data_raw tells its blocks apart by name, rename one')
    return planned


def is_annotation(word: str) -> bool:
    """Whether a word names a file of markers and not a recording, by how it ends."""
    return word.endswith(('.mrk', '-annot.fif', '-annot.fif.gz', EVENTS))


def recordings_with_markers(words: list[str]) -> list[tuple[Path, Path | None]]:
    """Path of every recording, and of its annotation or None.

    Parameters
    ----------
    words : list of str
        See `plan_recordings`.

    Returns
    -------
    list of (Path, Path or None)

    Raises
    ------
    SettingError
        An annotation comes without its recording.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for word in words:
        if not is_annotation(word):
            pairs.append((Path(word), None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = pairs[-1][0], Path(word)
        else:
            raise SettingError(f'{word}: an annotation comes after its recording, one for each')
    return pairs


def chosen_labels(labels: list[str], include: str | list[str], exclude: str | Sequence[str] = ()) -> list[str]:
    """Labels that match a pattern of `include` and none of `exclude`; * stands for anything, case does not matter."""
    return [label for label in labels if _matches(label, include) and not _matches(label, exclude)]


def _matches(label, patterns):
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(label.lower(), pattern.lower()) for pattern in patterns)


def input_hash(planned: list[RecordingPlan], *others: Any) -> str:
    """SHA-256 of what plans say of recordings (continuous parts, markers, bad segments and channels), and of others.

    Parameters
    ----------
    planned : list of RecordingPlan
    *others
        What else decides the result, such as hashes of the samples and settings: all that JSON can hold.

    Returns
    -------
    str
    """
    recordings = [
        {
            'blocks': list(plan.blocks),
            'parts': plan.layout.parts,
            'labels': {label: times.tolist() for label, times in plan.labels.items()},
            'segments': plan.segments.tolist(),
            'bads': plan.bads,
        }
        for plan in planned
    ]
    return hashlib.sha256(json.dumps([recordings, others], sort_keys=True).encode()).hexdigest()
