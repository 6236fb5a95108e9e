"""A whole study: tables and BIDS folders, what is made and skipped, and one faulty patient among others."""

import json
import re

import mne
import numpy as np
import pytest
from common import names

import create_data_raw
from recordings.bids import bids_patients, read_events
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.cohorts import is_cohort, read_cohort
from recordings.data_raw import read_data_raw
from recordings.pickles import read_pickle
from utils import DataError, SettingError


@pytest.fixture
def _fast(monkeypatch):
    monkeypatch.setattr('recordings.filters.preprocess', lambda signal, **settings: signal[:, ::2])


def noise(seed, n_samples=900):
    return 1e-12 * np.random.default_rng(seed).normal(size=(N_CHANNELS, n_samples))


@pytest.fixture
def cohort(make_fif, tmp_path):
    """Three patients, the second with two recordings and the third with a file of markers: folder and table."""
    for seed, name in enumerate(('one', 'two_a', 'two_b', 'three')):
        make_fif(name, noise(seed), notes=[(1.0, 'spike')])
    mne.Annotations([0.5, 2.0], 0.0, 'spike').save(tmp_path / 'three-annot.fif', verbose='error')
    (tmp_path / 'cohort.csv').write_text(
        'patient,recording,markers\n1,one_raw.fif,\n2,two_a_raw.fif,\n2,two_b_raw.fif,\n'
        '\n7,three_raw.fif,three-annot.fif\n'
    )
    return tmp_path


def run(folder, *words, word='cohort.csv'):
    create_data_raw.main([str(folder / word), *words, f'path_raw_data={folder / "raw"}'])


def table(printed):
    """Patient to result and reason, from the table at the end."""
    rows = re.findall(r'^ +(\d+)  (made|skipped|refused) +(.*)$', printed, re.MULTILINE)
    return {int(number): (result, what) for number, result, what in rows}


# --------------------------------------------------------------------------------------------- the work
@pytest.mark.usefixtures('_fast')
def test_all_patients_are_made_and_then_skipped_until_something_changes(cohort, capsys):
    run(cohort)
    made = table(capsys.readouterr().out)
    assert made == {
        1: ('made', '1 blocks, 1 spikes'), 2: ('made', '2 blocks, 2 spikes'), 7: ('made', '1 blocks, 2 spikes'),
    }  # fmt: skip
    assert read_data_raw(cohort / 'raw' / 'data_raw_002.pkl')['file'] == ['two_a_raw.fif', 'two_b_raw.fif']
    contents = {path: path.read_bytes() for path in (cohort / 'raw').iterdir()}
    run(cohort)
    assert {result for result, _ in table(capsys.readouterr().out).values()} == {'skipped'}
    mne.Annotations([0.5], 0.0, 'spike').save(cohort / 'three-annot.fif', overwrite=True, verbose='error')
    run(cohort)
    assert [result for result, _ in table(capsys.readouterr().out).values()] == ['skipped', 'skipped', 'made']
    assert {path for path in contents if path.read_bytes() != contents[path]} == {
        cohort / 'raw' / 'data_raw_007.pkl', cohort / 'raw' / 'data_raw_007.json',
    }  # fmt: skip
    run(cohort, 'low_pass=40', 'patient=[1]')
    assert table(capsys.readouterr().out) == {1: ('made', '1 blocks, 1 spikes')}
    run(cohort, 'low_pass=40', 'patient=1', 'overwrite=True')
    assert table(capsys.readouterr().out)[1][0] == 'made'


@pytest.mark.usefixtures('_fast')
def test_one_faulty_patient_does_not_stop_the_others(cohort, capsys, make_fif, monkeypatch):
    (cohort / 'two_b_raw.fif').unlink()
    (cohort / 'cohort.csv').write_text(
        'patient,recording\n2,two_a_raw.fif\n2,two_b_raw.fif\n3,one_raw.fif\n4,cut_raw.fif\n5,three_raw.fif\n'
    )
    (cohort / 'cut_raw.fif').write_bytes((cohort / 'one_raw.fif').read_bytes()[:5000])
    with pytest.raises(DataError, match=r'2 of 4 patients refused \(2, 4\): the table above says why'):
        run(cohort)
    printed = table(capsys.readouterr().out)
    assert [result for result, _ in printed.values()] == ['refused', 'made', 'refused', 'made']
    assert 'two_b_raw.fif: no such recording' in printed[2][1]
    assert 'cut_raw.fif: MNE cannot read it' in printed[4][1]
    assert names(cohort / 'raw') == [f'data_raw_00{n}.{kind}' for n in (3, 5) for kind in ('json', 'pkl')]

    def fault(*arguments, **keywords):
        raise ZeroDivisionError('of the program')

    monkeypatch.setattr('create_data_raw.plan_recordings', fault)
    with pytest.raises(DataError, match='4 of 4 patients refused'):
        run(cohort)
    assert 'unexpected ZeroDivisionError: of the program in ' in capsys.readouterr().out


@pytest.mark.usefixtures('_fast')
def test_a_reannotation_stays_in_a_study_and_is_not_lost_when_something_changes(cohort, capsys):
    run(cohort)
    mne.Annotations([2.5], 0.0, 'mine').save(cohort / 'mine-annot.fif', verbose='error')
    (cohort / 'corrected.csv').write_text('patient,recording,markers\n1,one_raw.fif,mine-annot.fif\n')
    run(cohort, 'reannot_labels=mine', word='corrected.csv')
    assert table(capsys.readouterr().out)[1] == ('made', 'reannot of 1 recordings')
    run(cohort)
    assert table(capsys.readouterr().out)[1][0] == 'skipped'
    with pytest.raises(DataError, match=r'1 of 3 patients refused \(1\)'):
        run(cohort, 'low_pass=40')
    assert 'holds a re-annotation, which would be lost' in table(capsys.readouterr().out)[1][1]
    assert [times.tolist() for times in read_data_raw(cohort / 'raw' / 'data_raw_001.pkl')['reannot']] == [[375]]


def test_several_patients_at_a_time_make_the_same_files(cohort, run_script):
    """In processes of their own, as a user starts them."""
    run(cohort, 'patient=[1,7]')
    ended = run_script(
        'create_data_raw.py', cohort / 'cohort.csv', f'path_raw_data={cohort / "raw2"}', 'n_jobs=2', 'patient=[1,7]'
    )
    assert ended.returncode == 0, ended.stderr
    assert [result for result, _ in table(ended.stdout).values()] == ['made', 'made']
    assert names(cohort / 'raw') == names(cohort / 'raw2')
    for name in names(cohort / 'raw'):
        assert (cohort / 'raw' / name).read_bytes() == (cohort / 'raw2' / name).read_bytes()


@pytest.mark.usefixtures('_fast')
def test_a_recording_of_another_patient_is_noticed(cohort, capsys):
    run(cohort, 'patient=1')
    create_data_raw.main(['9', str(cohort / 'one_raw.fif'), f'path_raw_data={cohort / "raw"}'])
    assert 'warning: patient 9: one_raw.fif: the same samples are in data_raw_001.pkl' in capsys.readouterr().out
    record = json.loads((cohort / 'raw' / 'data_raw_009.json').read_text())
    assert any('can be in training and test at once' in warning for warning in record['warnings'])
    run(cohort, 'patient=2')
    assert 'the same samples' not in capsys.readouterr().out


@pytest.mark.usefixtures('_fast')
def test_labels_that_are_there_are_named_where_none_marks_a_spike(cohort, capsys):
    run(cohort, 'patient=1', 'spike_labels=spkie')
    assert "matches spike_labels = 'spkie'" in (printed := capsys.readouterr().out)
    assert "its labels are 'spike' (1)" in printed


# ------------------------------------------------------------------------------------------- the table
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'is empty; its first line must be patient,recording'),
        ('patient,recording\n', 'has no line below'),
        ('patient;recording\n1;a.ds\n', 'has the columns patient;recording; its first line must be'),
        ('patient,recording,age\n1,a.ds,7\n', 'has the columns patient,recording,age'),
        ('patient,recording\n1,a.ds,b.mrk\n', 'line 2: 3 values in 2 columns'),
        ('patient,recording\nP1,a.ds\n', "line 2: patient 'P1' is not the number"),
        ('patient,recording\n1,\n', 'line 2: no recording'),
        ('patient,recording\n1,a.ds\n1,./a.ds\n', r'line 3: \./a\.ds is in line 2 already'),
        ('patient,recording\n1,a.ds\n2,a.ds\n', r'line 3: a\.ds is in line 2 already'),
        ('patient,recording\n1,a.ds\n2,b.ds\n01,c.ds\n', 'line 4: patient 1 comes a second time, after others'),
        ('patient,recording\n3,a.ds\n', 'has no patient 4'),
    ],
)
def test_faults_of_a_table(tmp_path, content, message):
    path = tmp_path / 'cohort.csv'
    path.write_text(content)
    with pytest.raises(DataError, match=rf'cohort\.csv: {message}'):
        read_cohort(str(path), patient=4)


def test_a_table_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / 'cohort.csv'
    path.write_bytes('\ufeffPatient,Recording\r\n004,"a, b.ds"\r\n\r\n004,/elsewhere/é.ds\r\n,\r\n'.encode())
    assert read_cohort(str(path)) == {4: [str(tmp_path / 'a, b.ds'), '/elsewhere/é.ds']}
    path.write_bytes(b'patient,recording\n1,\xff.ds\n')
    with pytest.raises(DataError, match='must be a table in UTF-8'):
        read_cohort(str(path))
    with pytest.raises(DataError, match=r'none\.csv: cannot be read'):
        read_cohort(str(tmp_path / 'none.csv'))


# ------------------------------------------------------------------------------------------------ BIDS
@pytest.fixture
def bids(tmp_path):
    """A BIDS folder written by its own library: two subjects, one with sessions, and an empty room."""
    mne_bids = pytest.importorskip('mne_bids', reason='mne-bids is not installed')
    root = tmp_path / 'study'
    places = [('01', None), ('02', 'pre'), ('02', 'post'), ('emptyroom', '20010909')]
    for seed, (subject, session) in enumerate(places):
        task = 'noise' if subject == 'emptyroom' else 'rest'
        raw = mne.io.RawArray(noise(seed), ctf275_info(300.0), first_samp=600, verbose='error')
        raw.set_meas_date(1.0e9)
        raw.info['line_freq'] = 50
        raw.info['bads'] = ['MLC11'] if subject == '01' else []
        raw.set_annotations(mne.Annotations([1.0, 1.5], [0.0, 0.25], ['spike', 'BAD_moved'], orig_time=None))
        bids_path = mne_bids.BIDSPath(subject=subject, session=session, task=task, root=root, datatype='meg')
        mne_bids.write_raw_bids(raw, bids_path, allow_preload=True, format='FIF', overwrite=True, verbose='error')
    return root


@pytest.mark.usefixtures('_fast')
@pytest.mark.filterwarnings('ignore')  # of mne-bids
def test_a_bids_folder(bids, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)
    assert is_cohort(str(bids))
    assert {number: [path.name for path in paths] for number, paths in bids_patients(bids).items()} == {
        1: ['sub-01_task-rest_meg.fif'],
        2: ['sub-02_ses-post_task-rest_meg.fif', 'sub-02_ses-pre_task-rest_meg.fif'],
    }
    # The events and the bad channels are those of the tables, which people edit.
    events = bids / 'sub-01' / 'meg' / 'sub-01_task-rest_events.tsv'
    assert [note[1] for note in read_events(events)] == pytest.approx([1.0, 1.5])
    events.write_text('onset\tduration\ttrial_type\n0.25\tn/a\tspike\n2.0\t0.5\tBAD_x\n')
    run(tmp_path, word='study')
    assert [result for result, _ in table(capsys.readouterr().out).values()] == ['made', 'made']
    record = json.loads((tmp_path / 'raw' / 'data_raw_001.json').read_text())
    assert record['recordings'][0]['interpolated'] == ['MLC11']
    assert [300, 375] in record['recordings'][0]['bad_segments']
    assert read_pickle(tmp_path / 'raw' / 'data_raw_001.pkl')['events'][0].tolist() == [38]
    assert read_data_raw(tmp_path / 'raw' / 'data_raw_002.pkl')['events'][0].tolist() == [150]


def make_files(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_which_files_of_a_bids_folder_are_recordings(tmp_path):
    make_files(
        tmp_path,
        'sub-CC07/meg/sub-CC07_split-01_meg.fif',
        'sub-CC07/meg/sub-CC07_split-02_meg.fif',
        'sub-CC07/meg/sub-CC07_acq-crosstalk_meg.fif',
        'sub-CC07/meg/sub-CC07_task-noise_meg.fif',
        'sub-CC07/meg/sub-CC07_task-a_meg.json',
        'sub-CC07/meg/sub-CC07_task-b_meg.ds/x.meg4',
        'sub-CC07/meg/sub-CC07_task-c_meg/c,rfDC',
        'sub-CC08/eeg/sub-CC08_eeg.edf',
    )
    [(number, paths)] = bids_patients(tmp_path).items()
    assert number == 7
    assert [path.name.removeprefix('sub-CC07_') for path in paths] == [
        'split-01_meg.fif',
        'task-b_meg.ds',
        'task-c_meg',
    ]


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (['sub-01/eeg/sub-01_eeg.edf'], 'no MEG recording'),
        (['sub-a/meg/sub-a_meg.fif'], 'sub-a does not end in a number'),
        (['sub-a1/meg/sub-a1_meg.fif', 'sub-b01/meg/sub-b01_meg.fif'], 'sub-a1 and sub-b01 would both be patient 1'),
    ],
)
def test_faults_of_a_bids_folder(tmp_path, files, message):
    make_files(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        read_cohort(str(tmp_path))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('onset,duration\n1,2\n', "has no column 'onset'"),
        ('onset\tduration\n1.0\t0\nx\t0\n', 'line 3: onset and duration must be numbers'),
        ('onset\tduration\n\t0\n', 'line 2: onset and duration must be numbers'),
    ],
)
def test_faults_of_a_table_of_events(tmp_path, content, message):
    path = tmp_path / 'sub-01_events.tsv'
    path.write_text(content)
    with pytest.raises(DataError, match=rf'sub-01_events\.tsv: {message}'):
        read_events(path)


# ------------------------------------------------------------------------------------------ other words
def test_a_folder_that_is_no_recording(tmp_path, make_fif):
    make_fif('one', noise(0))
    with pytest.raises(DataError, match=r'a folder that is no recording .* such as .*one_raw\.fif'):
        create_data_raw.main(['1', str(tmp_path), f'path_raw_data={tmp_path / "raw"}'])
    with pytest.raises(SettingError, match='usage'):
        create_data_raw.main([str(tmp_path / 'one_raw.fif')])


@pytest.mark.parametrize('word', ['bad_channels=[MLC11,', 'bad_channels=[MLC11,MLC12]', 'filters=[8,', 'notch=(50)x,'])
def test_a_list_without_quotes_is_said(word):
    with pytest.raises(SettingError, match='a list that Python cannot read; put names in quotes'):
        create_data_raw.main(['1', 'x.ds', word, 'MLC12]'])
