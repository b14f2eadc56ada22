"""Many runs at once: whoever is killed, a worker or the driver, all runs end as if they had been
trained one by one, and none is trained twice.

The same means bit for bit: weights, both moments, metrics and the ledger's lines, of which only
`provenance.seconds`, the time it took, may differ. Every driver is a process of its own, which
writes what it hears into `told`."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from waiting import wait_for

from encapnet.data.content import fingerprint
from encapnet.training.fit import fit

from encapnet.cli.main import main
from encapnet.cli.status import epochs_done
from encapnet.show.page import front, publish
from encapnet.study import cluster, engines, launch, machine, needs, nodes, processes, sweep
from encapnet.errors import OutOfTime, StudyError
from encapnet.study.config import Schedule
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.ledger import read_ledger
from encapnet.study.request import Request
from encapnet.study.run import CHECKPOINTS, Run, state

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='ray is not installed'
)
ROWS = ['c_cnn_shape', 'f_master_aide']  # with two seeds each: more runs than workers
EPOCHS = 16  # of the run whose worker is killed
LONG = 3000  # of one that is still at it when a test comes along


def planned(folder, seeds=2, rows=ROWS, epochs=EPOCHS) -> list[Run]:
    """Smoke runs, rows times seeds, that enter the ledger; the last row of the first seed takes
    longer."""
    hashes = {'synthetic': fingerprint('synthetic')}
    configs = [
        config.model_copy(update=dict(profile='quick'))
        for config in plan('table1', PROFILES['smoke'], hashes, seeds, rows)
    ]
    schedule = Schedule(epochs=epochs, learning_rate=2e-3, batch=32)
    configs[len(rows) - 1] = configs[len(rows) - 1].model_copy(update=dict(schedule=schedule))
    return [Run(Path(folder) / 'runs', config) for config in configs]


def drive(folder, on, seconds=None, **what):
    "What a driver's process does: train, and note every epoch that it hears of."
    folder, hear = Path(folder), sweep.Sweep._hear

    def noted(self, run, event):
        with open(folder / 'told', 'a') as file:
            print(json.dumps([run.config.key, event.get('epoch'), event.get('ended')]), file=file)
        hear(self, run, event)

    sweep.Sweep._hear = noted
    engine = (
        partial(engines.on_ray, shared=False)
        if on == 'ray without a shared store'
        else engines.engine(on)
    )
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        launch.ensure(
            planned(folder, **what),
            Request(reports=str(folder / 'reports'), deadline=deadline),
            engine,
        )
    except OutOfTime as error:
        sys.exit(f'encapnet: {error}')


@pytest.fixture
def driver(tmp_path):
    "Start drivers that do not outlive the test."
    drivers = []

    def start(on, **what):
        code = f'import test_cluster as t; t.drive({str(tmp_path)!r}, {on!r}, **{what!r})'
        path = os.environ | {'PYTHONPATH': str(Path(__file__).parent)}
        errors = open(tmp_path / 'errors', 'a')
        drivers.append(
            subprocess.Popen(
                [sys.executable, '-c', code], env=path, stderr=errors, start_new_session=True
            )
        )
        errors.close()
        return drivers[-1]

    yield start
    for one in drivers:
        if one.poll() is None:
            one.send_signal(signal.SIGINT)
            one.wait(timeout=600)


def told(folder, run) -> list[int]:
    "The epochs that drivers heard of, in order."
    path = Path(folder) / 'told'
    heard = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [epoch for key, epoch, _ in heard if key == run.config.key and epoch is not None]


def trainings(what) -> dict[int, int]:
    """Training processes of which an argument, or a file that they hold, is named after something,
    with their parents."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if '--events' not in words and words[-2:] != ['fork', 'training']:
                continue
            words += [file.path for file in process.open_files()]
            if any(str(what) in word for word in words):
                found[process.pid] = process.ppid()
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def outcome(run) -> dict:
    "Everything that must not depend on who trained the run, and where."
    files = {
        name: run.path(name).read_bytes() for name in (*CHECKPOINTS, 'metrics.jsonl', 'config.json')
    }
    (line,) = (
        record
        for record in read_ledger(run.folder.parents[3] / 'reports' / 'ledger' / 'table1.jsonl')[0]
        if record.key == run.config.key
    )
    line.provenance.pop('seconds')
    return files | {
        'ledger': line,
        'state': state(run).name,
        'files': sorted(path.name for path in run.folder.iterdir()),
    }


@pytest.fixture(scope='module')
def one_by_one(tmp_path_factory):
    "Outcomes by key, of runs that were trained here, one after the other."
    folder = tmp_path_factory.mktemp('sequential')
    for run in planned(folder):
        fit(run, None, folder / 'reports', bar=False)
    return {run.config.key: outcome(run) for run in planned(folder)}


def kill_worker_and_driver(folder, driver, on, worker):
    """Kill the worker of the long run, then the driver; then start the same driver again. Returns
    what it said."""
    runs = planned(folder)
    longest = runs[len(ROWS) - 1]
    first = driver(on)
    wait_for(lambda: told(folder, longest)[1:] or first.poll() is not None)
    ((child, parent),) = trainings(longest.config.key).items()
    os.kill({'child': child, 'parent': parent}[worker], signal.SIGKILL)
    saved = epochs_done(longest)
    wait_for(lambda: told(folder, longest)[-1] > saved + 1)
    done = {
        run: (run.path('DONE').stat().st_mtime_ns, run.path('manifest.json').stat().st_mtime_ns)
        for run in runs
        if state(run).name == 'fresh'
    }
    assert done and longest not in done
    first.kill()
    first.wait()
    # who has lost its driver ends by itself, but may train on until it notices
    wait_for(lambda: not trainings(longest.config.key))
    left = EPOCHS - epochs_done(longest)
    assert driver(on).wait(timeout=600) == 0, (folder / 'errors').read_text()
    for run, times in done.items():
        assert (
            run.path('DONE').stat().st_mtime_ns,
            run.path('manifest.json').stat().st_mtime_ns,
        ) == times, 'trained twice'
    epochs = told(folder, longest)
    assert epochs == sorted({*epochs}), 'no epoch was trained twice'
    assert epochs[-1] == EPOCHS or not left, 'what was left to train, the second driver heard of'
    return (folder / 'errors').read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_processes_of_this_machine(tmp_path, driver, one_by_one):
    said = kill_worker_and_driver(tmp_path, driver, 'local:2', 'child')
    assert (
        'f_master_aide, seed 0: it was killed by signal 9; it goes on from its last checkpoint '
        '(try 2 of 4)' in said
    )
    assert {run.config.key: outcome(run) for run in planned(tmp_path)} == one_by_one


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_ray_on_this_machine(tmp_path, driver, one_by_one):
    said = kill_worker_and_driver(tmp_path, driver, 'ray', 'parent')
    assert (
        'f_master_aide, seed 0: its worker died (WorkerCrashedError); it goes on from its last '
        'checkpoint (try 2 of 4)' in said
    )
    assert {run.config.key: outcome(run) for run in planned(tmp_path)} == one_by_one
    wait_for(lambda: not trainings(tmp_path), 10)


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_ray_without_a_shared_store(tmp_path, driver, one_by_one):
    """The worker trains in a folder of its own, which goes with it; what it had sent home is
    where its successor begins."""
    run = planned(tmp_path, 1, ROWS[-1:])[0]
    first = driver('ray without a shared store', seeds=1, rows=ROWS[-1:])
    wait_for(lambda: told(tmp_path, run)[1:] or first.poll() is not None)
    assert first.poll() is None, (tmp_path / 'errors').read_text()
    ((child, worker),) = trainings(run.config.key).items()
    arguments = Path(f'/proc/{child}/cmdline').read_text().split('\0')
    scratch = Path(arguments[arguments.index('--runs') + 1])
    assert scratch.is_dir() and scratch != tmp_path / 'runs'
    assert state(run).name == 'running', 'home is held by the driver'
    os.kill(worker, signal.SIGKILL)
    saved = told(tmp_path, run)[-1]
    assert first.wait(timeout=600) == 0, (tmp_path / 'errors').read_text()
    epochs = told(tmp_path, run)
    assert (
        epochs == sorted({*epochs})
        and epochs[-1] == EPOCHS
        and epochs.index(saved) < len(epochs) - 1
    )
    assert outcome(run) == one_by_one[run.config.key]
    wait_for(lambda: not scratch.exists(), 10)


def test_a_training_that_ends_by_itself_unheard_leaves_no_folder(tmp_path):
    "It was about to say something when its worker died: the look after its parent comes too late."
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    unseen = 'import threading; threading.Thread.start = lambda self: None; '
    orphan = nodes._tied(str(scratch)).replace(f'end_with({os.getpid()}', 'end_with(0')
    done = subprocess.run([sys.executable, '-c', unseen + orphan, '--version'])
    assert done.returncode == 0
    wait_for(lambda: not scratch.exists(), 10)


@pytest.mark.slow
def test_ctrl_c_and_a_time_box_stop_at_a_checkpoint(tmp_path, driver):
    run = planned(tmp_path, 1, ROWS[-1:], LONG)[0]
    first = driver('local:2', seeds=1, rows=ROWS[-1:], epochs=LONG)
    wait_for(lambda: told(tmp_path, run) or first.poll() is not None)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=600) != 0 and 'KeyboardInterrupt' in (tmp_path / 'errors').read_text()
    assert state(run).name == 'interrupted', 'its child is at work still'
    epochs = epochs_done(run)
    for seconds in (1, 8, 64):
        second = driver('local:2', seconds=seconds, seeds=1, rows=ROWS[-1:], epochs=LONG)
        assert second.wait(timeout=600) == 1
        said = (tmp_path / 'errors').read_text().splitlines()[-1]
        # on a busy machine time is up before anything has begun
        if 'time is up before' not in said:
            break
    assert 'time is up after epoch' in said and said.endswith(
        '; 1 of 1 runs remain (table1/f_master_aide), and the same command goes on with them'
    ), said
    assert state(run).name == 'interrupted' and epochs_done(run) >= epochs


@needs_ray
def test_a_ray_that_does_not_come_up_is_said_in_a_line(monkeypatch):
    import ray

    def init(**_):
        raise Exception('The current node timed out during startup.')

    monkeypatch.setattr(ray, 'init', init)
    with (
        pytest.raises(StudyError, match='^Ray did not begin: The current node timed out'),
        cluster.connected(''),
    ):
        pass


def ends(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code, capsys.readouterr().err


def test_a_time_box_says_what_remains(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(needs._KNOWN, 'synthetic in None', '0' * 64)
    places = '--runs', str(tmp_path / 'runs'), '--reports', str(tmp_path / 'reports')
    for on in (['--on', 'local:1'], []):
        code, said = ends(
            capsys, 'reproduce', 'fig2', '--profile', 'smoke', '--max-minutes', '0', *places, *on
        )
        announced, said = said.splitlines()
        assert announced.startswith('3 of 3 runs are to be made: ')
        assert code == 75 and said.startswith(
            'encapnet: time is up before table1/a_dynamic; 3 of 3 runs remain (table1/a_dynamic, '
        ), said
        assert said.endswith(' and the same command goes on with them')


@pytest.mark.parametrize(
    'cores, gigabytes, gpus, threads, count',
    [
        (1, 64, [], '', 1),
        (2, 64, [], '', 2),
        (16, 64, [], '', 16),
        (16, 64, [], '8', 2),
        (16, 16, [], '', 5),
        (2, 2, [], '', 1),
        (16, 8, ['0', '1'], '', 2),
    ],
)
def test_unsaid_as_many_are_trained_at_a_time_as_there_is_room_for(
    tmp_path, monkeypatch, cores, gigabytes, gpus, threads, count
):
    monkeypatch.setenv('OMP_NUM_THREADS', threads)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(total=gigabytes * 2**30))
    monkeypatch.setattr(processes, 'cores', lambda: cores)
    for module in (processes, machine):
        monkeypatch.setattr(module, 'gpus', lambda: gpus)
    assert processes.abreast() == count
    took = []
    monkeypatch.setattr(
        engines, 'Processes', lambda *numbers: took.append(numbers) or contextlib.nullcontext()
    )
    monkeypatch.setattr(
        engines, 'Sweep', lambda todo, orders, place: SimpleNamespace(run=lambda: None)
    )
    monkeypatch.setitem(needs._KNOWN, 'synthetic in None', '0' * 64)
    monkeypatch.setattr(
        needs, 'this_machine', lambda: dict(device='a machine', training='a machine')
    )
    monkeypatch.setattr(publish, 'publish_all', lambda made, count: [])
    monkeypatch.setattr(front, 'site', lambda reports: reports)
    with pytest.raises(SystemExit, match='^0$'):
        main(
            [
                'reproduce',
                'fig2',
                '--profile',
                'smoke',
                '--runs',
                str(tmp_path / 'runs'),
                '--reports',
                str(tmp_path / 'reports'),
            ]
        )
    assert took == [(min(3, count),)]


def test_a_training_computes_with_one_thread_unless_told(tmp_path):
    "However many cores there are: the digits of the committed ledger are a thread's."
    for given, threads in (('', 1), ('2', 2)):
        folder = tmp_path / f'told_{given}'
        done = subprocess.run(
            [
                sys.executable,
                '-m',
                'encapnet',
                'run',
                'table1/c_cnn_shape',
                '--profile',
                'smoke',
                '--runs',
                folder / 'runs',
                '--reports',
                folder,
            ],
            env=os.environ | dict(OMP_NUM_THREADS=given),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        (manifest,) = folder.glob('runs/table1/*/*/manifest.json')
        assert json.loads(manifest.read_text())['threads'] == threads


def test_ray_is_an_extra(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *more: None if name == 'ray' else find(name, *more),
    )
    code, said = ends(capsys, 'reproduce', '--on', 'ray')
    assert (code, said) == (
        2,
        "encapnet: --on ray needs Ray, which is not installed; pip install 'ray>=2.40' brings it\n",
    )


@needs_ray
def test_nobody_answers_at_an_address(tmp_path, monkeypatch):
    runs = planned(tmp_path, 1, ROWS[:1])
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{silent.getsockname()[1]}'
        with pytest.raises(
            StudyError, match=f'no Ray cluster answers at {address}: Connection refused'
        ):
            launch.ensure(runs, Request(reports=''), engines.engine(f'ray:{address}'))
        silent.listen()
        monkeypatch.setattr(cluster, 'CONNECT_SECONDS', 3)
        with pytest.raises(
            StudyError, match=f'no Ray cluster answers at {address} within 3 seconds'
        ):
            launch.ensure(runs, Request(reports=''), engines.engine(f'ray:{address}'))
    assert state(runs[0]).name == 'missing'
