"""What is wrong with a recording is said on the console, in the JSON files and on the page, by whichever script."""

import json
from types import SimpleNamespace

import mne
import numpy as np
import pandas as pd
import pytest
from common import window_settings
from mne.io.constants import FIFF

import create_data_raw
import create_windows_ae
import detect
import simulate_data_raw
from classification import Detections
from data_processing import cut_block
from recordings.bad_segments import read_bad_segments, segments_in_block
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.data_raw import read_data_raw
from recordings.layout import Layout
from recordings.marker_files import read_class_file
from recordings.opening import open_recording, read_layout
from recordings.pickles import write_pickle
from recordings.planning import chosen_labels
from recordings.window_settings import WindowShape
from runs.settings import read_command
from utils import DataError, write_json

NAMES = ctf275_info(150)['ch_names']
SFREQ = 300.0


def brain(n_samples, n_channels=N_CHANNELS, seed=0):
    """Noise of the size of brain signal, in tesla."""
    return 1e-12 * np.random.default_rng(seed).normal(size=(n_channels, n_samples))


@pytest.fixture(autouse=True)
def no_interpolation(monkeypatch):
    """Leave bad channels as they are: MNE takes seconds for them."""
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


@pytest.fixture
def create(tmp_path, capsys):
    """Run create_data_raw.py for patient 1; give its record and what it printed."""

    def run(*words):
        create_data_raw.main(['1', *map(str, words), f'path_raw_data={tmp_path / "raw"}'])
        return json.loads((tmp_path / 'raw' / 'data_raw_001.json').read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def apply(tmp_path, monkeypatch, capsys):
    """Run detect.py, without networks: a finished run that finds an event at each of `samples` of every block.

    Gives detections.json of the first recording, its folder, and what was printed.
    """
    run = tmp_path / 'results' / 'AE1D_1'
    run.mkdir(parents=True)
    for name in ('metrics.json', 'best_AE1D_1.pth', 'best_forest_1.pth'):
        (run / name).write_text('{}')
    settings = vars(read_command([f'path_raw_data={tmp_path / "raw"}'])[1])
    write_json(run / 'params.json', {'settings': settings, 'split': {'train': [1]}})
    decision = {'threshold': 0.5, 'policy': 'f1', 'calibration': 'temperature'}
    trained = {'decision': decision, 'window_length': 300, 'reader': SimpleNamespace(device='cpu')}
    monkeypatch.setattr(detect, 'load_run', lambda settings, *more: SimpleNamespace(settings=settings, **trained))
    monkeypatch.setattr(detect, 'seen_by_run', lambda *arguments: {})  # which has seen the recordings of these tests
    monkeypatch.setattr(detect, 'event_residuals', lambda *arguments: [])

    def apply(*words, samples=(), page=False):
        def score_block(trained, meg, part_lengths):
            n = meg.shape[1]
            subwindows = pd.DataFrame({'part': [0], 'onset': [0], 'end': [n], 'proba': [0.9], 'pred': [1]})
            return Detections(subwindows, pd.DataFrame({'sample': np.array(samples, int), 'part': 0, 'proba': 0.9}))

        monkeypatch.setattr(detect, 'score_block', score_block)
        with monkeypatch.context() as patch:
            if not page:
                patch.setattr('reports.detection_files.write_report', lambda *arguments: None)
            detect.main([str(run), *map(str, words), f'output={tmp_path / "out"}'])
        [folder] = {record.parent for record in (tmp_path / 'out').rglob('detections.json')}
        return json.loads((folder / 'detections.json').read_text()), folder, capsys.readouterr().out

    return apply


@pytest.fixture
def said_by_both(create, apply, monkeypatch):
    """Check that a warning about one recording is on the console, in the JSON and on the page, in both scripts."""
    monkeypatch.setattr(
        'reports.detection_page.plot_over_time', lambda *arguments: None
    )  # pictures take most of the time
    monkeypatch.setattr('reports.detection_page.add_picture', lambda *arguments: None)

    def check(path, *words):
        made, printed = create(path)
        record, folder, printed_too = apply(path, page=True)
        page = (folder / 'report.html').read_text()
        for warning in words:
            [whole] = [text for text in record['warnings'] if warning in text]
            assert f'{path.name}: {whole}' in made['warnings']
            assert whole in made['recordings'][0]['warnings']
            assert f'warning: {path.name}: {whole}\n' in printed
            assert f'warning: {path.name}: {whole}\n' in printed_too
            assert page.index(warning) < page.index('threshold')
        return made, record

    return check


def write_fif(path, signal, notes=(), *, info=None, change=None):
    """Write a FIF recording with annotations (onset, duration, label), also outside of its samples."""
    raw = mne.io.RawArray(signal, info or ctf275_info(SFREQ), first_samp=900, verbose='error')
    raw.set_meas_date(1.0e9)
    for onset, duration, label in notes:
        raw.annotations.append(raw.first_time + onset, duration, label)
    for ch in raw.info['chs']:
        ch.update(change or {})
    raw.save(path, verbose='error')
    return path


def sensors(n_samples, seed=0):
    """Signals of all 274 channels by name."""
    return dict(zip(NAMES, brain(n_samples, seed=seed), strict=True))


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


# ------------------------------------------------------------------------------------------ bad segments
def class_file(*classes):
    """A ClassFile.cls of (name, trial numbers)."""
    text = f'PATH OF DATASET:\n/data/patient.ds\n\n\nNUMBER OF CLASSES:\n{len(classes)}\n\n\n'
    for number, (name, trials) in enumerate(classes, 1):
        text += f'CLASSGROUPID:\n3\nNAME:\n{name}\nCOMMENT:\n\nCOLOR:\nRed\nEDITABLE:\nYes\nCLASSID:\n{number}\n'
        text += f'NUMBER OF TRIALS:\n{len(trials)}\nLIST OF TRIALS:\nTRIAL NUMBER\n'
        text += ''.join(f'{trial:+20d}\n' for trial in trials) + '\n\n'
    return text.encode()


def test_bad_segments_of_one_trial_are_those_of_mne(make_ds):
    path = make_ds('one', sensors(3000), before_sync=150)
    (path / 'bad.segments').write_text('1\t\t-0.5\t\t0.25\n1 2.5 3\n')
    notes = mne.io.read_raw_ctf(path, verbose='error').annotations
    with open_recording(path) as raw:
        segments = read_bad_segments(read_layout(raw, path), [])
    np.testing.assert_allclose(segments, np.column_stack([notes.onset, notes.onset + notes.duration]))


def test_bad_segments_and_trials_of_a_ctf_recording(make_ds, said_by_both):
    path = make_ds('marked', sensors(9000), n_trials=3, before_sync=150)  # trials of 10 s, 0.5 s before the sync point
    (path / 'bad.segments').write_bytes(b'2\t\t1.5\t\t2.5\r\n\r\n2 2 3.0\r\n9 1 2\r\n')
    (path / 'ClassFile.cls').write_bytes(class_file(('BAD', [2]), ('good', [0, 1])))
    made, record = said_by_both(path, '11.5 s in 2 segments are marked bad', '1 of 4 bad segments lie outside')
    assert made['recordings'][0]['bad_segments'] == [[1800, 2025], [3000, 4500]]
    np.testing.assert_allclose(record['bad segments'], [[12, 13.5], [20, 30]])


def test_the_real_class_file_and_faulty_ones(shared, make_ds, create, tmp_path):
    real = shared / 'ctf' / 'testdata_ctf_short_discontinuous.ds'
    assert read_class_file(real / 'ClassFile.cls') == {'BAD': []}
    path = make_ds('bad', sensors(3000))
    for name, content, message in (
        (
            'ClassFile.cls',
            class_file(('BAD', [0])).replace(b'TRIALS:\n1', b'TRIALS:\n2'),
            'NUMBER OF TRIALS is 2, but 1',
        ),
        ('ClassFile.cls', class_file(('BAD', [0])).replace(b'+0', b'+x'), r"'\+x' is no trial number"),
        ('ClassFile.cls', class_file(('BAD', [0]))[:80], 'not a whole CTF file'),
        ('bad.segments', b'1 2.0\n', "'1 2.0' is no trial number, start and end"),
        ('bad.segments', b'1 2,0 3,0\n', 'with a decimal point'),
        ('bad.segments', b'1 3.0 2.0\n', "'1 3.0 2.0' is no trial number, start and end"),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as fault:
            create(path)
        assert str(path / name) in str(fault.value)
        (path / name).write_bytes(b'')
    (path / 'bad.segments').unlink()
    (path / 'bad.segments').symlink_to('nowhere')
    with pytest.raises(DataError, match=r'bad\.segments: a link to nothing'):
        create(path)
    (path / 'bad.segments').unlink()
    assert not (tmp_path / 'raw').exists()
    assert create(path)[0]['warnings'] == []  # empty files say nothing


def test_bad_annotations_of_a_fif_recording(tmp_path, said_by_both):
    notes = [(1.0, 0.5, 'BAD_movement'), (1.2, 1.0, 'bad'), (4.0, 2.0, 'BAD_ACQ_SKIP'), (12.0, 0.0, 'Bad eye')]
    path = write_fif(tmp_path / 'marked_raw.fif', brain(6000), [*notes, (7.0, 1.0, 'spike'), (14.0, 1.0, 'badge')])
    made, _ = said_by_both(path, '2.2 s in 3 segments are marked bad')
    [facts] = made['recordings']
    assert facts['bad_segments'] == [[150, 330], [1500, 1501], [1800, 1950]]  # after 2 s that were skipped
    assert facts['continuous_parts'] == 2


def test_a_segment_over_a_gap_is_bad_on_both_sides():
    layout = Layout(None, 300.0, [(0, 3000), (4500, 6000)], None, 0.0, None)
    segments = np.array([[9.5, 15.5], [11.0, 14.0], [-1.0, 0.1], [19.99, 50.0], [3.0, 3.0]])
    assert segments_in_block(segments, layout, 150.0) == [[0, 15], [450, 451], [1425, 1575], [2248, 2250]]


def test_windows_that_touch_bad_segments_are_left_out_of_both_sets():
    signal, shape = brain(3000, n_channels=3), WindowShape(300, 45, 8)
    options = {'standardize': False, 'reject_artefacts': False, 'artefact_threshold': 20.0}
    spikes = np.array([150.0, 1000.0])
    for normal_only in (False, True):
        made_with = window_settings(shape, normal_only=normal_only, **options)
        whole, before = cut_block(signal, spikes, made_with)
        cut, counts = cut_block(signal, spikes, made_with, bad_segments=[[930, 1000], [2370, 2371]])
        starts = whole.timing - 150
        touching = ((starts < 1000) & (starts + 300 > 930)) | ((starts < 2371) & (starts + 300 > 2370))
        np.testing.assert_array_equal(cut.windows, whole.windows[~touching])
        np.testing.assert_array_equal(cut.timing, whole.timing[~touching])
        assert (before.bad, counts.bad) == (0, 3)  # those from 840, 2100 and 2310
        assert counts.kept + counts.with_spike + counts.bad == before.kept + before.with_spike
        assert (counts.covered, counts.dropped) == ((1, 1) if not normal_only else (0, 2))


def test_bad_segments_reach_the_windows_and_are_noticed_when_they_change(tmp_path, create, make_windows, capsys):
    path = write_fif(tmp_path / 'one_raw.fif', brain(9000), [(4.0, 1.0, 'BAD_eye'), (15.0, 0.0, 'spike')])
    made, _ = create(path)
    assert made['recordings'][0]['bad_segments'] == [[600, 750]]
    make_windows(tmp_path / 'raw', tmp_path)
    printed = capsys.readouterr().out
    assert '(0 with artefacts, 1 with spikes, 2 in bad segments)' in printed  # those from 420 and 630
    assert 'dropped 2 (0 with artefacts, 2 in bad segments)' in printed
    made['recordings'][0]['bad_segments'] = []
    write_json(tmp_path / 'raw' / 'data_raw_001.json', made)
    make_windows(tmp_path / 'raw', tmp_path)
    assert 'dropped 0 (0 with artefacts);' in capsys.readouterr().out
    made['recordings'][0]['file'] = 'renamed.fif'
    write_json(tmp_path / 'raw' / 'data_raw_001.json', made)
    make_windows(tmp_path / 'raw', tmp_path, overwrite=True)
    assert 'its .json lists 1 blocks (renamed.fif, ...), but it holds 1 (one_raw.fif, ...)' in capsys.readouterr().out


def test_detections_in_bad_segments_are_marked_or_left_out(tmp_path, apply):
    path = write_fif(tmp_path / 'marked_raw.fif', brain(6000), [(4.0, 1.0, 'BAD_eye')])
    record, folder, printed = apply(path, samples=(300, 600, 749, 750), page=True)
    table = pd.read_csv(folder / 'detections.csv')
    assert list(table) == ['onset', 'duration', 'probas', 'bad', 'cluster']
    assert table['bad'].tolist() == [0, 1, 1, 0]
    assert (record['detections'], record['detections in bad segments'], record['bad segments']) == (4, 2, [[4.0, 5.0]])
    assert '2 detections lie in segments marked bad and are marked in the column bad' in ' '.join(record['warnings'])
    assert 'in segments marked bad: 2' in (folder / 'report.html').read_text()

    record, folder, printed = apply(path, 'drop_bad_segments=True', samples=(300, 600, 749, 750))
    assert pd.read_csv(folder / 'detections.csv')['onset'].tolist() == [2, 5]
    assert len(mne.read_annotations(folder / 'marked_raw-annot.fif')) == 2
    assert (record['detections'], record['detections in bad segments']) == (2, 0)
    assert 'warning: marked_raw.fif: 2 detections lie in segments marked bad and are left out' in printed


def test_bad_segments_of_a_data_raw_and_its_warnings_are_those_noted_when_it_was_made(tmp_path, create, apply):
    path = write_fif(tmp_path / 'one_raw.fif', brain(6000), [(4.0, 1.0, 'BAD_eye'), (90.0, 0.0, 'spike')])
    made, _ = create(path)
    record, folder, _ = apply(tmp_path / 'raw' / 'data_raw_001.pkl', samples=(300, 600))
    assert pd.read_csv(folder / 'detections.csv')['bad'].tolist() == [0, 1]
    assert set(made['recordings'][0]['warnings'][:2]) < set(record['warnings'])


def test_bad_segments_of_a_corrected_annotation_are_kept_too(tmp_path, create):
    path = write_fif(tmp_path / 'one_raw.fif', brain(6000), [(4.0, 1.0, 'BAD_eye'), (7.0, 0.0, 'spike')])
    create(path)
    corrected = mne.Annotations([2.0, 9.0], [0.0, 1.0], ['spike', 'BAD_jaw'])
    corrected.save(tmp_path / 'corrected-annot.fif', verbose='error')
    made, printed = create(path, tmp_path / 'corrected-annot.fif', 'reannot_labels=spike')
    assert 'labels that counted: spike 1' in printed
    assert made['recordings'][0]['bad_segments'] == [[600, 750], [1350, 1500]]
    assert read_data_raw(tmp_path / 'raw' / 'data_raw_001.pkl')['reannot'][0].tolist() == [300]


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
