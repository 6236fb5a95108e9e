"""Every autoencoder with every classifier, on simulated patients that no network has seen.

    python benchmarks/all_classifiers.py [name=value ...]

Simulates patients (settings simulated_*), makes their windows, trains every autoencoder once with `sfcn`, gives it to
the other classifiers (mode clf), and trains it again without annotations for `threshold`. Prints a table and writes
classifiers.csv into path_writing_data. Takes about 15 minutes on 2 cores with the narrow networks given here and
masking=None; with masking, longer: a window is then looked at once for each of its sub-windows.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from classifiers.specs import CLASSIFIERS
from models import AUTOENCODERS
from runs.run_directory import RunDirectory
from runs.settings import read_command
from utils import ROOT, run_script, writing

# What two cores can afford.
TRAINING = [
    'width=4',
    'filters=[4, 4, 4]',
    'batch_size=16',
    'learning_rate=5e-3',
    'num_epochs=4',
    'classifier_width=4',
    'classifier_batch_size=64',
    'classifier_learning_rate=5e-4',
    'classifier_num_epochs=8',
    'pretraining_epochs=8',
]
SHOWN = ('PR-AUC', 'event F1', 'event sensitivity', 'false alarms/min')


def main(words: list[str]) -> None:
    """Run them all and write the table."""
    _, settings = read_command(words)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            f'path_raw_data={folder}/raw',
            f'path_extracted_data={[f"{folder}/windows_ae", f"{folder}/windows_clf"]}',
            f'path_writing_data={folder}/results',
        ]
        words = [*words, *TRAINING, *paths]
        for script in ('simulate_data_raw', 'create_windows_ae', 'create_windows_clf'):
            run(script, *words)
        rows = []
        for model in AUTOENCODERS:
            for number, classifier in enumerate(CLASSIFIERS, start=1):
                trains_autoencoder = classifier in ('sfcn', 'threshold')
                chosen = [*words, f'classifier={classifier}', *['model_nb=1'] * (not trains_autoencoder)]
                run('main_train', 'auto' if trains_autoencoder else 'clf', model, *chosen)
                finished = RunDirectory(Path(folder) / 'results' / f'{model}_{number}')
                metrics = json.loads(finished.metrics.read_text())
                row = {'model': model, 'classifier': classifier}
                for name in SHOWN:
                    row[name] = metrics['test'][name]
                    row[f'{name} low'], row[f'{name} high'] = metrics['intervals'][name]
                rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format='{:.3f}'.format))
    with writing(Path(settings.path_writing_data) / 'classifiers.csv') as temporary:
        table.to_csv(temporary, index=False)


def run(script: str, *words: str) -> None:
    """Run a script of the project, which prints as it goes."""
    subprocess.run([sys.executable, str(ROOT / f'{script}.py'), *words], check=True)


if __name__ == '__main__':
    run_script(main, __doc__)
