"""The page and the model card of a run: what a reader meets first, in words that hold."""

import hashlib
import math

import numpy as np
import pandas as pd
import pytest

from evaluation.intervals import Evaluation, intervals
from evaluation.metrics import MAIN_METRICS, with_predictions
from reports.model_card import write_model_card
from reports.run_page import CAPTIONS, QUESTIONS, RunFacts, write_report
from reports.run_summary import summary_sentences
from runs.run_directory import RunDirectory

SPLIT = {'train': [1, 2], 'validation': [3], 'test': [4, 5], 'seen before': [9], 'windows': 'abc123'}


def evaluation_of(spikes_of_patients, n_detected=1):
    """Patients of 100 sub-windows with a spike in every tenth up to a number, of which `found` are detected, and one
    false alarm each."""
    rows, spikes = [], []
    for subject, n_spikes in spikes_of_patients.items():
        table = pd.DataFrame({'subject': subject, 'block': 0, 'timing': 30.0 * np.arange(100) + 15})
        table['test'] = 0
        table.loc[10 * np.arange(n_spikes), 'test'] = 1
        table['proba'] = 0.1
        table.loc[[*(10 * np.arange(min(n_detected, n_spikes))), 95], 'proba'] = 0.9
        table['peak'], table['field'] = table['timing'].astype(int), 1.0
        rows.append(table)
        spikes += [(subject, 0, int(sample)) for sample in table.loc[table['test'] == 1, 'peak']]
    table = pd.concat(rows, ignore_index=True)
    predictions = with_predictions(table.drop(columns='proba'), table['proba'].to_numpy(), 0.5)
    spikes = pd.DataFrame(spikes, columns=['subject', 'block', 'sample'], dtype=np.int64)
    return Evaluation(predictions, spikes, subwindow_length=30, tolerance=0.1, sfreq=150, batch_size=8)


def metrics_of(evaluation, **changes):
    return {
        'tested on': 'patients not seen in training',
        'test patients': evaluation.patients['subject'].tolist(),
        'test blocks': 'all blocks',
        'test': evaluation.result,
        'intervals': intervals(evaluation, 50, seed=0),
        'means over patients': evaluation.means(),
    } | changes


def test_the_summary_says_what_was_found_of_what():
    evaluation = evaluation_of({4: 4, 5: 2, 6: 0})
    summary = ' '.join(summary_sentences(metrics_of(evaluation), evaluation))
    assert '3 patients tested, 1 of them without annotated spikes: patients not seen in training.' in summary
    assert '3 recordings, 1.0 minutes: all blocks of each patient.' in summary
    assert 'Found: 2 of 6 annotated spikes (33%, between ' in summary
    assert 'False alarms: 3 detections that no expert has annotated, 3.00 per minute' in summary
    assert '40% of the detections are annotated spikes' in summary
    assert 'With 3 patients they are rough.' in summary
    assert 'nan' not in summary


@pytest.mark.parametrize('patients', [{4: 0}, {4: 0, 5: 0}, {4: 3}])
def test_the_summary_holds_without_spikes_and_of_one_patient(patients):
    evaluation = evaluation_of(patients, n_detected=0)
    summary = ' '.join(summary_sentences(metrics_of(evaluation), evaluation))
    assert 'nan' not in summary
    assert ('no spike in them' in summary) == (not any(patients.values()))
    assert ('one patient says nothing about others' in summary) == (len(patients) == 1)


def test_the_page_is_in_the_order_of_the_questions(tmp_path):
    run = RunDirectory(tmp_path / 'AE1D_1')
    run.figures.mkdir(parents=True)
    picture = bytes.fromhex(
        '89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8cfc0000003010100c9fe92'
        'ef0000000049454e44ae426082'
    )
    for name in (*CAPTIONS, 'unheard_of'):
        (run.losses if name == 'losses' else run.figures / f'{name}.png').write_bytes(picture)
    evaluation = evaluation_of({4: 4, 5: 2})
    described = RunFacts('python main_train.py', 'python main_train.py auto AE1D', {'width': 1}, {'tested on': 'x'})
    write_report(run, described, metrics_of(evaluation), evaluation, [evaluation.result])
    page = run.report.read_text()
    titles = ['annotated spikes (', *QUESTIONS, 'Other pictures', 'How it was made and tested', 'All metrics',
              'Settings', 'python main_train.py auto AE1D']  # fmt: skip
    places = [page.rindex(title) for title in titles]
    assert places == sorted(places)
    assert set(sum(QUESTIONS.values(), ())) == set(CAPTIONS)  # every picture answers a question, and has its caption


def test_the_model_card_names_data_figures_limits_and_hashes(tmp_path):
    run = RunDirectory(tmp_path / 'AE1D_1')
    run.path.mkdir()
    run.checkpoint('best').write_bytes(b'weights')
    evaluation = evaluation_of({4: 4, 5: 2})
    metrics = metrics_of(evaluation, **{'test blocks': 'the 3 blocks with the most annotated spikes'})
    write_model_card(run, {'classifier': 'hgb'}, metrics, evaluation, SPLIT)
    card = run.model_card.read_text()
    headings = [line for line in card.splitlines() if line.startswith('#')]
    assert headings == ['# Model card: AE1D_1', '## Summary', '## Intended use', '## Data', '## Figures of the test',
                        '## Limits', '## What it is made of']  # fmt: skip
    assert '- trained on patients: 1, 2' in card
    assert '- seen by earlier runs: 9' in card
    assert f'- best_AE1D_1.pth, SHA-256: {hashlib.sha256(b"weights").hexdigest()}' in card
    assert 'on whole recordings its precision is lower' in card
    assert 'abc123' in card
    for name in MAIN_METRICS:
        low, high = metrics['intervals'][name]
        assert f'| {name} | {evaluation.result[name]:.3f} | {low:.3f} to {high:.3f} |' in card
        assert not math.isnan(low)

    (run.path / 'fold_1').mkdir()
    (run.path / 'fold_1' / 'best_AE1D_1.pth').write_bytes(b'other weights')
    write_model_card(run, {}, metrics | {'test blocks': 'all blocks'}, evaluation, SPLIT)
    card = run.model_card.read_text()
    assert 'by the fold that has not seen him' in card
    assert '- fold_1/best_AE1D_1.pth, SHA-256: ' in card
    assert 'abc123' not in card
