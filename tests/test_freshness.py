"""Which results a change of the code makes stale: exactly those whose code says something else now."""

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from encapnet.study import runs
from encapnet.study.config import CapNetConfig, MeasureConfig, SixLayerEncapNetConfig, measurements, plan

PACKAGE = Path(runs.__file__).parents[1]
MODULES = {
    ".".join(("encapnet", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "_modidx")
}
CONFIGS = [*plan("table1", "quick", {"digits": "0" * 64}, 1), *measurements("any machine")]


def name(config):
    return f"{config.experiment}/{config.row}"


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
    found = cache(lambda *places: runs.code_closure(list(places)))
    return {name(config): found(*runs.roots(config)) for config in CONFIGS}


@pytest.fixture(scope="module")
def before():
    return closures()


@pytest.fixture
def stale(monkeypatch, before):
    "The rows that edits (module -> what to make of its source) turn stale."

    def judge(edits):
        source = runs._source
        monkeypatch.setattr(runs, "_source", lambda module: edits.get(module, lambda text: text)(source(module)))
        after = closures()
        return {row for row in before if runs.code_hash(before[row]) != runs.code_hash(after[row])}

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
            lines.insert(node.end_lineno, f"{definition} = None\n")
            return "".join(lines)
        if isinstance(node, ast.ClassDef):
            functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            node = functions[0] if functions else node
        last = node.body[-1]
        if last.lineno == node.lineno:  # all on one line
            head, tail = lines[last.lineno - 1][: last.col_offset], lines[last.lineno - 1][last.col_offset :]
            lines[last.lineno - 1] = f"{head}assert True; {tail}"
        else:
            lines.insert(last.lineno - 1, " " * last.col_offset + "assert True\n")
        return "".join(lines)

    return edit


CAPNET, ENCAPNET = CapNetConfig, SixLayerEncapNetConfig
CHANGES = [
    ("nn.routing", "dynamic_routing", those(CAPNET)),
    ("nn.routing", "_dynamic_vote_free", those(CAPNET)),
    ("nn.routing", "_dynamic_votes", those(CAPNET)),
    ("nn.routing", "em_routing", those(CAPNET)),
    ("nn.routing", "_em_vote_free", those(CAPNET)),
    ("nn.routing", "VARIANCE_FLOOR", those(CAPNET)),
    ("nn.kernels", "collect", those(CAPNET)),
    ("nn.layers", "RoutedCapsules", those(CAPNET)),
    ("nn.layers", "CapConv", those(ENCAPNET)),
    ("nn.trace", "agreement", those(CAPNET, measuring=False)),
    ("nn.trace", "trace", set()),
    ("nn.layers", "CapFC", those(ENCAPNET)),
    ("nn.capsules", "squash", those(CAPNET, ENCAPNET)),
    ("nn.capsules", "map_capsules", set()),
    ("nn.networks", "stem", those(CAPNET, ENCAPNET)),
    ("nn.networks", "convolutions", those()),
    ("nn.losses", "margin_loss", those()),  # the step that is measured has a loss, too
    ("nn.losses", "spread_loss", set()),
    ("data", "augment", those(measuring=False)),
    ("data", "jitter", those(measuring=False)),
    ("data", "AUGMENTATIONS", those(measuring=False)),
    ("data", "batches", those(measuring=False)),
    ("data", "ten_crop", set()),  # none of these rows asks for it
    ("data", "locate", set()),  # what it finds is proven by the content hash
    ("training", "Trainer", those(measuring=False)),
    ("training", "diagnose", those(measuring=False)),
    ("training", "evaluate_ten_crop", set()),
    ("training", "save", set()),
    ("show.bench", "measure", those(training=False)),
    ("show.bench", "step_bytes", those(training=False)),
    ("show.bench", "kept_bytes", set()),
    ("show.report", "table1", set()),
    ("cli", "status", set()),
]


def test_the_rows_are_those_of_the_table():
    assert len(CONFIGS) == 20 and len(those(CAPNET)) == 12 and len(those(ENCAPNET)) == 4
    assert those(measuring=False) | those(training=False) == those()


@pytest.mark.parametrize("module, definition, expected", CHANGES, ids=[f"{m}.{d}" for m, d, _ in CHANGES])
def test_one_changed_line_makes_stale_exactly_the_rows_that_rest_on_it(stale, module, definition, expected):
    assert stale({f"encapnet.{module}": one_line_more(definition)}) == expected


@pytest.mark.parametrize("definition", definitions(MODULES["encapnet.nn.routing"].read_text(encoding="utf-8")))
def test_every_definition_of_routing(stale, before, definition):
    "Whatever is changed there, the rows whose closure holds it turn stale, and no others."
    if definition == "__all__":
        assert stale({"encapnet.nn.routing": one_line_more(definition)}) == set()
        return
    holding = {row for row, closure in before.items() if f"encapnet.nn.routing:{definition}" in closure}
    assert holding in (those(CAPNET), set())
    assert stale({"encapnet.nn.routing": one_line_more(definition)}) == holding


def test_nothing_rests_on_the_books(stale):
    "The books decide what is run, and that is in the configuration; a change there makes no result another one."
    books = [module for module in MODULES if module.startswith("encapnet.study.")]
    assert len(books) >= 5

    def every_definition(source):
        for definition in definitions(source):
            source = one_line_more(definition)(source)
        return source

    assert stale(dict.fromkeys(books, every_definition)) == set()


def remarks(source):
    "Comments and blank lines before every top-level statement."
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        lines.insert(first - 1, "\n# a remark, and another one\n\n")
    return "".join(lines)


def other_words(source):
    "Every docstring says something else, and the code is laid out anew."
    tree, changed = ast.parse(source), 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0].value.value = "Said differently."
            changed += 1
    assert changed
    return ast.unparse(tree)


def another_order(source):
    "The functions in reverse, at the end of the module, where prose has been moved around."
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return ast.unparse(ast.Module([*(node for node in tree.body if node not in functions), *functions[::-1]], []))


@pytest.mark.parametrize("edit", [remarks, other_words, another_order])
def test_prose_makes_nothing_stale(stale, edit):
    for path in MODULES.values():
        source = path.read_text(encoding="utf-8")
        assert edit(source) != source and ast.parse(edit(source))
    assert stale(dict.fromkeys(MODULES, edit)) == set()


def test_a_definition_that_is_gone_or_new_counts(stale):
    "A helper that takes over a part of another function's work belongs to the closure from then on."
    called = one_line_more("dynamic_routing")
    edits = {"encapnet.nn.routing": lambda text: called(text).replace("assert True\n", "_extra()\n") + "\ndef _extra(): pass\n"}
    assert stale(edits) == those(CAPNET)
    assert "encapnet.nn.routing:_extra" in closures()["table1/a_dynamic"]


# On disk, and through the command line ----------------------------------------------------------------------------------


def encapnet(package_root, *arguments, cwd):
    "Run the command line of a package below package_root: (exit code, stdout, stderr)."
    done = subprocess.run(
        [sys.executable, "-c", "from encapnet.cli import main; main()", *arguments],
        capture_output=True, text=True, cwd=cwd, env=dict(os.environ, PYTHONPATH=str(package_root)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


TRAIN = """
import sys
from encapnet import data
from encapnet.study.config import plan
from encapnet.study.runs import Run
from encapnet.training import fit
for config in plan("table1", "smoke", {"synthetic": data.fingerprint("synthetic")}, 1, sys.argv[1:]):
    fit(Run("store", config), bar=False)
    print(config.key)
"""


@pytest.mark.slow
def test_a_finished_run_turns_stale_and_is_trained_again_when_asked(tmp_path):
    "The other row, on the same change and with all prose of the edited module exchanged, stays fresh."
    copy, store = tmp_path / "copy", tmp_path / "store"
    shutil.copytree(PACKAGE, copy / "encapnet", ignore=shutil.ignore_patterns("__pycache__"))
    keys = subprocess.run([sys.executable, "-c", TRAIN, "a_dynamic", "c_cnn_shape"], capture_output=True, text=True,
                          cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(copy)), check=True).stdout.split()  # fmt: skip
    done = store / "table1/a_dynamic" / keys[0] / "DONE"
    for module in ("nn/routing", "nn/layers", "nn/networks", "training"):
        path = copy / f"encapnet/{module}.py"
        path.write_text(other_words(remarks(path.read_text(encoding="utf-8"))), encoding="utf-8")
    path = copy / "encapnet/nn/routing.py"
    path.write_text(one_line_more("dynamic_routing")(path.read_text(encoding="utf-8")), encoding="utf-8")

    arguments = ("status", "--profile", "smoke", "--runs", "store", "--json")
    code, told, said = encapnet(copy, *arguments, cwd=tmp_path)
    assert code == 0, said
    lines = {line["row"]: line for line in map(json.loads, told.splitlines())}
    command = "encapnet run table1/a_dynamic --profile smoke --seed 0 --data synthetic --runs store --retrain"
    found = lines["table1/a_dynamic"]
    assert (found["state"], found["why"], found["command"]) == (
        "stale", "changed since: nn.routing.dynamic_routing", command
    )  # fmt: skip
    assert (lines["table1/c_cnn_shape"]["state"], lines["table1/c_cnn_shape"]["command"]) == ("fresh", "")
    assert lines["table1/b_em"]["state"] == "missing" and lines["table1/c_cnn_shape"]["key"] == keys[1]

    again = ("run", "--config", str(done.with_name("config.json")), "--runs", "store", "--reports", "reports")
    old = done.read_text(encoding="utf-8")
    code, told, said = encapnet(copy, *again, cwd=tmp_path)
    assert (code, told) == (1, "") and said == (
        f"encapnet: table1/a_dynamic ({keys[0]}) is stale, changed since: nn.routing.dynamic_routing; "
        "--retrain trains it again\n"
    )
    assert done.read_text(encoding="utf-8") == old, "a stale run is not passed off as today's"
    code, _, said = encapnet(copy, *again, "--retrain", cwd=tmp_path)
    assert code == 0, said
    then, now = json.loads(old), json.loads(done.read_text(encoding="utf-8"))
    assert then["outcome"] == now["outcome"] and then["provenance"]["code"] != now["provenance"]["code"]
