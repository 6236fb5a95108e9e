"""How wrong are interpolated channels, recordings of another system, and dipoles? On simulated sources, and real data.

    python benchmarks/channels.py REC.ds

REC.ds is a CTF-275 recording; the channels that it lacks are simulated where its helmet has them. Prints the tables of
benchmarks/README.md. Takes 2 minutes on 2 cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mne
import numpy as np
from scipy.spatial.transform import Rotation

from recordings import simulation
from recordings.channels import ctf275_info, interpolate_channels, map_to_ctf275, placed_info, plain_name, sphere_centre
from recordings.opening import open_recording
from recordings.reading import read_recording
from recordings.scenes import band_pass
from reports.dipole import fit_dipoles
from reports.foci import with_ridge
from utils import SettingError, run_script

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}
N_FOCI, N_DIPOLES = 20, 200


def main(words: list[str]) -> None:
    """Print the three tables."""
    if len(words) != 1:
        raise SettingError('usage: python benchmarks/channels.py REC.ds')
    with open_recording(words[0]) as raw:
        info = placed_info(raw.info['chs'], raw.info['dev_head_t'], 150)
        present = {plain_name(name) for name in raw.ch_names}
    absent = [name for name in info['ch_names'] if name not in present]
    print_absent(info, absent)
    print_left_out(words[0], info, absent)
    print_mapped()
    print_foci()


def draw_dipoles(rng, centre):
    """Positions, 3 to 8 cm from the centre and not far below it, and tangential orientations."""
    upwards = simulation.unit(rng.normal(size=(4 * N_DIPOLES, 3)))
    upwards = upwards[upwards[:, 2] > -0.2][:N_DIPOLES]
    orientations = simulation.unit(np.cross(upwards, rng.normal(size=upwards.shape)))
    return centre + upwards * rng.uniform(0.03, 0.08, (N_DIPOLES, 1)), orientations


def dipole_fields(info, centre, positions, orientations):
    """Fields of dipoles of 1 A m in a sphere, (n_channels, n_dipoles)."""
    times, ones = np.arange(len(positions)) / info['sfreq'], np.ones(len(positions))
    dipoles = mne.Dipole(times, positions, ones, orientations, ones)
    sphere = mne.make_sphere_model(r0=centre, head_radius=None, verbose='error')
    forwards, _ = mne.make_forward_dipole(dipoles, sphere, info, verbose='error')
    return np.hstack([f['sol']['data'] for f in (forwards if isinstance(forwards, list) else [forwards])])


def error_of(estimate, truth):
    """Root mean square error over that of the truth, and correlation."""
    return np.linalg.norm(estimate - truth) / np.linalg.norm(truth), np.corrcoef(estimate, truth)[0, 1]


def print_absent(info, absent):
    """The absent channels in simulations in which they are known."""
    rng = np.random.default_rng(0)
    rows = [info['ch_names'].index(name) for name in absent]
    centre = sphere_centre(info) + rng.normal(0, 0.003, 3)
    dipoles = draw_dipoles(rng, centre)
    fields = dipole_fields(info, centre, *dipoles)
    moved = info.copy()  # the helmet's sensors, as far from the usual place as those of a real header are
    for row in rows:
        loc = moved['chs'][row]['loc'].reshape(4, 3).copy()
        loc[0] += 1.1e-3 * simulation.unit(rng.normal(size=(1, 3)))[0]
        loc[1:] = Rotation.from_rotvec(np.radians(0.9) * simulation.unit(rng.normal(size=(1, 3)))[0]).apply(loc[1:])
        moved['chs'][row]['loc'] = loc.ravel()
    in_device = info.copy()
    in_device['dev_head_t'] = mne.Transform('meg', 'head')
    head, rhythms = simulation.simulate_head(rng=rng, info=in_device), simulation.draw_rhythms(rng)
    background = simulation.simulate_background(rng=rng, head=head, rhythms=rhythms, n_times=9000, sfreq=150)
    truths = {
        'dipoles': fields,
        'dipoles, sensors 1.1 mm and 0.9 degrees off': dipole_fields(moved, centre, *dipoles),
        'background with sensor noise, 0.5-50 Hz': band_pass(background, 150),
    }
    print('\n| simulated | channel | error | correlation |\n|---|---|---|---|')
    for label, truth in truths.items():
        estimate = interpolate_channels(truth.copy(), info, absent)
        for name, row in zip(absent, rows, strict=True):
            error, correlation = error_of(estimate[row], truth[row])
            print(f'| {label} | {name} | {error:.3f} | {correlation:.4f} |')


def print_left_out(path, info, absent):
    """Channels of the real recording, interpolated from the others; the absent ones play no part."""
    [recording] = read_recording(path, **READING)
    chosen = [name for name in info['ch_names'][3::27] if name not in absent]
    estimate = interpolate_channels(recording.meg.astype(np.float64), info, [*absent, *chosen])
    print('\n| real channel left out | error | correlation |\n|---|---|---|')
    for name in chosen:
        row = info['ch_names'].index(name)
        error, correlation = error_of(estimate[row], recording.meg[row])
        print(f'| {name} | {error:.3f} | {correlation:.4f} |')


def print_mapped():
    """Fields of dipoles in 306 channels of another system, mapped, beside what CTF-275 would have seen."""
    rng = np.random.default_rng(0)
    info = mne.channels.read_meg_canonical_info('neuromag')
    centre = sphere_centre(info) + rng.normal(0, 0.003, 3)
    dipoles = draw_dipoles(rng, centre)
    mapped, to = map_to_ctf275(1e-8 * dipole_fields(info, centre, *dipoles), info, 150)
    truth = 1e-8 * dipole_fields(to, centre, *dipoles)
    errors = [error_of(*pair)[0] for pair in zip(mapped.T, truth.T, strict=True)]
    print('\n| 306 channels mapped to CTF-275, no noise | error |\n|---|---|')
    for label, share in (('median', 0.5), ('nine of ten below', 0.9), ('largest', 1.0)):
        print(f'| {label} | {np.quantile(errors, share):.3f} |')


def print_foci():
    """Dipoles fitted to averages of 30 spikes in simulated background, head 3 mm (std per axis) off the helmet."""
    print('\n| spikes of | peak over background (std) | mean, median, largest error (mm) | goodness of fit, lowest |')
    print('|---|---|---|---|')
    for sources, snr in ((1, 2.5), (1, 1.0), (2, 2.5)):
        errors, fits = zip(*(locate_focus(subject, sources, snr) for subject in range(N_FOCI)), strict=True)
        mm = 1e3 * np.array(errors)
        print(
            f'| {sources} source{"s" * (sources - 1)} | {snr} | {mm.mean():.1f}, {np.median(mm):.1f}, {mm.max():.1f} '
            f'| {min(fits):.2f} |'
        )


def locate_focus(subject, sources, snr):
    """Distance of the fitted dipole from the focus's main source, in m, and goodness of fit."""
    info = ctf275_info(150)
    # The first draw of simulate_head is the head's place.
    centre = sphere_centre(info) + np.random.default_rng([1, subject]).normal(0, 0.003, 3)
    rng = np.random.default_rng([1, subject])
    head, rhythms = simulation.simulate_head(rng=rng, info=info), simulation.draw_rhythms(rng)
    focus = simulation.draw_focus(rng=rng, head=head)
    focus['spread'] *= sources - 1
    background = simulation.simulate_background(rng=rng, head=head, rhythms=rhythms, n_times=9000, sfreq=150)
    background = band_pass(background, 150)
    starts = np.arange(2.0, 58.0, 1.9)
    times = np.arange(9000) / 150
    waves = sum(simulation.spike_wave(rng=rng, focus=focus, times=times - start) for start in starts)
    field = head['foci'][:, focus['sources']] @ band_pass(waves, 150)
    events = np.rint(starts * 150).astype(int)
    field *= snr * background.std() / field[:, events].std(axis=0).mean()
    average = np.mean([(background + field)[:, event - 10 : event + 11] for event in events], axis=0)
    peak = average[:, average.std(axis=0).argmax()]
    [dipole] = fit_dipoles(peak[None], info, [], with_ridge(np.cov(background)), np.array([len(events)]))
    main_source = centre + head['foci_positions'][focus['sources'][0]]
    return np.linalg.norm(dipole.position - main_source), dipole.goodness


if __name__ == '__main__':
    run_script(main, __doc__)
