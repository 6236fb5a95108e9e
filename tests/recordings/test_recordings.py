"""Recordings to data_raw: order, units, times, gaps, bad channels, markers, faults, and the way back."""

import json
import shutil

import mne
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import create_data_raw
from recordings.channels import N_CHANNELS, ctf275_info, placed_info, plain_name
from recordings.data_raw import read_data_raw, read_record
from recordings.filters import preprocess, resample
from recordings.layout import Layout
from recordings.marker_files import read_marker_file, write_marker_file
from recordings.opening import open_recording, read_annotations, read_layout
from recordings.pickles import read_pickle, write_pickle
from recordings.planning import chosen_labels
from recordings.reading import check_recording, noting_spans, read_recording
from utils import DataError, SettingError

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}
NAMES = ctf275_info(150)['ch_names']


def run(number, *words, raw):
    create_data_raw.main([str(number), *map(str, words), f'path_raw_data={raw}'])


def wave(n_samples, sfreq, frequency=7.0):
    return np.hanning(n_samples) * np.sin(2 * np.pi * frequency * np.arange(n_samples) / sfreq)


@pytest.fixture
def no_interpolation(monkeypatch):
    """Leave bad channels as they are, for tests of something else: MNE takes seconds for them."""
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


# ---------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize('sfreq', [100.0, 150.0, 512.0, 600.614990234375, 1000.0, 1200.0])
def test_resampled_signals_stay_at_their_times(sfreq):
    n = round(20 * sfreq)
    times = np.arange(n) / sfreq
    signal = np.stack([np.sin(2 * np.pi * 11.3 * times), np.cos(2 * np.pi * 2.7 * times)])
    new = resample(signal, sfreq, 150)
    times = np.arange(new.shape[1]) / 150
    expected = np.stack([np.sin(2 * np.pi * 11.3 * times), np.cos(2 * np.pi * 2.7 * times)])
    assert new.shape == (2, 3000)
    np.testing.assert_allclose(new[:, 150:-150], expected[:, 150:-150], atol=5e-3)


def test_a_part_of_a_few_samples_can_be_resampled():
    for n in (1, 2, 5):
        assert np.isfinite(resample(np.ones((2, n)), 1200, 150)).all()


@pytest.mark.parametrize('seconds', [1, 3, 20])
def test_the_offset_of_a_short_part_makes_no_step(seconds):
    times = np.arange(300 * seconds) / 300
    signal = np.cos(2 * np.pi * 10 * times)
    filters = {'raw_sfreq': 300, 'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0}
    filtered = preprocess((signal + 1000)[None], notch=None, **filters)
    np.testing.assert_allclose(filtered[0], signal[::2], atol=0.1)


def test_the_notch_takes_out_the_mains():
    times = np.arange(6000) / 300
    signal = np.cos(2 * np.pi * 10 * times)
    mains = 5 * np.cos(2 * np.pi * 50 * times)
    filters = {'raw_sfreq': 300, 'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0}
    without = preprocess((signal + mains)[None], notch=[50], **filters)
    np.testing.assert_allclose(without[0, 600:-600], signal[1200:-1200:2], atol=0.02)


def test_a_fif_recording_in_any_order_with_suffixes_and_bad_channels(make_fif, dipole_fields, tmp_path, capsys):
    info = ctf275_info(300)
    fields, _, _ = dipole_fields(info, 1)
    truth = 1e-12 * fields * wave(3600, 300)
    rng = np.random.default_rng(0)
    order = rng.permutation(np.delete(np.arange(N_CHANNELS), NAMES.index('MLT25')))
    names = [NAMES[i] for i in order]
    shuffled = mne.pick_info(info, order)
    signal = truth[order]
    signal[names.index('MRC31')] = 1e-9 * rng.normal(size=3600)
    signal[names.index('MLF12')] = np.nan
    mne.rename_channels(shuffled, {name: f'{name}-2805' for name in names})
    shuffled['bads'] = ['MRC31-2805']
    path = make_fif('shuffled', signal, info=shuffled)
    run(1, path, 'bad_channels=MLF12', raw=tmp_path)
    data = read_data_raw(tmp_path / 'data_raw_001.pkl')
    assert data['file'] == [path.name]
    assert data['meg'][0].shape == (N_CHANNELS, 1800)
    expected = truth[:, ::2]
    error = np.linalg.norm(data['meg'][0] - expected, axis=1)[:] / np.linalg.norm(expected, axis=1)
    interpolated = [NAMES.index(name) for name in ('MLT25', 'MRC31', 'MLF12')]
    assert np.delete(error, interpolated).max() < 0.01
    assert error[interpolated].max() < 0.15
    record = json.loads((tmp_path / 'data_raw_001.json').read_text())
    assert record['recordings'][0]['interpolated'] == ['MLF12', 'MLT25', 'MRC31']
    assert 'interpolated: MLF12, MLT25, MRC31' in capsys.readouterr().out


def test_a_ctf_recording_with_its_two_absent_channels(make_ds, shared, dipole_fields, tmp_path, capsys):
    real = shared / 'ctf' / 'testdata_ctf_short_discontinuous.ds'
    with open_recording(real) as raw:
        info = placed_info(raw.info['chs'], raw.info['dev_head_t'], 150)
    fields, _, _ = dipole_fields(info, 1, seed=3)
    truth = 1e-10 * fields * wave(3600, 300)  # far above the steps of the recording's integers
    path = make_ds('patient', dict(zip(NAMES, truth, strict=True)))
    (path / 'BadChannels').write_bytes(b'MLC11-4304\r\nMLC12\r\nEEG001\r\n')
    [recording] = read_recording(path, **READING)
    assert recording.facts['interpolated'] == ['MLC11', 'MLC12', 'MRF66', 'MRO52']
    assert recording.facts['compensation'] == 0
    np.testing.assert_allclose(recording.info['dev_head_t']['trans'], info['dev_head_t']['trans'])
    error = np.linalg.norm(recording.meg - truth[:, ::2], axis=1) / np.linalg.norm(truth[:, ::2], axis=1)
    bad = [NAMES.index(name) for name in recording.facts['interpolated']]
    assert np.delete(error, bad).max() < 0.01
    assert error[bad].max() < 0.2


def test_the_real_recording(shared, no_interpolation, tmp_path, capsys):
    run(7, shared / 'ctf' / 'testdata_ctf_short_discontinuous.ds', raw=tmp_path)
    [signal] = read_data_raw(tmp_path / 'data_raw_007.pkl')['meg']
    assert signal.shape == (N_CHANNELS, 300)
    assert signal.dtype == np.float32
    output = capsys.readouterr().out
    assert '2 continuous parts; CTF-275, compensation grade 0 kept; interpolated: MRF66, MRO52; labels: none' in output
    assert 'shorter than the high-pass filter (6.6 s)' in output


def test_compensation_is_kept_as_it_is(shared, no_interpolation, tmp_path):
    real = shared / 'ctf' / 'testdata_ctf_short_discontinuous.ds'
    raw = mne.io.read_raw_ctf(real, preload=True, verbose='error')
    raw.apply_gradient_compensation(3, verbose='error')
    raw.set_annotations(mne.Annotations([1201 / 1200], 0.0, 'EDGE boundary', orig_time=raw.info['meas_date']))
    raw.save(tmp_path / 'third_raw.fif', verbose='error')
    [recording] = read_recording(tmp_path / 'third_raw.fif', **READING)
    assert recording.facts['compensation'] == 3
    row = raw.ch_names.index('MLC31-4304')
    parts = [raw.get_data(row, start, start + 1201) for start in (0, 1201)]
    filters = {name: READING[name] for name in ('sfreq', 'high_pass', 'low_pass', 'notch')}
    expected = np.hstack([preprocess(part, raw_sfreq=1200, **filters) for part in parts])
    np.testing.assert_allclose(recording.meg[NAMES.index('MLC31')], expected[0], atol=1e-4 * expected.std())


def test_absent_channels_lie_where_the_helmet_of_the_recording_is():
    info = ctf275_info(150)
    turn = mne.transforms.rotation(0.1, -0.05, 0.2)[:3, :3]
    shift = np.array([0.01, -0.02, 0.03])
    moved = [
        dict(ch, loc=(ch['loc'].reshape(4, 3) @ turn.T + np.outer([1, 0, 0, 0], shift)).ravel()) for ch in info['chs']
    ]
    placed = placed_info([ch for ch in moved if ch['ch_name'] not in ('MRF66', 'MRO52')], None, 150)
    for ch, expected in zip(placed['chs'], moved, strict=True):
        np.testing.assert_allclose(ch['loc'], expected['loc'], atol=1e-9)


def test_another_system_is_mapped_to_ctf275_with_a_warning(make_fif, dipole_fields, tmp_path, capsys):
    info = mne.channels.read_meg_canonical_info('neuromag')
    with info._unlock():
        info['sfreq'] = 300.0
    fields, _, _ = dipole_fields(info, 2)
    signal = 1e-12 * np.repeat(fields, 600, axis=1) * np.tile(wave(600, 300), 2)
    path = make_fif('neuromag', signal, info=info)
    run(1, path, f'bad_channels={info["ch_names"][:1]}', raw=tmp_path)
    assert 'warning: neuromag_raw.fif: 306 channels of another system' in capsys.readouterr().out
    [facts] = read_record(tmp_path / 'data_raw_001.pkl')['recordings']
    assert (facts['interpolated'], facts['left_out']) == ([], info['ch_names'][:1])
    [mapped] = read_data_raw(tmp_path / 'data_raw_001.pkl')['meg']
    # The helmets' centres coincide.
    to = ctf275_info(150)
    expected, _, _ = dipole_fields(to, 2)
    for half, truth in zip(np.split(mapped, 2, axis=1), expected.T, strict=True):
        field = half[:, np.abs(half).max(axis=0).argmax()]
        assert abs(np.corrcoef(field, truth)[0, 1]) > 0.99


def test_the_real_recordings_of_another_system(shared):
    with pytest.raises(DataError, match='sampled at 90 Hz, below the 100 Hz'):
        read_recording(shared / 'neuromag' / '141027_cropped_90Hz_raw.fif', **READING)
    path = shared / 'neuromag' / 'sample_audvis_trunc_raw_sss.fif'
    with open_recording(path) as raw:
        assert not check_recording(raw, path, low_pass=50.0, bad_channels=[])
        layout = read_layout(raw, path)
    assert layout.first_time == pytest.approx(12900 / 300.3074951171875)
    assert layout.lengths(150).tolist() == [150]


# ------------------------------------------------------------------------------------------- gaps and times
def test_nothing_is_filtered_across_a_gap(make_fif):
    rng = np.random.default_rng(0)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 6000))
    signal[:, 3000:] += 1e-9  # a jump that any filter across it would smear
    whole = make_fif('gap', signal, notes=[(10.0, 'EDGE boundary')])
    first, second = make_fif('first', signal[:, :3000]), make_fif('second', signal[:, 3000:])
    [joined] = read_recording(whole, **READING)
    alone = [read_recording(path, **READING)[0].meg for path in (first, second)]
    np.testing.assert_allclose(joined.meg, np.hstack(alone), atol=1e-15)
    assert joined.layout.parts == [(0, 3000), (3000, 6000)]
    apart = read_recording(whole, **READING | {'trials': 'apart'})
    assert [block.name for block in apart] == ['gap_raw.fif [1]', 'gap_raw.fif [2]']
    for block, expected in zip(apart, alone, strict=True):
        np.testing.assert_allclose(block.meg, expected, atol=1e-15)


@pytest.mark.parametrize('jump', [0.0, 60.0])
def test_trials_are_one_part_where_the_clock_runs_on(make_ds, jump):
    clock = np.arange(1, 1201) / 300 + jump * (np.arange(1200) >= 600)
    path = make_ds('trials', {'MLC11': np.zeros(1200)}, n_trials=2, clock=clock)
    with open_recording(path) as raw:
        assert read_layout(raw, path).parts == ([(0, 600), (600, 1200)] if jump else [(0, 1200)])


def test_skipped_samples_are_left_out(make_fif):
    path = make_fif('skip', np.zeros((N_CHANNELS, 3000)), first_samp=900)
    with open_recording(path) as raw:
        raw.set_annotations(mne.Annotations([2.0, 9.0], [1.0, 1.0], 'BAD_ACQ_SKIP'))
        assert read_layout(raw, path).parts == [(0, 600), (900, 2700)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(20, 4000)), min_size=1, max_size=5),
    st.sampled_from([150.0, 300.0, 600.614990234375, 1200.0]),
    st.data(),
)
def test_samples_go_to_times_of_the_recording_and_back(gaps_and_lengths, sfreq, data):
    parts, start = [], 0
    for gap, length in gaps_and_lengths:
        parts.append((start + gap, start + gap + length))
        start += gap + length
    layout = Layout(None, sfreq, parts, None, 0.0, None)
    sample = data.draw(st.integers(0, int(layout.lengths(150).sum()) - 1))
    seconds = layout.to_seconds(np.array([sample]), 150)
    assert any(start - 1 <= seconds[0] * sfreq < stop for start, stop in parts)
    back = layout.to_samples(seconds, 150)
    # At a part's end, rounding to the recording's samples can leave the part.
    assert len(back) == 0 or abs(back[0] - sample) <= 1


@pytest.mark.parametrize('dated', [True, False])
def test_annotations_of_a_recording_that_begins_late(make_fif, dated):
    notes = [(1.5, 'Spike'), (2.0, 'artefact'), (3.25, 'spike')]
    path = make_fif('late', np.zeros((N_CHANNELS, 1500)), first_samp=12900, notes=notes, dated=dated)
    with open_recording(path) as raw:
        layout = read_layout(raw, path)
        annotations = read_annotations(raw, layout)
        events, ids = mne.events_from_annotations(raw, verbose='error')
    for label, seconds in annotations.items():
        samples = events[events[:, 2] == ids[label], 0] - 12900
        np.testing.assert_array_equal(np.rint(seconds * 300), samples)
        np.testing.assert_allclose(seconds, [onset for onset, name in notes if name == label])


def test_only_the_run_suffix_of_ctf_names_is_dropped():
    names = ['MLC11-2805', 'MZP01', 'MRT35-4304', 'MEG 0113', 'L101-bz', 'MEG-001']
    assert [plain_name(name) for name in names] == ['MLC11', 'MZP01', 'MRT35', *names[3:]]


def test_labels_are_chosen_by_patterns():
    labels = ['Spike', 'SPIKE_left', 'detected_spike', 'jj_add', 'HDAC006', 'bad_1']
    assert chosen_labels(labels, ['*spike*', 'jj_*'], ['detected_spike']) == ['Spike', 'SPIKE_left', 'jj_add']
    assert chosen_labels(labels, 'hdac*') == ['HDAC006']
    assert chosen_labels(labels, [], []) == []


# -------------------------------------------------------------------------------------------- marker files
def marker_file(*classes, end='\n'):
    """A marker file of (name, [(trial, time as text)])."""
    text = f'PATH OF DATASET:\n/data/patient.ds\n\n\nNUMBER OF MARKERS:\n{len(classes)}\n\n\n'
    for number, (name, rows) in enumerate(classes, 1):
        text += f'CLASSGROUPID:\n3\nNAME:\n{name}\nCOMMENT:\nby hand, à la main\nCOLOR:\nblue\nEDITABLE:\nYes\n'
        text += f'CLASSID:\n{number}\nNUMBER OF SAMPLES:\n{len(rows)}\nLIST OF SAMPLES:\n'
        text += 'TRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n'
        text += ''.join(f'{trial:20d}\t\t\t\t{time:>20s}\n' for trial, time in rows) + '\n\n'
    return text.replace('\n', end).encode('latin-1')


SPIKES = ('spike', [(0, '+0.5'), (1, '-0.25'), (1, '+1')])


def test_the_real_marker_file_reads_as_mne_reads_it(shared):
    path = shared / 'ctf' / 'example_MarkerFile.mrk'
    head, [marker_class] = read_marker_file(path)
    assert head + marker_class.content == path.read_bytes()
    assert {marker_class.name: marker_class.markers} == mne.io.ctf.markers._get_markers(path)
    assert len(marker_class.markers) == 36


def test_numbers_of_a_marker_file_may_have_a_sign(tmp_path):
    path = tmp_path / 'MarkerFile.mrk'
    plain = marker_file(SPIKES)
    path.write_bytes(plain)
    expected = read_marker_file(path)[1][0]
    for number, signed in (
        (b'MARKERS:\n1', b'MARKERS:\n+1'),
        (b'SAMPLES:\n3', b'SAMPLES:\n+3'),
        (b' 1\t', b'+1\t'),
        (b'CLASSID:\n1', b'CLASSID:\n+1'),
    ):
        assert number in plain
        path.write_bytes(plain.replace(number, signed))
        assert read_marker_file(path)[1][0]._replace(content=b'') == expected._replace(content=b'')


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_markers_of_a_ctf_recording_whatever_their_line_ends(make_ds, tmp_path, end):
    path = make_ds('marked', {'MLC11': np.zeros(1200)}, n_trials=2, before_sync=150)
    (path / 'MarkerFile.mrk').write_bytes(marker_file(SPIKES, ('artefact', []), end=end))
    link = tmp_path / 'under another name.ds'
    link.symlink_to(path)
    with open_recording(link) as raw:
        layout = read_layout(raw, link)
        annotations = read_annotations(raw, layout)
    assert list(annotations) == ['spike', 'artefact']
    np.testing.assert_allclose(annotations['spike'], [1.0, 2.25, 3.5])  # trials of 2 s, 0.5 s before the sync point
    assert layout.to_samples(annotations['spike'], 150).tolist() == [150, 338, 525]


FAULTS = [
    (lambda text: text[:150], 'cut off|not a whole'),
    (lambda text: text.replace(b'MARKERS:\n1', b'MARKERS:\n2'), 'NUMBER OF MARKERS is 2, but 1 classes'),
    (lambda text: text.replace(b'SAMPLES:\n3', b'SAMPLES:\n4'), "class 'spike': NUMBER OF SAMPLES is 4, but 3"),
    (lambda text: text.replace(b'+0.5', b'+0,5'), r"class 'spike': '0\\t\\t\\t\\t +\+0,5' is no trial number and time"),
    (lambda text: text.replace(b'-0.25', b'\xe2\x88\x920.25'), 'with a decimal point'),
    (lambda text: text.replace(b'NUMBER OF', b'NOMBRE DE'), 'NUMBER OF MARKERS'),
    (lambda text: b'', 'NUMBER OF MARKERS'),
    (lambda text: text.replace(b'MARKERS:\n1', b'MARKERS:\none'), "'one' is no number"),
]


@pytest.mark.parametrize(('spoil', 'message'), FAULTS)
def test_faults_of_a_marker_file(tmp_path, spoil, message):
    path = tmp_path / 'MarkerFile.mrk'
    path.write_bytes(spoil(marker_file(SPIKES)))
    with pytest.raises(DataError, match=message) as fault:
        read_marker_file(path)
    assert str(path) in str(fault.value)


def test_a_marker_file_without_classes(tmp_path):
    path = tmp_path / 'MarkerFile.mrk'
    path.write_bytes(marker_file())
    assert read_marker_file(path) == (marker_file(), [])


# ---------------------------------------------------------------------------------------------- bad input
def remove(suffix):
    return lambda path: (path / f'{path.stem}.{suffix}').unlink()


def cut(suffix, part):
    def spoil(path):
        file = path / f'{path.stem}.{suffix}'
        file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])

    return spoil


def with_commas(path):
    (path / 'MarkerFile.mrk').write_bytes(marker_file(SPIKES).replace(b'.', b','))


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (remove('meg4'), r'holds no bad\.meg4'),
        (remove('res4'), r'holds no bad\.res4'),
        (cut('meg4', 0.9), r'\.meg4 is cut off: \d+ of \d+ bytes of 2 trials'),
        (cut('meg4', 0.5), 'is cut off'),
        (cut('res4', 0.0003), r'\.res4 file is cut off'),
        (cut('res4', 0.1), 'MNE cannot read it'),
        (with_commas, 'with a decimal point'),
        (shutil.rmtree, 'no such recording'),
    ],
)
def test_faults_of_a_ctf_recording(make_ds, tmp_path, spoil, message):
    path = make_ds('bad', {'MLC11': np.zeros(1800)}, n_trials=2)
    spoil(path)
    with pytest.raises(DataError, match=message) as fault:
        run(1, path, raw=tmp_path / 'raw')
    assert str(path) in str(fault.value)
    assert not (tmp_path / 'raw').exists()


def test_faults_of_other_recordings(make_fif, tmp_path):
    raw = tmp_path / 'raw'
    short = make_fif('short', np.zeros((N_CHANNELS, 500)))
    with pytest.raises(DataError, match=r'short_raw\.fif: is 1\.67 s long, shorter than a window'):
        run(1, short, raw=raw)
    slow = make_fif('slow', np.zeros((N_CHANNELS, 900)), sfreq=90.0, info=ctf275_info(90.0))
    with pytest.raises(DataError, match=r'slow_raw\.fif: sampled at 90 Hz, below the 100 Hz'):
        run(1, slow, raw=raw)
    eeg = make_fif('eeg', np.zeros((3, 900)), info=mne.create_info(3, 300.0, 'eeg'))
    with pytest.raises(DataError, match=r'eeg_raw\.fif: no MEG channels'):
        run(1, eeg, raw=raw)
    few = make_fif('few', np.zeros((30, 900)), info=mne.pick_info(ctf275_info(300), range(30)))
    with pytest.raises(DataError, match='only 30 good MEG channels'):
        run(1, few, raw=raw)
    (tmp_path / 'noise_raw.fif').write_bytes(b'no recording')
    with pytest.raises(DataError, match=r'noise_raw\.fif: MNE cannot read it'):
        run(1, tmp_path / 'noise_raw.fif', raw=raw)
    whole = make_fif('whole', np.full((N_CHANNELS, 900), np.nan))
    with pytest.raises(DataError, match='MLC11 holds NaN'):
        run(1, whole, raw=raw)
    with pytest.raises(DataError, match='two recordings of this name'):
        run(1, whole, whole, raw=raw)
    with pytest.raises(SettingError, match="no channel 'MLC99'"):
        run(1, whole, 'bad_channels=MLC99', raw=raw)
    with pytest.raises(SettingError, match='N = '):
        run('one', whole, raw=raw)
    with pytest.raises(SettingError, match='low_pass = 80'):
        run(1, whole, 'low_pass=80', raw=raw)
    assert not raw.exists()


def test_a_folder_that_cannot_be_written(make_fif, tmp_path):
    path = make_fif('whole', np.zeros((N_CHANNELS, 900)))
    (tmp_path / 'raw').write_text('a file in its place')
    with pytest.raises(DataError, match=r'data_raw_001\.pkl: cannot be written'):
        run(1, path, raw=tmp_path / 'raw')
    assert (tmp_path / 'raw').read_text() == 'a file in its place'


def test_the_script_ends_with_one_line_and_its_status(run_script, tmp_path):
    missing = run_script('create_data_raw.py', 4, tmp_path / 'none.ds', f'path_raw_data={tmp_path}')
    assert (missing.returncode, missing.stderr) == (
        1,
        f'error: {tmp_path}/none.ds: no such recording; correct the path\n',
    )
    usage = run_script('create_data_raw.py', 4)
    assert (usage.returncode, usage.stderr.count('\n')) == (2, 1)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- annotation and back
def test_spikes_of_several_recordings_and_what_was_found(make_fif, tmp_path, capsys):
    rng = np.random.default_rng(0)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 1500))
    first = make_fif('one', signal, first_samp=700, notes=[(1.0, 'spike'), (2.5, 'spike_R'), (3.0, 'artefact')])
    second = make_fif('two', signal, notes=[(1.0, 'detected_spike')])
    run(12, first, second, raw=tmp_path)
    data = read_data_raw(tmp_path / 'data_raw_012.pkl')
    assert data['file'] == [first.name, second.name]
    assert [events.tolist() for events in data['events']] == [[150, 375], []]
    output = capsys.readouterr().out
    assert 'labels: spike 1 (spikes), spike_R 1 (spikes), artefact 1' in output
    assert f'warning: {second.name}: no spikes in it, because none of its labels matches spike_labels' in output
    before = (tmp_path / 'data_raw_012.pkl').read_bytes()
    run(12, first, second, raw=tmp_path)  # the same again
    assert (tmp_path / 'data_raw_012.pkl').read_bytes() == before
    with pytest.raises(DataError, match='not from these recordings'):
        run(12, first, raw=tmp_path)
    (tmp_path / 'data_raw_012.json').unlink()
    with pytest.raises(DataError, match='not from these recordings'):
        run(12, first, second, raw=tmp_path)
    assert (tmp_path / 'data_raw_012.pkl').read_bytes() == before


@pytest.fixture
def reviewed(make_ds, make_fif, no_interpolation, tmp_path):
    """A CTF and a FIF recording whose data_raw_003.pkl is made."""
    rng = np.random.default_rng(1)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 3000))
    ds = make_ds('run1', dict(zip(NAMES, signal, strict=True)), n_trials=2, before_sync=60)
    (ds / 'MarkerFile.mrk').write_bytes(marker_file(SPIKES))
    fif = make_fif('run2', signal, notes=[(4.0, 'spike')])
    run(3, ds, fif, raw=tmp_path / 'raw')
    return ds, fif


def test_the_way_back_from_the_reviewer(reviewed, tmp_path, make_windows, capsys):
    ds, fif = reviewed
    raw = tmp_path / 'raw'
    before = read_data_raw(raw / 'data_raw_003.pkl')
    assert [events.tolist() for events in before['events']] == [[105, 742, 930], [600]]
    with open_recording(ds) as opened:
        layout = read_layout(opened, ds)
    mark = {'layout': layout, 'name': 'detected_spike', 'color': 'green'}
    write_marker_file(ds / 'MarkerFile.mrk', np.array([1.0, 3.0, 5.0, 7.0]), **mark)
    write_marker_file(ds / 'MarkerFile.mrk', np.array([1.0, 7.0, 8.0]), **mark)  # two deleted, one added

    run(3, ds, 'reannot_labels=detected_spike', raw=raw)
    after = read_data_raw(raw / 'data_raw_003.pkl')
    assert [spikes.tolist() for spikes in after['reannot']] == [[150, 1050, 1200], []]
    for block in range(2):
        np.testing.assert_array_equal(after['events'][block], before['events'][block])
        np.testing.assert_array_equal(after['meg'][block], before['meg'][block])
    assert after['file'] == before['file']
    make_windows(raw, tmp_path, nb_best_blocks=0)
    stem = tmp_path / 'windows_clf' / 'data_raw_003_b0'
    timing, labels, blocks = (read_pickle(f'{stem}_{name}.pkl') for name in ('timing', 'labels', 'blocks'))
    inner = [abs(np.array([150, 1050, 1200]) - centre).min() < 105 for centre in timing[blocks == 0]]
    np.testing.assert_array_equal(labels[blocks == 0], inner)
    with pytest.raises(DataError, match='holds a re-annotation'):
        run(3, ds, fif, raw=raw)


def test_a_correction_that_does_not_fit_changes_nothing(reviewed, make_ds, make_fif, tmp_path, capsys):
    ds, fif = reviewed
    raw = tmp_path / 'raw'
    before = (raw / 'data_raw_003.pkl').read_bytes()
    with pytest.raises(DataError, match=r"no marker matches reannot_labels = 'right'; found spike"):
        run(3, ds, 'reannot_labels=right', raw=raw)
    elsewhere = make_fif('other', np.zeros((N_CHANNELS, 900)), notes=[(1.0, 'spike')])
    with pytest.raises(DataError, match=r'0 blocks named other_raw\.fif'):
        run(3, elsewhere, 'reannot_labels=spike', raw=raw)
    (tmp_path / 'again').mkdir()
    longer = elsewhere.rename(tmp_path / 'again' / fif.name)
    with pytest.raises(DataError, match=r'450 samples at sfreq = 150, but its block in .* has 1500'):
        run(3, longer, 'reannot_labels=spike', raw=raw)
    with pytest.raises(DataError, match='no file of patient 4'):
        run(4, ds, 'reannot_labels=spike', raw=raw)
    assert (raw / 'data_raw_003.pkl').read_bytes() == before


@pytest.mark.parametrize('form', [dict, pd.DataFrame])
def test_a_correction_in_a_file_of_its_own(reviewed, tmp_path, capsys, form):
    ds, fif = reviewed
    stored = tmp_path / 'raw' / 'data_raw_003.pkl'
    write_pickle(stored, form(read_pickle(stored)))
    notes = mne.Annotations([2.0, 9.0], 0.0, 'detected_spike')
    notes.save(tmp_path / 'corrected-annot.fif', verbose='error')
    (tmp_path / 'corrected.mrk').write_bytes(marker_file(('detected_spike', [])))
    words = [ds, tmp_path / 'corrected.mrk', fif, tmp_path / 'corrected-annot.fif']
    run(3, *words, 'reannot_labels=detected_spike', raw=tmp_path / 'raw')
    assert isinstance(read_pickle(stored), form)
    assert [spikes.tolist() for spikes in read_data_raw(stored)['reannot']] == [[], [300, 1350]]
    assert 'warning: run1.ds: an empty reannot means none was done' in capsys.readouterr().out


def test_channels_that_never_change_hold_no_rounding_of_the_filters():
    """A large constant, filtered and scaled by its block, would look like signal."""
    spans = []
    [part] = noting_spans([np.array([np.full(300, 3e-11), np.linspace(0, 1e-12, 300)])], spans)
    assert not part[0].any()
    assert part[1].any()
    np.testing.assert_allclose(spans, [[0, 1e-12]])


def test_a_head_position_that_is_no_number_counts_as_absent():
    info = ctf275_info(150.0)
    nowhere = mne.Transform('meg', 'head', np.full((4, 4), np.nan))
    assert np.isfinite(placed_info(info['chs'], nowhere, 150)['dev_head_t']['trans']).all()
