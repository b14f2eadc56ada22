"""What the study does otherwise and what is public beside the paper: both told once, held to the
notebooks and tests that they speak of, and rendered as pages that open offline."""

import json
import re
import shutil
from pathlib import Path

import pytest
from browsing import Visit

from encapnet.show.page import publish, shell
from encapnet.show.tables import departures, effects, evidence
from encapnet.study import evidence as public
from encapnet.study import pitfalls
from encapnet.errors import StudyError
from encapnet.study.experiments import EXPERIMENTS
from encapnet.study.stats import difference

pytestmark = pytest.mark.usefixtures('forked')

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / 'reports' / 'ledger'


@pytest.fixture(scope='module')
def told():
    return departures.collect(ROOT / 'nbs')


# Deviations


def test_every_table_of_deviations_is_collected(told):
    """By another way of looking: each heading in the library's prose, and each line below it that
    begins with a bar."""
    expected = {}
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        name = path.relative_to(ROOT / 'nbs').with_suffix('').as_posix()
        if name.startswith(('reports/', 'explore/')) or '.ipynb_checkpoints' in name:
            continue
        prose = '\n'.join(
            ''.join(cell['source'])
            for cell in json.loads(path.read_text())['cells']
            if cell['cell_type'] == 'markdown'
        )
        if heading := re.search(r'^## Deviations$', prose, re.MULTILINE):
            lines = [line for line in prose[heading.end() :].splitlines() if line.startswith('|')]
            expected[name] = [line.split('|')[1].strip() for line in lines[2:]]
    found = {}
    for line in told:
        found.setdefault(line.notebook, []).append(line.what)
    assert found == expected


def test_every_released_default_is_told_as_a_deviation(told):
    names = {line.what for line in told}
    assert [default.what for default in public.DEFAULTS if default.deviation not in names] == []
    assert '| batch | 128 | 256 |' in evidence.default_table(told)


def test_the_registry_speaks_of_what_there_is(told):
    effects.check_effects(effects.EFFECTS, told)
    without = [line for line in told if line.what != 'ground cost']
    with pytest.raises(
        StudyError, match="30_transport.ipynb has no deviation 'ground cost' to measure"
    ):
        effects.check_effects(effects.EFFECTS, without)


def test_both_sides_of_an_effect_differ_in_nothing_else():
    "Two rows that differ in more than the deviation would blame it for what something else does."
    fields = {}
    for effect in effects.EFFECTS:
        if effect.ours.startswith('bench_'):
            continue
        ours, theirs = (
            EXPERIMENTS[experiment][row]
            for experiment, row in (side.split('/') for side in (effect.ours, effect.theirs))
        )
        for part in ('network', 'feedback', 'augmentation', 'loss', 'test_crops', 'batch'):
            one, other = getattr(ours, part), getattr(theirs, part)
            if part in ('network', 'feedback') and one is not None and other is not None:
                fields.setdefault(effect[:3], set()).update(
                    name
                    for name in type(one).model_fields
                    if getattr(one, name) != getattr(other, name)
                )
            elif one != other:
                fields.setdefault(effect[:3], set()).add(part)
    several = {effect: names for effect, names in fields.items() if len(names) != 1}
    assert several == {('nn/31_feedback', 'no extractor (d3)', 'none, l2'): {'extractor', 'cost'}}


def test_an_effect_is_the_difference_of_what_the_ledger_holds():
    "Computed anew from the committed lines, without the package's reader."
    records = [
        json.loads(line) for line in (LEDGER / 'table3_right.jsonl').read_text().splitlines()
    ]
    effect = next(one for one in effects.EFFECTS if one.theirs == 'table3_right/d5_l2')
    found = effects.measure((effect,), LEDGER.parent)
    assert found, 'the committed ledger has both rows'
    for one in found:
        sides = []
        for row in ('c_encapnet_ot', 'd5_l2'):
            here = [
                r
                for r in records
                if r['row'] == row
                and r['config']['profile'] == one.profile
                and r['config']['data']['name'] == one.dataset
            ]
            sides.append({r['config']['seed']: r['outcome'] for r in here})
        gap = difference(
            *[[outcome['error'] for outcome in side.values()] for side in sides],
            next(iter(sides[0].values()))['test_images'],
        )
        assert (one.value, one.low, one.high, one.n) == (
            gap.value,
            gap.low,
            gap.high,
            min(map(len, sides)),
        )


def test_a_damaged_ledger_costs_its_own_line_only(tmp_path):
    (tmp_path / 'ledger').mkdir()
    lines = (LEDGER / 'table3_right.jsonl').read_text().splitlines()
    (tmp_path / 'ledger' / 'table3_right.jsonl').write_text(
        '\n'.join([lines[0][:100], *lines, lines[1], '{}'])
    )
    assert [one[1:7] for one in effects.measure(effects.EFFECTS, tmp_path)] == [
        one[1:7]
        for one in effects.measure(effects.EFFECTS, LEDGER.parent)
        if one.effect.ours.startswith('table3_right')
        and one.effect.theirs != 'table3_right/8_two_ots'
    ]


# Evidence


def test_every_pitfall_has_its_test():
    assert pitfalls.lost_tests(pitfalls.PITFALLS, pitfalls.repository_file(ROOT)) == []


def test_a_pitfall_whose_test_is_gone_stops_the_page(monkeypatch):
    gone = pitfalls.PITFALLS[0]._replace(test='test_close(nothing)')
    monkeypatch.setattr(pitfalls, 'PITFALLS', (gone,))
    with pytest.raises(
        StudyError, match='softmax over the wrong capsules: nbs/nn/07_dynamic.ipynb has no test'
    ):
        evidence.evidence()


# Pages


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    reports = tmp_path_factory.mktemp('site') / 'reports'
    shutil.copytree(LEDGER, reports / 'ledger')
    for name in ('deviations', 'evidence'):
        publish.publish(
            ROOT / 'nbs' / 'reports' / f'{name}.ipynb',
            reports / f'{name}.html',
            dict(reports=str(reports)),
        )
    return reports


def test_the_pages_say_all(site, told):
    page = (site / 'deviations.html').read_text()
    body = page.partition('<article>')[2]
    assert (
        all(f'>{topic}<' in page for topic in departures.TOPICS)
        and f'{len(told)} deviations told by' in page
    )
    assert body.count('<math') > 30 and 'not measured' in body and ' points</strong>' in body
    assert not re.search(
        r'\\[a-zA-Z]+|\$', re.sub(r'<(pre|details)\b.*?</\1>', '', body, flags=re.DOTALL)
    ), 'TeX is left'
    page = (site / 'evidence.html').read_text()
    for said in (
        '151.24',
        '4,295 MB',
        '15.31',
        'inferred',
        'test_finite_on_raw_features',
        '4.55 % on CIFAR-10, the best is 9.80 %',
    ):
        assert said in page, said
    assert {path.name for path in (site / 'tables').iterdir()} >= {
        'deviations.csv',
        'deviations_effects.csv',
        'evidence.csv',
    }


@pytest.mark.browser
@pytest.mark.parametrize('name', ['deviations', 'evidence'])
def test_the_pages_open_offline(site, browser, name):
    path = site / f'{name}.html'
    assert path.stat().st_size < shell.PAGE_LIMIT
    for width in (390, 1280):
        with Visit(browser, path, width) as visit:
            assert (visit.said, visit.asked) == ([], [])
            assert visit.see('document.documentElement.scrollWidth') <= width, (
                'wide tables scroll in boxes of their own'
            )
            assert visit.see(
                '[...document.images].every(image => image.complete && image.naturalWidth > 0 && '
                'image.alt.length > 40)'
            )
