"""What pages rest on and whether they still hold: mutilated ledgers, one rule of what counts,
tables' and figures' twins, equal bytes, and `encapnet reproduce --check`."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from encapnet.study import freshness, ledger, records
from encapnet.cli import check as checking
from encapnet.cli.main import main
from encapnet.cli.notebooks import notebooks as known_notebooks
from encapnet.study.experiments import EXPERIMENTS
from encapnet.study.findings import VERDICTS
from encapnet.study.ledger import _sealed, counted, read_ledger
from encapnet.study.records import config_of
from encapnet.study.request import Request

pytestmark = pytest.mark.usefixtures('forked')

ROOT = Path(__file__).resolve().parents[1]
LEDGERS = sorted(path.stem for path in (ROOT / 'reports' / 'ledger').glob('*.jsonl'))


def lines_of(name):
    "A committed ledger's records as sealed lines."
    return [
        _sealed(record) for record in read_ledger(ROOT / 'reports' / 'ledger' / f'{name}.jsonl')[0]
    ]


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "A reports folder with the committed ledgers, sealed."
    reports = tmp_path_factory.mktemp('clean')
    (reports / 'ledger').mkdir()
    for name in LEDGERS:
        (reports / 'ledger' / f'{name}.jsonl').write_bytes(b'\n'.join(lines_of(name)) + b'\n')
    return reports


# What is wrong with a line
# ----------------------------------------------------------------------------------------------


def changed(line, **change):
    """A record's line with some fields changed, and no seal: as an editor that knows the format
    would leave it."""
    fields = json.loads(line)
    del fields['seal']
    return json.dumps(fields | change, sort_keys=True).encode()


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


def wrong_lines(line):
    "One line of each kind that cannot count, with a word of what is said of it."
    fields = json.loads(line)
    outcome, trained = fields['outcome'], 'error' in fields['outcome']
    number = 'error' if trained else 'parameters' if 'parameters' in outcome else 'median'
    digit = re.search(rf'"{number}": (\d)'.encode(), line)
    place = digit.start(1)
    edited = line[:place] + (b'8' if line[place : place + 1] != b'8' else b'7') + line[place + 1 :]
    return [
        (line[: len(line) // 2], 'torn'),
        (line.replace(b'"key": "', b'"key": "\xff\xfe'), 'no text in UTF-8'),
        (changed(line, schema_version=2), 'schema version 2, this version of encapnet reads 1'),
        (changed(line, row='no_such_row'), "unknown row 'no_such_row'"),
        (changed(line, experiment='no_such'), "unknown experiment 'no_such'"),
        (changed(line, key='0' * 12), 'is not that of its configuration'),
        (edited, 'its seal does not match'),
        (
            changed(line, outcome=without(outcome, number)),
            f'lacks what a report needs ({number}: Field required)',
        ),
        (changed(line, outcome=outcome | {number: float('nan')}), 'lacks what a report needs'),
        (changed(line, outcome=outcome | {number: '5'}), 'lacks what a report needs'),
        (
            changed(line, provenance=without(fields['provenance'], 'device')),
            'lacks what a report needs (device: Field required)',
        ),
        (b'[' * 10_000, 'torn'),
        (b'null', 'not a record'),
    ] + [
        (changed(line, outcome=outcome | dict(error=101.0)), 'less than or equal to 100')
    ] * trained


def twice(line):
    """A training run again, from another machine and by other code, with another number; sealed,
    and so without a fault of its own."""
    record = records.read_record(line)
    provenance = record.provenance | dict(device='another machine', code='0' * 12, certificates=[])
    return _sealed(
        record.model_copy(
            update=dict(
                provenance=provenance, outcome=record.outcome | dict(error=1.25, mistakes=None)
            )
        )
    )


@pytest.fixture(scope='module')
def mutilated(clean, tmp_path_factory):
    """The same ledgers with one line of each kind that cannot count, in the middle, and what is
    expected to be said: name, line, words."""
    reports, expected = tmp_path_factory.mktemp('mutilated'), []
    (reports / 'ledger').mkdir()
    for name in LEDGERS:
        good = lines_of(name)
        wrong = wrong_lines(good[0])
        lines = (
            [twice(good[0])] * (name in EXPERIMENTS)
            + [good[0]]
            + [line for line, _ in wrong]
            + good
        )
        start = 2 + (name in EXPERIMENTS)
        expected += [
            (f'{name}.jsonl, line {start + number}: ', told)
            for number, (_, told) in enumerate(wrong)
        ]
        expected.append(
            (
                f'{name}.jsonl, line {start - 1}: ',
                f'the same as line {start + len(wrong)}, which counts',
            )
        )
        if name in EXPERIMENTS:
            expected.append((f'{name}.jsonl, line 1: ', 'is the same run as line'))
        (reports / 'ledger' / f'{name}.jsonl').write_bytes(b'\n'.join(lines) + b'\n')
    return reports, expected


@pytest.mark.parametrize('name', LEDGERS)
def test_each_bad_line_is_named_and_costs_itself_alone(clean, mutilated, name):
    reports, expected = mutilated
    good, none = read_ledger(clean / 'ledger' / f'{name}.jsonl')
    assert none == [] and len(good) == len(lines_of(name))
    profiles = (
        sorted({record.config['profile'] for record in good}) if name in EXPERIMENTS else ['']
    )
    for profile in profiles:
        found, notes = counted(reports, name, profile)
        assert found == counted(clean, name, profile).records and found
        for place, told in expected:
            if place.startswith(f'{name}.jsonl') and (
                'same run' not in told or profile == good[0].config.get('profile', '')
            ):
                assert sum(note.startswith(place) and told in note for note in notes) == 1, (
                    place,
                    told,
                    notes,
                )


STUDIES = {
    'table1': (
        'table1',
        lambda module, reports: module.table1(Request(ledger=True, reports=str(reports))),
    ),
    'softmax_axis': (
        'softmax_axis',
        lambda module, reports: module.softmax_axis(Request(ledger=True, reports=str(reports))),
    ),
    'claims': ('claims', lambda module, reports: module.claims(reports)),
    'deviations': ('deviations', lambda module, reports: module.deviations(reports)),
}
for name in ('table3_left', 'table3_right'):
    STUDIES[name] = (
        'table3',
        lambda module, reports, name=name: module.table3(
            name, Request(ledger=True, reports=str(reports))
        ),
    )
for name in ('fig2', 'fig4', 'polarisation'):
    STUDIES[name] = (
        name,
        lambda module, reports, name=name: getattr(module, name)(
            Request(ledger=True, reports=str(reports))
        ),
    )
for name in ('routing', 'transport', 'capconv', 'data'):
    STUDIES[f'bench_{name}'] = (
        f'bench_{name}',
        lambda module, reports, bench=f'{name}_bench': getattr(module, bench)(
            Request(ledger=True, reports=str(reports))
        ),
    )


@pytest.fixture(autouse=True)
def largest_batches():
    "Of these, one that patched them leaves nothing behind."
    yield
    if module := sys.modules.get('encapnet.show.tables.bench_routing'):
        from encapnet.bench.routing import largest_batches

        module.largest_batches = largest_batches


def study_of(name, reports):
    from importlib import import_module

    module, make = STUDIES[name]
    module = import_module(f'encapnet.show.tables.{module}')
    if name == 'bench_routing':  # an account that takes seconds, and reads no ledger
        module.largest_batches = lambda: [dict(routing='em', backend='chunked', batch=1234)]
    return make(module, str(reports))


def shown(study):
    "What a study shows, as text."
    if hasattr(study, 'cards'):
        return [study.rollup().as_raw_html(), study.cards()._repr_html_()]
    if isinstance(study.tables(), str):
        return [study.tables(), study.counts().as_raw_html()]
    return [table.as_raw_html() for table in study.tables().values()] + [
        frame.to_csv() for frame in study.frames().values()
    ]


@pytest.mark.parametrize('name', STUDIES)
def test_every_report_shows_the_numbers_of_the_clean_ledger_and_says_what_it_left_out(
    clean, mutilated, name
):
    reports, expected = mutilated
    study = study_of(name, reports)
    assert shown(study) == shown(study_of(name, clean))
    page = study.provenance().as_raw_html()
    read = {
        one for experiment, _ in study.provenance().sources['asked'] for one in homes(experiment)
    }
    said = [(place, told) for place, told in expected if place.partition('.')[0] in read]
    assert said and 'Of several records of one run' in page
    for place, told in said:
        assert place in page, (place, told)
    clean_page = study_of(name, clean).provenance().as_raw_html()
    assert not [place for place, _ in said if place in clean_page]
    # a bench passes over another machine's timings as well
    assert page.count('✗ left out') >= len(said) + clean_page.count('✗ left out')


def homes(experiment):
    "The ledgers that an experiment's rows are at home in."
    rows = EXPERIMENTS.get(experiment)
    return {row.home or experiment for row in rows.values()} if rows else {experiment}


def test_nothing_but_bad_lines_is_one_line(clean, tmp_path, capsys):
    (tmp_path / 'ledger').mkdir()
    (tmp_path / 'ledger' / 'softmax_axis.jsonl').write_bytes(b'{torn\n')
    with pytest.raises(
        ledger.StudyError,
        match=r'no record of softmax_axis, profile=quick, and 1 lines .* softmax_axis.jsonl, '
        r'line 1: not a record',
    ):
        study_of('softmax_axis', tmp_path)


# No line, however mutilated, makes another number
# -----------------------------------------------------------------------

BEFORE = {name: lines_of(name)[0] for name in ('table1', 'bench_transport', 'table1_cost')}
CHANGES = some.tuples(
    some.sampled_from(['truncate', 'swap', 'replace', 'delete', 'double']),
    *[some.integers(0, 100_000)] * 2,
    some.integers(0, 255),
)


def mutilate(line, change):
    kind, one, other, byte = change
    one, other = one % len(line), other % len(line)
    if kind == 'truncate':
        return line[:one]
    if kind == 'swap':
        line = bytearray(line)
        line[one], line[other] = line[other], line[one]
        return bytes(line)
    return (
        line[:one]
        + dict(replace=bytes([byte]), delete=b'', double=line[one : one + 1] * 2)[kind]
        + line[one + 1 :]
    )


@pytest.fixture(scope='module')
def read(tmp_path_factory):
    "A function that reads a ledger of so much."
    (folder := tmp_path_factory.mktemp('lines') / 'ledger').mkdir()

    def reading(name, content):
        (folder / f'{name}.jsonl').write_bytes(content)
        found, problems = read_ledger(folder / f'{name}.jsonl')
        assert len(found) + len(problems) <= content.count(b'\n') + 1
        return found

    return reading


@settings(max_examples=150)
@given(name=some.sampled_from(sorted(BEFORE)), changes=some.lists(CHANGES, min_size=1, max_size=3))
def test_a_mutilated_line_never_makes_another_number(read, name, changes):
    line = BEFORE[name]
    for change in changes:
        line = mutilate(line or b'x', change)
    assert [record for record in read(name, line) if _sealed(record) != BEFORE[name]] == []


@settings(max_examples=150)
@given(name=some.sampled_from(sorted(BEFORE)), change=CHANGES)
def test_a_line_without_a_seal_is_still_held_to_what_it_must_say(read, name, change):
    "From before there were seals: an edited digit may pass, another row, key or shape does not."
    for record in read(name, mutilate(changed(BEFORE[name]), change)):
        assert config_of(record).key == record.key and record.experiment == name
        assert 0 <= record.outcome.get('error', 0) <= 100


# Twins
# ------------------------------------------------------------------------------------------------------------------


def strict(text):
    """A LaTeX table's structure: braces and environments close, each line has as many cells as
    there are columns."""
    depth, escaped = 0, False
    for c in text:
        if c in '{}' and not escaped:
            depth += 1 if c == '{' else -1
        assert depth >= 0
        escaped = c == '\\' and not escaped
    assert depth == 0
    opened = []
    for kind, name in re.findall(r'\\(begin|end)\{(\w+)\}', text):
        if kind == 'begin':
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened and all(ord(c) < 0x180 for c in text)
    specification, body = re.search(
        r'\\begin\{tabular\}\{((?:[lcr]|p\{[^}]*\})*)\}\n(.*)\\end\{tabular\}', text, re.DOTALL
    ).groups()
    width = len(re.sub(r'p\{[^}]*\}', 'p', specification))
    for line in body.splitlines():
        if not line.endswith(r'\\'):
            assert re.match(
                r'\\(toprule|midrule|bottomrule|addlinespace|cmidrule\(lr\)\{\d+-\d+\})$', line
            ), line
            continue
        cells = re.split(r'(?<!\\)&', line.removesuffix(r'\\'))
        assert (
            sum(
                int(m[1]) if (m := re.match(r'\s*\\multicolumn\{(\d+)\}', cell)) else 1
                for cell in cells
            )
            == width
        ), line
        assert len(re.findall(r'(?<!\\)\$', line)) % 2 == 0 and not re.search(
            r'(?<!\\)[%#_^]', re.sub(r'\$[^$]*\$', '', line)
        ), line
    return width


def test_no_cell_is_a_formula_to_a_spreadsheet():
    "A heading with every verdict's sign, of which one is =."
    from types import SimpleNamespace

    from encapnet.show.report.seen import Table
    from encapnet.show.report.twins import as_csv
    from encapnet.show.tables.claims import _rollup

    judged = [SimpleNamespace(verdict=word, group='Text') for word in VERDICTS]
    written = as_csv(Table(_rollup(judged).as_raw_html()))
    head, *lines = csv.reader(written.splitlines())
    assert 'exact =' in head and len(lines) == 2
    assert not [cell for line in (head, *lines) for cell in line if cell.startswith(('=', '@'))]


@pytest.mark.parametrize('name', [name for name in STUDIES if name not in ('claims', 'deviations')])
def test_twins_say_what_the_page_says(clean, tmp_path, name):
    from encapnet.show.report.seen import Table, plain
    from encapnet.show.report.twins import save

    study = study_of(name, clean)
    for caption, table in study.tables().items():
        read = Table(table.as_raw_html())
        data, text = save(tmp_path, 'quick', {caption: table}, {})
        assert (data.name, text.name) == (f'{read.name}.csv', f'{read.name}.tex')
        head, *lines = csv.reader(data.read_text().splitlines())
        body = [row for row in read.body if len(row) == len(read.align)]
        assert (
            len(lines) == len(body)
            and len(set(head)) == len(head)
            and all(head)
            and all(len(line) == len(head) for line in lines)
        )
        assert not re.search(r'<\w|&\w+;', data.read_text()) and strict(text.read_text()) == len(
            read.align
        )
        for row, line in zip(body, lines):
            numbers = [
                number.replace(',', '')
                for cell in row
                for number in re.findall(r'\d[\d,]*\.?\d*', plain(cell.content))
            ]
            written = ' '.join(line).replace(',', '')
            assert [number for number in numbers if number not in written] == [], (
                'every number that is seen is there'
            )


@pytest.fixture(scope='module')
def rendered(mutilated, tmp_path_factory):
    """Two cheap reports, rendered twice by processes of their own, with other hash seeds, from
    the mutilated ledgers."""
    folders, children = [tmp_path_factory.mktemp(f'rendered{seed}') for seed in (1, 2)], []
    for seed, folder in enumerate(folders, 1):
        shutil.copytree(mutilated[0] / 'ledger', folder / 'reports' / 'ledger')
        command = [
            sys.executable,
            '-m',
            'encapnet',
            'reproduce',
            'bench_transport',
            'softmax_axis',
            '--from-ledger',
            '--reports',
            'reports',
        ]
        environment = os.environ | dict(PYTHONHASHSEED=str(seed), PYTHONPATH=str(ROOT))
        children.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    return [folder / 'reports' for folder in folders], said


def test_equal_ledgers_make_equal_bytes(rendered):
    (one, other), _ = rendered
    files = sorted(path.relative_to(one) for path in one.rglob('*') if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob('*') if path.is_file())
    assert {path.suffix for path in files} == {'.html', '.csv', '.tex', '.svg', '.jsonl'}
    assert [
        path for path in files if (one / path).read_bytes() != (other / path).read_bytes()
    ] == []


def test_whatever_is_left_out_is_told_on_the_page_and_while_it_is_rendered(rendered, mutilated):
    (one, _), (said, _) = rendered
    for place, told in mutilated[1]:
        assert (place in said) == ('same run' not in told), (
            'what no report can count is told at once'
        )
    page = (one / 'quick' / 'softmax_axis.html').read_text()
    assert '✗ left out' in page and 'softmax_axis.jsonl, line 4: ' in page


def tables_of(page):
    "The names of a page's tables, but for the one that says what made it."
    names = re.findall(r'<div[^>]*\bid="([^"]+)"[^>]*>\s*<style>', page.read_text(encoding='utf-8'))
    return {name for name in names if name != 'provenance-table'}


def without_twins(reports, page):
    "Tables of a page that no CSV or no LaTeX stands beside."
    place = reports / 'tables' / page.parent.relative_to(reports)
    return [
        name
        for name in sorted(tables_of(page))
        if not all((place / f'{name}.{kind}').exists() for kind in ('csv', 'tex'))
    ]


def test_every_table_and_figure_of_a_page_has_its_twins(rendered):
    (one, _), _ = rendered
    for name, tables, figures in (('softmax_axis', 3, 1), ('bench_transport', 2, 1)):
        page = one / 'quick' / f'{name}.html'
        assert len(tables_of(page)) == tables and without_twins(one, page) == []
        assert (
            page.read_text().count('<figure class="output figure">')
            == len(list((one / 'figures' / 'quick').glob(f'{name}*.svg')))
            == figures
        )


# reproduce --check
# ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(rendered, tmp_path, monkeypatch, capsys):
    """Pages that hold, and a function that says how `--check` finds them: exit code, page -> what
    is said of it, the last line."""
    shutil.copytree(rendered[0][0], tmp_path / 'reports')
    for name in LEDGERS:
        (tmp_path / 'reports' / 'ledger' / f'{name}.jsonl').write_bytes(
            b'\n'.join(lines_of(name)) + b'\n'
        )

    def check(*more):
        with pytest.raises(SystemExit) as stopped:
            main(['reproduce', '--check', '--reports', str(tmp_path / 'reports'), *more])
        told, said = capsys.readouterr()
        found, page = {}, ''
        for line in told.splitlines():
            page, text = (line.split(None, 1)) if line[0] != ' ' else (page, line.strip())
            found.setdefault(page, []).append(text)
        return stopped.value.code, found, (said.splitlines() or [''])[-1]

    return tmp_path / 'reports', check


AXIS, TRANSPORT = 'quick/softmax_axis.html', 'quick/bench_transport.html'
BOTH = ('softmax_axis', 'bench_transport')


def test_pages_that_hold(checked):
    _, check = checked
    assert check(*BOTH) == (0, {AXIS: ['ok'], TRANSPORT: ['ok']}, '')
    assert check(*BOTH, '--profile', 'quick')[0] == 0
    code, found, said = check()
    assert (
        code == 1
        and found[AXIS] == ['ok']
        and found['table1.html'] == ['missing: there is no such page']
        and '--from-ledger` renders' in said
    )
    assert check('softmax_axis', '--profile', 'paper')[1] == {
        'paper/softmax_axis.html': ['missing: there is no such page']
    }


def test_a_ledger_that_has_gone_on(checked):
    reports, check = checked
    path = reports / 'ledger' / 'softmax_axis.jsonl'
    first = records.read_record(path.read_bytes().splitlines()[0])
    config = config_of(first).model_copy(update=dict(seed=77))
    path.write_bytes(
        path.read_bytes()
        + _sealed(
            first.model_copy(update=dict(key=config.key, config=config.model_dump(mode='json')))
        )
        + b'\n'
    )
    code, found, said = check(*BOTH)
    seed = first.config['seed']
    name = f'softmax_axis/{first.row}' + (f' seed {seed}' if seed else '')
    seeds = len({json.loads(line)['config']['seed'] for line in lines_of('softmax_axis')})
    fewer = f'made with fewer seeds than the ledger holds: {seeds} of {seeds + 1}'
    assert code == 1 and found == {AXIS: [fewer], TRANSPORT: ['ok']}
    assert said.startswith(
        'encapnet: 1 of 2 pages were made with fewer seeds than the ledger holds; `encapnet '
        'reproduce softmax_axis --from-ledger` renders'
    )
    assert 'no longer hold' not in said
    other = first.model_copy(update=dict(outcome=first.outcome | dict(error=1.5, mistakes=None)))
    path.write_bytes(b'\n'.join([_sealed(other), *lines_of('softmax_axis')[1:]]))
    assert check(*BOTH)[1][AXIS] == [f'the ledger has other records than the page: {name}']
    path.write_bytes(b'\n'.join([b'{torn', *lines_of('softmax_axis')[1:]]))
    code, found, said = check('softmax_axis')
    assert code == 1 and found[AXIS] == [f'the ledger has no longer, or not countable: {name}']


def test_pages_that_a_training_has_overtaken_are_named(checked, capsys):
    reports, _ = checked
    path = reports / 'ledger' / 'softmax_axis.jsonl'
    checking.tell_of_others(str(reports), [])
    assert capsys.readouterr().err == ''
    first = records.read_record(path.read_bytes().splitlines()[0])
    path.write_bytes(
        path.read_bytes()
        + _sealed(
            first.model_copy(update=dict(outcome=first.outcome | dict(error=1.5, mistakes=None)))
        )
        + b'\n'
    )
    checking.tell_of_others(str(reports), [reports / AXIS])
    assert capsys.readouterr().err == '', 'the page that the training was for has them'
    checking.tell_of_others(str(reports), [])
    told = (
        'overtaken by new records: quick/softmax_axis.html; `encapnet reproduce softmax_axis '
        f'--from-ledger` renders them again, each with --reports {reports}'
    )
    assert capsys.readouterr().err.splitlines() == [told]


def test_each_profile_is_rendered_by_a_command_of_its_own():
    both = checking.rendering_command(['claims.html', 'quick/fig2.html', 'long/polarisation.html'])
    assert both == (
        '`encapnet reproduce claims fig2 --from-ledger` and `encapnet reproduce polarisation '
        '--profile long --from-ledger` render them again'
    )


def test_what_a_trial_leaves_is_nobodys_to_keep(checked, passed_over):
    """Pages of `smoke`, which git ignores, are looked at only when they are asked for, and then
    what is advised can be done."""
    reports, check = checked
    (reports / 'smoke').mkdir()
    (reports / 'smoke/softmax_axis.html').write_text('<html><head></head></html>')
    code, found, _ = check()
    assert 'smoke/softmax_axis.html' not in found
    code, found, said = check('softmax_axis', '--profile', 'smoke')
    assert code == 1 and list(found) == ['smoke/softmax_axis.html']
    assert '`encapnet reproduce softmax_axis --profile smoke` renders' in said
    # its runs have entered no ledger
    shutil.copy(reports / AXIS, reports / 'smoke')
    shutil.rmtree(reports / 'ledger')
    assert check('softmax_axis', '--profile', 'smoke') == (
        0,
        {'smoke/softmax_axis.html': ['ok']},
        '',
    )
    assert check('softmax_axis', '--profile', 'quick')[0] == 1
    ignored = [
        'reports/smoke/table1.html',
        'reports/figures/smoke/table1.svg',
        'reports/tables/smoke/table1-errors.tex',
    ]
    assert passed_over(*ignored) == ignored


def test_stale_results(checked, monkeypatch):
    _, check = checked
    now = freshness.code_of

    def changed(config):
        code = now(config)
        if config.experiment != 'softmax_axis':
            return code
        return freshness.Code(
            '0' * 12, code.definitions | {'encapnet.nn.dynamic:dynamic_routing': '0' * 8}
        )

    monkeypatch.setattr(freshness, 'code_of', changed)
    code, found, said = check(*BOTH)
    assert code == 1 and found[TRANSPORT] == ['ok'] and 'stale is trained with --retrain' in said
    (told,) = found[AXIS]
    assert told.startswith('stale results: softmax_axis/')
    # What has changed is told since a record was made, not since it was certified.
    assert '(changed since: ' in told


def test_code_and_notebooks_that_changed_since(checked, monkeypatch, tmp_path):
    _, check = checked
    source = freshness._source

    def edited(module, old, new):
        monkeypatch.setattr(
            freshness,
            '_source',
            lambda name: source(name).replace(old, new) if name == module else source(name),
        )
        assert old in source(module)
        return check(*BOTH)[1]

    changes = 'code of the page changed since: '
    axis = 'show.tables.softmax_axis'
    assert edited(f'encapnet.{axis}', 'does not in', 'never does in') == {
        AXIS: [f'{changes}{axis}'],
        TRANSPORT: ['ok'],
    }
    assert edited('encapnet.show.tables.table3', 'def row_letter', 'X = 1\ndef row_letter') == {
        AXIS: ['ok'],
        TRANSPORT: ['ok'],
    }
    assert edited(
        'encapnet.study.stats', 'def error_interval', '# a remark\ndef error_interval'
    ) == {AXIS: ['ok'], TRANSPORT: ['ok']}
    monkeypatch.setattr(freshness, '_source', source)
    notebooks, copy = known_notebooks(), tmp_path / 'softmax_axis.ipynb'
    monkeypatch.setattr(
        checking, 'notebooks', lambda kind='reports': notebooks | dict(softmax_axis=copy)
    )
    for change, found in (
        ('import', 'import'),
        ('study.vote_table()', 'study.vote_table()  # a remark'),
    ):
        copy.write_text(notebooks['softmax_axis'].read_text().replace(change, found))
        assert check('softmax_axis')[1] == {AXIS: ['ok']}, 'comments do not count'
    copy.write_text(
        notebooks['softmax_axis'].read_text().replace('study.vote_table()', 'study.error_table()')
    )
    assert check('softmax_axis')[1] == {AXIS: [f'{changes}notebook']}


def test_pages_of_other_makers(checked):
    reports, check = checked
    (reports / AXIS).write_text('<!DOCTYPE html><title>by hand</title>')
    (reports / 'quick' / 'gone.html').write_text((reports / TRANSPORT).read_text())
    code, found, said = check()
    assert code == 1 and found[AXIS] == [
        'not made by this tool, or by an earlier version: it bears no stamp'
    ]
    assert found['quick/gone.html'] == ['there is no notebook gone any more'] and 'gone' not in said
    (reports / AXIS).write_text('<meta name="encapnet:code" content="{" /></head>')
    assert 'bears no stamp' in check('softmax_axis')[1][AXIS][0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--on', 'local'), '--on is for making'),
        (('--retrain',), '--retrain is for making'),
        (('--seeds', '3'), '--seeds is for making'),
        (('--from-ledger',), '--from-ledger is for making'),
        (('tabel1',), "did you mean 'table1'"),
        (('--profile', 'qick'), "did you mean 'quick'"),
    ],
)
def test_check_takes_nothing_that_makes_pages(checked, arguments, message):
    code, found, said = checked[1](*arguments)
    assert (code, found) == (2, {}) and message in said


def test_check_is_light_and_quick(rendered):
    "No torch, no pandas, no notebook: seconds."
    code = (
        'import sys\nfrom encapnet.cli.main import main\n'
        "try: main(['reproduce', '--check', 'bench_transport', '--reports', "
        f'{str(rendered[0][0])!r}])\n'
        'except SystemExit as stop: assert not stop.code\n'
        "print('loaded:', *({'torch', 'pandas', 'matplotlib', 'papermill', 'great_tables'} & "
        'sys.modules.keys()))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'loaded:', done.stderr
