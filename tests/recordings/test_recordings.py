"""Recordings to data_raw: order, units, times, gaps, bad channels, and faults."""

import json
import shutil

import mne
import numpy as np
import pytest
from common import SPIKES, marker_file
from common import run_create_data_raw as run
from hypothesis import given
from hypothesis import strategies as st

from recordings.channels import N_CHANNELS, ctf275_info, placed_info, plain_name
from recordings.data_raw import read_data_raw, read_record
from recordings.filters import preprocess, resample
from recordings.layout import Layout
from recordings.opening import open_recording, read_annotations, read_layout
from recordings.planning import chosen_labels
from recordings.reading import check_recording, noting_spans, read_recording
from utils import DataError, SettingError

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}
NAMES = ctf275_info(150)['ch_names']


def wave(n_samples, sfreq, frequency=7.0):
    return np.hanning(n_samples) * np.sin(2 * np.pi * frequency * np.arange(n_samples) / sfreq)


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
