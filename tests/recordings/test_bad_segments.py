"""Bad segments of a recording: read, kept out of the windows, and marked in detections."""

import mne
import numpy as np
import pandas as pd
import pytest
from common import window_settings
from written_recordings import brain, sensors, write_fif

from data_processing import cut_block
from recordings.bad_segments import read_bad_segments, segments_in_block
from recordings.data_raw import read_data_raw
from recordings.layout import Layout
from recordings.marker_files import read_class_file
from recordings.opening import open_recording, read_layout
from recordings.window_settings import WindowShape
from utils import DataError, write_json

pytestmark = pytest.mark.usefixtures('no_interpolation')


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
