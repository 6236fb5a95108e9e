"""The page of the detections: what is on it, in a browser and on paper."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from common import recording_of

from classification import Detections
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from reports.detection_page import write_report
from reports.event_residuals import EventResidual
from reports.foci import find_foci
from reports.recording_detections import detections_of_recording

MADE_WITH = {
    'warnings': ['a clock that <stops>'], 'run': 'AE1D_1', 'model': 'AE1D', 'classifier': 'hgb', 'threshold': 0.5,
    'policy': 'f1', 'settings': {'sfreq': 150}, 'command': 'python detect.py AE1D_1 x_raw.fif',
}  # fmt: skip


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """The page of a simulated recording with two foci and a bad segment."""
    patient = PatientSettings(
        subject=1, n_blocks=1, block_seconds=40, spike_rate=20.0, snr=6.0, distractor_rate=0.0, annotation_jitter=0.0,
        annotation_missed=0.0, sfreq=150, seed=4,
    )  # fmt: skip
    data, truth = simulate_patient(patient, n_foci=2)
    samples = truth['sample'].to_numpy()
    block = recording_of(data['meg'][0], bad_segments=[(samples[-1] - 50, samples[-1] + 50)])
    probas = np.linspace(0.6, 0.99, len(samples))
    probas[-1] = 0.8
    subwindows = {'part': 0, 'onset': np.arange(0, 6000, 30), 'end': np.arange(30, 6030, 30), 'proba': 0.1, 'pred': 0}
    events = pd.DataFrame({'sample': samples, 'part': 0, 'proba': probas})
    detections = detections_of_recording('x_raw.fif', [block], [Detections(pd.DataFrame(subwindows), events)])
    detections, foci = find_foci(detections)
    residual = EventResidual(np.arange(-15, 15), block.meg[:, 300:330])
    folder = tmp_path_factory.mktemp('page')
    write_report(detections, folder, MADE_WITH, foci, lambda block, samples: [residual] * len(samples))
    return folder / 'report.html', foci


def chromium(folder, *words):
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('no Chromium found: the page is not rendered')
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', f'--user-data-dir={folder}']
    return subprocess.run([browser, *options, *words], capture_output=True, text=True, timeout=120, check=True)


def test_the_page_opens_in_a_browser_without_errors(page, tmp_path):
    path, foci = page
    ended = chromium(tmp_path, '--dump-dom', path.as_uri())
    console = [line for line in ended.stderr.splitlines() if 'CONSOLE' in line]
    assert not [line for line in console if 'Uncaught' in line or 'Error' in line]
    shown = ended.stdout[ended.stdout.rindex('id="container"') :]
    titles = ['Warnings', 'Summary', 'Events over time', 'Groups of events']
    titles += [f'Group {focus.number}: {focus.n_events} events' for focus in foci]
    titles += ['Surest events', 'Most doubtful events', 'Events in bad segments', 'Command']
    places = [shown.index(f'>{title}</a></span>') for title in titles]
    assert places == sorted(places)
    assert 'a clock that &lt;stops&gt;' in shown
    assert shown.count('data:image/png') == 4 + len(foci)


def test_the_page_prints_on_a4(page, tmp_path):
    chromium(tmp_path / 'b', f'--print-to-pdf={tmp_path / "page.pdf"}', page[0].as_uri())
    boxes = re.findall(rb'/MediaBox ?\[([0-9. ]+)\]', (tmp_path / 'page.pdf').read_bytes())
    sizes = {tuple(round(float(number)) for number in box.split()) for box in boxes}
    assert sizes == {(0, 0, 595, 842)}  # points
