"""What is wrong with a recording is said on the console, in the JSON files and on the page, by whichever script."""

import mne
import numpy as np
import pytest
from mne.io.constants import FIFF
from written_recordings import NAMES, SFREQ, brain, sensors, write_fif

import create_data_raw
import create_windows_ae
import simulate_data_raw
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.pickles import write_pickle
from recordings.planning import chosen_labels
from runs.settings import read_command
from utils import DataError, write_json

pytestmark = pytest.mark.usefixtures('no_interpolation')


# ----------------------------------------------------------------------------------------- flat channels
@pytest.mark.parametrize('value', [0.0, 3.3e-11])
def test_a_flat_recording(make_fif, said_by_both, value):
    _, record = said_by_both(make_fif('flat', np.full((N_CHANNELS, 3000), value)), 'the recording is flat')
    assert record['detections'] == 0
    assert len(record['warnings']) == 1


def test_flat_channels_of_the_raw_samples_but_not_mrp52(make_ds, said_by_both):
    signals = sensors(3000)
    signals['MLC11'][:] = 3.3e-11
    signals['MRT57'][:] = 0.0
    made, _ = said_by_both(make_ds('flat', signals), 'flat channels MLC11, MRT57; name them in bad_channels')
    [warning] = made['warnings']
    assert 'MRP52' not in warning


def test_a_flat_channel_that_is_named_bad_and_a_flat_trial(make_ds, create):
    signals = {name: np.append(row[:3000], np.full(3000, 1e-12)) for name, row in sensors(6000).items()}
    signals['MLC11'][:] = 0.0
    clock = np.arange(1, 6001) / SFREQ + 60 * (np.arange(6000) >= 3000)
    path = make_ds('half', signals, n_trials=2, clock=clock)
    assert create(path)[0]['recordings'][0]['warnings'] == [
        '1 of 2 continuous parts are flat: no channel changes',
        'flat channels MLC11; name them in bad_channels',
    ]
    [warning] = create(path, 'bad_channels=MLC11')[0]['warnings']
    assert 'flat channels' not in warning


def test_a_filtered_constant_in_a_data_raw_is_flat(recordings, write_raw, apply, capsys):
    data = recordings(lengths=(900,), events=((300,),))
    data['meg'][0][5] = 1e-26 * np.arange(900)
    path = write_raw(data)
    record, _, _ = apply(path)
    assert record['warnings'] == [f'flat channels {NAMES[5]}; name them in bad_channels']
    create_windows_ae.main(
        [f'path_raw_data={path.parent}', f'path_extracted_data={[str(path.parent / n) for n in "ab"]}']
    )
    assert 'flat channels; interpolate them, or leave out that block' in capsys.readouterr().out


# -------------------------------------------------------------------------------------- clock and markers
def test_a_recording_whose_clock_stops(make_ds, said_by_both):
    clock = np.where(np.arange(6000) < 3000, np.arange(1, 6001) / SFREQ, 0.0)
    made, _ = said_by_both(
        make_ds('cut', sensors(6000), clock=clock), 'its clock (SCLK01) stops after 10.00 s of 20.00 s'
    )
    assert made['recordings'][0]['seconds'] == 10


def test_a_recording_whose_clock_stops_before_the_first_window(make_ds, create):
    clock = np.where(np.arange(6000) < 300, np.arange(1, 6001) / SFREQ, 0.0)
    with pytest.raises(
        DataError, match=r'is 1 s long, shorter than a window .*clock \(SCLK01\) stops after 1\.00 s of 20'
    ):
        create(make_ds('cut', sensors(6000), clock=clock))


def test_markers_outside_of_a_ctf_recording(make_ds, said_by_both):
    path = make_ds('marked', sensors(3000))
    rows = ''.join(f'{0:20d}\t\t\t\t{time:+20.3f}\n' for time in (1.0, 9.0, 10.0, 11.0))
    (path / 'MarkerFile.mrk').write_text(
        'PATH OF DATASET:\nx\n\n\nNUMBER OF MARKERS:\n1\n\n\nCLASSGROUPID:\n3\nNAME:\nspike\nCOMMENT:\n\nCOLOR:\nblue\n'
        'EDITABLE:\nYes\nCLASSID:\n1\nNUMBER OF SAMPLES:\n4\nLIST OF SAMPLES:\n'
        f'TRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n{rows}\n\n'
    )
    made, _ = said_by_both(path, "2 of 4 markers 'spike' lie outside of the recorded samples")
    assert made['recordings'][0]['labels'] == {'spike': 4}
    assert made['recordings'][0]['spikes'] == 2


def test_markers_outside_of_a_fif_recording_and_of_a_file_of_annotations(tmp_path, said_by_both, create):
    notes = [
        (1.0, 0.0, 'spike'),
        (10.0, 0.0, 'spike'),
        (11.0, 0.0, 'note'),
        (12.0, 1.0, 'BAD_late'),
        (-3.0, 0.0, 'early'),
    ]
    path = write_fif(tmp_path / 'late_raw.fif', brain(3000), notes)
    made, _ = said_by_both(
        path,
        "1 of 2 markers 'spike'",
        "1 of 1 markers 'note'",
        "1 of 1 markers 'early'",
        '1 of 1 bad segments lie outside',
    )
    assert made['recordings'][0]['spikes'] == 1
    mne.Annotations([2.0, 3.0, 17.0], 0.0, 'spike').save(tmp_path / 'other-annot.fif', verbose='error')
    made, printed = create(path, tmp_path / 'other-annot.fif')
    assert "late_raw.fif: 1 of 3 markers 'spike' lie outside" in printed
    assert made['recordings'][0]['spikes'] == 2
    create_data_raw.main(
        ['1', str(path), str(tmp_path / 'other-annot.fif'), 'reannot_labels=spike', f'path_raw_data={tmp_path / "raw"}']
    )


def test_labels_that_deny_spikes_are_excluded_and_said(tmp_path, create):
    _, settings = read_command([])
    denied = [
        'no_spike',
        'No Spikes',
        'nospike',
        'not_a_spike',
        'NON-SPIKE',
        'nonspike',
        'jj_no_spike',
        'left not spike',
    ]
    spikes = ['spike', 'Spike_L', 'jj_add', 'nocturnal_spike', 'noisy spikes', 'spike not sure']
    chosen = chosen_labels([*denied, *spikes], settings.spike_labels, settings.spike_labels_exclude)
    assert chosen == spikes
    notes = [(1.0, 0.0, 'spike'), (2.0, 0.0, 'no_spike'), (3.0, 0.0, 'artefact')]
    made, printed = create(write_fif(tmp_path / 'one_raw.fif', brain(6000), notes))
    assert 'labels: spike 1 (spikes), no_spike 1 (excluded), artefact 1' in printed
    [facts] = made['recordings']
    assert (facts['spike_labels'], facts['excluded_labels'], facts['spikes']) == (['spike'], ['no_spike'], 1)


# --------------------------------------------------------------------- units, systems, several recordings
def test_units_that_are_not_tesla(tmp_path, make_fif, create, apply, said_by_both):
    volts = write_fif(tmp_path / 'volts_raw.fif', brain(3000), change={'unit': FIFF.FIFF_UNIT_V})
    for script in (create, apply):
        with pytest.raises(
            DataError, match=r'volts_raw\.fif: 274 MEG channels, such as MLC11, are not in tesla, but .*V'
        ):
            script(volts)
    assert not (tmp_path / 'out').exists()
    femto = write_fif(tmp_path / 'femto_raw.fif', 1e15 * brain(6000), change={'unit_mul': FIFF.FIFF_UNITM_F})
    said_by_both(femto, 'are in 10^-15 T, but they are read as T', 'it may be in another unit')


def test_gradiometers_of_ctf_in_tesla_per_metre(tmp_path, create):
    path = write_fif(tmp_path / 'grad_raw.fif', brain(6000), change={'unit': FIFF.FIFF_UNIT_T_M})
    [warning] = [text for text in create(path)[0]['warnings'] if 'header' in text]
    assert 'MLC11, MLC12, MLC13, MLC14, MLC15 and 269 more are in T/m, but they are read as T' in warning


def test_a_flat_channel_does_not_hide_an_unlikely_size(tmp_path, create):
    signal = 1e15 * brain(6000)
    signal[:200] = 3.3e4
    flat, size = create(write_fif(tmp_path / 'femto_raw.fif', signal))[0]['warnings']
    assert 'flat channels MLC11, MLC12, MLC13, MLC14, MLC15 and 195 more' in flat
    assert 'it may be in another unit' in size


def test_a_channel_that_jumps_is_named(make_fif, said_by_both):
    signal = brain(6000)
    signal[7, 3000:] += 1e-8
    said_by_both(make_fif('jump', signal), 'channels MLC21 span over 100 times as much as most others')


def test_a_mapped_foreign_system(make_fif, said_by_both, monkeypatch):
    info = mne.channels.read_meg_canonical_info('neuromag')
    with info._unlock():
        info['sfreq'] = SFREQ
    monkeypatch.setattr(
        'recordings.reading.map_to_ctf275', lambda signal, info, sfreq: (brain(3000), ctf275_info(sfreq))
    )
    said_by_both(make_fif('neuromag', brain(6000, 306), info=info), '306 channels of another system, mapped to CTF-275')


def test_both_files_of_a_split_fif_are_refused(tmp_path, create, apply):
    raw = mne.io.RawArray(brain(3000), ctf275_info(SFREQ), verbose='error')
    raw.save(tmp_path / 'x_raw.fif', split_size='2MB', buffer_size_sec=1.0, verbose='error')
    first, second = tmp_path / 'x_raw.fif', tmp_path / 'x_raw-1.fif'
    for script in (create, apply):
        with pytest.raises(
            DataError, match=r'x_raw-1\.fif: continues .*x_raw\.fif, with which it is read; leave it out'
        ):
            script(second, first)
    assert not (tmp_path / 'raw').exists()
    assert not (tmp_path / 'out').exists()
    assert create(first)[0]['recordings'][0]['seconds'] == 10


def third_order(path, tmp_path):
    raw = mne.io.read_raw_ctf(path, preload=True, verbose='error')
    raw.apply_gradient_compensation(3, verbose='error')
    raw.save(tmp_path / 'third_raw.fif', verbose='error')
    return tmp_path / 'third_raw.fif'


def test_compensation_grades_that_differ(make_ds, create, apply, tmp_path):
    plain = make_ds('plain', sensors(3000))
    third = third_order(plain, tmp_path)
    made, printed = create(plain, third)
    warning = 'the compensation grades differ: grade 0 in plain.ds; grade 3 in third_raw.fif'
    assert warning in made['warnings'][-1]
    assert f'warning: patient 1: {warning}' in printed
    assert not [text for text in apply(plain)[0]['warnings'] if 'compensation' in text]

    record = tmp_path / 'raw' / 'data_raw_001.json'
    write_json(record, made | {'recordings': made['recordings'][:1]})
    (tmp_path / 'out').rename(tmp_path / 'earlier')
    detected, _, printed = apply(third)
    message = 'compensation grade 3, but the run was trained on grade 0'
    assert message in detected['warnings'][-1]
    assert f'warning: third_raw.fif: {message}' in printed


def test_a_data_raw_made_at_another_rate_is_refused(tmp_path, make_fif, recordings, write_raw, apply):
    words = [
        f'path_raw_data={tmp_path / "raw"}',
        f'path_extracted_data={[str(tmp_path / "ae"), str(tmp_path / "clf")]}',
    ]
    create_data_raw.main(['1', str(make_fif('one', brain(6000))), words[0], 'sfreq=200'])
    refused = r'data_raw_001\.pkl: made at sfreq = 200, but sfreq is 150 now; set sfreq=200, or make the file again'
    with pytest.raises(DataError, match=refused):
        create_windows_ae.main([*words, 'include_spike_free=True'])
    assert not (tmp_path / 'ae').exists()
    with pytest.raises(DataError, match=refused):
        create_data_raw.main(['1', str(tmp_path / 'one_raw.fif'), words[0], 'reannot_labels=spike'])
    with pytest.raises(DataError, match=r'params\.json: trained with sfreq = 150, but .* are made with 200 now'):
        apply(tmp_path / 'one_raw.fif')
    create_windows_ae.main([*words, 'include_spike_free=True', 'sfreq=200'])

    (tmp_path / 'raw' / 'data_raw_001.pkl').rename(tmp_path / 'raw' / 'data_raw_009.pkl')
    (tmp_path / 'raw' / 'data_raw_001.json').rename(tmp_path / 'raw' / 'data_raw_009.json')
    write_pickle(tmp_path / 'data_raw_002.pkl', recordings())
    with pytest.raises(DataError, match=r'data_raw_009\.pkl: made with sfreq = 200, but the run with 150'):
        apply(tmp_path / 'data_raw_002.pkl', tmp_path / 'raw' / 'data_raw_009.pkl')
    assert not (tmp_path / 'out').exists()


def test_a_simulated_patient_at_another_rate_is_refused(tmp_path):
    words = [
        f'path_raw_data={tmp_path / "raw"}',
        f'path_extracted_data={[str(tmp_path / "ae"), str(tmp_path / "clf")]}',
    ]
    few = ['simulated_patients=1', 'simulated_spike_free=0', 'simulated_blocks=1', 'simulated_seconds=20']
    simulate_data_raw.main([*words, *few, 'sfreq=200'])
    with pytest.raises(DataError, match='made at sfreq = 200, but sfreq is 150 now'):
        create_windows_ae.main(words)


def test_a_recording_without_faults_has_no_warnings(tmp_path, create, apply):
    path = write_fif(tmp_path / 'good_raw.fif', brain(6000), [(4.0, 0.0, 'spike')])
    assert create(path)[0]['warnings'] == []
    record, _, printed = apply(path)
    assert record['warnings'] == []
    assert 'warning: good_raw.fif' not in printed
