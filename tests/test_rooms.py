"""The rooms of the project and the order of their imports, as docs/developing.md draws them."""

import ast
import graphlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    'create_data_raw', 'simulate_data_raw', 'create_windows_ae', 'create_windows_clf', 'main_train', 'detect',
    'evaluate_readers', 'review',
}  # fmt: skip
# From the lowest room to the highest: a room imports from rooms before it, and from itself.
ROOMS = [
    'params', 'system', 'utils', 'evaluation', 'recordings', 'data_processing', 'timeseries_dataset', 'models',
    'training', 'loop', 'classifiers', 'classification', 'runs', 'saving_functions', 'reports', 'benchmarks',
]  # fmt: skip
# Rooms that import from these alone.
CLOSED = {'params': set(), 'system': set(), 'models': set(), 'evaluation': {'utils'}}


def module_of(path):
    """Dotted name of a module."""
    return '.'.join(Path(path).with_suffix('').parts).removesuffix('.__init__')


def imports_of(source):
    """Dotted names that a source imports: modules, and names of modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield '.'
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{name.name}' for name in node.names)


def faults(sources):
    """What is wrong with the imports of {path: source}: a line for each."""
    modules = {module_of(path) for path in sources}
    lines, graph = [], {}
    for path, source in sources.items():
        room = module_of(path).partition('.')[0]
        if room not in SCRIPTS and room not in ROOMS:
            lines.append(f'{path}: in no room')
            continue
        graph[module_of(path)] = set()
        for name in imports_of(source):
            target = name.partition('.')[0]
            if name == '.':
                lines.append(f'{path}: a relative import')
            elif target in SCRIPTS:
                lines.append(f'{path}: imports the script {target}')
            elif target in ROOMS and name in modules:
                graph[module_of(path)].add(name)
            if target in ROOMS and room in ROOMS and target != room:
                upwards = ROOMS.index(target) > ROOMS.index(room)
                if upwards or target not in CLOSED.get(room, {target}):
                    lines.append(f'{path}: imports {target}, which is above it')
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as fault:
        lines.append(f'a circle: {" -> ".join(fault.args[1])}')
    return lines


@pytest.fixture(scope='module')
def sources():
    """Every module of the project but its tests."""
    listed = subprocess.run(['git', 'ls-files', '*.py'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path: (ROOT / path).read_text() for path in listed.split() if not path.startswith('tests/')}


def test_imports_go_downwards(sources):
    assert faults(sources) == []


@pytest.mark.parametrize(
    ('path', 'line', 'fault'),
    [
        ('recordings/pickles.py', 'from runs.settings import read_command', 'imports runs, which is above it'),
        ('evaluation/metrics.py', 'import recordings.data_raw', 'imports recordings, which is above it'),
        ('models/wavelets.py', 'def late():\n    import utils', 'imports utils, which is above it'),
        ('training/losses.py', 'from training import checkpoints\nimport training.losses', 'a circle: '),
        ('reports/run_page.py', 'from detect import main', 'imports the script detect'),
        ('reports/run_page.py', 'from . import dipole', 'a relative import'),
        ('helpers.py', '', 'in no room'),
    ],
)
def test_a_planted_import_is_found(sources, path, line, fault):
    planted = sources | {path: f'{sources.get(path, "")}\n{line}\n'}
    assert fault in ' '.join(faults(planted))
