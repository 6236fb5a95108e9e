"""What create_data_raw.py and detect.py say about a recording."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import create_data_raw
import detect
from classification import Detections
from runs.settings import read_command
from utils import write_json


@pytest.fixture
def no_interpolation(monkeypatch):
    """Leave bad channels as they are: MNE takes seconds for them."""
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


@pytest.fixture
def create(tmp_path, capsys):
    """Run create_data_raw.py for patient 1; give its record and what it printed."""

    def run(*words):
        create_data_raw.main(['1', *map(str, words), f'path_raw_data={tmp_path / "raw"}'])
        return json.loads((tmp_path / 'raw' / 'data_raw_001.json').read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def apply(tmp_path, monkeypatch, capsys):
    """Run detect.py, without networks: a finished run that finds an event at each of `samples` of every block.

    Gives detections.json of the first recording, its folder, and what was printed.
    """
    run = tmp_path / 'results' / 'AE1D_1'
    run.mkdir(parents=True)
    for name in ('metrics.json', 'best_AE1D_1.pth', 'best_forest_1.pth'):
        (run / name).write_text('{}')
    settings = vars(read_command([f'path_raw_data={tmp_path / "raw"}'])[1])
    write_json(run / 'params.json', {'settings': settings, 'split': {'train': [1]}})
    decision = {'threshold': 0.5, 'policy': 'f1', 'calibration': 'temperature'}
    trained = {'decision': decision, 'window_length': 300, 'reader': SimpleNamespace(device='cpu')}
    monkeypatch.setattr(detect, 'load_run', lambda settings, *more: SimpleNamespace(settings=settings, **trained))
    monkeypatch.setattr(detect, 'seen_by_run', lambda *arguments: {})  # which has seen the recordings of these tests
    monkeypatch.setattr(detect, 'event_residuals', lambda *arguments: [])

    def apply(*words, samples=(), page=False):
        def score_block(trained, meg, part_lengths):
            n = meg.shape[1]
            subwindows = pd.DataFrame({'part': [0], 'onset': [0], 'end': [n], 'proba': [0.9], 'pred': [1]})
            return Detections(subwindows, pd.DataFrame({'sample': np.array(samples, int), 'part': 0, 'proba': 0.9}))

        monkeypatch.setattr(detect, 'score_block', score_block)
        with monkeypatch.context() as patch:
            if not page:
                patch.setattr('reports.detection_files.write_report', lambda *arguments: None)
            detect.main([str(run), *map(str, words), f'output={tmp_path / "out"}'])
        [folder] = {record.parent for record in (tmp_path / 'out').rglob('detections.json')}
        return json.loads((folder / 'detections.json').read_text()), folder, capsys.readouterr().out

    return apply


@pytest.fixture
def said_by_both(create, apply, monkeypatch):
    """Check that a warning about one recording is on the console, in the JSON and on the page, in both scripts."""
    monkeypatch.setattr(
        'reports.detection_page.plot_over_time', lambda *arguments: None
    )  # pictures take most of the time
    monkeypatch.setattr('reports.detection_page.add_picture', lambda *arguments: None)

    def check(path, *words):
        made, printed = create(path)
        record, folder, printed_too = apply(path, page=True)
        page = (folder / 'report.html').read_text()
        for warning in words:
            [whole] = [text for text in record['warnings'] if warning in text]
            assert f'{path.name}: {whole}' in made['warnings']
            assert whole in made['recordings'][0]['warnings']
            assert f'warning: {path.name}: {whole}\n' in printed
            assert f'warning: {path.name}: {whole}\n' in printed_too
            assert page.index(warning) < page.index('threshold')
        return made, record

    return check
