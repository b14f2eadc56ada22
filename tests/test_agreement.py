"""Figure 2 and polarisation: the authors' numbers as data, made-up records with a planted story,
and both pages from trained runs."""

import json
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from browsing import Visit
from commands import encapnet

from encapnet.show.tables.fig2 import Fig2
from encapnet.show.tables.fig2_frames import with_agreement
from encapnet.show.tables.polarisation import Polarisation
from encapnet.study import paper
from encapnet.study.claims import comparisons
from encapnet.errors import StudyError
from encapnet.study.planning import plan
from encapnet.study.ledger import append_ledger
from encapnet.study.records import Record
from encapnet.study.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10


def curve(first, last, error):
    return [[first + (last - first) * step / (EPOCHS - 1), error] for step in range(EPOCHS)]


def one_class(first, last, low, high, length, dull=1.0):
    """Polarisation and both ends rise from their first to their last value and have settled; what
    is left lies in the middle, and becomes short."""
    ends = [(low * step, high * step) for step in (0, 0.5, 0.97, 1)]
    return dict(
        polarisation=curve(first, last, 0.01),
        dissimilar=curve(0.0, low, 0.01),
        similar=curve(0.0, high, 0.01),
        dissimilar_length=curve(0.5, dull * length, length / 20),
        similar_length=curve(0.5, length, length / 100),
        entropy=curve(1.0, 0.9, 0.001),
        share=[[a, *[0.0] * 9, 1 - a - b, *[0.0] * 8, b] for a, b in ends],
        length=[
            [dull * length, *[0.0] * 9, length * middle, *[0.0] * 8, length]
            for middle in (1, 0.5, 0.21, 0.2)
        ],
    )


PAPERLIKE = dict(dynamic=(0.0, 0.5, 0.37, 0.4, 0.01), em=(0.0, 0.8, 0.2, 0.7, 0.02, 0.1))
CONTRARY = dict(dynamic=(0.6, 0.5, 0.1, 0.1, 2.0), em=(0.2, 0.1, 0.3, 0.05, 1.0))


def records(story, experiment='polarisation', seeds=1, spread=0.01, profile='long'):
    for config in plan(experiment, PROFILES[profile], {'mnist': '0' * 64}, seeds):
        first, last, *rest = story[config.network.routing]
        true = one_class(first, last + spread * config.seed, *rest)
        other = {name: values for name, values in true.items() if name != 'entropy'}
        said = dict(
            epochs=list(range(1, EPOCHS + 1)), moments=[1, 2, 5, 10], true=true, other=other
        )
        outcome = dict(
            error=1.0,
            train_loss=0.1,
            errors=[1.0] * EPOCHS,
            losses=[0.1] * EPOCHS,
            epochs=EPOCHS,
            test_images=10_000,
            parameters=7,
            source='torchvision',
            agreement=said,
        )
        yield Record(
            key=config.key,
            experiment=config.experiment,
            row=config.row,
            config=config.model_dump(mode='json'),
            outcome=outcome,
            provenance=dict(
                code='0' * 12, device='a processor', seconds=60.0, versions=dict(torch='2')
            ),
        )


def study(story, experiment='polarisation', seeds=1, **more):
    from encapnet.show.report.standing import Standing

    made = {
        record.key: (record.row, record, 'fresh', '')
        for record in records(story, experiment, seeds, **more)
    }
    kind = dict(fig2=Fig2, polarisation=Polarisation)[experiment]
    return kind(PROFILES['long'], f'encapnet reproduce {experiment}', Standing(made))


def rows(html):
    "The cells of a table's body, a list for each of its lines."
    body = re.search(r'<tbody.*?</tbody>', html, re.DOTALL)[0]
    lines = re.findall(r'<tr.*?</tr>', body, re.DOTALL)
    return [
        [
            re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', ' ', cell)).strip()
            for cell in re.findall(r'<td.*?</td>', line, re.DOTALL)
        ]
        for line in lines
    ]


def verdicts(made):
    "By claim: the word, without what stands in its way."
    found = {cells[0]: cells[-1] for cells in rows(made.verdict().as_raw_html()) if len(cells) > 2}
    return {
        claim: re.sub(
            r'(direction (dis)?agrees|unresolvable at \d+ seeds?|not attempted).*', r'\1', word
        )
        for claim, word in found.items()
    }


@pytest.mark.parametrize('higher', ['target_j', 'non_target'])
@pytest.mark.parametrize('epoch', [1, 20, 80, 200, 300])
def test_the_authors_bars_add_up(higher, epoch):
    panel = paper.authors_histogram(higher, epoch)
    assert sum(one.share for one in panel) == pytest.approx(100, abs=1e-3)
    assert [one.left for one in panel] == pytest.approx(
        [step / 10 - 1 for step in range(21)]
    ) and panel[-1].share == 0


def test_a_wheel_carries_the_authors_numbers(tmp_path):
    code = f'import setuptools.build_meta as made; print(made.build_wheel({str(tmp_path)!r}))'
    copy = tmp_path / 'copy'
    copied = [
        'cp',
        '-r',
        *(str(ROOT / name) for name in ('pyproject.toml', 'README.md', 'LICENSE', 'encapnet')),
        str(copy),
    ]
    copy.mkdir()
    subprocess.run(copied, check=True)
    built = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=copy, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    assert 'encapnet/study/fig2_authors.csv' in names


def test_the_table_says_what_the_record_says():
    made = study(PAPERLIKE)
    shown = {
        cells[0]: cells[1:]
        for cells in reversed(rows(made.table().as_raw_html()))
        if len(cells) > 2
    }
    half = 1.959964
    assert shown['polarisation'] == [
        f'0.500 ({0.5 - half * 0.01:.3f} to {0.5 + half * 0.01:.3f})',
        '–',
        '0.807',
        f'0.800 ({0.8 - half * 0.01:.3f} to {0.8 + half * 0.01:.3f})',
        '–',
    ]
    assert shown['dissimilar capsules (%)'] == [
        '37.00 (35.04 to 38.96)',
        '37',
        '35.85',
        '20.00 (18.04 to 21.96)',
        '20',
    ]
    assert [shown['length |V|, similar'][at] for at in (1, 2, 4)] == ['0.01', '0.00904', '0.02']
    assert (
        'n = 1 seed' in made.table().as_raw_html()
        and '128 test images' in made.table().as_raw_html()
    )


def test_several_seeds_give_students_interval():
    made = study(PAPERLIKE, seeds=3)
    found = made.statistic('a512_dynamic', 'mnist', 'polarisation')
    assert (found.value, found.seeds, found.source) == (pytest.approx(0.51), 3, 'seeds')
    assert found.high - found.value == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert 'n = 3 seeds' in made.curves().caption


def test_a_planted_story_is_told_and_its_opposite_is_not():
    agrees, contrary = verdicts(study(PAPERLIKE, seeds=3)), verdicts(study(CONTRARY, seeds=3))
    assert len(agrees) == len(comparisons('polarisation')) == 17
    length = 'similar capsules have longer votes with EM'
    assert set(agrees.values()) == {'direction agrees'}
    for claim in (
        'polarisation grows with training (dynamic routing)',
        'polarisation grows with training (EM)',
        length,
        'EM is more polarised than dynamic routing',
        'fewer capsules are dissimilar with EM (%)',
    ):
        assert contrary[claim] == 'direction disagrees', claim
    noisy = verdicts(study(PAPERLIKE, seeds=3, spread=0.8))
    assert noisy['EM is more polarised than dynamic routing'] == 'unresolvable at 3 seeds'


def test_fewer_epochs_claim_nothing_of_more():
    for made in (study(PAPERLIKE), study(PAPERLIKE, 'fig2')):
        page = made.verdict().as_raw_html()
        assert '10 epochs say nothing of epoch 200' in page and 'reproduced' not in page


def test_fewer_dissimilar_capsules_for_want_of_both_ends_are_named():
    weak = PAPERLIKE | dict(em=(0.0, 0.03, 0.0, 0.01, 0.02))
    assert 'fewer at both ends' in study(weak).verdict().as_raw_html()
    assert 'fewer at both ends' not in study(PAPERLIKE).verdict().as_raw_html()


def test_a_length_of_one_image_has_no_interval():
    lonely = list(records(PAPERLIKE))
    for record in lonely:
        record.outcome['agreement']['true']['similar_length'][-1][1] = 0.0
    from encapnet.show.report.standing import Standing

    made = Polarisation(
        PROFILES['long'],
        '',
        Standing({record.key: (record.row, record, 'fresh', '') for record in lonely}),
    )
    assert verdicts(made)['similar capsules have longer votes with EM'] == 'unresolvable at 1 seed'
    said = ' '.join(sum(rows(made.verdict().as_raw_html()) + rows(made.table().as_raw_html()), []))
    assert not re.search(r'\b(nan|inf)\b', said)
    assert len(made.curves().svg) > 10_000


@pytest.mark.parametrize(
    'broken',
    [None, 'polarised', dict(epochs=[1], moments=[1], true={}, other={})],
    ids=['none', 'a word', 'empty'],
)
def test_records_of_older_code_are_refused_in_one_line(tmp_path, broken):
    for record in records(PAPERLIKE):
        record.outcome['agreement'] = broken
        append_ledger(tmp_path / 'ledger' / 'table1.jsonl', record)
    ran = encapnet(
        'reproduce', 'polarisation', '--profile', 'long', '--from-ledger', '--reports', tmp_path
    )
    *left_out, said = ran.stderr.strip().splitlines()
    assert (
        ran.returncode == 1 and 'Traceback' not in ran.stderr and said.startswith('encapnet: ')
    ), ran.stderr
    if broken == 'polarised':  # no record at all: its line is named, and what is wrong with it
        assert [line.partition(': ')[0] for line in left_out] == [
            'table1.jsonl, line 1',
            'table1.jsonl, line 2',
        ] and 'agreement: ' in said
    else:
        assert not left_out and 'no word on how votes agreed' in said and '--retrain' in said, (
            ran.stderr
        )
    assert not (tmp_path / 'long' / 'polarisation.html').exists()


def test_some_records_of_older_code_are_named_on_the_page():
    from encapnet.show.report.standing import Standing

    made = list(records(PAPERLIKE))
    del made[0].outcome['agreement']
    standing = Standing({record.key: (record.row, record, 'fresh', '') for record in made})
    partly = Polarisation(PROFILES['long'], 'encapnet reproduce polarisation', standing)
    assert (
        'without agreement' in partly.provenance().as_raw_html()
        and '--retrain' in partly.provenance().as_raw_html()
    )
    assert verdicts(partly)['EM is more polarised than dynamic routing'] == 'not attempted'
    with pytest.raises(StudyError, match='a512_dynamic'):
        with_agreement(
            Standing({made[0].key: (made[0].row, made[0], 'fresh', '')}),
            'encapnet reproduce polarisation',
        )


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Both reports in the smoke profile, as the command line makes them."
    folder = tmp_path_factory.mktemp('agreement')
    options = ['--profile', 'smoke', '--runs', folder / 'runs', '--reports', folder / 'reports']
    ran = encapnet('reproduce', 'fig2', 'polarisation', *options)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_both_pages_come_from_five_runs(pages):
    done = [json.loads(path.read_text()) for path in pages.glob('runs/*/*/*/DONE')]
    assert sorted(record['row'] for record in done) == [
        'a512_dynamic',
        'a_dynamic',
        'b512_em',
        'b_em',
        'lower_scaled',
    ]
    csv = (
        (pages / 'reports' / 'tables' / 'smoke' / 'polarisation-runs.csv').read_text().splitlines()
    )
    assert len(csv) == 1 + 2 * (6 + 5) * 2, 'rows, statistics of both classes, epochs'
    record = next(record for record in done if record['row'] == 'b512_em')
    last = record['outcome']['agreement']['true']['polarisation'][-1][0]
    assert (
        f'{last:.3f}'
        in (pages / 'reports' / 'tables' / 'smoke' / 'polarisation-numbers.csv').read_text()
    )
    page = (pages / 'reports' / 'smoke' / 'fig2.html').read_text()
    assert (
        page.count('<figure class="output figure">') == 2
        and '>35.85<' in page
        and '64 test images' in page
        and 'sha256' in page
    )
    assert 'not attempted' not in page and 'no run yet' not in page


@pytest.mark.browser
@pytest.mark.parametrize('name', ['fig2', 'polarisation'])
def test_the_pages_open_offline(browser, pages, name):
    path = pages / 'reports' / 'smoke' / f'{name}.html'
    assert path.stat().st_size < 2_000_000
    with Visit(browser, path) as visit:
        assert (visit.asked, visit.said) == ([], [])
        visit.see("document.querySelectorAll('pre, code').forEach(e => e.remove())")
        assert not re.search(r'\\[a-z]+|\$[^$\n]+\$', visit.see('document.body.innerText'))
        assert visit.see(
            '[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt.length > 10)'
        )
        wide = (
            "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > "
            "t.closest('main').clientWidth).map(t => t.id)"
        )
        assert visit.see(wide) == []
    with Visit(browser, pages / 'reports' / 'index.html') as visit:
        assert (visit.asked, visit.said) == ([], [])
