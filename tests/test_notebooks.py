"""Every notebook runs as written and is clean; package and README are in step."""

import ast
import atexit
import contextlib
import copy
import functools
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted(
    path for path in NBS.rglob('*.ipynb') if not any(part[0] in '._' for part in path.parts[-3:])
)
# reports and explorers are run by tests of their own, with parameters; guides as a reader runs them
RENDERED = {'reports', 'explore', 'guide'}
LIBRARY = [path for path in NOTEBOOKS if path.relative_to(NBS).parts[0] not in RENDERED]
REPORTS = [path for path in NOTEBOOKS if path.relative_to(NBS).parts[0] == 'reports']
GUIDES = [path for path in NOTEBOOKS if path.relative_to(NBS).parts[0] == 'guide']

EXPORTS = {'export', 'exporti', 'exports'}
# lines of a function's body; its docstring, comments and blank lines do not count
LONGEST_BODY = 66
MOST_REPORT_CELLS = 12


def name(path):
    return path.relative_to(NBS).with_suffix('').as_posix()


def draws(path):
    return re.search(r'plt\.show\(\)|\bax\.set\(', path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', sorted(NBS.glob('nn/*.ipynb')), ids=name)
def test_an_essay_on_capsules_has_a_picture(path):
    assert draws(path), 'no cell draws: a picture where the idea is'


def over(notebooks):
    return pytest.mark.parametrize('path', notebooks, ids=name)


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def source(cell):
    return ''.join(cell['source'])


def directives(cell):
    "The names in a code cell's `#| name` lines."
    return (
        set(re.findall(r'^#\s*\|\s*(\w+)', source(cell), re.MULTILINE))
        if cell['cell_type'] == 'code'
        else set()
    )


# Running


@pytest.fixture
def stage(monkeypatch):
    """A notebook's shell takes over the interpreter's face: `__main__`, the search path, the
    plots. Give all of it back.

    A shell that ends looks through every object that there is for garbage, a third of a second
    each time; what was there before the notebook is kept from its sight."""
    import matplotlib.pyplot as plt

    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setattr(sys, 'path', [str(ROOT), *sys.path])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    backend = plt.get_backend()
    gc.freeze()
    with plt.rc_context():
        yield
    gc.unfreeze()
    plt.close('all')
    plt.switch_backend(backend)


def close_shell():
    "End the shell that ran last now, not at exit, when its history's folder is gone."
    from IPython.core.interactiveshell import InteractiveShell

    shell, InteractiveShell._instance = InteractiveShell._instance, None
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()


def skipped_flags():
    from nbdev.config import get_config

    flags = set(get_config(path=ROOT).tst_flags.split())
    if 'gpu' in flags:
        import torch

        if torch.cuda.is_available():
            flags.remove('gpu')
    return flags


def run_as_written(path):
    "What goes wrong in the notebook, with its cell and traceback; nothing if it runs."
    from nbdev.test import test_nb

    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        passed, _ = test_nb(path, skip_flags=skipped_flags())
    close_shell()
    return '' if passed else told.getvalue()


def run_against(module, path):
    "The same without the export cells, on the names of the module that they became."
    from execnb.shell import CaptureShell
    from nbdev.process import NBProcessor

    flags = EXPORTS | skipped_flags()

    def skip(cell):
        found = getattr(cell, 'directives_', None) or {}
        return cell.cell_type != 'code' or flags & found.keys() or found.get('eval:') == ['false']

    shell = CaptureShell(path)
    shell.user_ns |= {key: value for key, value in vars(module).items() if not key.startswith('__')}
    with contextlib.chdir(path.parent):
        try:
            shell.run_all(NBProcessor(path, process=True).nb, exc_stop=True, preproc=skip)
        except Exception:
            return shell.prettytb(fname=path)
        finally:
            close_shell()
    return ''


def module_of(path):
    "The module that the notebook makes, if it makes one."
    found = re.search(
        r'^#\s*\|\s*default_exp\s+(\S+)', '\n'.join(map(source, read(path)['cells'])), re.MULTILINE
    )
    return f'encapnet.{found[1]}' if found else None


@functools.cache
def proven():
    "The notebooks whose essay was made of them as they stand, and of the code as it stands."
    from encapnet.show.tour.tour import changed, survey

    tour = survey(NBS, ROOT / 'reports')
    return {stop.notebook for stop in tour.stops if not changed(stop, tour)}


@over(LIBRARY)
def test_runs_as_written(path, stage):
    "An essay is made by running its notebook: as long as its page holds, it is the proof."
    if path not in proven() and (wrong := run_as_written(path)):
        pytest.fail(wrong, pytrace=False)


@over(GUIDES)
def test_a_guide_runs_as_printed(path, tmp_path):
    "In a process of its own: nothing but what a reader of the page has typed."
    cells = [source(cell) for cell in read(path)['cells'] if cell['cell_type'] == 'code']
    script = tmp_path / 'guide.py'
    script.write_text('\n\n'.join(cells), encoding='utf-8')
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ('cell', 'told'),
    [
        ('assert twice(2) == 5', 'line 1, in <module>\n    assert twice(2) == 5'),
        ("import warnings; warnings.warn('odd', UserWarning)", 'UserWarning: odd'),
        ("import warnings; warnings.warn('old', DeprecationWarning)", 'DeprecationWarning: old'),
        ('#| eval: false\nassert False', ''),
        ('#| slow\nassert False', ''),
    ],
)
def test_a_faulty_cell_is_told(tmp_path, stage, cell, told):
    path = planted(tmp_path, '#| export\ndef twice(x): return 2 * x', cell)
    wrong = run_as_written(path)
    assert told in wrong if told else wrong == ''


def test_a_package_that_lacks_an_import_is_told(tmp_path, stage):
    """The fault that only the second way of running sees: the notebook imports what the module
    forgot."""
    path = planted(
        tmp_path,
        'import math',
        '#| export\ndef area(r): return math.pi * r**2',
        'assert area(0) == 0',
    )
    module = types.ModuleType('circle')
    exec('def area(r): return math.pi * r**2', vars(module))
    assert run_as_written(path) == ''
    assert "NameError: name 'math' is not defined" in run_against(module, path)


def planted(folder, *sources):
    "A notebook of these code cells."
    cells = [
        {
            'cell_type': 'code',
            'id': f'c{i}',
            'metadata': {},
            'source': text,
            'outputs': [],
            'execution_count': None,
        }
        for i, text in enumerate(sources)
    ]
    path = folder / 'planted.ipynb'
    path.write_text(
        json.dumps({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5})
    )
    return path


# Hygiene


@over(NOTEBOOKS)
def test_is_clean(path):
    """As nbdev_clean leaves it, byte for byte; without outputs; and with an id of its own for
    every cell."""
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    notebook, config = read(path), get_config(path=ROOT)
    ids = [cell.get('id') for cell in notebook['cells']]
    assert all(ids), 'a cell has no id'
    assert len(set(ids)) == len(ids), 'two cells share an id'
    assert not any(cell.get('outputs') for cell in notebook['cells']), 'outputs are committed'
    assert notebook['metadata']['kernelspec'] == {
        'display_name': 'python3',
        'language': 'python',
        'name': 'python3',
    }

    cleaned = copy.deepcopy(notebook)
    keys = config.allowed_metadata_keys.split(), config.allowed_cell_metadata_keys.split()
    clean_nb(cleaned, config.clear_all, *keys, clean_ids=config.clean_ids)
    assert cleaned == notebook, 'nbdev_clean would change it'
    assert path.read_text(encoding='utf-8') == nb2str(notebook), (
        'nbdev_clean would write it in another form'
    )


def body_length(function, lines):
    "Lines of code in a function's body."
    first = function.body[ast.get_docstring(function) is not None :]
    if not first:
        return 0
    body = lines[first[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in body if line.strip() and not line.strip().startswith('#'))


@over(LIBRARY)
def test_functions_are_short(path):
    long = []
    for cell in read(path)['cells']:
        if not directives(cell) & EXPORTS:
            continue
        code = source(cell)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef):
                length = body_length(node, code.splitlines())
                long += [f'{node.name}: {length} lines'] if length > LONGEST_BODY else []
    assert long == [], f'at most {LONGEST_BODY} lines'


@over(REPORTS)
def test_report_is_a_short_story(path):
    """Parameters that papermill can set, then calls: what computes or decides lives in a module,
    where it is tested."""
    cells = read(path)['cells']
    assert len(cells) <= MOST_REPORT_CELLS

    code = [(cell, ast.parse(source(cell))) for cell in cells if cell['cell_type'] == 'code']
    parameters = [tree for cell, tree in code if 'parameters' in cell['metadata'].get('tags', [])]
    assert len(parameters) == 1, 'exactly one cell is tagged `parameters`'
    for statement in parameters[0].body:
        assert isinstance(statement, ast.AnnAssign), (
            f'line {statement.lineno} is not `name: type = value`'
        )
        value = ast.literal_eval(statement.value)
        assert isinstance(value, (str, int, float, bool)), (
            f'line {statement.lineno}: {value!r} is not a scalar'
        )

    logic = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.AsyncFor, ast.While
    for _, tree in code:
        for node in ast.walk(tree):
            assert not isinstance(node, logic), (
                f'line {node.lineno} is logic: it belongs in a module'
            )
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or '']
            else:
                continue
            assert 'torch' not in {module.partition('.')[0] for module in imported}, (
                'a report computes nothing'
            )


# In step


def modules(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding='utf-8')
        for path in folder.rglob('*.py')
    }


def test_package_is_in_step(tmp_path):
    """A fresh export of the notebooks is the package: nothing edited by hand, forgotten, or left
    from a lost notebook."""
    shutil.copytree(NBS, tmp_path / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for file in ('settings.ini', 'pyproject.toml'):
        shutil.copy(ROOT / file, tmp_path)
    # it turns nbdev_export off
    environment = {key: value for key, value in os.environ.items() if key != 'IN_TEST'}
    command = [sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    exported, committed = modules(tmp_path / 'encapnet'), modules(ROOT / 'encapnet')
    assert exported.keys() == committed.keys(), (
        'run nbdev_export, and remove modules that no notebook makes'
    )
    assert [file for file in exported if exported[file] != committed[file]] == [], (
        'run nbdev_export'
    )


def readme_maker():
    spec = importlib.util.spec_from_file_location('readme_maker', ROOT / '.ci' / 'readme.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_in_step():
    done = subprocess.run(
        [sys.executable, ROOT / '.ci' / 'readme.py', '--check'], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, '')


def local_links(text, folder):
    "The files that a Markdown text links to, of which some may not be there."
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    local = [target.partition('#')[0] for target in targets if not re.match(r'[a-z]+:|#', target)]
    return [(folder / target).resolve() for target in local]


def prose(path):
    return '\n\n'.join(
        source(cell) for cell in read(path)['cells'] if cell['cell_type'] == 'markdown'
    )


def test_readme_links_lead_somewhere():
    linked = local_links((ROOT / 'README.md').read_text(encoding='utf-8'), ROOT)
    assert linked, 'a guided tour has links'
    assert [path for path in linked if not path.exists()] == []


def test_readme_is_read_in_three_minutes():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(text.split()) <= 600
    assert [line for line in text.splitlines() if len(line) > 200] == []


def test_readme_and_front_page_name_the_same_hour():
    from encapnet.show.page.front import READING

    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    told = re.findall(r'^\d+\. \[(.+?)\]\((.+?)\): ([^(]+) \((\d+) minutes\)', text, re.MULTILINE)
    subject = lambda address: re.sub(r'^\d+_', '', Path(address).stem)
    assert [(title, subject(to), line, int(minutes)) for title, to, line, minutes in told] == [
        (title, subject(page), line, minutes) for minutes, page, title, line in READING
    ]
    assert sum(int(minutes) for *_, minutes in told) == 60, 'an hour'


@over(GUIDES)
def test_links_of_a_guide_lead_somewhere(path):
    assert [link for link in local_links(prose(path), path.parent) if not link.exists()] == []


def test_the_tour_leads_to_every_notebook():
    linked = set(local_links(prose(NBS / 'guide' / '02_tour.ipynb'), NBS / 'guide'))
    assert [path for path in LIBRARY if path not in linked and path.name != 'index.ipynb'] == []


@pytest.mark.parametrize(
    ('written', 'read_from_root'),
    [
        ('[c](nn/00_capsules.ipynb)', '[c](nbs/nn/00_capsules.ipynb)'),
        ('[c](nn/00_capsules.ipynb#Squash)', '[c](nbs/nn/00_capsules.ipynb#Squash)'),
        ('![f](../reports/figures/x.svg "a title")', '![f](reports/figures/x.svg "a title")'),
        (
            '<img src="../reports/figures/x.svg" width="80%">',
            '<img src="reports/figures/x.svg" width="80%">',
        ),
        ('[l]: ../LICENSE', '[l]: LICENSE'),
        ('[w](https://arxiv.org/abs/1808.03749) [t](#top) [m](mailto:a@b)',) * 2,
        ('`[c](nn/00.ipynb)`',) * 2,
        ('```sh\n[c](nn/00.ipynb)\n```',) * 2,
    ],
)
def test_readme_bends_links(written, read_from_root):
    assert readme_maker().bend_links(written, 'nbs') == read_from_root


def test_readme_refuses_links_out_of_the_repository():
    with pytest.raises(ValueError, match='outside the repository'):
        readme_maker().bend_links('[x](../../elsewhere)', 'nbs')


def test_readme_takes_cells_as_they_are():
    def cell(kind, text, *tags):
        return {'cell_type': kind, 'source': text, 'metadata': {'tags': list(tags)}}

    cells = [
        cell('markdown', '# T'),
        cell('code', '#| eval: false\nimport encapnet'),
        cell('code', 'secret = 1', 'hide'),
        cell('code', '#| hide\n'),
        cell('markdown', '[a](b.ipynb)'),
    ]
    maker = readme_maker()
    expected = [maker.NOTICE, '# T', '```python\nimport encapnet\n```', '[a](nbs/b.ipynb)']
    assert maker.readme({'cells': cells}) == '\n\n'.join(expected) + '\n'


def test_readme_takes_tables_in():
    table = (
        'row,network,"error (%)","error (%), low","error (%), high",paper\n(a),"x, '
        'y",5.00,3.81,6.53,0.37\n(b),a|b,,,,\n'
    )
    lines = [
        '|  | network | error (%) | paper |',
        '| --- | --- | --- | --- |',
        '| (a) | x, y | 5.00 <small>(3.81 to 6.53)</small> | 0.37 |',
    ]
    assert readme_maker().table(table).splitlines() == [*lines, r'| (b) | a\|b | – | – |']


def test_readme_check_tells_and_writes_nothing(tmp_path, monkeypatch):
    maker, readme = readme_maker(), tmp_path / 'README.md'
    assert 'missing' in maker.main([], tmp_path)
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'nbs' / 'index.ipynb').write_text(json.dumps({'cells': []}))
    readme.write_text('old')
    assert 'out of step' in maker.main(['--check'], tmp_path)
    assert readme.read_text() == 'old'
    assert maker.main([], tmp_path) == 0
    assert readme.read_text() == maker.NOTICE + '\n'
    assert maker.main(['--check'], tmp_path) == 0
