"""The routings' backend 'numba' from outside: what it costs who does not ask for it, where it does
without, and what it refuses."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from encapnet.nn import as_reference
from encapnet.nn.backends import check_kind, further_backend
from encapnet.nn.dynamic import dynamic_routing
from encapnet.nn.em import em_routing
from encapnet.nn.routed import RoutedCapsules

needs_numba = pytest.mark.usefixtures('numba')


@pytest.fixture
def numba():
    return pytest.importorskip('numba')


def run(code, *blocked, **environment):
    "Run `code` in a fresh interpreter in which the `blocked` modules cannot be imported."
    block = f'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'
    done = subprocess.run(
        [sys.executable, '-c', block + code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def problem(dtype=torch.float32, d=2, e=4, p=16, device='cpu'):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, p, d), (2, 3, p), (3, 5, d + 1, e), (5,), (5,)
    drawn = [torch.rand(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [x.requires_grad_() for x in drawn]


def route(routing, u, activation, transform, *betas, **options):
    "The outcome of either routing, as a tuple."
    if routing == 'em':
        return em_routing(u, activation, transform, *betas, **options)
    return (dynamic_routing(u, transform, **options),)


def outcome(layer, *inputs):
    layer.zero_grad()
    mean, active = layer(*inputs)
    (mean.square().sum() + active.sum()).backward()
    return [mean, active, *(parameter.grad.clone() for parameter in layer.parameters())]


LAYER = """
import torch, warnings
from encapnet.nn import RoutedCapsules
torch.manual_seed(0)
inputs = torch.randn(2, 3, 16, 1), torch.rand(2, 3, 16)
layer = RoutedCapsules(3, 16, 1, 7, 1, routing='em', backend=BACKEND)
def step():
    mean, active = layer(*inputs)
    (mean.sum() + active.sum()).backward()
    return mean
"""


def test_numba_is_not_loaded_before_it_is_asked_for():
    told, _ = run(
        "BACKEND = 'chunked'"
        + LAYER
        + "step(); import sys; print('loaded:', *({'numba', 'llvmlite'} & sys.modules.keys()))"
    )
    assert told.split() == ['loaded:']


def test_without_numba_chunked_computes_and_says_so_once():
    code = (
        "BACKEND = 'numba'"
        + LAYER
        + """
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    first, second = step(), step()
layer.options['backend'] = 'chunked'
assert torch.equal(first, step()) and torch.equal(second, first)
print(len(told), told[0].message)
"""
    )
    told, _ = run(code, 'numba')
    assert told.startswith("1 backend 'numba' is not here, so 'chunked' computes instead")
    assert "pip install 'encapnet[fast]' brings it" in told


@needs_numba
def test_machine_code_is_kept_where_it_can_be(tmp_path):
    code = "BACKEND = 'numba'" + LAYER + 'print(step().sum().item())'
    kept = tmp_path / 'kept'
    first, _ = run(code, ENCAPNET_CACHE=str(kept))
    assert list(kept.glob('compiled-*/*/*.nbc'))
    # as in a container: no home, and a folder that nobody can make
    nowhere = dict(HOME='', XDG_CACHE_HOME='', ENCAPNET_CACHE='/proc/nowhere')
    second, error = run(code, **nowhere)
    assert first == second and error == ''


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_a_layer_learns_the_same(routing):
    torch.manual_seed(0)
    layer = RoutedCapsules(3, 16, 2, 7, 4, routing=routing, backend='numba')
    inputs = torch.randn(5, 3, 16, 2), torch.rand(5, 3, 16)
    ours = outcome(layer, *inputs)
    for again, found in zip(outcome(layer, *inputs), ours):
        assert torch.equal(again, found), 'not the same digits twice'
    layer.options['backend'] = 'chunked'
    for found, expected in zip(ours, outcome(layer, *inputs)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert as_reference(layer).options['backend'] == 'reference'


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_some_gradients_are_not_wanted(routing):
    inputs = [x.detach() for x in problem()]
    weight = inputs[2].requires_grad_()
    ours, expected = (
        torch.autograd.grad(
            sum(part.sum() for part in route(routing, *inputs, backend=backend)), weight
        )[0]
        for backend in ('numba', 'chunked')
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not route(routing, *inputs, backend='numba')[0].requires_grad


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_it_is_differentiable_once(routing):
    leaves = problem(torch.float64)
    higher = route(routing, *leaves, backend='numba')[0]
    (gradient,) = torch.autograd.grad(higher.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="asked for twice; with backend='reference'"):
        gradient.square().sum().backward()


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_autocast_keeps_float32(routing):
    leaves = problem()
    expected = route(routing, *leaves, backend='numba')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = route(routing, *leaves, backend='numba')
    for ours, plain in zip(found, expected):
        assert torch.equal(ours, plain)


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_what_looks_through_gets_plain_operations(routing):
    class Routing(torch.nn.Module):
        def forward(self, *inputs):
            return route(routing, *inputs, backend='numba')

    inputs = tuple(x.detach() for x in problem())
    expected = route(routing, *inputs, backend='reference')
    exported = torch.export.export(Routing(), inputs).module()
    for ours, plain in zip(exported(*inputs), expected):
        torch.testing.assert_close(ours, plain)
    shapes = route(routing, *problem(device='meta'), backend='numba')
    assert [part.shape for part in shapes] == [(2, 5, 4), (2, 5)][: len(shapes)]


COMPILED = """
import torch
from encapnet.nn.routed import RoutedCapsules
torch.manual_seed(0)
layer = RoutedCapsules(3, 16, 2, 7, 4, routing=ROUTING, backend='numba')
inputs = torch.randn(2, 3, 16, 2), torch.rand(2, 3, 16)
plain, seen = layer(*inputs), torch.compile(layer, backend='aot_eager')(*inputs)
for ours, expected in zip(seen, plain): torch.testing.assert_close(ours, expected)
"""


@needs_numba
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
def test_compiled_by_torch(routing):
    "In a process of its own: the compiler cannot look through the shape checks of the tests."
    run(f'ROUTING = {routing!r}' + COMPILED)


@needs_numba
def test_wrong_input_is_refused_in_words():
    leaves = problem()
    with pytest.raises(
        ValueError, match='expected tensors of one floating type, got torch.float32'
    ):
        em_routing(leaves[0], leaves[1], leaves[2].double(), *leaves[3:], backend='numba')
    with pytest.raises(ValueError, match="of dimension 12 at most, got 13; backend 'chunked'"):
        em_routing(*problem(d=13, e=16), backend='numba')
    with pytest.raises(ValueError, match='has 2 rows, or 3 with a bias; got 5'):
        em_routing(*leaves[:2], torch.ones(3, 5, 5, 4), *leaves[3:], backend='numba')
    with pytest.raises(ValueError, match='at least 1 iteration'):
        em_routing(*leaves, iterations=0, backend='numba')
    with pytest.raises(IndexError, match='no higher capsule 5'):
        em_routing(*leaves, coefficients=[5], backend='numba')


@needs_numba
def test_wrong_input_of_dynamic_routing_is_refused_in_words():
    u, _, transform, *_ = problem()
    routed = partial(dynamic_routing, backend='numba')
    with pytest.raises(ValueError, match='one floating type, got torch.float32, torch.float64'):
        routed(u, transform.double())
    with pytest.raises(ValueError, match="of dimension 32 at most, got 33; backend 'chunked'"):
        routed(*problem(d=33, e=16)[::2][:2])
    with pytest.raises(ValueError, match='has 2 rows, or 3 with a bias; got 5'):
        routed(u, torch.ones(3, 5, 5, 4))
    with pytest.raises(ValueError, match='at least 1 iteration'):
        routed(u, transform, iterations=0)
    with pytest.raises(IndexError, match='no higher capsule 5'):
        routed(u, transform, coefficients=[5])
    with pytest.raises(ValueError, match="'higher' or 'lower', got 'upper'"):
        routed(u, transform, normalize='upper')


@needs_numba
@pytest.mark.gpu
def test_a_gpu_is_refused_in_words():
    with pytest.raises(ValueError, match='computes on the CPU, and here are tensors on cuda'):
        em_routing(*problem(device='cuda'), backend='numba')


def test_another_device_is_refused_in_words():
    with pytest.raises(ValueError, match="on meta: expected all on 'cpu', or backend 'chunked'"):
        check_kind(torch.ones(1, 1, 1, 1, device='meta'), largest=1)


def test_unknown_names_are_refused_with_those_that_there_are():
    leaves = problem()
    with pytest.raises(ValueError, match="'chunked' or .* or 'numba', got 'nmba'"):
        em_routing(*leaves, backend='nmba')
    with pytest.raises(ValueError, match="'chunked' or .* or 'numba', got 'numbr'"):
        dynamic_routing(leaves[0], leaves[2], backend='numbr')


def test_a_fault_of_the_further_backend_is_not_hidden():
    def load():
        raise RuntimeError('out of order')

    function = further_backend('numba', load, 'fast')(lambda x, backend='chunked': x)
    assert function(1) == 1
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match='out of order'):
        function(1, backend='numba')


def test_the_extra_is_offered():
    import tomllib

    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert any(name.startswith('numba') for name in project['optional-dependencies']['fast'])
    assert not any('numba' in name for name in project['dependencies'])


@pytest.mark.parametrize(
    ('which', 'shape', 'words'),
    [
        (1, (2, 1, 25), r'activations of shape \(2, 4, 25\), got \(2, 1, 25\)'),
        (1, (2, 4, 1), r'got \(2, 4, 1\)'),
        (1, (1, 4, 25), r'got \(1, 4, 25\)'),
        (1, (3, 4, 25), r'got \(3, 4, 25\)'),
        (1, (2, 100), r'got \(2, 100\)'),
        (2, (3, 6, 9, 16), 'for each of 4 channels, got one for 3'),
        (3, (5,), r'beta_u of shape \(6,\), got \(5,\)'),
        (4, (1,), r'beta_a of shape \(6,\), got \(1,\)'),
    ],
)
def test_machine_code_is_not_let_loose_on_what_does_not_fit(numba, which, shape, words):
    "It would read, and write, beside its tensors."
    from encapnet.nn.em_samples import check_shapes

    fit = [(2, 4, 25, 8), (2, 4, 25), (4, 6, 9, 16), (6,), (6,)]
    fit[which] = shape
    with pytest.raises(ValueError, match=words):
        check_shapes(*(torch.rand(each) for each in fit))
