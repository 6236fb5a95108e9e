"""Make the classifier's windows: normal signal and spikes.

Reads   path_raw_data/data_raw_NNN.pkl
Writes  path_extracted_data[1]/data_raw_NNN_b<nb_best_blocks>_*, the five files windows_bi, labels.pkl, blocks.pkl,
        timing.pkl and labels_t.pkl, all windows that touch no bad segment.
Run     python create_windows_clf.py [name=value ...]
"""

from data_processing import create_windows
from recordings.window_settings import WindowSettings
from runs.settings import read_command
from utils import run_script


def main(words: list[str]) -> None:
    """Make the windows as params.py and the command line say."""
    _, settings = read_command(words)
    create_windows(
        settings.path_raw_data,
        settings.path_extracted_data[1],
        WindowSettings.of_run(settings, normal_only=False),
        patient=settings.patient,
        include_spike_free=settings.include_spike_free,
        n_jobs=settings.n_jobs,
        overwrite=settings.overwrite,
    )


if __name__ == '__main__':
    run_script(main, __doc__)
