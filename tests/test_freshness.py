"""Which results a change of the code makes stale: exactly those whose code says something else
now."""

import ast
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from encapnet.study import freshness, needs, scopes
from encapnet.study import definitions as definitions_module
from encapnet.study.architectures import CapNetConfig, SixLayerEncapNetConfig
from encapnet.study.config import MeasureConfig, RoutingBenchConfig
from encapnet.study.planning import measurements, plan
from encapnet.study.profiles import PROFILES

pytestmark = pytest.mark.usefixtures('forked')

PACKAGE = Path(freshness.__file__).parents[1]
MODULES = {
    '.'.join(('encapnet', *path.relative_to(PACKAGE).with_suffix('').parts)): path
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.stem not in ('__init__', '_modidx')
}
CONFIGS = [
    *plan('table1', PROFILES['quick'], {'digits': '0' * 64}, 1),
    *measurements('any machine'),
]


def name(config):
    return f'{config.experiment}/{config.row}'


def those(*kinds, training=True, measuring=True):
    "Names of the rows that train or measure networks of some kinds (none given: of any kind)."
    return {
        name(config)
        for config in CONFIGS
        if (measuring if isinstance(config, MeasureConfig) else training)
        and (not kinds or isinstance(config.network, kinds))
    }


def closures():
    "Today's definitions behind each row, by the row's name."
    closure = cache(lambda *roots: freshness.code_closure(roots))
    return {name(config): closure(*freshness.roots(config)) for config in CONFIGS}


@pytest.fixture(scope='module')
def before():
    return closures()


@pytest.fixture
def stale(monkeypatch, before):
    "The rows that edits (module -> what to make of its source) turn stale."

    def judge(edits):
        source = freshness._source
        monkeypatch.setattr(
            freshness,
            '_source',
            lambda module: edits.get(module, lambda text: text)(source(module)),
        )
        after = closures()
        return {row for row in before if before[row].digest != after[row].digest}

    return judge


def definitions(source):
    "Top-level functions, classes and constants by name."
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
    return found


def one_line_more(definition):
    "Put one line into a function's body, or its first method's; or give a constant another value."

    def edit(source):
        lines, node = source.splitlines(keepends=True), definitions(source)[definition]
        if isinstance(node, ast.Assign):
            lines.insert(node.end_lineno, f'{definition} = None\n')
            return ''.join(lines)
        if isinstance(node, ast.ClassDef):
            functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            node = functions[0] if functions else node
        last = node.body[-1]
        if last.lineno == node.lineno:  # all on one line
            head, tail = (
                lines[last.lineno - 1][: last.col_offset],
                lines[last.lineno - 1][last.col_offset :],
            )
            lines[last.lineno - 1] = f'{head}assert True; {tail}'
        else:
            lines.insert(last.lineno - 1, ' ' * last.col_offset + 'assert True\n')
        return ''.join(lines)

    return edit


CAPNET, ENCAPNET = CapNetConfig, SixLayerEncapNetConfig
CHANGES = [
    ('nn.dynamic', 'dynamic_routing', those(CAPNET)),
    ('nn.dynamic', '_dynamic_vote_free', those(CAPNET)),
    ('nn.dynamic', '_dynamic_votes', those(CAPNET)),
    ('nn.em', 'em_routing', those(CAPNET)),
    ('nn.em', '_em_vote_free', those(CAPNET)),
    ('nn.moments', 'VARIANCE_FLOOR', those(CAPNET)),
    ('nn.kernels', 'collect', those(CAPNET)),
    ('nn.routed', 'RoutedCapsules', those(CAPNET)),
    ('nn.capconv', 'CapConv', those(ENCAPNET)),
    ('nn.agreement', 'agreement', those(CAPNET, measuring=False)),
    ('nn.trace', 'trace', set()),
    ('nn.capfc', 'CapFC', those(ENCAPNET)),
    ('nn.capsules', 'squash', those(CAPNET, ENCAPNET)),
    ('nn.capsules', 'map_capsules', set()),
    ('nn.convolutional', 'stem', those(CAPNET, ENCAPNET)),
    ('nn.convolutional', 'convolutions', those()),
    ('nn.losses', 'margin_loss', those()),  # the step that is measured has a loss, too
    ('nn.losses', 'spread_loss', set()),
    ('data.augmentation', 'augment', those(measuring=False)),
    ('data.augmentation', 'jitter', those(measuring=False)),
    ('data.augmentation', 'AUGMENTATIONS', those(measuring=False)),
    ('data.batches', 'batches', those(measuring=False)),
    ('data.augmentation', 'ten_crop', set()),  # none of these rows asks for it
    ('data.sources', 'locate', set()),  # what it finds is proven by the content hash
    ('training.trainer', 'Trainer', those(measuring=False)),
    ('training.diagnostics', 'diagnose', those(measuring=False)),
    ('training.evaluation', 'evaluate_ten_crop', set()),
    ('training.checkpoint', 'save', set()),
    ('bench.costs', 'measure', those(training=False)),
    ('bench.account', 'step_bytes', those(training=False)),
    ('bench.account', 'kept_bytes', set()),
    ('show.tables.table1', 'table1', set()),
    ('cli.status', 'status', set()),
]


def test_the_rows_are_those_of_the_table():
    assert len(CONFIGS) == 22 and len(those(CAPNET)) == 14 and len(those(ENCAPNET)) == 4
    assert those(measuring=False) | those(training=False) == those()


@pytest.mark.parametrize(
    'module, definition, expected', CHANGES, ids=[f'{m}.{d}' for m, d, _ in CHANGES]
)
def test_one_changed_line_makes_stale_exactly_the_rows_that_rest_on_it(
    stale, module, definition, expected
):
    assert stale({f'encapnet.{module}': one_line_more(definition)}) == expected


@pytest.mark.parametrize(
    ('module', 'definition'),
    [
        (module, definition)
        for module in (f'encapnet.nn.{name}' for name in ('votes', 'dynamic', 'moments', 'em'))
        for definition in definitions(MODULES[module].read_text(encoding='utf-8'))
    ],
)
def test_every_definition_of_routing(stale, before, module, definition):
    "Whatever is changed there, the rows whose closure holds it turn stale, and no others."
    if definition == '__all__':
        assert stale({module: one_line_more(definition)}) == set()
        return
    holding = {
        row for row, closure in before.items() if f'{module}:{definition}' in closure.definitions
    }
    assert holding in (those(CAPNET), set())
    assert stale({module: one_line_more(definition)}) == holding


FURTHER = (
    *('backends', 'lanes', 'group_transforms'),
    *('dynamic_formulas', 'dynamic_kernels', 'dynamic_compiled'),
    *('em_formulas', 'em_kernels', 'em_samples', 'em_compiled'),
)


def every_definition(source):
    for definition in definitions(source):
        source = one_line_more(definition)(source)
    return source


def test_nothing_rests_on_the_books(stale):
    """The books decide what is run, and that is in the configuration; a change there makes no
    result another one."""
    books = [module for module in MODULES if module.startswith('encapnet.study.')]
    assert len(books) >= 5

    assert stale(dict.fromkeys(books, every_definition)) == set()


def decorated_by(other):
    "Puts another decorator where the one for a further backend is."
    return lambda source: re.sub(r'@further_backend\(.*\)\n', other, source)


@pytest.mark.parametrize(
    ('edits', 'expected'),
    [
        ({f'encapnet.nn.{name}': every_definition for name in FURTHER}, set()),
        *(({f'encapnet.nn.{name}': decorated_by('')}, set()) for name in ('dynamic', 'em')),
        ({'encapnet.nn.em': decorated_by('@torch.no_grad()\n')}, those(CAPNET)),
    ],
    ids=['changed', 'dynamic taken away', 'em taken away', 'another decorator'],
)
def test_a_further_backend_makes_nothing_stale(stale, edits, expected):
    "It is asked for by name, and nothing else can reach it."
    for name in ('dynamic', 'em'):
        source = MODULES[f'encapnet.nn.{name}'].read_text(encoding='utf-8')
        assert '@further_backend(' in source
    assert stale(edits) == expected


@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_who_asks_for_a_further_backend_rests_on_it(routing):
    layer = dict(
        row='one', hardware='', batch=1, groups=1, positions=1, dim=1, higher=1, higher_dim=1
    )
    chunked, numba = (
        freshness.code_of(RoutingBenchConfig(routing=routing, backend=backend, **layer)).definitions
        for backend in ('chunked', 'numba')
    )
    assert {'encapnet.nn.lanes:exp', f'encapnet.nn.{routing}_formulas:store_key'} <= numba.keys()
    assert chunked.keys() < numba.keys() and 'encapnet.nn.lanes:exp' not in chunked


def remarks(source):
    "Comments and blank lines before every top-level statement."
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        first = min(
            [node.lineno, *(decorator.lineno for decorator in getattr(node, 'decorator_list', []))]
        )
        lines.insert(first - 1, '\n# a remark, and another one\n\n')
    return ''.join(lines)


def other_words(source):
    "Every docstring says something else, and the code is laid out anew."
    tree, changed = ast.parse(source), 0
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body[0].value.value = 'Said differently.'
            changed += 1
    assert changed
    return ast.unparse(tree)


def another_order(source):
    "The functions in reverse, at the end of the module, where prose has been moved around."
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return ast.unparse(
        ast.Module([*(node for node in tree.body if node not in functions), *functions[::-1]], [])
    )


@pytest.mark.parametrize('edit', [remarks, other_words, another_order])
def test_prose_makes_nothing_stale(stale, edit):
    for path in MODULES.values():
        source = path.read_text(encoding='utf-8')
        assert edit(source) != source and ast.parse(edit(source))
    assert stale(dict.fromkeys(MODULES, edit)) == set()


def other_locals(source):
    "Every local of every function, comprehension and lambda of a module bears another name."
    for line in reversed(_locals(source)):
        row, column, name = line
        lines = source.splitlines(keepends=True)
        text = lines[row - 1].encode()
        assert text[column:].startswith(name.encode()), (name, lines[row - 1])
        lines[row - 1] = (
            text[:column] + f'renamed_{name}'.encode() + text[column + len(name.encode()) :]
        ).decode()
        source = ''.join(lines)
    return source


def _locals(source):
    """Where the names of locals stand, parameters excepted: (row, column, name), in the order of
    the text."""
    import symtable

    tables, places = [symtable.symtable(source, 'module', 'exec')], set()
    functions = {}
    while tables:
        table = tables.pop()
        tables += table.get_children()
        if table.get_type() == 'function' and table.get_name() not in (
            'lambda',
            'genexpr',
            'listcomp',
            'setcomp',
            'dictcomp',
        ):
            names = {
                symbol.get_name()
                for symbol in table.get_symbols()
                if symbol.is_local() and not symbol.is_parameter()
            }
            functions.setdefault((table.get_name(), table.get_lineno()), set()).update(names)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        names = (
            functions.get((node.name, first)) or functions.get((node.name, node.lineno)) or set()
        )
        nested = {
            part.name
            for part in ast.walk(node)
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and part is not node
        }
        imported = {
            alias.asname or alias.name
            for part in ast.walk(node)
            if isinstance(part, (ast.Import, ast.ImportFrom))
            for alias in part.names
        }
        keywords = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        declared = {
            name
            for part in ast.walk(node)
            if isinstance(part, (ast.Global, ast.Nonlocal))
            for name in part.names
        }
        captured = {
            part.name
            for part in ast.walk(node)
            if isinstance(part, ast.ExceptHandler) and part.name
        }
        names = names - nested - imported - keywords - declared - captured
        # whose columns Python 3.11 does not tell
        spans = [part for part in ast.walk(node) if isinstance(part, ast.JoinedStr)]
        within = {id(part) for span in spans for part in ast.walk(span)}
        quoted = {
            part.id for span in spans for part in ast.walk(span) if isinstance(part, ast.Name)
        }
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in names - quoted and id(part) not in within:
                places.add((part.lineno, part.col_offset, part.id))
    return sorted(places)


@pytest.mark.parametrize(
    'module',
    [
        'nn.dynamic',
        'nn.em',
        'nn.moments',
        'nn.kernels',
        'nn.capsules',
        'nn.routed',
        'nn.capconv',
        'nn.losses',
        'nn.transport',
        'training.trainer',
        'training.outcome',
        'data.augmentation',
        'data.trees',
    ],
)
def test_a_local_may_be_renamed(stale, module):
    source = MODULES[f'encapnet.{module}'].read_text(encoding='utf-8')
    assert len(_locals(source)) >= 3 and ast.dump(ast.parse(other_locals(source))) != ast.dump(
        ast.parse(source)
    )
    assert stale({f'encapnet.{module}': other_locals}) == set()


def cut(name):
    "A module without one of its definitions."

    def edit(source):
        node = definitions(source)[name]
        lines = source.splitlines(keepends=True)
        return ''.join(lines[: node.lineno - 1] + lines[node.end_lineno :])

    return edit


def test_a_function_may_be_moved_and_renamed(stale):
    "From one module to another: who used it there imports it now, by another name."
    squash = ast.unparse(
        definitions(MODULES['encapnet.nn.capsules'].read_text(encoding='utf-8'))['squash']
    )
    edits = {
        'encapnet.nn.capsules': lambda text: (
            cut('squash')(text) + '\nfrom .gradients import shortened as squash\n'
        ),
        'encapnet.nn.gradients': lambda text: (
            f'{text}\nimport torch\n{squash.replace("squash(", "shortened(")}\n'
        ),
    }
    assert stale(edits) == set()
    assert 'encapnet.nn.gradients:shortened' in closures()['table1/a_dynamic'].definitions


def test_a_moved_function_that_says_something_else_counts(stale):
    squash = ast.unparse(
        definitions(MODULES['encapnet.nn.capsules'].read_text(encoding='utf-8'))['squash']
    )
    edits = {
        'encapnet.nn.capsules': lambda text: (
            cut('squash')(text) + '\nfrom .gradients import squash\n'
        ),
        'encapnet.nn.gradients': lambda text: one_line_more('squash')(
            f'{text}\nimport torch\n{squash}\n'
        ),
    }
    assert stale(edits) == those(CAPNET, ENCAPNET)


ALIKE = {
    "a comprehension's name": ('[x for x in xs]', '[y for y in xs]'),
    'one that is used outside, too': ('[x for x in x]', '[y for y in x]'),
    "a lambda's": ('lambda x: x + xs', 'lambda y: y + xs'),
    'how another library is imported': ('nn.Linear(xs)', 'Linear(xs)'),
}
DIFFERENT = {
    'who is meant, inside or out': ('[x for x in x]', '[y for y in xs]'),
    'a number': ('xs + 1', 'xs + 2'),
    'a type': ('xs + 1', 'xs + 1.0'),
    'an attribute': ('xs.a', 'xs.b'),
    'a keyword': ('f(a=xs)', 'f(b=xs)'),
    'the order of statements': ('(xs.pop(0), xs.pop(1))', '(xs.pop(1), xs.pop(0))'),
    "another library's function": ('nn.Linear(xs)', 'nn.Bilinear(xs)'),
    'a global, not a local': ('[f(x) for x in xs]', '[f(x) for _ in xs]'),
}


def reduced(expression):
    source = (
        'from torch import nn\nfrom torch.nn import Linear\ndef f(xs, x=1):\n    return '
        f'{expression}\n'
    )
    return definitions_module.Module('encapnet.made_up', source).definition('f').digits


@pytest.mark.parametrize('one, other', ALIKE.values(), ids=ALIKE)
def test_what_computes_the_same_has_the_same_digits(one, other):
    assert reduced(one) == reduced(other)


@pytest.mark.parametrize('one, other', DIFFERENT.values(), ids=DIFFERENT)
def test_what_computes_something_else_has_others(one, other):
    assert reduced(one) != reduced(other)


def test_the_words_of_an_error_do_not_count_but_its_kind_does():
    def digits(statement):
        return (
            definitions_module.Module(
                'encapnet.made_up', f'def f(x):\n    if x: {statement}\n    return x\n'
            )
            .definition('f')
            .digits
        )

    assert digits("raise ValueError('one')") == digits(
        "raise ValueError(f'another, {x}') from None"
    )
    assert digits("raise ValueError('one')") != digits("raise TypeError('one')")


def test_who_looks_at_locals_by_name_keeps_their_names():
    def digits(name):
        return (
            definitions_module.Module(
                'encapnet.made_up', f'def f(x):\n    {name} = x\n    return locals()\n'
            )
            .definition('f')
            .digits
        )

    assert digits('one') != digits('other')


def test_a_definition_that_is_gone_or_new_counts(stale):
    """A helper that takes over a part of another function's work belongs to the closure from then
    on."""
    called = one_line_more('dynamic_routing')
    edits = {
        'encapnet.nn.dynamic': lambda text: (
            called(text).replace('assert True\n', '_extra()\n') + '\ndef _extra(): pass\n'
        )
    }
    assert stale(edits) == those(CAPNET)
    assert 'encapnet.nn.dynamic:_extra' in closures()['table1/a_dynamic'].definitions


# On disk, and through the command line
# ----------------------------------------------------------------------------------


def encapnet(package_root, *arguments, cwd):
    "Run the command line of a package below package_root: (exit code, stdout, stderr)."
    done = subprocess.run(
        [sys.executable, '-c', 'from encapnet.cli.main import main; main()', *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(package_root)),
    )
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


TRAIN = """
import sys
from encapnet.data.content import fingerprint
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.run import Run
from encapnet.training.fit import fit
for config in plan("table1", PROFILES["smoke"], {"synthetic": fingerprint("synthetic")}, 1, sys.argv[1:]):
    fit(Run("store", config), bar=False)
    print(config.key)
"""


@pytest.mark.slow
def test_a_finished_run_turns_stale_and_is_trained_again_when_asked(tmp_path):
    """The other row, on the same change and with all prose of the edited module exchanged, stays
    fresh."""
    copy, store = tmp_path / 'copy', tmp_path / 'store'
    shutil.copytree(PACKAGE, copy / 'encapnet', ignore=shutil.ignore_patterns('__pycache__'))
    keys = subprocess.run(
        [sys.executable, '-c', TRAIN, 'a_dynamic', 'c_cnn_shape'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(copy)),
        check=True,
    ).stdout.split()
    done = store / 'table1/a_dynamic' / keys[0] / 'DONE'
    for module in ('nn/dynamic', 'nn/routed', 'nn/capnet', 'training/trainer'):
        path = copy / f'encapnet/{module}.py'
        path.write_text(other_words(remarks(path.read_text(encoding='utf-8'))), encoding='utf-8')
    path = copy / 'encapnet/nn/dynamic.py'
    path.write_text(
        one_line_more('dynamic_routing')(path.read_text(encoding='utf-8')), encoding='utf-8'
    )

    arguments = ('status', '--profile', 'smoke', '--runs', 'store', '--json')
    code, told, said = encapnet(copy, *arguments, cwd=tmp_path)
    assert code == 0, said
    lines = {line['row']: line for line in map(json.loads, told.splitlines())}
    command = (
        'encapnet run table1/a_dynamic --profile smoke --seed 0 --data synthetic --runs '
        'store --retrain'
    )
    found = lines['table1/a_dynamic']
    assert (found['state'], found['why'], found['command']) == (
        'stale',
        'changed since: nn.dynamic.dynamic_routing',
        command,
    )
    assert (lines['table1/c_cnn_shape']['state'], lines['table1/c_cnn_shape']['command']) == (
        'fresh',
        '',
    )
    assert (
        lines['table1/b_em']['state'] == 'missing' and lines['table1/c_cnn_shape']['key'] == keys[1]
    )

    again = (
        'run',
        '--config',
        str(done.with_name('config.json')),
        '--runs',
        'store',
        '--reports',
        'reports',
    )
    old = done.read_text(encoding='utf-8')
    code, told, said = encapnet(copy, *again, cwd=tmp_path)
    assert (code, told) == (1, '') and said == (
        f'encapnet: table1/a_dynamic ({keys[0]}) is stale, changed since: '
        'nn.dynamic.dynamic_routing; '
        '--retrain trains it again\n'
    )
    assert done.read_text(encoding='utf-8') == old, "a stale run is not passed off as today's"
    code, _, said = encapnet(copy, *again, '--retrain', cwd=tmp_path)
    assert code == 0, said
    then, now = json.loads(old), json.loads(done.read_text(encoding='utf-8'))
    assert (
        then['outcome'] == now['outcome']
        and then['provenance']['code'] != now['provenance']['code']
    )


def test_a_stale_record_is_certified_by_its_first_epoch(tmp_path, capsys):
    """What today's code computes is taken for the record of other code; then one digit of it is
    changed."""
    from encapnet.study.records import Record, changed_code, config_of
    from encapnet.study.ledger import append_ledger, read_ledger
    from encapnet.training.replay import replay
    from encapnet.cli.main import main

    digits = needs.data_hashes(['digits'])['digits']
    config = plan('table3_left', PROFILES['quick'], {'digits': digits}, 1, ['1_master'])[0]
    first, epochs = replay(config), config.schedule.epochs
    device = first.pop('device')
    curves = {name: first[name] + [first[name][-1]] * (epochs - 1) for name in ('errors', 'losses')}
    stamp = dict(code='another', device=device)
    records = [
        Record(
            key=one.key,
            experiment=one.experiment,
            row=one.row,
            config=one.model_dump(mode='json'),
            # of its first epoch: not of all test images
            outcome=first | curves | {'mistakes': None},
            provenance=stamp,
        )
        for one in (config, config.model_copy(update=dict(seed=1)))
    ]
    ledger = tmp_path / 'ledger' / 'table3_left.jsonl'
    for record in records:
        append_ledger(ledger, record)

    with pytest.raises(SystemExit) as ended:
        main(
            ['certify', 'table3_left', '--reports', str(tmp_path), '--runs', str(tmp_path / 'runs')]
        )
    said = capsys.readouterr().err
    assert ended.value.code == 1, said
    assert (
        '2 stale records' in said
        and 'table3_left/1_master on digits, quick, seed 0: certified' in said
    )
    # Seed 1 was given the numbers of seed 0.
    assert 'table3_left/1_master on digits, quick, seed 1: stays stale: ' in said
    assert '1 of 2 records stay stale; `encapnet run ROW --retrain` trains one again' in said
    found, problems = read_ledger(ledger)
    assert not problems and {
        record.config['seed']: changed_code(record, config_of(record)) for record in found
    } == {0: '', 1: 'made by other code'}
    assert [record.outcome for record in found if record.config['seed'] == 0] == [
        records[0].outcome
    ], 'not a digit has changed'


# the same f-string as releases of Python parse it: what 3.11 and 3.13 make of it, and what 3.12.1
# does, or might
PIECES = {
    'an empty piece in a format': (
        'f"{x:>{w}} %"',
        lambda tree: tree.body.values[0].format_spec.values.append(ast.Constant('')),
    ),
    'an empty piece in front': (
        'f"{x} b"',
        lambda tree: tree.body.values.insert(0, ast.Constant('')),
    ),
    'text in two pieces': (
        'f"ab{x}"',
        lambda tree: tree.body.values.__setitem__(
            slice(0, 1), [ast.Constant('a'), ast.Constant('b')]
        ),
    ),
}


@pytest.mark.parametrize('source, cut', PIECES.values(), ids=PIECES)
def test_an_fstrings_pieces_do_not_count(source, cut):
    whole, pieces = (ast.parse(source, mode='eval') for _ in range(2))
    before = ast.dump(pieces)
    cut(pieces)
    assert ast.dump(pieces) != before
    reduced = [
        definitions_module._reduced(
            tree, scopes.Reading('m', '', (), scopes.imports_of(tree, 'm'), False)
        )
        for tree in (whole, pieces)
    ]
    assert reduced[0] == reduced[1]
    other = ast.parse(source.replace('x', 'y'), mode='eval')
    assert (
        definitions_module._reduced(
            other, scopes.Reading('m', '', (), scopes.imports_of(other, 'm'), False)
        )
        != reduced[0]
    )


def others():
    "The Pythons that are installed here and run: version managers leave stubs, and others aside."
    named = [shutil.which(f'python3.{minor}') for minor in range(11, 16)]
    for store in ('~/.pyenv/versions/3.1[1-9]*', '~/.local/share/uv/python/cpython-3.1[1-9]*'):
        named += sorted(glob.glob(os.path.expanduser(f'{store}/bin/python3')))
    return [
        python
        for python in named
        if python and not subprocess.run([python, '-c', ''], capture_output=True).returncode
    ]


@pytest.mark.parametrize('python', others() or [sys.executable])
def test_every_definition_has_one_hash_on_every_python(python, tmp_path):
    "On those that are installed here; the script needs nothing but the standard library."
    code = ''.join(
        Path(module.__file__).read_text(encoding='utf-8') for module in (scopes, definitions_module)
    )
    code = re.sub(r'^from (\.|__future__)\w* import (\([^)]*\)|.*)$', '', code, flags=re.MULTILINE)
    code = f'from __future__ import annotations\n{code}'
    code += """
import sys
digits = {}
for path in sorted(Path(sys.argv[1]).rglob("*.py")):
    name = ".".join(("encapnet", *path.relative_to(sys.argv[1]).with_suffix("").parts))
    module = Module(name, path.read_text(encoding="utf-8"))
    digits |= {f"{name}:{symbol}": module.definition(symbol).digits for symbol in module.nodes}
print(json.dumps(digits))
"""
    (tmp_path / 'hashes.py').write_text(code, encoding='utf-8')
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE.parent))
    theirs, ours = (
        subprocess.run(
            [one, '-X', 'utf8', tmp_path / 'hashes.py', PACKAGE],
            capture_output=True,
            text=True,
            env=environment,
        )
        for one in (python, sys.executable)
    )
    assert theirs.returncode == ours.returncode == 0, theirs.stderr
    assert theirs.stdout == ours.stdout
