"""The README and the pages of docs/: their commands run, their links lead somewhere, and what they name exists."""

import contextlib
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mne
import pytest
from common import clear_patient
from test_rooms import ROOMS

from main_train import MODES
from models import AUTOENCODERS
from recordings.channels import ctf275_info
from recordings.marker_files import write_marker_file
from recordings.pickles import write_pickle
from recordings.reading import open_recording, read_layout
from runs.settings import RULES, read_command
from utils import SettingError

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
# In the order in which the README leads to them.
PAGES = [README, *(ROOT / name for name in dict.fromkeys(re.findall(r'\((docs/\w+\.md)\)', README.read_text())))]
BENCHMARKS = sorted(ROOT.glob('benchmarks/*.md'))

# What a user with little time writes into params.py.
TINY = {
    'filters': [1],
    'embedding_size': 2,
    'top_k': 2,
    'latent_nodes': 2,
    'pywt_family': 'haar',
    'batch_size': 32,
    'num_epochs': 1,
    'bootstrap_samples': 20,
    'n_splits': 2,
    'device': 'cpu',
    'simulated_blocks': 1,
    'simulated_seconds': 20,
}
SFREQ = 150
SPIKE = 'my_spike'
PATIENTS = (1, 2, 3, 8)  # whose data_raw files the user has from the beginning
LATER_PATIENTS = {'docs/training.md': (11, 12, 13)}  # and those that come before a page is read


# ------------------------------------------------------------------------------------------- reading pages
def commands_of(page):
    """The commands in the bash blocks of a page, each as the list of its words."""
    blocks = re.findall(r'^```bash\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE)
    commands = []
    for line in ''.join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        commands += [list(part) for is_and, part in itertools.groupby(words, lambda word: word == '&&') if not is_and]
    return commands


def spans_of(page):
    """What stands in backticks in a page, outside of blocks."""
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r'`([^`\n]+)`', text)


def name_of(page):
    return str(page.relative_to(ROOT))


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]
SCRIPTS = [(page, command[1:]) for page, command in COMMANDS if re.fullmatch(r'python \w+\.py', ' '.join(command[:2]))]


# ------------------------------------------------------------------------------------ commands that are run
@pytest.fixture
def project(tmp_path):
    """A copy of the project whose params.py asks for little."""
    folder = tmp_path / 'project'
    left_out = shutil.ignore_patterns('.*', '__pycache__', 'tests', 'shared', 'demo', 'data', 'results')
    shutil.copytree(ROOT, folder, ignore=left_out)
    params = (folder / 'params.py').read_text()
    for name, value in TINY.items():
        params, n_lines = re.subn(rf'^{name} = .*$', f'{name} = {value!r}', params, flags=re.MULTILINE)
        assert n_lines == 1, name
    (folder / 'params.py').write_text(params)
    return folder


@pytest.fixture
def run(project):
    """Run a script in the project, as script_server.py does; gives its exit status and what it printed."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / 'tests' / 'script_server.py'), str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'CUDA_VISIBLE_DEVICES': ''},
    )

    def run(words):
        server.stdin.write(json.dumps(words) + '\n')
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    with server:
        yield run
        server.stdin.close()


@pytest.fixture
def blocks():
    """Simulated blocks, signal and spikes, one after the other."""
    data = clear_patient(1, n_blocks=40, block_seconds=10, spike_rate=12.0, sfreq=SFREQ)
    pairs = zip(data['meg'], data['events'], strict=True)
    return ((signal, spikes) for signal, spikes in pairs if 1 <= len(spikes) <= 3)  # of either kind of window, some


@pytest.fixture
def add_patients(project, blocks):
    """Give the user data_raw files of patients."""

    def add(subjects):
        for subject in subjects:
            signal, spikes = next(blocks)
            content = {'meg': [signal], 'events': [spikes], 'reannot': [[]], 'file': ['run01.ds']}
            write_pickle(project / 'data' / 'raw' / f'data_raw_{subject:03d}.pkl', content)

    return add


@pytest.fixture
def add_recording(project, blocks, make_fif, request):
    """Give the user the recording, or the file of annotations, that a word names; False where that is not possible."""
    make_ds = None
    with contextlib.suppress(pytest.skip.Exception):  # without a real recording, there is no header of a CTF one
        make_ds = request.getfixturevalue('make_ds')

    def add(word):
        path = project / word
        path.parent.mkdir(exist_ok=True)
        signal, spikes = next(blocks)
        onsets = spikes / SFREQ
        if path.name.endswith('-annot.fif'):
            mne.Annotations(onsets, 0.0, SPIKE).save(path)
        elif path.suffix == '.fif':
            notes = [(onset, SPIKE) for onset in onsets]
            shutil.move(make_fif(path.name.removesuffix('_raw.fif'), signal, sfreq=SFREQ, notes=notes), path)
        elif make_ds is not None:
            signals = dict(zip(ctf275_info(SFREQ)['ch_names'], signal, strict=True))
            shutil.move(make_ds(path.stem, signals, sfreq=SFREQ), path)
            with open_recording(path) as raw:
                layout = read_layout(raw, path)
            write_marker_file(path / 'MarkerFile.mrk', onsets, layout, name=SPIKE, color='red')
        return path.exists()

    return add


@pytest.fixture
def add_study(project):
    """Give the user a table of a study, and a BIDS folder, each with a recording that they have."""

    def add():
        recording = 'patient5/run01_raw.fif'
        (project / 'cohort.csv').write_text(f'patient,recording\n41,{recording}\n')
        folder = project / 'my_study' / 'sub-42' / 'meg'
        folder.mkdir(parents=True)
        shutil.copyfile(project / recording, folder / 'sub-42_task-rest_meg.fif')

    return add


def expand(command, folder):
    """The words of a command, patterns of files replaced by the files as the shell does."""
    return [
        expanded
        for word in command
        for expanded in (sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if '*' in word else [word])
    ]


@pytest.mark.pages
def test_the_scripts_on_the_pages_run_in_order(project, run, add_patients, add_recording, add_study):
    words = sorted({word for _, command in SCRIPTS for word in command if re.fullmatch(r'patient\d+/[\w*.-]+', word)})
    missing = {word for word in words if not add_recording(word.replace('*', 'run01'))}
    add_patients(PATIENTS)
    add_study()
    done = []  # a command that stands on two pages runs once
    for page, commands in itertools.groupby(SCRIPTS, lambda script: script[0]):
        add_patients(LATER_PATIENTS.get(name_of(page), ()))
        for _, command in commands:
            needs_window = command[0] == 'review.py' and 'next' not in command
            if command not in done and not missing & set(command) and not needs_window:
                status, printed = run(expand(command, project))
                assert status == 0, f'{name_of(page)}: {shlex.join(command)}\n{printed}'
            done.append(command)


# ------------------------------------------------------------------------------ commands that are only parsed
# Positional words that a script takes.
POSITIONAL = {
    'main_train.py': ('mode', 'model'),
    'slurm/train.sbatch': ('mode', 'model'),
    'slurm/ddp.sbatch': ('mode', 'model'),
    'slurm/cv_array.sbatch': ('model',),
    'slurm/sweep.sbatch': ('table',),
    'slurm/windows_array.sbatch': (),
    'slurm/data_raw_array.sbatch': ('cohort',),
    'slurm/detect_array.sbatch': ('run', 'cohort'),
}


def check_script(script, words):
    """A script that is there; a mode, a model, a table and settings that it takes."""
    assert (ROOT / script).is_file(), script
    positional, _ = read_command(words, n_positional=len(POSITIONAL[script]))
    for kind, word in zip(POSITIONAL[script], positional, strict=False):
        right = {'mode': word in MODES, 'model': word in AUTOENCODERS, 'table': (ROOT / word).is_file()}
        right |= {'cohort': word.endswith('.csv'), 'run': word.partition('_')[0] in AUTOENCODERS}
        assert right[kind], word


def check_command(command):
    """A command that is not run here: what it names is there."""
    variables = list(itertools.takewhile(lambda word: re.match('[A-Z_]+=', word), command))
    program, *words = command[len(variables) :]
    for variable in variables:
        assert variable.partition('=')[0].lower() in code(), variable
    if program in ('sbatch', 'torchrun'):
        script, *words = itertools.dropwhile(lambda word: word.startswith('--'), words)
        check_script(script, words)
    elif program == 'make':
        makefile = (ROOT / 'Makefile').read_text()
        for word in words:
            assert re.search(rf'^{re.escape(word.partition("=")[0])} ?[:?]', makefile, re.MULTILINE), word
    elif program == 'pip' or words[:2] == ['-m', 'pip']:
        versions = [word for word in words if '==' in word]
        assert set(versions) <= set((ROOT / 'requirements.txt').read_text().split()), versions
    elif program == 'pre-commit':
        assert (ROOT / '.pre-commit-config.yaml').is_file()
    else:
        assert words[:2] in (['-m', 'venv'], ['-m', 'pytest']), f'{program}: nothing checks this command'


def test_the_commands_that_are_not_run_name_what_is_there():
    for page, command in COMMANDS:
        if (page, command[1:]) not in SCRIPTS:
            check_command(command)


@pytest.mark.parametrize(
    ('command', 'fault'),
    [
        ('torchrun --nproc-per-node=4 main_train.py auto AE3D', 'AE3D'),
        ('sbatch slurm/cv_array.sbatch wavelets seeed=1', 'seeed'),
        ('sbatch slurm/no_array.sbatch wavelets', 'no_array'),
        ('make tests', 'tests'),
        ('NO_NUMBER=3 make test', 'NO_NUMBER'),
        ('pip install torch==1.0', 'torch==1.0'),
        ('conda install torch', 'conda: nothing checks'),
    ],
)
def test_a_command_that_names_what_is_not_there_is_found(command, fault):
    with pytest.raises((AssertionError, SettingError), match=fault):
        check_command(command.split())


# ---------------------------------------------------------------------------------------- names and links
OTHER_PROGRAMS = ('sacct', 'sacctmgr', 'scancel', 'scontrol', 'sinfo', 'source', 'tensorboard')


@functools.cache
def files():
    """The files of the project."""
    return subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@functools.cache
def code():
    """Names of files, and what is in scripts, rooms, job scripts and the Makefile, in lower case."""
    kinds = ('.py', '.sbatch', '.sh', '.txt', '.toml', 'Makefile')
    read = [name for name in files() if name.endswith(kinds) and not name.startswith('tests/')]
    return '\n'.join([*files(), *((ROOT / name).read_text() for name in read)]).lower()


def check_word(word):
    """A setting takes its value, and a file of the code is there."""
    name, is_setting, value = word.partition('=')
    if is_setting and re.fullmatch('[a-z][a-z_]+', name) and name != 'name':
        read_command([word] if not re.fullmatch('[A-Z]', value) else [])  # a letter stands for any value
        assert name in RULES
    if re.fullmatch(r'[\w./-]+\.(py|md|sbatch|sh|txt|toml|yaml)', word):
        assert any(f'/{file}'.endswith(f'/{word}') for file in files())


def check_span(span):
    """What stands in backticks: a command, words as above, or names that occur in the code."""
    program, *rest = span.split()
    if program in OTHER_PROGRAMS:
        return
    if program in ('make', 'sbatch', 'torchrun') and rest:
        check_command(span.split())
    for word in shlex.split(span.replace(' = ', '=')):
        check_word(word)
    if re.fullmatch(r'[A-Za-z]\w{3,}', span) and 'NNN' not in span:
        assert re.search(rf'\b{span.lower()}' + r'\b' * (span[-1] != '_'), code())
    for part in re.findall('[a-z]{4,}', re.sub('<.*?>', '', span.lower())):  # <...> stands for any name
        assert part in code()


def faulty_spans(page):
    faulty = []
    for span in sorted(set(spans_of(page))):
        try:
            check_span(span)
        except (AssertionError, SettingError):
            faulty.append(span)
    return faulty


@pytest.mark.parametrize('page', [*PAGES, *BENCHMARKS], ids=name_of)
def test_what_a_page_names_is_in_the_project(page):
    assert faulty_spans(page) == []


def test_a_name_that_is_not_in_the_project_is_found(tmp_path):
    page = tmp_path / 'page.md'
    wrong = ['tile_overlap', 'seeed=3', "model='AE3D'", 'runs/no_file.py', 'make tests', 'qwerty.csv']
    right = ['window_size', 'seed=3', "model='AE1D'", 'runs/settings.py', 'make test', 'data_raw_NNN.pkl']
    page.write_text(' '.join(f'`{span}`' for span in wrong + right))
    assert faulty_spans(page) == sorted(wrong)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_tables_of_settings_name_settings(page):
    for rows in re.findall(r'^\| setting \|.*\n\|[-|]+\n((?:\|.*\n)+)', page.read_text(), re.MULTILINE):
        for row in rows.splitlines():
            assert set(re.findall('`(.*?)`', row.split('|')[1])) <= set(RULES)


def anchors_of(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings]


@pytest.mark.parametrize('page', [*PAGES, *BENCHMARKS], ids=name_of)
def test_links_lead_to_pages_and_headings(page):
    for link in re.findall(r'\]\(([^)]+)\)', page.read_text()):
        if '://' not in link:
            path, _, anchor = link.partition('#')
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors_of(target), link


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.read_text().splitlines()) < 150
    assert set(PAGES[1:]) == set(ROOT.glob('docs/*.md'))
    assert not any(words in README.read_text() for words in ('TODO', 'FIXME'))


def test_the_picture_of_the_rooms_shows_all_of_them_and_their_order():
    [picture] = re.findall(r'^```mermaid\n(.*?)^```$', (ROOT / 'docs' / 'developing.md').read_text(), re.S | re.M)
    arrows = re.findall(r'^ +(\w+)(?:\[.*?\])? -->\s(\w+)', picture, re.M)
    assert set(itertools.chain(*arrows)) == {'scripts', *ROOMS} - {'params', 'benchmarks'}
    heights = {room: height for height, room in enumerate([*ROOMS, 'scripts'])}
    assert [(upper, lower) for upper, lower in arrows if heights[upper] < heights[lower]] == []
