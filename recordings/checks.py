"""Warnings about recordings: plain sentences for the console, the JSON files and the report of every script."""

from collections.abc import Generator, Mapping
from pathlib import Path

import mne
import numpy as np
from mne.io.constants import FIFF

from recordings.bad_segments import (
    read_bad_segments,
    recorded_segments,
    samples_of_segments,
    segments_in_block,
    touches,
)
from recordings.channels import channel_names, ctf275_info
from recordings.data_raw import flat_channels, in_tesla, read_data_raw, read_record, record_warnings
from recordings.filters import filter_seconds
from recordings.layout import Layout
from recordings.opening import ctf_header, open_recording, read_annotations, read_notes
from recordings.reading import Recording, read_recording
from utils import DataError

ROUNDING = 1e-24  # what a filter can make of a constant, in T
LOUD = 100  # times what most channels span, which no brain, heart or eye makes of a channel
N_NAMED = 5  # names in a message, before "and N more"


def read_checked(path: str | Path, markers: str | Path | None = None, **reading) -> list[Recording]:
    """Read a recording with `read_recording`, and check it.

    Parameters
    ----------
    path : path
        The recording.
    markers : path, optional
        A file to read instead of the recording's own markers, see `read_annotations`.
    **reading
        The keyword arguments of `read_recording`.

    Returns
    -------
    list of Recording
        Their facts hold `warnings`, those of all the recording, and `bad_segments` in samples of the block.
    """
    path = Path(path)
    blocks = read_recording(path, **reading)
    layout = blocks[0].layout._replace(parts=[part for block in blocks for part in block.layout.parts])
    with open_recording(path) as raw:
        segments = recording_segments(raw, layout, markers)
        warnings = clock_warnings(raw, layout) + unit_warnings(raw.info)
        warnings += marker_warnings(read_annotations(raw, layout, markers), layout)
    warnings += segment_warnings(segments, layout) + system_warnings(blocks[0].facts)
    warnings += part_warnings(layout, filter_seconds(reading['high_pass'])) + signal_warnings(blocks)
    return [
        block._replace(
            facts=block.facts
            | {'bad_segments': segments_in_block(segments, block.layout, reading['sfreq']), 'warnings': warnings}
        )
        for block in blocks
    ]


def read_data_raw_blocks(path: Path, sfreq: float, window_length: int) -> Generator[tuple[int, Recording]]:
    """Read the blocks of a data_raw file that are no shorter than a window, as recordings with their warnings.

    Parameters
    ----------
    path : Path
        The data_raw file.
    sfreq : float
        Of the file, in Hz.
    window_length : int
        In samples.

    Yields
    ------
    number : int
        Index of the block in the file.
    block : Recording
        Without `raw_spans`.

    Raises
    ------
    DataError
        The file is faulty, or every block is shorter than a window.
    """
    record, data = read_record(path), read_data_raw(path)
    facts_by_name = {recording['file']: recording for recording in record.get('recordings', [])}
    bad_segments = recorded_segments(record, data['file'])
    if max(signal.shape[1] for signal in data['meg']) < window_length:
        raise DataError(f'{path}: every block is shorter than a window of {window_length} samples')
    for number, (signal, name) in enumerate(zip(data['meg'], data['file'], strict=True)):
        n_samples = signal.shape[1]
        if n_samples < window_length:
            print(f'warning: {path}: block {number} ({name}) is shorter than a window and left out')
            continue
        recorded = facts_by_name.get(name, {})
        facts = {
            'file': name,
            'seconds': n_samples / sfreq,
            'sampling_rate': sfreq,
            'system': 'a block of data_raw, which does not say where its recording had gaps',
            'compensation': recorded.get('compensation'),
            # A data_raw file made of another system may list channels of that system.
            'interpolated': [channel for channel in recorded.get('interpolated', []) if channel in channel_names()],
            'bad_segments': bad_segments[number],
            'warnings': record_warnings(record, data['file']) + recorded.get('warnings', []) + block_warnings(signal),
        }
        layout = Layout(path, sfreq, [(0, n_samples)], None, 0.0, None)
        yield number, Recording(name, signal, layout, ctf275_info(sfreq), facts)


def recording_segments(raw: mne.io.BaseRaw, layout: Layout, markers: str | Path | None) -> np.ndarray:
    """Bad segments of an opened recording, (n_segments, 2) in s, those of a file of annotations included."""
    notes = read_notes(raw, layout)
    if markers is not None and Path(markers).suffix != '.mrk':
        notes += read_notes(raw, layout, markers)
    return read_bad_segments(layout, notes)


def source_files(raw: mne.io.BaseRaw) -> list[Path]:
    """The files of an opened recording, in order."""
    return [Path(file).resolve() for file in raw.filenames if file is not None]


def listed(names: list[str]) -> str:
    """List the first names, and the number of the others."""
    more = f' and {len(names) - N_NAMED} more' if len(names) > N_NAMED else ''
    return ', '.join(names[:N_NAMED]) + more


# ------------------------------------------------------------------------------------------ the header
def clock_warnings(raw: mne.io.BaseRaw, layout: Layout) -> list[str]:
    """Warn of a CTF recording of which MNE gives fewer samples than its header counts, because its clock stops."""
    if not layout.trial:
        return []
    n_samples, _, n_trials, _ = ctf_header(layout.path)
    if raw.n_times >= n_samples * n_trials:
        return []
    return [
        f'cut short: its clock (SCLK01) stops after {raw.n_times / layout.sfreq:.2f} s of '
        f'{n_samples * n_trials / layout.sfreq:.2f} s, and what follows is not read; the recording was aborted, or its '
        'clock failed'
    ]


def unit_warnings(info: mne.Info) -> list[str]:
    """Warn of MEG channels that are not in tesla, or as planar gradiometers in tesla per metre, by the header."""
    names_by_unit = {}
    for ch in info['chs']:
        unit = 'T/m' if ch['unit'] == FIFF.FIFF_UNIT_T_M else 'T'
        is_axial = ch['coil_type'] == FIFF.FIFFV_COIL_CTF_GRAD
        if ch['kind'] == FIFF.FIFFV_MEG_CH and (ch['unit_mul'] != 0 or (is_axial and unit != 'T')):
            scale = f'10^{int(ch["unit_mul"])} ' if ch['unit_mul'] != 0 else ''
            names_by_unit.setdefault((scale + unit, 'T' if is_axial else unit), []).append(ch['ch_name'])
    return [
        f'the header says that {listed(names)} are in {unit}, but they are read as {read_as}; compare their size with '
        'that of other recordings'
        for (unit, read_as), names in names_by_unit.items()
    ]


def marker_warnings(labels: dict[str, np.ndarray], layout: Layout) -> list[str]:
    """Warn of markers outside of the recorded samples, by label; `labels` is label to times in s."""
    warnings = []
    for label, times in labels.items():
        n_outside = len(times) - len(layout.to_samples(times, layout.sfreq))
        if n_outside and not label.lower().startswith(('bad', 'edge')):
            warnings.append(
                f'{n_outside} of {len(times)} markers {label!r} lie outside of the recorded samples and are left out; '
                'see whether they are of this recording'
            )
    return warnings


def segment_warnings(segments: np.ndarray, layout: Layout) -> list[str]:
    """Warn of bad segments, (n_segments, 2) in s, and of those outside of the recorded samples."""
    spans = segments_in_block(segments, layout, layout.sfreq)
    first, end = samples_of_segments(segments, layout.sfreq)
    n_outside = np.count_nonzero(~touches(first, end, layout.parts))
    warnings = []
    if spans:
        seconds = sum(end - first for first, end in spans) / layout.sfreq
        warnings.append(f'{seconds:.1f} s in {len(spans)} segments are marked bad; training leaves them out')
    if n_outside:
        warnings.append(
            f'{n_outside} of {len(segments)} bad segments lie outside of the recorded samples; see whether they are of '
            'this recording'
        )
    return warnings


def system_warnings(facts: dict) -> list[str]:
    """Warn of another system than CTF-275."""
    if facts['system'] == 'CTF-275':
        return []
    without = f'without {listed(facts["left_out"])}; ' if facts['left_out'] else ''
    return [f'{facts["system"]}; {without}signals of CTF-275 are estimates']


def part_warnings(layout: Layout, filter_length: float) -> list[str]:
    """Warn of continuous parts shorter than the high-pass filter, whose length is in s."""
    shortest = min(stop - start for start, stop in layout.parts) / layout.sfreq
    if shortest >= filter_length:
        return []
    return [
        f'a continuous part of {shortest:.1f} s is shorter than the high-pass filter ({filter_length:.1f} s), which '
        'distorts slow waves in it'
    ]


# ----------------------------------------------------------------------------------------- the samples
def signal_warnings(blocks: list[Recording]) -> list[str]:
    """Warn of flat channels, parts or recordings, of signals of an unlikely size, and of channels that jump or ring."""
    signals = [block.meg for block in blocks]
    return flat_warnings(blocks[0].raw_spans) + size_warnings(signals) + loud_warnings(signals)


def block_warnings(signal: np.ndarray) -> list[str]:
    """`signal_warnings` of a block of data_raw, (274, n_samples) in tesla, whose raw samples are not known."""
    spans = dict(zip(channel_names(), np.ptp(signal, axis=1)[:, None], strict=True))
    return flat_warnings(spans) + size_warnings([signal]) + loud_warnings([signal])


def flat_warnings(spans: Mapping[str, np.ndarray]) -> list[str]:
    """Warn of flat channels, of continuous parts in which all are flat, or of a flat recording.

    Parameters
    ----------
    spans : mapping of arrays (n_parts,)
        Channel to its maximum - minimum in every continuous part.

    Returns
    -------
    list of str
    """
    flat = np.array([flat_channels(np.array(spans_of_part)) for spans_of_part in zip(*spans.values(), strict=True)])
    if not len(flat):
        return []
    flat_parts = flat.all(axis=1)
    if flat_parts.all():
        return [
            'the recording is flat: no channel changes, so there is no signal to find anything in, and that nothing is '
            'found says nothing about the patient'
        ]
    warnings = []
    if flat_parts.any():
        warnings.append(f'{np.count_nonzero(flat_parts)} of {len(flat)} continuous parts are flat: no channel changes')
    flat_elsewhere = np.all(flat[~flat_parts], axis=0).tolist()
    channels = [name for name, is_flat in zip(spans, flat_elsewhere, strict=True) if is_flat]
    if channels:
        warnings.append(f'flat channels {listed(channels)}; name them in bad_channels')
    return warnings


def size_warnings(signals: list[np.ndarray]) -> list[str]:
    """Warn of signals (274, n_samples) too small or too large for brain signal in tesla; flat ones do not count."""
    spans = [np.ptp(signal, axis=1) for signal in signals]
    changing = np.concatenate([span[~flat_channels(span) & (span > ROUNDING)] for span in spans])
    if not len(changing) or in_tesla(np.median(changing)):
        return []
    return [
        f'the signal spans {np.median(changing):.2g} T (median over channels of maximum - minimum), where 1e-12 to '
        '1e-10 T are usual: it may be in another unit, or not from a brain'
    ]


def loud_warnings(signals: list[np.ndarray]) -> list[str]:
    """Warn of channels that span far more than the others in any of the signals (274, n_samples): they jump or ring."""
    loud = np.zeros(len(channel_names()), dtype=bool)
    for signal in signals:
        span = np.ptp(signal, axis=1).astype(np.float64)
        changing = span[~flat_channels(span) & (span > ROUNDING)]
        if len(changing):
            loud |= span > LOUD * np.median(changing)
    channels = [name for name, is_loud in zip(channel_names(), loud.tolist(), strict=True) if is_loud]
    if not channels:
        return []
    return [f'channels {listed(channels)} span over {LOUD} times as much as most others; name them in bad_channels']


# ---------------------------------------------------------------------------------- several recordings
def check_split(files: dict[Path, list[Path]]) -> None:
    """Refuse a file with which another one continues: MNE reads both with the first.

    Parameters
    ----------
    files : dict
        Recording to its `source_files`.

    Raises
    ------
    DataError
        Names the two.
    """
    continued = {file: path for path, parts in files.items() for file in parts[1:]}
    for path in files:
        if path.resolve() in continued:
            raise DataError(f'{path}: continues {continued[path.resolve()]}, with which it is read; leave it out')


def compensation_warnings(grades: dict[str, int | None]) -> list[str]:
    """Warn of compensation grades that differ between the recordings of a patient; `grades` is by name."""
    by_grade = {}
    for name, grade in grades.items():
        by_grade.setdefault(grade, []).append(name)
    if len(by_grade) < 2:
        return []
    names_of_grades = '; '.join(f'grade {grade} in {listed(names)}' for grade, names in by_grade.items())
    return [f'the compensation grades differ: {names_of_grades}; bring all recordings to one grade']


def training_warnings(grade: int | None, trained_on: set[int]) -> list[str]:
    """Warn of a compensation grade that no recording of the run's patients has (without known grades: no warning)."""
    if grade is None or not trained_on or grade in trained_on:
        return []
    known = ', '.join(map(str, sorted(trained_on)))
    return [f'compensation grade {grade}, but the run was trained on grade {known}; bring the recording to that grade']
