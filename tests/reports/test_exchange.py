"""Detections in the formats of other programs, each read back by the library that owns it."""

import json
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from recordings.channels import N_CHANNELS
from reports.exchange import (
    DESCRIPTION,
    HED_TAGS,
    check_derivatives_of,
    derivative_name,
    write_anywave,
    write_derivative,
)
from utils import DataError

EVENTS = pd.DataFrame(
    {
        'onset': [1 / 3, 0.5, 2.25, 30.0],
        'proba': [0.9, 0.8, 0.75, 0.66],
        'bad': [False, False, True, False],
        'cluster': [1, 0, 1, 2],
        'block': 0,
        'sample': [50, 75, 338, 4500],
    }
)
CLASSES = ['detected_spike_1', 'detected_spike', 'detected_spike_1', 'detected_spike_2']
TABLE = 'sub-01/ses-02/meg/sub-01_ses-02_task-rest_run-01_desc-spikes_events.tsv'


def test_names_of_bids():
    names = {
        'sub-01_ses-02_task-rest_run-01_meg.ds': TABLE,
        'sub-01_task-rest_split-01_meg.fif': 'sub-01/meg/sub-01_task-rest_desc-spikes_events.tsv',
        'sub-A7_task-rest_meg.fif': 'sub-A7/meg/sub-A7_task-rest_desc-spikes_events.tsv',
    }
    for recording, name in names.items():
        assert derivative_name(Path('study') / recording) == name
    for file in ('run01.ds', 'data_raw_001.pkl', 'sub-01_task-rest_eeg.fif', 'sub-01_task-rest_meg_old.fif'):
        with pytest.raises(DataError, match='has no name of BIDS'):
            derivative_name(Path(file))


def test_mne_bids_reads_the_derivative_with_its_hed_tags(tmp_path):
    mne_bids = pytest.importorskip('mne_bids', reason='requirements-formats.txt is not installed')
    root = tmp_path / 'derivatives' / 'spikes'
    assert write_derivative(root, TABLE, EVENTS, CLASSES) is None
    path = mne_bids.BIDSPath(
        subject='01', session='02', task='rest', run='01', description='spikes', suffix='events', extension='.tsv',
        datatype='meg', root=root, check=False,
    )  # fmt: skip
    assert path.fpath == root / TABLE
    [matching] = mne_bids.find_matching_paths(root, descriptions='spikes', extensions='.tsv', check=False)
    assert matching.fpath == path.fpath
    read = mne_bids.read.events_file_to_annotation_kwargs(path.fpath, verbose='error')
    np.testing.assert_allclose(read['onset'], EVENTS['onset'], atol=1e-6)
    assert read['description'].tolist() == CLASSES
    extras = pd.DataFrame(read['extras'])
    assert extras['cluster'].tolist() == EVENTS['cluster'].tolist()
    assert extras['bad'].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(extras['proba'], EVENTS['proba'], atol=1e-6)

    columns = json.loads(path.fpath.with_suffix('.json').read_text())
    assert {'onset', 'duration', 'trial_type', 'proba', 'bad', 'cluster'} < set(columns)
    pytest.importorskip('hed', reason='requirements-formats.txt is not installed')
    tags = [columns['trial_type']['HED'][name] for name in CLASSES]
    version = json.loads((root / DESCRIPTION).read_text())['HEDVersion']
    notes = mne.HEDAnnotations(
        read['onset'], read['duration'], read['description'], tags, hed_version=version, extras=read['extras']
    )
    assert set(notes.hed_string) == {HED_TAGS}


def test_the_bids_validator_finds_no_error(tmp_path, make_fif):
    """A dataset of one recording, and the derivatives in it."""
    pytest.importorskip('bids_validator_deno', reason='requirements-formats.txt is not installed')
    mne_bids = pytest.importorskip('mne_bids', reason='requirements-formats.txt is not installed')
    study = tmp_path / 'study'
    raw = mne.io.read_raw_fif(make_fif('x', np.zeros((N_CHANNELS, 600))), verbose='error')
    raw.info['line_freq'] = 50
    name = mne_bids.BIDSPath(subject='01', session='02', task='rest', run='01', datatype='meg', root=study)
    written = mne_bids.write_raw_bids(raw, name, verbose='error')
    check_derivatives_of([written.fpath], str(study / 'derivatives' / 'spikes'))
    write_derivative(study / 'derivatives' / 'spikes', derivative_name(written.fpath), EVENTS, CLASSES)
    for root in (study, study / 'derivatives' / 'spikes'):
        command = [Path(sys.executable).parent / 'bids-validator-deno', root, '--json']
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if not ended.stdout.strip():
            pytest.skip(f'the BIDS validator does not run here: {ended.stderr.strip()[-200:]}')
        issues = json.loads(ended.stdout)['issues']['issues']
        assert [issue for issue in issues if issue['severity'] == 'error'] == []


def test_a_table_that_a_person_changed_is_kept_and_one_that_nobody_changed_is_not(tmp_path):
    table = tmp_path / TABLE
    for events in (EVENTS, EVENTS.iloc[:2], EVENTS):
        assert write_derivative(tmp_path, TABLE, events, CLASSES[: len(events)]) is None
    edited = table.read_text().replace('detected_spike_2', 'no_spike')
    table.write_text(edited)
    (tmp_path / DESCRIPTION).write_text((tmp_path / DESCRIPTION).read_text().replace('MEG', 'my MEG'))
    backup = write_derivative(tmp_path, TABLE, EVENTS, CLASSES)
    assert (backup.name, backup.read_text()) == (table.name + '.1', edited)
    assert 'my MEG' in (tmp_path / DESCRIPTION).read_text()
    assert len(list(table.parent.iterdir())) == 3


def test_no_event_gives_a_table_of_titles(tmp_path):
    write_derivative(tmp_path, TABLE, EVENTS.iloc[:0], [])
    assert (tmp_path / TABLE).read_text() == 'onset\tduration\ttrial_type\tproba\tbad\tcluster\n'


def test_folders_of_others_are_refused(tmp_path):
    recording = tmp_path / 'sub-01_task-rest_meg.fif'
    check_derivatives_of([recording, tmp_path / 'sub-02_task-rest_meg.fif'], str(tmp_path / 'new'))
    check_derivatives_of([tmp_path / 'run01.ds'], None)
    with pytest.raises(DataError, match='another recording has the same name of BIDS'):
        check_derivatives_of([recording, tmp_path / 'copy' / recording.name], str(tmp_path / 'new'))
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(DataError, match='no folder of BIDS derivatives of'):
        check_derivatives_of([recording], str(tmp_path))
    (tmp_path / DESCRIPTION).write_text('{"GeneratedBy": [{"Name": "fmriprep"}]}')
    with pytest.raises(DataError, match='no folder of BIDS derivatives of'):
        write_derivative(tmp_path, TABLE, EVENTS, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, 'notes.txt']


def test_anywave_markers_follow_the_rules_of_anywave(tmp_path):
    """No registry has a reader: this follows AwMarker::load of AnyWave's source, line by line."""
    write_anywave(tmp_path / 'x_anywave.mrk', EVENTS, CLASSES)
    lines = (tmp_path / 'x_anywave.mrk').read_text().splitlines()
    assert lines[0] == '// AnyWave Marker File'
    markers = []
    for line in map(str.strip, lines):
        if line.startswith('//'):
            continue
        label, value, position, duration, *further = line.split('\t')
        assert label
        assert value
        assert position
        [color] = further
        assert color.startswith('#')  # or it would be names of channels
        markers.append((label, float(value), float(position), float(duration), color))
    table = pd.DataFrame(markers, columns=['label', 'value', 'position', 'duration', 'color'])
    assert table['label'].tolist() == CLASSES
    np.testing.assert_allclose(table['value'], EVENTS['proba'], atol=1e-4)
    np.testing.assert_allclose(table['position'], EVENTS['onset'], atol=1e-6)
    assert table.groupby('label')['color'].nunique().tolist() == [1, 1, 1]
    assert table['color'].nunique() == 3
    write_anywave(tmp_path / 'none_anywave.mrk', EVENTS.iloc[:0], [])
    assert (tmp_path / 'none_anywave.mrk').read_text() == '// AnyWave Marker File\n'
