"""The committed site, opened from disk with the network off: it asks for nothing, complains of
nothing, and keeps nobody out.

axe-core looks for the last of these. It comes in by the debugger's door, so the pages' policy
against scripts stays in force meanwhile."""

import html
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from browsing import Visit, barriers

import encapnet
from encapnet.show.page import front as front_page, shell, svg

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / 'reports'
PAGES = sorted(
    path.relative_to(REPORTS).as_posix()
    for path in [*REPORTS.glob('*.html'), *REPORTS.glob('*/*.html')]
    if path.parent.name != 'tour'
)
OPEN = "document.querySelectorAll('details:not(.code)').forEach(d => d.open = true)"


def asks_for_nothing_and_keeps_nobody_out(browser, path, sheets=()):
    "A page, but for the style sheets that are known to lie beside it."
    assert path.stat().st_size < shell.PAGE_LIMIT
    with Visit(browser, path) as visit:
        visit.see(OPEN)
        assert visit.see(
            '[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt.length > 10)'
        )
        assert (
            visit.page.locator('h1').count()
            == visit.page.locator('main').count()
            == visit.page.locator('header.masthead').count()
            == 1
        )
        assert visit.see(
            "document.querySelector('a').matches('.skip') && "
            "!!document.querySelector(document.querySelector('.skip').hash)"
        )
        assert visit.see(
            "[...document.querySelectorAll('table')].every(t => t.caption || t.ariaLabel || "
            "t.hasAttribute('aria-labelledby'))"
        )
        assert barriers(visit.page) == [], 'in the light'
        visit.page.emulate_media(color_scheme='dark')
        assert barriers(visit.page, 'color-contrast', 'link-in-text-block') == [], 'in the dark'
        visit.page.set_viewport_size({'width': 400, 'height': 800})
        assert barriers(visit.page, 'scrollable-region-focusable', 'target-size') == [], (
            'on a telephone'
        )
        assert visit.see('document.documentElement.scrollWidth <= innerWidth'), (
            'only boxes scroll sideways, never the page'
        )
        assert (visit.asked, visit.said) == ([sheet.as_uri() for sheet in sheets], [])


@pytest.mark.browser
@pytest.mark.parametrize('page', PAGES)
def test_a_committed_page_asks_for_nothing_and_keeps_nobody_out(browser, page):
    asks_for_nothing_and_keeps_nobody_out(browser, REPORTS / page)


@pytest.mark.browser
def test_the_test_of_barriers_can_fail(browser, tmp_path):
    (tmp_path / 'bad.html').write_text(
        "<html><title>x</title><main><h1>x</h1><p style='color: #ccc'>faint</p><img "
        "src='data:,'></main></html>"
    )
    with Visit(browser, tmp_path / 'bad.html') as visit:
        assert {rule for rule, _, _ in barriers(visit.page)} == {
            'html-has-lang',
            'color-contrast',
            'image-alt',
        }


# The front page


def judged(id, verdict, **more):
    numbers = dict(
        paper='11.93 < 13.87', ours='(f) 2.10, (e) 2.50', seeds=3, profile='quick', dataset='digits'
    )
    usual = dict(
        statement=f'claim {id}',
        group='Table 1',
        why='',
        findings=(),
        stale=(),
        command='encapnet reproduce table1 --profile quick --seeds 6',
    )
    return SimpleNamespace(**numbers | usual | dict(id=id, verdict=verdict) | more)


JUDGED = [
    judged(
        'aide_needed',
        'unresolvable at 3 seeds',
        statement='the aide branch is needed: (f) has a lower error than (e) <b>',
        why='the interval holds zero',
        findings=[SimpleNamespace(gap='+0.40 points (-0.91 to +1.71)')],
    ),
    judged('em_better', 'direction disagrees', statement='EM is the better routing'),
    judged('shared', 'exact', seeds=0, profile='', dataset='', group='Text'),
    judged('skips', 'direction agrees', group='Table 3, left', stale=('a row',)),
    judged('v3', 'not attempted', seeds=0, profile='', dataset='', ours='–', group='Table 4'),
    judged('r', 'reproduced'),
    judged('n', 'not reproduced'),
]

FIGURE = (
    '<figure class="output figure">\n<div class="paper"><img alt="Two plots &amp; a line" '
    'src="{}"></div>'
)
MADE = """<div class="g" id="provenance"><table><thead><tr><th></th><th></th></tr></thead><tbody class="b">
<tr><td>command</td><td>encapnet reproduce table1 --profile quick --seeds 3 --from-ledger</td></tr>
<tr><th>seeds</th><td>0, 1, 2</td></tr>{}</tbody></table></div>"""


def test_a_stale_run_reaches_the_front_page_from_a_real_provenance_table(tmp_path):
    from encapnet.show.report.provenance import provenance_table
    from encapnet.show.report.standing import Standing

    shown = provenance_table(
        'encapnet reproduce table1',
        None,
        Standing({'k': ('e_master', None, 'stale', 'losses.py has changed')}),
    )
    page = tmp_path / 'quick' / 'table1.html'
    page.parent.mkdir()
    head = (
        '<meta name="encapnet:name" content="table1"><meta name="encapnet:description" '
        'content="about &quot;it&quot;">'
    )
    page.write_text(f'<html><head>{head}</head><body>{shown.as_raw_html()}</body></html>')
    card = front_page._card(page, tmp_path)
    assert (
        card['stale'] == ['e_master (k): stale, losses.py has changed']
        and card['command'] == 'encapnet reproduce table1'
    )
    assert card['description'] == 'about "it"'


@pytest.fixture(scope='module')
def front(tmp_path_factory):
    """A front page with everything: claims of every verdict, a ledger, pages of two profiles and
    of none."""
    folder = tmp_path_factory.mktemp('front')
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="96" height="48"><rect width="96" '
        'height="48" fill="#1b5a8c"/></svg>'
    )

    def write(name, title, body=''):
        (folder / name).parent.mkdir(exist_ok=True)
        meta = {
            'name': Path(name).stem,
            'title': title,
            'description': f'About {title}.',
            'verdict': '2 of 3 agree',
        }
        head = ''.join(
            f'<meta name="encapnet:{key}" content="{value}">' for key, value in meta.items()
        )
        (folder / name).write_text(f'<html><head>{head}</head><body>{body}</body></html>')

    write('claims.html', 'Claims')
    write('deviations.html', 'Deviations')
    write('complexity.html', 'Complexity')
    write('quick/table1.html', 'Table 1', FIGURE.format(svg.svg_uri(drawing)) + MADE.format(''))
    write('quick/bench_data.html', 'Bench', FIGURE.format('data:image/png;base64,' + 'A' * 200_000))
    write(
        'paper/table1.html',
        'Table 1 at length',
        MADE.format('<tr><td>✗ not fresh</td><td>a: losses.py has changed</td></tr>' * 3),
    )
    return front_page.site(folder, judged=JUDGED)


@pytest.mark.browser
def test_the_front_page_asks_for_nothing_and_keeps_nobody_out(browser, front):
    asks_for_nothing_and_keeps_nobody_out(browser, front)


@pytest.mark.browser
def test_every_claim_stands_on_the_front_page(browser, front):
    with Visit(browser, front) as visit:
        rows = visit.page.locator('table.claims tr[data-kind]')
        assert rows.count() == len(JUDGED)
        assert visit.page.locator('tr.group').all_text_contents() == [
            'Table 1',
            'Text',
            'Table 3, left',
            'Table 4',
        ]
        marks = visit.page.locator('.counts .mark').all_inner_texts()
        assert [' '.join(mark.split()) for mark in marks] == [
            '✓ 1 reproduced',
            '✓ 1 direction agrees',
            '= 1 exact',
            '~ 1 unresolvable',
            '✗ 1 direction disagrees',
            '✗ 1 not reproduced',
            '– 1 not attempted',
        ]
        assert 'stale' in rows.filter(has_text='claim skips').locator('.judged').inner_text()

        # As a reader would: what did the paper claim about the aide branch, what was measured, by
        # how many seeds, how to measure it again?
        visit.page.get_by_label('Find a claim').fill('aide')
        row = visit.page.locator('table.claims tr[data-kind]:visible')
        assert row.count() == 1 and visit.page.locator('#found').inner_text() == '1 of 7 claims'
        said = ' '.join(row.inner_text().split())
        for expected in (
            '(f) has a lower error than (e) <b>',
            '~ unresolvable at 3 seeds',
            '11.93 < 13.87',
            '(f) 2.10, (e) 2.50',
            '+0.40 points (-0.91 to +1.71)',
            '3 seeds quick, digits',
        ):
            assert expected in said, expected
        summary = row.locator('summary')
        summary.focus()
        visit.page.keyboard.press('Enter')
        assert (
            row.locator('details code').inner_text()
            == 'encapnet reproduce table1 --profile quick --seeds 6'
        )
        assert row.locator('a').get_attribute('href') == 'claims.html#aide_needed'

        visit.page.get_by_label('Find a claim').fill('')
        button = visit.page.get_by_role('button', name='1 direction disagrees')
        button.click()
        assert (
            button.get_attribute('aria-pressed') == 'true'
            and 'EM is the better routing' in row.inner_text()
        )
        button.click()
        assert row.count() == len(JUDGED) and visit.said == []


@pytest.mark.browser
def test_cards_come_in_order_with_what_made_them(browser, front):
    with Visit(browser, front) as visit:
        titles = visit.page.locator('.card h3').all_text_contents()
        assert titles == [
            'Claims',
            'Deviations',
            'Table 1 at length',
            'Table 1',
            'Bench',
            'Complexity',
        ]
        assert [
            ' '.join(text.split())
            for text in visit.page.locator('.front section h2').all_text_contents()
        ] == [
            '7 claims, judged',
            "An hour's reading 8 minutes",  # of the pages that are there
            'The ledgers',
            'Claim by claim',
            'profile paper 1 report',
            'profile quick 2 reports',
            'Of every profile 1 report',
            'Rerun everything',
        ]
        cards = visit.page.locator('.card')
        assert (
            cards.nth(2).locator('.stale').inner_text()
            == '✗ stale: a: losses.py has changed, and 2 more'
        )
        assert (
            cards.nth(3).locator('.command').inner_text()
            == 'encapnet reproduce table1 --profile quick --seeds 3'
        )
        cards.nth(3).locator('summary').click()
        assert ' '.join(cards.nth(3).locator('dl').inner_text().split()) == 'seeds 0, 1, 2'
        assert cards.nth(3).locator('img').get_attribute('alt') == 'Two plots & a line'
        assert cards.nth(4).locator('img').count() == 0, 'too heavy'


@pytest.mark.browser
def test_commands_are_whole_at_any_width(browser, front):
    for width in (320, 400, 1280):
        with Visit(browser, front, width=width) as visit:
            visit.see(OPEN)
            commands = "[...document.querySelectorAll('.command code, .claims details code')]"
            assert visit.see(
                f'{commands}.length > 8 && {commands}.every(c => c.scrollWidth <= c.clientWidth '
                '+ 1)'
            )
            assert visit.see(
                "[...document.querySelectorAll('.front code span')].every(s => "
                's.getClientRects().length == 1)'
            )
            assert visit.see('document.documentElement.scrollWidth <= innerWidth')


def test_the_front_page_is_the_same_bytes_again_and_works_without_claims(front):
    before = front.read_bytes()
    assert front_page.site(front.parent, judged=JUDGED).read_bytes() == before
    without = front_page.site(front.parent, judged=[]).read_text()
    assert 'class="claims"' not in without and 'quick/table1.html' in without
    front.write_bytes(before)


def test_the_smallest_thumbnails_stay_when_there_is_no_room(front, monkeypatch):
    monkeypatch.setattr(front_page, 'THUMBNAILS_LIMIT', 10)
    assert not any(card['thumbnail'] for card in front_page._cards(front.parent))
    monkeypatch.setattr(front_page, 'THUMBNAILS_LIMIT', 10_000)
    assert [card['name'] for card in front_page._cards(front.parent) if card['thumbnail']] == [
        'table1'
    ]


def test_every_committed_figure_has_a_thumbnail():
    cards = [card for card in front_page._cards(REPORTS)]
    figures = [
        path for path in PAGES if '<figure class="output figure">' in (REPORTS / path).read_text()
    ]
    assert {card['href'] for card in cards if card['thumbnail']} >= set(figures) - {'index.html'}
    assert all(len(card['alt']) > 20 for card in cards if card['thumbnail'])


def pictures(page):
    "Every SVG that a page embeds, as text."
    found = re.findall(r'src="data:image/svg\+xml,([^"]*)"', page.read_text(encoding='utf-8'))
    return [unquote(html.unescape(drawing)) for drawing in found]


@pytest.mark.parametrize('page', PAGES)
def test_every_embedded_picture_is_xml(page):
    "A browser shows one that is not as nothing at all, and says nothing."
    for drawing in pictures(REPORTS / page):
        root = ElementTree.fromstring(drawing)
        assert root.tag == '{http://www.w3.org/2000/svg}svg'


def test_a_thumbnail_and_its_page_show_the_same_picture_as_xml(front):
    assert pictures(front), 'the front page has thumbnails'
    for page in (front, front.parent / 'quick/table1.html'):
        for drawing in pictures(page):
            assert drawing.count('http://www.w3.org/2000/svg') == 1
            ElementTree.fromstring(drawing)


# The citation


def test_the_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert cited['cff-version'] == '1.2.0' and cited['type'] == 'software'
    assert {'message', 'title', 'authors'} <= cited.keys(), 'what the format asks for'
    assert cited['version'] == encapnet.__version__ and cited['license'] == 'MIT'
    paper = cited['references'][0]
    assert (
        paper['title'] == 'Neural Network Encapsulation'
        and paper['year'] == 2018
        and paper['authors'][0]['family-names'] == 'Li'
    )
