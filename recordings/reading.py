"""Reading recordings as signals of CTF-275, resampled and filtered."""

import math
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mne
import numpy as np
from mne.io.constants import FIFF

from recordings.bids import bad_in_sidecar
from recordings.channels import (
    LEAST_CTF,
    LEAST_OTHER,
    N_CHANNELS,
    channel_names,
    has_position,
    interpolate_channels,
    map_to_ctf275,
    placed_info,
    plain_name,
)
from recordings.filters import preprocess_parts
from recordings.layout import Layout
from recordings.marker_files import as_text
from recordings.opening import HIGHEST_RATE, open_recording, read_layout
from utils import DataError, SettingError

HELMET = (0.01, 0.6)  # m, least and largest span of a system's sensors in each direction

SMALL_PIECE = 2**24  # numbers of a continuous part that are worth no thought
LARGEST_PIECE = 2**27  # numbers of a continuous part in memory before they are resampled: 1 GB
LARGEST_VALUE = 1e15  # of any signal in any unit; beyond, float32 overflows


class Recording(NamedTuple):
    """A block, ready for the windows.

    Attributes
    ----------
    name : str
        As in `file` of data_raw.
    meg : array (274, n_samples), float32
        In tesla, at the rate asked for, channels in the order of `ctf275_info`.
    layout : Layout
        Where the samples of the block lie in the recording.
    info : mne.Info
        The 274 channels where they were in this recording, and where the head was.
    facts : dict
        For the report: system, compensation, interpolated channels, ...
    raw_spans : mapping of arrays (n_parts,)
        Maximum - minimum, before any filter, of every good channel in each continuous part of all the recording that
        has two samples or more.
    """

    name: str
    meg: np.ndarray
    layout: Layout
    info: mne.Info
    facts: dict[str, Any]
    raw_spans: Mapping[str, np.ndarray] = MappingProxyType({})


def check_recording(raw: mne.io.BaseRaw, path: Path, *, low_pass: float, bad_channels: list[str]) -> bool:
    """Check an opened recording's channels and rate.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        From `open_recording`.
    path : Path
        Of the recording.
    low_pass, bad_channels
        The settings of these names.

    Returns
    -------
    bool
        Whether the recording is from a CTF-275.

    Raises
    ------
    DataError
        It has no or too few good MEG channels, another unit, or a rate that is too low or cannot be.
    SettingError
        It has no channel of a name in `bad_channels`.
    """
    check_units(raw, path)
    picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=[])
    if not len(picks):
        raise DataError(f'{path}: no MEG channels in it')
    if not raw.info['sfreq'] <= HIGHEST_RATE:
        raise DataError(f'{path}: sampled at {raw.info["sfreq"]:g} Hz: its header is damaged; copy the recording again')
    if raw.info['sfreq'] < 2 * low_pass:
        raise DataError(
            f'{path}: sampled at {raw.info["sfreq"]:g} Hz, below the {2 * low_pass:g} Hz that low_pass = {low_pass:g} '
            'needs; leave out this recording'
        )
    known = set(raw.ch_names) | set(channel_names()) | {'MRP52'}
    for name in bad_channels:
        if name not in known and plain_name(name) not in known:
            raise SettingError(f'bad_channels: {path} has no channel {name!r}; correct the name')
    bad = bad_names(raw, path, bad_channels)
    good = {plain_name(raw.ch_names[i]) for i in picks if plain_name(raw.ch_names[i]) not in bad}
    n_ctf = len(good & set(channel_names()))
    if n_ctf < LEAST_CTF and len(good) < LEAST_OTHER:
        raise DataError(f'{path}: only {len(good)} good MEG channels; at least {LEAST_OTHER} are needed')
    if n_ctf < LEAST_CTF:
        check_positions([raw.info['chs'][i] for i in picks if plain_name(raw.ch_names[i]) in good], path)
    return n_ctf >= LEAST_CTF


def check_positions(chs: list[dict], path: Path) -> None:
    """Check that the header of another system says where its sensors are, without which they cannot be mapped.

    Raises
    ------
    DataError
        A sensor has no position, or the positions span no helmet.
    """
    nowhere = [ch['ch_name'] for ch in chs if not has_position(ch)]
    if nowhere:
        raise DataError(
            f'{path}: does not say where {len(nowhere)} of its {len(chs)} sensors are, such as {nowhere[0]}; export it '
            'with the positions of its sensors, or name these in bad_channels'
        )
    spans = np.ptp([ch['loc'][:3] for ch in chs], axis=0)
    if spans.min() < HELMET[0] or spans.max() > HELMET[1]:
        raise DataError(
            f'{path}: its sensors span {" x ".join(f"{span:.2g}" for span in spans)} m, which is no helmet; export it '
            'with the positions of its sensors, in metres'
        )


def check_units(raw: mne.io.BaseRaw, path: Path) -> None:
    """Refuse a recording with MEG channels that are neither in tesla nor in tesla per metre.

    Raises
    ------
    DataError
        Names the first of them and its unit.
    """
    known = (FIFF.FIFF_UNIT_T, FIFF.FIFF_UNIT_T_M)
    faulty = [ch for ch in raw.info['chs'] if ch['kind'] == FIFF.FIFFV_MEG_CH and ch['unit'] not in known]
    if faulty:
        raise DataError(
            f'{path}: {len(faulty)} MEG channels, such as {faulty[0]["ch_name"]}, are not in tesla, but in the unit '
            f'{faulty[0]["unit"]}; export the recording in tesla'
        )


def bad_names(raw: mne.io.BaseRaw, path: Path, bad_channels: list[str]) -> set[str]:
    """Bad channels without suffix: of the setting, `info['bads']`, BadChannels (CTF) and _channels.tsv (BIDS)."""
    names = [*raw.info['bads'], *bad_channels, *bad_in_sidecar(path)]
    if (path / 'BadChannels').is_file():
        names += as_text((path / 'BadChannels').read_bytes()).split()
    return {plain_name(name) for name in names}


def block_layouts(path: Path, layout: Layout, trials: str) -> dict[str, Layout]:
    """Name in `file` to layout: one block per recording, or with `trials = 'apart'` one per continuous part."""
    name = path.resolve().name
    if trials == 'join' or len(layout.parts) == 1:
        return {name: layout}
    return {f'{name} [{i + 1}]': layout._replace(parts=[part]) for i, part in enumerate(layout.parts)}


def read_recording(
    path: str | Path,
    *,
    sfreq: float,
    high_pass: float,
    low_pass: float,
    notch: float | list[float] | None,
    bad_channels: list[str],
    trials: str,
) -> list[Recording]:
    """Read a recording and preprocess it, for training and for detection alike.

    Parameters
    ----------
    path : path
        CTF folder, FIF file, or another that MNE reads.
    sfreq, high_pass, low_pass, notch, bad_channels, trials
        The settings of these names.

    Returns
    -------
    list of Recording
        One block; with `trials = 'apart'`, one per continuous part.

    Raises
    ------
    DataError
        The recording cannot be read, or `check_recording` refuses it.
    SettingError
        It has no channel of a name in `bad_channels`.
    """
    path = Path(path)
    filters = {'sfreq': sfreq, 'high_pass': high_pass, 'low_pass': low_pass, 'notch': notch}
    with open_recording(path) as raw:
        is_ctf275 = check_recording(raw, path, low_pass=low_pass, bad_channels=bad_channels)
        layout = read_layout(raw, path)
        picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=[])
        source = mne.pick_info(raw.info, picks, verbose='error')
        names = [plain_name(name) for name in source['ch_names']]
        bad = [name for name in names if name in bad_names(raw, path, bad_channels)]
        source['bads'] = [ch for ch, name in zip(source['ch_names'], names, strict=True) if name in bad]
        signal, spans = _read_signal(raw, layout, picks, source['bads'], filters)
        compensation = raw.compensation_grade
    raw_spans = {
        name: spans_of_channel
        for name, spans_of_channel in zip(names, spans, strict=True)
        if name not in bad and (not is_ctf275 or name in channel_names())
    }
    facts = {
        'system': 'CTF-275' if is_ctf275 else f'{len(names)} channels of another system, mapped to CTF-275',
        'compensation': compensation,
        'interpolated': [],
        'left_out': [],
    }
    if is_ctf275:
        meg, info, facts['interpolated'] = _complete_ctf275(signal, source, bad, sfreq)
    else:
        meg, info = map_to_ctf275(signal, source, sfreq)
        facts['left_out'] = bad
    del signal  # of a long recording, a third of the memory
    layouts = block_layouts(path, layout, trials)
    ends = np.cumsum([block_layout.lengths(sfreq).sum() for block_layout in layouts.values()])
    block_signals = np.split(meg.astype(np.float32), ends[:-1], axis=1)
    return [
        Recording(name, block_signal, block_layout, info, _layout_facts(name, block_layout) | facts, raw_spans)
        for (name, block_layout), block_signal in zip(layouts.items(), block_signals, strict=True)
    ]


def _read_signal(raw, layout, picks, bads, filters):
    """Read and preprocess channels, some at a time; return them, and the spans of each, see `noting_spans`."""
    lengths = [stop - start for start, stop in layout.parts]
    ends = np.cumsum(layout.lengths(filters['sfreq']))
    signal, spans = np.empty((len(picks), ends[-1])), []
    # Each group of channels is read from the file anew, so that a long recording takes no more memory than a short one.
    # Four groups also where one would do: they take a quarter of the memory and hardly more time.
    n_numbers = len(picks) * max(lengths)
    n_groups = max(math.ceil(n_numbers / LARGEST_PIECE), min(4, math.ceil(n_numbers / SMALL_PIECE)))
    for rows in np.array_split(np.arange(len(picks)), n_groups):
        of_parts = []
        read = (read_part(raw, layout.path, picks[rows], bads, *part) for part in layout.parts)
        parts = preprocess_parts(noting_spans(read, of_parts), lengths, raw_sfreq=layout.sfreq, **filters)
        for end, part in zip(ends, parts, strict=True):
            signal[rows, end - part.shape[1] : end] = part
        spans.extend(np.reshape(of_parts, (-1, len(rows))).T)
    return signal, spans


def _complete_ctf275(signal, source, bad, sfreq):
    """Interpolate bad and absent channels; return the 274 signals, their info, and the names interpolated."""
    names = [plain_name(name) for name in source['ch_names']]
    info = placed_info(source['chs'], source['dev_head_t'], sfreq)
    interpolated = [channel for channel in info['ch_names'] if channel not in names or channel in bad]
    meg = np.zeros((N_CHANNELS, signal.shape[1]))
    for row, channel in enumerate(info['ch_names']):
        if channel not in interpolated:
            meg[row] = signal[names.index(channel)]
    return interpolate_channels(meg, info, interpolated), info, interpolated


def _layout_facts(name, layout):
    lengths = np.diff(layout.parts) / layout.sfreq
    return {
        'file': name,
        'seconds': float(lengths.sum()),
        'sampling_rate': layout.sfreq,
        'continuous_parts': len(lengths),
        'shortest_part': float(lengths.min()),
    }


def noting_spans(parts: Iterable[np.ndarray], spans: list[np.ndarray]) -> Generator[np.ndarray]:
    """Pass on continuous parts, and note how much their channels span.

    Parameters
    ----------
    parts : iterable of arrays (n_channels, n_samples)
        In tesla.
    spans : list
        Receives, of every part of two samples or more, maximum - minimum of each channel, (n_channels,).

    Yields
    ------
    array (n_channels, n_samples)
        The same parts, but that channels which do not change in them become 0: the rounding of a filter would leave of
        a large constant what looks like signal once it is scaled.
    """
    for part in parts:
        if part.shape[1] > 1:
            spans.append(np.ptp(part, axis=1))
            part[spans[-1] == 0] = 0
        yield part


def read_part(raw: mne.io.BaseRaw, path: Path, picks: np.ndarray, bads: list[str], start: int, stop: int) -> np.ndarray:
    """Read samples `start` to `stop` (excluded) of the channels `picks`.

    Returns
    -------
    array (n_channels, n_samples)
        In tesla. A bad channel that is not finite becomes 0.

    Raises
    ------
    DataError
        MNE cannot read them, or a good channel is not finite.
    """
    try:
        signal = np.asarray(raw.get_data(picks=picks, start=start, stop=stop, verbose='error'))
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: MNE cannot read its samples ({type(fault).__name__}: {fault})') from fault
    is_signal = (signal.max(axis=1) < LARGEST_VALUE) & (signal.min(axis=1) > -LARGEST_VALUE)  # which NaN is not
    for row in np.flatnonzero(~is_signal):
        name = raw.ch_names[picks[row]]
        if name not in bads:
            raise DataError(f'{path}: {name} holds NaN, infinity or more than any signal; name it in bad_channels')
        signal[row] = 0
    return signal
