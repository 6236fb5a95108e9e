"""The 274 channels of CTF-275: their places, absent ones, and other systems mapped to them."""

import functools
import re

import mne
import numpy as np
from scipy.spatial.transform import Rotation

N_CHANNELS = 274  # CTF-275 without MRP52


# -------------------------------------------------------------------------------------------- channels
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
    # ex, ey and ez (the coil's normal); a reflected frame is left-handed, so ey is turned round.
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


LEAST_CTF = 200  # good channels of CTF-275 below which a recording is not taken for one (CTF-151 has 151)
LEAST_OTHER = 60  # good MEG channels of another system that can stand for 274


# ---------------------------------------------------------------------------------------------- channels
def sphere_centre(info: mne.Info) -> np.ndarray:
    """Centre of the sphere nearest to the MEG sensors, in metres in head coordinates: about that of the head."""
    picks = mne.pick_types(info, meg=True, ref_meg=False, exclude=[])
    sensors = np.array([info['chs'][i]['loc'][:3] for i in picks if has_position(info['chs'][i])])
    # |p|^2 = 2 p.c + constant
    system = np.column_stack([2 * sensors, np.ones(len(sensors))])
    centre = np.linalg.lstsq(system, (sensors**2).sum(axis=1))[0][:3]
    return mne.transforms.apply_trans(info['dev_head_t'], centre)


def has_position(ch: dict) -> bool:
    """Whether a recording's header says where a sensor is and where it looks."""
    loc = ch['loc']
    return bool(np.isfinite(loc).all() and loc[:3].any() and loc[9:].any())


def plain_name(name: str) -> str:
    """A CTF channel's name without the suffix of its run."""
    return re.sub(r'^(M[LRZ][CFOPT][0-9]{2})-.*', r'\1', name)


def placed_info(chs: list[dict], dev_head_t: mne.Transform | None, sfreq: float) -> mne.Info:
    """`ctf275_info` with the channels where a recording's header puts them.

    Channels that the header lacks lie where the usual CTF-275 has them, moved as a whole to fit the others (in a real
    header, the others then lie 1.1 mm off on average).
    """
    info = ctf275_info(sfreq)
    found = {plain_name(ch['ch_name']): ch for ch in chs}
    usual = {ch['ch_name']: ch['loc'].reshape(4, 3).copy() for ch in info['chs']}
    placed = [name for name in usual if name in found and has_position(found[name])]
    if len(placed) >= LEAST_CTF:
        there = np.array([found[name]['loc'][:3] for name in placed])
        here = np.array([usual[name][0] for name in placed])
        turn, _ = Rotation.align_vectors(there - there.mean(axis=0), here - here.mean(axis=0))
        for ch in info['chs']:
            if ch['ch_name'] in placed:
                ch['loc'] = found[ch['ch_name']]['loc'].copy()
            else:
                loc = turn.apply(usual[ch['ch_name']])
                loc[0] += there.mean(axis=0) - turn.apply(here.mean(axis=0))
                ch['loc'] = loc.ravel()
        if dev_head_t is not None:
            info['dev_head_t'] = dev_head_t
    return info


def interpolate_channels(signal: np.ndarray, info: mne.Info, names: list[str]) -> np.ndarray:
    """Replace channels by what the others say of them (MNE's minimum-norm interpolation); (274, n_samples), tesla."""
    if not names:
        return signal
    raw = mne.io.RawArray(signal, info.copy(), verbose='error')
    raw.info['bads'] = list(names)
    # 'fast' is twice as fast and gives the same to 1e-4.
    raw.interpolate_bads(origin=sphere_centre(info), mode='fast', verbose='error')
    return raw.get_data()


def map_to_ctf275(signal: np.ndarray, info: mne.Info, sfreq: float) -> tuple[np.ndarray, mne.Info]:
    """Map the good MEG channels of another system to CTF-275 with MNE's `interpolate_to`.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        In tesla (planar gradiometers: tesla per metre).
    info : mne.Info
        Of these channels; `bads` are left out.

    Returns
    -------
    signal : array (274, n_samples)
    info : mne.Info
        With the head where it was.
    """
    info = info.copy()
    with info._unlock():
        info.update(sfreq=sfreq, comps=[], lowpass=sfreq / 2, highpass=0.0)
        info['dev_head_t'] = info['dev_head_t'] or mne.Transform('meg', 'head')
    to = ctf275_info(sfreq)
    # Each system counts from another point of its helmet: let the centres of the helmets coincide.
    in_head = sphere_centre(info)
    shift = sphere_centre(to) - mne.transforms.apply_trans(np.linalg.inv(info['dev_head_t']['trans']), in_head)
    for ch in info['chs']:
        ch['loc'][:3] += shift
    trans = info['dev_head_t']['trans'].copy()
    trans[:3, 3] -= trans[:3, :3] @ shift
    info['dev_head_t'] = to['dev_head_t'] = mne.Transform('meg', 'head', trans)
    with mne.utils.use_log_level('error'):
        raw = mne.io.RawArray(signal, info).interpolate_to('ctf275', origin=in_head, mode='fast')
    rows = {plain_name(name): row for name, row in zip(raw.ch_names, raw.get_data(), strict=True)}
    absent = [name for name in to['ch_names'] if name not in rows]  # MNE's table lacks MLO42
    mapped = np.array([rows.get(name, np.zeros(signal.shape[1])) for name in to['ch_names']])
    return interpolate_channels(mapped, to, absent), to
