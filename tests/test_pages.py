"""Notebooks run in this interpreter, fail in one line, and become pages that a real browser shows
offline, in peace."""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import Pool

import nbformat
import pytest
from browsing import Visit
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from encapnet.show.page import (
    execute as execution,
    front as front_page,
    parameters,
    publish,
    render,
)
from encapnet.errors import StudyError, UsageError

pytestmark = pytest.mark.usefixtures('forked')

PARAMETERS = (
    'profile: str = "quick"  # width, epochs, data\nseeds: int = 1  # how many '
    'seeds\nlr: float = 1e-4'
)


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook whose code cells are the sources given, after one of prose and one of
    parameters."""

    def write(*sources, name='demo'):
        cells = [
            new_markdown_cell('# A demonstration\n\n> It runs.'),
            new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
        ]
        nb = new_notebook(cells=cells + [new_code_cell(source) for source in sources])
        nb.metadata['kernelspec'] = {
            'name': 'python3',
            'language': 'python',
            'display_name': 'python3',
        }
        nbformat.write(nb, tmp_path / f'{name}.ipynb')
        return tmp_path / f'{name}.ipynb'

    return write


def printed(executed):
    nb = nbformat.read(executed, as_version=4)
    return ''.join(
        output.text for cell in nb.cells for output in cell.get('outputs', []) if 'text' in output
    )


# Running


def test_parameters_are_those_that_papermill_sees(notebook):
    import papermill

    path = notebook()
    theirs = papermill.inspect_notebook(path)
    ours = {
        name: (parameter.type, str(parameter.default), parameter.help)
        for name, parameter in parameters.parameters(path).items()
    }
    as_ours = {
        name: (found['inferred_type_name'], str(eval(found['default'])), found['help'])
        for name, found in theirs.items()
    }
    assert ours == as_ours


@pytest.mark.parametrize(
    'given, says',
    [
        ({'sedes': 3}, "has no parameter 'sedes'.*did you mean 'seeds'"),
        ({'seeds': 'three'}, r"'seeds' expects int, got 'three' \(str\)"),
        ({'seeds': 1.5}, r"'seeds' expects int, got 1\.5 \(float\)"),
        ({'profile': 3}, r"'profile' expects str, got 3 \(int\)"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(notebook, tmp_path, given, says):
    path = notebook(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    for go in (execution.execute, publish.publish):
        with pytest.raises(UsageError, match=says):
            go(path, tmp_path / 'out.ipynb', given)
    assert {file.name for file in tmp_path.iterdir()} == {'demo.ipynb'}


def test_this_interpreter_runs_it_whatever_kernelspecs_exist(notebook, tmp_path, monkeypatch):
    spec = tmp_path / 'share' / 'kernels' / 'python3' / 'kernel.json'
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps({'argv': ['/bin/false'], 'display_name': 'an impostor', 'language': 'python'})
    )
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'share'))
    path = notebook('import sys, os; print(sys.executable, os.getcwd(), type(seeds), seeds, lr)')
    (tmp_path / 'there').mkdir()
    out = execution.execute(
        path, tmp_path / 'out.ipynb', {'seeds': '3', 'lr': 1}, cwd=tmp_path / 'there'
    )
    assert printed(out).split() == [
        sys.executable,
        str(tmp_path / 'there'),
        '<class',
        "'int'>",
        '3',
        '1.0',
    ]
    metadata = nbformat.read(out, as_version=4).metadata.papermill
    assert metadata.parameters == {'seeds': 3, 'lr': 1.0}
    assert (metadata.input_path, metadata.output_path) == ('demo.ipynb', 'out.ipynb'), (
        'no folder of this machine'
    )


def test_a_failure_is_one_line_and_leaves_the_notebook_so_far(notebook, tmp_path):
    (tmp_path / 'out.ipynb').write_text('older')
    path = notebook("print('so far')", "\nx = {}\nx['<key>']\n", "print('never')")
    with pytest.raises(StudyError) as caught:
        execution.execute(path, tmp_path / 'out.ipynb', {'seeds': 2})
    failed = tmp_path / 'out.failed.ipynb'
    assert (
        str(caught.value)
        == f"demo.ipynb, cell 4 (`x = {{}}`): KeyError: '<key>'; the notebook so far: {failed}"
    )
    assert printed(failed) == 'so far\n' and 'KeyError' in failed.read_text()
    assert (tmp_path / 'out.ipynb').read_text() == 'older'

    execution.execute(notebook("print('now')"), tmp_path / 'out.ipynb', {})
    assert printed(tmp_path / 'out.ipynb') == 'now\n' and not failed.exists(), (
        'a repaired notebook clears its failure'
    )
    assert {file.name for file in tmp_path.iterdir()} == {'demo.ipynb', 'out.ipynb'}


@pytest.mark.parametrize(
    'source, says',
    [
        ('import time\ntime.sleep(60)', r'cell 3 \(`import time`\): CellTimeoutError: '),
        ('import os; os._exit(3)', r'cell 3 \(`import os; os._exit\(3\)`\): DeadKernelError: '),
    ],
)
def test_a_cell_that_hangs_or_kills_the_kernel(notebook, tmp_path, source, says):
    begun = time.monotonic()
    with pytest.raises(StudyError, match=says) as caught:
        execution.execute(notebook(source), tmp_path / 'out.ipynb', {}, timeout_s=2)
    assert '\n' not in str(caught.value) and time.monotonic() - begun < 30
    assert not (tmp_path / 'out.ipynb').exists() and (tmp_path / 'out.failed.ipynb').exists()


def test_publish_keeps_a_good_page_until_there_is_a_better_one(notebook, tmp_path):
    html = tmp_path / 'reports' / 'quick' / 'demo.html'
    publish.publish(notebook("print('first')"), html, {'profile': 'short'})
    good = html.read_bytes()
    assert b'first' in good and b'content="short"' in good
    publish.publish(notebook("print('first')"), html, {'profile': 'short'})
    assert html.read_bytes() == good, 'the same notebook, run again, gives the same bytes'

    for source, says in {
        "print('second'); 1/0": 'ZeroDivisionError',
        "print('x' * 2_100_000)": '2 MB is the limit; the largest part is cell 3',
    }.items():
        with pytest.raises(StudyError, match=says):
            publish.publish(notebook(source), html, {'profile': 'short'})
        assert html.read_bytes() == good
    assert {file.name for file in html.parent.iterdir()} <= {'demo.html', 'demo.failed.ipynb'}


def test_pages_made_side_by_side_are_those_made_one_by_one(notebook, tmp_path):
    paths = [notebook(f"print('page {name}')", name=name) for name in 'ab']
    broken = notebook('1/0', name='broken')

    def made(folder, workers, chosen):
        return publish.publish_all(
            [
                (path, tmp_path / folder / f'{path.stem}.html', {'profile': 'short'}, 'short')
                for path in chosen
            ],
            workers,
        )

    one_by_one, side_by_side = list(made('one', 1, paths)), list(made('two', 2, paths))
    assert [page.name for page in side_by_side] == ['a.html', 'b.html']
    assert [page.read_bytes() for page in side_by_side] == [
        page.read_bytes() for page in one_by_one
    ]
    with pytest.raises(StudyError, match='broken.ipynb, cell 3 .*ZeroDivisionError'):
        list(made('three', 2, [broken, paths[0]]))
    assert not (tmp_path / 'three' / 'broken.html').exists()


def test_a_page_that_fails_ends_all_however_much_is_waiting(monkeypatch):
    """Pools that are to end wait for what does not fit into the pipe to their workers: all that is
    on its way at once has to."""
    sent, usual = [], Pool.imap

    def imap(pool, make, tasks):
        sent.extend(tasks)
        return usual(pool, make, tasks)

    monkeypatch.setattr(Pool, 'imap', imap)
    work = ['/' + letter * 100_000 for letter in 'abcdefgh' * 8]
    with pytest.raises(OSError, match='File name too long'):
        list(publish.side_by_side(os.stat, work, 2))
    assert len(sent) == len(work) and sum(len(pickle.dumps(one)) for one in sent) < 2**16


def test_half_a_draft_hides_no_cause(notebook, tmp_path, monkeypatch):
    import papermill

    def fail(nb, draft, *more, **options):
        draft.write_text('{"cells": [')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(papermill, 'execute_notebook', fail)
    with pytest.raises(StudyError, match='^demo.ipynb: OSError: .*No space left on device$'):
        execution.execute(notebook('1'), tmp_path / 'out.ipynb', {})


def test_modules_of_the_users_own_are_not_taken_for_others(notebook, tmp_path, monkeypatch):
    """Neither by the processes that make pages side by side nor by their kernels, of Python's own
    or of packages."""
    for name in ('pickle', 'selectors', 'filelock'):
        (tmp_path / f'{name}.py').write_text("raise ImportError('taken for another')")
    monkeypatch.chdir(tmp_path)
    chosen = [
        (notebook('import filelock, selectors', name=name), tmp_path / f'{name}.html', {}, 'short')
        for name in 'ab'
    ]
    for workers in (1, 2):
        assert len(list(publish.publish_all(chosen, workers))) == 2


def test_a_report_without_a_profile_lies_beside_the_front_page(notebook, tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell('# Claims')]), tmp_path / 'claims.ipynb')
    for path, expected, home in (
        (tmp_path / 'claims.ipynb', 'claims.html', 'index.html'),
        (notebook(), 'short/demo.html', '../index.html'),
    ):
        page = publish.place(path, tmp_path / 'reports', path.stem, 'short')
        assert page == tmp_path / 'reports' / expected
        html = publish.publish(
            path, page, {}, profile='short' if '/' in expected else ''
        ).read_text()
        assert re.search(r'<a class="home" href="([^"]*)"', html)[1] == home
    front = front_page.site(tmp_path / 'reports', judged=[]).read_text()
    assert 'href="claims.html"' in front and 'href="short/demo.html"' in front
    words = re.sub('<[^>]*>', '', front)
    assert (
        'encapnet reproduce claims\n' in words
        and 'encapnet reproduce demo --profile short\n' in words
    )


def test_importing_pages_is_light():
    code = 'import sys, encapnet.show.page.front, encapnet.show.page.publish; print(*sys.modules)'
    modules = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        'papermill',
        'nbconvert',
        'nbformat',
        'latex2mathml',
        'jinja2',
        'bs4',
        'torch',
        'matplotlib',
    }
    assert not heavy & set(modules)


# In a browser

DRAWING = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="600pt" height="150pt" viewBox="0 0 600 150">
<defs><clipPath id="p"><rect width="{0}" height="150"/></clipPath></defs>
<rect width="600" height="150" fill="#1b5a8c" clip-path="url(#p)"/></svg>"""

PROSE = r"""Text with $a_i = \frac{1}{2}$, $\mathbf{x} \in \mathbb{R}^n$, $\hat u, \bar v'_i$ and $|u|^2 < 1$,
at \$5 each.

$$ \begin{aligned} s_{jjj} &= \sum_i c_{ij} V_{ij} \\ v &= \operatorname{squash}(s_j) \end{aligned} \tag{6} $$

See [Eq. 6](#equation-6), **bold**, `code`, and

| a | b |
|---|--:|
| c $x$ | 1 |

> A quotation.

```python
def f(x): return "text" + 1  # why
```
"""


def bitmap(kind):
    import base64

    from PIL import Image

    file = io.BytesIO()
    Image.new('RGB', (40, 20), '#1b5a8c').save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def tables():
    import great_tables
    import pandas

    frame = pandas.DataFrame(
        {'row': list('abc'), 'paper': [14.28, 12.66, 14.43], 'ours': [14.1, 12.9, 14.6]}
    )
    wide = pandas.DataFrame({f'a long name {i}': [i * 1e6] for i in range(30)})
    styled = (
        great_tables.GT(frame, id='table1', rowname_col='row')
        .tab_header('Errors', 'in percent')
        .tab_spanner('error', ['paper', 'ours'])
        .tab_source_note('Interval over seeds.')
        .tab_footnote('Not the same.', great_tables.loc.body('ours', [0]))
        .tab_style(
            [great_tables.style.fill('#1b5a8c'), great_tables.style.text(color='white')],
            great_tables.loc.body('paper', [1]),
        )
    )
    return styled.as_raw_html(), wide.to_html()


def everything():
    "A notebook with everything that a page can show."

    def shown(mime, content, **said):
        return new_output('display_data', {mime: content}, metadata={mime: said})

    def figure(width, **said):
        return shown('image/svg+xml', DRAWING.format(width), **said)

    styled, wide = tables()
    escape = '\x1b[31mError\x1b[39m \x1b[38;5;28m<b>&amp;\x1b[39m \\alpha'
    return new_notebook(
        cells=[
            new_markdown_cell('# What <em>routing</em> leaves & $x$\n\n> A lede with $y^2$.'),
            new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
            new_code_cell('seeds = 3', metadata={'tags': ['injected-parameters']}),
            new_markdown_cell('## Prose\n\n' + PROSE),
            new_markdown_cell('## Tables\n\n### Narrow'),
            new_code_cell('table', outputs=[shown('text/html', styled)]),
            new_markdown_cell('### Wide'),
            new_code_cell('wide', outputs=[shown('text/html', wide)]),
            new_markdown_cell('## Figures'),
            new_code_cell(
                'hidden_input()',
                metadata={'tags': ['hide-input']},
                outputs=[
                    figure(600, alt='A blue bar', caption='Full *width*, $w = 1$'),
                    figure(150),
                ],
            ),
            new_code_cell(
                'a = 1',
                outputs=[shown('image/png', bitmap('PNG')), shown('image/webp', bitmap('WEBP'))],
            ),
            new_markdown_cell('## Text'),
            new_code_cell(
                'print(1)',
                outputs=[
                    new_output(
                        'stream', name='stdout', text='10 %\r100 %\nresult <i>\n' + 'wide ' * 60
                    ),
                    new_output('stream', name='stderr', text='a warning\n'),
                    shown('text/latex', '$$ E = mc^2 $$'),
                    new_output('error', ename='Error', evalue='x', traceback=[escape]),
                ],
            ),
            new_markdown_cell('## Verdict\n\n' + 'Long prose, to scroll. ' * 200),
            new_code_cell(
                'v',
                metadata={'tags': ['verdict']},
                outputs=[new_output('stream', text='2 agree · 1 does not <script>')],
            ),
        ]
    )


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A folder of reports: one page with everything, one with next to nothing, and the front page."
    folder = tmp_path_factory.mktemp('site')
    nbformat.write(everything(), folder / 'everything.ipynb')
    nbformat.write(new_notebook(cells=[new_markdown_cell('Just text.')]), folder / 'little.ipynb')
    render.render(folder / 'everything.ipynb', folder / 'reports' / 'quick' / 'everything.html')
    render.render(
        folder / 'little.ipynb',
        folder / 'reports' / 'paper' / 'little.html',
        title="<Little> & 'odd'",
        profile='paper',
    )
    front_page.site(folder / 'reports', judged=[])
    return folder / 'reports'


PATHS = ['quick/everything.html', 'paper/little.html', 'index.html']


@pytest.mark.browser
@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_page_asks_for_nothing_and_complains_of_nothing(browser, site, path, scheme):
    with Visit(browser, site / path, color_scheme=scheme) as visit:
        if 'index' not in path:
            visit.page.locator('#theme-button').click()
        visit.page.wait_for_timeout(200)
        assert (visit.asked, visit.said) == ([], [])
        assert visit.see('document.documentElement.lang') == 'en'
        assert visit.see("document.querySelectorAll('h1').length") == 1
        assert visit.see(
            "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
        ) == visit.see("document.querySelectorAll('[id]').length")


@pytest.mark.browser
def test_mathematics_is_drawn_and_no_tex_is_left(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html') as visit:
        visit.see("document.querySelectorAll('pre, code').forEach(e => e.remove())")
        visit.see("document.querySelectorAll('details').forEach(e => e.open = true)")
        text = visit.see('document.body.innerText')
        assert not re.search(r'\\|\$[^$\n]+\$|tag\{', text) and 'at $5 each' in text
        sizes = visit.see(
            """[...document.querySelectorAll('article math')].map(m => m.getBoundingClientRect())
            .map(r => [r.width, r.height])"""
        )
        assert len(sizes) >= 7 and all(width > 4 and height > 4 for width, height in sizes)
        number, row, target = visit.see(
            """() => { const equation = document.getElementById('equation-6');
            return [equation.querySelector('.number').getBoundingClientRect().right,
                    equation.getBoundingClientRect().right, equation.textContent.includes('(6)')]; }"""
        )
        assert target and abs(number - row) < 2
        rights = visit.see(
            "[...document.querySelectorAll('mtd.right')].map(d => "
            'd.lastElementChild.getBoundingClientRect().right)'
        )
        assert len(rights) == 2 and abs(rights[0] - rights[1]) < 2, (
            'what stands before = ends at the ='
        )


@pytest.mark.browser
def test_code_is_folded_and_one_button_unfolds_it(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html') as visit:
        button = visit.page.locator('#code-button')
        folds = "[...document.querySelectorAll('details.code')].map(d => d.open)"
        labels = visit.see(
            "[...document.querySelectorAll('details.code summary')].map(s => s.textContent)"
        )
        assert labels[:3] == ['parameters', 'parameters given', 'code']
        assert not any(visit.see(folds)) and button.text_content() == 'show code'
        button.focus()
        visit.page.keyboard.press('Enter')
        assert all(visit.see(folds)) and button.text_content() == 'hide code'
        visit.page.locator('details.code summary').first.click()
        assert visit.see(folds).count(False) == 1
        visit.page.wait_for_function(
            "document.getElementById('code-button').textContent === 'show code'"
        )
        button.click()
        button.click()
        assert not any(visit.see(folds))
        source = visit.page.content()
        assert 'hidden_input' not in source and 'a warning' not in source and '10 %' not in source
    with Visit(browser, site / 'paper' / 'little.html') as visit:
        assert not visit.shown('#code-button'), 'no code, no button'


@pytest.mark.browser
def test_contents_are_beside_or_above(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html', width=1280) as visit:
        assert visit.shown('nav.beside') and not visit.shown('details.contents')
        links = visit.page.locator('nav.beside a')
        assert links.all_text_contents() == [
            'Prose',
            'Tables',
            'Narrow',
            'Wide',
            'Figures',
            'Text',
            'Verdict',
        ]
        links.nth(6).click()
        visit.page.wait_for_function(
            "document.querySelector('nav.beside [aria-current]')?.textContent === 'Verdict' && "
            'scrollY > 500'
        )
        top = visit.see("document.getElementById('verdict').getBoundingClientRect().top")
        assert (
            visit.see("document.querySelector('.masthead').getBoundingClientRect().bottom")
            <= top
            < 200
        )
        assert visit.see("document.querySelector('nav.beside').getBoundingClientRect().top") < 60, (
            'it stays in sight'
        )
    with Visit(browser, site / 'quick' / 'everything.html', width=390, height=844) as visit:
        assert visit.shown('details.contents') and not visit.shown('nav.beside')
        assert not visit.shown('details.contents a')
        visit.page.locator('details.contents summary').click()
        assert visit.shown('details.contents a')
    with Visit(browser, site / 'paper' / 'little.html') as visit:
        assert visit.page.locator('.contents').count() == 0


BACKGROUND = 'getComputedStyle(document.body).backgroundColor'
LIGHT, DARK = 'rgb(253, 252, 250)', 'rgb(22, 24, 28)'
NO_STORAGE = (
    "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } });"
)


@pytest.mark.browser
@pytest.mark.parametrize('before', ['', NO_STORAGE], ids=['storage', 'no storage'])
@pytest.mark.parametrize('scheme, auto', [('light', LIGHT), ('dark', DARK)])
def test_theme_follows_the_reader_and_can_be_chosen(browser, site, scheme, auto, before):
    with Visit(
        browser, site / 'quick' / 'everything.html', color_scheme=scheme, before=before
    ) as visit:
        button, seen = visit.page.locator('#theme-button'), []
        for _ in range(4):
            seen.append((button.text_content(), visit.see(BACKGROUND)))
            button.click()
        assert seen == [
            ('theme: auto', auto),
            ('theme: light', LIGHT),
            ('theme: dark', DARK),
            ('theme: auto', auto),
        ]
        button.click()
        visit.page.wait_for_timeout(500)  # Chromium stores what a page keeps a moment later
        visit.page.reload()
        kept = 'dark' if not before else 'auto'
        assert button.text_content() == f'theme: {kept}' and visit.see(BACKGROUND) == (
            DARK if not before else auto
        )
        assert visit.said == []


CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (f, b) => [0, 1, 2].map(i => f[i] * f[3] + b[i] * (1 - f[3]));
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b; };
  const faults = [];
  document.querySelectorAll('details').forEach(d => d.open = true);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || ['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
    if (!element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    const back = layers.reverse().reduce((b, f) => over(f, b), [255, 255, 255]);
    const [a, b] = [light(over(parse(style.color), back)), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + .05) / (b + .05);
    seen += 1;
    const said = walker.currentNode.data.trim().slice(0, 30);
    if (ratio < (large ? 3 : 4.5)) faults.push([said, style.color, back.join(), ratio]);
  }
  return [seen, faults];
}"""


@pytest.mark.browser
@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_is_double_a(browser, site, path, scheme):
    with Visit(browser, site / path, color_scheme=scheme) as visit:
        seen, faults = visit.see(CONTRAST)
        assert seen > 5 and faults == []


@pytest.mark.browser
def test_the_contrast_test_can_fail(browser, site):
    with Visit(browser, site / 'paper' / 'little.html') as visit:
        visit.see("document.querySelector('article p').style.color = '#999'")
        assert [fault[0] for fault in visit.see(CONTRAST)[1]] == ['Just text.']


@pytest.mark.browser
@pytest.mark.parametrize(
    'scheme, ink', [('light', 'rgb(35, 37, 43)'), ('dark', 'rgb(220, 222, 225)')]
)
def test_tables_take_the_theme_and_keep_their_own_marks(browser, site, scheme, ink):
    with Visit(browser, site / 'quick' / 'everything.html', color_scheme=scheme) as visit:
        colours = 'e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]'
        cells = visit.page.locator('.gt_table td.gt_row')
        assert cells.nth(0).evaluate(colours) == [ink, 'rgba(0, 0, 0, 0)']
        marked = [
            colour
            for colour in cells.evaluate_all(f'cells => cells.map({colours})')
            if colour[0] != ink
        ]
        assert marked == [['rgb(255, 255, 255)', 'rgb(27, 90, 140)']]


@pytest.mark.browser
def test_figures_are_whole_described_and_on_paper(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html', color_scheme='dark') as visit:
        images = visit.see(
            """[...document.querySelectorAll('figure img')].map(i => ({
            alt: i.alt, seen: i.complete && i.naturalWidth > 0, width: i.getAttribute('width'),
            source: i.src.slice(0, 15),
            paper: getComputedStyle(i.parentElement).backgroundColor}))"""
        )
        assert [image['alt'] for image in images] == ['A blue bar'] + ['Figure: Figures'] * 3
        assert [image['source'] for image in images] == ['data:image/svg+'] * 2 + [
            'data:image/png;',
            'data:image/webp',
        ]
        assert [image['width'] for image in images] == ['800', '800', None, None]
        assert all(image['seen'] and image['paper'] == 'rgb(255, 255, 255)' for image in images)
        assert visit.page.locator('figcaption em').text_content() == 'width'
        assert visit.page.locator('figcaption math').count() == 1
        share = """image => { const canvas = document.createElement('canvas'); canvas.width = 80; canvas.height = 20;
            const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0, 80, 20);
            const pixels = pen.getImageData(0, 10, 80, 1).data;
            return pixels.filter((v, i) => i % 4 == 3 && v > 0).length / 80; }"""
        shares = [visit.page.locator('figure img').nth(i).evaluate(share) for i in (0, 1)]
        assert shares == [1.0, 0.25], 'two figures define the same id, and each sees its own'


@pytest.mark.browser
@pytest.mark.parametrize('width', [320, 390, 768, 1280, 1920])
def test_only_boxes_of_their_own_scroll_sideways(browser, site, width):
    for path in PATHS:
        with Visit(browser, site / path, width=width) as visit:
            visit.see("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert visit.see('document.documentElement.scrollWidth') == width, path
            if 'everything' not in path:
                continue
            boxes = visit.see(
                """[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1)
                .map(b => b.tabIndex)"""
            )
            assert len(boxes) >= 2 and set(boxes) == {0}, 'the wide table scrolls, by keyboard too'
            widest = visit.see(
                "Math.max(...[...document.querySelectorAll('article p')].map(p => "
                'p.getBoundingClientRect().width))'
            )
            assert widest <= 46 * 16


@pytest.mark.browser
def test_the_keyboard_finds_its_way(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html') as visit:
        focused = 'document.activeElement.textContent.trim()'
        visit.page.keyboard.press('Tab')
        assert visit.see(focused) == 'Skip to content'
        assert visit.see('document.activeElement.getBoundingClientRect().left') >= 0
        visit.page.keyboard.press('Enter')
        assert visit.see('document.activeElement.id') == 'content'
        visit.page.keyboard.press('Tab')
        assert visit.see('document.activeElement.tagName') == 'SUMMARY'
        for selector in ('#theme-button', 'details.code summary', 'nav.beside a', '.home'):
            visit.page.locator(selector).first.focus()
            visit.page.keyboard.press('Tab')
            outline = (
                '(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))'
            )
            assert visit.see(outline) == ['solid', '2px'], f'after {selector}'


@pytest.mark.browser
def test_it_prints_well(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html', color_scheme='dark') as visit:
        visit.page.locator('#code-button').click()
        visit.page.emulate_media(media='print', color_scheme='dark')
        hidden = [
            'button',
            '.masthead',
            'details.code',
            'nav.beside',
            'details.contents',
            '.anchor',
        ]
        assert [selector for selector in hidden if visit.shown(selector)] == []
        assert (
            visit.shown('figure img') and visit.shown('.title .badge') and visit.shown('.gt_table')
        )
        assert visit.see(BACKGROUND) == 'rgb(255, 255, 255)'
        assert visit.see('getComputedStyle(document.body).color') == 'rgb(35, 37, 43)'
        assert (
            visit.see("getComputedStyle(document.querySelector('figure')).breakInside") == 'avoid'
        )
        assert visit.page.pdf(format='A4').startswith(b'%PDF')


@pytest.mark.browser
def test_without_scripts_it_is_still_a_page(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html', java_script_enabled=False) as visit:
        assert visit.shown('h1') and visit.shown('math') and visit.shown('figure img')
        assert not visit.shown('#theme-button') and not visit.shown('#code-button')
        visit.page.locator('details.code summary').first.click()
        assert visit.shown('details.code pre')


@pytest.mark.browser
def test_texts_are_escaped(browser, site):
    with Visit(browser, site / 'quick' / 'everything.html') as visit:
        assert visit.page.title() == 'What routing leaves & x · encapnet'
        assert (
            visit.page.locator('.output.error').text_content().strip() == 'Error <b>&amp; \\alpha'
        )
        assert '100 %\nresult <i>' in visit.page.locator('pre.text').first.text_content()
    with Visit(browser, site / 'paper' / 'little.html') as visit:
        assert visit.page.locator('h1').text_content() == "<Little> & 'odd'"
        assert visit.page.title() == "<Little> & 'odd' · encapnet"
        assert visit.page.locator('.masthead .badge').text_content() == 'paper'


@pytest.mark.browser
def test_what_gets_past_us_the_policy_stops(browser, tmp_path):
    hostile = """<img src="x:y" onerror="document.title='taken'"><img src="http://example.invalid/a.png">
        <iframe src="http://example.invalid/"></iframe><style>@import url(http://example.invalid/a.css);
        @font-face { font-family: f; src: url(http://example.invalid/f.woff2) } i { font-family: f }</style><i>f</i>
        <a id="bait" href="javascript:document.title='taken'">bait</a>"""
    nb = new_notebook(
        cells=[
            new_markdown_cell("# Safe\n\n<script>document.title = 'taken'</script>"),
            new_code_cell('x', outputs=[new_output('display_data', {'text/html': hostile})]),
        ]
    )
    nbformat.write(nb, tmp_path / 'hostile.ipynb')
    with Visit(
        browser, render.render(tmp_path / 'hostile.ipynb', tmp_path / 'hostile.html')
    ) as visit:
        visit.page.locator('#bait').click()
        visit.page.wait_for_timeout(300)
        assert visit.page.title() == 'Safe · encapnet' and visit.shown('#theme-button')
        blocked = [text for text in visit.said if 'Content Security Policy' in text]
        assert len(blocked) >= 5
        got = visit.see(
            "performance.getEntriesByType('resource').filter(e => e.transferSize > 0).length"
        )
        assert got == 0


@pytest.mark.browser
def test_an_explorer_may_bring_its_script(browser, tmp_path):
    script = """<p id="slot"></p><script type="module">
        const seven = await import("data:text/javascript,export%20default%207");
        document.getElementById("slot").textContent = "7 = " + seven.default + " && 1 < 2";</script>"""
    cell = new_code_cell('x', outputs=[new_output('display_data', {'text/html': script})])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / 'alive.ipynb')
    with pytest.raises(StudyError, match=r'alive\.ipynb: cell 1 shows HTML with a script'):
        render.render(tmp_path / 'alive.ipynb', tmp_path / 'alive.html')
    cell.metadata['tags'] = ['explorer']
    nbformat.write(new_notebook(cells=[cell]), tmp_path / 'alive.ipynb')
    with Visit(browser, render.render(tmp_path / 'alive.ipynb', tmp_path / 'alive.html')) as visit:
        visit.page.wait_for_function(
            "document.getElementById('slot').textContent === '7 = 7 && 1 < 2'"
        )
        assert (visit.asked, visit.said) == ([], [])


@pytest.mark.browser
def test_the_front_page_leads_everywhere(browser, site, tmp_path):
    with Visit(browser, site / 'index.html') as visit:
        cards = visit.page.locator('.card')
        titles = [' '.join(text.split()) for text in visit.page.locator('h2').all_text_contents()]
        assert titles == ['profile paper 1 report', 'profile quick 1 report', 'Rerun everything']
        assert cards.nth(0).locator('h3').text_content() == "<Little> & 'odd'"
        assert cards.nth(0).locator('img').count() == 0
        assert cards.nth(1).locator('.verdict').text_content() == '2 agree · 1 does not <script>'
        assert (
            cards.nth(1).locator('.command').text_content()
            == 'encapnet reproduce everything --profile quick'
        )
        assert cards.nth(1).locator('img').evaluate('i => i.complete && i.naturalWidth > 0')
        cards.nth(1).locator('h3 a').click()
        visit.page.locator('a.home').click()
        assert visit.page.url.endswith('reports/index.html')
    with Visit(browser, front_page.site(tmp_path / 'empty', judged=[])) as visit:
        assert visit.shown('text=encapnet reproduce NAME --profile PROFILE') and visit.said == []


def test_rendering_twice_gives_the_same_bytes(site, tmp_path):
    page = render.render(site.parent / 'everything.ipynb', tmp_path / 'quick' / 'everything.html')
    assert page.read_bytes() == (site / 'quick' / 'everything.html').read_bytes()
    front = (site / 'index.html').read_bytes()
    assert front_page.site(site, judged=[]).read_bytes() == front
    assert page.stat().st_size < 200_000


def test_kernels_at_once_do_not_meet(notebook, tmp_path):
    from jupyter_core.utils import ensure_event_loop

    path = notebook('import time; time.sleep(1)', "print('here', seeds)")

    def execute(n):
        # nbclient leaves the loop of each thread open
        with contextlib.closing(ensure_event_loop()):
            return execution.execute(path, tmp_path / f'{n}.ipynb', {'seeds': n})

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(execute, n) for n in (1, 2, 3)]
        assert [printed(run.result()).split() for run in runs] == [
            ['here', '1'],
            ['here', '2'],
            ['here', '3'],
        ]
