"""review.py: what the reviewer sees, what becomes of corrections, the way back, and what to review next."""

import json
import shlex
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import create_data_raw
import review
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.data_raw import read_data_raw
from recordings.identity import identify
from recordings.layout import Layout, Note
from recordings.marker_files import read_marker_file, write_marker_file
from recordings.opening import open_recording, read_layout
from recordings.reading import Recording
from reports.detection_files import write_annotations
from reports.review_browser import choose_browser
from reports.review_events import (
    corrected_events,
    events_of_notes,
    on_timeline,
    order_of_review,
    shown_annotations,
    with_markers,
)
from reports.review_ranking import candidates, rank_events
from system.files import sha256
from utils import DataError, SettingError, write_json

SFREQ = 150


@pytest.fixture(autouse=True)
def _no_interpolation(monkeypatch):
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


def block_of(n_samples, parts=None, sfreq=SFREQ):
    meg = np.random.default_rng(0).normal(size=(N_CHANNELS, n_samples)).astype(np.float32)
    layout = Layout(Path('x.fif'), sfreq, parts or [(0, n_samples)], None, 0.0, None)
    return Recording('x.fif', meg, layout, ctf275_info(SFREQ), {'bad_segments': [[300, 450]]})


def table(*rows):
    return events_of_notes([Note(label, time, 0.0, {'proba': p, 'cluster': c}) for time, label, p, c in rows])


# ---------------------------------------------------------------------------------------- what is shown
def test_the_timeline_is_that_of_the_recording_with_zeros_in_gaps():
    block = block_of(900, [(600, 1800), (3000, 5400)], sfreq=600)  # of 600 and 300 samples at 150 Hz
    block = block._replace(meg=np.hstack([block.meg[:, :300], block.meg[:, 300:]]))
    raw = on_timeline(block)
    signal = raw.get_data()
    assert raw.ch_names[0] == 'field power'
    assert set(raw.ch_names[1:]) == set(block.info['ch_names'])
    row = raw.ch_names.index('MRT31')
    of_block = block.meg[block.info['ch_names'].index('MRT31')]
    np.testing.assert_array_equal(signal[row, 150:450], of_block[:300])
    np.testing.assert_array_equal(signal[row, 750:1350], of_block[300:])
    assert not signal[:, :150].any()
    assert not signal[:, 450:750].any()
    np.testing.assert_allclose(signal[0, 750:1350], block.meg[:, 300:].std(axis=0), rtol=1e-5)
    regions = [name[2] for name in raw.ch_names[1:]]
    assert [region for i, region in enumerate(regions) if i == 0 or regions[i - 1] != region] == list('FCPTO')


def test_the_order_of_review():
    events = table((1, 'd', 0.9, 0), (2, 'd', 0.31, 0), (3, 'd', 0.6, 0))
    events.loc[3] = [4.0, 'spike', np.nan, 0]
    assert order_of_review(events, 'doubt', 0.3)['time'].tolist() == [2, 3, 1, 4]
    assert order_of_review(events, 'certainty', 0.3)['time'].tolist() == [1, 3, 2, 4]
    assert order_of_review(events, 'time', 0.3)['time'].tolist() == [1, 2, 3, 4]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 50), max_size=6, unique=True), st.lists(st.integers(0, 50), max_size=6, unique=True))
def test_markers_take_the_place_of_detections_near_them(detected, marked):
    detections = table(*((t / 10, 'd', 0.5, 1 + i) for i, t in enumerate(sorted(detected))))
    markers = events_of_notes([Note('spike', t / 10, 0.0) for t in marked])
    together = with_markers(detections, markers, 0.11)
    assert sorted(together.loc[together['label'] == 'spike', 'time']) == [t / 10 for t in sorted(marked)]
    has_proba = together['label'].eq('spike') & together['proba'].notna()
    left = together['label'].eq('d')
    assert has_proba.sum() + left.sum() == len(detected)
    for time in together.loc[has_proba, 'time']:
        assert min(abs(t / 10 - time) for t in detected) < 0.11
    lonely = [t for t in detected if all(abs(t - m) > 1 for m in marked)]
    assert {t / 10 for t in lonely} <= set(together.loc[left, 'time'])


# ------------------------------------------------------------------------------------------ corrections
BLOCK = block_of(1500)
RAW = on_timeline(BLOCK)
ACTIONS = ['keep', 'delete', 'rename', 'nudge']


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from('ab'), st.integers(0, 2), st.sampled_from(ACTIONS)),
             max_size=8),
    st.lists(st.integers(0, 8), max_size=3, unique=True),
)  # fmt: skip
def test_what_a_reviewer_does_is_what_is_found(actions, additions):
    """Events a second apart, of two labels and three groups, and additions between them."""
    block, raw = BLOCK, RAW.copy()
    before = table(*((1.0 + i, label, 0.5, group) for i, (label, group, _) in enumerate(actions)))
    raw.set_annotations(shown_annotations(before, block))
    annotations = raw.annotations
    for i, (*_, action) in reversed(list(enumerate(actions))):
        [row] = np.flatnonzero(abs(annotations.onset - (0.95 + i)) < 1e-6)
        if action == 'delete':
            annotations.delete(row)
        elif action == 'rename':
            annotations.description[row] = 'other'
        elif action == 'nudge':
            annotations.onset[row] += 0.03
    for second in additions:
        annotations.append(1.4 + second, 0.2, 'a')
    annotations.append(9.9, 0.05, 'BAD_moved')
    corrected, bad = corrected_events(before, annotations, raw)
    names = {'keep': 'kept', 'nudge': 'kept', 'delete': 'deleted', 'rename': 'renamed'}
    old = corrected[corrected['change'] != 'added']
    assert old['change'].tolist() == [names[action] for *_, action in actions]
    np.testing.assert_allclose(old['time'], before['time'])
    assert old['label'].tolist() == ['other' if a == 'rename' else label for label, _, a in actions]
    assert [note.label for note in bad] == ['BAD_moved']
    added = corrected[corrected['change'] == 'added']
    assert len(added) == len(additions)
    power = block.meg.std(axis=0)
    for second, time in zip(sorted(additions), added['time'], strict=True):
        first = round((1.4 + second) * SFREQ)
        assert round(time * SFREQ) == first + power[first : first + 31].argmax()


# -------------------------------------------------------------------------------------------- the round
def write_detections_of(path, times, probas, *, changed=()):
    """A folder of detections as detect.py writes it, but for its pages."""
    folder = path.parent / f'{path.stem}_detections'
    folder.mkdir()
    with open_recording(path) as raw:
        layout = read_layout(raw, path)
    extras = [{'proba': proba, 'cluster': 1 + i % 2} for i, proba in enumerate(probas)]
    annotations = folder / f'{path.stem}-annot.fif'
    write_annotations(annotations, np.array(times), np.zeros(len(times)), 'detected_spike', layout, extras)
    n = 100
    subwindows = pd.DataFrame({'onset': np.arange(n) / 10, 'duration': 0.1, 'proba': 0.01, 'pred': 0})
    for time, proba in zip(times, probas, strict=True):
        subwindows.loc[int(time * 10), 'proba'] = proba
    subwindows.to_csv(folder / 'probabilities.csv', index=False)
    record = {'recording': path.name, 'identity': identify(path), 'threshold': 0.3, 'settings': {'high_pass': 1.0},
              'files': {annotations.name: sha256(annotations)}}  # fmt: skip
    write_json(folder / 'detections.json', record)
    return folder


def signal(seconds=10, sfreq=300.0):
    return 1e-12 * np.random.default_rng(0).normal(size=(N_CHANNELS, int(seconds * sfreq)))


@pytest.fixture
def reviewed(monkeypatch, tmp_path, capsys):
    """Review a recording with a function in the place of the window; gives what was printed."""

    def run(path, act, *words):
        monkeypatch.setattr(review, 'choose_browser', lambda: 'qt')
        monkeypatch.setattr(review, 'browse', lambda raw, events, browser: act(raw.annotations))
        review.main([str(path), 'reviewer=me', f'path_raw_data={tmp_path / "raw"}', *words])
        return capsys.readouterr().out

    return run


def delete_first_and_add(annotations):
    [row, *_] = np.flatnonzero(annotations.description != 'BAD_marked')
    annotations.delete(row)
    annotations.append(6.0, 0.2, 'spike')
    annotations.append(8.0, 1.0, 'BAD_moved')


def test_a_round_with_a_fif_recording_that_begins_late(make_fif, reviewed, tmp_path):
    path = make_fif('run01', signal(), first_samp=777, notes=[(2.0, 'spike'), (4.0, 'spike'), (5.0, 'blink')])
    create_data_raw.main(['4', str(path), f'path_raw_data={tmp_path / "raw"}'])
    folder = write_detections_of(path, [2.05, 3.0], [0.9, 0.4])
    first = (folder / 'run01_raw-annot.fif').read_bytes()
    printed = reviewed(path, delete_first_and_add)
    assert '2 kept, 0 renamed, 1 deleted, 1 added; 1 segments marked bad' in printed
    assert (folder / 'run01_raw-annot.fif.1').read_bytes() == first
    log = pd.read_csv(folder / 'review_log.csv')
    assert log[['change', 'label']].values.tolist() == [
        ['deleted', 'spike'], ['kept', 'detected_spike'], ['kept', 'spike'], ['added', 'spike'],
    ]  # fmt: skip
    assert log['proba'].tolist()[:2] == [0.9, 0.4]
    assert set(log['reviewer']) == {'me'}
    notes = mne.read_annotations(folder / 'run01_raw-annot.fif')
    assert notes.extras[0] == {'cluster': 2, 'proba': 0.4}

    [line] = [line for line in printed.splitlines() if line.startswith('python')]
    assert shlex.split(line)[1:3] == ['create_data_raw.py', '4']
    create_data_raw.main(shlex.split(line)[2:])
    [reannot] = read_data_raw(tmp_path / 'raw' / 'data_raw_004.pkl')['reannot']
    np.testing.assert_array_equal(reannot, np.rint(SFREQ * log['onset'][1:]))
    record = json.loads((tmp_path / 'raw' / 'data_raw_004.json').read_text())
    [[first, end]] = record['recordings'][0]['bad_segments']
    assert first == 1200
    assert 1350 <= end <= 1351  # FIF keeps times as float32

    # A second review begins where the first ended, whatever the recording's own markers are.
    printed = reviewed(path, lambda annotations: None)
    assert '3 kept, 0 renamed, 0 deleted, 0 added; 0 segments marked bad' in printed
    assert len(pd.read_csv(folder / 'review_log.csv')) == 7
    assert (folder / 'run01_raw-annot.fif.2').is_file()


def test_a_round_with_a_ctf_recording(make_ds, reviewed):
    names = ctf275_info(SFREQ)['ch_names']
    path = make_ds('run02', dict(zip(names, signal(), strict=True)), n_trials=2, sfreq=300.0, before_sync=30)
    with open_recording(path) as raw:
        layout = read_layout(raw, path)
    write_marker_file(path / 'MarkerFile.mrk', np.array([2.0, 7.0]), layout, name='spike', color='red')
    write_marker_file(path / 'MarkerFile.mrk', np.array([1.0]), layout, name='blink', color='red')
    own = (path / 'MarkerFile.mrk').read_bytes()
    folder = write_detections_of(path, [3.0], [0.4])
    printed = reviewed(path, delete_first_and_add)
    assert '# N: the number of the patient; no file in' in printed
    classes = {
        marker_class.name: len(marker_class.markers) for marker_class in read_marker_file(folder / 'MarkerFile.mrk')[1]
    }
    assert classes == {'spike': 2, 'blink': 1, 'detected_spike': 1}
    assert (path / 'MarkerFile.mrk').read_bytes() == own
    reviewed(path, lambda annotations: None, 'markers_into_recording=True')
    assert len([*path.glob('MarkerFile.mrk.*')]) == 2
    assert {of_class.name: of_class.markers for of_class in read_marker_file(path / 'MarkerFile.mrk')[1]} == {
        of_class.name: of_class.markers for of_class in read_marker_file(folder / 'MarkerFile.mrk')[1]
    }
    assert (folder / 'MarkerFile.mrk.1').is_file()


def test_a_recording_without_detections_and_without_any_event_left(make_fif, reviewed):
    path = make_fif('run03', signal(), notes=[(2.0, 'spike')])
    printed = reviewed(path, lambda annotations: annotations.delete(0))
    assert '# no spike is left' in printed
    assert len(mne.read_annotations(path.parent / 'run03_raw_detections' / 'run03_raw-annot.fif')) == 0


# ------------------------------------------------------------------------------------------------ faults
def test_faults(make_fif, reviewed, tmp_path, monkeypatch):
    first, second = make_fif('one', signal()), make_fif('two', signal() + 1e-13)
    with pytest.raises(DataError, match=r'none\.fif: no such recording'):
        reviewed(tmp_path / 'none.fif', len)
    with pytest.raises(SettingError, match='name the one that this file was made from'):
        reviewed(tmp_path / 'data_raw_001.pkl', len)
    with pytest.raises(SettingError, match='usage'):
        review.main([str(first), str(second)])
    folder = write_detections_of(first, [20.0, 30.0], [0.5, 0.5])
    with pytest.raises(DataError, match=r'no annotation lies within .*one_raw\.fif; take those made for it'):
        reviewed(first, len)
    folder.rename(tmp_path / 'two_raw_detections')
    with pytest.raises(DataError, match=r'holds the detections of .*one_raw\.fif'):
        reviewed(second, len)
    monkeypatch.setattr('builtins.input', lambda question: (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr(review, 'choose_browser', lambda: 'qt')
    with pytest.raises(SettingError, match='give reviewer=NAME'):
        review.main([str(first), f'output={tmp_path / "elsewhere"}'])


def test_without_a_display_the_way_out_is_said(monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY', 'QT_QPA_PLATFORM'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('sys.platform', 'linux')
    with pytest.raises(SettingError, match=r'no display.*install requirements-review\.txt'):
        choose_browser()
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SettingError, match='backend Agg has no windows'):
        choose_browser()


# ------------------------------------------------------------------------------------------ what is next
def subwindows(probas):
    return pd.DataFrame({'onset': np.arange(len(probas)) * 0.2, 'duration': 0.2, 'proba': probas})


def test_events_are_ranked_by_doubt_and_by_what_was_annotated():
    proba = np.full(100, 0.01)
    proba[[10, 30, 50, 51, 70]] = [0.5, 0.99, 0.6, 0.45, 0.2]
    doubtful = candidates(subwindows(proba), None, 0.1)
    assert doubtful['onset'].round(1).tolist()[:3] == [2.0, 10.2, 14.0]  # of 50 and 51, one event
    assert doubtful['bits'][0] == pytest.approx(1.0)
    assert set(doubtful['reason']) == {'uncertain'}
    # An expert has marked 30, 70, and one that the run gives 0.01.
    marked = candidates(subwindows(proba), np.array([6.1, 14.1, 18.1]), 0.1)
    assert marked['onset'].tolist()[:3] == [18.0, 14.0, 10.0]
    assert marked['reason'].tolist()[:3] == ['marked, but improbable'] * 2 + ['probable, but not marked']
    assert marked['bits'][0] == pytest.approx(np.log2(100))
    assert 6.0 not in marked['onset'].tolist()[:5]
    assert marked.loc[marked['onset'] == 6.0, 'bits'].item() == pytest.approx(-np.log2(0.99))


def test_recordings_are_ranked_and_those_reviewed_left_out(make_fif, tmp_path, capsys):
    certain = make_fif('certain', signal())
    wrong = make_fif('wrong', signal() + 1e-13, notes=[(8.05, 'spike')])
    doubtful = make_fif('doubtful', signal() + 2e-13)
    done = make_fif('done', signal() + 3e-13)
    write_detections_of(certain, [2.0], [0.99])
    write_detections_of(wrong, [2.0, 3.0], [0.99, 0.98])
    write_detections_of(doubtful, [2.0, 4.0, 6.0], [0.5, 0.4, 0.6])
    (write_detections_of(done, [2.0], [0.5]) / 'review_log.csv').touch()
    review.main(['next', str(tmp_path)])
    ranking = pd.read_csv(tmp_path / 'review_next.csv')
    assert ranking.columns.tolist() == ['rank', 'recording', 'onset', 'proba', 'annotated', 'reason', 'bits']
    order = [Path(name).name for name in dict.fromkeys(ranking['recording'])]
    assert order == ['wrong_raw.fif', 'doubtful_raw.fif', 'certain_raw.fif']
    first = ranking[ranking['rank'] == 1]
    assert first['onset'].tolist()[:3] == [8.0, 2.0, 3.0]
    assert first['annotated'].tolist()[:3] == [1, 0, 0]
    assert (ranking.groupby('rank')['bits'].diff().dropna() <= 0).all()
    assert 'reviewed already, left out' in capsys.readouterr().out
    with pytest.raises(DataError, match=r'no detections .* in it; first run detect\.py'):
        rank_events(tmp_path / 'raw', ('*', ()), 0.1)
