"""Where a folder is: the same for the command line in any folder of a clone, a notebook in its
own folder, and an explorer; `~` in one place."""

import json
import os
import shutil
import subprocess
import sys
from unittest.mock import patch

import pytest

from encapnet.standin import ENTRY
from encapnet.study import places
from encapnet.cli.main import main
from encapnet.cli.notebooks import notebooks
from encapnet.errors import StudyError, UsageError
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.run import Run, state

ROOT = places.package_clone()
CLI = [sys.executable, '-c', ENTRY]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A copy of the repository: package, notebooks, ledger."
    folder = tmp_path_factory.mktemp('clone')
    forget = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('encapnet', 'nbs', 'tests', 'reports/ledger'):
        shutil.copytree(ROOT / name, folder / name, ignore=forget)
    shutil.copy(ROOT / 'settings.ini', folder)
    # the original may be read-only, and copies take that over
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)
    return folder


def run(folder, *command, **environment):
    environment = os.environ | dict(PYTHONPATH=str(folder)) | environment
    return lambda cwd: subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_a_report_opened_in_its_own_folder_writes_where_all_others_do(clone):
    done = run(
        clone,
        sys.executable,
        '-m',
        'jupyter',
        'nbconvert',
        '--to',
        'notebook',
        '--execute',
        '--output-dir',
        'out',
        'nbs/reports/evidence.ipynb',
    )(clone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (clone / 'reports/tables/evidence.csv').is_file()
    assert not (clone / 'nbs/reports/reports').exists()


def test_papermill_in_the_notebooks_folder_finds_the_records(clone):
    done = run(
        clone,
        sys.executable,
        '-m',
        'papermill',
        '--cwd',
        'nbs/reports',
        '-p',
        'ledger',
        'True',
        '-p',
        'profile',
        'long',
        'nbs/reports/polarisation.ipynb',
        'out.ipynb',
    )(clone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (clone / 'reports/figures/long/polarisation.svg').is_file() or list(
        (clone / 'reports/figures/long').iterdir()
    )
    assert not (clone / 'nbs/reports/reports').exists()


@pytest.mark.parametrize('below', ['nbs', 'nbs/reports', 'encapnet/nn'])
def test_the_command_line_in_a_folder_below_is_that_of_the_root(clone, below):
    train = ('run', 'table1/c_cnn_shape', '--profile', 'smoke')
    done = run(clone, *CLI, *train)(clone / below)
    assert done.returncode == 0, done.stderr
    assert (
        list((clone / 'runs/table1/c_cnn_shape').glob('*/DONE'))
        and not (clone / below / 'runs').exists()
    )
    again = run(clone, *CLI, *train)(clone)
    assert 'there already' in again.stderr
    checked = run(clone, *CLI, 'reproduce', '--check', 'complexity')(clone / below)
    assert checked.stdout == 'complexity.html  missing: there is no such page\n', checked.stderr
    shutil.rmtree(clone / 'runs')


def test_what_begins_with_a_dot_is_where_one_is(clone):
    done = run(clone, *CLI, 'run', 'table1/c_cnn_shape', '--profile', 'smoke', '--runs', './mine')(
        clone / 'nbs'
    )
    assert done.returncode == 0 and (clone / 'nbs/mine/table1').is_dir()
    shutil.rmtree(clone / 'nbs/mine')


def test_another_projects_notebooks_are_none_of_ours(tmp_path, monkeypatch):
    (tmp_path / 'nbs/reports').mkdir(parents=True)
    (tmp_path / 'nbs/reports/theirs.ipynb').write_text('{}')
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = theirs\n')
    monkeypatch.chdir(tmp_path)
    assert 'theirs' not in notebooks() and 'table1' in notebooks()
    assert places.resolve('runs').resolve() == tmp_path / 'runs'
    (tmp_path / 'settings.ini').write_bytes(b'\xff\xfe no settings')
    assert places.surrounding_clone() is None


def test_a_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / 'gone'
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match='the folder that this was started in is gone'):
        places.resolve('runs')
    monkeypatch.chdir(tmp_path)


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch, capsys):
    refusal = PermissionError(13, 'Permission denied')
    with patch('os.getcwd', side_effect=refusal), pytest.raises(SystemExit) as ended:
        main(['status', '--profile', 'smoke'])
    said = capsys.readouterr().err
    assert (ended.value.code, said) == (
        1,
        'encapnet: the folder that this was started in cannot be used: Permission denied\n',
    )
    with (
        patch('pathlib.Path.is_dir', side_effect=refusal),
        pytest.raises(StudyError, match='^cannot look into .*: Permission denied$'),
    ):
        state(
            Run(tmp_path / 'runs', plan('table1', PROFILES['smoke'], {'synthetic': '0' * 64}, 1)[0])
        )


OPTIONS = [  # every option that takes a folder or a file
    ('run', 'table1/c_cnn_shape', '--profile', 'smoke', '--runs={}'),
    ('status', '--profile', 'smoke', '--reports={}'),
    ('run', 'table1/c_cnn_shape', '--data-root={}'),
    ('run', '--config={}'),
    ('reproduce', 'table1', '--profile', 'smoke', '--runs={}'),
    ('certify', '--reports={}'),
    ('data', 'list', '--data-root={}'),
    ('data', 'fetch', 'cifar10', '--data-root={}'),
    ('data', 'build-himagenet', '--imagenet={}'),
    ('data', 'build-himagenet', '--imagenet=.', '--data-root={}'),
    ('data', 'build-himagenet', '--imagenet=.', '--weights={}'),
    ('data', 'build-himagenet', '--imagenet=.', '--boxes={}'),
    ('explore', '--runs={}', '--no-browser'),
    ('bench', 'routing', '--profile', 'smoke', '--runs={}'),
]


@pytest.mark.parametrize('arguments', OPTIONS, ids=' '.join)
@pytest.mark.parametrize('home', ['~nosuchuser/x', '~/x'])
def test_the_home_of_nobody_is_one_line(tmp_path, monkeypatch, capsys, arguments, home):
    "Of a user that there is not; or of a process whose user has no entry, and no HOME."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HOME', raising=False)
    with patch('pwd.getpwuid', side_effect=KeyError), pytest.raises(SystemExit) as ended:
        main([argument.format(home) for argument in arguments])
    said = capsys.readouterr().err
    named = home.partition('/')[0]
    assert ended.value.code == 2, said
    assert (
        said == f'encapnet: {home}: there is no home folder that {named} stands for; expected '
        'the folder written out\n'
    )
    assert not list(tmp_path.iterdir()), 'nothing was made'


def test_home_is_read_where_the_shell_has_not(tmp_path, clone):
    home = tmp_path / 'home'
    home.mkdir()
    done = run(
        clone,
        *CLI,
        'run',
        'table1/c_cnn_shape',
        '--profile',
        'smoke',
        '--runs=~/store',
        HOME=str(home),
    )(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        list((home / 'store/table1/c_cnn_shape').glob('*/DONE')) and not (tmp_path / '~').exists()
    )
    config = next((home / 'store/table1/c_cnn_shape').glob('*/config.json'))
    shown = run(
        clone, *CLI, 'run', f'--config=~/{config.relative_to(home)}', '--show', HOME=str(home)
    )(tmp_path)
    assert json.loads(shown.stdout)['row'] == 'c_cnn_shape'


def test_notebooks_and_explorers_read_home_alike(tmp_path, monkeypatch):
    from encapnet.data.cache import cache_folder
    from encapnet.show.report import twins
    from encapnet.show.explore.offers import stored
    from encapnet.study.ledger import counted

    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'reports').mkdir()
    shutil.copytree(ROOT / 'reports/ledger', tmp_path / 'reports/ledger')
    assert counted('~/reports', 'table1', 'quick').records
    assert list(stored('~/runs')) == []
    twins.save('~/reports', '', {}, {}, {})
    assert not (tmp_path / '~').exists()
    monkeypatch.setenv('ENCAPNET_CACHE', '~nosuchuser/cache')
    with pytest.raises(UsageError, match='no home folder that ~nosuchuser stands for'):
        cache_folder()
