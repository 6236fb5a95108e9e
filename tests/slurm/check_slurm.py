"""The job scripts on a real Slurm of one node: `make test-slurm`. Not part of `make test`."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mne
import pytest

from recordings.channels import ctf275_info
from recordings.data_raw import read_data_raw

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = Path(__file__).with_name('cluster.sh')
SIMULATION = [
    'simulated_patients=4',
    'simulated_spike_free=0',
    'simulated_blocks=2',
    'simulated_seconds=30',
    'simulated_spike_rate=20',
    'simulated_snr=8',
]
TRAINING = [
    'masking=None',
    'classifier=hgb',
    'width=1',
    'batch_size=8',
    'num_epochs=2',
    'n_splits=2',
    'bootstrap_samples=20',
    'device=cpu',
]


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """A Slurm of one node, and the environment with which its commands find it."""
    folder = tmp_path_factory.mktemp('slurm')
    subprocess.run([CLUSTER, 'start', folder], check=True, timeout=120)
    try:
        yield os.environ | {'SLURM_CONF': str(folder / 'slurm.conf'), 'PYTHON': sys.executable}
    finally:
        subprocess.run([CLUSTER, 'stop', folder], check=True, timeout=60)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A copy of the project, whose folder slurm/logs is its own, and the words of its paths."""
    folder = tmp_path_factory.mktemp('project')
    rooms = {path.parent for path in ROOT.glob('*/*.py')} - {ROOT / 'tests', ROOT / 'benchmarks'}
    for path in [*ROOT.glob('*.py'), *rooms, ROOT / 'slurm']:
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, folder / path.name)
    paths = [
        f'path_raw_data={folder / "raw"}',
        f'path_extracted_data={[str(folder / "ae"), str(folder / "clf")]}',
        f'path_writing_data={folder / "results"}',
    ]
    subprocess.run([sys.executable, 'simulate_data_raw.py', *paths, *SIMULATION], cwd=folder, check=True, timeout=300)
    return folder, paths


@pytest.fixture(scope='module')
def submit(cluster, project):
    """Submit a job script as a user does, and wait until no job is left. Gives its number."""
    folder, paths = project

    def run(script, *words, options=(), seconds=600, paths=paths, meanwhile=lambda job: None):
        command = ['sbatch', '--parsable', '--cpus-per-task=1', *options, f'slurm/{script}', *words]
        ended = subprocess.run([*command, *paths], cwd=folder, env=cluster, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        print(f'\n$ {" ".join(command)}: job {ended.stdout.strip()}')
        seen, start = None, time.monotonic()
        while time.monotonic() - start < seconds:
            queue = ['squeue', '--noheader', '--format=%i %j %T %r']
            jobs = subprocess.run(queue, env=cluster, capture_output=True, text=True, check=True, timeout=60).stdout
            if jobs != seen:
                print(f'{time.monotonic() - start:5.0f} s  ' + (', '.join(jobs.splitlines()) or 'no job'))
            if not jobs:
                return ended.stdout.strip()
            seen = jobs
            meanwhile(ended.stdout.strip())
            time.sleep(1)
        pytest.fail(f'{script}: not done within {seconds} s\n{logs(folder)}')

    return run


def logs(folder):
    """The jobs' logs, but for the lines of epochs and figures."""
    texts = {path.name: path.read_text() for path in sorted((folder / 'slurm' / 'logs').glob('*.log'))}
    return '\n'.join(f'--- {name}\n{text}' for name, text in texts.items())


def alone(folder, script, *words):
    """Run a script without Slurm and give what it printed."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    command = [sys.executable, script, *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_array_makes_the_windows_of_all_patients(submit, project):
    folder, paths = project
    submit('windows_array.sbatch', options=['--array=1-4'], seconds=200)
    text = logs(folder)
    print(text)
    assert text.count('spikes annotated') == 12  # windows of the autoencoder, of the training and of the test
    made = {path.name: path.read_bytes() for path in (folder / 'ae').glob('*_windows_bi')}
    assert len(made) == 4
    elsewhere = [paths[0], f'path_extracted_data={[str(folder / "ae2"), str(folder / "clf2")]}']
    alone(folder, 'create_windows_ae.py', *elsewhere)
    assert made == {path.name: path.read_bytes() for path in (folder / 'ae2').glob('*_windows_bi')}


def test_arrays_make_the_data_raw_files_of_a_study_and_the_detections_in_it(submit, project):
    """Of the simulated blocks written as recordings, with a run trained on them."""
    folder, paths = project
    alone(folder, 'create_windows_ae.py', *paths)
    alone(folder, 'create_windows_clf.py', *paths)
    alone(folder, 'main_train.py', 'auto', 'AE1D_smaller', *TRAINING, *paths, 'model_nb=200')
    rows = ['patient,recording']
    for number in (1, 2):
        data = read_data_raw(folder / 'raw' / f'data_raw_{number:03d}.pkl')
        for block, (signal, spikes) in enumerate(zip(data['meg'], data['events'], strict=True)):
            recording = mne.io.RawArray(signal.astype(float), ctf275_info(150.0), verbose='error')
            recording.set_annotations(mne.Annotations(spikes / 150, 0.0, 'spike'))
            recording.save(folder / f'patient{number}_{block}_raw.fif', verbose='error')
            rows.append(f'{number},patient{number}_{block}_raw.fif')
    (folder / 'cohort.csv').write_text('\n'.join(rows))
    made = [f'path_raw_data={folder / "study"}', *paths[1:]]
    submit('data_raw_array.sbatch', 'cohort.csv', options=['--array=1-2'], paths=made)
    submit('detect_array.sbatch', 'AE1D_smaller_200', 'cohort.csv', 'device=cpu', options=['--array=1-2'], paths=made)
    print(logs(folder)[-3000:])
    assert sorted(path.name for path in (folder / 'study').glob('*.pkl')) == ['data_raw_001.pkl', 'data_raw_002.pkl']
    assert len([*folder.glob('patient*_detections/detections.csv')]) == 4
    for script, *words in (['create_data_raw.py', 'cohort.csv'], ['detect.py', 'AE1D_smaller_200', 'cohort.csv']):
        again = alone(folder, script, *words, *made, 'device=cpu')
        assert len(re.findall(r'^ +[12]  skipped ', again, re.MULTILINE)) == 2, again


def test_an_array_of_folds_makes_the_tables_of_a_cross_validation(submit, project):
    folder, paths = project
    job = submit('cv_array.sbatch', 'AE1D_smaller', *TRAINING, options=['--array=1-2'])
    print(logs(folder)[-3000:])
    alone(folder, 'main_train.py', 'cv', 'AE1D_smaller', *TRAINING, *paths, 'model_nb=1')
    results = folder / 'results'
    tables = [path.relative_to(results / 'AE1D_smaller_1') for path in (results / 'AE1D_smaller_1').rglob('*.csv')]
    assert len(tables) > 12
    for table in tables:
        of_job = results / f'AE1D_smaller_{job}' / str(table).replace('smaller_1_', f'smaller_{job}_')
        assert of_job.read_bytes() == (results / 'AE1D_smaller_1' / table).read_bytes(), table


def test_a_training_that_is_warned_is_saved_and_started_again(submit, cluster, project):
    """Slurm warns within a minute or so of the end of a job's time: here the same signal comes after two epochs."""
    folder, _ = project
    training = [word for word in TRAINING if not word.startswith('num_epochs')]
    warned = []

    def warn(job):
        log = folder / 'slurm' / 'logs' / f'train_{job}.log'
        if not warned and log.exists() and re.search(r'^  epoch +2 ', log.read_text(), re.MULTILINE):
            subprocess.run(['scancel', '--signal=USR1', job], env=cluster, check=True, timeout=60)
            warned.append(job)

    words = ['auto', 'AE1D_smaller', *training, 'num_epochs=8', 'n_epochs_stop=99']
    job = submit('train.sbatch', *words, meanwhile=warn)
    text = (folder / 'slurm' / 'logs' / f'train_{job}.log').read_text()
    print('\n'.join(line for line in text.splitlines() if not line.startswith('  ')))
    assert 'error: interrupted by SIGUSR1' in text
    assert f'job {job} interrupted, and queued again' in text
    assert f'job {job}, start 2: ' in text
    [results] = re.findall(r'^results in (\S+),', text, re.MULTILINE)
    assert text.count(f'{Path(results).name}: in ') == 2
    epochs = [int(number) for number in re.findall(r'^  epoch +(\d+)', text, re.MULTILINE)]
    assert epochs == list(range(1, 9))


def test_two_processes_train_together(submit, project):
    folder, _ = project
    training = [word for word in TRAINING if not word.startswith('num_epochs')]
    job = submit('ddp.sbatch', 'auto', 'AE1D_smaller', *training, 'num_epochs=3', options=['--gres=gpu:v100:2'])
    text = (folder / 'slurm' / 'logs' / f'ddp_{job}.log').read_text()
    print('\n'.join(line for line in text.splitlines() if not line.startswith('  ')))
    assert len(re.findall(r'^results in ', text, re.MULTILINE)) == 1
