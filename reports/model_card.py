"""The model card of a run: what it is for, what it was made from, how good it is, and where its limits are."""

from evaluation.intervals import Evaluation
from evaluation.metrics import MAIN_METRICS
from reports.run_summary import summary_sentences
from runs.run_directory import RunDirectory, git_revision
from system.files import sha256
from utils import writing

INTENDED_USE = """\
Candidates for epileptic spikes in magnetoencephalography of 274 CTF channels, for research. An expert looks at every
candidate. It is no medical device: no diagnosis and no decision on a treatment may rest on it."""

LIMITS = [
    'It has learned from the annotations of few experts, with their misses and habits.',
    'Patients, scanners, filters or medication that differ from those of its patients may give worse results.',
    'Spikes that no annotated patient had, such as those of other syndromes, may be missed.',
    'Probabilities are calibrated on the validation patients; where spikes are rarer, they are too high.',
]


def write_model_card(
    run: RunDirectory, facts: dict[str, str], metrics: dict, evaluation: Evaluation, split: dict
) -> None:
    """Write model_card.md.

    Parameters
    ----------
    run : RunDirectory
    facts : dict
        Short facts of training and test, name to text.
    metrics : dict
        The content of metrics.json.
    evaluation : Evaluation
    split : dict
        Who was in which part, see `runs.split_record.split_record`; of a cross-validation, that of the first fold.
    """
    lines = [
        f'# Model card: {run.name}',
        *('', '## Summary', ''),
        *(f'- {sentence}' for sentence in summary_sentences(metrics, evaluation)),
        *('', '## Intended use', '', INTENDED_USE),
        *('', '## Data', ''),
        *(f'- {name}: {text}' for name, text in (facts | _patients(split, folds=bool(run.folds))).items()),
        *('', '## Figures of the test', '', '| figure | all patients | 95 % interval over patients |', '|---|---|---|'),
        *(_row(name, metrics) for name in MAIN_METRICS),
        *('', '## Limits', ''),
        *(f'- {limit}' for limit in _limits(metrics)),
        *('', '## What it is made of', '', f'- code revision: {git_revision()}'),
        *([] if run.folds else [f'- tables of windows, labels and parts, SHA-256: {split["windows"]}']),
        *(f'- {path.relative_to(run.path)}, SHA-256: {sha256(path)}' for path in sorted(run.path.rglob('best_*.pth'))),
    ]
    with writing(run.model_card) as temporary:
        temporary.write_bytes(('\n'.join(lines) + '\n').encode('utf-8', 'backslashreplace'))


def _patients(split, *, folds):
    if folds:
        return {
            'patients': 'every patient was tested by the fold that has not seen him; fold_<k>/model_card.md says who'
        }
    numbers = {
        'trained on patients': split['train'],
        'validated on patients': split['validation'],
        'tested on patients': split['test'],
        'seen by earlier runs': split['seen before'],
    }
    return {name: ', '.join(map(str, patients)) for name, patients in numbers.items() if patients}


def _row(name, metrics):
    low, high = metrics['intervals'][name]
    return f'| {name} | {metrics["test"][name]:.3f} | {low:.3f} to {high:.3f} |'


def _limits(metrics):
    limits = list(LIMITS)
    if 'SAME' in metrics['tested on']:
        limits.insert(0, 'It was tested on other blocks of the SAME patients: nothing is known about new patients.')
    if metrics['test blocks'] != 'all blocks':
        limits.insert(
            0, 'It was tested on the blocks with the most spikes: on whole recordings its precision is lower.'
        )
    return limits
