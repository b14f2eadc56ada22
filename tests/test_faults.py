"""What a study must survive: kills at any instant, full and read-only disks, damaged files, two
processes, other code, no number.

Every test ends in the same question: is what was good still there, and does the run end as if
nothing had happened? The same means bit for bit: weights, both moments, metrics and the ledger's
line, of which only `provenance.seconds`, the time it took, may differ."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from waiting import wait_for

from encapnet.data.content import fingerprint
from encapnet.data.loading import load
from encapnet.training.checkpoint import _parse, pack, resume
from encapnet.training.fit import fit
from encapnet.training.trainer import Trainer

from encapnet.cli.main import main
from encapnet.show.report.standing import from_store
from encapnet.show.report.study import run_frame
from encapnet.study import freshness, launch, needs, ranks
from encapnet.study import run as run_folder
from encapnet.standin import ENTRY
from encapnet.study.child import PLACE, child_process
from encapnet.errors import OutOfTime, StudyError
from encapnet.study.architectures import SixLayerEncapNetConfig
from encapnet.study.config import DataConfig, RunConfig, Schedule
from encapnet.files import write_atomic
from encapnet.study.ledger import append_ledger, read_ledger
from encapnet.study.records import Record
from encapnet.study.provenance import provenance
from encapnet.study.request import Request
from encapnet.study.run import CHECKPOINTS, Run, finish, state

CLI = [sys.executable, '-c', ENTRY]
LONG = 3000  # epochs of a run that is still at it when a test comes along


def tiny(epochs=3, **change):
    "A run of a few hundredths of a second per epoch whose record enters the ledger."
    return RunConfig(
        experiment='table1',
        row='f_master_aide',
        profile='quick',
        network=SixLayerEncapNetConfig(groups=1),
        data=DataConfig(
            name='synthetic',
            sha256=fingerprint('synthetic'),
            train_images=20,
            test_images=10,
            augmentation='mild',
        ),
        schedule=Schedule(epochs=epochs, learning_rate=1e-3, batch=10, milestones=(epochs - 1,)),
        **change,
    )


def place(folder, config=None) -> tuple[Run, list[str]]:
    "A run in a store of its own, and the arguments that train it."
    folder = Path(folder)
    run = Run(folder / 'runs', config or tiny())
    file = write_atomic(folder / 'config.json', run.config.model_dump_json())
    return run, [
        'run',
        '--config',
        str(file),
        '--runs',
        str(folder / 'runs'),
        '--reports',
        str(folder / 'reports'),
        '--events',
    ]


def asked(folder) -> Request:
    "What the run of `place` is trained with."
    return Request(reports=str(Path(folder) / 'reports'))


def ledger_of(run):
    return run.folder.parents[3] / 'reports' / 'ledger' / 'table1.jsonl'


def outcome(run) -> dict:
    "Everything that must not depend on what happened on the way."
    found = {
        name: run.path(name).read_bytes() for name in (*CHECKPOINTS, 'metrics.jsonl', 'config.json')
    }
    lines = [json.loads(line) for line in ledger_of(run).read_text().splitlines()]
    for line in lines:
        line['provenance'].pop('seconds')
        line.pop('seal')  # which speaks of the seconds, too
    left = [
        str(path)
        for folder in (run.folder, ledger_of(run).parent)
        for path in folder.glob('.*.tmp')
    ]
    return found | {'ledger': lines, 'left behind': left, 'state': state(run).name}


def train(arguments, code=0):
    "The command line in this process; its exit code is checked."
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code


def complaint(capsys) -> list[str]:
    "What the command line told the reader."
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith('encapnet: ')]


@pytest.fixture(scope='module')
def smooth(tmp_path_factory):
    "The outcome of a run that nothing disturbed."
    run, arguments = place(tmp_path_factory.mktemp('smooth'))
    train(arguments)
    assert len(run.path('metrics.jsonl').read_text().splitlines()) == 3
    assert outcome(run)['state'] == 'fresh'
    return outcome(run)


def interrupted(folder, epochs=2):
    "A run that was stopped after some epochs."
    run, arguments = place(folder)
    ends = iter([0.0] * epochs)
    with patch('time.monotonic', lambda: next(ends, 2.0)), pytest.raises(OutOfTime):
        fit(run, deadline=1.0, bar=False)
    assert state(run).why == 'goes on from its checkpoint'
    return run, arguments


# Killed. Torch takes seconds to import, so one process imports it and then forks its victims, each
# the real `encapnet run`.


def fork(arguments, prepare=lambda: None) -> int:
    "`encapnet ARGUMENTS` in a forked process; returns its id."
    if pid := os.fork():
        return pid
    code = 99
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        prepare()
        main(arguments)
    except SystemExit as error:
        code = error.code or 0
    finally:
        os._exit(code)


def ended(pid) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up():
    """What every victim would have to load and look up for itself. Nothing is computed: threads
    do not survive a fork."""
    import encapnet.bench.routing  # noqa: F401

    torch.set_num_threads(1)
    run = Run('nowhere', tiny())
    Trainer(run.config, 10, torch.device('cpu'))
    (
        provenance(),
        freshness.code_of(run.config),
        load('synthetic', 'train'),
        load('synthetic', 'test'),
        # otherwise asked of a process of its own, which imports torch again
        needs.data_hashes(['synthetic']),
    )


def reference(folder, config) -> tuple[dict, float]:
    run, arguments = place(folder, config)
    began = time.perf_counter()
    assert ended(fork(arguments)) == 0
    return outcome(run), time.perf_counter() - began


def kill_at_random(folder: Path, count=25):
    "Kill runs at random instants, each run up to five times, then let it end."
    expected, seconds = reference(folder / 'undisturbed', tiny())
    instants, kills, lives = random.Random(0), 0, 0
    while kills < count:
        run, arguments = place(folder / f'life{(lives := lives + 1)}')
        for _ in range(5):
            pid = fork(arguments)
            time.sleep(instants.uniform(0, seconds))
            # of a process that has ended, too: it is not waited for yet
            os.kill(pid, signal.SIGKILL)
            if ended(pid) != -signal.SIGKILL:
                break
            kills += 1
        assert ended(fork(arguments)) == 0
        assert outcome(run) == expected, f'life {lives}'
    print(json.dumps(dict(kills=kills, lives=lives)))


STEPS = ('open', 'fsync', 'replace', 'unlink', 'chmod')


def count_steps(at: int, tell=None):
    """Die before the `at`-th step that touches the disk, with half of the file if it is one that
    was about to be made safe."""
    seen = [0]

    def watch(name):
        step = getattr(os, name)

        def watched(*arguments, **options):
            seen[0] += 1
            if tell:
                Path(tell).write_text(str(seen[0]))
            if seen[0] == at:
                if (
                    name == 'fsync'
                    and (size := os.fstat(arguments[0]).st_size)
                    and os.path.isfile(f'/proc/self/fd/{arguments[0]}')
                ):
                    os.ftruncate(arguments[0], size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return watched

    for name in STEPS:
        setattr(os, name, watch(name))


def kill_at_every_step(folder: Path):
    "Kill a run before each of the steps by which it touches the disk; then let it end."
    config = tiny(epochs=2)
    expected, _ = reference(folder / 'undisturbed', config)
    _, arguments = place(folder / 'counted', config)
    assert ended(fork(arguments, lambda: count_steps(0, folder / 'steps'))) == 0
    steps = int((folder / 'steps').read_text())
    for at in range(1, steps + 1):
        run, arguments = place(folder / str(at), config)
        assert ended(fork(arguments, lambda at=at: count_steps(at))) == -signal.SIGKILL, at
        assert state(run).name in ('missing', 'interrupted', 'fresh'), at
        assert ended(fork(arguments)) == 0, at
        assert outcome(run) == expected, f'killed before step {at}'
    print(json.dumps(dict(steps=steps)))


def in_a_process_that_forks(function: str, folder) -> dict:
    code = (
        'from pathlib import Path; import test_faults as t; t.warm_up(); '
        f't.{function}(Path({str(folder)!r}))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_killed_at_random_instants_it_ends_the_same(tmp_path):
    assert in_a_process_that_forks('kill_at_random', tmp_path)['kills'] >= 25


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_killed_within_any_write_it_ends_the_same(tmp_path):
    assert in_a_process_that_forks('kill_at_every_step', tmp_path)['steps'] > 40


def test_a_power_cut_finds_the_content_before_the_name(tmp_path, monkeypatch):
    told = []

    def watch(name, describe):
        step = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda *arguments: (told.append(f'{name} {describe(*arguments)}'), step(*arguments))[1],
        )

    watch('fsync', lambda handle: 'folder' if os.path.isdir(f'/proc/self/fd/{handle}') else 'file')
    watch('replace', lambda old, new: Path(new).name)
    write_atomic(tmp_path / 'a', 'old')
    write_atomic(tmp_path / 'a', 'new', keep=tmp_path / 'b')
    assert told == [
        'fsync file',
        'replace a',
        'fsync folder',
        'fsync file',
        'replace b',
        'replace a',
        'fsync folder',
    ]


# Other processes.


@pytest.fixture
def started():
    "Start processes that do not outlive the test."
    children = []

    def start(*arguments, **options):
        options = (
            dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
            | options
        )
        children.append(subprocess.Popen(arguments, **options))
        return children[-1]

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.mark.slow
def test_a_second_process_gives_way_and_ctrl_c_keeps_the_checkpoint(tmp_path, started, capsys):
    run, arguments = place(tmp_path, tiny(LONG))
    first = started(*CLI, *arguments)
    assert json.loads(first.stdout.readline())['epoch'] == 1

    train(arguments, code=1)
    (line,) = complaint(capsys)
    assert (
        f'table1/f_master_aide ({run.config.key}) is being trained by another process, since 20'
        in line
    )
    with pytest.raises(StudyError, match='1 of 1 runs are not there'):
        launch.ensure([run], Request(missing='fail'))
    assert launch.ensure([run], Request(missing='show'))[run.config.key].name == 'running'
    assert first.poll() is None and not run.path('FAILED').exists()

    epochs = json.loads(first.stdout.readline())['epoch']
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=600)
    assert first.returncode == 130
    assert (
        err
        == 'encapnet: stopped; what was finished is kept, and the same command goes on from the '
        'last checkpoint\n'
    )
    assert state(run).name == 'interrupted' and state(run).why == 'goes on from its checkpoint'
    trainer, said = Trainer(run.config, 10, torch.device('cpu')), []
    with run.locked():
        assert len(resume(run, trainer, said.append)) >= epochs
    assert said == []


@pytest.mark.slow
def test_ctrl_c_on_a_report_ends_its_child(tmp_path, started):
    folder = tmp_path / 'runs'
    report = started(
        *CLI,
        'reproduce',
        'softmax_axis',  # where nothing is measured first
        '--profile',
        'smoke',
        '--runs',
        str(folder),
        '--reports',
        str(tmp_path / 'reports'),
    )
    wait_for(lambda: list(folder.glob('*/*/*/manifest.json')) or report.poll() is not None)
    report.send_signal(signal.SIGINT)
    _, err = report.communicate(timeout=600)
    assert report.returncode == 130, err
    assert err.splitlines()[-1].startswith('encapnet: stopped; what was finished is kept')
    assert not [lock for lock in folder.glob('*/*/*/.lock') if run_folder._held(lock)], (
        'its child is at work still'
    )
    assert not list(folder.glob('*/*/*/FAILED'))


@pytest.mark.slow
def test_an_orphan_is_waited_for(tmp_path, started, capsys, monkeypatch, smooth):
    """A report is killed; its child trains on, and a second report neither fails the run nor
    disturbs it."""
    run, _ = place(tmp_path)
    code = (
        'import subprocess, sys; from pathlib import Path; from encapnet.study import launch; '
        'import test_faults as t\n'
        'class Told(subprocess.Popen):\n'
        '    def __init__(self, *a, **k): super().__init__(*a, **k); print(self.pid, flush=True)\n'
        'subprocess.Popen = Told\n'
        f'launch.ensure([t.place({str(tmp_path)!r})[0]], t.asked({str(tmp_path)!r}))'
    )
    parent = started(sys.executable, '-c', code, cwd=Path(__file__).parent)
    child = int(parent.stdout.readline())
    wait_for(lambda: state(run).name == 'running' and run.path('manifest.json').exists())
    os.killpg(child, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    naps = []

    def nap(seconds):
        naps.append(seconds)
        os.killpg(child, signal.SIGCONT)
        time.sleep(0.1)

    monkeypatch.setattr(launch, 'sleep', nap)
    assert launch.ensure([run], asked(tmp_path))[run.config.key].name == 'fresh'
    assert naps
    told = capsys.readouterr().err
    assert (
        told.count('table1/f_master_aide: running since 20') == 1
        and 'in another process' in told
        and 'waiting for it' in told
    )
    assert outcome(run) == smooth


# Disks.


@contextlib.contextmanager
def full_disk(name, after=0, number=errno.ENOSPC):
    "A disk that has no room for what would become `name`, once it was written `after` times."
    fsync, seen = os.fsync, [0]

    def broken(handle):
        if Path(os.readlink(f'/proc/self/fd/{handle}')).name.startswith(f'.{name}.'):
            seen[0] += 1
            if seen[0] > after:
                raise OSError(number, os.strerror(number))
        fsync(handle)

    with patch('os.fsync', broken):
        yield


@pytest.mark.parametrize(
    ('name', 'after', 'epoch'),
    [
        ('metrics.jsonl', 2, 1),
        ('checkpoint.safetensors', 1, 1),
        ('manifest.json', 3, 2),
        ('table1.jsonl', 0, 3),
        ('DONE', 0, 3),
    ],
)
def test_full_disk(name, after, epoch, tmp_path, capsys, smooth):
    run, arguments = place(tmp_path)
    with full_disk(name, after):
        train(arguments, code=1)
    (line,) = complaint(capsys)
    assert (
        f'{name}: No space left on device; last good checkpoint: epoch {epoch}' in line
        and 'cannot write' in line
    )
    assert state(run).name == 'failed' and 'No space left' in state(run).why
    assert (
        _parse(run.path('checkpoint.safetensors').read_bytes())[0]['history'][-1]['epoch'] == epoch
    )
    assert not list(tmp_path.rglob('*.tmp'))
    train(arguments)
    assert outcome(run) == smooth


def test_a_disk_too_full_to_say_so(tmp_path, capsys, smooth):
    run, arguments = place(tmp_path)
    with full_disk('checkpoint.safetensors', 2), full_disk('FAILED'):
        train(arguments, code=1)
    assert 'last good checkpoint: epoch 2' in complaint(capsys)[0]
    assert state(run).name == 'interrupted'
    train(arguments)
    assert outcome(run) == smooth


@pytest.mark.parametrize('folder', ['runs', 'reports'])
def test_read_only_is_told_before_training(folder, tmp_path, capsys, smooth):
    run, arguments = place(tmp_path)
    probe = tempfile.TemporaryFile

    def refusing(*positional, dir=None, **options):  # noqa: A002
        if Path(dir).is_relative_to(tmp_path / folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return probe(*positional, dir=dir, **options)

    with (
        patch('tempfile.TemporaryFile', refusing),
        patch('encapnet.training.fit.Trainer', side_effect=AssertionError),
    ):
        train(arguments, code=1)
    (line,) = complaint(capsys)
    where = run.folder if folder == 'runs' else ledger_of(run).parent
    assert line == f'encapnet: cannot write to {where}: Read-only file system'
    assert state(run).name == 'missing'
    train(arguments)
    assert outcome(run) == smooth


def mounted(folder, size, then) -> list[str] | None:
    """A shell that runs a command with a small file system on a folder, seen by nobody else; None
    where that is not allowed."""
    allowed = shutil.which('unshare') and subprocess.run(
        ['unshare', '-m', 'mount', '-t', 'tmpfs', 'none', str(folder)], capture_output=True
    )
    if not allowed or allowed.returncode:
        return None
    return [
        'unshare',
        '-m',
        'sh',
        '-c',
        f'mount -t tmpfs -o size={size} none "$0" && {then} exec "$@"',
        str(folder),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('folder', 'size', 'then', 'told'),
    [
        (
            'runs',
            '80k',
            '',
            'checkpoint.safetensors: No space left on device; last good checkpoint: epoch 0',
        ),
        ('runs', '1m', 'mount -o remount,ro "$0" &&', 'Read-only file system'),
        ('reports', '1m', 'mount -o remount,ro "$0" &&', 'Read-only file system'),
    ],
)
def test_real_disks(folder, size, then, told, tmp_path):
    "Full and read-only as the kernel says it; root is stopped by these, by permissions it is not."
    _, arguments = place(tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    if (inside := mounted(tmp_path / folder, size, then)) is None:
        pytest.skip(
            'NOT RUN: no file system may be mounted here; the same faults are simulated by other '
            'tests'
        )
    done = subprocess.run([*inside, *CLI, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and done.stdout == ''
    (line,) = done.stderr.splitlines()
    assert line.startswith('encapnet: cannot write ') and told in line


# Damaged files.


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.999])
def test_truncated_checkpoint_goes_on_from_the_one_before(share, tmp_path, capsys, smooth):
    run, arguments = interrupted(tmp_path)
    cut(run.path('checkpoint.safetensors'), share)
    train(arguments)
    shown = capsys.readouterr()
    assert 'table1/f_master_aide: checkpoint.safetensors is passed over: damaged' in shown.err
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert [event['epoch'] for event in events if 'epoch' in event] == [2, 3]
    assert 'damaged' in events[0]['note']
    assert outcome(run) == smooth


def test_both_checkpoints_damaged_start_over(tmp_path, capsys, smooth):
    run, arguments = interrupted(tmp_path)
    for name in CHECKPOINTS:
        cut(run.path(name))
    train(arguments)
    assert 'no checkpoint is left, training starts over' in capsys.readouterr().err
    assert outcome(run) == smooth


def test_a_damaged_checkpoint_never_displaces_a_good_one(tmp_path, smooth):
    run, arguments = interrupted(tmp_path)
    cut(run.path('checkpoint.safetensors'))
    with full_disk('checkpoint.safetensors'):
        train(arguments, code=1)
    assert not run.path('checkpoint.safetensors').exists()
    train(arguments)
    assert outcome(run) == smooth


@pytest.mark.parametrize('damage', ['', '{"epoch": 1, "tr', '\0' * 100])
def test_half_written_metrics_are_rebuilt(damage, tmp_path, smooth):
    run, arguments = interrupted(tmp_path)
    run.path('metrics.jsonl').write_text(damage)
    train(arguments)
    assert outcome(run) == smooth


def test_metrics_of_a_whole_run_are_rebuilt(tmp_path, smooth):
    run, arguments = place(tmp_path)
    train(arguments)
    run.path('metrics.jsonl').write_text('')
    run.path('DONE').unlink()
    train(arguments)
    assert outcome(run) == smooth


@pytest.mark.parametrize(
    'damage',
    [
        '',
        '{',
        '[]',
        '\0\0',
        '{"threads": "many", "seconds": -5, "started": 3}',
        '{"threads": -1, "seconds": null}',
    ],
)
@pytest.mark.parametrize('name', ['config.json', 'manifest.json'])
def test_damaged_description(name, damage, tmp_path, capsys, smooth):
    run, arguments = interrupted(tmp_path)
    if name == 'config.json' and damage.startswith('{"'):
        damage = damage.replace('{', '{"schema_version": 1, ')
    run.path(name).write_text(damage)
    assert state(run).name == 'interrupted'
    train(arguments)
    told = capsys.readouterr().err
    if name == 'config.json':
        assert (
            'config.json was damaged' in told
            or f'config.json was not that of run {run.config.key}' in told
        )
    assert outcome(run) == smooth
    assert read_ledger(ledger_of(run))[0][0].provenance['seconds'] >= 0


def test_config_of_another_run_in_the_folder(tmp_path, capsys, smooth):
    run, arguments = interrupted(tmp_path)
    run.write('config.json', tiny(seed=7).model_dump(mode='json'))
    train(arguments)
    assert (
        f'config.json was not that of run {run.config.key} and is written again'
        in capsys.readouterr().err
    )
    assert outcome(run) == smooth


def test_a_folder_under_another_runs_name(tmp_path, capsys, smooth):
    other, arguments = place(tmp_path / 'other', tiny(seed=7))
    train(arguments)
    run, arguments = place(tmp_path / 'here')
    shutil.copytree(other.folder, run.folder)
    assert run_folder.finished(run) is None and state(run).name == 'interrupted'
    train(arguments)
    told = capsys.readouterr().err
    assert f'checkpoint.safetensors is passed over: belongs to run {other.config.key}' in told
    assert outcome(run) == smooth


def test_a_run_of_another_machine_is_taken_as_it_is(tmp_path):
    there, arguments = place(tmp_path / 'there')
    train(arguments)
    done = json.loads(there.path('DONE').read_text())
    done['provenance'] |= dict(device="another machine's processor", python='3.99.0')
    here, _ = place(tmp_path / 'here')
    shutil.copytree(there.folder, here.folder)
    here.write('DONE', done)
    assert state(here).name == 'fresh'
    with patch('encapnet.training.fit.Trainer', side_effect=AssertionError):
        for _ in range(2):
            assert fit(here, reports=tmp_path / 'here' / 'reports').model_dump(mode='json') == done
    assert json.loads(here.path('DONE').read_text()) == done
    assert [record.model_dump(mode='json') for record in read_ledger(ledger_of(here))[0]] == [done]


def test_torn_and_doubled_ledger_lines(tmp_path, smooth):
    run, arguments = place(tmp_path)
    train(arguments)
    ledger = ledger_of(run)
    (line,) = ledger.read_bytes().splitlines()
    other = line.replace(run.config.key.encode(), b'0' * 12)
    torn, strange = line[:100], b'{"schema_version": 1, "key": "\xff\xfe"'
    # and no newline at the end
    ledger.write_bytes(b'\n'.join([line, torn, line, other, strange, b'', other]))
    records, problems = read_ledger(ledger)
    assert [record.key for record in records] == [run.config.key]
    assert [problem.split(':')[0] for problem in problems] == [
        f'table1.jsonl, line {number}' for number in (2, 1, 4, 5, 7)
    ]
    run.path('DONE').unlink()
    train(arguments)
    assert outcome_of(ledger, run) == smooth['ledger']
    lines = ledger.read_bytes().splitlines()
    assert lines.count(torn) == lines.count(strange) == 1 and lines.count(other) == 2


def outcome_of(ledger, run):
    "The ledger's readable lines of a run, without the time it took."
    lines = [
        record.model_dump(mode='json')
        for record in read_ledger(ledger)[0]
        if record.key == run.config.key
    ]
    for line in lines:
        line['provenance'].pop('seconds')
    return lines


def test_stale_temporary_files_are_swept(tmp_path, smooth):
    run, arguments = interrupted(tmp_path)
    for folder, name in [
        (run.folder, 'checkpoint.safetensors'),
        (run.folder, 'DONE'),
        (ledger_of(run).parent, 'table1.jsonl'),
    ]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'.{name}.k2j4h6.tmp').write_text('half of it')
    other = ledger_of(run).parent / '.table2.jsonl.a1b2c3.tmp'
    other.write_text('somebody else is writing this')
    train(arguments)
    assert outcome(run)['left behind'] == [str(other)]
    other.unlink()
    assert outcome(run) == smooth


def test_processes_with_other_temporary_folders_lose_no_line(tmp_path):
    "Each enters eight records in one ledger, while others do; one of them by a link."
    (tmp_path / 'one').mkdir()
    (tmp_path / 'link.jsonl').symlink_to('one/table1.jsonl')
    code = (
        'import sys\n'
        'from encapnet.study.ledger import Record, append_ledger\n'
        'for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 8):\n'
        "    append_ledger(sys.argv[1], Record(key=f'{seed:012}', experiment='table1', row='x', "
        'config={}, outcome={}, provenance={}))'
    )
    writers = []
    for number, path in enumerate(['one/table1.jsonl', 'one/table1.jsonl', 'link.jsonl']):
        (own := tmp_path / f'tmp{number}').mkdir()
        command = [sys.executable, '-c', code, str(tmp_path / path), str(8 * number)]
        writers.append(subprocess.Popen(command, env=os.environ | {'TMPDIR': str(own)}))
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert len((tmp_path / 'one/table1.jsonl').read_text().splitlines()) == 24
    assert (tmp_path / 'link.jsonl').is_symlink()
    assert {path.name for path in (tmp_path / 'one').iterdir()} == {
        'table1.jsonl',
        '.table1.jsonl.lock',
    }


def test_a_lock_that_may_not_be_taken_is_one_line(tmp_path):
    """Made by another user in a folder that both may write; and whoever may write to the folder
    may take what we make."""
    (tmp_path / 'ledger').mkdir(mode=0o775)
    (tmp_path / 'ledger').chmod(0o775)
    record = Record(
        key='0' * 12, experiment='table1', row='x', config={}, outcome={}, provenance={}
    )
    ledger = tmp_path / 'ledger/table1.jsonl'
    append_ledger(ledger, record)
    assert (tmp_path / 'ledger/.table1.jsonl.lock').stat().st_mode & 0o777 == 0o664
    refusal = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with patch('filelock.FileLock.acquire', side_effect=refusal), pytest.raises(StudyError) as told:
        append_ledger(ledger, record)
    assert str(told.value) == f'cannot write {ledger}: Permission denied'


def test_what_another_process_writes_is_not_swept(tmp_path):
    """Whoever starts a training writes its configuration, while a process that trains takes the
    folder."""
    run = Run(tmp_path / 'runs', tiny())
    fsync, seen = os.fsync, []

    def look(handle):
        if not seen:
            seen.append(handle)
            with run.locked():
                assert len(list(run.folder.glob('.config.json.*.tmp'))) == 1
        fsync(handle)

    with patch('os.fsync', look):
        run_folder.write_config(run, print)
    assert (
        seen
        and run.read('config.json') == tiny().model_dump(mode='json')
        and not list(run.folder.glob('*.tmp'))
    )


def test_a_stranger_cannot_have_us_write_through_his_link(tmp_path, monkeypatch):
    (tmp_path / 'his').mkdir()
    (tmp_path / 'ours.txt').write_text('ours')
    (tmp_path / 'his/page.html').symlink_to('../ours.txt')
    # neither link nor folder is ours then
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, 'geteuid', lambda: somebody)
    if (tmp_path / 'his').stat().st_uid == 0:
        os.chown(tmp_path / 'his', 23456, -1)
        os.chown(tmp_path / 'his/page.html', 23456, -1, follow_symlinks=False)
    write_atomic(tmp_path / 'his/page.html', 'new')
    assert (tmp_path / 'ours.txt').read_text() == 'ours' and not (
        tmp_path / 'his/page.html'
    ).is_symlink()


# Versions: of files, and of the code.


def test_unknown_schema_versions_are_named_and_left_alone(tmp_path, capsys):
    told = 'schema version 2, this version of encapnet reads 1'
    run, arguments = interrupted(tmp_path)
    trainer = Trainer(run.config, 10, torch.device('cpu'))
    with patch('encapnet.training.checkpoint.SCHEMA', 2):
        later = pack(trainer, [])
    for name, content in [
        (
            'config.json',
            json.dumps(run.config.model_dump(mode='json') | dict(schema_version=2)).encode(),
        ),
        ('checkpoint.safetensors', later),
    ]:
        kept = run.path(name).read_bytes()
        run.path(name).write_bytes(content)
        train(arguments, code=1)
        (line,) = complaint(capsys)
        assert told in line and f'{run.path(name)}: ' in line
        assert run.path(name).read_bytes() == content and not run.path('FAILED').exists()
        run.path(name).write_bytes(kept)
    train(arguments)
    done = json.loads(run.path('DONE').read_text()) | dict(schema_version=2, more='than we know')
    run.write('DONE', done)
    assert state(run).name == 'stale' and told in state(run).why
    for asked in (arguments, [*arguments, '--retrain']):
        train(asked, code=1)
        assert told in complaint(capsys)[0] and run.read('DONE') == done
    ledger = ledger_of(run)
    later = ledger.read_text().replace('"schema_version": 1, "seal"', '"schema_version": 2, "seal"')
    ledger.write_text(later)
    assert (
        read_ledger(ledger)[0] == []
        and told in read_ledger(ledger)[1][0]
        and 'line 1' in read_ledger(ledger)[1][0]
    )
    run.path('DONE').unlink()
    train(arguments)
    assert ledger.read_text().startswith(later) and len(ledger.read_text().splitlines()) == 2


def other_code(change='encapnet.training.trainer:Trainer'):
    now = freshness.code_of

    def changed(config):
        code = now(config)
        return freshness.Code('0' * 12, code.definitions | {change: '0' * 8})

    return patch.object(freshness, 'code_of', changed)


def test_a_checkpoint_of_other_code_is_not_gone_on_from(tmp_path, capsys, smooth):
    with other_code():
        run, arguments = interrupted(tmp_path)
    assert state(run).name == 'interrupted'
    assert (
        state(run).why
        == 'starts over, its checkpoint is of other code (changed since: training.trainer.Trainer)'
    )
    train(arguments)
    shown = capsys.readouterr()
    assert 'checkpoint.safetensors is passed over: made by other code' in shown.err
    assert (
        'no checkpoint is left, training starts over (changed since: training.trainer.Trainer)'
        in shown.err
    )
    assert [
        json.loads(line).get('epoch') for line in shown.out.splitlines() if 'epoch' in line
    ] == [1, 2, 3]
    assert outcome(run) == smooth
    assert run.read('manifest.json')['code'] == smooth['ledger'][0]['provenance']['code']


def test_a_stale_run_keeps_its_record_until_there_is_a_new_one(tmp_path, smooth):
    run, arguments = place(tmp_path)
    with other_code():
        train(arguments)
    assert state(run).name == 'stale'
    old = run.read('DONE')
    train(arguments, code=1)
    arguments = [*arguments, '--retrain']
    with full_disk('checkpoint.safetensors', after=1):
        train(arguments, code=1)
    assert state(run).name == 'failed' and run.read('DONE') == old
    with patch.object(Trainer, 'epoch', side_effect=KeyboardInterrupt):
        train(arguments, code=130)
    assert state(run).name == 'stale' and run.read('DONE') == old
    train(arguments)
    assert run.read('DONE') != old
    assert outcome(run) == smooth | {'ledger': outcome(run)['ledger']}
    assert outcome(run)['ledger'][1:] == smooth['ledger'], 'the ledger holds both'


def test_code_edited_while_it_trains_does_not_enter_the_record(tmp_path, smooth):
    run, _ = place(tmp_path)
    edit = other_code()
    try:
        fit(
            run,
            reports=tmp_path / 'reports',
            bar=False,
            tell=lambda event: edit.start() if event.get('epoch') == 2 else None,
        )
        assert state(run).name == 'stale' and 'training.trainer.Trainer' in state(run).why
    finally:
        edit.stop()
    assert outcome(run) == smooth


def test_sources_that_change_are_seen_at_once(tmp_path, monkeypatch):
    "A notebook that stays open must not go on calling yesterday's number fresh."
    package = tmp_path / 'encapnet'
    shutil.copytree(Path(freshness.__file__).parents[1], package)
    code = (
        'from pathlib import Path; from encapnet.study import freshness; import test_faults as '
        't; from encapnet.study.planning import plan\n'
        'from encapnet.study.profiles import PROFILES\n'
        "config = plan('table1', PROFILES['smoke'], {'synthetic': '0' * 64}, rows=['f_master_aide'])[0]\n"
        "path, before = Path(freshness.__file__).parents[1]/'nn'/'losses.py', "
        'freshness.code_of(config)\n'
        'text = path.read_text()\n'
        "path.write_text(text + '# a comment\\n'); assert freshness.code_of(config) == before\n"
        "assert text.count('def margin_loss') == 1\n"
        "path.write_text(text.replace('def margin_loss(', 'def margin_loss(another, ')); after = "
        'freshness.code_of(config)\n'
        'print([name for name in before.definitions if after.definitions[name] != '
        'before.definitions[name]])'
    )
    environment = dict(os.environ, PYTHONPATH=f'{tmp_path}{os.pathsep}{Path(__file__).parent}')
    done = subprocess.run(
        [sys.executable, '-c', code.replace('import test_faults as t; ', '')],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "['encapnet.nn.losses:margin_loss']", done.stderr


# Clocks, and numbers that are none.


def test_a_clock_set_back_does_no_harm(tmp_path, smooth):
    run, arguments = interrupted(tmp_path)
    manifest = run.read('manifest.json')

    class Yesterday(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime(1970, 1, 2, tzinfo=UTC)

    wall = iter(range(10**6, 0, -1))
    with (
        patch('encapnet.training.fit.datetime', Yesterday),
        patch('time.time', lambda: float(next(wall))),
    ):
        fit(run, reports=tmp_path / 'reports', bar=False, deadline=time.monotonic() + 600)
    assert run.read('manifest.json')['started'] == '1970-01-02T00:00:00+00:00' < manifest['started']
    assert run.read('manifest.json')['seconds'] >= manifest['seconds'] > 0
    assert outcome(run) == smooth


NAN = """
from encapnet.nn import losses
calm, calls = losses.margin_loss, []
def exploding(scores, labels):
    calls.append(1)
    return calm(scores, labels) * (float("nan") if len(calls) == 5 else 1)
losses.margin_loss = exploding
"""


@pytest.mark.slow
def test_a_loss_that_is_no_number_fails_the_row(tmp_path, capsys, smooth):
    """Two training steps and one test batch an epoch: the fifth loss is the second epoch's second
    step."""
    run, arguments = place(tmp_path)
    why = 'the loss is nan at step 2 of epoch 2; last good checkpoint: epoch 1'
    with patch('encapnet.standin.ENTRY', NAN + ENTRY):
        standing = from_store([run], asked(tmp_path))
    assert f'table1/f_master_aide: {why}' in capsys.readouterr().err
    assert standing.records == [] and len(run_frame(standing)) == 0
    assert standing.problems == [f'f_master_aide ({run.config.key}): failed, {why}']
    assert not ledger_of(run).exists() and not run.path('DONE').exists()
    assert from_store([run], Request(missing='show')).problems == standing.problems
    from_store([run], replace(asked(tmp_path), retrain=True))
    assert outcome(run) == smooth


def test_an_explosion_in_the_very_last_step_is_no_number_either(tmp_path, capsys):
    run, arguments = place(tmp_path)
    step, steps = torch.optim.Adam.step, []

    def exploding(self, *given):
        step(self, *given)
        steps.append(1)
        if len(steps) == 6:
            with torch.no_grad():
                for parameter in self.param_groups[0]['params']:
                    parameter.fill_(float('nan'))

    with patch.object(torch.optim.Adam, 'step', exploding):
        train(arguments, code=1)
    assert (
        'the test loss is nan after epoch 3; last good checkpoint: epoch 2' in complaint(capsys)[0]
    )
    assert state(run).name == 'failed' and not ledger_of(run).exists()


def test_a_measurement_holds_its_code_too(tmp_path):
    from encapnet.study.planning import measurements

    run = Run(tmp_path, measurements('a processor')[0])
    with run.locked():
        before = run.code
        with other_code('encapnet.bench.costs:measure'):
            record = finish(run, dict(parameters=1), 'a processor')
    assert record.provenance['definitions'] == before.definitions and state(run).name == 'fresh'


def test_files_named_like_pythons_own_modules(tmp_path):
    "In the folder that a command is typed in; what it starts does not look there."
    for name in ('random', 'types', 'email', 'code', 'token'):
        (tmp_path / f'{name}.py').write_text("raise ImportError('taken for another')\n")
    command = Path(sys.executable).with_name('encapnet')
    done = subprocess.run(
        [
            command,
            'run',
            'table1/c_cnn_shape',
            '--profile',
            'smoke',
            '--runs',
            'runs',
            '--reports',
            'reports',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_modules_of_the_users_own_by_python_m(tmp_path):
    for name in ('torch', 'typer', 'random', 'pickle'):
        (tmp_path / f'{name}.py').write_text("raise ImportError('taken for another')\n")
    done = subprocess.run(
        [sys.executable, '-m', 'encapnet', 'device'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)['device'], done.stderr


def test_a_place_among_others_is_not_handed_down(tmp_path, monkeypatch, smooth):
    "A shell within a job of torchrun has these: each training is a process by itself all the same."
    inherited = dict(
        RANK='1',
        WORLD_SIZE='4',
        LOCAL_RANK='1',
        LOCAL_WORLD_SIZE='4',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='29500',
    )
    for name, value in (
        inherited | dict(GROUP_RANK='0', ROLE_WORLD_SIZE='4', TORCHELASTIC_USE_AGENT_STORE='True')
    ).items():
        monkeypatch.setenv(name, value)
    run, _ = place(tmp_path)
    assert launch.ensure([run], asked(tmp_path))[run.config.key].name == 'fresh'
    assert outcome(run) == smooth
    with child_process(['device']) as (child, _):
        assert not [
            name
            for name in dict(pair.split('=', 1) for pair in environment_of(child))
            if PLACE.fullmatch(name)
        ]
    for environment in ranks._environments(2):
        assert environment['WORLD_SIZE'] == '2' and not [
            name for name in environment if name.startswith(('TORCHELASTIC_', 'GROUP_', 'ROLE_'))
        ]


def environment_of(child) -> list[str]:
    return [pair for pair in Path(f'/proc/{child.pid}/environ').read_text().split('\0') if pair]


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        (
            dict(RANK='0', WORLD_SIZE='2'),
            'one of several processes; not set: LOCAL_RANK, '
            'MASTER_ADDR, MASTER_PORT; expected all that torchrun',
        ),
        (
            dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='localhost'),
            'several processes; not set: MASTER_PORT; expected',
        ),
        (
            dict(
                RANK='0', WORLD_SIZE='2', LOCAL_RANK='0', MASTER_ADDR='localhost', MASTER_PORT='x'
            ),
            "MASTER_PORT='x' in the environment must be",
        ),
        (
            dict(RANK='2', WORLD_SIZE='2'),
            'RANK=2 and WORLD_SIZE=2 in the environment do not fit; expected a rank from 0 to 1',
        ),
        (
            dict(RANK='1'),
            'RANK=1 and WORLD_SIZE=1 in the environment do not fit; expected a rank from 0 to 0',
        ),
    ],
)
def test_half_of_what_launchers_set(tmp_path, monkeypatch, capsys, given, told):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    train(
        [
            'run',
            'table1/c_cnn_shape',
            '--profile',
            'smoke',
            '--runs',
            str(tmp_path / 'runs'),
            '--reports',
            str(tmp_path / 'reports'),
        ],
        code=2,
    )
    (line,) = complaint(capsys)
    assert told in line and not (tmp_path / 'reports').exists()


def test_a_polite_request_to_end_ends_the_children_too(tmp_path, started):
    """While rows are measured, one by one; the process then ends by the signal, as whoever sent
    it expects."""
    where = ['--runs', str(tmp_path / 'runs'), '--reports', str(tmp_path / 'reports')]
    report = started(*CLI, 'reproduce', 'table1', '--profile', 'smoke', *where)
    wait_for(lambda: list(tmp_path.glob('runs/table1_cost/*/*/.lock')) or report.poll() is not None)
    children = psutil.Process(report.pid).children(recursive=True)
    report.terminate()
    _, err = report.communicate(timeout=600)
    assert report.returncode == -signal.SIGTERM and 'Traceback' not in err, err
    assert children and not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs a file that is always full')
@pytest.mark.parametrize('words', ['', '2>/dev/full', '2>&-', '>&- 2>&- <&-'])
def test_words_that_cannot_be_written_stop_no_training(tmp_path, words):
    where = f'--runs {tmp_path / "runs"} --reports {tmp_path / "reports"}'
    command = (
        f'exec {sys.executable} -P -c "{ENTRY}" run table1/c_cnn_shape --profile '
        f'smoke {where} {words}'
    )
    done = subprocess.run(['sh', '-c', command], capture_output=True, text=True)
    assert done.returncode == 0 and list(tmp_path.glob('runs/table1/c_cnn_shape/*/DONE')), (
        done.stderr
    )


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs a file that is always full')
def test_data_that_cannot_be_written_are_a_failure(tmp_path):
    "And what was computed until then is kept."
    run, arguments = place(tmp_path)
    for redirected, why in [
        ('>/dev/full', 'No space left on device'),
        ('>&-', 'Bad file descriptor'),
    ]:
        command = f'exec {sys.executable} -P -c "{ENTRY}" {" ".join(arguments)} {redirected}'
        done = subprocess.run(['sh', '-c', command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (
            1,
            f'encapnet: standard output cannot be written: {why}\n',
        )
    assert run.path('DONE').exists() or run.path('checkpoint.safetensors').exists()
