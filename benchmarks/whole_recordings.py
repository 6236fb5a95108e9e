"""Two questions about figures on whole recordings, on simulated patients, with the product's own commands.

    python benchmarks/whole_recordings.py [small | tiny] [path_writing_data=FOLDER]

What do figures on the blocks with the most annotations hide? A cross-validation is tested on all blocks of its
patients; its tables are then made again, with the same threshold, of each patient's `nb_best_blocks` blocks alone. What
does an ensemble gain? All folds together, and each fold alone, are applied to patients that no fold has seen, and
compared with the simulated truth. Prints both tables, and writes best_blocks.csv and ensemble.csv into
path_writing_data.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from cohorts import chosen_size
from sklearn.metrics import average_precision_score

from classification import load_run, score_block
from evaluation.events import event_shares, match_events
from recordings.data_raw import read_data_raw
from runs.ensemble import ensemble_of, members_of
from runs.run_directory import RunDirectory, load_params
from runs.settings import read_command
from utils import ROOT, SettingError, run_script, writing

# Patients of the study and new ones, the last of each without spikes; blocks; folds; epochs of the autoencoder.
SIZES = {'tiny': (6, 3, 3, 2, 1), 'small': (16, 9, 8, 4, 15)}
SECONDS = 40  # of a block


def main(words: list[str]) -> None:
    """Simulate, train the folds, and print and write both tables."""
    positional, settings = read_command(words, n_positional=1)
    if [word for word in words if '=' in word and not word.startswith('path_writing_data=')]:
        raise SettingError('whole_recordings.py takes only path_writing_data; the other settings are in params.py')
    n_patients, n_new, n_blocks, n_folds, n_epochs = chosen_size(SIZES, *positional)
    with tempfile.TemporaryDirectory() as directory:
        study, new = Path(directory) / 'study', Path(directory) / 'new'
        simulation = {'simulated_blocks': n_blocks, 'simulated_seconds': SECONDS, 'simulated_spike_rate': 6.0}
        call('simulate_data_raw.py', study, simulated_patients=n_patients, **simulation)
        call('simulate_data_raw.py', new, simulated_patients=n_new, seed=settings.seed + 1, **simulation)
        call('create_windows_ae.py', study)
        call('create_windows_clf.py', study)
        training = {'width': 2, 'batch_size': 16, 'learning_rate': 2e-3, 'num_epochs': n_epochs, 'n_splits': n_folds}
        call('main_train.py', study, 'cv', 'AE1D', model_nb=1, **training)
        run = RunDirectory(study / 'results' / 'AE1D_1')
        tables = {'best_blocks': best_blocks(run, study / 'raw', settings)}
        tables['ensemble'] = of_new_patients(run, new / 'raw', settings)
    for name, table in tables.items():
        print(table.to_string(index=False, float_format='{:.3f}'.format))
        with writing(Path(settings.path_writing_data) / f'{name}.csv') as temporary:
            table.to_csv(temporary, index=False, float_format='%.4f')


def call(script: str, folder: Path, *words: str, **settings) -> None:
    """Run a script of the product in a process of its own, with its paths in `folder`."""
    settings = {
        'path_raw_data': folder / 'raw',
        'path_extracted_data': [str(folder / 'windows_ae'), str(folder / 'windows_clf')],
        'path_writing_data': folder / 'results',
    } | settings
    command = [sys.executable, str(ROOT / script), *words, *(f'{name}={value}' for name, value in settings.items())]
    subprocess.run(command, check=True)


def best_blocks(run: RunDirectory, raw: Path, settings: SimpleNamespace) -> pd.DataFrame:
    """Figures of the tests of all folds, over all blocks and over the blocks with the most annotations."""
    predictions, events = pd.read_csv(run.predictions), pd.read_csv(run.events)
    spikes = pd.concat([annotations(raw, subject) for subject in predictions['subject'].unique()])
    counts = predictions[['subject', 'block']].drop_duplicates()
    counts = counts.merge(spikes.groupby(['subject', 'block']).size().rename('spikes').reset_index(), how='left')
    best = counts.sort_values('spikes', ascending=False, kind='stable').dropna()
    best = best.groupby('subject').head(settings.nb_best_blocks)[['subject', 'block']]
    rows = []
    for name, blocks in (('all blocks', counts[['subject', 'block']]), (f'{settings.nb_best_blocks} best', best)):
        parts = [table.merge(blocks) for table in (predictions, events, spikes)]
        rows.append({'tested on': name, 'patients': blocks['subject'].nunique()} | figures(*parts, settings))
    return pd.DataFrame(rows)


def annotations(raw: Path, subject: int) -> pd.DataFrame:
    """Annotated spikes of a patient: subject, block, sample."""
    samples = read_data_raw(raw / f'data_raw_{subject:03d}.pkl')['events']
    blocks = [pd.DataFrame({'subject': subject, 'block': i, 'sample': of_block}) for i, of_block in enumerate(samples)]
    return pd.concat(blocks).astype(np.int64)


def of_new_patients(run: RunDirectory, raw: Path, settings: SimpleNamespace) -> pd.DataFrame:
    """Figures of each fold and of all together on patients that no fold has seen, against the simulated truth."""
    folds, device = members_of(run), torch.device('cpu')
    run_settings = load_params(folds[0])['settings']
    classifier = run_settings['classifier']
    paths = [(fold.checkpoint('best'), fold.checkpoint('best', classifier)) for fold in folds]
    members = [load_run(run_settings, *of_fold, device) for of_fold in paths]
    single = {f'fold {number}': member for number, member in enumerate(members, start=1)}
    spikes, rows = pd.read_csv(raw / 'truth.csv')[['subject', 'block', 'sample']], []
    for name, trained in (single | {'all folds': ensemble_of(run, members)}).items():
        subwindows, events = [], []
        for path in sorted(raw.glob('data_raw_*.pkl')):
            subject = int(path.stem.rpartition('_')[2])
            for block, signal in enumerate(read_data_raw(path)['meg']):
                detections, place = (
                    score_block(trained, signal, [signal.shape[1]]),
                    {'subject': subject, 'block': block},
                )
                truth = spikes.loc[(spikes['subject'] == subject) & (spikes['block'] == block), 'sample'].to_numpy()
                onset, end = (detections.subwindows[side].to_numpy()[:, None] for side in ('onset', 'end'))
                reach = round(settings.pulse_width / 2 * settings.sfreq)
                marked = ((truth >= onset - reach) & (truth < end + reach)).any(axis=1)
                subwindows.append(detections.subwindows.assign(test=marked.astype(int), **place))
                events.append(detections.events.assign(**place))
        rows.append({'applied': name} | figures(pd.concat(subwindows), pd.concat(events), spikes, settings))
    return pd.DataFrame(rows)


def figures(predictions: pd.DataFrame, events: pd.DataFrame, spikes: pd.DataFrame, settings: SimpleNamespace) -> dict:
    """PR-AUC of sub-windows, and the shares of events matched with spikes."""
    matched, _ = match_events(
        events.reset_index(drop=True), spikes.reset_index(drop=True), settings.tolerance * settings.sfreq
    )
    minutes = len(predictions) * settings.subwindow_size / 60
    counts = {'spikes': len(spikes), 'events': len(events), 'hits': int(matched['hit'].sum()), 'minutes': minutes}
    areas = {'positive': predictions['test'].mean()}
    areas['PR-AUC'] = average_precision_score(predictions['test'], predictions['proba'])
    return counts | areas | {name: float(value) for name, value in event_shares(counts).items()}


if __name__ == '__main__':
    run_script(main, __doc__)
