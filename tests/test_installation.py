"""What `make` installs: every package in a fixed version, whichever build of torch it is."""

import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CUDA_PACKAGES = ('nvidia-', 'cuda-', 'triton')


def pinned(filename):
    """{package: 'exact version'} of a requirements file."""
    lines = (ROOT / filename).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in requirements}


def brought_in(packages):
    """The packages given and all that they require in turn, without what only a CUDA build of torch requires."""
    names, waiting = set(), list(packages)
    while waiting:
        package = canonicalize_name(waiting.pop())
        if package in names or package.startswith(CUDA_PACKAGES):
            continue
        names.add(package)
        for requirement in map(Requirement, requires(package) or []):
            if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
                waiting.append(requirement.name)
    return names


def test_constraints_pin_every_package_that_the_requirements_bring_in():
    direct, constraints = pinned('requirements.txt'), pinned('constraints.txt')
    assert set(constraints) == brought_in(direct)
    assert direct.items() <= constraints.items()
    assert all(version.startswith('==') and '*' not in version for version in constraints.values())


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
@pytest.mark.parametrize('changed', ['requirements.txt', 'constraints.txt'])
def test_make_installs_the_pinned_versions_again_when_they_change(changed):
    command = ['make', '--dry-run', '--old-file=requirements.txt', '--old-file=constraints.txt', f'--what-if={changed}']
    planned = subprocess.run([*command, '.venv/installed'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'pip install --quiet --requirement requirements.txt --constraint constraints.txt' in planned
