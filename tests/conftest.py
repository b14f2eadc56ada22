"""What every test stands on: pinned threads, a cache and home of its own, and shapes checked at
run time.

Every worker reads this file before any test module, and so before torch and `encapnet.nn` are
imported: both need that."""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

# A shell's `make test &` hands down that Ctrl-C is passed over, to all who are started here, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

scratch = Path(tempfile.mkdtemp(prefix='encapnet-tests-'))
# What is compiled or counted for one worker is there for the other: theirs is the cache of the
# process that started them.
is_worker = 'PYTEST_XDIST_WORKER' in os.environ
cache = os.environ['ENCAPNET_CACHE'] if is_worker else str(scratch / 'cache')

os.environ |= {
    'OMP_NUM_THREADS': '1',  # results are bit for bit the same at one thread count only
    'MPLBACKEND': 'agg',
    'ENCAPNET_CACHE': cache,
    'IPYTHONDIR': str(scratch / 'ipython'),
    'HYPOTHESIS_STORAGE_DIRECTORY': str(scratch / 'hypothesis'),  # a tree may be read-only
    'JUPYTER_CONFIG_DIR': str(scratch / 'jupyter'),
}

# IPython warns where another virtual environment is active, and warnings are errors here.
os.environ.pop('VIRTUAL_ENV', None)

# As in a container: no HOME, or one that cannot be written. Browsers and Jupyter need one.
home = Path(os.path.expanduser('~'))
if not home.is_absolute() or not os.access(home, os.W_OK):
    os.environ['HOME'] = str(scratch / 'home')
    (scratch / 'home').mkdir()

from encapnet.study.machine import arithmetic

# As every training sets it: what a test trains in its own process has the digits of what it trains
# in another.
os.environ |= arithmetic()

from commands import end_kept, forking
from encapnet.cli.warm import LOADED_UNDER
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook('encapnet.nn', 'beartype.beartype')

import pytest

settings.register_profile('house', deadline=None, derandomize=True)
settings.load_profile('house')


# Each file goes to one worker whole: with the longest first, none is left alone with one at the end.
LONGEST_FIRST = (
    'test_package',
    'test_cluster',
    'test_faults',
    'test_reports',
    'test_explore',
    'test_gpu',
    'test_containers',
    'test_places',
    'test_bench',
    'test_training',
    'test_agreement',
    'test_distributed',
    'test_upkeep',
    'test_freshness',
)


def chromium_path():
    "A Chromium that runs here, or None."
    names = ['chromium', 'chromium-browser', 'google-chrome']
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope='session')
def chromium():
    "Path of the Chromium that browser tests start."
    return chromium_path()


@pytest.fixture(scope='module')
def browser(chromium):
    from playwright.sync_api import sync_playwright

    quiet = (
        '--disable-quic --no-first-run --disable-background-networking '
        '--disable-component-update --disable-sync'
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=os.environ.get('CHROMIUM') or chromium,
            args=['--no-sandbox', '--disable-gpu', *quiet.split()],
        )
        yield started
        started.close()


@pytest.fixture
def passed_over(tmp_path_factory):
    """Which of some paths git passes over by our rules: asked in a repository of its own, since
    the tree that is tested may be none, or another user's."""
    repository = tmp_path_factory.mktemp('repository')
    subprocess.run(['git', 'init', '--quiet', repository], check=True)
    shutil.copy(Path(__file__).parents[1] / '.gitignore', repository)

    def ask(*paths):
        done = subprocess.run(
            ['git', 'check-ignore', *paths], cwd=repository, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    return ask


@pytest.fixture(scope='module')
def forked():
    "Commands and kernels that a module's tests start are forks, where they may be."
    with forking():
        yield


@contextmanager
def nothing_is_handed_down():
    """What one test found out about data and device is not for the next one's child processes, nor
    is what a library set when it was loaded, as PyTorch's compiler does: with it, they could not
    be forks."""
    before = dict(os.environ)
    yield
    os.environ.pop('ENCAPNET_KNOWN', None)
    for name in {*before, *os.environ}:
        if name.startswith(LOADED_UNDER) and os.environ.get(name) != before.get(name):
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@pytest.fixture(autouse=True, scope='module')
def nothing_from_module_to_module():
    with nothing_is_handed_down():
        yield


@pytest.fixture(autouse=True)
def nothing_from_test_to_test(nothing_from_module_to_module):
    with nothing_is_handed_down():
        yield


def pytest_collection_modifyitems(items):
    """Put the longest files first, and skip what the machine cannot run. In CI a missing browser
    is a fault of the set-up, so those tests run and fail."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    marked = {
        name: [item for item in items if item.get_closest_marker(name)]
        for name in ('gpu', 'browser')
    }
    if marked['gpu']:
        import torch

        if not torch.cuda.is_available():
            for item in marked['gpu']:
                item.add_marker(pytest.mark.skip(reason='no CUDA device'))
    if marked['browser'] and chromium_path() is None and not os.environ.get('CI'):
        for item in marked['browser']:
            item.add_marker(pytest.mark.skip(reason='no Chromium on PATH'))


def pytest_unconfigure():
    end_kept()
    shutil.rmtree(scratch, ignore_errors=True)
