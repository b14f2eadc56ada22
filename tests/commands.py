"""Commands of `encapnet`, each a process: on Linux a fork of one that has loaded what takes long,
and which is kept from the first command on. Tests of how a process starts start one themselves."""

import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

from encapnet import standin

ROOT = Path(__file__).resolve().parents[1]

# beside what pages draw with: what commands and kernels load once they run
MORE = (
    *('encapnet.cli.run', 'encapnet.cli.reproduce', 'encapnet.training.fit', 'torch._dynamo'),
    *('encapnet.show.page.publish', 'papermill', 'nbclient', 'nbconvert', 'great_tables'),
)

_kept = ExitStack()
_socket = ''
given = dict(os.environ)  # of this worker, before any test


@contextmanager
def _as_given():
    """What a test has set by then, or PyTorch's compiler when it was loaded, would be what the kept
    process stands for: later commands, without it, could not be its forks."""
    now = dict(os.environ)
    os.environ.clear()
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(now)


def _keep():
    global _socket
    from encapnet.cli.notebooks import notebooks
    from encapnet.show.page.kernel import DRAWING, warm_kernels

    with _as_given():
        _kept.enter_context(warm_kernels(notebooks().values(), more=(*DRAWING, *MORE)))
        _socket = os.environ.pop(standin.WARM, 'none')


def end_kept():
    "End the process that was kept, if there is one."
    if _socket:
        os.environ[standin.WARM] = _socket
        _kept.close()


@contextmanager
def forking():
    "Let commands and kernels that are started in this context be forks."
    if not _socket:
        _keep()
    before = os.environ.get(standin.WARM)
    if _socket != 'none':
        os.environ[standin.WARM] = _socket
    try:
        yield
    finally:
        os.environ.pop(standin.WARM, None)
        if before is not None:
            os.environ[standin.WARM] = before


def encapnet(*arguments, cwd=ROOT, timeout=600, **variables) -> subprocess.CompletedProcess:
    "Run a command to its end, in an environment with these variables."
    with forking():
        return subprocess.run(
            standin.command(*map(str, arguments)),
            cwd=cwd,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
