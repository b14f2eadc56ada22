"""Whatever is mistyped, missing, damaged or hostile: one line that says what was expected, an
exit code, no traceback.

What image trees and archives may hold is told by test_data.py; here it is what the user of the
command line gets to read."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encapnet.study.datasets import DATASETS
from encapnet.cli.messages import one_line

from encapnet.cli.main import main
from encapnet.show.page import parameters, shell
from encapnet.study import child, launch, needs
from encapnet.errors import OutOfTime, StudyError, UsageError
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES

pytestmark = pytest.mark.usefixtures('forked')

ROOT = Path(__file__).resolve().parents[1]
SMOKE = plan('table1', PROFILES['smoke'], {'synthetic': '0' * 64}, 1, ['a_dynamic'])[0].model_dump(
    mode='json'
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a cache of its own; the package's repository is still found, for its
    report notebooks."""
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'here'


@pytest.fixture
def ends(capsys, monkeypatch):
    "Run the command line in this process, its children too: (exit code, stdout, stderr)."

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    def call(*arguments, tell=lambda event: None, said=lambda text: None):
        # asked beside another question, by a thread: two cannot share what is captured
        if arguments == ('device',):
            return [dict(device='a machine', training='a machine', type='cpu')]
        code, told, words = run(*arguments)
        if code:
            raise {2: UsageError, 75: OutOfTime}.get(code, StudyError)(
                words.strip().removeprefix('encapnet: ')
            )
        said(words)
        return [json.loads(line) for line in told.splitlines()]

    for module in (child, needs):
        monkeypatch.setattr(module, 'call', call)
    monkeypatch.setattr(launch, 'forks', lambda purpose: nullcontext(call))
    monkeypatch.setattr(needs, '_KNOWN', {})
    return run


@pytest.fixture
def refused(ends):
    "Expect one line with a message, an exit code, and nothing on stdout."

    def check(message, *arguments, code=2):
        found, told, said = ends(*arguments)
        assert (found, told) == (code, ''), (found, told, said)
        assert said.startswith('encapnet: ') and said.count('\n') == 1 and said.endswith('\n'), said
        assert message in said, said

    return check


# Names, numbers, options
# ------------------------------------------------------------------------------------------------

WORDS = [
    ('reproduse', "No such command 'reproduse'. Did you mean 'reproduce'?"),
    (
        'reproduce tabel1',
        "no report 'tabel1'; expected one of: bench_capconv, bench_data, "
        'bench_routing, bench_transport, ',
    ),
    ('reproduce tabel1', "(did you mean 'table1'?)"),
    (
        'reproduce --profile qick',
        "no profile 'qick'; expected one of: smoke, quick, long, night, "
        "short, paper (did you mean 'quick'?)",
    ),
    ('reproduce complexity --profile qick', "did you mean 'quick'"),
    ('reproduce complexity --profile qick --seeds 1 --from-ledger', "did you mean 'quick'"),
    ('reproduce --seeds 0', 'seeds must be at least 1 and at most 1000, got 0'),
    ('reproduce complexity --seeds 0', 'seeds must be at least 1 and at most 1000, got 0'),
    ('reproduce --seeds=-3', 'got -3'),
    ('reproduce --seeds 1000000000', 'at most 1000, got 1000000000'),
    ('reproduce --seeds many', "Invalid value for '--seeds'"),
    ('reproduce --seeds 1.5', "Invalid value for '--seeds'"),
    (
        'reproduce --missing trian',
        "no such --missing 'trian'; expected one of: train, show, fail (did you mean 'train'?)",
    ),
    ('reproduce complexity --missing trian', "did you mean 'train'"),
    ('reproduce --max-minutes -1', '--max-minutes must be a number that is not negative, got -1'),
    ('reproduce --max-minutes nan', 'not negative, got nan'),
    ('reproduce --max-minutes inf', 'not negative, got inf'),
    ('reproduce --max-minutes soon', "Invalid value for '--max-minutes'"),
    ('reproduce --profle quick', 'No such option: --profle'),
    ('reproduce --profle quick', '--profile'),
    (
        'reproduce --data minst',
        "unknown data set 'minst': expected one of: cifar10, cifar100, svhn, himagenet",
    ),
    (
        'reproduce --data mnist',
        'mnist is not embedded: give its folder by --data-root ROOT, or '
        'run `encapnet data fetch mnist',
    ),
    ('run', 'run takes either EXPERIMENT/ROW or --config FILE; `encapnet status` lists the rows'),
    ('run table1/e_master --config x.json', 'run takes either EXPERIMENT/ROW or --config FILE'),
    ('run table1', "'table1' is not EXPERIMENT/ROW, for example table1/a_dynamic"),
    ('run tabel1/e_master', "no experiment 'tabel1'; expected one of: table1, "),
    ('run tabel1/e_master', "(did you mean 'table1'?)"),
    (
        'run table1/e_mastr',
        "no row 'e_mastr' in table1; expected one of: a_dynamic, b_em, c_cnn_shape, ",
    ),
    ('run table1/e_mastr', "(did you mean 'e_master'?)"),
    (
        'run table1_cost/b_em_vote',
        "no row 'b_em_vote' in table1_cost; expected one of: a_dynamic, a_dynamic_votes, ",
    ),
    ('run table1_cost/b_em_vote', "(did you mean 'b_em_votes'?)"),
    ('run table1/e_master --profile qick', "did you mean 'quick'"),
    ('run table1/e_master --seed -1', "Invalid value for '--seed'"),
    ('run table1/e_master --seed 4294967296', "Invalid value for '--seed'"),
    ('run table1/e_master --seed two', "Invalid value for '--seed'"),
    ('run table1/e_master --data minst', "did you mean 'mnist'"),
    ('run table1/e_master --max-minutes nan', 'not negative, got nan'),
    (
        'run table1/e_master --show --retrain',
        '--retrain trains, and --show trains nothing: leave one of them out',
    ),
    (
        'run table1/e_master --show --max-minutes 1',
        '--max-minutes trains, and --show trains nothing',
    ),
    ('run --config x.json --seed 1', "--seed is a row's: the configuration file has its own"),
    (
        'run --config x.json --profile quick',
        "--profile is a row's: the configuration file has its own",
    ),
    ('run table1_cost/b_em --seed 1', '--seed is for training: a measurement has none'),
    ('run table1_cost/b_em --data-root .', '--data-root is for training: a measurement has none'),
    ('run --config absent.json', 'cannot read absent.json: No such file or directory'),
    ('run --config .', 'cannot read .: Is a directory'),
    ('status --profile qick', "did you mean 'quick'"),
    ('status --seeds 0', 'seeds must be at least 1'),
    ('status --data minst', "did you mean 'mnist'"),
    ('status all', 'Got unexpected extra argument'),
    ('data verfy mnist', "No such command 'verfy'. Did you mean 'verify'?"),
    (
        'data verify minst',
        "unknown data set 'minst': expected one of: cifar10, cifar100, svhn, himagenet",
    ),
    ('data list minst', "did you mean 'mnist'"),
    ('data fetch minst', "did you mean 'mnist'"),
    ('data fetch digits', 'digits is embedded: there is nothing to fetch'),
    ('data fetch pets', 'images of your own are not fetched'),
    ('data verify pets', 'or images of your own in ROOT/pets/{train,test}/<class>/*'),
    (
        'run table1/e_master --data pets@48',
        'pets@48: networks take images of 32 or 64 pixels; expected pets (32) or pets@64',
    ),
    ('run table1/e_master --data Pets', "unknown data set 'Pets': expected one of: cifar10, "),
    ('run table1/e_master --data nope --show', "unknown data set 'nope': expected one of: "),
    (
        'run table1/e_master --show --data Pets',
        'one of your own is named as its folder, by a-z, 0-9, _ and -',
    ),
    (
        'run table4/v3 --data pets',
        'table4/v3 is not for pets; expected one of: himagenet; or '
        'images of your own at 64 pixels (NAME@64)',
    ),
    (
        'run table4/v1 --data pets@64',
        'table4/v1 is not for pets@64; expected one of: '
        'himagenet32; or images of your own at 32 pixels (NAME)',
    ),
    (
        'reproduce table1 --data row',
        "no data set can be called 'row', as a column of the tables "
        'is; rename its folder, e.g. to my-row',
    ),
    # as a text program hands them on
    (
        'reproduce —seeds 3',
        "'—seeds' begins with an em dash; --seeds was meant: no report '—seeds'",
    ),
    ('status –profile quick', "'–profile' begins with an en dash; --profile was meant: "),
    ('run table1/e_master -—seed 1', "'-—seed' begins with an em dash; --seed was meant: "),
    (
        'reproduce --data “digits”',
        "'“digits”' has curly quotes, which no shell takes away; expected straight ones: unknown",
    ),
    ('reproduce --seeds=“3”', "'--seeds=“3”' has curly quotes, which no shell takes away"),
    ('status --runs “x”', 'expected straight ones: nothing is called “x”; expected "x"'),
]


@pytest.mark.parametrize('words, message', WORDS)
def test_words(refused, workplace, words, message):
    refused(message, *words.split())
    assert not list(workplace.iterdir()), 'nothing is begun'


@pytest.mark.parametrize('words, message', [WORDS[2], WORDS[6], WORDS[13]])
def test_in_a_process_of_its_own(words, message):
    command = [sys.executable, '-c', 'from encapnet.cli.main import main; main()', *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        (done.returncode, done.stdout) == (2, '')
        and message in done.stderr
        and done.stderr.count('\n') == 1
    )


NAMELESS = [
    'reproduce complexity',
    'reproduce --check',
    'status',
    'certify',
    'bench routing',
    'explore --no-browser',
]


@pytest.mark.parametrize('words', NAMELESS)
def test_folders_without_a_name(refused, workplace, words):
    "They would be the folder that one is in."
    refused(
        '--reports names no folder; expected one such as reports, which is the default',
        *words.split(),
        '--reports',
        '',
    )
    refused(
        '--runs names no folder; expected one such as runs, which is the default',
        *words.split(),
        '--runs',
        ' ',
    )
    assert not list(workplace.iterdir())


def test_a_users_own_pages_are_not_overwritten(refused, workplace, monkeypatch):
    monkeypatch.setattr(launch, 'ensure', None)  # nothing is trained before that is found out
    where = ('--profile', 'smoke', '--reports', 'docs')
    for name in ('index.html', 'smoke/fig2.html'):
        page = workplace / 'docs' / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            '<html><head><title>My own</title></head><body>encapnet: mine</body></html>'
        )
        refused(
            f'{page.relative_to(workplace)} is there and was not made by encapnet; move it',
            'reproduce',
            'fig2',
            *where,
            code=1,
        )
        assert 'My own' in page.read_text()
        page.unlink()
    for ours in ('reports/index.html', 'reports/complexity.html'):
        shell.check_ours(ROOT / ours)
    shell.check_ours(workplace / 'docs/absent.html')


def test_reports_that_cannot_be_written_are_told_before_training(refused, workplace, monkeypatch):
    monkeypatch.setattr(launch, 'ensure', None)
    (workplace / 'file').write_text('')
    refused('cannot write ', 'reproduce', 'fig2', '--profile', 'smoke', '--reports', 'file', code=1)
    refused(
        'File name too long',
        'reproduce',
        'fig2',
        '--profile',
        'smoke',
        '--reports',
        'x' * 300,
        code=1,
    )


def test_names_that_are_too_long(refused, ends, workplace):
    refused('File name too long', 'status', '--profile', 'smoke', '--runs', 'x' * 300, code=1)
    refused(
        'File name too long',
        'run',
        'table1/c_cnn_shape',
        '--profile',
        'smoke',
        '--runs',
        'x' * 300,
        code=1,
    )
    code, _, said = ends('status', '--profile', 'smoke', '--reports', 'x' * 300)
    assert 'Traceback' not in said and code in (0, 1)


def test_a_run_whose_data_are_absent_gets_no_folder(refused, workplace):
    (workplace / 'config.json').write_text(json.dumps(SMOKE))
    refused('synthetic has changed: sha256 ', 'run', '--config', 'config.json', code=1)
    mnist = SMOKE | {'data': SMOKE['data'] | {'name': 'mnist'}}
    (workplace / 'config.json').write_text(json.dumps(mnist))
    refused(
        'mnist is not embedded: give its folder by --data-root', 'run', '--config', 'config.json'
    )
    assert [path.name for path in workplace.iterdir()] == ['config.json']


def test_no_repository(workplace):
    "An installed package, without its notebooks, in a folder that is no clone either."
    site = workplace.parent / 'site'
    shutil.copytree(
        ROOT / 'encapnet', site / 'encapnet', ignore=shutil.ignore_patterns('__pycache__')
    )
    command = [sys.executable, '-P', '-c', 'from encapnet.cli.main import main; main()']
    for words in (['reproduce'], ['reproduce', '--check'], ['explore', '--no-browser']):
        done = subprocess.run(
            [*command, *words],
            capture_output=True,
            text=True,
            env=os.environ | {'PYTHONPATH': str(site)},
        )
        assert (done.returncode, done.stdout) == (2, ''), done.stderr
        assert done.stderr.startswith(
            'encapnet: no notebooks here: run encapnet in a clone of its repository'
        ), done.stderr
        assert done.stderr.count('\n') == 1 and not list(workplace.iterdir()), 'nothing is begun'


@pytest.mark.parametrize(
    'change, message',
    [
        ({'seed': -1}, 'seed: Input should be greater than or equal to 0'),
        ({'seed': '1'}, 'seed: Input should be a valid integer'),
        ({'sed': 1}, 'sed: there is no such field; expected one of: accumulate, '),
        ({'sed': 1}, "(did you mean 'seed'?)"),
        (
            {'network': {'kind': 'CapNet', 'groups': 0}},
            'network.CapNet.groups: Input should be greater than or equal to 1',
        ),
        ({'network': {'kind': 'CapNet', 'gruops': 4}}, "(did you mean 'groups'?)"),
        (
            {'network': {'kind': 'CapNet', 'stride': 3}},
            'network.CapNet.stride: Input should be 1 or 2',
        ),
        ({'network': {'kind': 'CapNet', 'iterations': 0}}, 'greater than or equal to 1'),
        (
            {'network': {'kind': 'CapNet', 'routing': 'em', 'normalize': 'lower'}},
            "normalize must be 'higher'",
        ),
        (
            {'network': {'kind': 'Capnet'}},
            "network: Input tag 'Capnet' found using 'kind' does "
            'not match any of the expected tags',
        ),
        (
            {'network': {'kind': 'VanillaCNN', 'match': 'size'}},
            "Input should be 'shape' or 'parameters'",
        ),
        (
            {'schedule': {'epochs': 0, 'learning_rate': 0.1}},
            'schedule.epochs: Input should be greater than or equal to 1',
        ),
        (
            {'schedule': {'epochs': 2, 'learning_rate': 0.1, 'milestones': [5]}},
            'milestones (5,) must rise and lie below epochs=2',
        ),
        ({'row': '../../etc'}, 'row: String should match pattern'),
        ({'experiment': '<b>'}, 'experiment: String should match pattern'),
        ({'schema_version': 2}, 'schema_version: Input should be 1'),
        ({'schedule': None}, 'schedule: Input should be'),
    ],
)
def test_configuration(refused, workplace, change, message):
    (workplace / 'config.json').write_text(json.dumps(SMOKE | change))
    refused('config.json: ', 'run', '--config', 'config.json')
    refused(message, 'run', '--config', 'config.json')


def test_configuration_that_begins_with_a_byte_order_mark(refused, workplace):
    "Some editors write one: what is wrong is still what is in the file."
    (workplace / 'config.json').write_bytes(
        b'\xef\xbb\xbf' + json.dumps(SMOKE | {'seed': -1}).encode()
    )
    refused(
        'config.json: seed: Input should be greater than or equal to 0',
        'run',
        '--config',
        'config.json',
    )


def test_configuration_of_a_data_set_that_cannot_be(refused, workplace):
    (workplace / 'config.json').write_text(
        json.dumps(SMOKE | {'data': SMOKE['data'] | {'name': '<b>'}})
    )
    refused(
        "config.json: data.name: Value error, unknown data set '<b>'",
        'run',
        '--config',
        'config.json',
    )


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[]', b'3', b'null', b'\xff\xfe\0', b'[' * 100_000, b'{"schedule": {']
)
def test_file_that_is_no_configuration(refused, workplace, content):
    (workplace / 'config.json').write_bytes(content)
    refused('config.json', 'run', '--config', 'config.json')


def test_configuration_of_another_machine_or_other_data(refused, workplace):
    from encapnet.study.planning import measurements

    (workplace / 'cost.json').write_text(measurements('a Titan X')[0].model_dump_json())
    refused('this measurement is for a Titan X, this is ', 'run', '--config', 'cost.json', code=1)
    (workplace / 'config.json').write_text(json.dumps(SMOKE))
    refused('synthetic has changed: sha256 ', 'run', '--config', 'config.json', code=1)


# The data root
# ----------------------------------------------------------------------------------------------------------

READERS = [
    ('data', 'verify', 'mnist'),
    ('data', 'list'),
    ('status', '--profile', 'smoke'),
    ('run', 'table1/c_cnn_shape', '--profile', 'smoke'),
    ('reproduce', 'table1', '--profile', 'smoke'),
]


@pytest.mark.parametrize('reader', READERS, ids=' '.join)
def test_root_that_is_no_folder(refused, workplace, reader):
    (workplace / 'file').write_text('')
    (workplace / 'dangling').symlink_to('nowhere')
    expected = (
        'expected the folder that holds MNIST/, cifar10/, ... (`encapnet data fetch` makes one)'
    )
    for root, why in (
        ('absent', 'does not exist'),
        ('file', 'is a file'),
        ('x' * 300, 'does not exist'),
    ):
        refused(
            f'data root {root} is no folder: it {why}; {expected}', *reader, '--data-root', root
        )
    refused('data root dangling is no folder', *reader, '--data-root', 'dangling')


def test_root_without_the_data(refused, ends, workplace):
    looked_for = (
        "looked for torchvision's files (no MNIST/raw/train-images-idx3-ubyte), for the image tree "
    )
    refused(
        f'mnist is not in {workplace}: {looked_for}', 'data', 'verify', 'mnist', '--data-root', '.'
    )
    for reader in READERS[3:]:
        refused(
            '. holds none of cifar10, mnist; `encapnet data list --data-root .` says what',
            *reader,
            '--data-root',
            '.',
        )
        refused(f'mnist is not in {workplace}', *reader, '--data-root', '.', '--data', 'mnist')
    code, told, said = ends('status', '--profile', 'smoke', '--data-root', '.', '--json')
    lines = [json.loads(line) for line in told.splitlines()]
    assert code == 0 and {line['state'] for line in lines} == {'no data', 'missing'}, said
    assert {line['data'] for line in lines} == {'cifar10', 'mnist', ''}
    assert all(
        f'{line["data"]} is not in {workplace}' in line['why']
        for line in lines
        if line['state'] == 'no data'
    )


# Image trees
# ------------------------------------------------------------------------------------------------------------


def encoded(image, kind='PNG', **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def picture(seed=0, mode='RGB'):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ).convert(mode)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return path


@pytest.fixture
def tree(tmp_path):
    "A data root with a small image tree in CIFAR-10's place."
    for split, count in (('train', 3), ('test', 2)):
        for label in ('cat', 'dog'):
            for number in range(count):
                write(
                    tmp_path / f'root/cifar10/{split}/{label}/{number}.png',
                    picture(zlib.crc32(f'{split}{label}{number}'.encode())),
                )
    return tmp_path / 'root'


@pytest.fixture
def counted(monkeypatch):
    "Let the small tree pass for whole, whatever its classes are called."
    monkeypatch.setitem(
        DATASETS, 'cifar10', replace(DATASETS['cifar10'], train=6, test=4, classes=None)
    )


def states(ends, *arguments):
    code, told, said = ends('data', 'list', *arguments)
    assert code == 0, said
    return {line.split()[0]: line for line in told.splitlines()}


def test_list_says_found_refused_or_not_found(ends, tree, tmp_path):
    "And never `found` of what training refuses."
    listed = states(ends, '--data-root', tree)
    assert re.match(
        r'cifar10 +refused +\S+/cifar10 +cifar10 in .* has 2 classes and 6 train images; '
        r'expected 10 classes',
        listed['cifar10'],
    )
    assert re.fullmatch(r'mnist +not found', listed['mnist']) and re.fullmatch(
        r'digits +found +embedded', listed['digits']
    )
    (tree / 'cifar10').rename(tree / 'pets')
    listed = states(ends, '--data-root', tree)
    assert re.fullmatch(r'pets +found +\S+/pets', listed['pets']) and re.fullmatch(
        r'cifar10 +not found', listed['cifar10']
    )
    hashed = states(ends, 'pets', 'pets@64', '--hash', '--data-root', tree)
    assert (
        all(re.match(r'pets(@64)? +found +[0-9a-f]{12} ', line) for line in hashed.values())
        and len(hashed) == 2
    )
    (tree / 'pets').rename(tree / 'My Pets')
    (listed,) = [line for name, line in states(ends, '--data-root', tree).items() if name == 'My']
    assert 'refused' in listed and 'named as its folder, by a-z, 0-9, _ and -' in listed


def test_refused_sets_are_not_passed_over(refused, ends, tree, tmp_path):
    """A data root with a set that is not what its name says: neither `none found` nor, in
    silence, another set."""
    refused('cifar10 in', 'reproduce', 'table1', '--profile', 'smoke', '--data-root', tree)
    code, told, _ = ends('status', '--profile', 'smoke', '--data-root', tree, '--json')
    lines = [json.loads(line) for line in told.splitlines()]
    assert code == 0 and {line['data'] for line in lines} == {'cifar10', ''}
    assert all('has 2 classes' in line['why'] for line in lines if line['state'] == 'no data')
    (tree / 'cifar10').rename(tree / 'pets')
    refused(
        'holds none of cifar10, mnist; `encapnet data list',
        'reproduce',
        'table1',
        '--profile',
        'smoke',
        '--data-root',
        tree,
    )
    refused(
        '; --data pets takes pets', 'reproduce', 'table1', '--profile', 'smoke', '--data-root', tree
    )


def test_own_images_are_trained_on_under_their_own_name(ends, refused, tree, workplace):
    (tree / 'cifar10').rename(tree / 'pets')
    options = ('--profile', 'smoke', '--data', 'pets', '--data-root', tree)
    code, _, said = ends('run', 'table1/c_cnn_shape', *options)
    assert code == 0 and 'table1/c_cnn_shape on pets, seed 0: error' in said
    (done,) = workplace.glob('runs/**/DONE')
    record = json.loads(done.read_text())
    assert (
        record['config']['data']['name'],
        record['outcome']['source'],
        record['outcome']['train_images'],
    ) == ('pets', 'imagefolder', 6)
    message = (
        'table1/c_cnn_shape takes images of 32 pixels, and pets@64 has 64; expected one '
        'of: cifar10, '
    )
    refused(
        message,
        'run',
        'table1/c_cnn_shape',
        '--profile',
        'smoke',
        '--data',
        'pets@64',
        '--data-root',
        tree,
    )
    refused(
        'or a data set of your own (NAME)',
        'run',
        'table1/c_cnn_shape',
        '--profile',
        'smoke',
        '--data',
        'pets@64',
        '--data-root',
        tree,
    )
    needs._KNOWN.clear()  # what one command has found out is not the next one's
    (tree / 'pets/test/dog').rename(tree / 'pets/test/wolf')
    refused(
        "pets: class 'dog' is in train and missing from test", 'run', 'table1/c_cnn_shape', *options
    )


def test_rivals_of_table_4_take_the_images_of_h_imagenet(tmp_path, monkeypatch):
    "Their configurations have no side: torchvision's networks take any."
    import torch

    from encapnet.data.content import fingerprint
    from encapnet.training.fit import prepare
    from encapnet.study.run import Run

    for split in ('train', 'test'):
        for label in ('n01', 'n02'):
            for number in range(2):
                write(
                    tmp_path / f'himagenet/{split}/{label}/{number}.png',
                    picture(number).resize((70, 90)),
                )
    monkeypatch.setitem(DATASETS, 'himagenet', replace(DATASETS['himagenet'], class_count=2))
    hashes = {'himagenet': fingerprint('himagenet', tmp_path)}
    for name in ('resnet101', 'wide_resnet50_2', 'vgg16', 'googlenet'):
        (config,) = plan('table4', PROFILES['paper'], hashes, 1, [name])
        train, _ = prepare(Run(tmp_path / 'runs', config), tmp_path, torch.device('cpu'))
        assert train.images.shape == (4, 3, 64, 64)
    (config,) = plan('table1', PROFILES['smoke'], hashes, 1, ['c_cnn_shape'])
    with pytest.raises(
        UsageError,
        match='takes images of 32 pixels, and himagenet has 64; expected one of: cifar10, .*own '
        '.NAME.',
    ):
        prepare(Run(tmp_path / 'runs', config), tmp_path, torch.device('cpu'))


@pytest.mark.parametrize(
    'variable, url',
    [('HTTPS_PROXY', 'https://nowhere.invalid/a'), ('HTTP_PROXY', 'http://nowhere.invalid/a')],
)
def test_the_proxy_is_named_and_its_password_is_not(monkeypatch, tmp_path, variable, url):
    from encapnet.data.download import Download, download

    monkeypatch.setattr('encapnet.data.download.PAUSE_S', 0)
    monkeypatch.setattr('urllib.request._opener', None)  # a process looks for proxies once
    for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, 'http://me:secret@127.0.0.1:9')
    with pytest.raises(
        StudyError,
        match=f'nowhere.invalid .through the proxy 127.0.0.1:9 that {variable} names. cannot be '
        'reached',
    ) as caught:
        download(Download((url,), 'a', '0' * 32), tmp_path, bar=False)
    assert 'secret' not in str(caught.value) and '\n' not in str(caught.value)
    monkeypatch.setenv('NO_PROXY', 'nowhere.invalid')
    with pytest.raises(StudyError, match='nowhere.invalid cannot be found'):
        download(Download((url,), 'a', '0' * 32), tmp_path, bar=False)


def bomb():
    "A few bytes that announce 60,000 x 60,000 pixels."

    def chunk(kind, content):
        return (
            struct.pack('>I', len(content))
            + kind
            + content
            + struct.pack('>I', zlib.crc32(kind + content))
        )

    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(b'0'))
        + chunk(b'IEND', b'')
    )


BAD_IMAGES = {
    'empty.png': (b'', 'not a readable image'),
    'truncated.png': (encoded(picture())[:1500], 'not a readable image'),
    'truncated.jpg': (encoded(picture(), 'JPEG')[:-300], 'not a readable image'),
    'corrupt.png': (encoded(picture()).replace(b'IDAT', b'IDAX'), 'not a readable image'),
    'animated.gif': (
        encoded(picture(1), 'GIF', save_all=True, append_images=[picture(2)]),
        'holds 2 frames; expected one still image',
    ),
    'bomb.png': (bomb(), 'far too large'),
    'large.png': (picture().resize((64, 64)), 'is 64x64 pixels; expected 32x32'),
}


@pytest.mark.parametrize('file', BAD_IMAGES)
def test_bad_image(refused, tree, file):
    content, message = BAD_IMAGES[file]
    path = write(tree / 'cifar10/train/dog' / file, content)
    refused(f'{path}: ', 'data', 'verify', 'cifar10', '--data-root', tree)
    refused(message, 'data', 'verify', 'cifar10', '--data-root', tree)
    run = ('run', 'table1/c_cnn_shape', '--profile', 'smoke', '--data-root', tree)
    refused(f'{path}: ', *run)
    refused(message, *run)


def test_bad_image_through_real_children(tree, workplace):
    "The line that a grandchild ends with is the line that the user reads."
    path = write(tree / 'cifar10/test/dog/empty.png', b'')
    command = [
        sys.executable,
        '-c',
        'from encapnet.cli.main import main; main()',
        'run',
        'table1/c_cnn_shape',
    ]
    done = subprocess.run(
        [*command, '--profile', 'smoke', '--data-root', tree], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, '') and done.stderr.startswith(
        f'encapnet: {path}: not a readable image'
    )
    assert done.stderr.count('\n') == 1 and not list(workplace.iterdir())


def test_image_of_absurd_size_is_not_read(refused, tree):
    with open(tree / 'cifar10/train/dog/9.png', 'wb') as file:
        file.truncate(2**40)  # takes no room on disk
    refused(
        'dog/9.png: has 1048576 MiB; no image of this set is that large',
        'data',
        'verify',
        'cifar10',
        '--data-root',
        tree,
    )


@pytest.mark.parametrize(
    'image',
    [
        picture(mode='L'),
        picture(mode='CMYK'),
        Image.new('I;16', (32, 32), 40000),
        picture(mode='P'),
        picture(mode='1'),
    ],
    ids=['grey', 'CMYK', '16-bit', 'palette', 'bilevel'],
)
def test_unusual_image_is_read(ends, counted, tree, image):
    (tree / 'cifar10/train/dog/2.png').unlink()
    write(tree / 'cifar10/train/dog/2.tif', encoded(image, 'TIFF'))
    code, told, said = ends('data', 'verify', 'cifar10', '--data-root', tree)
    assert code == 0 and told.startswith('cifar10: 6 train, 4 test, sha256 '), said


def test_incomplete_tree(refused, tree):
    verify = ('data', 'verify', 'cifar10', '--data-root', tree)
    expected = (
        'expected 10 classes and 50000 train images of 32x32 pixels; name a data set of '
        'your own differently, e.g. --data pets'
    )
    for reader in (
        verify,
        ('run', 'table1/c_cnn_shape', '--profile', 'smoke', '--data-root', tree),
    ):
        refused(
            f'cifar10 in {tree / "cifar10"} has 2 classes and 6 train images; {expected}', *reader
        )
    for path in (tree / 'cifar10/test/cat').iterdir():
        path.unlink()
    refused('test/cat: holds no images; expected files in .jpg, ', *verify)
    (tree / 'cifar10/test/cat').rmdir()
    refused("class 'cat' is in train and missing from test", *verify)


NAMES = [
    'two words',
    'a.b.',
    'Füße 猫 🐈',
    '<script>alert(1)</script>',
    '&amp; "quoted\' `x` | $(ls)',
    '-rf',
]


def test_class_names_of_all_kinds(ends, counted, tree):
    for number, name in enumerate(NAMES):
        for split in ('train', 'test'):
            write(tree / f'cifar10/{split}' / name.replace('/', '∕') / '0.png', picture(number))
    for label in ('cat', 'dog'):
        for path in [
            *(tree / 'cifar10').glob(f'*/{label}/*'),
            *(tree / 'cifar10').glob(f'*/{label}'),
        ]:
            path.rmdir() if path.is_dir() else path.unlink()
    DATASETS['cifar10'] = replace(DATASETS['cifar10'], test=6)
    code, told, said = ends('data', 'verify', 'cifar10', '--data-root', tree, '--json')
    assert code == 0 and set(json.loads(told)['classes']) == {
        name.replace('/', '∕') for name in NAMES
    }, said
    code, told, said = ends('run', 'table1/c_cnn_shape', '--profile', 'smoke', '--data-root', tree)
    assert code == 0 and 'table1/c_cnn_shape on cifar10, seed 0: error' in said


def test_a_name_cannot_steer_the_terminal(refused, tree):
    "Line ends, escape sequences and bytes that are no text are written out."
    name = os.fsdecode(b'red \x1b[31m\nline \xff')
    write(tree / 'cifar10/train' / name / '0.png', b'')
    said = re.escape('\\x1b[31m line \\udcff')
    refused(
        'red \\x1b[31m line \\udcff/0.png: not a readable image',
        'data',
        'verify',
        'cifar10',
        '--data-root',
        tree,
    )
    assert re.search(said, one_line(name)) and one_line('é 猫') == 'é 猫'


def test_what_is_shown_of_a_failure_is_escaped():
    "A reason that a file's name got into, in the table of provenance and on a page."
    from encapnet.show.report.provenance import provenance_table
    from encapnet.show.report.standing import Standing
    from encapnet.study.profiles import find_profile

    why = 'train/<img src=x onerror=alert(1)>/0.png: not a readable image'
    table = provenance_table(
        'encapnet reproduce',
        find_profile('smoke'),
        Standing({'k': ('a_dynamic', None, 'failed', why)}),
    )
    html = table.as_raw_html()
    assert '<img' not in html and '&lt;img src=x onerror=alert(1)&gt;/0.png' in html


# What leads out of its folder
# -------------------------------------------------------------------------------------------


def test_links_out_of_the_data_root_are_followed(ends, counted, tree, tmp_path):
    """Clusters are full of them: a tree that all share, a farm of links to each image. What the
    user has put here is the user's."""
    shared = tmp_path / 'shared'
    cifar10 = tree / 'cifar10'
    before = ends('data', 'verify', 'cifar10', '--data-root', tree)
    assert before[0] == 0, before
    for split in ('train', 'test'):  # each image is a link
        for path in sorted((cifar10 / split).rglob('*.png')):
            kept = shared / path.relative_to(cifar10)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
            path.symlink_to(kept)
    assert ends('data', 'verify', 'cifar10', '--data-root', tree) == before
    shutil.rmtree(cifar10)
    cifar10.symlink_to(shared)  # the whole tree is
    assert ends('data', 'verify', 'cifar10', '--data-root', tree) == before
    code, told, _ = ends('data', 'list', 'cifar10', '--hash', '--data-root', tree)
    assert code == 0 and 'not found' not in told


def test_a_link_to_nothing_is_named(refused, tree):
    (tree / 'cifar10/train/dog/9.png').symlink_to('/shared/gone.png')
    refused(
        'dog/9.png: is a link to /shared/gone.png, where there is nothing',
        'data',
        'verify',
        'cifar10',
        '--data-root',
        tree,
    )


def test_links_in_a_circle_are_named(refused, tree):
    (tree / 'cifar10/train/dog/8.png').symlink_to('9.png')
    (tree / 'cifar10/train/dog/9.png').symlink_to('8.png')
    refused(
        'dog/8.png: is a link to 9.png, where there is nothing',
        'data',
        'verify',
        'cifar10',
        '--data-root',
        tree,
    )


@pytest.mark.parametrize(
    'folder',
    [
        '@eaDir',
        'lost+found',
        '$RECYCLE.BIN',
        '__pycache__',
        '__MACOSX',
        '.ipynb_checkpoints',
        'System Volume Information',
        '#recycle',
        '@Recycle',
        '@Recently-Snapshot',
        '~snapshot',
    ],
)
def test_housekeeping_folders_are_no_classes(ends, counted, tree, folder):
    before = ends('data', 'verify', 'cifar10', '--data-root', tree)
    for place in ('train', 'test', 'train/dog'):
        write(tree / 'cifar10' / place / folder / 'thumb.png', picture())
    write(tree / 'cifar10/train/dog/Thumbs.db', b'')
    assert ends('data', 'verify', 'cifar10', '--data-root', tree) == before


def test_images_that_nobody_reads_are_named_once(ends, counted, tree):
    for name in ('a.heic', 'b.heic', 'c.jxl', 'notes.txt'):
        write(tree / 'cifar10/train/dog' / name, b'...')
    code, _, said = ends('data', 'verify', 'cifar10', '--data-root', tree)
    assert code == 0 and said.count('passed over') == 1
    assert (
        f'{tree / "cifar10"}: passed over 2 .heic, 1 .jxl: images are read from .jpg, .jpeg, '
        '.jpe, .jfif' in said
    )


def test_a_training_names_them_once_too(ends, tree):
    "They are found by a child process, in a tree that is listed, hashed and read."
    (tree / 'cifar10').rename(tree / 'pets')
    write(tree / 'pets/train/dog/a.heic', b'...')
    options = ('--profile', 'smoke', '--data', 'pets', '--data-root', tree)
    code, _, said = ends('run', 'table1/c_cnn_shape', *options)
    assert code == 0 and said.count(f'{tree / "pets"}: passed over 1 .heic: ') == 1, said


def test_links_within_the_data_root_are_followed(ends, counted, tree, tmp_path):
    (tree / 'cifar10/train/dog/2.png').rename(tree / 'kept.png')
    (tree / 'cifar10/train/dog/2.png').symlink_to('../../../kept.png')
    (tree / 'cifar10/test/dog').rename(tree / 'dogs')
    (tree / 'cifar10/test/dog').symlink_to(tree / 'dogs')
    (tmp_path / 'link').symlink_to(tree)  # the root itself may lie anywhere
    code, told, said = ends('data', 'verify', 'cifar10', '--data-root', tmp_path / 'link')
    assert code == 0 and told.startswith('cifar10: 6 train, 4 test'), said


@pytest.mark.parametrize(
    'name, kind, target, message',
    [
        (
            'cifar10/train/../../../evil.png',
            tarfile.REGTYPE,
            '',
            "leaves the archive's folder; refused",
        ),
        ('/etc/evil.png', tarfile.REGTYPE, '', "leaves the archive's folder; refused"),
        (
            'cifar10/train/cat/9.png',
            tarfile.SYMTYPE,
            '/etc/passwd',
            'is a link or a device; refused, expected files and',
        ),
        (
            'cifar10/train/cat/9.png',
            tarfile.LNKTYPE,
            'cifar10/train/cat/0.png',
            'is a link or a device; refused',
        ),
    ],
    ids=['parent', 'absolute', 'symbolic link', 'hard link'],
)
def test_hostile_archive(refused, tree, tmp_path, name, kind, target, message):
    (tmp_path / 'packed').mkdir()
    with tarfile.open(tmp_path / 'packed/cifar10.tar.gz', 'w:gz') as archive:
        archive.add(tree / 'cifar10', 'cifar10')
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member, io.BytesIO())
    refused(
        f'cifar10.tar.gz: member {name!r} {message}',
        'data',
        'verify',
        'cifar10',
        '--data-root',
        tmp_path / 'packed',
    )
    assert not list(tmp_path.rglob('evil*'))


# Networks
# ---------------------------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ('CapNet(groups=0)', 'a network needs at least 1 capsule channel, got 0'),
    ('CapNet(groups=2, stride=3)', 'stride must be 1 or 2, got 3'),
    ('CapNet(groups=2, iterations=0)', 'iterations must be at least 1, got 0'),
    ('CapNet(groups=2, classes=0)', 'higher must be at least 1, got 0'),
    ("CapNet(groups=2, routing='map')", "routing must be 'dynamic' or 'em', got 'map'"),
    (
        'CapNet(groups=2)(zeros(1, 3, 16, 16))',
        'expected images of shape (batch, 3, 32, 32), got (1, 3, 16, 16)',
    ),
    (
        'CapNet(groups=2)(zeros(1, 1, 32, 32))',
        'expected images of shape (batch, 3, 32, 32), got (1, 1, 32, 32)',
    ),
    ('EncapNet(groups=2, size=48)', 'size must be 32 or 64, got 48: the nearest is 64'),
    ('ResNet(groups=2, size=28)', 'size must be 32 or 64, got 28: the nearest is 32'),
    ('VanillaCNN(groups=0)', 'every layer needs at least 1 channel, got [3, 0, 0, 0, 0, 0]'),
    (
        'VanillaCNN(groups=2)(zeros(3, 32, 32))',
        'expected images of shape (batch, 3, 32, 32), got (3, 32, 32)',
    ),
    ('SixLayerEncapNet(groups=-1)', 'a network needs at least 1 capsule channel, got -1'),
    (
        'SixLayerEncapNet(groups=2)(zeros(1, 3, 8, 8))',
        'expected images of shape (batch, 3, 32, 32), got (1, 3, 8, 8)',
    ),
    ('CapConv(3, 0, 4)', 'dim must be at least 1, got 0'),
    ('CapConv(3, 2, 4, kernel=2)', 'the kernel must be odd, got 2'),
    (
        'CapConv(3, 2, 4)(zeros(1, 7, 4, 4))',
        'expected a feature map of shape (batch, 6, any, any), got (1, 7, 4, 4)',
    ),
    (
        'CapConv(3, 2, 4)(zeros(1, 6, 0, 4))',
        'expected a feature map of shape (batch, 6, any, any), got (1, 6, 0, 4)',
    ),
    (
        'RoutedCapsules(2, 4, 3, 5, 6)(zeros(1, 2, 9, 3))',
        'expected lower capsules of shape (batch, 2, 4, 3), got (1, 2, 9, 3)',
    ),
    (
        'CapFC(4, 9, 3)(zeros(1, 8, 4))',
        'expected lower capsules of shape (batch, 9, 4), got (1, 8, 4)',
    ),
    ('list_capsules(zeros(1, 7, 4, 4), 3)', '7 channels do not divide into 3 capsule channels'),
    ('map_capsules(zeros(1, 2, 7, 4), 2)', '7 positions do not fill a map of 2 rows'),
]


def test_impossible_networks():
    "In a process without run-time checks of shapes, as users have it."
    code = """
import json, sys
from torch import zeros
from encapnet.nn.capconv import CapConv
from encapnet.nn.capfc import CapFC
from encapnet.nn.capnet import CapNet
from encapnet.nn.capsules import list_capsules, map_capsules
from encapnet.nn.convolutional import VanillaCNN
from encapnet.nn.encapnets import EncapNet, SixLayerEncapNet
from encapnet.nn.resnet import ResNet
from encapnet.nn.routed import RoutedCapsules
for expression in json.loads(sys.argv[1]):
    try: print(json.dumps(f"made {eval(expression)}"))
    except ValueError as error: print(json.dumps(str(error)))
"""
    command = [sys.executable, '-c', code, json.dumps([expression for expression, _ in IMPOSSIBLE])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert list(map(json.loads, done.stdout.splitlines())) == [message for _, message in IMPOSSIBLE]


# Parameters of notebooks
# ------------------------------------------------------------------------------------------------

REPORTS = {
    path.stem: path for path in sorted((Path(__file__).parents[1] / 'nbs/reports').glob('*.ipynb'))
}


@pytest.mark.parametrize('report', REPORTS)
def test_parameters_of_report_notebooks(report):
    known = parameters.parameters(REPORTS[report])
    name, parameter = next(iter(known.items()))
    with pytest.raises(
        UsageError,
        match=f"{report}.ipynb has no parameter '{name}x': expected one of: .*did you mean "
        f"'{name}'",
    ):
        parameters.check_parameters(REPORTS[report], {f'{name}x': 1})
    for parameter in known.values():
        wrong = {'str': 3, 'int': 'many', 'float': 'fast', 'bool': 'perhaps'}[
            parameter.type.removesuffix(' | None')
        ]
        with pytest.raises(
            UsageError,
            match=re.escape(
                f'parameter {parameter.name!r} expects {parameter.type}, got {wrong!r}'
            ),
        ):
            parameters.check_parameters(REPORTS[report], {parameter.name: wrong})


@pytest.mark.slow
@pytest.mark.parametrize(
    'report, words, message',
    [
        ('table1', '-p profle quick', "no parameter 'profle'; expected one of: profile, seeds, "),
        ('table1', '-p seeds many', "parameter 'seeds' expects int, got 'many' (str)"),
        # a page without runs, too: it would end under its ordinary name in the ordinary place
        ('complexity', '-p reprots mine', "no parameter 'reprots'; expected one of: reports"),
        ('complexity', '-p reports 2024', "parameter 'reports' expects str, got 2024 (int)"),
    ],
)
def test_papermill_alone(tmp_path, report, words, message):
    """Papermill only warns of a parameter that it does not know; the study refuses it before
    anything runs."""
    runs = ['-p', 'runs', tmp_path / 'runs'] if report == 'table1' else []
    arguments = [f'nbs/reports/{report}.ipynb', tmp_path / 'out.ipynb', *words.split(), *runs]
    done = subprocess.run(
        [sys.executable, '-m', 'papermill', *arguments],
        capture_output=True,
        text=True,
        cwd=REPORTS['table1'].parents[2],
    )
    assert done.returncode == 1 and f'UsageError: {message}' in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / 'runs').exists()
