"""Make the classifier's windows: normal signal and spikes.

Reads   path_raw_data/data_raw_NNN.pkl
Writes  path_extracted_data[1]/data_raw_NNN_b<nb_best_blocks>_*, the five files windows_bi, labels.pkl, blocks.pkl,
        timing.pkl and labels_t.pkl, all windows that touch no bad segment: for training.
        The same five of every patient, with b<nb_best_blocks_test>: for validation and test.
Run     python create_windows_clf.py [name=value ...]
"""

import dataclasses

from data_processing import create_windows
from recordings.window_settings import WindowSettings
from runs.settings import read_command
from utils import run_script


def main(words: list[str]) -> None:
    """Make the windows as params.py and the command line say."""
    _, settings = read_command(words)
    training = WindowSettings.of_run(settings, normal_only=False)
    testing = dataclasses.replace(training, nb_best_blocks=settings.nb_best_blocks_test)
    sets = {training: settings.include_spike_free}
    sets.setdefault(testing, True)  # patients without spikes show false alarms
    for made_with, include_spike_free in sets.items():
        create_windows(
            settings.path_raw_data,
            settings.path_extracted_data[1],
            made_with,
            patient=settings.patient,
            include_spike_free=include_spike_free,
            n_jobs=settings.n_jobs,
            overwrite=settings.overwrite,
        )


if __name__ == '__main__':
    run_script(main, __doc__)
