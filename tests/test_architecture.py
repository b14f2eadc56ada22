"""The picture of the house, held against the code: who may import whom, what stays light, what
nothing is called."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'encapnet'

# Arrows point down or sideways, never up. A new module gets a row here, or the test below fails.
ARROWS = {
    # the ground
    'errors': [],
    'files': ['errors'],
    # the mathematics
    'nn.losses': [],
    'nn.capsules': [],
    'nn.baselines': [],
    'nn.fused': [],
    'nn.gradients': [],
    'nn.windows': [],
    'nn.kernels': ['nn.fused', 'nn.gradients'],
    'nn.votes': ['nn.kernels'],
    'nn.squares': ['nn.votes'],
    'nn.clusters': ['nn.kernels', 'nn.squares', 'nn.votes'],
    'nn.dynamic': ['nn.capsules', 'nn.gradients', 'nn.kernels', 'nn.votes'],
    'nn.em': ['nn.clusters', 'nn.gradients', 'nn.kernels', 'nn.votes'],
    'nn.transport': ['nn.gradients', 'nn.kernels'],
    'nn.streaming': ['nn.capsules', 'nn.gradients', 'nn.clusters', 'nn.kernels', 'nn.windows'],
    'nn.local': ['nn.streaming', 'nn.windows'],
    'nn.untied': ['nn.streaming', 'nn.windows'],
    'nn.layers': [
        'nn.capsules',
        'nn.gradients',
        'nn.local',
        'nn.dynamic',
        'nn.em',
        'nn.untied',
        'nn.windows',
    ],
    'nn.feedback': ['nn.layers', 'nn.transport'],
    'nn.networks': ['nn.baselines', 'nn.capsules', 'nn.feedback', 'nn.layers'],
    'nn.trace': ['nn.dynamic', 'nn.em', 'nn.feedback', 'nn.layers', 'nn.transport'],
    # the books
    'study.stats': [],
    'study.paper': [],
    'study.answers': [],
    'study.config': ['errors'],
    'study.places': ['errors'],
    'study.judging': ['study.stats'],
    'study.evidence': ['study.paper'],
    'study.experiments': ['errors', 'study.config'],
    'study.freshness': ['errors', 'study.config'],
    'study.profiles': ['errors', 'study.config'],
    'study.provenance': ['study.places'],
    'study.worlds': ['study.judging'],
    'study.claims': ['study.experiments', 'study.paper'],
    'study.planning': ['errors', 'study.config', 'study.experiments', 'study.profiles'],
    'study.ledger': [
        'errors',
        'files',
        'study.answers',
        'study.config',
        'study.experiments',
        'study.freshness',
        'study.places',
        'study.planning',
        'study.profiles',
    ],
    'study.run': [
        'errors',
        'files',
        'study.config',
        'study.freshness',
        'study.ledger',
        'study.places',
        'study.provenance',
    ],
    'study.verdicts': [
        'study.answers',
        'study.claims',
        'study.config',
        'study.experiments',
        'study.judging',
        'study.ledger',
        'study.paper',
        'study.profiles',
        'study.stats',
    ],
    'study.launch': [
        'errors',
        'study.config',
        'study.experiments',
        'study.ledger',
        'study.planning',
        'study.profiles',
        'study.run',
    ],
    'study.resolving': [
        'errors',
        'study.claims',
        'study.experiments',
        'study.judging',
        'study.verdicts',
    ],
    'study.certify': [
        'errors',
        'files',
        'study.config',
        'study.freshness',
        'study.launch',
        'study.ledger',
        'study.provenance',
        'study.run',
    ],
    'study.cluster': [
        'errors',
        'files',
        'study.config',
        'study.freshness',
        'study.launch',
        'study.ledger',
        'study.places',
        'study.profiles',
        'study.run',
    ],
    # the bridge
    'download': ['errors'],
    'data': ['download', 'errors', 'files', 'study.config', 'study.places'],
    'himagenet': ['data', 'download', 'errors', 'files', 'study.places'],
    'training': [
        'data',
        'errors',
        'files',
        'nn.losses',
        'nn.networks',
        'nn.trace',
        'study.answers',
        'study.config',
        'study.freshness',
        'study.ledger',
        'study.profiles',
        'study.provenance',
        'study.run',
    ],
    'distributed': [
        'data',
        'errors',
        'study.config',
        'study.launch',
        'study.ledger',
        'study.run',
        'training',
    ],
    # the benches
    'bench.clock': ['nn.losses'],
    'bench.transport': ['bench.clock', 'nn.transport', 'study.config'],
    'bench.account': ['nn.dynamic', 'nn.losses', 'nn.networks'],
    'bench.data': ['bench.clock', 'data', 'nn.losses', 'nn.networks', 'study.config'],
    'bench.capconv': [
        'bench.account',
        'bench.clock',
        'nn.capsules',
        'nn.layers',
        'nn.losses',
        'nn.networks',
        'study.config',
    ],
    'bench.costs': ['bench.account', 'bench.clock', 'nn.networks', 'study.config'],
    'bench.routing': [
        'bench.account',
        'bench.clock',
        'nn.capsules',
        'nn.dynamic',
        'nn.em',
        'study.config',
    ],
    'bench.operations': ['data', 'study.config', 'training'],
    # the faces
    'show.plots.canvas': [],
    'show.explore.picture': ['errors'],
    'show.page.kernel': ['errors'],
    'show.page.mathml': ['errors'],
    'show.page.notebook': ['errors'],
    'show.page.svg': ['errors'],
    'show.plots.costs': ['show.plots.canvas'],
    'show.plots.curves': ['show.plots.canvas'],
    'show.plots.errors': ['show.plots.canvas'],
    'show.plots.histograms': ['show.plots.canvas'],
    'show.plots.sheet': ['show.plots.canvas'],
    'show.page.shell': ['errors', 'files'],
    'show.page.markdown': ['show.page.mathml'],
    'show.page.outputs': ['errors', 'show.page.notebook'],
    'show.page.parameters': ['errors', 'show.page.notebook'],
    'show.report.twins': ['errors', 'files', 'study.places'],
    'show.explore.serve': ['errors', 'show.page.kernel', 'show.page.parameters'],
    'show.page.execute': [
        'errors',
        'files',
        'show.page.kernel',
        'show.page.notebook',
        'show.page.parameters',
    ],
    'show.page.upkeep': ['study.experiments', 'study.freshness', 'study.ledger', 'study.profiles'],
    'show.report.command': ['errors', 'study.ledger', 'study.profiles'],
    'show.report.style': ['study.config', 'study.ledger', 'study.stats'],
    'show.page.render': [
        'errors',
        'show.page.markdown',
        'show.page.notebook',
        'show.page.outputs',
        'show.page.shell',
        'show.page.svg',
        'show.page.upkeep',
    ],
    'show.tables.complexity': ['show.report.style', 'study.experiments', 'study.paper'],
    'show.tables.fig1': [
        'show.plots.canvas',
        'show.plots.sheet',
        'show.report.style',
        'study.paper',
    ],
    'show.explore.offers': [
        'errors',
        'study.config',
        'study.experiments',
        'study.places',
        'study.run',
    ],
    'show.page.front': [
        'errors',
        'show.page.markdown',
        'show.page.shell',
        'show.page.svg',
        'show.page.upkeep',
        'study.experiments',
        'study.profiles',
        'study.verdicts',
    ],
    'show.page.publish': [
        'show.page.execute',
        'show.page.kernel',
        'show.page.parameters',
        'show.page.render',
    ],
    'show.tables.fig3': ['show.plots.canvas', 'show.plots.sheet', 'show.tables.fig1'],
    'show.explore.runs': [
        'errors',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'study.experiments',
        'study.ledger',
        'study.places',
        'study.run',
        'study.stats',
    ],
    'show.report.standing': [
        'errors',
        'show.report.command',
        'study.experiments',
        'study.launch',
        'study.ledger',
        'study.places',
        'study.profiles',
        'study.run',
    ],
    'show.tables.fig1_fig3': [
        'show.report.twins',
        'show.tables.fig1',
        'show.tables.fig3',
        'study.profiles',
    ],
    'show.report.provenance': [
        'show.report.standing',
        'show.report.style',
        'study.freshness',
        'study.ledger',
        'study.provenance',
    ],
    'show.report.verdict': [
        'show.report.standing',
        'show.report.style',
        'study.claims',
        'study.verdicts',
    ],
    'show.tables.table2': [
        'nn.networks',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.style',
        'show.report.twins',
    ],
    'show.explore.equivariance': ['nn.trace'],
    'show.report.study': [
        'show.plots.canvas',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'study.config',
        'study.profiles',
        'study.stats',
    ],
    'show.tables.claims': [
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'show.report.verdict',
        'study.claims',
        'study.places',
        'study.verdicts',
        'study.worlds',
    ],
    'show.tables.deviations': [
        'errors',
        'files',
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'show.report.verdict',
        'study.experiments',
        'study.ledger',
        'study.places',
        'study.planning',
        'study.stats',
    ],
    'show.explore.capconv': [
        'data',
        'errors',
        'nn.networks',
        'nn.trace',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'training',
    ],
    'show.explore.routing': [
        'data',
        'errors',
        'nn.networks',
        'nn.trace',
        'show.explore.equivariance',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'study.config',
        'study.planning',
        'training',
    ],
    'show.explore.transport': [
        'data',
        'errors',
        'nn.trace',
        'nn.transport',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'study.config',
        'training',
    ],
    'show.tables.bench_capconv': [
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.ledger',
    ],
    'show.tables.bench_data': [
        'data',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.config',
        'study.ledger',
    ],
    'show.tables.bench_transport': [
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.ledger',
    ],
    'show.tables.fig2': [
        'errors',
        'show.plots.canvas',
        'show.plots.histograms',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.claims',
        'study.config',
        'study.experiments',
        'study.ledger',
        'study.paper',
        'study.profiles',
        'study.stats',
        'study.verdicts',
    ],
    'show.tables.softmax_axis': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.config',
        'study.experiments',
        'study.ledger',
        'study.profiles',
        'study.stats',
    ],
    'show.tables.table1': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.plots.errors',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.claims',
        'study.config',
        'study.experiments',
        'study.launch',
        'study.ledger',
        'study.paper',
        'study.profiles',
    ],
    'show.tables.table3': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.plots.errors',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.claims',
        'study.config',
        'study.experiments',
        'study.paper',
        'study.profiles',
        'study.stats',
        'study.verdicts',
    ],
    'show.tables.evidence': [
        'errors',
        'files',
        'show.plots.canvas',
        'show.report.command',
        'show.report.provenance',
        'show.report.style',
        'show.report.twins',
        'show.report.verdict',
        'show.tables.complexity',
        'show.tables.deviations',
        'study.evidence',
        'study.experiments',
        'study.paper',
        'study.places',
    ],
    'show.tables.bench_routing': [
        'bench.routing',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.ledger',
    ],
    'show.tables.costs': [
        'bench.operations',
        'errors',
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'study.config',
        'study.experiments',
        'study.ledger',
        'study.planning',
        'study.profiles',
    ],
    'show.tables.table4': [
        'bench.operations',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.experiments',
        'study.launch',
        'study.paper',
        'study.planning',
        'study.profiles',
    ],
    'show.tables.polarisation': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.tables.fig2',
        'study.config',
        'study.paper',
    ],
    'show.tables.fig4': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.tables.table3',
    ],
    'cli': ['*'],
    '__main__': ['cli'],
}

# What each trunk may never load, not even inside a function.
FORBIDDEN = {
    'nn.': {'pandas', 'matplotlib', 'seaborn', 'papermill', 'pydantic', 'typer', 'torchvision'},
    'study.': {'torch', 'torchvision', 'torchaudio', 'accelerate'},
    # it measures and shows nothing
    'bench.': {'pandas', 'matplotlib', 'seaborn', 'great_tables', 'papermill'},
}
EXCEPTIONS = {'nn.baselines': {'torchvision'}}  # other people's networks, when one is built

HEAVY = {'torch', 'torchvision', 'accelerate', 'matplotlib', 'seaborn', 'papermill', 'pandas'}
NAMELESS = {'util', 'utils', 'helper', 'helpers', 'common', 'misc'}


def module_name(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


SOURCES = {
    module_name(path): path
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.stem not in ('__init__', '_modidx')
}


def imports(source, module, known=SOURCES):
    """What the source of our `module` imports, inside functions too: our modules, and others by
    their top-level name.

    Ours lose the package's name: `study.run`, or `study` where nothing but the folder is named."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = f'encapnet.{module}'.split('.')[: -node.level] if node.level else []
            base = '.'.join([*above, node.module] if node.module else above)
            inside = {f'{base}.{alias.name}' for alias in node.names}
            modules = {name for name in inside if name.removeprefix('encapnet.') in known}
            found |= modules | ({base} if modules != inside else set())
        elif isinstance(node, ast.Call) and re.search(
            r'(^|\.)(import_module|__import__)$', ast.unparse(node.func)
        ):
            found |= {
                argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)
            }
    ours = {name.removeprefix('encapnet.') for name in found if name.startswith('encapnet.')}
    return ours - {module}, {name.partition('.')[0] for name in found} - {'encapnet'}


def allowed(module):
    "The table's row, with its stars resolved."
    for target in ARROWS[module]:
        if target.endswith('*'):
            yield from (
                name
                for name in ARROWS
                if name.startswith(target[:-1]) and name not in (module, '__main__')
            )
        else:
            yield target


@pytest.mark.parametrize(
    ('source', 'ours', 'others'),
    [
        ('from .capsules import squash', {'nn.capsules'}, set()),
        ('from ..study import ledger, config', {'study.ledger', 'study.config'}, set()),
        ('from ..study.run import Run', {'study.run'}, set()),
        ('from .. import data, __version__', {'data'}, set()),
        ('from . import nosuch', {'nn'}, set()),
        ('import encapnet.data', {'data'}, set()),
        ('def lazily():\n    from encapnet.data import load', {'data'}, set()),
        ("importlib.import_module('encapnet.data')", {'data'}, set()),
        ('import torch.nn.functional as F, os', set(), {'torch', 'os'}),
        ('if True:\n    from torch import nn', set(), {'torch'}),
        ("'from torch import nn'  # import torch", set(), set()),
    ],
)
def test_imports_are_found(source, ours, others):
    known = {'nn.capsules', 'nn.dynamic', 'study.run', 'study.ledger', 'study.config', 'data'}
    assert imports(source, 'nn.dynamic', known) == (ours, others)


@pytest.mark.parametrize('module', SOURCES)
def test_imports_follow_the_arrows(module):
    assert module in ARROWS, f'encapnet.{module} has no row in the table of arrows'
    ours, others = imports(SOURCES[module].read_text(encoding='utf-8'), module)
    assert ours - set(allowed(module)) == set(), f'encapnet.{module} may not import these'
    forbidden = set().union(
        *(names for trunk, names in FORBIDDEN.items() if module.startswith(trunk))
    ) - EXCEPTIONS.get(module, set())
    assert others & forbidden == set(), f'encapnet.{module} may not load these, not even lazily'


def test_arrows_make_no_circle():
    assert len(
        list(TopologicalSorter({module: set(allowed(module)) for module in ARROWS}).static_order())
    ) == len(ARROWS)


@pytest.mark.parametrize(
    'path', sorted(PACKAGE.rglob('__init__.py')), ids=lambda path: path.parent.name
)
def test_packages_import_nothing(path):
    "Or importing one module would load its neighbours."
    assert imports(path.read_text(encoding='utf-8'), '') == (set(), set())


def run(code, *blocked):
    "Run `code` in a fresh interpreter in which the `blocked` modules cannot be imported."
    block = f'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'
    done = subprocess.run(
        [sys.executable, '-c', block + code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    'code',
    [
        'import encapnet',
        'from encapnet.cli import main\n'
        "sys.argv = ['encapnet', '--help']\n"
        'try: main()\n'
        'except SystemExit as stop: assert not stop.code, stop.code',
    ],
    ids=['import encapnet', 'encapnet --help'],
)
def test_start_is_light(code):
    told = run(f"{code}\nprint('loaded:', *({HEAVY!r} & sys.modules.keys()))")
    assert told.splitlines()[-1].split() == ['loaded:']


def test_the_books_open_without_torch():
    books = [f'encapnet.{module}' for module in SOURCES if module.startswith('study.')]
    assert books
    run(f'import {", ".join(books)}', 'torch', 'torchvision')


def test_nothing_is_called_utils():
    """A module is one noun. A file named for having no name of its own collects what belongs
    elsewhere."""
    files = [
        path
        for folder in ('encapnet', 'nbs', 'tests', '.ci')
        for path in (ROOT / folder).rglob('*')
    ]
    assert files
    nameless = [path for path in files if NAMELESS & set(re.split(r'[^a-z]+', path.stem.lower()))]
    assert nameless == []


def test_style():
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--output-format', 'concise', '.'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
