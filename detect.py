"""Apply a trained run to recordings and write detections that a reviewer can open.

    python detect.py RUN REC [REC ...] [name=value ...]
    python detect.py RUN cohort.csv [name=value ...]
    python detect.py RUN BIDS_FOLDER [name=value ...]

Reads   RUN, a finished run: its name in path_writing_data (AE1D_3) or its path; of a cross-validation, all folds count
        (the mean of their probabilities), or one (AE1D_3/fold_2); and recordings: CTF folders (.ds),
        FIF files, other files that MNE reads, or data_raw_NNN.pkl, of which every block counts as a recording. Of a
        whole study, cohort.csv or BIDS_FOLDER as for create_data_raw.py.
Writes  next to each recording, or in the folder `output`, <recording>_detections/ with
        detections.csv      onset, duration, probas, bad (1 in a segment marked bad), cluster: an event per row; of a
                            cross-validation uncertainty before cluster (standard deviation over the folds)
        probabilities.csv   the probability of every sub-window (200 ms)
        MarkerFile.mrk      CTF recordings: the recording's own classes and the class marker_name
        <recording>-annot.fif   the same events as annotations of MNE
        <recording>_anywave.mrk the same for AnyWave
        report.html         a page with pictures: groups of events, where each may come from, single events
        detections.json     the run, the settings and the recording that these files were made from
        The recording does not change, unless markers_into_recording=True. Files that a person has changed in the
        folder, or added to it, stay. Of a study, n_jobs patients at a time; what would be made the same again stays
        (overwrite=True makes it), and `output` has a folder for each patient.
"""

import functools
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from classification import Ensemble, TrainedRun, load_run, score_block
from recordings.checks import read_checked, read_data_raw_blocks
from recordings.cohorts import cohort_output, is_cohort, read_cohort
from recordings.planning import input_hash, recordings_with_markers
from recordings.reading import Recording
from reports.detection_files import (
    MarkerStyle,
    bad_segment_warnings,
    print_result,
    recording_warnings,
    write_all,
    write_elsewhere,
)
from reports.detection_planning import DetectionPlan, is_made, plan_detections, seen_warnings
from reports.detections_folder import publishing
from reports.event_residuals import event_residuals
from reports.exchange import check_derivatives_of
from reports.recording_detections import detections_of_recording, without_bad_segments
from runs.applied_settings import (
    OF_DETECTIONS,
    PREPROCESSING,
    seen_by_run,
    settings_of_run,
)
from runs.ensemble import describe_run, ensemble_of, members_of, unseen_by
from runs.patient_jobs import MADE, SKIPPED, run_patients, share_threads
from runs.run_directory import RunDirectory, find_run
from runs.settings import read_command
from utils import SettingError, choose_device, choose_precision, run_script, set_seed


# ------------------------------------------------------------------------------------------- the story
def main(words: list[str]) -> None:
    """Detect spikes in every recording that the command line names.

    Raises
    ------
    DataError
        The run or a recording cannot be used.
    SettingError
        The command line is not understood.
    """
    positional, settings = read_command(words, n_positional=len(words))
    if len(positional) < 2:
        raise SettingError('usage: python detect.py RUN REC [REC ...] | cohort.csv | BIDS_FOLDER [name=value ...]')
    run = find_run(settings.path_writing_data, positional[0])
    bad_channels = [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels
    run_settings: dict[str, Any] = settings_of_run(members_of(run)[0], vars(settings)) | {'bad_channels': bad_channels}
    load = functools.partial(load_applied, run, run_settings, settings, shlex.join(['python', 'detect.py', *words]))
    applied = load()
    decision = applied.trained.decision
    print(
        f'{run.name}: threshold {decision["threshold"]:.4f}, {decision["policy"]}; on {choose_device(settings.device)}'
    )
    if len(positional) == 2 and is_cohort(positional[1]):
        patients = read_cohort(positional[1], settings.patient)
        output = settings.output or cohort_output(positional[1])
        detect = functools.partial(detect_in_patient, load=load, output=output, settings=settings)
        run_patients(detect, patients, settings.n_jobs)
        return
    recordings: list[tuple[Path, Path | None]] = [(Path(word), None) for word in positional[1:]]
    plans = plan_detections(recordings, run_settings, settings.output, settings.markers_into_recording)
    check_derivatives_of([plan.path for plan in plans], settings.bids_derivatives)
    set_seed(run_settings['seed'])
    for plan in plans:
        detect_in(plan, applied, settings)


def detect_in_patient(
    number: int, words: list[str], *, load: Callable[[], 'AppliedRun'], output: str | None, settings: SimpleNamespace
) -> tuple[str, str]:
    """Detect spikes in those recordings of a patient of a study that are not made yet.

    Parameters
    ----------
    number : int
        Of the patient.
    words : list of str
        Recordings, each followed by its file of markers if it has one.
    load : callable
        `load_applied` with its arguments: every process loads the run.
    output : str or None
        Folder with a folder for each patient; None for next to each recording.
    settings : namespace

    Returns
    -------
    result, what : str
        Of `run_patients`.
    """
    share_threads(settings.n_jobs)
    applied, recordings = load(), recordings_with_markers(words)
    output = output and str(Path(output) / f'{number:03d}')
    plans = plan_detections(recordings, applied.trained.settings, output, settings.markers_into_recording)
    check_derivatives_of([plan.path for plan in plans], settings.bids_derivatives)
    new = [plan for plan in plans if settings.overwrite or not is_made(plan.folder, input_of(plan, applied, settings))]
    if not new:
        return SKIPPED, f'{len(plans)} recordings, made before from the same recordings, run and settings'
    set_seed(applied.trained.settings['seed'])
    n_events = sum(detect_in(plan, applied, settings) for plan in new)
    skipped = f'; {len(plans) - len(new)} made before' if len(new) < len(plans) else ''
    return MADE, f'{n_events} detections in {len(new)} recordings{skipped}'


def detect_in(plan: DetectionPlan, applied: 'AppliedRun', settings: SimpleNamespace) -> int:
    """Read a recording, or a data_raw file, score it, publish its detections and return their number."""
    made_with, known_by = applied.made_with, plan.samples | {plan.identity['path']}
    trained, notes = applied.for_recording(known_by)
    marker = MarkerStyle(settings.marker_name, settings.marker_color, settings.markers_per_cluster)
    made_from = {'identity': plan.identity, 'input': input_of(plan, applied, settings)}
    elsewhere = {'into_recording': settings.markers_into_recording, 'derivatives': settings.bids_derivatives}
    n_events, started = 0, time.perf_counter()
    for name, folder, blocks in read_units(plan, trained.settings, trained.window_length):
        read = time.perf_counter()
        lengths = [block.layout.lengths(trained.settings['sfreq']).tolist() for block in blocks]
        by_block = [score_block(trained, block.meg, parts) for block, parts in zip(blocks, lengths, strict=True)]
        scored = time.perf_counter()
        detections = detections_of_recording(name, blocks, by_block)
        warnings = notes + recording_warnings(blocks, set(made_with['compensation of the run']), trained.window_length)
        warnings += bad_segment_warnings(detections, settings.drop_bad_segments)
        if settings.drop_bad_segments:
            detections = without_bad_segments(detections)
        for warning in warnings:
            print(f'warning: {name}: {warning}')
        with publishing(folder, plan.path, plan.identity) as staging:
            described = made_with | made_from | {'warnings': warnings}
            detections = write_all(detections, staging, described, marker, functools.partial(event_residuals, trained))
        write_elsewhere(plan.path, detections, marker, **elsewhere)
        written = time.perf_counter()
        print_result(detections, folder, (read - started, scored - read, written - scored))
        n_events += len(detections.events)
        started = time.perf_counter()
    return n_events


# ---------------------------------------------------------------------------------------------- the run
class AppliedRun(NamedTuple):
    """A run that is applied to recordings.

    Attributes
    ----------
    trained : TrainedRun or Ensemble
        An ensemble is a whole cross-validation.
    made_with : dict
        What detections.json says of it, from `describe_run`, and the command.
    seen : list of dict
        Where it, or every fold, has seen recordings, from `seen_by_run`.
    """

    trained: TrainedRun | Ensemble
    made_with: dict
    seen: list[dict[str, str]]

    def for_recording(self, known_by: set[str]) -> tuple[TrainedRun | Ensemble, list[str]]:
        """What scores a recording, and warnings: of an ensemble, the folds that have not seen it (see `unseen_by`)."""
        unseen = unseen_by(self.seen, known_by)
        if not isinstance(self.trained, Ensemble) or len(unseen) == len(self.seen):
            return self.trained, seen_warnings(known_by, self.seen[unseen[0]])
        members = [self.trained.members[number] for number in unseen]
        numbers = ', '.join(str(number + 1) for number in unseen)
        note = f'the recording is of a patient of the run: only fold {numbers}, which has not seen it, counts'
        return self.trained._replace(members=members), [note]


def load_applied(run: RunDirectory, run_settings: dict, settings: SimpleNamespace, command: str) -> AppliedRun:
    """Load a run; `run_settings` are those of the run, and `settings` those of now."""
    device = choose_device(settings.device)
    precision, classifier = choose_precision(settings.precision, device), run_settings['classifier']
    members = members_of(run)
    checkpoints = [(member.checkpoint('best'), member.checkpoint('best', classifier)) for member in members]
    loaded = [load_run(run_settings, *paths, device, precision) for paths in checkpoints]
    trained = loaded[0] if members == [run] else ensemble_of(run, loaded)
    made_with = {'command': command} | describe_run(run, run_settings, checkpoints, loaded)
    made_with |= {name: trained.decision[name] for name in ('threshold', 'policy')}
    return AppliedRun(trained, made_with, [seen_by_run(member, run_settings['path_raw_data']) for member in members])


def input_of(plan: DetectionPlan, applied: AppliedRun, settings: SimpleNamespace) -> str:
    """SHA-256 of all that decides what the detections in a recording are: its input, the run, the settings."""
    of_run = [applied.made_with[name] for name in ('checkpoints', 'settings', 'compensation of the run')]
    return input_hash([], plan.input, of_run, {name: getattr(settings, name) for name in OF_DETECTIONS})


# ------------------------------------------------------------------------------------------ recordings
def read_units(plan: DetectionPlan, settings: dict, window_length: int) -> Iterator[tuple[str, Path, list[Recording]]]:
    """Read the units that get detections of their own: a recording, or every block of a data_raw file.

    Yields
    ------
    name : str
    folder : Path
        For the detections.
    blocks : list of Recording
    """
    path, folder = plan.path, plan.folder
    if path.suffix == '.pkl':
        for number, block in read_data_raw_blocks(path, settings['sfreq'], window_length):
            yield f'{path.name}, block {number} ({block.name})', folder / f'block_{number:02d}', [block]
    else:
        reading = {name: settings[name] for name in (*PREPROCESSING, 'bad_channels')}
        yield path.resolve().name, folder, read_checked(path, plan.markers, **reading)


if __name__ == '__main__':
    run_script(main, __doc__)
