"""How well are the foci of a patient told apart and located? Simulated patients of one, two and three foci.

    python benchmarks/foci.py

The events are the spikes of the simulation, each at the peak of the field power within 50 ms of the truth, as a
detector places it; weak ones too, which a detector would miss. With one focus, the index is 0 as soon as one spike is
not in the group of the others. In the second table, the three highest other peaks of
each block, such as blinks and sharp transients, count as detections as well.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from scipy.signal import find_peaks
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from classification import Detections
from recordings.channels import ctf275_info
from recordings.layout import Layout
from recordings.reading import Recording
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from reports.foci import find_foci
from reports.recording_detections import RecordingDetections, detections_of_recording
from utils import SettingError, run_script

N_PATIENTS, N_FALSE = 20, 3
PATIENT = PatientSettings(
    subject=1, n_blocks=3, block_seconds=60, spike_rate=9.0, snr=3.0, distractor_rate=4.0, annotation_jitter=0.0,
    annotation_missed=0.0, sfreq=150, seed=21,
)  # fmt: skip

HEAD = (
    '| spikes | groups of spikes found (patients) | all groups, mean | adjusted Rand index: mean, lowest '
    '| patients at 0.8 or more | spikes in the group of their focus | dipole error: mean, median, largest (mm) '
    '| foci within 15 mm |\n'
    '|---|---|---|---|---|---|---|---|---|'
)


def main(words: list[str]) -> None:
    """Print two tables: with spikes alone, and with false alarms among them."""
    if words:
        raise SettingError('usage: python benchmarks/foci.py')
    rows = {0: [], N_FALSE: []}
    for n_foci in (1, 2, 3):
        measured = {n_false: [] for n_false in rows}
        for subject in tqdm(range(1, N_PATIENTS + 1), desc=f'{n_foci} foci'):
            data, truth = simulate_patient(PATIENT._replace(subject=subject), n_foci)
            for n_false in rows:
                measured[n_false].append(measure(data, truth, n_false))
        for n_false, patients in measured.items():
            rows[n_false].append(row_of(n_foci, patients))
    for n_false, table in rows.items():
        print(f'\n| foci, with {n_false} false alarms per block {HEAD}')
        print('\n'.join(table))


def measure(data: dict, truth: pd.DataFrame, n_false: int) -> dict:
    """Group the events of a patient; indices and errors (mm) of its foci."""
    detections, true = events_of(data, truth, n_false)
    grouped, foci = find_foci(detections)
    clusters, is_spike = grouped.events['cluster'].to_numpy(), true > 0
    alone = np.where(clusters == 0, -np.arange(len(clusters)), clusters)
    errors, together = [], 0
    for number in np.unique(true[is_spike]):
        counts = np.bincount(clusters[(true == number) & (clusters > 0)], minlength=1)
        position = truth.loc[truth['focus'] == number, ['x', 'y', 'z']].iloc[0].to_numpy(dtype=float)
        together += counts.max()
        if counts.any():
            errors.append(1000 * np.linalg.norm(foci[counts.argmax() - 1].dipole.position - position))
        else:
            errors.append(np.inf)  # all its spikes are like no other
    return {
        'spikes': is_spike.sum(),
        'groups of spikes': (np.bincount(clusters[is_spike])[1:] > 1).sum(),
        'groups': len(foci),
        'index': adjusted_rand_score(true[is_spike], alone[is_spike]),
        'together': together,
        'errors': errors,
    }


def events_of(data: dict, truth: pd.DataFrame, n_false: int) -> tuple[RecordingDetections, np.ndarray]:
    """Events of all blocks, and the focus of each, 0 for false alarms."""
    blocks, by_block, foci = [], [], []
    for number, meg in enumerate(data['meg']):
        power, spikes = meg.std(axis=0), truth[truth['block'] == number]
        near = spikes['sample'].to_numpy()[:, None] + np.arange(-7, 8)
        samples = near[np.arange(len(near)), power[near].argmax(axis=1)]
        far = power.copy()
        far[(samples[:, None] + np.arange(-45, 46)).clip(0, len(far) - 1)] = 0
        peaks, _ = find_peaks(far, distance=30)
        peaks = peaks[np.argsort(-far[peaks])][:n_false]
        samples = np.concatenate([samples, peaks])
        order = samples.argsort()
        foci += np.concatenate([spikes['focus'], np.zeros(len(peaks), dtype=int)])[order].tolist()
        # The blocks follow one another, as recordings of their own would.
        start = number * meg.shape[1]
        layout = Layout(Path('x.fif'), 150.0, [(start, start + meg.shape[1])], None, 0.0, None)
        blocks.append(
            Recording('x', meg, layout, ctf275_info(150), {'seconds': meg.shape[1] / 150, 'interpolated': []})
        )
        by_block.append(
            Detections(
                pd.DataFrame({'part': [0], 'onset': 0, 'end': meg.shape[1], 'proba': 1.0, 'pred': 1}),
                pd.DataFrame({'sample': samples[order], 'part': 0, 'proba': 1.0}),
            )
        )
    return detections_of_recording('x', blocks, by_block), np.array(foci)


def row_of(n_foci: int, patients: list[dict]) -> str:
    """A row of the table."""
    index = np.array([patient['index'] for patient in patients])
    n_spikes, together = (sum(patient[name] for patient in patients) for name in ('spikes', 'together'))
    errors = np.concatenate([patient['errors'] for patient in patients])
    n_groups = pd.Series([patient['groups of spikes'] for patient in patients]).value_counts().sort_index()
    return (
        f'| {n_foci} | {n_spikes} '
        f'| {", ".join(f"{number} ({count})" for number, count in n_groups.items())} '
        f'| {np.mean([patient["groups"] for patient in patients]):.1f} | {index.mean():.2f}, {index.min():.2f} '
        f'| {(index >= 0.8).sum()} of {len(index)} | {together / n_spikes:.0%} '
        f'| {errors.mean():.1f}, {np.median(errors):.1f}, {errors.max():.1f} '
        f'| {(errors <= 15).sum()} of {len(errors)} |'
    )


if __name__ == '__main__':
    run_script(main, __doc__)
