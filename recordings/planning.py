"""Recordings that a command names, checked before the first is read."""

import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordings.checks import check_split, clock_warnings, recording_segments, source_files
from recordings.layout import Layout
from recordings.reading import block_layouts, check_recording, open_recording, read_annotations, read_layout
from utils import DataError, SettingError


class RecordingPlan(NamedTuple):
    """A recording to read, as its header and markers describe it.

    Attributes
    ----------
    markers : Path or None
        What is read instead of the recording's own markers.
    blocks : dict
        Name in `file` to layout.
    labels : dict
        Label to times in s.
    segments : array (n, 2)
        Onset and end of what is marked bad, in s.
    files : list of Path
        From which it is read.
    """

    path: Path
    markers: Path | None
    layout: Layout
    blocks: dict[str, Layout]
    labels: dict[str, np.ndarray]
    segments: np.ndarray
    files: list[Path]


def plan_recordings(
    words: list[str], *, sfreq: float, window_size: float, low_pass: float, bad_channels: list[str], trials: str
) -> list[RecordingPlan]:
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
            segments = recording_segments(raw, layout, markers)
            files = source_files(raw)
            cut_short = clock_warnings(raw, layout)
        blocks = block_layouts(path, layout, trials)
        longest = max((block.lengths(sfreq).sum() for block in blocks.values()), default=0)
        if longest < round(window_size * sfreq):
            which = 'its longest continuous part is' if trials == 'apart' else 'is'
            raise DataError(
                f'{path}: {which} {longest / sfreq:.3g} s long, shorter than a window (window_size = {window_size})'
                f'{"".join(f" ({warning})" for warning in cut_short)}; leave it out'
            )
        planned.append(RecordingPlan(path, markers, layout, blocks, labels, segments, files))
    check_split({plan.path: plan.files for plan in planned})
    names = [name for plan in planned for name in plan.blocks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{name}: two recordings of this name; data_raw tells its blocks by name, rename one')
    return planned


def chosen_labels(labels: list[str], include: str | list[str], exclude: str | list[str] = ()) -> list[str]:
    """Labels that match a pattern of `include` and none of `exclude`; * stands for anything, case does not matter."""

    def matches(label, patterns):
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch.fnmatchcase(label.lower(), pattern.lower()) for pattern in patterns)

    return [label for label in labels if matches(label, include) and not matches(label, exclude)]
