"""The benches from outside: one turn in its own process, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
from commands import encapnet

from encapnet.errors import StudyError, UsageError
from encapnet.study.config import CapConvBenchConfig, RoutingBenchConfig, TransportBenchConfig

SIZES = dict(row='tiny', groups=2, positions=16, dim=4, higher=6, higher_dim=3, batch=2)


@pytest.fixture(scope='module')
def here():
    return json.loads(encapnet('device').stdout)['device']


def written(tmp_path, **fields):
    path = tmp_path / 'config.json'
    path.write_text(RoutingBenchConfig(**SIZES | fields).model_dump_json())
    return path


@pytest.mark.parametrize('backend', ['reference', 'chunked'])
def test_one_turn(tmp_path, here, backend):
    done = encapnet('bench', 'measure', written(tmp_path, backend=backend, hardware=here))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found['seconds']) >= 1 and min(found['seconds']) > 0
    assert found['accounted'] > 0 and found['operations'] > 0
    if sys.platform == 'linux':
        assert isinstance(found['peak'], int)


@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_a_compiled_candidate_is_timed_when_it_is_compiled(tmp_path, here, monkeypatch, routing):
    "With its compilation, the first step would be beyond the budget, and the only one."
    pytest.importorskip('numba')
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'empty'))
    done = encapnet(
        'bench', 'measure', written(tmp_path, routing=routing, backend='numba', hardware=here)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found['seconds']) > 1 and found['accounted'] > 0 and found['operations'] > 0


@pytest.mark.parametrize('layer', ['untied', 'local'])
def test_other_layers_by_numba_are_refused(layer):
    words = f"'numba' is for layer 'shared'; for '{layer}' take 'chunked'"
    with pytest.raises(ValueError, match=words):
        RoutingBenchConfig(**SIZES | dict(layer=layer), backend='numba', hardware='')


@pytest.mark.parametrize(
    'config',
    [
        TransportBenchConfig(row='tiny', backend='ours', batch=8, dim=3, iterations=3, hardware=''),
        TransportBenchConfig(
            row='tiny', backend='textbook', batch=8, dim=3, iterations=3, hardware=''
        ),
        CapConvBenchConfig(row='tiny', backend='ours', groups=2, batch=2, hardware=''),
        CapConvBenchConfig(row='tiny', backend='textbook', groups=2, batch=2, hardware=''),
    ],
    ids=lambda config: f'{config.experiment}-{config.backend}',
)
def test_one_turn_of_the_other_benches(tmp_path, here, config):
    "The file says by its experiment which bench it belongs to."
    path = tmp_path / 'config.json'
    path.write_text(config.model_copy(update=dict(hardware=here)).model_dump_json())
    done = encapnet('bench', 'measure', path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        len(found['seconds']) >= 1
        and min(found['seconds']) > 0
        and ('accounted' in found) == (config.experiment == 'bench_capconv')
    )


def test_a_size_that_cannot_fit_is_told_by_its_account(tmp_path, here):
    done = encapnet(
        'bench', 'measure', written(tmp_path, backend='reference', hardware=here, batch=2**30)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['seconds'] == [] and found['peak'] is None and found['accounted'] > 2**40


@pytest.mark.parametrize(
    ('fields', 'code', 'told'),
    [
        (
            dict(backend='chunked', hardware='another machine'),
            1,
            'this timing is for another machine, this is',
        ),
        (
            dict(backend='triton', hardware=None),
            1,
            'the fused kernels need Triton and tensors on a CUDA device',
        ),
    ],
)
def test_a_turn_that_makes_no_sense_here(tmp_path, here, fields, code, told):
    done = encapnet(
        'bench', 'measure', written(tmp_path, **fields | dict(hardware=fields['hardware'] or here))
    )
    assert done.returncode == code and told in done.stderr and 'Traceback' not in done.stderr, (
        done.stderr
    )


def test_a_timing_does_not_run_alone(tmp_path):
    done = encapnet('run', '--config', written(tmp_path, backend='chunked', hardware='here'))
    assert done.returncode == 2 and 'takes them in turn' in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ('bench routing --profile qick', "did you mean 'quick'?"),
        ('bench routin', "Did you mean 'routing'?"),
        ('bench measure nowhere.json', 'cannot read nowhere.json'),
        ('bench routing --max-minutes -1', '--max-minutes must be a number'),
    ],
)
def test_bad_input(arguments, told):
    done = encapnet(*arguments.split())
    assert done.returncode == 2 and told in done.stderr and 'Traceback' not in done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize(
    ('bench', 'missing'),
    [('bench_routing', 20), ('bench_transport', 4), ('bench_capconv', 3), ('bench_data', 10)],
)
def test_the_page_says_what_is_missing(tmp_path, bench, missing):
    done = encapnet(
        'reproduce',
        bench,
        '--profile',
        'smoke',
        '--missing',
        'show',
        '--runs',
        tmp_path / 'runs',
        '--reports',
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'smoke' / f'{bench}.html').read_text(encoding='utf-8')
    assert page.count('missing') >= missing and 'not measured' in page


def test_one_process_measures_in_turn_and_lives_through_failures(tmp_path, here):
    from encapnet.study.forks import forks

    (tmp_path / 'good').mkdir()
    (tmp_path / 'large').mkdir()
    good = written(tmp_path / 'good', backend='chunked', hardware=here)
    large = written(tmp_path / 'large', backend='reference', hardware=here, batch=2**30)
    elsewhere = tmp_path / 'elsewhere.json'
    elsewhere.write_text(Path(good).read_text().replace(here, 'another processor'))

    def measure(path):
        return call('bench', 'measure', path)[-1]

    with forks('timing') as call:
        first = measure(str(good))
        assert first['seconds'] and min(first['seconds']) > 0
        with pytest.raises(StudyError, match='this timing is for another processor'):
            measure(str(elsewhere))
        with pytest.raises(UsageError, match='nowhere'):
            measure(str(tmp_path / 'nowhere.json'))
        assert measure(str(large))['seconds'] == [], 'too large for this machine by account'
        assert measure(str(good))['accounted'] == first['accounted']
