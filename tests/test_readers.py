"""Two readers of the same blocks: a known disagreement is found again, and readings come from many files."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

import evaluate_readers
from classifiers.subwindows import SubwindowShape, subwindow_table
from data_processing import time_labels
from evaluation.readers import FIGURES, Grid, agreed, agreement, figures, pooled, read_on
from recordings.marker_files import write_marker_file
from recordings.opening import open_recording, read_layout
from recordings.window_settings import WindowShape
from utils import DataError, SettingError, write_json

SFREQ, LENGTH, HALF_PULSE = 150, 30, 8
MINUTES = 40  # of a simulated patient


def grid(subjects, n_subwindows):
    table = pd.DataFrame({'subject': np.repeat(subjects, n_subwindows), 'block': 0})
    table['timing'] = (table.groupby('subject').cumcount() + 0.5) * LENGTH
    return Grid(table, LENGTH, HALF_PULSE, SFREQ)


def spikes_at(samples, subject=1):
    return pd.DataFrame({'subject': subject, 'block': 0, 'sample': samples}).astype(np.int64)


@settings(max_examples=40)
@given(st.lists(st.integers(45, 254), max_size=6))
def test_sub_windows_are_marked_as_in_training(spikes):
    """Against the time labels of a window of 300 samples, whose inner part holds seven sub-windows from 45 on."""
    labels_t = time_labels(1, np.array(spikes, dtype=np.int64), WindowShape(300, 45, HALF_PULSE))
    window = pd.DataFrame({'subject': [1], 'block': [0], 'timing': [150.0]})
    table = subwindow_table(window, labels_t, SubwindowShape(45, 7, LENGTH))
    reading = read_on(Grid(table, LENGTH, HALF_PULSE, SFREQ), spikes_at(spikes))
    assert reading.called.tolist() == table['test'].tolist()
    assert len(reading.spikes) == len(spikes)
    elsewhere = spikes_at(spikes).assign(block=1)
    assert not read_on(Grid(table, LENGTH, HALF_PULSE, SFREQ), elsewhere).called.any()


# ------------------------------------------------------------------------------------ a known disagreement
def reader(truth, rng, *, finds, false_per_minute, jitter):
    """Marks of a reader who finds a share of the true spikes, a little beside them, and marks others by mistake."""
    marks = []
    for subject, spikes in truth.items():
        noticed = spikes[rng.random(len(spikes)) < finds]
        noticed = noticed + np.round(rng.normal(0, jitter, len(noticed)))
        false = rng.integers(0, MINUTES * 60 * SFREQ, rng.poisson(false_per_minute * MINUTES))
        marks.append(spikes_at(np.unique(np.clip([*noticed, *false], 0, MINUTES * 60 * SFREQ - 1)), subject))
    return pd.concat(marks, ignore_index=True)


def test_a_known_disagreement_is_recovered():
    """30 patients with spikes 1.5 s apart or more; both readers miss some and mark others by mistake."""
    rng = np.random.default_rng(0)
    subjects = np.arange(1, 31)
    truth = {subject: np.sort(rng.choice(np.arange(100, 35_900, 22), 160, replace=False)) * 10 for subject in subjects}
    a, b = (
        reader(truth, rng, finds=finds, false_per_minute=rate, jitter=4.0) for finds, rate in ((0.8, 0.5), (0.6, 0.25))
    )
    whole = grid(subjects, MINUTES * 300)
    table, differences = agreement(read_on(whole, a), read_on(whole, b), whole, tolerance=0.1)
    result = pooled(table, differences, 300, seed=0)
    n = 160.0  # spikes of a patient; what is expected of each figure follows from what was put in
    n_a, n_b, hits = 0.8 * n + 0.5 * MINUTES, 0.6 * n + 0.25 * MINUTES, 0.8 * 0.6 * n
    expected = {
        'sensitivity': hits / n_b,
        'precision': hits / n_a,
        'F1': 2 * hits / (n_a + n_b),
        'false alarms/min': (n_a - hits) / MINUTES,
        FIGURES[-1]: 0.6745 * math.sqrt(2) * 4.0 / SFREQ * 1000,
    }
    for name, value in expected.items():
        estimate, low, high = result.loc[name]
        assert estimate == pytest.approx(value, rel=0.06 if name != FIGURES[-1] else 0.25)  # by whole samples of 6.7 ms
        assert low <= estimate <= high
    both = agreed(a, b, 15)
    assert len(both) == pytest.approx(hits * len(subjects), rel=0.03)
    kappa = cohen_kappa_score(read_on(whole, a).called, read_on(whole, b).called)
    assert result.loc['kappa', 'value'] == pytest.approx(kappa)
    swapped, _ = agreement(read_on(whole, b), read_on(whole, a), whole, tolerance=0.1)
    assert figures(swapped.sum())['precision'] == pytest.approx(result.loc['sensitivity', 'value'])
    assert figures(swapped.sum())['kappa'] == pytest.approx(kappa)


def test_equal_readings_and_a_patient_without_spikes():
    spikes, free = spikes_at([100, 400]), grid([1, 2], 20)
    table, differences = agreement(read_on(free, spikes), read_on(free, spikes), free, 0.1)
    assert table['F1'].tolist()[0] == table['kappa'].tolist()[0] == 1
    assert math.isnan(table['sensitivity'][1])
    result = pooled(table, differences, 20, seed=0)
    assert result.loc['sensitivity', 'value'] == 1
    assert result.loc['false alarms/min', 'value'] == 0
    alone = grid([1], 20)
    counts, differences = agreement(read_on(alone, spikes), read_on(alone, spikes), alone, 0.1)
    assert pooled(counts, differences, 20, seed=0)[['low', 'high']].isna().all(axis=None)


def test_what_both_share_lies_between_them():
    both = agreed(spikes_at([100, 300, 500]), spikes_at([106, 320, 494]), 15)
    assert both['sample'].tolist() == [103, 497]


# --------------------------------------------------------------------------------------------- the script
@pytest.fixture
def twice_read(recordings, write_raw, tmp_path):
    """Three patients of two blocks: `reannot` moves one spike of block 0, drops one and adds one; block 1 is not read
    again."""
    for number in (1, 2, 3):
        content = recordings(lengths=(3000, 900), events=((300, 1000, 2000), (400,)), seed=number)
        content['reannot'][0] = np.array([303, 1000, 2600])
        content['file'] = [f'p{number}_0.ds', f'p{number}_1.ds']
        write_raw(content, number)
    return tmp_path


def words(folder, *positional):
    return [*positional, f'path_raw_data={folder / "raw"}', f'path_writing_data={folder / "results"}',
            'bootstrap_samples=50']  # fmt: skip


def table_in(folder):
    table = pd.read_csv(folder / 'agreement.csv').set_index(['found', 'against', 'figure'])
    return table['value']


def test_events_and_reannot_are_compared_where_both_were_read(twice_read, paths, capsys):
    evaluate_readers.main(words(twice_read))
    output = capsys.readouterr().out
    assert 'events and reannot: 3 blocks read by both, 3 left out' in output
    result = table_in(twice_read / 'results' / 'readers')
    assert result['reannot', 'events', 'sensitivity'] == pytest.approx(2 / 3)
    assert result['reannot', 'events', 'false alarms/min'] == pytest.approx(3)  # one in 20 s
    assert result['events', 'reannot', FIGURES[-1]] == pytest.approx(10)  # median of 0 and 20 ms
    patients = pd.read_csv(twice_read / 'results' / 'readers' / 'patients.csv')
    assert len(patients) == 2 * 3
    assert (twice_read / 'results' / 'readers' / 'agreement.png').is_file()


def test_a_run_beside_the_readers(twice_read, capsys):
    """A run that tested patients 1 and 2 and found the spike that both readers have, and one that none has."""
    run = twice_read / 'results' / 'AE1D_1'
    run.mkdir(parents=True)
    rows = [(s, 0, (k + 0.5) * LENGTH) for s in (1, 2) for k in range(100)]
    tested = pd.DataFrame(rows, columns=['subject', 'block', 'timing'])
    tested['pred'] = tested['timing'].isin([1005.0, 1515.0]).astype(int)
    tested.to_csv(run / 'AE1D_1_cvpredictions.csv', index=False)
    events = [(s, 0, sample) for s in (1, 2) for sample in (1004, 1500)]
    pd.DataFrame(events, columns=['subject', 'block', 'sample']).to_csv(run / 'AE1D_1_events.csv', index=False)
    write_json(run / 'metrics.json', {})
    evaluate_readers.main(words(twice_read, 'AE1D_1'))
    result = table_in(twice_read / 'results' / 'readers_AE1D_1')
    assert result['AE1D_1', 'events', 'sensitivity'] == pytest.approx(1 / 3)
    assert result['AE1D_1', 'both', 'sensitivity'] == pytest.approx(1 / 2)
    assert result['AE1D_1', 'both', 'precision'] == pytest.approx(1 / 2)
    assert result['reannot', 'events', 'sensitivity'] == pytest.approx(2 / 3)
    assert 'AE1D_1 against both' in capsys.readouterr().out
    (run / 'AE1D_1_events.csv').write_text('subject,block\n')
    with pytest.raises(DataError, match='no column sample; finish the run again'):
        evaluate_readers.main(words(twice_read, 'AE1D_1'))


def test_a_reading_in_a_table(twice_read):
    path = twice_read / 'second.csv'
    path.write_text('subject,block,sample\n1,0,300\n1,0,1010\n2,0,\n')
    evaluate_readers.main(words(twice_read, 'events', str(path)))
    result = table_in(twice_read / 'results' / 'readers')
    assert result['second', 'events', 'sensitivity'] == pytest.approx(2 / 6)  # patient 2 was read and has none
    path.write_text('file,onset\np1_0.ds,2.0\np1_0.ds,6.7\np2_0.ds,\n')
    evaluate_readers.main(words(twice_read, 'events', str(path)))
    again = table_in(twice_read / 'results' / 'readers')
    assert again['second', 'events', 'sensitivity'] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('a,b\n1,2\n', 'not a reading .KeyError.*it needs the columns subject, block'),
        ('subject,block,sample\n1,0,300\n9,0,300\n', 'row 3: of another recording'),
        ('file,sample\nother.ds,300\n', 'row 2: of another recording'),
        ('subject,block,sample\n1,0,3000\n', 'row 2: sample 3000 of a block of 3000'),
        ('subject,block,sample\n1,0,much\n', 'not a reading .ValueError'),
    ],
)
def test_tables_of_other_recordings_or_lengths_are_refused(twice_read, content, message):
    path = twice_read / 'second.csv'
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate_readers.main(words(twice_read, 'events', str(path)))
    assert not (twice_read / 'results').exists()


def test_a_name_that_several_patients_have_needs_the_patient(twice_read, recordings, write_raw):
    content = recordings(lengths=(3000, 900), events=((300,), ()))
    content['file'] = ['p1_0.ds', 'p2_1.ds']
    write_raw(content, 2)
    path = twice_read / 'second.csv'
    path.write_text('file,sample\np1_0.ds,300\n')
    with pytest.raises(DataError, match='several blocks have the name of a file'):
        evaluate_readers.main(words(twice_read, 'events', str(path)))
    path.write_text('subject,file,sample\n2,p1_0.ds,301\n')
    evaluate_readers.main(words(twice_read, 'events', str(path)))
    assert table_in(twice_read / 'results' / 'readers')['second', 'events', 'F1'] == 1


def test_readings_without_a_common_block_or_file_are_refused(twice_read):
    path = twice_read / 'second.csv'
    path.write_text('subject,block,sample\n1,1,300\n')
    with pytest.raises(DataError, match='no block was read by both'):
        evaluate_readers.main(words(twice_read, 'reannot', str(path)))
    with pytest.raises(SettingError, match='cannot be compared with itself'):
        evaluate_readers.main(words(twice_read, 'events', 'events'))
    with pytest.raises(SettingError, match='third: no reading; name events, reannot'):
        evaluate_readers.main(words(twice_read, 'events', 'third'))


def test_a_reading_in_marker_files(make_ds, recordings, write_raw, tmp_path):
    """Two readers in one marker file, told apart by their labels."""
    signals = {'MLC11': np.random.default_rng(0).normal(0, 1e-12, 6000)}
    path = make_ds('p1_0', signals)  # 20 s at 300 Hz
    with open_recording(path) as raw:
        layout = read_layout(raw, path)
    write_marker_file(path / 'MarkerFile.mrk', [2.0, 10.0], layout, name='jj_spike', color='red')
    write_marker_file(path / 'MarkerFile.mrk', [2.02, 5.0], layout, name='second', color='blue')
    content = recordings(lengths=(3000,), events=((300, 1500),))
    content['file'] = ['p1_0.ds']
    write_raw(content)
    evaluate_readers.main(words(tmp_path, 'events', f'{path}:second'))
    result = table_in(tmp_path / 'results' / 'readers')
    assert result['p1_0:second', 'events', 'sensitivity'] == pytest.approx(1 / 2)
    assert result['p1_0:second', 'events', FIGURES[-1]] == pytest.approx(20)
    content['meg'][0] = content['meg'][0][:, :2000]
    content['events'] = [np.array([300])]
    write_raw(content)
    with pytest.raises(DataError, match='3000 samples, but block 0 of patient 1 has 2000'):
        evaluate_readers.main(words(tmp_path, 'events', f'{path}:second'))
    content['file'] = ['other.ds']
    write_raw(content)
    with pytest.raises(DataError, match=r'of another recording, no block is named p1_0\.ds'):
        evaluate_readers.main(words(tmp_path, 'events', str(path)))
