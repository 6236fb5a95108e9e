"""Detections that reviewers open at the right sample, and where simulated spikes come from."""

import multiprocessing
import os
import stat

import mne
import numpy as np
import pandas as pd
import pytest

from recordings.channels import N_CHANNELS, ctf275_info
from recordings.marker_files import read_marker_file, write_marker_classes, write_marker_file
from recordings.opening import open_recording, read_annotations, read_layout
from reports.detection_files import MarkerStyle, marker_classes, write_annotations, write_detections
from reports.dipole import fit_dipoles
from utils import DataError

CLASS = {'name': 'detected_spike', 'color': 'green'}


@pytest.fixture
def ds(make_ds):
    """A CTF recording of three trials of 401 samples at 300 Hz that begin 0.2 s before their sync point."""
    return make_ds('patient', {'MLC11': np.zeros(1203)}, n_trials=3, before_sync=60)


def layout_of(path):
    with open_recording(path) as raw:
        return read_layout(raw, path)


def markers_by_mne(path, name='detected_spike'):
    """Samples of the markers of a class, as MNE counts them."""
    raw = mne.io.read_raw_ctf(path, verbose='error')
    events, ids = mne.events_from_annotations(raw, verbose='error')
    return events[events[:, 2] == ids.get(name), 0] if name in ids else np.zeros(0)


def test_detections_are_a_table_of_seconds(tmp_path):
    write_detections(tmp_path / 'detections.csv', np.array([0.5, 1 / 3]), np.array([0.0, 0.2]), np.array([0.9, 0.8]))
    text = (tmp_path / 'detections.csv').read_text()
    assert text == 'onset,duration,probas\n0.500000,0.000000,0.900000\n0.333333,0.200000,0.800000\n'
    write_detections(tmp_path / 'none.csv', [], [], [])
    assert list(pd.read_csv(tmp_path / 'none.csv').columns) == ['onset', 'duration', 'probas']


@pytest.mark.parametrize('dated', [True, False])
def test_annotations_lie_where_mne_shows_them(make_fif, tmp_path, dated):
    path = make_fif('late', np.zeros((N_CHANNELS, 1500)), first_samp=12900, notes=[(1.0, 'mine')], dated=dated)
    samples = np.array([0, 7, 450, 1499])
    write_annotations(tmp_path / 'x-annot.fif', samples / 300, 0.0, 'detected_spike', layout_of(path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, 'x-annot.fif']
    raw = mne.io.read_raw_fif(path, verbose='error')
    written = mne.read_annotations(tmp_path / 'x-annot.fif')
    for notes in (written, raw.annotations + written) if dated else (written,):
        raw.set_annotations(notes)
        events, ids = mne.events_from_annotations(raw, verbose='error')
        events = events[events[:, 2] == ids['detected_spike'], 0]
        np.testing.assert_array_equal(events - raw.first_samp, samples)


def test_a_new_marker_file_reads_back_to_the_sample(ds):
    layout = layout_of(ds)
    samples = np.array([0, 59, 60, 400, 401, 801, 802, 1202])
    assert write_marker_file(ds / 'MarkerFile.mrk', samples / 300, layout, **CLASS) is None
    np.testing.assert_array_equal(markers_by_mne(ds), samples)
    with open_recording(ds) as raw:
        np.testing.assert_allclose(read_annotations(raw, layout)['detected_spike'], samples / 300, atol=1e-9)
    rows = [line for line in (ds / 'MarkerFile.mrk').read_text().splitlines() if '\t\t\t\t' in line]
    assert rows[0].split() == ['0', '-0.200000000000']
    assert rows[-1].split() == ['2', '+1.133333333333']


def test_without_any_detection_the_class_is_empty_and_mne_reads_it(ds):
    write_marker_file(ds / 'MarkerFile.mrk', np.zeros(0), layout_of(ds), **CLASS)
    assert len(markers_by_mne(ds)) == 0
    [marker_class] = read_marker_file(ds / 'MarkerFile.mrk')[1]
    assert (marker_class.name, marker_class.markers) == ('detected_spike', [])


@pytest.mark.parametrize('end', [b'\n', b'\r\n'])
@pytest.mark.parametrize('whole', [True, False])
def test_other_classes_stay_byte_for_byte(ds, shared, end, whole):
    path, layout = ds / 'MarkerFile.mrk', layout_of(ds)
    example = (shared / 'ctf' / 'example_MarkerFile.mrk').read_bytes().replace(b'\n', end)
    path.write_bytes(example if whole else example.rstrip())  # as some editors leave it
    before = path.read_bytes()
    _, [untouched] = read_marker_file(path)

    backup = write_marker_file(path, np.array([0.5, 1.0]), layout, **CLASS)
    assert (backup.name, backup.read_bytes()) == ('MarkerFile.mrk.1', before)
    _, classes = read_marker_file(path)
    assert [marker_class.name for marker_class in classes] == ['HDAC006', 'detected_spike']
    assert classes[0].content.startswith(untouched.content)
    assert path.read_bytes().startswith(before.replace(b'MARKERS:' + end + b'1', b'MARKERS:' + end + b'2'))
    assert b'CLASSID:' + end + b'2' + end in classes[1].content
    np.testing.assert_array_equal(markers_by_mne(ds), [150, 300])
    first = path.read_bytes()

    second = write_marker_file(path, np.array([2.0]), layout, **CLASS)
    assert (second.name, second.read_bytes(), backup.read_bytes()) == ('MarkerFile.mrk.2', first, before)
    again = read_marker_file(path)[1]
    assert [len(marker_class.markers) for marker_class in again] == [36, 1]
    assert again[0].content == classes[0].content
    write_marker_file(path, np.array([0.5, 1.0]), layout, **CLASS)
    assert path.read_bytes() == first


@pytest.mark.parametrize('whole', [True, False])
def test_a_marker_file_without_classes_gets_its_first(ds, whole):
    path = ds / 'MarkerFile.mrk'
    head = b'PATH OF DATASET:\n/data\n\n\nNUMBER OF MARKERS:\n0\n'
    path.write_bytes(head if whole else head.rstrip())
    write_marker_file(path, np.array([0.5]), layout_of(ds), **CLASS)
    assert path.read_bytes().startswith(head.replace(b'0\n', b'1\nCLASSGROUPID:\n'))
    np.testing.assert_array_equal(markers_by_mne(ds), [150])


def test_our_class_is_replaced_in_its_place(ds):
    path, layout = ds / 'MarkerFile.mrk', layout_of(ds)
    for name, onset in (('a', 0.1), ('detected_spike', 0.2), ('b', 0.3)):
        write_marker_file(path, np.array([onset]), layout, name=name, color='red')
    _, before = read_marker_file(path)
    write_marker_file(path, np.array([0.4, 0.5]), layout, **CLASS)
    _, after = read_marker_file(path)
    assert [marker_class.name for marker_class in after] == ['a', 'detected_spike', 'b']
    assert (after[0], after[2]) == (before[0], before[2])
    assert b'CLASSID:\n2\n' in after[1].content


def test_classes_of_the_recording_go_into_a_marker_file_elsewhere(ds, tmp_path):
    layout = layout_of(ds)
    own = ds / 'MarkerFile.mrk'
    write_marker_file(own, np.array([0.1]), layout, name='spike', color='red')
    before = own.read_bytes()
    elsewhere = tmp_path / 'output' / 'MarkerFile.mrk'
    assert write_marker_file(elsewhere, np.array([0.2]), layout, source=own, **CLASS) is None
    assert [marker_class.name for marker_class in read_marker_file(elsewhere)[1]] == ['spike', 'detected_spike']
    assert own.read_bytes() == before


def test_a_faulty_marker_file_is_left_as_it_is(ds, make_fif):
    path, layout = ds / 'MarkerFile.mrk', layout_of(ds)
    write_marker_file(path, np.array([0.1]), layout, name='spike', color='red')
    path.write_bytes(path.read_bytes().replace(b'-0.1', b'-0,1'))
    before = path.read_bytes()
    with pytest.raises(DataError, match='decimal point'):
        write_marker_file(path, np.array([0.2]), layout, **CLASS)
    assert path.read_bytes() == before
    assert [file.name for file in ds.iterdir() if 'Marker' in file.name] == ['MarkerFile.mrk']
    fif = make_fif('no', np.zeros((N_CHANNELS, 600)))
    with pytest.raises(DataError, match='no CTF recording'):
        write_marker_file(path, np.array([0.2]), layout_of(fif), **CLASS)


# ------------------------------------------------------------------- the recording's own marker file, written into
def test_two_writers_at_once_lose_no_class_and_no_original(ds, tmp_path):
    layout = layout_of(ds)
    write_marker_file(ds / 'MarkerFile.mrk', np.array([0.1]), layout, name='spike', color='red')
    original = (ds / 'MarkerFile.mrk').read_bytes()
    paths = [tmp_path / f'trial{i}' / 'MarkerFile.mrk' for i in range(60)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(original)
    context = multiprocessing.get_context('fork')
    start = context.Barrier(2)

    def write(name):
        for path in paths:
            start.wait(60)
            write_marker_file(path, np.array([0.2]), layout, name=name, color='green')

    writers = [context.Process(target=write, args=(name,)) for name in ('a', 'b')]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    for path in paths:
        assert sorted(marker_class.name for marker_class in read_marker_file(path)[1]) == ['a', 'b', 'spike']
        assert path.with_name('MarkerFile.mrk.1').read_bytes() == original
        classes = read_marker_file(path.with_name('MarkerFile.mrk.2'))[1]
        assert [marker_class.name for marker_class in classes] in (['spike', 'a'], ['spike', 'b'])
        assert len(list(path.parent.iterdir())) == 3


@pytest.mark.parametrize('mode', [0o600, 0o664])
def test_mode_owner_and_link_of_a_marker_file_stay(ds, tmp_path, mode):
    own, central = ds / 'MarkerFile.mrk', tmp_path / 'markers' / 'patient.mrk'
    central.parent.mkdir()
    write_marker_file(central, np.array([0.1]), layout_of(ds), name='spike', color='red')
    before = central.read_bytes()
    central.chmod(mode)
    if os.geteuid() == 0:
        os.chown(central, 12345, 23456)
    owner = central.stat().st_uid, central.stat().st_gid
    own.symlink_to(central)
    backup = write_marker_file(own, np.array([0.2]), layout_of(ds), **CLASS)
    assert own.is_symlink()
    assert [marker_class.name for marker_class in read_marker_file(own)[1]] == ['spike', 'detected_spike']
    assert (backup, backup.read_bytes()) == (central.with_name('patient.mrk.1'), before)
    for path in (central, backup):
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_a_marker_file_that_cannot_stay_what_it_is_is_not_written(ds, tmp_path, monkeypatch):
    own, layout = ds / 'MarkerFile.mrk', layout_of(ds)
    own.symlink_to(tmp_path / 'away' / 'MarkerFile.mrk')
    with pytest.raises(DataError, match=r'MarkerFile\.mrk: a link to .*/away/MarkerFile\.mrk, which is not there'):
        write_marker_file(own, np.array([0.1]), layout, **CLASS)
    assert own.is_symlink()
    own.unlink()
    write_marker_file(own, np.array([0.1]), layout, name='spike', color='red')
    before = own.read_bytes()
    monkeypatch.setattr(os, 'geteuid', lambda: own.stat().st_uid + 1)
    with pytest.raises(DataError, match=r'MarkerFile\.mrk: belongs to another user'):
        write_marker_file(own, np.array([0.2]), layout, **CLASS)
    assert own.read_bytes() == before


def test_simulated_foci_are_found(dipole_fields):
    info = ctf275_info(150)
    # The head lies 5 mm off the centre that the fit assumes.
    fields, positions, orientations = dipole_fields(info, 10, off=[0.003, -0.003, 0.003])
    noise = 1e-13 * np.random.default_rng(0).normal(size=fields.shape)
    dipoles = fit_dipoles((1e-12 * fields + noise).T, info, [], 1e-26 * np.eye(N_CHANNELS), np.ones(10))
    errors = []
    for dipole, position, orientation in zip(dipoles, positions, orientations, strict=True):
        assert dipole.goodness > 0.9
        assert abs(dipole.orientation @ orientation) > 0.9
        errors.append(np.linalg.norm(dipole.position - position))
    assert max(errors) < 0.015
    assert np.mean(errors) < 0.006


def test_interpolated_channels_play_no_part_in_the_fit(dipole_fields):
    info = ctf275_info(150)
    fields, positions, _ = dipole_fields(info, 1)
    field = 1e-12 * fields[:, 0]
    field[[3, 200]] = 1e-13
    bad = [info['ch_names'][3], info['ch_names'][200]]
    [dipole] = fit_dipoles(field[None], info, bad, 1e-26 * np.eye(N_CHANNELS), np.ones(1))
    np.testing.assert_allclose(dipole.position, positions[0], atol=5e-4)
    assert dipole.goodness > 0.999


def test_a_field_of_one_place_at_the_surface_is_fitted_too():
    """Such as a channel that jumps: the search for its dipole ends at the skull."""
    info = ctf275_info(150.0)
    positions = np.array([channel['loc'][:3] for channel in info['chs']])
    distances = np.linalg.norm(positions[:, None] - positions[[9, 108, 171]], axis=2)
    fields = 1e-12 * np.exp(-((distances / 0.02) ** 2)).T
    dipoles = fit_dipoles(fields, info, [], 1e-26 * np.eye(N_CHANNELS), np.full(3, 5))
    assert [np.linalg.norm(dipole.position) > 0.05 for dipole in dipoles] == [True] * 3


def test_a_field_of_nothing_has_a_dipole_of_nothing():
    info = ctf275_info(150.0)
    fields = np.zeros((2, N_CHANNELS))
    fields[1, 7] = 1e-12  # of an interpolated channel alone
    for dipole in fit_dipoles(fields, info, [info['ch_names'][7]], 1e-26 * np.eye(N_CHANNELS), np.full(2, 5)):
        assert np.isfinite(dipole.position).all()
        assert abs(dipole.moment) < 1e-12  # A m: a spike has 1e-8


def test_the_volume_of_confidence_is_that_of_the_noise_of_the_average(dipole_fields):
    """Four times the events give the same volume as a quarter of the variance, and the true place is in it."""
    info = ctf275_info(150)
    fields, positions, _ = dipole_fields(info, 1)
    rng = np.random.default_rng(0)
    noise, errors = 1e-26 * np.eye(N_CHANNELS), []
    [many] = fit_dipoles(1e-12 * fields.T, info, [], noise, np.array([4]))
    [quiet] = fit_dipoles(1e-12 * fields.T, info, [], noise / 4, np.array([1]))
    assert many.confidence == pytest.approx(quiet.confidence, rel=1e-3)
    noisy = 1e-12 * fields.T + 1e-13 * rng.normal(size=(8, N_CHANNELS))
    for dipole in fit_dipoles(noisy, info, [], noise, np.ones(8)):
        errors.append(np.linalg.norm(dipole.position - positions[0]))
    # The region is longer in depth than the ball of its volume.
    assert np.median(errors) < (3 * dipole.confidence / (4 * np.pi)) ** (1 / 3) < 4 * np.max(errors)


def test_a_class_of_markers_for_every_group_and_none_of_an_earlier_time(ds):
    path, layout = ds / 'MarkerFile.mrk', layout_of(ds)
    events = pd.DataFrame({'onset': [0.1, 0.2, 0.3, 0.4, 0.5], 'cluster': [1, 0, 2, 1, 2]})
    style = MarkerStyle('detected_spike', 'green', per_cluster=True)
    write_marker_file(path, np.array([0.7]), layout, name='spike', color='red')
    write_marker_classes(path, marker_classes(events, style), layout)
    _, classes = read_marker_file(path)
    assert [marker_class.name for marker_class in classes] == [
        'spike', 'detected_spike', 'detected_spike_1', 'detected_spike_2',
    ]  # fmt: skip
    np.testing.assert_array_equal(markers_by_mne(ds, 'detected_spike_1'), [30, 120])
    np.testing.assert_array_equal(markers_by_mne(ds, 'detected_spike_2'), [90, 150])
    np.testing.assert_array_equal(markers_by_mne(ds), [60])
    ids = [marker_class.content.split(b'CLASSID:\n')[1].split(b'\n')[0] for marker_class in classes]
    assert len(set(ids)) == 4

    # Fewer groups the next time, then all in one class: what is not written again goes, what is not ours stays.
    write_marker_classes(path, marker_classes(events[events['cluster'] < 2], style), layout)
    assert [c.name for c in read_marker_file(path)[1]] == ['spike', 'detected_spike', 'detected_spike_1']
    write_marker_classes(path, marker_classes(events, style._replace(per_cluster=False)), layout)
    _, classes = read_marker_file(path)
    assert [(c.name, len(c.markers)) for c in classes] == [('spike', 1), ('detected_spike', 5)]
    assert path.read_bytes().count(b'CLASSGROUPID') == 2
