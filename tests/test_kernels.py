"""Kernels that one process forks: whoever dies, nobody is left behind, and nobody takes another
along."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from commands import forking, given
from waiting import wait_for

from encapnet import standin
from encapnet.cli.warm import LOADED_UNDER
from encapnet.show.page.execute import execute
from encapnet.show.page.kernel import imported, warm_kernels
from encapnet.standin import WARM

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='kernels are forked on Linux only')

# Runs notebooks side by side, each in a thread; a line for each that ends.
RUN = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from encapnet.errors import StudyError
from encapnet import standin
from encapnet.show.page.execute import execute
from encapnet.show.page.kernel import own_folders, warm_kernels

def run(path):
    try:
        execute(path, path.with_suffix('.done.ipynb'), {})
    except StudyError as error:
        print(json.dumps([path.stem, str(error)]), flush=True)
    else:
        print(json.dumps([path.stem, 'done']), flush=True)

paths = [Path(word) for word in sys.argv[1:]]
with ThreadPoolExecutor(len(paths)) as pool, own_folders(), warm_kernels(paths):
    list(pool.map(run, paths))
"""

# Says which processes it consists of, and stays as long as a file does.
STAY = """
import os, time
from pathlib import Path
Path({said!r}).write_text(f'{{os.getpid()}} {{os.getppid()}}')
while Path({stays!r}).exists():
    time.sleep(0.05)
"""


def written(folder: Path, name: str) -> Path:
    "A notebook that stays; while it runs, `name.said` holds its process and the one that forked it."
    stays = folder / f'{name}.stays'
    stays.touch()
    source = STAY.format(said=str(folder / f'{name}.said'), stays=str(stays))
    cell = dict(
        cell_type='code', id='a', metadata={}, source=source, outputs=[], execution_count=None
    )
    path = folder / f'{name}.ipynb'
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def processes(folder: Path, name: str) -> list[psutil.Process]:
    "The kernel of a notebook, and the process that forked it."
    said = folder / f'{name}.said'
    text = wait_for(lambda: said.exists() and said.read_text())
    return [psutil.Process(int(word)) for word in text.split()]


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def two(tmp_path):
    "A process that runs two notebooks at once, both at work, and what they consist of."
    paths = [written(tmp_path, name) for name in ('one', 'other')]
    runner = subprocess.Popen(
        [sys.executable, '-P', '-c', RUN, *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield runner, *(processes(tmp_path, path.stem) for path in paths)
    finally:
        runner.kill()
        runner.wait()
        runner.stdout.close()


def test_one_that_ends_takes_nobody_along(two, tmp_path):
    runner, (_, fork), (other, same) = two
    assert fork == same, 'both are forks of one process'
    (tmp_path / 'one.stays').unlink()
    assert json.loads(runner.stdout.readline()) == ['one', 'done']
    assert not is_gone(other)
    (tmp_path / 'other.stays').unlink()
    assert json.loads(runner.stdout.readline()) == ['other', 'done']
    assert runner.wait(60) == 0
    wait_for(partial(is_gone, fork))


def test_one_that_is_killed_is_told_of_and_takes_nobody_along(two, tmp_path):
    runner, (kernel, _), (other, _) = two
    kernel.kill()
    name, why = json.loads(runner.stdout.readline())
    assert name == 'one' and 'Kernel died' in why
    assert not is_gone(other)
    (tmp_path / 'other.stays').unlink()
    assert json.loads(runner.stdout.readline()) == ['other', 'done']


def test_where_whoever_asked_is_killed_nothing_is_left(two):
    runner, one, other = two
    runner.kill()
    for process in {*one, *other}:
        wait_for(partial(is_gone, process))


def test_where_the_one_that_forks_is_killed_its_kernels_end_and_it_is_told(two):
    runner, (kernel, fork), (other, _) = two
    fork.kill()
    told = dict(json.loads(runner.stdout.readline()) for _ in range(2))
    assert all('Kernel died' in why for why in told.values()) and set(told) == {'one', 'other'}
    for process in (kernel, other):
        wait_for(partial(is_gone, process))


def test_ctrl_c_ends_all(two):
    runner, one, other = two
    runner.send_signal(signal.SIGINT)
    runner.wait(60)
    for process in {*one, *other}:
        wait_for(partial(is_gone, process))


def test_a_path_that_is_too_long_and_a_gpu_make_kernels_by_themselves(tmp_path, monkeypatch):
    path = written(tmp_path, 'one')
    monkeypatch.setattr('encapnet.show.page.kernel.has_room_for_sockets', lambda folder: False)
    with warm_kernels([path]):
        assert WARM not in os.environ
    monkeypatch.undo()
    monkeypatch.setattr('encapnet.show.page.kernel.has_processors_only', lambda: False)
    with warm_kernels([path]):
        assert WARM not in os.environ


def test_a_home_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    home = tmp_path / 'home'
    monkeypatch.setenv('HOME', str(home))
    path = written(tmp_path, 'one')
    (tmp_path / 'one.stays').unlink()
    with warm_kernels([path], more=['matplotlib.pyplot']):
        execute(path, tmp_path / 'done.ipynb', {})
    assert not home.exists()


def test_nothing_is_started_for_nothing():
    with warm_kernels([]):
        assert WARM not in os.environ


def test_a_line_of_ipythons_own_is_passed_over(tmp_path):
    path = written(tmp_path, 'one')
    notebook = json.loads(path.read_text())
    notebook['cells'].append(notebook['cells'][0] | dict(id='b', source='%matplotlib inline'))
    path.write_text(json.dumps(notebook))
    assert imported([path]) == ['os', 'time', 'pathlib:Path']


def test_a_forked_kernel_knows_where_messages_to_widgets_go(tmp_path):
    "ipywidgets, loaded before there is a kernel, cannot tell it by itself."
    source = """
import ipywidgets, os
targets = get_ipython().kernel.comm_manager.targets
print(os.getppid(), *sorted(target for target in targets if target.startswith('jupyter.widget')))
"""
    path, done = tmp_path / 'one.ipynb', tmp_path / 'done.ipynb'
    cell = dict(
        cell_type='code', id='a', metadata={}, source=source, outputs=[], execution_count=None
    )
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    with warm_kernels([path]):
        execute(path, done, {})
    [output] = json.loads(done.read_text())['cells'][0]['outputs']
    parent, *targets = ''.join(output['text']).split()
    assert int(parent) != os.getpid(), 'a fork of another process'
    assert targets == ['jupyter.widget', 'jupyter.widget.control']


@pytest.mark.parametrize('threads', ['1', '2'], ids=['as it was loaded', 'with other threads'])
def test_a_command_is_a_fork_where_it_may_be_one(threads):
    "Told by the process that was started: a stand-in stays what it is, else it becomes the command."
    differing = {name for name in {*given, *os.environ} if os.environ.get(name) != given.get(name)}
    assert not [name for name in differing if name.startswith(LOADED_UNDER)], 'of an earlier test'
    with forking():
        # who forks may only just have been started
        wait_for(Path(os.environ[WARM]).exists)
        started = subprocess.Popen(
            standin.command('fork', 'timing'),
            env=os.environ | dict(OMP_NUM_THREADS=threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    with started:
        print('["--version"]', file=started.stdin, flush=True)
        assert started.stdout.readline().startswith('encapnet ')
        assert json.loads(started.stdout.readline()) == dict(ended=0)
        is_standin = standin.__file__ in psutil.Process(started.pid).cmdline()
    assert started.returncode == 0
    assert is_standin == (threads == '1')
