"""Explorers as their readers meet them: a command, an address with a token, a browser in which
controls are moved."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from contextlib import suppress

import pytest
from browsing import barriers
from live import HOSTS, PATIENCE, ROOT, Live, live

from encapnet.show.explore import serve
from encapnet.errors import StudyError
from encapnet.study.answers import pack_mistakes
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.run import Run, finish

COMMAND = [sys.executable, '-c', 'from encapnet.cli.main import main; main()', 'explore']


def fabricate(store, row, seed, errors, failed=''):
    "A run as if it had been trained: its curves, and its record or the reason why it failed."
    run = Run(store, plan('table1', PROFILES['quick'], {'digits': '0' * 64}, seed + 1, [row])[seed])
    run.write('config.json', run.config.model_dump(mode='json'))
    rows = [
        dict(epoch=epoch, error=error, train_loss=error / 100, test_loss=error / 80)
        for epoch, error in enumerate(errors, 1)
    ]
    run.write('metrics.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
    if failed:
        run.write('FAILED', dict(why=failed))
    else:
        outcome = dict(
            error=errors[-1],
            errors=errors,
            losses=[e / 100 for e in errors],
            parameters=164672,
            test_images=1000,
        )
        finish(run, outcome, 'a machine', None, seconds=12.5)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / 'store'
    for seed in range(3):
        fabricate(
            folder,
            'a_dynamic',
            seed,
            [80 - seed, 40 + 2 * seed, 20 - seed, 15 + seed / 3, 12.0 + seed],
        )
        fabricate(folder, 'f_master_aide', seed, [70, 30 - seed, 12 + seed, 9.5, 8 + seed / 2])
    fabricate(folder, 'b_em', 0, [90.0, 88.0], failed='the loss is nan at step 3 of epoch 3 <b>')
    return folder


# In the browser


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('host', HOSTS)
def test_runs_are_compared(browser, store, tmp_path, host):
    with live(browser, 'runs', host, tmp_path, runs=str(store), reports=str(tmp_path)) as seen:
        dynamic, aide, em = (
            f'table1/{row}, quick, digits' for row in ('a_dynamic', 'f_master_aide', 'b_em')
        )
        assert seen.facts['chosen'] == [dynamic, em, aide]
        assert 'failed: the loss is nan at step 3 of epoch 3 <b>' in seen.explorer.inner_text()
        assert seen.facts['means'][dynamic][-1] == [5, 13.0]
        assert seen.facts['lines'] >= 3 + 3 + 1 + 2
        before = seen.picture(f'runs-{host}-1')

        seen.drag('From epoch', 0.9)  # by the mouse
        seen.until(lambda facts: facts['from'] > 1)
        moved = seen.picture(f'runs-{host}-2-dragged')
        assert moved != before

        # by the keyboard, which JupyterLab does not get
        seen.press('From epoch', 'Home', 'ArrowRight')
        seen.until(lambda facts: facts['from'] == 2)
        assert seen.picture(f'runs-{host}-3-keys') not in (before, moved)
        assert seen.page.evaluate('document.activeElement.type') == 'range'
        seen.press('From epoch', 'ArrowLeft')
        seen.until(lambda facts: facts['from'] == 1)

        seen.press(f'{em}, failed', 'Space')
        seen.until(lambda facts: em not in facts['chosen'])
        assert seen.picture(f'runs-{host}-4-unchosen') != before
        seen.control('Filter').press_sequentially('dynamic')
        seen.until(lambda facts: facts['listed'] == [dynamic] == facts['chosen'])
        row = seen.explorer.locator('tbody tr').all_inner_texts()
        assert (
            len(row) == 1 and '10.5 to 15.5' in row[0] and '164,672' in row[0] and 'fresh' in row[0]
        )
        seen.control('Curve').select_option('test_loss')
        seen.until(
            lambda facts: (
                facts['metric'] == 'test_loss' and facts['means'][dynamic][-1] == [5, 0.1625]
            )
        )

        with seen.page.expect_download() as caught:
            seen.explorer.get_by_role('button', name='Save CSV').click()
        assert caught.value.suggested_filename == 'runs.csv'
        rows = list(csv.DictReader(io.StringIO(caught.value.path().read_text())))
        assert len(rows) == 3 * 5 and {row['seed'] for row in rows} == {'0', '1', '2'}
        last = dict(
            row='a_dynamic',
            seed='0',
            epoch='5',
            error='12',
            test_loss='0.15',
            state='fresh',
            divergence='',
        )
        assert rows[4] | last == rows[4]
        with seen.page.expect_download() as caught:
            seen.explorer.get_by_role('button', name='Save SVG').click()
        drawing = ElementTree.fromstring(caught.value.path().read_text())
        assert (
            drawing.tag == '{http://www.w3.org/2000/svg}svg'
            and 'test loss over epochs' in ''.join(drawing.itertext())
        )

        fabricate(store, 'e_master', 0, [50.0, 10.0])
        seen.page.get_by_role('button', name='Read again').click()
        seen.control('Filter').fill('')
        seen.until(lambda facts: facts['groups'] == 4 and dynamic in facts['chosen'])

        taken = seen.milliseconds('From epoch', *['ArrowRight', 'ArrowLeft'] * 5)
        print(f'{host}: {seen.seconds} s; per key {[round(one) for one in taken]} ms')
        assert sorted(taken)[5] < 300, '150 ms on two free cores'
        assert seen.errors == []
        assert seen.elsewhere == []
        keeps_nobody_out(seen, host)


OTHERS = sorted(
    path.stem
    for path in (ROOT / 'nbs' / 'explore').glob('*.ipynb')
    if path.stem not in ('runs', 'claims')  # they have tests of their own
)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('name', OTHERS)
def test_every_explorer_is_drawn_and_moved(browser, tmp_path, name, host):
    """Without a trained network, with nothing but the keyboard; what each of them shows is tested
    where it is made."""
    given = dict(runs=str(tmp_path / 'none'), reports=str(ROOT / 'reports'))
    with live(browser, name, host, tmp_path, **given) as seen:
        if name == 'transport':  # what the first picture does not wait for
            seen.until(lambda found: found['curve'] == 41, PATIENCE / 1000)
        label = seen.explorer.locator('input[type=range]').first.get_attribute('aria-label')
        before, facts = seen.pictures(f'{name}-{host}-1'), {**seen.facts, 'milliseconds': 0}
        seen.press(label, 'ArrowRight', 'ArrowRight')
        seen.until(lambda found: {**found, 'milliseconds': 0} != facts)
        assert before and seen.pictures(f'{name}-{host}-2-moved') != before
        print(
            f'{name}, {host}: {seen.seconds} s; per key '
            f'{[round(one) for one in seen.milliseconds(label, *["ArrowLeft", "ArrowRight"] * 3)]} ms'
        )
        assert seen.errors == [] and seen.elsewhere == []
        keeps_nobody_out(seen, host)


def keeps_nobody_out(seen, host):
    "By axe, in the light and in the dark; JupyterLab's own frame is not ours to judge."
    if host == 'voila':
        unnamed = '.widget-slider .noUi-handle:not([aria-label])'
        seen.page.wait_for_function(f'!document.querySelector("{unnamed}")')
        assert barriers(seen.page) == [], 'in the light'
        ink = "getComputedStyle(document.querySelector('h1')).color"
        light = seen.page.evaluate(ink)
        seen.page.emulate_media(color_scheme='dark')
        seen.page.wait_for_function(f'{ink} !== {light!r}')
        assert barriers(seen.page, 'color-contrast') == [], 'in the dark'


def answered(reports, row, errors_at):
    "A run of the ledger as if it had been trained: which of 1,000 digits each seed got wrong."
    for seed, wrong in enumerate(errors_at):
        [config] = [
            one
            for one in plan('table1', PROFILES['quick'], {'digits': '0' * 64}, 3, [row])
            if one.seed == seed
        ]
        error = 100 * len(wrong) / 1000
        outcome = dict(
            error=error,
            errors=[80.0, 30.0, 9.0, error, error],
            losses=[0.5, 0.4, 0.3, 0.2, 0.1],
            train_loss=0.1,
            parameters=1000,
            test_images=1000,
            constant_error=90.0,
            source='embedded',
            mistakes=pack_mistakes([image in wrong for image in range(1000)]),
        )
        with Run(reports / 'store', config).locked() as run:
            finish(run, outcome, 'a machine', reports, seconds=1.0)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('host', HOSTS)
def test_a_claim_is_looked_behind(browser, tmp_path, host):
    """Its runs, how often two rows agree, and the very images on which they do not, which the
    kernel sends when they are asked for."""
    answered(tmp_path, 'f_master_aide', [{1, 2, 3}, {1, 2, 4}, {1, 2, 5}])
    answered(tmp_path, 'e_master', [{1, 7, 8, 9}, {1, 7, 8, 10}, {1, 7, 8, 11}])
    with live(browser, 'claims', host, tmp_path, reports=str(tmp_path)) as seen:
        seen.control('Claim').select_option('aide_needed')
        seen.until(lambda facts: facts['claim'] == 'aide_needed' and facts['pictures'] == 9)
        seen.until(lambda facts: not facts['working'])
        facts = seen.facts
        assert facts['verdict'].startswith('unresolvable') and facts['looks'] == 3, '5, 8 and 12'
        assert facts['rows'] == ['table1/f_master_aide', 'table1/e_master']
        assert (facts['profile'], facts['dataset'], facts['images']) == ('quick', 'digits', 1000)
        # both wrong on image 1 alone, over all nine pairs of seeds
        wanted = dict(both=994, first=3, second=2, neither=1)
        assert {name: round(value, 6) for name, value in facts['table'].items()} == wanted
        assert facts['order'] == [[7, 8, 9, 10, 11], [2, 3, 4, 5]]
        before = seen.picture(f'claims-{host}-1', '.strip canvas')
        seen.control('Row').select_option('table1/e_master')
        seen.until(lambda facts: facts['order'] == [[2, 3, 4, 5], [7, 8, 9, 10, 11]])
        assert seen.picture(f'claims-{host}-2', '.strip canvas') != before
        seen.press('Images shown', 'Home')
        seen.until(lambda facts: facts['most'] == 6)
        seen.control('Table or figure').select_option('Table 1')
        seen.until(lambda facts: facts['claim'])
        assert seen.errors == [] and seen.elsewhere == []
        keeps_nobody_out(seen, host)


@pytest.mark.slow
@pytest.mark.browser
def test_the_list_opens_explorers_and_an_empty_store_says_what_fills_it(browser, tmp_path):
    notebooks = sorted((ROOT / 'nbs' / 'explore').glob('*.ipynb'))
    nowhere = str(tmp_path / 'none')
    with serve.serving(notebooks, runs=nowhere, reports=nowhere) as (url, _):
        context = browser.new_context()
        seen = Live(context.new_page(), url, tmp_path)
        seen.page.goto(url)
        links = seen.page.locator('.voila-notebooks a')
        assert {path.name for path in notebooks} == {
            text.strip() for text in links.all_inner_texts()
        }
        seen.page.goto(
            url.split('?')[0].rstrip('/')
            + links.filter(has_text='runs.ipynb').get_attribute('href')
        )
        assert 'encapnet reproduce table1' in seen.facts['sentence']
        assert 'missing:' in seen.explorer.inner_text()
        assert seen.errors == [] and seen.elsewhere == []
        context.close()


# On the command line


def explore(*arguments):
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    return done.returncode, done.stdout, done.stderr


def test_help_tells_all():
    code, told, said = explore('--help')
    assert (code, said) == (0, '')
    assert all(
        option in told
        for option in (
            '[NAME]',
            '--lab',
            '--port',
            '--no-browser',
            '--runs',
            '--reports',
            '--data-root',
        )
    )


@pytest.mark.parametrize(
    ('arguments', 'code', 'says'),
    [
        (['rnus'], 2, "no explorer 'rnus'; expected one of: .*did you mean 'runs'"),
        (['runs', '--port', '99999'], 2, '65535'),
        (['runs', '--data-root', 'nowhere'], 2, 'data root nowhere is no folder'),
    ],
)
def test_mistakes_are_one_line(arguments, code, says):
    ended, told, said = explore(*arguments)
    assert (
        (ended, told) == (code, '')
        and re.search(says, said)
        and len(said.strip().splitlines()) == 1
    )


def test_a_port_that_is_taken_starts_nothing():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, told, said = explore('runs', '--port', str(port))
    assert (code, told) == (1, '')
    assert (
        said
        == f'encapnet: cannot listen on 127.0.0.1, port {port}: Address already in use; without '
        '--port a free one is found\n'
    )


def test_a_server_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(
        serve,
        '_command',
        lambda *_: [sys.executable, '-c', "print('first'); raise SystemExit('no such luck')"],
    )
    with (
        pytest.raises(StudyError, match='the server did not start: no such luck'),
        serve.serving([]),
    ):
        pass


def status(url):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    try:
        return (
            urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay)
            .open(url, timeout=600)
            .status
        )
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.parametrize('host', HOSTS)
def test_only_who_knows_the_token_gets_in(host, tmp_path):
    """A request without it starts nothing; Ctrl-C ends the server, quietly, and leaves nothing
    behind."""
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'TMPDIR': str(tmp_path),
        'BROWSER': '',
        'DISPLAY': '',
        'WAYLAND_DISPLAY': '',
    }
    arguments = [*COMMAND, 'runs', *(['--lab'] if host == 'lab' else [])]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, start_new_session=True, **pipes
    )
    try:
        url = command.stdout.readline().strip()
        base, token = re.fullmatch(
            r'(http://127\.0\.0\.1:\d+/)(?:lab/tree/runs\.ipynb)?\?token=([\w-]{32})', url
        ).groups()
        closed = (
            ('api/kernels', 'api/contents', 'lab')
            if host == 'lab'
            else ('', 'voila/render/runs.ipynb', 'voila/tree', 'api/kernels')
        )
        assert all(status(base + path) in (302, 401, 403) for path in closed)
        assert all(status(f'{base}{path}?token=wrong') in (302, 401, 403) for path in closed)
        assert status(f'{base}api/status?token={token}' if host == 'lab' else url) == 200
        port = int(base.split(':')[2].strip('/'))
        assert nobody_listens('127.0.0.2', port), (
            'the whole loopback network, or the world, is let in'
        )
        with suppress(FileNotFoundError):
            assert (
                token
                not in subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
            )
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=600)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130
    assert (
        said.splitlines()[1:] == [f'no browser found: open {url} in one'] and 'Ctrl-C ends' in said
    )
    assert list(tmp_path.glob('encapnet-explore-*')) == []
    assert nobody_listens('127.0.0.1', port), 'the server is still there'


def nobody_listens(address, port):
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) != 0
