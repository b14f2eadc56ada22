"""Rows of a user's own: what a file may say and what is refused, in one line; trained, resumed and
shown beside the paper's, on images of the user's own; and the guide to all of it, as printed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import encapnet, forking
from PIL import Image

from encapnet import standin
from encapnet.cli import check, reproduce
from encapnet.cli.main import main
from encapnet.show.page import upkeep
from encapnet.study import needs
from encapnet.study.own import plan_own, read_rows
from encapnet.study.planning import plan
from encapnet.study.processes import enter
from encapnet.study.profiles import PROFILES, enters_ledger
from encapnet.study.request import Request
from encapnet.study.run import Run

pytestmark = pytest.mark.usefixtures('forked')

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / 'nbs/guide/04_own_study.ipynb'
LIKE = 'like = "table1/c_cnn_shape"\n'
WIDE = f'[my_wide]\n{LIKE}network = {{ groups = 3 }}\n'


def written(folder, text, name='my_rows.toml'):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What is refused


def refused(capsys, *arguments):
    "The one line with which a command line is refused."
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, ''), said.err
    assert said.err.startswith('encapnet: ')
    assert said.err.count('\n') == 1
    return said.err


REFUSED = {
    'empty': ('', 'holds no row'),
    'no TOML': ('[a]\n\nlike = table3', 'is no TOML: Invalid value (at line 3, column 8)'),
    'not closed': ('[a]\nlike = "x', '(at line 2, the end of the file)'),
    'twice': ('[a]\n[a]\n', 'is no TOML: Cannot declare'),
    'no UTF-8': (b'[a]\nlike = "\xe9"', ', line 2: no text in UTF-8'),
    'no row': ('like = "table1/e_master"', 'like stands outside of any row'),
    'unknown key': (f'[a]\n{LIKE}netwrok = {{}}', "(did you mean 'network'?)"),
    'no like': ('[a]\nloss = "spread"', 'like is missing'),
    'unknown like': ('[a]\nlike = "table1/e_mastr"', "(did you mean 'e_master'?)"),
    'unknown experiment': ('[a]\nlike = "tabl1/e_master"', "(did you mean 'table1'?)"),
    'unknown beside': (f'[a]\n{LIKE}beside = ["table4/v8"]', '[a], beside: no row'),
    'unknown setting': (f'[a]\n{LIKE}network = {{ gruops = 8 }}', "(did you mean 'groups'?)"),
    'setting of another': (
        f'[a]\n{LIKE}network = {{ skip = "both" }}',
        'network.skip in VanillaCNN',
    ),
    'wrong type': (f'[a]\n{LIKE}network = {{ groups = "8" }}', "a valid integer, got '8'"),
    'wrong value': (
        f'[a]\n{LIKE}network = {{ groups = -1 }}',
        'greater than or equal to 1, got -1',
    ),
    'wrong choice': (f'[a]\n{LIKE}data = {{ augmentation = "wild" }}', "or 'strong', got 'wild'"),
    'no folder': (f'["a b"]\n{LIKE}', "no row can be called 'a b'"),
    'out of the store': (f'["../x"]\n{LIKE}', "no row can be called '../x'"),
    "the paper's name": (f'[e_master]\n{LIKE}', "is the name of a row of the paper's"),
    'no change': (f'[a]\n{LIKE}', 'the configuration is that of table1/c_cnn_shape'),
    'one twice': (
        f'[a]\n{LIKE}network = {{ groups = 3 }}\n[b]\n{LIKE}network = {{ groups = 3 }}',
        '[b]: the configuration is that of own/a',
    ),
}


@pytest.mark.parametrize('text, words', REFUSED.values(), ids=REFUSED)
def test_a_file_is_refused_in_a_line(tmp_path, capsys, text, words):
    path = written(tmp_path, text)
    for command in (('run', 'own/a'), ('reproduce', 'own')):
        said = refused(capsys, *command, '--rows', path, '--profile', 'smoke')
        assert words in said
        assert str(path) in said


def test_a_file_that_is_none(tmp_path, capsys):
    absent = tmp_path / 'absent.toml'
    assert 'No such file' in refused(capsys, 'reproduce', 'own', '--rows', absent)
    assert 'is a folder' in refused(capsys, 'reproduce', 'own', '--rows', tmp_path)
    assert 'no ordinary file' in refused(capsys, 'reproduce', 'own', '--rows', '/dev/null')


@pytest.mark.parametrize(
    'words, told',
    [
        (('reproduce', 'own'), 'expected --rows FILE'),
        (('reproduce', 'table1', '--rows', 'FILE'), 'table1 takes none'),
        (('reproduce', '--rows', 'FILE'), 'table1, complexity, fig2 take none'),
        (('reproduce', 'own', '--rows', 'FILE', '--from-ledger'), 'are in no ledger'),
        (('reproduce', 'own', '--check'), 'is yours'),
        (('reproduce', '--check', '--rows', 'FILE'), '--rows is for making pages'),
        (('reproduce', 'tour', '--rows', 'FILE'), '--rows is for reports'),
        (('run', 'own/my_wide'), 'expected --rows FILE'),
        (('run', 'own/my_wid', '--rows', 'FILE'), "(did you mean 'my_wide'?)"),
        (('run', 'table1/e_master', '--rows', 'FILE'), 'expected own/NAME, or no --rows'),
        (('run', '--config', 'FILE', '--rows', 'FILE'), "--rows is a row's"),
        (('run', 'own/my_large', '--rows', 'FILE', '--data', 'digits'), 'is not for digits'),
    ],
)
def test_rows_where_they_mean_nothing(tmp_path, capsys, words, told):
    large = '[my_large]\nlike = "table4/v3"\nnetwork = { groups = 3 }\n'
    path = str(written(tmp_path, WIDE + large))
    assert told in refused(capsys, *(path if word == 'FILE' else word for word in words))


# What is planned, and what is kept


def test_the_ledger_holds_nothing_of_it(tmp_path, monkeypatch):
    "Not the user's rows, and not the paper's either, before another report asks for them."
    rows = read_rows(str(written(tmp_path, WIDE)), PROFILES['quick'])
    beside, mine = plan_own(rows, PROFILES['quick'], dict(digits='0' * 64))
    assert [enters_ledger(config) for config in (beside, mine)] == [True, False]
    enter(Run(tmp_path / 'runs', mine), tmp_path)  # what a sweep does with each finished run
    assert not (tmp_path / 'ledger').exists()

    monkeypatch.setattr(needs, 'data_hashes', lambda names, root: dict.fromkeys(names, '0' * 64))
    asked = []

    def ensure(runs, request, engine):
        asked.append((request.reports, sorted(run.name for run in runs)))
        return {run.config.key: 'fresh' for run in runs}

    monkeypatch.setattr(reproduce.launch, 'ensure', ensure)
    request = Request(rows=str(tmp_path / 'my_rows.toml'), runs=str(tmp_path / 'runs'))
    for chosen, kept in (
        (['own'], []),
        (['own', 'fig4'], ['table3_left/7_skip_both', 'table3_right/a_resnet']),
    ):
        asked.clear()
        chosen = dict.fromkeys(chosen)
        states = reproduce._ensure(chosen, reproduce._needed(chosen, request), request, None)
        (_, first), second = asked
        assert {*kept} <= {*first}
        assert second == ('', ['own/my_wide', 'table1/c_cnn_shape'])
        assert len(states) == len(first) + 2


def test_the_papers_rows_on_images_of_ones_own_replace_nothing(tmp_path, capsys):
    "Neither the study's ledger nor its pages; in a folder of the reader's own they are made."
    [config] = [
        one for one in plan('table1', PROFILES['quick'], {'marks': '0' * 64}, 1, ['c_cnn_shape'])
    ]
    assert not enters_ledger(config)
    ledger = tmp_path / 'reports' / 'ledger'
    ledger.mkdir(parents=True)
    (ledger / 'table1.jsonl').write_text('')
    asked = ['reproduce', 'table1', '--data', 'marks', '--data-root', tmp_path]
    said = refused(capsys, *asked, '--reports', tmp_path / 'reports')
    assert 'marks is a data set of your own' in said and '--reports mine' in said


@pytest.mark.parametrize(
    'error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 GB")]
)
def test_too_little_memory_is_a_line(monkeypatch, capsys, error):
    def exploding(**options):
        raise error

    monkeypatch.setattr('encapnet.cli.main.command_line', lambda: exploding)
    with pytest.raises(SystemExit) as ended:
        main(['run', 'table1/a_dynamic'])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith('encapnet: not enough memory ('), said
    assert 'Traceback' not in said and '--accumulate 2' in said


def test_another_setting_is_another_run_and_a_remark_is_none(tmp_path):
    def key(text):
        rows = read_rows(str(written(tmp_path, text)), PROFILES['quick'])
        return plan_own(rows, PROFILES['quick'], dict(digits='0' * 64))[-1].key

    assert key(WIDE) == key(WIDE + 'title = "new words"  # and a remark\n')
    assert key(WIDE) != key(WIDE.replace('= 3', '= 5'))


def test_a_request_is_handed_on_whole(tmp_path):
    path = written(tmp_path, WIDE)
    request = Request.from_command('smoke', rows=str(path))
    assert [row.name for row in request.own] == ['my_wide']
    assert Request.from_parameters(request.parameters()) == request
    assert replace(request, missing='show').own == request.own


def test_the_page_is_nobodys_to_check(tmp_path, capsys):
    (tmp_path / 'quick').mkdir()
    (tmp_path / 'quick/own.html').write_text('<html></html>')
    known = dict(own=ROOT / 'nbs/reports/own.ipynb')
    assert upkeep.check(tmp_path, known) == []
    check.tell_of_others(str(tmp_path), [])
    assert 'own' not in capsys.readouterr().err


def test_git_passes_over_the_page(passed_over):
    made = [
        'reports/quick/own.html',
        'reports/tables/quick/own-errors.csv',
        'reports/figures/quick/own.svg',
        'reports/figures/night/own-curves.svg',
    ]
    assert passed_over(*made, 'reports/quick/table1.html') == made


# Trained and shown


def runs_in(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.glob('runs/*/*/*/DONE')}


def test_a_row_beside_the_papers(tmp_path):
    path = written(tmp_path, f'{WIDE}title = "half <as> wide again"\n')
    words = ['reproduce', 'own', '--rows', path, '--profile', 'smoke', '--data', 'digits']
    done = encapnet(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'reports/smoke/own.html').read_text(encoding='utf-8')
    assert 'half &lt;as&gt; wide again' in page
    assert 'network.groups' in page
    assert '--seeds 3' in page
    verdict = (tmp_path / 'reports/tables/smoke/own-verdict.csv').read_text().splitlines()
    assert len(verdict) == 2
    assert 'my_wide' in verdict[1]

    # a second call trains nothing; the one row by its name goes on from there
    before = runs_in(tmp_path)
    assert {folder.parent.name for folder in before} == {'my_wide', 'c_cnn_shape'}
    one = encapnet(
        'run', 'own/my_wide', *words[2:], '--runs', tmp_path / 'runs', '--seed', 0, cwd=tmp_path
    )
    assert 'there already' in one.stderr
    record = json.loads((next(tmp_path.glob('runs/own/my_wide/*/DONE'))).read_text())
    assert record['config']['network']['groups'] == 3
    assert runs_in(tmp_path) == before
    assert not (tmp_path / 'reports/ledger').exists()


def test_many_classes_of_mixed_images(tmp_path):
    "37 classes, names with spaces, images of all sizes and modes."
    dice = np.random.default_rng(0)
    for part, count in (('train', 2), ('test', 1)):
        for label in range(37):
            folder = tmp_path / 'data/pets' / part / f'breed no {label}'
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = dice.integers(20, 90, 2)
                shape = (height, width) if label % 2 else (height, width, 3)
                pixels = dice.integers(0, 256, shape).astype(np.uint8)
                ending = 'jpg' if label % 3 else 'png'
                Image.fromarray(pixels).save(folder / f'image {number}.{ending}')
    path = written(tmp_path, WIDE)
    images = ['--data', 'pets', '--data-root', 'data', '--profile', 'smoke']
    done = encapnet('run', 'own/my_wide', '--rows', path, *images, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'own/my_wide on pets, seed 0: error' in done.stderr


def blocks():
    "The guide's cells and blocks in their order: language and text."
    for cell in json.loads(GUIDE.read_text(encoding='utf-8'))['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'code':
            yield 'python', text
        else:
            yield from re.findall(r'```(\w+)\n(.*?)```', text, re.DOTALL)


def test_the_guide_runs_as_printed(tmp_path):
    "Every cell and block of it, in a folder that is empty before."
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    command = bin_folder / 'encapnet'
    with forking():
        begin = ' '.join(standin.command())
        place = SimpleNamespace(
            cwd=tmp_path, env=os.environ | dict(PATH=f'{bin_folder}:{os.environ["PATH"]}')
        )
    command.write_text(f'#!/bin/sh\nexec {begin} "$@"\n')
    command.chmod(0o755)
    python = '\n\n'.join(text for language, text in blocks() if language == 'python')
    drawn = subprocess.run([sys.executable, '-c', python], capture_output=True, **vars(place))
    assert drawn.returncode == 0, drawn.stderr
    (toml,) = (text for language, text in blocks() if language == 'toml')
    written(tmp_path, toml)
    shell = [text for language, text in blocks() if language == 'sh']
    assert len(shell) == 6
    for text in shell:
        done = subprocess.run(
            ['sh', '-ec', text], capture_output=True, text=True, timeout=900, **vars(place)
        )
        assert done.returncode == 0, done.stderr
    assert 'n = 2 seeds' in (tmp_path / 'reports/smoke/own.html').read_text(encoding='utf-8')
    assert len(runs_in(tmp_path)) == 2 * 4
    assert (tmp_path / 'mine/smoke/table1.html').exists()
