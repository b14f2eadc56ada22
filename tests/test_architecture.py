"""The picture of the house, held against the code: who may import whom, what stays light, what nothing is called."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "encapnet"

# Arrows point down or sideways, never up. A new module gets a row here, or the test below fails.
ARROWS = {
    # the mathematics
    "nn.capsules": [],
    "nn.losses": ["nn.capsules"],
    "nn.fused": [],
    "nn.kernels": ["nn.fused"],
    "nn.routing": ["nn.capsules", "nn.kernels"],
    "nn.layers": ["nn.capsules", "nn.routing"],
    "nn.transport": [],
    "nn.feedback": ["nn.layers", "nn.transport"],
    "nn.baselines": [],
    "nn.networks": ["nn.baselines", "nn.capsules", "nn.layers", "nn.feedback"],
    "nn.trace": ["nn.routing", "nn.layers", "nn.transport", "nn.feedback"],
    # the books
    "study.config": [],
    "study.runs": ["study.config"],
    "study.stats": [],
    "study.paper": [],
    "study.claims": ["study.config", "study.paper"],
    "study.verdicts": ["study.claims", "study.config", "study.paper", "study.runs", "study.stats"],
    "study.evidence": ["study.paper"],
    "study.launch": ["study.config", "study.runs"],
    "study.cluster": ["study.config", "study.runs", "study.launch"],
    # the bridge
    "download": ["study.config"],
    "data": ["download", "study.config", "study.runs"],
    "himagenet": ["data", "study.config", "study.runs"],
    "training": ["nn.networks", "nn.feedback", "nn.losses", "nn.trace", "data", "study.config", "study.runs"],
    "distributed": ["data", "training", "study.config", "study.launch", "study.runs"],
    # the faces
    "show.plots": [],
    "show.explore": ["study.config", "study.runs"],
    "show.explore_routing": ["nn.networks", "nn.trace", "data", "training", "show.explore", "show.plots", "study.config", "study.runs"],
    "show.explore_transport": ["nn.*", "data", "training", "show.explore", "show.plots", "study.config", "study.runs"],
    "show.explore_capconv": ["nn.networks", "nn.trace", "data", "training", "show.explore", "show.plots", "study.config", "study.runs"],
    "show.explore_runs": ["show.explore", "show.plots", "study.config", "study.runs", "study.stats"],
    "show.upkeep": ["study.config", "study.runs"],
    "show.pages": ["show.upkeep", "study.config", "study.runs", "study.verdicts"],
    "show.serve": ["show.pages", "study.config"],
    "show.twins": ["study.config", "study.runs"],
    "show.report": [
        "show.plots", "show.twins", "study.claims", "study.config", "study.launch", "study.paper", "study.runs", "study.stats", "study.verdicts",
    ],
    "show.routing_bench": ["show.bench", "show.plots", "show.report", "study.config", "study.launch", "study.runs"],
    "show.transport_bench": ["nn.transport", "show.bench", "show.plots", "show.report", "show.routing_bench", "study.config", "study.runs"],
    "show.capconv_bench": ["nn.*", "show.bench", "show.plots", "show.report", "show.routing_bench", "study.config", "study.runs"],
    "show.data_bench": ["nn.*", "data", "show.bench", "show.plots", "show.report", "show.routing_bench", "study.config", "study.runs"],
    "show.comparison": ["show.costs", "show.report", "study.config", "study.launch", "study.paper"],
    "show.costs": ["data", "training", "show.report", "study.config", "study.runs"],
    "show.claims": ["show.report", "show.twins", "study.claims", "study.stats", "study.verdicts"],
    "show.softmax_axis": ["show.plots", "show.report", "study.config", "study.launch", "study.runs", "study.stats"],
    "show.ablation": [
        "show.plots", "show.report", "study.claims", "study.config", "study.launch", "study.paper", "study.stats", "study.verdicts",
    ],
    "show.agreement": [
        "show.plots", "show.report", "study.claims", "study.config", "study.launch", "study.paper", "study.runs", "study.stats", "study.verdicts",
    ],
    "show.architecture": ["nn.networks", "show.plots", "show.report", "show.twins"],
    "show.mechanism": ["show.plots", "show.report", "show.twins", "study.config", "study.paper"],
    "show.bench": ["nn.*", "study.config", "study.runs"],
    "show.deviations": ["show.report", "show.twins", "study.config", "study.runs", "study.stats"],
    "show.evidence": ["show.deviations", "show.plots", "show.report", "show.twins", "study.config", "study.evidence", "study.paper", "study.runs"],
    "cli": ["*"],
    "__main__": ["cli"],
}

# What each trunk may never load, not even inside a function.
FORBIDDEN = {
    "nn.": {"pandas", "matplotlib", "seaborn", "papermill", "pydantic", "typer", "torchvision"},
    "study.": {"torch", "torchvision", "torchaudio", "accelerate"},
}
EXCEPTIONS = {"nn.baselines": {"torchvision"}}  # other people's networks, when one is built

HEAVY = {"torch", "torchvision", "accelerate", "matplotlib", "seaborn", "papermill", "pandas"}
NAMELESS = {"util", "utils", "helper", "helpers", "common", "misc"}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


SOURCES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("__init__", "_modidx")
}


def imports(source, module, known=SOURCES):
    """What the source of our `module` imports, inside functions too: our modules, and others by their top-level name.

    Ours lose the package's name: `study.runs`, or `study` where nothing but the folder is named."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = f"encapnet.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            inside = {f"{base}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("encapnet.") in known}
            found |= modules | ({base} if modules != inside else set())
        elif isinstance(node, ast.Call) and re.search(r"(^|\.)(import_module|__import__)$", ast.unparse(node.func)):
            found |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    ours = {name.removeprefix("encapnet.") for name in found if name.startswith("encapnet.")}
    return ours - {module}, {name.partition(".")[0] for name in found} - {"encapnet"}


def allowed(module):
    "The table's row, with its stars resolved."
    for target in ARROWS[module]:
        if target.endswith("*"):
            yield from (name for name in ARROWS if name.startswith(target[:-1]) and name not in (module, "__main__"))
        else:
            yield target


@pytest.mark.parametrize(
    ("source", "ours", "others"),
    [
        ("from .capsules import squash", {"nn.capsules"}, set()),
        ("from ..study import runs, config", {"study.runs", "study.config"}, set()),
        ("from ..study.runs import Run", {"study.runs"}, set()),
        ("from .. import data, __version__", {"data"}, set()),
        ("from . import nosuch", {"nn"}, set()),
        ("import encapnet.data", {"data"}, set()),
        ("def lazily():\n    from encapnet.data import load", {"data"}, set()),
        ("importlib.import_module('encapnet.data')", {"data"}, set()),
        ("import torch.nn.functional as F, os", set(), {"torch", "os"}),
        ("if True:\n    from torch import nn", set(), {"torch"}),
        ("'from torch import nn'  # import torch", set(), set()),
    ],
)
def test_imports_are_found(source, ours, others):
    known = {"nn.capsules", "nn.routing", "study.runs", "study.config", "data"}
    assert imports(source, "nn.routing", known) == (ours, others)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_arrows(module):
    assert module in ARROWS, f"encapnet.{module} has no row in the table of arrows"
    ours, others = imports(SOURCES[module].read_text(encoding="utf-8"), module)
    assert ours - set(allowed(module)) == set(), f"encapnet.{module} may not import these"
    forbidden = set().union(*(names for trunk, names in FORBIDDEN.items() if module.startswith(trunk))) - EXCEPTIONS.get(module, set())
    assert others & forbidden == set(), f"encapnet.{module} may not load these, not even lazily"


def test_arrows_make_no_circle():
    assert len(list(TopologicalSorter({module: set(allowed(module)) for module in ARROWS}).static_order())) == len(
        ARROWS
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_packages_import_nothing(path):
    "Or importing one module would load its neighbours."
    assert imports(path.read_text(encoding="utf-8"), "") == (set(), set())


def run(code, *blocked):
    "Run `code` in a fresh interpreter in which the `blocked` modules cannot be imported."
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    done = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import encapnet",
        "from encapnet.cli import main\n"
        "sys.argv = ['encapnet', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code",
    ],
    ids=["import encapnet", "encapnet --help"],
)
def test_start_is_light(code):
    told = run(f"{code}\nprint('loaded:', *({HEAVY!r} & sys.modules.keys()))")
    assert told.splitlines()[-1].split() == ["loaded:"]


def test_the_books_open_without_torch():
    books = [f"encapnet.{module}" for module in SOURCES if module.startswith("study.")]
    assert books
    run(f"import {', '.join(books)}", "torch", "torchvision")


def test_nothing_is_called_utils():
    "A module is one noun. A file named for having no name of its own collects what belongs elsewhere."
    files = [path for folder in ("encapnet", "nbs", "tests", ".ci") for path in (ROOT / folder).rglob("*")]
    assert files
    nameless = [path for path in files if NAMELESS & set(re.split(r"[^a-z]+", path.stem.lower()))]
    assert nameless == []


def test_style():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
