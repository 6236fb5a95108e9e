"""params.py and the command line: every setting documented and used, every mistake named with its way out."""

import ast
import os
import re

import pytest

import main_train
from classifiers.specs import CLASSIFIERS
from runs.settings import ORIGINAL, RULES, read_command
from utils import ROOT, SettingError

SOURCE = (ROOT / 'params.py').read_text()


def test_params_holds_every_setting_once_as_a_plain_documented_assignment():
    tree = ast.parse(SOURCE)
    lines = SOURCE.splitlines()
    names = []
    documented = False
    for node in tree.body[1:]:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        above = lines[node.lineno - 2].strip()
        documented = above.startswith('#') or (documented and above != '')
        names += [target.id for target in node.targets]
        assert documented, f'{names[-1]} has no comment above it'
    assert sorted(names) == sorted(RULES)
    assert len(set(names)) == len(names)


def test_every_setting_is_used_by_a_script():
    rooms = [path for path in ROOT.glob('*/*.py') if path.parent.name not in ('tests', 'benchmarks')]
    paths = [*ROOT.glob('*.py'), *rooms]
    sources = '\n'.join(path.read_text() for path in paths if path.name not in ('params.py', 'settings.py'))
    of_classifiers = {name for kind in CLASSIFIERS.values() for name in kind.settings}
    for name in set(RULES) - of_classifiers:
        assert re.search(rf"settings\.{name}\b|'{name}'", sources), f'{name} is read by no script'


def test_only_the_command_line_reader_imports_params():
    importing = r"^\s*(import|from) params\b|import_module\('params'\)"
    paths = [path for path in ROOT.glob('[!.]*/*.py') if path.parent.name != 'tests']
    importers = [path for path in (*ROOT.glob('*.py'), *paths) if re.search(importing, path.read_text(), re.MULTILINE)]
    assert importers == [ROOT / 'runs' / 'settings.py']


def test_defaults_pass_their_own_rules():
    positional, settings = read_command([])
    assert positional == []
    assert set(vars(settings)) == set(RULES)


def test_overrides_are_literals_or_else_strings():
    positional, settings = read_command(
        ['auto', 'patient=[1, 2]', 'standardize=block', 'split="patient"', 'sfreq=300.5', 'model_nb=None'],
        n_positional=1,
    )
    assert positional == ['auto']
    assert (settings.patient, settings.standardize, settings.split) == ([1, 2], 'block', 'patient')
    assert (settings.sfreq, settings.model_nb) == (300.5, None)


def test_the_original_recipe_overrules_other_settings_and_says_so(capsys):
    _, settings = read_command(['recipe=original', 'masking=context', 'width=4', 'augmentation=0.5'])
    chosen = (settings.standardize, settings.masking, settings.classifier, settings.augmentation, settings.width)
    assert chosen == ('window', None, 'sfcn', 0.2, 4)
    message = "recipe='original': standardize='window', masking=None, classifier='sfcn', second_look=False, "
    message += 'copies=None, latent_nodes=None, augmentation=0.2, augmentation_fraction=0.5\n'
    assert capsys.readouterr().out == message
    documented = ' '.join(SOURCE.split('\nrecipe = ')[0].rsplit('\n\n', 1)[1].replace('#', ' ').split())
    for name, value in ORIGINAL.items():
        assert getattr(settings, name) == value
        assert f'{name} = {value!r}' in documented


def test_relative_paths_start_here_on_the_command_line_and_at_the_project_in_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, settings = read_command(['path_raw_data=mine', "path_extracted_data=['a', '/b']"])
    assert settings.path_raw_data == str(tmp_path / 'mine')
    assert settings.path_extracted_data == [str(tmp_path / 'a'), '/b']
    assert settings.path_writing_data == str(ROOT / 'results')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['batchsize=3'], r'unknown setting batchsize \(nearest: batch_size'),
        (['Patient=3'], r'unknown setting Patient \(nearest: patient'),
        (['zzz=3'], 'params.py lists them all'),
        (['batch_size=many'], r"batch_size = 'many': must be an integer of at least 1"),
        (['batch_size=0'], 'batch_size'),
        (['batch_size=True'], 'batch_size'),
        (['learning_rate=-1'], 'learning_rate = -1: must be a number above 0'),
        (['learning_rate=1e999'], 'learning_rate'),
        (['standardize=1'], 'standardize'),
        (['standardize=blok'], "must be one of 'window', 'block', True, False"),
        (['patient=True'], 'patient'),
        (['patient=[]'], 'patient'),
        (['path_extracted_data=here'], 'list of two paths'),
        (['device=gpu'], 'device'),
        (['auto'], 'unexpected argument'),
        (['batch_size=3', 'auto'], 'after all other words'),
        (['spike_spacing_from_border=1'], 'spike_spacing_from_border = 1 leaves nothing of window_size = 2.0: make'),
        (['seed=5000000000'], 'seed'),
        (['learning_rate=1' + 400 * '0'], 'learning_rate'),
        (['--batch_size=3'], 'unexpected argument'),
        (['pywt_family=db99'], "pywt_family = 'db99': must be a discrete wavelet"),
        (['filters=32'], 'filters = 32: must be a list of integers'),
        (['top_k=0'], 'top_k'),
        (['notch=[]'], 'notch'),
        (['num_workers=1000000'], 'num_workers = 1000000: must be an integer of at least 0 and at most 1000'),
        (['bootstrap_samples=4000000000'], 'bootstrap_samples'),
        (['sfreq=1e6'], 'sfreq = 1000000.0: must be a number above 0 and at most 10000'),
        (
            ['window_size=1e8'],
            'window_size = .* make windows of 15000000000 samples: make it 1 to 100000',
        ),
        (['window_size=1e-9', 'spike_spacing_from_border=0'], 'make windows of 0 samples'),
        (['high_pass=1e-9'], 'high_pass = 1e-09: must be a number at least 0.01'),
        (['path_raw_data=~nosuchuser/x'], "path_raw_data = '~nosuchuser/x': no home folder of that user"),
        (["path_extracted_data=['~nosuchuser/x', 'y']"], 'path_extracted_data = .* no home folder'),
        (["path_raw_data='a\\0b'"], r"path_raw_data = 'a\\x00b': must be a path in quotes, without null characters"),
        (["path_extracted_data=['a', 'b\\0']"], 'path_extracted_data'),
        (["output='\\0'"], 'output'),
        (["training_patients='\\0'"], 'training_patients'),
        (["path_raw_data='\\ud800'"], 'path_raw_data'),
        (["path_extracted_data=['x', 'x']"], 'the two directories are the same'),
        (['validation_fraction=0.5', 'test_fraction=0.5'], 'validation_fraction = 0.5 and test_fraction = 0.5'),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(SettingError, match=message):
        read_command(words)


def test_words_that_no_path_can_be():
    for word in ('a\0b', '', '\ud800'):
        with pytest.raises(SettingError, match='must not be empty nor hold null characters'):
            read_command(['auto', word], n_positional=2)


def test_paths_of_other_encodings_can_be_given():
    folder = os.fsdecode('/café'.encode('latin-1'))
    _, settings = read_command([f'path_raw_data={folder}', f"path_extracted_data=['{folder}/é', '{folder}/b']"])
    assert settings.path_raw_data == folder
    assert settings.path_extracted_data == [f'{folder}/é', f'{folder}/b']


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('batchsize = 3', r'params\.py: unknown setting batchsize \(nearest: batch_size'),
        ('batch_size = "3"', r"batch_size = '3': must be an integer"),
        ('batch_size = = 3', r'params\.py cannot be read'),
        ('del seed', r'params\.py: the setting seed is missing'),
        ('import os', None),
    ],
)
def test_mistakes_in_params(tmp_path, monkeypatch, line, message):
    (tmp_path / 'params.py').write_text(f'{SOURCE}\n{line}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__('sys').modules, 'params', raising=False)
    if message is None:
        read_command([])
    else:
        with pytest.raises(SettingError, match=message):
            read_command([])
    monkeypatch.delitem(__import__('sys').modules, 'params', raising=False)


@pytest.mark.parametrize('script', ['simulate_data_raw.py', 'create_windows_ae.py', 'main_train.py'])
def test_scripts_end_with_status_2_and_one_line(run_script, script, tmp_path):
    ended = run_script(script, 'seeed=3', cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith('error: unknown setting seeed (nearest: seed')
    assert ended.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_or_model_is_named_with_the_known_ones():
    with pytest.raises(SettingError, match="mode 'train': must be one of auto"):
        main_train.main(['train'])
    with pytest.raises(SettingError, match="model = 'AE3D': must be one of 'AE1D', 'AE2D', "):
        main_train.main(['auto', 'AE3D'])


def test_help_prints_the_scripts_description(run_script):
    ended = run_script('create_windows_ae.py', '--help')
    assert ended.returncode == 0
    assert 'path_extracted_data[0]' in ended.stdout
