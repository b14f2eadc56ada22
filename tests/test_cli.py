"""The command line: where every row stands, what one run is and how it is asked for."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext

import pytest

from encapnet.data.content import fingerprint
from encapnet.study.commands import command_for
from encapnet.cli.minutes import in_minutes
from encapnet.cli.status import epochs_done

from encapnet.cli.main import main
from encapnet.show.page import publish
from encapnet.study import child, launch, needs
from encapnet.errors import StudyError
from encapnet.study.config import RunConfig
from encapnet.study.experiments import EXPERIMENTS
from encapnet.study.planning import BENCHES, measurements, plan
from encapnet.study.profiles import PROFILES
from encapnet.study.request import Request
from encapnet.study.run import Run, finish
from encapnet.training.fit import fit

pytestmark = pytest.mark.usefixtures('forked')

DEVICE, TRAINING = 'a machine, 2 threads', 'a machine, 1 threads'


@pytest.fixture(scope='module')
def hashes():
    return {'synthetic': fingerprint('synthetic')}


@pytest.fixture
def ends(tmp_path, monkeypatch, capsys):
    """Run the command line here, in an empty folder; its children in this process, on a machine
    of a known name."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    def call(*arguments, tell=lambda event: None, said=lambda text: None):
        if arguments == ('device',):
            return [dict(device=DEVICE, training=TRAINING)]
        code, told, words = run(*arguments)
        assert code == 0, words
        return [json.loads(line) for line in told.splitlines()]

    for module in (child, needs):
        monkeypatch.setattr(module, 'call', call)
    monkeypatch.setattr(launch, 'forks', lambda purpose: nullcontext(call))
    monkeypatch.setattr(needs, '_KNOWN', {})
    monkeypatch.chdir(tmp_path)
    return run


def standing(ends, *arguments):
    "What `encapnet status --json` says, by row."
    code, told, said = ends('status', '--profile', 'smoke', '--json', *arguments)
    assert (code, said) == (0, '')
    return {line['row']: line for line in map(json.loads, told.splitlines())}


def smoke(hashes, row, store='runs', **change):
    config = plan('table1', PROFILES['smoke'], hashes, 1, [row])[0]
    return Run(store, config.model_copy(update=change))


OUTCOME = dict(
    error=50.0,
    errors=[60.0, 50.0],
    losses=[0.5, 0.4],
    train_loss=0.4,
    test_images=64,
    parameters=7,
    source='synthetic',
)
TRAINED = sum(
    not row.home and (not row.data or 'synthetic' in row.data)
    for rows in EXPERIMENTS.values()
    for row in rows.values()
)
MEASURED = 12


# Status
# -----------------------------------------------------------------------------------------------------------------


def test_every_row_is_listed_once_with_a_command_that_gets_it(ends):
    lines = standing(ends)
    assert len(lines) == TRAINED + MEASURED and {line['state'] for line in lines.values()} == {
        'missing'
    }
    for row, line in lines.items():
        assert line['minutes'] is None and line['why'] == ''
        words = shlex.split(line['command'])
        assert words[:5] == ['encapnet', 'run', row, '--profile', 'smoke']
        code, told, said = ends(*words[1:], '--show')
        assert code == 0 and said.strip() == line['command'], 'the command is the exact one'
        assert f'{json.loads(told)["experiment"]}/{json.loads(told)["row"]}' == row


def test_states_with_their_reasons(ends, hashes):
    finish(smoke(hashes, 'a_dynamic'), OUTCOME, TRAINING, seconds=90)
    old = finish(smoke(hashes, 'b_em'), OUTCOME, TRAINING, seconds=30)
    stale = old.model_copy(
        update=dict(
            provenance=old.provenance
            | dict(code='0' * 12, definitions={'encapnet.nn.losses:margin_loss': '1'})
        )
    )
    smoke(hashes, 'b_em').write('DONE', stale.model_dump_json())
    smoke(hashes, 'c_cnn_shape').write('FAILED', dict(why='the loss is nan at step 3 of epoch 1'))
    running = smoke(hashes, 'd_cnn_parameters')
    running.write('manifest.json', dict(started='2026-01-02T03:04:05+00:00'))
    with running.locked():
        lines = standing(ends)
    rows = ('a_dynamic', 'b_em', 'c_cnn_shape', 'd_cnn_parameters', 'e_master')
    a, b, c, d, e = (lines[f'table1/{row}'] for row in rows)
    assert (a['state'], a['why'], a['command'], a['minutes']) == ('fresh', '', '', 1.5)
    assert (
        b['state'] == 'stale'
        and b['why'].startswith('changed since: ')
        and b['command'].endswith(' --retrain')
    )
    assert (c['state'], c['why']) == ('failed', 'the loss is nan at step 3 of epoch 1') and c[
        'command'
    ].endswith(' --retrain')
    assert d['state'] == 'running' and '2026-01-02T03:04:05' in d['why'] and d['command'] == ''
    assert (
        e['state'] == 'missing'
        and e['command'] == 'encapnet run table1/e_master --profile smoke --seed 0 --data synthetic'
    )


def test_an_interrupted_run_says_where_it_goes_on(ends, hashes):
    from encapnet.errors import OutOfTime

    run = smoke(
        hashes, 'c_cnn_shape', schedule=plan('table1', PROFILES['smoke'], hashes, 1)[0].schedule
    )
    finish(smoke(hashes, 'c_cnn_shape', seed=1), OUTCOME, TRAINING, seconds=120)

    def stop(event):
        raise OutOfTime('enough')

    with pytest.raises(OutOfTime):
        fit(run, tell=stop, bar=False)
    assert epochs_done(run) == 1
    line = standing(ends)['table1/c_cnn_shape']
    assert (
        line['state'] == 'interrupted'
        and line['why'] == 'goes on after epoch 1 of 2'
        and line['minutes'] == 1.0
    )
    checkpoint = run.path('checkpoint.safetensors')
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert epochs_done(run) == 0, 'a checkpoint that is cut is none'
    checkpoint.write_bytes(b'')
    assert epochs_done(run) == 0


def test_minutes_come_from_records_of_the_store_and_of_the_ledger(ends, hashes):
    """Here from here; for other rows by what they cost elsewhere, relative to rows known here;
    and not by guessing."""
    finish(
        smoke(hashes, 'a_dynamic', 'elsewhere'), OUTCOME, 'another machine', 'reports', seconds=600
    )
    finish(
        smoke(hashes, 'c_cnn_shape', 'elsewhere'), OUTCOME, 'another machine', 'reports', seconds=60
    )
    assert all(line['minutes'] is None for line in standing(ends).values())
    finish(smoke(hashes, 'c_cnn_shape'), OUTCOME, TRAINING, seconds=120)
    for config in measurements(DEVICE, 2)[:1]:
        finish(Run('runs', config), OUTCOME, DEVICE, seconds=12)
    minutes = {
        row: line['minutes'] for row, line in standing(ends).items() if line['minutes'] is not None
    }
    assert minutes == {
        'table1/c_cnn_shape': 2.0,
        'table1/a_dynamic': 20.0,
        'table1_cost/a_dynamic': 0.2,
    }


def test_the_table_is_aligned_and_ends_in_a_sum(ends, hashes):
    finish(smoke(hashes, 'c_cnn_shape'), OUTCOME, TRAINING, seconds=120)
    smoke(hashes, 'a_dynamic').write('FAILED', dict(why='no space left on\x1b[31m device'))
    code, told, said = ends('status', '--profile', 'smoke')
    lines = told.splitlines()
    assert code == 0 and lines[0].split() == ['row', 'data', 'seed', 'state', 'minutes', 'command']
    assert (
        len(lines) == 1 + TRAINED + MEASURED + 1
        and lines[2] == r'    no space left on\x1b[31m device'
    )
    edges = {line.index('encapnet run') for line in lines if 'encapnet run' in line}
    assert edges == {lines[0].index('command')}
    rows = TRAINED + MEASURED
    assert (
        said == f'1 of {rows} fresh or running; the rest: how long they take '
        'here is not known yet\n'
    )


def test_minutes_of_which_little_is_known():
    "A sum of what is known; nothing is called 0.0 minutes for want of knowledge."
    assert in_minutes([]) == in_minutes([None]) == 'how long they take here is not known yet'
    assert (
        in_minutes([1.5, 0.25], ', one after the other') == 'about 1.8 minutes, one after the other'
    )
    assert in_minutes([3.0, None]) == 'about 3.0 minutes, and 1 whose time is not known yet'


def test_everything_is_announced_before_it_begins(ends, hashes):
    """The reader learns first how much there is to do; a row that several reports share is
    counted once."""
    finish(smoke(hashes, 'c_cnn_shape'), OUTCOME, TRAINING, seconds=120)
    smoke(hashes, 'd_cnn_parameters').write(
        'config.json', smoke(hashes, 'd_cnn_parameters').config.model_dump_json()
    )
    code, told, said = ends('reproduce', '--all', '--profile', 'smoke', '--max-minutes', '0')
    announced, failed = said.splitlines()
    count = (
        TRAINED
        + MEASURED
        + sum(len(needs.benched(name, Request(PROFILES['smoke']))) for name in BENCHES)
    )
    assert code == 75 and told == '' and failed.startswith('encapnet: time is up before ')
    assert (
        announced
        == f'{count - 1} of {count} runs are to be made: how long they take here is not known yet'
    )


def test_absent_data_hide_nothing_else(ends):
    """What the store remembers of an absent set is shown, the rest says what is missing and how
    to get it."""
    finish(
        Run('runs', plan('table1', PROFILES['paper'], {'cifar10': '1' * 64}, 1, ['e_master'])[0]),
        OUTCOME,
        TRAINING,
        seconds=60,
    )
    Run(
        'runs',
        config := plan('table1', PROFILES['paper'], {'cifar10': '1' * 64}, 1, ['e_master'])[0],
    ).write('config.json', config.model_dump_json())
    code, told, said = ends('status', '--profile', 'paper', '--seeds', '1', '--json')
    lines = [json.loads(line) for line in told.splitlines()]
    assert code == 0 and len(lines) == 2 * TRAINED + MEASURED
    found = {(line['row'], line['data']): line for line in lines}
    assert found['table1/e_master', 'cifar10']['state'] == 'fresh'
    other = found['table1/e_master', 'mnist']
    assert (other['state'], other['command']) == (
        'no data',
        'encapnet data fetch mnist --data-root data',
    )
    assert other['why'].startswith('mnist is not embedded: give its folder by --data-root')
    code, told, said = ends('status', '--profile', 'paper')
    assert (
        code == 0
        and '\nno data: mnist: mnist is not embedded: ' in said
        and 'not embedded' not in told
    )


def test_status_is_light(tmp_path):
    "The process that the user waits for loads no torch, no pandas, no papermill."
    code = (
        'import sys\nfrom encapnet.cli.main import main\n'
        "try: main(['status', '--profile', 'smoke', '--json'])\n"
        'except SystemExit as stop: assert not stop.code, stop.code\n'
        "print('loaded:', *({'torch', 'torchvision', 'matplotlib', 'pandas', 'papermill'} & "
        'sys.modules.keys()), file=sys.stderr)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=dict(os.environ),
    )
    assert (
        done.stderr == 'loaded:\n'
        and len(done.stdout.splitlines()) == TRAINED + MEASURED
        and not list(tmp_path.iterdir())
    )


def test_failed_runs_are_counted_and_end_the_command_with_1(ends, monkeypatch):
    "Now or at an earlier time: the pages are there, but not all that they should show."
    made = []
    monkeypatch.setattr(publish, 'publish_all', lambda chosen, workers: made.extend(chosen) or [])
    needed = needs.needed('fig2', Request(PROFILES['smoke']))
    for run in needed[1:]:
        run.write('FAILED', dict(why='the loss is nan at step 3'))
    finish(needed[0], OUTCOME, TRAINING)
    code, told, said = ends('reproduce', 'fig2', '--profile', 'smoke')
    assert code == 1 and told == '' and len(made) == 1
    expected = f'encapnet: {len(needed) - 1} of {len(needed)} runs failed ({needed[1].name}'
    assert said.splitlines()[-1].startswith(expected), said
    assert said.endswith(', the first: the loss is nan at step 3; --retrain tries them again\n')
    assert ends('reproduce', 'fig2', '--profile', 'smoke', '--missing', 'show')[0] == 0, (
        'it was asked to show what there is'
    )


def test_a_run_that_fails_on_one_data_set_is_tried_on_the_others(ends, monkeypatch):
    tried = []

    def fail(config, *more):
        tried.append(config.data.name)
        if config.data.name == 'synthetic':
            raise StudyError('the loss is nan')

    monkeypatch.setattr('encapnet.cli.run._run_one', fail)
    code, told, said = ends(
        'run', 'table1/c_cnn_shape', '--profile', 'smoke', '--data', 'synthetic,digits'
    )
    assert (code, tried) == (1, ['synthetic', 'digits']), said
    assert said == 'the loss is nan\nencapnet: 1 of 2 runs failed, on synthetic\n'


# One run
# ----------------------------------------------------------------------------------------------------------------


def test_show_prints_configuration_and_command_and_trains_nothing(ends, tmp_path, hashes):
    code, told, said = ends(
        'run',
        'table1/f_master_aide',
        '--profile',
        'smoke',
        '--seed',
        '3',
        '--show',
        '--runs',
        'the store',
    )
    config = RunConfig.model_validate_json(told)
    assert code == 0 and (config.row, config.seed, config.data.sha256) == (
        'f_master_aide',
        3,
        hashes['synthetic'],
    )
    assert (
        said
        == 'encapnet run table1/f_master_aide --profile smoke --seed 3 --data synthetic --runs '
        "'the store'\n"
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / 'config.json').write_text(told)
    code, again, said = ends('run', '--config', 'config.json', '--show')
    assert (code, again, said) == (0, told, 'encapnet run --config config.json\n')


def test_a_run_that_is_there_is_not_trained_again(ends, hashes):
    run = ('run', 'table1/c_cnn_shape', '--profile', 'smoke', '--reports', '')
    code, told, said = ends(*run)
    assert (code, told) == (0, '') and 'table1/c_cnn_shape on synthetic, seed 0: error ' in said
    done = smoke(hashes, 'c_cnn_shape').path('DONE')
    before = done.stat().st_mtime_ns
    for more in ((), ('--retrain',)):
        code, told, said = ends(*run, *more)
        assert code == 0 and ', there already)' in said and done.stat().st_mtime_ns == before


def test_commands_name_what_is_not_usual(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my data').mkdir()
    config = plan('table1', PROFILES['quick'], {'digits': '0' * 64}, 1, ['a_dynamic'])[0]
    usual = 'encapnet run table1/a_dynamic --profile quick --seed 0 --data digits'
    assert command_for(config, Request()) == usual
    assert (
        command_for(config, Request(data_root='my data', runs='r', reports='p'), retrain=True)
        == f"{usual} --data-root 'my data' --runs r --reports p --retrain"
    )
    cost = 'encapnet run table1_cost/a_dynamic --profile short'
    assert command_for(measurements('x')[0], Request(PROFILES['short'], data_root='.')) == cost


EVERY = [(experiment, row) for experiment, rows in EXPERIMENTS.items() for row in rows]
EVERY += [('table1_cost', config.row) for config in measurements('')]


@pytest.mark.parametrize('profile', ['smoke', 'paper'])
def test_every_row_there_is_can_be_shown(ends, profile, monkeypatch):
    """Of every experiment: a configuration that is the row's, and a command that, asked to show,
    shows the same one."""
    monkeypatch.setattr(
        needs, 'this_machine', lambda: dict(device=DEVICE, training=TRAINING, type='cpu')
    )
    every = EVERY + [
        (bench, config.row)
        for bench in BENCHES
        for config in BENCHES[bench][1](DEVICE, 2 if profile == 'smoke' else 32)
    ]
    for experiment, row in every:
        code, told, said = ends('run', f'{experiment}/{row}', '--profile', profile, '--show')
        assert code == 0, (experiment, row, said)
        values, place = [], 0
        while place < len(told.rstrip()):
            value, place = json.JSONDecoder().raw_decode(told, place)
            values.append(value)
            place += 1
        commands = [line for line in said.splitlines() if line.startswith('encapnet ')]
        assert len(values) == len(commands) >= 1 and all(value['row'] == row for value in values)
        for value, command in zip(values, commands):
            words = shlex.split(command)
            if experiment in BENCHES:
                assert words == [
                    'encapnet',
                    'bench',
                    experiment.partition('_')[2],
                    '--profile',
                    profile,
                ]
                continue
            assert words[2] == f'{value["experiment"]}/{row}'
            if 'data' in value:
                assert (value['data']['sha256'] == '0' * 64) == (
                    f'zeros stand for the content hash of {value["data"]["name"]}, ' in said
                )
            again = ends(*words[1:], '--show')
            assert again[0] == 0 and json.loads(again[1]) == value


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ('table4/v1', '--data', 'cifar10'),
            'table4/v1 is not for cifar10; expected one of: himagenet32',
        ),
        (('table4/v1',), 'himagenet32'),
        (('table4/v9',), "no row 'v9' in table4"),
        (('bench_routing/ours',), "no row 'ours' in bench_routing"),
        (
            ('bench_transport/ours_l10', '--seed', '1'),
            '--seed is for training: a measurement has none',
        ),
        (
            ('bench_capconv/ours',),
            'timings make sense beside others: `encapnet bench capconv` takes them in turn',
        ),
        (('table1_cost/e_mastr',), "did you mean 'e_master'"),
        (('tabel1/e_master',), "did you mean 'table1'"),
    ],
)
def test_rows_that_are_none_here(ends, monkeypatch, arguments, message):
    monkeypatch.setattr(
        needs, 'this_machine', lambda: dict(device=DEVICE, training=TRAINING, type='cpu')
    )
    code, told, said = ends('run', *arguments)
    assert (code, told) == (2, '') and message in said and said.count('\n') == 1, said


def test_the_doctor_names_what_is_wrong_and_ends_with_1(tmp_path, capsys):
    (tmp_path / 'runs').write_text('a file')
    with pytest.raises(SystemExit) as ended:
        main(['doctor', '--runs', str(tmp_path / 'runs'), '--reports', str(tmp_path)])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert told.err.startswith('encapnet: store: nothing works before this is mended')
    assert re.search(r'^✗ store .*--runs names another folder$', told.out, re.MULTILINE)
    assert re.search(r'^– ledger .*git checkout reports$', told.out, re.MULTILINE)
