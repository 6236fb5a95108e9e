"""Where the spikes of a group may come from: single equivalent dipoles."""

from typing import NamedTuple

import mne
import numpy as np

from recordings.channels import sphere_centre
from recordings.reading import Recording


class Dipole(NamedTuple):
    """A single equivalent dipole.

    Attributes
    ----------
    position, orientation : array (3,)
        In metres, and of length 1: x to the right, y to the front, z up. In head coordinates where the recording has
        the head's position, otherwise in those of the helmet.
    moment : float
        In A m.
    goodness : float
        Share of the field's power that the dipole explains, from 0 to 1.
    confidence : float
        Volume in m^3 that holds the position with a probability of 95 %, if nothing but the background disturbs it.
    """

    position: np.ndarray
    orientation: np.ndarray
    moment: float
    goodness: float
    confidence: float


def fit_dipoles(
    fields: np.ndarray, info: mne.Info, interpolated: list[str], noise: np.ndarray, counts: np.ndarray
) -> list[Dipole]:
    """Fit a single equivalent dipole in a spherical head to each of several fields, with MNE.

    The position is that of the least error weighted by the background; moment and goodness are those of the dipole at
    this position that comes nearest to the field, all channels alike.

    Parameters
    ----------
    fields : array (n_fields, 274)
        In tesla.
    info : mne.Info
        Positions of the channels and of the head. The centre of the sphere is that of the sensors.
    interpolated : list of str
        Channels that are left out of the fit, because they measure nothing of their own.
    noise : array (274, 274)
        Covariance of the background of a single event, in T^2.
    counts : array (n_fields,)
        Events that each field is the average of.
    """
    if not len(fields):
        return []
    # MNE cannot fit nothing. A tiny field that is the same everywhere gives a moment of nearly 0 in its place.
    measured = ~np.isin(info['ch_names'], interpolated)
    fields = np.where(fields[:, measured].any(axis=1, keepdims=True), fields, 1e-20)
    evoked = mne.EvokedArray(np.transpose(fields), info.copy(), verbose='error')
    evoked.info['bads'] = list(interpolated)
    covariance = mne.Covariance(noise, info['ch_names'], [], [], nfree=1, verbose='error')
    sphere = mne.make_sphere_model(r0=sphere_centre(info), head_radius=None, verbose='error')
    fit, _ = mne.fit_dipole(evoked, covariance, sphere, verbose='error')
    # The fit of an average is that of a single event, but for the noise: variances are 1 / count.
    volumes = fit.conf['vol'] * np.asarray(counts) ** -1.5
    equal = mne.make_ad_hoc_cov(info, verbose='error')
    dipoles = []
    for index, (position, volume) in enumerate(zip(fit.pos, volumes.tolist(), strict=True)):
        field = mne.EvokedArray(evoked.data[:, [index]], evoked.info, verbose='error')
        # The search can end a little beyond the distance that it keeps from the skull, where MNE refuses to start.
        there, _ = mne.fit_dipole(field, equal, sphere, min_dist=0, pos=position, verbose='error')
        dipoles.append(Dipole(position, there.ori[0], float(there.amplitude[0]), float(there.gof[0]) / 100, volume))
    return dipoles


def interpolated_channels(blocks: list[Recording]) -> list[str]:
    """Names of the channels that were interpolated in any of the blocks."""
    return sorted({channel for block in blocks for channel in block.facts['interpolated']})


def coordinates(info: mne.Info) -> str:
    """Description of the origin and the axes that positions refer to."""
    axes = 'x to the right, y to the front, z up'
    if np.allclose(info['dev_head_t']['trans'], np.eye(4)):
        return f'of the helmet, {axes}: where the head was in it is not known'
    return f'of the head, by its fiducial points, {axes}'
