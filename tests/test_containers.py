"""Where things are as in a container or on a cluster: no home folder, a user without a name, a
source tree that cannot be written, long paths, few open files, settings of the user's own, a
proxy in between."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from encapnet.show.page import execute, kernel
from encapnet.show.explore import serve
from encapnet.standin import ENTRY
from encapnet.study import places

ROOT = places.package_clone()
CLI = [sys.executable, '-c', ENTRY]
STRANGER = 54321  # nobody's number


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "A source tree that everybody may read and nobody write, in a folder that everybody may enter."
    folder = tmp_path_factory.mktemp('tree')
    for above in (folder, *folder.parents[:2]):
        above.chmod(0o755)
    forget = shutil.ignore_patterns('.ipynb_checkpoints')
    for name in ('encapnet', 'nbs'):
        shutil.copytree(ROOT / name, folder / name, ignore=forget)
    shutil.copy(ROOT / 'settings.ini', folder)
    for path in (folder, *folder.rglob('*')):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob('*')):
        path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    "A folder for store and reports that the stranger may write."
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    folder = tmp_path / 'place'
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    return folder


def as_stranger(tree, place, *arguments, home=None):
    """Run the command line as a user without name and home, where this user may become another;
    else without a home alone."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('HOME', 'ENCAPNET_CACHE') and 'JUPYTER' not in name
    }
    environment = (
        environment
        | dict(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE='1', TMPDIR=str(place))
        | ({'HOME': home} if home else {})
    )
    environment.pop('IPYTHONDIR', None)
    # The interpreter may lie in root's own home: the stranger may look in everywhere, and write
    # nowhere that is not his.
    become = (
        f'--reuid={STRANGER} --regid={STRANGER} --clear-groups --inh-caps=+dac_read_search '
        '--ambient-caps=+dac_read_search'
    ).split()
    user = ['setpriv', *become] if os.geteuid() == 0 and shutil.which('setpriv') else []
    return subprocess.run(
        [*user, *CLI, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    'home', [None, '/', '/nowhere'], ids=['no HOME', 'HOME=/', 'HOME that is not there']
)
def test_a_page_without_a_home(tree, place, home):
    where = ('--runs', str(place / 'runs'), '--reports', str(place / 'reports'))
    done = as_stranger(
        tree, place, 'run', 'table1/c_cnn_shape', '--profile', 'smoke', *where, home=home
    )
    assert done.returncode == 0, done.stderr
    done = as_stranger(
        tree, place, 'reproduce', 'fig1_fig3', '--profile', 'smoke', *where, home=home
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    assert list((place / 'reports').rglob('fig1_fig3.html'))
    left = [path.name for path in place.glob('encapnet-*')]
    uid = STRANGER if os.getuid() == 0 else os.getuid()
    assert left in ([], [f'encapnet-cache-{uid}']), 'what was private has gone'


@pytest.mark.slow
@pytest.mark.parametrize('lab', [False, True], ids=['Voilà', 'JupyterLab'])
def test_an_explorer_without_a_home(tree, place, monkeypatch, lab):
    monkeypatch.setenv('HOME', '/nowhere')
    monkeypatch.setenv('TMPDIR', str(place))
    for name in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR'):
        monkeypatch.delenv(name, raising=False)
    notebooks = sorted((ROOT / 'nbs/explore').glob('*.ipynb'))
    with serve.serving(
        notebooks, 'runs', lab=lab, runs=str(place / 'runs'), reports=str(place)
    ) as (url, _):
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=300)
        assert answer.status == 200
        page = answer.read().decode()
    if not lab:
        assert 'There was an error when executing cell' not in page and 'Traceback' not in page


@pytest.mark.parametrize('letter', ['家', 'д', 'a'])
def test_a_long_temporary_folder_in_any_script(tmp_path, monkeypatch, letter):
    "A socket's path ends at 107 bytes, and a letter may have four."
    deep = tmp_path / (letter * 30) / (letter * 30)
    deep.mkdir(parents=True)
    monkeypatch.setenv('HOME', str(deep))
    monkeypatch.setattr('tempfile.tempdir', str(deep))
    assert not kernel.has_room_for_sockets(deep / 'encapnet-12345678/runtime')
    # as many letters, and not as many bytes
    assert kernel.has_room_for_sockets('/' + letter * 35) == (letter != '家')
    notebook = tmp_path / 'one.ipynb'
    notebook.write_text(ONE_CELL)
    assert 'two' in execute.execute(notebook, tmp_path / 'out.ipynb', {}).read_text()


ONE_CELL = """{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "execution_count": null, "outputs": [],
"source": "import sys\\nprint('one' if 'surprise' in sys.modules else 'two')"}],
"metadata": {}, "nbformat": 4, "nbformat_minor": 5}"""


def test_start_up_files_do_not_shape_pages(tmp_path, monkeypatch):
    start = tmp_path / 'ipython/profile_default/startup'
    start.mkdir(parents=True)
    (start / '00.py').write_text("import sys\nsys.modules['surprise'] = sys\n")
    (tmp_path / 'start.py').write_text("import sys\nsys.modules['surprise'] = sys\n")
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('PYTHONSTARTUP', str(tmp_path / 'start.py'))
    notebook = tmp_path / 'one.ipynb'
    notebook.write_text(ONE_CELL)
    executed = execute.execute(notebook, tmp_path / 'out.ipynb', {}).read_text()
    assert '"two\\n"' in executed and '"one\\n"' not in executed


DRAW = """
import pandas as pd
from encapnet.show.plots.costs import kept_bytes
from encapnet.show.plots.curves import training_curves
from encapnet.show.tables.fig1 import capsule_layer
curves = pd.DataFrame([dict(row=row, epoch=epoch, error=10.0 / epoch, train_loss=0.5 / epoch, seed=0)
                       for row in ("a_dynamic", "e_master") for epoch in (1, 2, 3)])
print(training_curves(curves, "digits").svg)
kept = pd.DataFrame([dict(backend="chunked", higher=higher, model=higher * 100, kept=higher * 101)
                     for higher in (128, 512)])
print(kept_bytes(kept).svg)
print(capsule_layer().svg)
"""


def test_a_matplotlibrc_does_not_shape_figures(tmp_path):
    "In the folder that one is in, or named by the environment."
    plain = subprocess.run(
        [sys.executable, '-c', DRAW], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert '<svg' in plain
    (tmp_path / 'matplotlibrc').write_text(
        'font.size: 30\naxes.facecolor: red\nlines.linewidth: 9\nsavefig.facecolor: '
        'green\nfigure.dpi: 300\n'
    )
    there = dict(os.environ, PYTHONPATH=str(ROOT))
    named = there | dict(MATPLOTLIBRC=str(tmp_path / 'matplotlibrc'))
    for folder, environment in ((tmp_path, there), (ROOT, named)):
        done = subprocess.run(
            [sys.executable, '-c', DRAW],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == plain


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such limit')
def test_few_open_files(tmp_path):
    "Where more may be had they are taken; where not, the number is named."
    command = [
        *CLI,
        'reproduce',
        'fig1_fig3',
        '--profile',
        'smoke',
        '--runs',
        str(tmp_path / 'runs'),
        '--reports',
        str(tmp_path / 'reports'),
    ]
    few = lambda soft, hard: subprocess.run(
        ['sh', '-c', f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', 'sh', *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    done = few(40, 64)
    assert (
        done.returncode == 1
        and "this process may open 64 files at a time (ulimit -n), and a page's kernel needs 256"
        in done.stderr
    )
    assert 'Traceback' not in done.stderr
    assert few(64, 1024).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize('lab', [False, True], ids=['Voilà', 'JupyterLab'])
def test_an_explorer_behind_a_proxy(lab):
    """Everything lies below the path that the proxy forwards, and a host of another name is no
    stranger."""
    notebooks = sorted((ROOT / 'nbs/explore').glob('*.ipynb'))
    with serve.serving(notebooks, '', lab=lab, base='/user/me/explore') as (url, _):
        assert '/user/me/explore/' in url
        request = urllib.request.Request(url, headers={'Host': 'hub.example.org'})
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=300
        )
        page = answer.read().decode()
        assert answer.status == 200 and '/user/me/explore/' in answer.url
    import re

    away = [
        link
        for link in re.findall(r'(?:href|src)="(/[^"]*)"', page)
        if not link.startswith('/user/me/explore/')
    ]
    assert away == []


def test_a_host_that_is_none_of_ours(capsys):
    from encapnet.cli.main import main

    for arguments, said in (
        (['--host', '203.0.113.7'], 'cannot listen on 203.0.113.7, port 0: '),
        (
            ['--base-url', 'http://x y'],
            "base URL 'http://x y' is no path; expected one such as /user/me/explore/",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(['explore', '--no-browser', *arguments])
        told = capsys.readouterr().err
        assert ended.value.code in (1, 2) and said in told and len(told.splitlines()) == 1


def test_a_tree_whose_execute_bits_are_lost(tmp_path):
    "As a ZIP may unpack it: make starts the set-up through the shell."
    made = Path(tmp_path / 'clone')
    made.mkdir()
    for name in ('Makefile', 'pyproject.toml'):
        shutil.copy(ROOT / name, made)
    shutil.copytree(ROOT / '.ci', made / '.ci')
    for script in (made / '.ci').iterdir():
        script.chmod(0o644)
    environment = os.environ | dict(PYTHON='/no/such/python')
    done = subprocess.run(
        ['make', 'test'], cwd=made, capture_output=True, text=True, env=environment
    )
    assert 'Permission denied' not in done.stderr, done.stderr
    assert 'set-up stopped: Python 3.11 or later is needed' in done.stderr
