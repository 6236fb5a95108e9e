"""The windows of a run, opened: those the autoencoder learns from, those of the classifier, and their pulses."""

from types import SimpleNamespace
from typing import Literal, NamedTuple

from evaluation.events import pulse_lengths
from recordings.patient_windows import PatientWindows, window_paths
from timeseries_dataset import WINDOW_SETTINGS, open_directory
from utils import DataError

Listed = list[int] | Literal[False]  # patients by number; False for all


class WindowSets(NamedTuple):
    """The windows of a run, before they are split.

    Attributes
    ----------
    autoencoder : list of PatientWindows
        What the autoencoder learns from.
    training, testing : list of PatientWindows
        Of the classifier: the blocks that it learns from, and those that it is validated and tested on. The same list
        where the settings keep the same blocks for both.
    """

    autoencoder: list[PatientWindows]
    training: list[PatientWindows]
    testing: list[PatientWindows]

    @property
    def classifier(self) -> list[PatientWindows]:
        """All of the classifier; patients may come twice, first with their blocks for training."""
        return self.training if self.testing is self.training else [*self.training, *self.testing]


def open_window_sets(settings: SimpleNamespace) -> WindowSets:
    """Open the windows of the autoencoder and of the classifier.

    The unsupervised classifier may not use annotations. Its autoencoder therefore learns from the classifier's
    windows, which are all windows of the patients.

    Raises
    ------
    DataError
        A patient lacks windows, or a window of the autoencoder has a spike.
    """
    made_with = {name: getattr(settings, name) for name in WINDOW_SETTINGS}
    ae_directory, clf_directory = settings.path_extracted_data
    annotated, unannotated = split_listed(settings)
    learned_from = patients_learned_from(clf_directory, annotated, settings)
    training = open_directory(clf_directory, settings.nb_best_blocks, learned_from, made_with)
    testing = training
    if settings.nb_best_blocks_test != settings.nb_best_blocks:
        testing = open_directory(clf_directory, settings.nb_best_blocks_test, annotated, made_with)
        check_learned_from(training, testing, settings)
    warn_of_pulses(testing, settings)
    if settings.classifier == 'threshold':
        return WindowSets(training, training, testing)
    ae_listed = learned_from and [*learned_from, *unannotated]
    ae_patients = open_directory(ae_directory, settings.nb_best_blocks, ae_listed, made_with)
    for patient_windows in ae_patients:
        if patient_windows.labels_t.any():
            raise DataError(
                f'{patient_windows.path}: holds windows with spikes, which the autoencoder must not learn: '
                'path_extracted_data[0] is for the windows of create_windows_ae.py'
            )
    return WindowSets(ae_patients, training, testing)


def split_listed(settings: SimpleNamespace) -> tuple[Listed, list[int]]:
    """The patients that the setting `patient` lists: the classifier's (False: all), and those of the autoencoder alone.

    Nobody has annotated the latter.
    """
    if settings.patient is False:
        return False, []
    listed = [settings.patient] if type(settings.patient) is int else settings.patient
    if settings.classifier == 'threshold':
        return listed, []
    of_ae, of_classifier = (
        {number for numbers in window_paths(directory).values() for number in numbers}
        for directory in settings.path_extracted_data
    )
    unannotated = [number for number in listed if number in of_ae - of_classifier]
    if len(unannotated) == len(listed):  # that the classifier lacks all is told when they are opened
        return listed, []
    if unannotated:
        subjects = ', '.join(map(str, unannotated))
        print(f'patients without windows of create_windows_clf.py, for the autoencoder alone: {subjects}')
    return [number for number in listed if number not in unannotated], unannotated


def patients_learned_from(directory: str, listed: Listed, settings: SimpleNamespace) -> Listed:
    """Those listed (False: all), without those who have windows for validation and test alone.

    Raises
    ------
    DataError
        Patients lack the windows for validation and test.
    """
    nb_best_blocks, nb_test = settings.nb_best_blocks, settings.nb_best_blocks_test
    if nb_test == nb_best_blocks:
        return listed
    numbers = {number: list(paths) for number, paths in window_paths(directory).items()}
    for_training, for_test = numbers.get(nb_best_blocks, []), numbers.get(nb_test, [])
    lacking = [number for number in for_training if number not in for_test and (not listed or number in listed)]
    if lacking:
        raise DataError(
            f'{directory}: no data_raw_NNN_b{nb_test}_windows_bi of patients {", ".join(map(str, lacking))}, for '
            f'validation and test: python create_windows_clf.py nb_best_blocks_test={nb_test} makes them '
            f'(nb_best_blocks_test={nb_best_blocks} would test on their blocks with the most spikes)'
        )
    if not listed:
        return False
    return [number for number in listed if number in for_training or number not in for_test] or listed


def check_learned_from(
    training: list[PatientWindows], testing: list[PatientWindows], settings: SimpleNamespace
) -> None:
    """Check that every patient with spikes can be learned from; print a warning of those who cannot, without spikes.

    Raises
    ------
    DataError
        One cannot.
    """
    numbers = {patient_windows.subject for patient_windows in training}
    others = [patient_windows for patient_windows in testing if patient_windows.subject not in numbers]
    for patient_windows in others:
        if patient_windows.labels.any():
            stem = f'data_raw_{patient_windows.subject:03d}_b{settings.nb_best_blocks}'
            raise DataError(
                f'{patient_windows.path.parent}: no {stem}_windows_bi, for training: python create_windows_clf.py '
                f'nb_best_blocks={settings.nb_best_blocks} makes them'
            )
    if others:
        subjects = ', '.join(str(patient_windows.subject) for patient_windows in others)
        print(f'patients without spikes, only for validation and test (include_spike_free = False): {subjects}')


def expected_pulse(settings: SimpleNamespace) -> int:
    """Length of the pulse that marks a spike in `labels_t` by the settings, in samples."""
    return 2 * round(settings.pulse_width / 2 * settings.sfreq) + 1


def pulses_of(patients: list[PatientWindows], settings: SimpleNamespace) -> dict[int, int]:
    """Length of the pulse that marks a spike in `labels_t`, in samples, by patient.

    It may differ from `pulse_width`, because windows may come from other scripts.
    """
    expected = expected_pulse(settings)
    lengths = pulse_lengths([patient_windows.labels_t for patient_windows in patients], expected)
    return {patient_windows.subject: length for patient_windows, length in zip(patients, lengths, strict=True)}


def warn_of_pulses(patients: list[PatientWindows], settings: SimpleNamespace) -> None:
    """Print a warning of patients whose pulses in `labels_t` have another length than `pulse_width`."""
    expected = expected_pulse(settings)
    deviating = {subject: pulse for subject, pulse in pulses_of(patients, settings).items() if pulse != expected}
    if deviating:
        lengths = sorted(set(deviating.values()))
        print(
            f'warning: pulse_width = {settings.pulse_width} makes marks of {expected} samples, but those of patients '
            f'{", ".join(map(str, deviating))} have {", ".join(map(str, lengths))}, which is used'
        )
