"""The 274 channels of CTF-275: their positions, absent ones, and other systems mapped to them."""

import copy
import functools
import re

import mne
import numpy as np
from scipy.spatial.transform import Rotation

N_CHANNELS = 274  # CTF-275 without MRP52
LEAST_CTF = 200  # good channels of CTF-275 that identify this system (CTF-151 has 151)
LEAST_OTHER = 60  # good MEG channels of another system that can be mapped to 274


def ctf275_info(sfreq: float) -> mne.Info:
    """Describe the 274 channels (CTF-275 without MRP52) of a recording, in CTF order.

    Parameters
    ----------
    sfreq : float
        Sampling frequency, in Hz.

    Returns
    -------
    info : mne.Info
        Channel names without run suffix, positions in metres in device coordinates (x to the right, y to the front,
        z up), no compensation. The device and head coordinates coincide.
    """
    canonical = mne.channels.read_meg_canonical_info('ctf275')
    channels = {channel['ch_name'].split('-')[0]: channel for channel in canonical['chs']}
    del channels['MRP52']
    # MNE's table lacks MLO42: reflect its right-hand twin in the plane x = 0. `loc` holds the position, then the axes
    # ex, ey and ez (the coil's normal); a reflected frame is left-handed, so ey is reversed.
    loc = channels['MRO42']['loc'].reshape(4, 3) * [-1, 1, 1]
    loc[2] *= -1
    channels['MLO42'] = dict(channels['MRO42'], loc=loc.ravel())
    names = sorted(channels)
    info = mne.create_info(names, sfreq, 'mag')
    for channel, name in zip(info['chs'], names, strict=True):
        channel.update({key: channels[name][key] for key in ('loc', 'coil_type', 'coord_frame', 'unit')})
    info['dev_head_t'] = mne.Transform('meg', 'head')
    return info


@functools.cache
def channel_names() -> list[str]:
    """Names of the 274 channels of every block and window, in order."""
    return ctf275_info(150.0)['ch_names']


def sphere_centre(info: mne.Info) -> np.ndarray:
    """Centre of the sphere nearest to the MEG sensors, in metres in head coordinates: about that of the head."""
    picks = mne.pick_types(info, meg=True, ref_meg=False, exclude=[])
    sensors = np.array([info['chs'][i]['loc'][:3] for i in picks if has_position(info['chs'][i])])
    # |p|^2 = 2 p.c + constant
    system = np.column_stack([2 * sensors, np.ones(len(sensors))])
    centre = np.linalg.lstsq(system, (sensors**2).sum(axis=1))[0][:3]
    return mne.transforms.apply_trans(info['dev_head_t'], centre)


def has_position(ch: dict) -> bool:
    """Whether a recording's header has the position and orientation of a sensor."""
    loc = ch['loc']
    return bool(np.isfinite(loc).all() and loc[:3].any() and loc[9:].any())


def plain_name(name: str) -> str:
    """A CTF channel's name without the suffix of its run."""
    return re.sub(r'^(M[LRZ][CFOPT][0-9]{2})-.*', r'\1', name)


def placed_info(chs: list[dict], dev_head_t: mne.Transform | None, sfreq: float) -> mne.Info:
    """`ctf275_info` with the positions of a recording's header.

    Channels that the header lacks get the positions of the standard CTF-275, moved as a whole to fit the others (in a
    real header, the others then lie 1.1 mm off on average).

    Parameters
    ----------
    chs : list of dict
        Channels of the recording, from `info['chs']`.
    dev_head_t : mne.Transform, optional
        From its device to its head coordinates; one that is not finite counts as absent.
    sfreq : float
        Sampling frequency of the result, in Hz.

    Returns
    -------
    mne.Info
        Of the 274 channels.
    """
    info = ctf275_info(sfreq)
    recorded = {plain_name(ch['ch_name']): ch for ch in chs}
    standard = {ch['ch_name']: ch['loc'].reshape(4, 3).copy() for ch in info['chs']}
    placed = [name for name in standard if name in recorded and has_position(recorded[name])]
    if len(placed) >= LEAST_CTF:
        recorded_positions = np.array([recorded[name]['loc'][:3] for name in placed])
        standard_positions = np.array([standard[name][0] for name in placed])
        recorded_centre, standard_centre = recorded_positions.mean(axis=0), standard_positions.mean(axis=0)
        rotation, _ = Rotation.align_vectors(recorded_positions - recorded_centre, standard_positions - standard_centre)
        for ch in info['chs']:
            if ch['ch_name'] in placed:
                ch['loc'] = recorded[ch['ch_name']]['loc'].copy()
            else:
                loc = rotation.apply(standard[ch['ch_name']])
                loc[0] += recorded_centre - rotation.apply(standard_centre)
                ch['loc'] = loc.ravel()
        if dev_head_t is not None and np.isfinite(dev_head_t['trans']).all():
            info['dev_head_t'] = dev_head_t
    return info


def interpolate_channels(signal: np.ndarray, info: mne.Info, names: list[str]) -> np.ndarray:
    """Replace channels, in place, by an estimate from all others (MNE's minimum-norm interpolation).

    Parameters
    ----------
    signal : float64 array (274, n_samples)
        In tesla.
    info : mne.Info
        Of these channels.
    names : list of str
        The channels to replace.

    Returns
    -------
    array (274, n_samples)
        `signal`.
    """
    if not names:
        return signal
    rows = [info['ch_names'].index(name) for name in names]
    locations = np.array([ch['loc'] for ch in info['chs']])
    signal[rows] = _interpolation(locations.tobytes(), tuple(names))[rows] @ signal
    return signal


@functools.lru_cache(maxsize=4)
def _interpolation(locations: bytes, names: tuple[str, ...]) -> np.ndarray:
    """Matrix (274, 274) that interpolates channels from the others.

    It takes seconds, and is the same for all recordings with the same sensors: it depends on where they are in the
    helmet (`loc` of every channel, float64), not on where the head is.
    """
    info = ctf275_info(150.0)
    for ch, loc in zip(info['chs'], np.frombuffer(locations).reshape(N_CHANNELS, -1), strict=True):
        ch['loc'] = loc.copy()
    # The interpolation is linear: what it makes of each channel alone says all, however long the recording is.
    raw = mne.io.RawArray(np.eye(N_CHANNELS), info, verbose='error')
    raw.info['bads'] = list(names)
    # 'fast' is twice as fast and gives the same to 1e-4.
    raw.interpolate_bads(origin=sphere_centre(info), mode='fast', verbose='error')
    return np.asarray(raw.get_data())


def _info_at(info, sfreq):
    """Copy what a mapping needs of an info, at another sampling frequency and without compensation."""
    new = mne.create_info(info['ch_names'], sfreq, 'mag')
    for new_ch, ch in zip(new['chs'], info['chs'], strict=True):
        new_ch.update(copy.deepcopy(ch))
    new['bads'] = list(info['bads'])
    new['dev_head_t'] = info['dev_head_t'] or mne.Transform('meg', 'head')
    return new


def map_to_ctf275(signal: np.ndarray, info: mne.Info, sfreq: float) -> tuple[np.ndarray, mne.Info]:
    """Map the good MEG channels of another system to CTF-275 with MNE's `interpolate_to`.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        In tesla (planar gradiometers: tesla per metre).
    info : mne.Info
        Of these channels; `bads` are left out.
    sfreq : float
        Sampling frequency of `signal`, in Hz.

    Returns
    -------
    signal : array (274, n_samples)
        In tesla.
    info : mne.Info
        With the position of the head in the recording.
    """
    projs, info = info['projs'], _info_at(info, sfreq)
    to = ctf275_info(sfreq)
    # Each system counts from another point of its helmet: let the centres of the helmets coincide.
    in_head = sphere_centre(info)
    shift = sphere_centre(to) - mne.transforms.apply_trans(np.linalg.inv(info['dev_head_t']['trans']), in_head)
    for ch in info['chs']:
        ch['loc'][:3] += shift
    trans = info['dev_head_t']['trans'].copy()
    trans[:3, 3] -= trans[:3, :3] @ shift
    info['dev_head_t'] = to['dev_head_t'] = mne.Transform('meg', 'head', trans)
    # The mapping is linear: what it makes of each channel alone says all, however long the recording is.
    with mne.utils.use_log_level('error'):
        alone = mne.io.RawArray(np.eye(len(signal)), info).add_proj(projs)
        raw = alone.interpolate_to('ctf275', origin=in_head, mode='fast')
    rows = {plain_name(name): row for name, row in zip(raw.ch_names, raw.get_data(), strict=True)}
    absent = [name for name in to['ch_names'] if name not in rows]  # MNE's table lacks MLO42
    matrix = np.array([rows.get(name, np.zeros(len(signal))) for name in to['ch_names']])
    return interpolate_channels(matrix, to, absent) @ signal, to
