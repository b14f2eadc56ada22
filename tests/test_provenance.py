"""Which commit made a number, and whether anything has changed since: known, or said to be
unknown; never another project's."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from encapnet.show.report.provenance import revision_text
from encapnet.study import places

pytestmark = pytest.mark.usefixtures('forked')

PACKAGE = places.package_clone() / 'encapnet'
ASK = (
    'import json; from encapnet.study.provenance import provenance; print(json.dumps(provenance()))'
)


def git(folder, *arguments):
    names = [
        '-c',
        'user.name=a',
        '-c',
        'user.email=a@example.invalid',
        '-c',
        'commit.gpgsign=false',
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    done = subprocess.run(
        ['git', *names, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(folder):
    git(folder, 'init', '--quiet')
    git(folder, 'add', '--all')
    git(folder, 'commit', '--quiet', '--allow-empty', '-m', 'as it is')
    return git(folder, 'rev-parse', 'HEAD')


def unpacked(folder):
    "The repository as an archive has it: no .git."
    shutil.copytree(PACKAGE, folder / 'encapnet', ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'nbs/reports').mkdir(parents=True)
    (folder / 'nbs/reports/table1.ipynb').write_text('{}')
    (folder / 'README.md').write_text('# encapnet\n')
    for name in ('settings.ini', '.gitignore'):
        shutil.copy(PACKAGE.parent / name, folder)
    return folder


def asked(folder, **environment):
    done = subprocess.run(
        [sys.executable, '-c', ASK],
        cwd=folder.parent,
        env=os.environ | dict(PYTHONPATH=str(folder)) | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return found['git'], found['dirty']


@pytest.fixture
def clone(tmp_path):
    "A clone, and its commit."
    folder = unpacked(tmp_path / 'clone')
    return folder, commit(folder)


def test_a_clone_as_it_was_committed(clone):
    folder, head = clone
    assert asked(folder) == (head, False)
    (folder / 'README.md').write_text('# what is written, not what is computed\n')
    (folder / 'runs').mkdir()
    (folder / 'runs/metrics.jsonl').write_text('{}\n')
    assert asked(folder) == (head, False)


@pytest.mark.parametrize('mark', ['--assume-unchanged', '--skip-worktree'])
def test_a_file_that_git_shall_not_look_at_is_unknown(clone, mark):
    folder, head = clone
    file = 'encapnet/nn/dynamic.py'
    subprocess.run(['git', '-C', folder, 'update-index', mark, file], check=True)
    with open(folder / file, 'a') as opened:
        opened.write('X = 1\n')
    assert asked(folder) == (head, None)


def test_a_module_that_git_ignores_is_a_change(clone):
    folder, head = clone
    (folder / '.git/info/exclude').write_text('surprise.py\n')
    (folder / 'encapnet/nn/surprise.py').write_text('X = 1\n')
    assert asked(folder) == (head, True)


@pytest.mark.parametrize(
    'file',
    [
        'encapnet/nn/dynamic.py',
        'encapnet/training/fit.py',
        'nbs/reports/table1.ipynb',
        'encapnet/study/fig2_authors.csv',
        'encapnet/show/page/templates/report/style.css',
    ],
)
def test_a_change_anywhere_in_package_or_notebooks(clone, file):
    folder, head = clone
    with (folder / file).open('a') as source:
        source.write('\nX = 1\n')
    assert asked(folder) == (head, True)


def test_a_file_that_git_is_told_to_keep_quiet_about(clone):
    folder, head = clone
    git(folder, 'config', 'status.showUntrackedFiles', 'no')
    (folder / 'encapnet/nn/new.py').write_text('X = 1\n')
    assert asked(folder) == (head, True)


def test_another_projects_commit_is_none_of_ours(tmp_path, clone):
    around = tmp_path / 'around'
    zipped = unpacked(around / 'encapnet-main')
    commit(around)
    assert asked(zipped) == (None, None), 'unpacked inside another repository'
    installed = around / '.venv/lib/python3.11/site-packages'
    shutil.copytree(PACKAGE, installed / 'encapnet', ignore=shutil.ignore_patterns('__pycache__'))
    assert asked(installed) == (None, None), 'installed inside another repository'
    folder, head = clone
    told = dict(
        GIT_DIR=str(around / '.git'),
        GIT_WORK_TREE=str(around),
        GIT_INDEX_FILE=str(around / '.git/index'),
    )
    assert asked(folder, **told) == (head, False), "started by another repository's hook"


def test_nobody_knows(tmp_path, clone):
    assert asked(unpacked(tmp_path / 'zip')) == (None, None), 'no .git'
    folder, _ = clone
    stub = tmp_path / 'bin/git'
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/sh\necho "fatal: detected dubious ownership in repository at \'$PWD\'" >&2\nexit '
        '128\n'
    )
    stub.chmod(0o755)
    assert asked(folder, PATH=f'{stub.parent}:{os.environ["PATH"]}') == (None, None), (
        'git does not trust it'
    )
    stub.write_text(
        '#!/bin/sh\nif [ "$4" = status ]; then exit 1; fi\nexec /usr/bin/env -i PATH='
        + os.environ['PATH']
        + ' git "$@"\n'
    )
    assert asked(folder, PATH=f'{stub.parent}:{os.environ["PATH"]}')[1] is None, (
        'git cannot read its index'
    )
    assert asked(folder, PATH=str(tmp_path)) == (None, None), 'no git'


def test_a_worktree_and_a_link_are_the_clone(tmp_path, clone):
    folder, head = clone
    git(folder, 'worktree', 'add', '--quiet', str(tmp_path / 'tree'))
    assert asked(tmp_path / 'tree') == (head, False)
    (tmp_path / 'link').symlink_to(folder)
    assert asked(tmp_path / 'link') == (head, False)


def test_what_a_page_says_of_it():
    commit = '0123456789abcdef'
    assert [revision_text(dict(git=commit, dirty=dirty)) for dirty in (False, True, None)] == [
        '0123456789',
        '0123456789, with uncommitted changes',
        '0123456789, perhaps with uncommitted changes',
    ]
    assert revision_text(dict(git=None, dirty=None)) == revision_text({}) == 'unknown'
