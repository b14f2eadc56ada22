"""The set-up, with an installer that only takes notes: what it does, does once, and says when it
cannot."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    'awk cat chmod cp cut date df dirname du grep make mkdir mktemp mv rm sed sh sleep tail '
    'touch tr'
).split()

# A Python that knows its version, makes environments of copies of itself, and notes every other
# call in `calls`.
PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) echo {version} ;;
    *'-m venv'*) for last do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *'pip --version'*) echo pip ;;
    *) echo "$*" >>calls; {installs} ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    "A clone's set-up files, and a PATH with nothing on it but the tools a bare machine has."
    folder, tools = tmp_path / 'clone', tmp_path / 'bin'
    (folder / '.ci').mkdir(parents=True)
    tools.mkdir()
    for file in ('Makefile', '.ci/setup', 'pyproject.toml'):
        shutil.copy(ROOT / file, folder / file)
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    program(folder / '.ci' / 'check', 'echo checked')
    program(tools / 'df', "echo 'Filesystem 1024-blocks Used Available'; echo 'disk 99 0 20000000'")
    return folder


def program(path, text):
    path.unlink(missing_ok=True)
    path.write_text(text if text.startswith('#!') else f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)


def python(clone, name, version, installs='true'):
    program(clone.parent / 'bin' / name, PYTHON.format(version=version, installs=installs))


def make(clone, *arguments, **variables):
    environment = {
        'PATH': str(clone.parent / 'bin'),
        'HOME': str(clone.parent),
        'TMPDIR': str(clone.parent),
        **variables,
    }
    command = ['make', '--silent', *(arguments or ['check'])]
    return subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600
    )


def complaint(done):
    "The one line a failed set-up says, with make's own remark left out."
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith('make')]
    assert len(lines) == 1, done.stderr
    return lines[0]


def calls(clone):
    file = clone / 'calls'
    return file.read_text().splitlines() if file.exists() else []


def ready(clone):
    return (clone / '.venv' / '.ready').exists()


def test_help_names_every_target(clone):
    done = make(clone, 'help')
    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        'help',
        'reproduce',
        'test',
        'lab',
        'gpu',
        'check',
    ]
    assert make(clone, '-f', 'Makefile').stdout == done.stdout  # the default


def test_sets_up_once(clone):
    python(clone, 'python3.12', '3.12')
    first = make(clone)
    assert first.returncode == 0, first.stderr
    assert re.fullmatch(
        r'setting up .venv: .* GB, .*\(log: .venv/setup.log\)\nset up in \d+ s\nchecked\n',
        first.stdout,
    )
    assert calls(clone) == ['-m pip install --upgrade pip', '-m pip install -e .[dev]']
    second = make(clone)
    assert (second.returncode, second.stdout, second.stderr) == (0, 'checked\n', '')
    assert len(calls(clone)) == 2


def test_changed_dependencies_are_brought_up_to_date(clone):
    python(clone, 'python3.12', '3.12')
    make(clone)
    stamp = (clone / '.venv' / '.ready').stat().st_mtime
    os.utime(clone / 'pyproject.toml', (stamp + 5, stamp + 5))
    assert make(clone).returncode == 0
    assert len(calls(clone)) == 4


def test_interrupted_set_up_starts_over(clone):
    python(clone, 'python3.12', '3.12', installs='kill -INT $PPID; sleep 1')
    done = make(clone)
    assert done.returncode != 0 and 'interrupted' in done.stderr
    assert not ready(clone)
    shutil.rmtree(clone / '.venv')
    python(clone, 'python3.12', '3.12')
    assert make(clone).returncode == 0 and ready(clone)


def test_newest_python_is_taken(clone):
    program(clone.parent / 'bin' / 'python3.13', 'exit 127')  # a version manager's stub
    python(clone, 'python3.12', '3.12')
    python(clone, 'python3.11', '3.11')
    python(clone, 'python3', '3.9')
    make(clone)
    assert (clone / '.venv' / '.ready').read_text() == '3.12\n'


def test_python_can_be_named(clone, tmp_path):
    python(clone, 'python3.12', '3.12')
    python(clone, 'my python', '3.11')
    make(clone, 'check', f'PYTHON={clone.parent / "bin" / "my python"}')
    assert (clone / '.venv' / '.ready').read_text() == '3.11\n'


@pytest.mark.parametrize(
    'names', [['python3'], ['python3.13', 'python3.12', 'python3.11', 'python3']]
)
def test_old_python_is_refused(clone, names):
    for name in names:
        python(clone, name, '3.9')
    told = complaint(make(clone))
    assert told.startswith(
        'set-up stopped: Python 3.11 or later is needed (found python3, version 3.9);'
    )
    assert not (clone / '.venv').exists()


def test_named_old_python_is_refused_beside_a_new_one(clone):
    python(clone, 'python3.12', '3.12')
    python(clone, 'python3.9', '3.9')
    assert '(found python3.9, version 3.9)' in complaint(make(clone, 'check', 'PYTHON=python3.9'))


def test_no_python_is_told(clone):
    assert complaint(make(clone)).startswith(
        'set-up stopped: Python 3.11 or later is needed; install one'
    )


def test_python_without_venv_is_told(clone):
    python(clone, 'python3.12', '3.12')
    fake = clone.parent / 'bin' / 'python3.12'
    program(
        fake,
        fake.read_text().replace(
            "*'-m venv'*)", "*'-m venv'*) echo ensurepip is not available; exit 1 ;; never)"
        ),
    )
    assert 'apt install python3-venv' in complaint(make(clone))


def test_full_disk_is_refused(clone):
    python(clone, 'python3.12', '3.12')
    program(clone.parent / 'bin' / 'df', "echo Filesystem; echo 'disk 9 9 7000000'")
    assert (
        complaint(make(clone))
        == 'set-up stopped: 10 GB of free disk are needed, and here 7.1 GB are left'
    )
    assert not calls(clone) and not ready(clone)


def test_what_is_installed_already_counts_as_room(clone):
    python(clone, 'python3.12', '3.12')
    program(clone.parent / 'bin' / 'df', "echo Filesystem; echo 'disk 9 9 7000000'")
    program(clone.parent / 'bin' / 'du', "echo '6000000 .venv'")
    assert make(clone).returncode == 0


@pytest.mark.parametrize(
    ('log', 'told'),
    [
        (
            "WARNING: Retrying after NewConnectionError('...: Temporary failure in name "
            "resolution')\n"
            'ERROR: Could not find a version that satisfies the requirement setuptools>=77',
            'no network: the package index could not be reached',
        ),
        ('error: Failed to fetch\n  Caused by: error sending request for url', 'no network'),
        (
            'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on '
            'device',
            'filled up',
        ),
        (
            'ERROR: Ignored\nERROR: No matching distribution found for torch>=2.11\nhint',
            'the packages could not be installed: ERROR: No matching distribution found for '
            'torch>=2.11',
        ),
        ('killed', 'the packages could not be installed: pip failed'),
    ],
)
def test_failed_installation_is_told_in_one_line(clone, log, told):
    (clone / 'canned').write_text(log + '\n')
    python(clone, 'python3.12', '3.12', installs='cat canned; exit 1')
    line = complaint(make(clone))
    assert told in line and line.endswith('details in .venv/setup.log')
    assert (clone / '.venv' / 'setup.log').read_text() == log + '\n'
    assert not ready(clone)


def test_locked_versions_are_taken_where_they_can_be_had(clone):
    (clone / 'requirements.lock').write_text('torch==2.11\n')
    python(clone, 'python3.12', '3.12')
    done = make(clone)
    assert done.returncode == 0 and 'cannot be had here' not in done.stdout
    assert calls(clone)[1:] == ['-m pip install -c requirements.lock -e .[dev]']


def test_where_they_cannot_the_newest_are(clone):
    (clone / 'requirements.lock').write_text('torch==2.11\n')
    refused = (
        "case $* in *requirements.lock*) echo 'ERROR: No matching distribution'; exit 1 ;; esac"
    )
    python(clone, 'python3.12', '3.12', installs=refused)
    done = make(clone)
    assert done.returncode == 0, done.stderr
    assert 'the versions of requirements.lock cannot be had here; taking the newest' in done.stdout
    assert calls(clone)[2:] == ['-m pip install -e .[dev]']


def test_without_a_network_nothing_else_is_tried(clone):
    (clone / 'requirements.lock').write_text('torch==2.11\n')
    python(clone, 'python3.12', '3.12', installs="echo 'NewConnectionError'; exit 1")
    assert 'no network' in complaint(make(clone))
    assert len(calls(clone)) == 1, "pip's own upgrade has failed"


def test_the_lock_has_what_the_project_asks_for():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / 'requirements.lock').read_text().splitlines()
    locked = {}
    for line in lines:
        if not line.startswith('#'):
            requirement = Requirement(line)
            locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    asked = [*project['dependencies'], *sum(project['optional-dependencies'].values(), [])]
    for requirement in map(Requirement, asked):
        if requirement.name != 'encapnet':
            versions = [
                next(iter(pin.specifier)).version
                for pin in locked[canonicalize_name(requirement.name)]
            ]
            assert all(version in requirement.specifier for version in versions), requirement


def test_unreachable_index_is_told_by_the_real_pip(clone):
    offline = {
        'PIP_INDEX_URL': 'http://127.0.0.1:9/simple',
        'PIP_RETRIES': '0',
        'PIP_CONFIG_FILE': os.devnull,
    }
    assert complaint(make(clone, PYTHON=sys.executable, **offline)).startswith(
        'set-up stopped: no network:'
    )
    assert not ready(clone)


def uv(clone, brings):
    "A uv that notes its calls and makes environments of the Python that it `brings`."
    program(
        clone.parent / 'bin' / 'uv',
        'echo "uv $*" >>calls\n'
        f'[ "$1" != venv ] || {{ mkdir -p .venv/bin; cp "{clone.parent}/bin/{brings}" '
        f'.venv/bin/python; }}',
    )


def test_uv_is_used_where_it_is(clone):
    python(clone, 'python3.12', '3.12')
    uv(clone, brings='python3.12')
    assert make(clone).returncode == 0
    assert calls(clone) == [
        'uv venv --allow-existing --python python3.12 .venv',
        'uv pip install --python .venv/bin/python -e .[dev]',
    ]


def test_uv_brings_a_python_where_there_is_none(clone):
    python(clone, 'python3', '3.9')
    python(clone, 'brought', '3.11')
    uv(clone, brings='brought')
    assert make(clone).returncode == 0
    assert calls(clone)[0] == 'uv venv --allow-existing --python 3.11 .venv'


def test_broken_environment_is_made_anew(clone):
    python(clone, 'python3.12', '3.12')
    make(clone)
    (clone / '.venv' / '.ready').unlink()
    program(clone / '.venv' / 'bin' / 'python', 'exit 1')
    assert make(clone).returncode == 0
    assert (clone / '.venv' / '.ready').read_text() == '3.12\n'


@pytest.mark.parametrize(
    ('target', 'command'),
    [
        ('reproduce', '.venv/bin/encapnet reproduce --all'),
        (
            'test',
            'OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --all',
        ),
        (
            'lab',
            '.venv/bin/jupyter lab --allow-root --LabApp.default_url=/lab/tree/nbs/index.ipynb '
            '--all',
        ),
    ],
)
def test_targets_hand_arguments_on(clone, target, command):
    done = make(clone, '--dry-run', target, 'ARGS=--all')
    assert done.stdout.splitlines() == ['sh .ci/setup', command]


# What other tools read


def test_conda_environment_agrees_with_the_package():
    environment = yaml.safe_load((ROOT / 'environment.yml').read_text())
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    version, pip, installed = environment['dependencies']
    assert environment['name'] == project['name']
    assert version.removeprefix('python').split(',')[0] == project['requires-python']
    assert (pip, installed) == ('pip', {'pip': ['-e .[dev]']})
    assert 'dev' in project['optional-dependencies']


def test_citation_agrees_with_the_package():
    import encapnet

    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert (citation['version'], citation['license']) == (encapnet.__version__, project['license'])
    assert citation['authors'] == [{'name': author['name']} for author in project['authors']]
    assert citation['license'] in (ROOT / 'LICENSE').read_text()


# Scripts for SLURM


def submitted(tmp_path, script, code, **environment):
    "What a job script called, and how it ended, where everything that it calls only says so."
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'activate').touch()
    (tmp_path / 'bin').mkdir()
    for command, ending in (
        ('encapnet', f'exit {code}'),
        ('scontrol', 'echo node1'),
        ('srun', 'echo 10.0.0.1'),
        ('sleep', 'true'),
    ):
        stub = tmp_path / 'bin' / command
        stub.write_text(f'#!/bin/bash\necho "{command} $*" >> "{tmp_path}/called"\n{ending}\n')
        stub.chmod(0o755)
    known = os.environ | {
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'SLURM_JOB_ID': '7',
        'DATA': '/data',
    }
    done = subprocess.run(
        ['bash', ROOT / 'slurm' / script],
        cwd=tmp_path,
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, (tmp_path / 'called').read_text()


@pytest.mark.parametrize(('code', 'again'), [(0, False), (75, True), (1, False)])
def test_a_task_of_an_array_trains_one_run_and_comes_again_if_its_time_was_up(
    tmp_path, code, again
):
    ended, called = submitted(tmp_path, 'array.sbatch', code, SLURM_ARRAY_TASK_ID='9')
    assert (
        ended == code
        and 'encapnet run table1/b_em --seed 1 --profile paper --data-root /data' in called
    )
    assert ('scontrol requeue 7' in called) == again


def test_a_job_starts_ray_on_its_machines(tmp_path):
    ended, called = submitted(
        tmp_path,
        'ray.sbatch',
        75,
        SLURM_JOB_NODELIST='node[1-4]',
        SLURM_NNODES='4',
        SLURM_CPUS_PER_TASK='8',
    )
    assert ended == 75 and '--on ray:10.0.0.1:6379' in called and 'scontrol requeue 7' in called
    assert (
        '-w node1 ray start --head' in called
        and '--nodes=3 --ntasks=3 --overlap --exclude=node1 ray start --address=10.0.0.1:6379'
        in called
    )
