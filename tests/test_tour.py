"""The tour: every essay a page, every link and name with an address, a search that needs no
server; and a page is made again exactly where it no longer holds."""

import html
import pwd
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from browsing import Visit
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_site import asks_for_nothing_and_keeps_nobody_out, pictures

from encapnet.cli.main import main
from encapnet.errors import StudyError
from encapnet.show.tour import passages, stops, tour

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / 'reports'
TOUR = REPORTS / 'tour'
MOST_BYTES = 12_000_000
SHEET = TOUR / 'style.css'
LOOKED_AT = ('index', 'names', 'guide/own_network', 'nn/capsules', 'show/tables/table3')


def essay(title, *cells, module=''):
    first = [new_markdown_cell(f'# {title}\n\n> About {title}.')]
    if module:
        first.append(new_code_cell(f'#| default_exp {module}'))
    made = [new_markdown_cell(c[3:]) if c.startswith('md:') else new_code_cell(c) for c in cells]
    return new_notebook(cells=first + made)


@pytest.fixture
def clone(tmp_path):
    "A repository of three essays and its tour."
    ours = {
        'guide/02_tour.ipynb': essay(
            'The tour', 'md:## All\n\nOf it.\n\n[a](../nn/00_a.ipynb) [b](../nn/01_b.ipynb#later)'
        ),
        'nn/00_a.ipynb': essay(
            'A',
            '#| export\nimport math',
            '#| export\ndef halve(x):\n    "One half of it."\n    return x / 2',
            'print(halve(1))',
            'import os\nprint(os.getcwd())',
            "#| gpu\nraise ValueError('there is none')",
            'md:## Later\n\nAs in [B](01_b.ipynb), and [elsewhere](../../README.md).',
            module='nn.a',
        ),
        'nn/01_b.ipynb': essay('B', 'md:It calls `halve`, and `nothing`.', module='nn.b'),
    }
    for name, notebook in ours.items():
        path = tmp_path / 'nbs' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
    (tmp_path / 'encapnet/nn').mkdir(parents=True)
    (tmp_path / 'encapnet/nn/a.py').write_text(
        '__all__ = ["halve"]\n\ndef halve(x: float) -> float:\n    "One half of it."\n'
    )
    return tmp_path


def publish(clone):
    "The pages that were made, as addresses in the tour's folder."
    made = tour.publish_tour(clone / 'nbs', clone / 'reports')
    return [page.relative_to(clone / 'reports/tour').as_posix() for page in made]


def change(notebook, before, after):
    text = notebook.read_text()
    assert text.count(before) == 1
    notebook.write_text(text.replace(before, after))


def test_a_tour_is_made_once_and_again_where_it_changed(clone):
    always = ['names.html', 'index.html']
    assert publish(clone) == ['nn/a.html', 'nn/b.html', *always]
    assert publish(clone) == always
    change(clone / 'nbs/nn/00_a.ipynb', 'print(halve(1))', 'print(halve(3))')
    assert publish(clone) == ['nn/a.html', *always]
    change(clone / 'nbs/nn/01_b.ipynb', '# B', '# Two')
    assert publish(clone) == ['nn/a.html', 'nn/b.html', *always], 'its neighbour names it'
    (clone / 'nbs/nn/01_b.ipynb').unlink()
    change(clone / 'nbs/guide/02_tour.ipynb', ' [b](../nn/01_b.ipynb#later)', '')
    assert publish(clone) == ['nn/a.html', *always]
    assert not (clone / 'reports/tour/nn/b.html').exists()


def test_an_essay_shows_its_code_and_leads_on(clone):
    publish(clone)
    page = (clone / 'reports/tour/nn/a.html').read_text()
    assert 'default_exp' not in page and '#| ' not in page
    assert str(clone) not in page and 'encapnet/nbs/nn' in page, 'where it is, is not told'
    assert '<a id="name-halve"></a>' in page and '0.5' in page
    assert 'not run for this page' in page and 'there is none' in page
    assert '<a href="b.html" rel="next">' in page and 'rel="prev"' not in page
    assert 'href="../../../README.md"' in page and 'href="../../../nbs/nn/00_a.ipynb"' in page
    other = (clone / 'reports/tour/nn/b.html').read_text()
    assert '<a href="a.html#name-halve"><code>halve</code></a>' in other
    assert '<code>nothing</code>' in other and '<a href="a.html" rel="prev">' in other
    names = (clone / 'reports/tour/names.html').read_text()
    assert '(x: float) -&gt; float' in names and 'One half of it.' in names


def test_an_essay_that_fails_leaves_the_older_page(clone):
    publish(clone)
    page = clone / 'reports/tour/nn/a.html'
    before = page.read_bytes()
    change(clone / 'nbs/nn/00_a.ipynb', 'print(halve(1))', 'print(1 / 0)')
    with pytest.raises(StudyError, match=r'a\.ipynb, cell 5 .*ZeroDivisionError'):
        publish(clone)
    assert page.read_bytes() == before


def test_a_file_of_somebody_else_is_in_the_way(clone):
    page = clone / 'reports/tour/nn/a.html'
    page.parent.mkdir(parents=True)
    page.write_text('<p>mine</p>')
    with pytest.raises(StudyError, match='was not made by encapnet'):
        publish(clone)
    assert page.read_text() == '<p>mine</p>'


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (
            ['tour', '--seeds', '3'],
            '--seeds is for reports, and the tour is made from the notebooks',
        ),
        (['tour', '--all'], '--all is for reports'),
        (['tour', 'table1'], 'the tour is made by itself, and table1 was named beside it'),
        (['toru'], "did you mean 'tour'"),
    ],
)
def test_what_the_tour_cannot_be_asked(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(['reproduce', *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_no_tour_is_said_with_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(['reproduce', 'tour', '--check', '--reports', str(tmp_path)])
    assert ended.value.code == 1
    assert '`encapnet reproduce tour` makes it' in capsys.readouterr().err


def test_passages_are_what_a_reader_reads():
    page = (
        '<head><title>no</title></head><body><main><h1>T</h1><h2 id="h">H<a class="anchor">#</a></h2>'
        '<p>a <b>b</b><br>c<br/></p><script>no</script><table><tr><td>1</td><td>2</td></tr></table>'
        '<nav>no</nav></main><footer>no</footer></body>'
    )
    assert passages.passages(page) == ('T', [passages.Passage('H', 'h', 'a bc 1 2', '')])


# The committed tour


@pytest.fixture(scope='module')
def pages():
    return sorted(TOUR.rglob('*.html'))


def test_every_stop_has_its_page_and_every_page_its_stop(pages):
    ours = {f'{stop.page}.html' for stop in stops.stops(ROOT / 'nbs')}
    found = {page.relative_to(TOUR).as_posix() for page in pages}
    assert found == ours | {'index.html', 'names.html'}


def test_the_tour_is_small(pages):
    assert sum(page.stat().st_size for page in [*pages, SHEET]) < MOST_BYTES


def test_the_tours_style_is_the_one_in_the_package(tmp_path):
    here = tour.Tour([], [], [], tmp_path)
    assert tour.write_sheet(here).read_bytes() == SHEET.read_bytes()


def addresses(text):
    "Links of a page, without code and what it carries."
    return [html.unescape(link) for link in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', text)]


def test_every_link_of_the_tour_leads_somewhere(pages):
    ids = {}
    lost = []
    for page in pages:
        for link in addresses(page.read_text(encoding='utf-8')):
            if re.match(r'\w+:', link):
                continue
            to, mark = urldefrag(unquote(link))
            target = (page.parent / to).resolve() if to else page
            if not target.exists():
                lost.append((page.name, link))
            elif mark and target.suffix == '.html':
                if target not in ids:
                    text = target.read_text(encoding='utf-8')
                    ids[target] = set(re.findall(r'\bid="([^"]*)"', text))
                if mark not in ids[target]:
                    lost.append((page.name, link))
    assert lost == []


def test_a_search_knows_how_every_section_begins(pages):
    """An end of something that was not open once ended the reading of a page, so a search knew
    nothing of what came after the first picture."""
    beginning = r'<h[234]\b[^>]*\bid="([^"]+)"(?:(?!<h[234]).)*?</h[234]>\s*<p>(\w+)'
    compared = 0
    for page in pages:
        text = page.read_text(encoding='utf-8')
        texts = {one.anchor: one.text for one in passages.passages(text)[1]}
        for anchor, word in re.findall(beginning, text, re.DOTALL):
            assert texts[anchor].startswith(word), f'{page}: {anchor}'
            compared += 1
    assert compared > len(pages)


def test_every_picture_of_the_tour_is_xml(pages):
    from xml.etree import ElementTree

    for page in pages:
        for drawing in pictures(page):
            ElementTree.fromstring(drawing)


def test_pages_keep_nothing_of_the_machine_that_made_them(pages):
    home = re.escape(pwd.getpwuid(0).pw_dir)
    for page in pages:
        text = page.read_text(encoding='utf-8')
        assert not re.search(rf'/tmp/tmp\w{{8}}|(?<!\w){home}/|0x[0-9a-f]{{9,}}', text), page


@pytest.mark.browser
@pytest.mark.parametrize('page', LOOKED_AT)
def test_a_page_of_the_tour_asks_for_nothing_and_keeps_nobody_out(browser, page):
    asks_for_nothing_and_keeps_nobody_out(browser, TOUR / f'{page}.html', [SHEET])


@pytest.mark.browser
@pytest.mark.parametrize(
    ('typed', 'first'),
    [
        ('polarisation number', 'nn/agreement.html'),
        ('RoutedCapsules', 'nn/routed.html#'),
        ('8,124,224', ''),
        ('routing without votes', 'nn/'),
        ('more seeds', 'guide/running.html'),
        ('definition of polarisation', 'nn/agreement.html#polarisation'),
        ('How is routing without votes derived?', 'nn/dynamic.html#routing-without-votes'),
        ('vote-free routing', 'nn/dynamic.html#routing-without-votes'),
        ('polarisation xyzzy', ''),
    ],
)
def test_a_question_is_answered_from_the_search(browser, typed, first):
    with Visit(browser, TOUR / 'index.html') as visit:
        visit.page.fill('#find', typed)
        links = visit.see(
            "[...document.querySelectorAll('#results a')].map(a => a.getAttribute('href'))"
        )
        assert links and any(link.startswith(first) for link in links[:3]), links
        visit.page.locator('#results a').first.click()
        assert visit.page.locator('main h1').count() == 1


@pytest.mark.browser
def test_the_search_says_what_it_has_not(browser):
    with Visit(browser, TOUR / 'index.html') as visit:
        visit.page.fill('#find', 'xyzzy')
        assert visit.page.locator('#found').text_content() == 'nothing found'
        visit.page.fill('#find', 'polarisation xyzzy')
        assert visit.page.locator('#found').text_content().endswith(', with 1 of the 2 words')
        visit.page.fill('#find', '')
        assert visit.page.locator('#results li').count() == 0


def test_the_front_page_leads_to_the_tour():
    assert 'href="tour/index.html"' in (REPORTS / 'index.html').read_text(encoding='utf-8')
