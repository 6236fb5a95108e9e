"""Simulate epilepsy patients recorded with a 275-channel CTF MEG, to try the pipeline without real data.

    python simulate_data_raw.py [name=value ...]

Writes, in `path_raw_data`, per patient `data_raw_NNN.pkl` and its sampling rate in `data_raw_NNN.json`, and `truth.csv`
(subject, block, sample, amplitude, focus, x, y, z: the true peak of every spike, which the simulated annotation
misplaces a little and sometimes misses, and where its source is). The last `simulated_spike_free` patients have no
spike. The same seed gives the same bytes, and a patient with spikes does not depend on how many patients are simulated.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from recordings.pickles import write_pickle
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from runs.settings import read_command
from utils import SettingError, run_script, write_json, writing


def summarise(data: dict[str, list], truth: pd.DataFrame) -> str:
    """Describe in one line the recordings of a patient; the snr is estimated: field power less background's."""
    quiet, at_peaks = [], []
    for block, meg in enumerate(data['meg']):
        peaks = truth.loc[truth['block'] == block, 'sample'].to_numpy()
        from_peaks = np.abs(np.arange(meg.shape[1])[:, None] - peaks).min(axis=1, initial=meg.shape[1])
        quiet.append(meg[:, from_peaks > 75].var())
        at_peaks.extend(meg[:, peaks].var(axis=0))
    background_std = np.sqrt(np.mean(quiet))
    snr = np.mean(np.sqrt((np.array(at_peaks) / background_std**2 - 1).clip(0))) if at_peaks else 0
    annotated = sum(len(events) for events in data['events'])
    return (
        f'{len(data["meg"])} blocks, {len(truth)} spikes, {annotated} annotated, '
        f'background {background_std:.2g} T, snr {snr:.1f}'
    )


def main(words: list[str]) -> None:
    """Simulate the patients as params.py and the command line say.

    Raises
    ------
    SettingError
        The rate is too low, or the folder holds files from elsewhere.
    """
    _, settings = read_command(words)
    if settings.sfreq < 120:
        raise SettingError(f'sfreq = {settings.sfreq}: simulated signals reach 50 Hz, make it at least 120')
    directory = Path(settings.path_raw_data)
    names = [f'data_raw_{subject:03d}.pkl' for subject in range(1, settings.simulated_patients + 1)]
    for path in sorted(directory.glob('data_raw_*.pkl')):
        if path.name not in names or not (directory / 'truth.csv').exists():
            raise SettingError(
                f'path_raw_data = {str(directory)!r} holds {path.name}, which this simulation would not make: '
                'name an empty folder'
            )
    truths = []
    for subject in tqdm(range(1, settings.simulated_patients + 1), desc='patients', disable=None):
        has_spikes = subject <= settings.simulated_patients - settings.simulated_spike_free
        patient = PatientSettings(
            subject=subject,
            n_blocks=settings.simulated_blocks,
            block_seconds=settings.simulated_seconds,
            spike_rate=settings.simulated_spike_rate if has_spikes else 0.0,
            snr=settings.simulated_snr,
            distractor_rate=settings.simulated_distractor_rate,
            annotation_jitter=settings.annotation_jitter,
            annotation_missed=settings.annotation_missed,
            sfreq=settings.sfreq,
            seed=settings.seed,
        )
        data, truth = simulate_patient(patient)
        path = directory / f'data_raw_{subject:03d}.pkl'
        write_pickle(path, data)
        write_json(path.with_suffix('.json'), {'patient': subject, 'settings': {'sfreq': settings.sfreq}})
        truths.append(truth)
        tqdm.write(f'{path}: {summarise(data, truth)}')
    with writing(directory / 'truth.csv') as temporary:
        pd.concat(truths).to_csv(temporary, index=False)


if __name__ == '__main__':
    run_script(main, __doc__)
