"""What is differentiable how often: the fast functions once, their references at will, and
torch.func and torch.export see through all of them."""

import copy

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from encapnet.nn.capconv import CapConv, CapDeconv
from encapnet.nn.capfc import CapFC
from encapnet.nn.dynamic import dynamic_routing
from encapnet.nn.em import em_routing
from encapnet.nn.encapnets import EncapNet
from encapnet.nn.gradients import as_reference
from encapnet.nn.networks import with_feedback
from encapnet.nn.resnet import ResNet
from encapnet.nn.routed import RoutedCapsules
from encapnet.nn.transport import sinkhorn_divergence, sinkhorn_plan

# torch.func.jvp imports what this warns of.
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit.script.*:FutureWarning')


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# large enough for the vote-free path to be taken
U, W = normal(2, 2, 9, 3), normal(2, 4, 4, 5, seed=1)
ACTIVATION, BETAS = normal(2, 2, 9, seed=2).sigmoid(), normal(2, 4, seed=3)
BATCH, OTHER = normal(4, 3, seed=4), normal(4, 3, seed=5)
MAP = normal(2, 6, 4, 4, seed=6)


def conv(kind=CapConv, **options):
    torch.manual_seed(0)
    return kind(3, 2, 2, **options).double()


CONVS, DECONVS = (
    {
        backend: conv(kind, backend=backend, coefficients='v3').eval()
        for backend in ('compact', 'reference')
    }
    for kind in (CapConv, CapDeconv)
)
FUNCTIONS = {  # of one tensor and a backend
    'dynamic': (lambda u, backend: dynamic_routing(u, W, backend=backend), U, 'chunked'),
    'dynamic, lower': (
        lambda u, backend: dynamic_routing(u, W, normalize='lower', backend=backend),
        U,
        'chunked',
    ),
    'em': (
        lambda u, backend: em_routing(u, ACTIVATION[: len(u)], W, *BETAS, backend=backend)[0],
        U,
        'chunked',
    ),
    'capConv': (lambda x, backend: CONVS[backend](x), MAP, 'compact'),
    'capDeconv': (lambda x, backend: DECONVS[backend](x), MAP, 'compact'),
    'plan': (
        lambda q, backend: sinkhorn_plan(q, 0.5, 3, backend),
        normal(2, 4, 4, seed=7).abs(),
        'compact',
    ),
    'divergence': (
        lambda x, backend: sinkhorn_divergence(
            x, OTHER, 0.5, 3, through_plan=True, backend=backend
        ),
        BATCH,
        'compact',
    ),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def test_the_reference_is_differentiable_twice(function):
    f, x, _ = function
    x = x.clone().requires_grad_()
    weights = torch.randn_like(f(x, 'reference'))
    assert gradcheck(lambda x: (f(x, 'reference') * weights).sum(), x, fast_mode=True)
    assert gradgradcheck(lambda x: (f(x, 'reference') * weights).sum(), x, fast_mode=True)


def test_a_second_derivative_of_the_fast_one_names_the_way_out(function):
    f, x, fast = function
    x = x.clone().requires_grad_()
    [slope] = torch.autograd.grad(f(x, fast).square().sum(), x, create_graph=True)
    [usual] = torch.autograd.grad(f(x, 'reference').square().sum(), x)
    assert torch.allclose(slope.detach(), usual, atol=1e-10)
    with pytest.raises(
        RuntimeError,
        match="differentiated once, and here it is asked for twice; with backend='reference'",
    ):
        slope.square().sum().backward()


def test_torch_func_sees_through(function):
    f, x, fast = function
    loss = lambda x: f(x, fast).square().sum()
    usual = x.clone().requires_grad_()
    f(usual, 'reference').square().sum().backward()
    assert torch.allclose(torch.func.grad(loss)(x), usual.grad, atol=1e-10)
    tangent = torch.randn_like(x)
    assert torch.allclose(
        torch.func.jvp(loss, (x,), (tangent,))[1], (usual.grad * tangent).sum(), atol=1e-9
    )
    twice = torch.func.jvp(torch.func.grad(loss), (x,), (tangent,))[1]
    assert twice.isfinite().all() and twice.abs().sum() > 0


def test_vmap_over_the_batch():
    each = torch.func.vmap(lambda u: dynamic_routing(u[None], W)[0])(U)
    assert torch.allclose(each, dynamic_routing(U, W), atol=1e-12)
    layer = conv().eval()
    each = torch.func.vmap(lambda x: layer(x[None])[0])(MAP)
    assert torch.allclose(each, layer(MAP), atol=1e-12)
    problems = normal(3, 4, 4, seed=8).abs()
    assert torch.allclose(
        torch.func.vmap(lambda q: sinkhorn_plan(q))(problems), sinkhorn_plan(problems), atol=1e-12
    )


def test_gradients_of_each_sample():
    "What torch.func is asked for most: a gradient by the weights for each sample."
    torch.manual_seed(0)
    layer = RoutedCapsules(2, 9, 3, 4, 5).double()
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    loss = lambda weights, u: torch.func.functional_call(layer, weights, (u[None],))[1].sum()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, U)['transform']
    layer(U)[1].sum().backward()
    assert torch.allclose(each.sum(0), layer.transform.grad, atol=1e-10)


def test_a_whole_network_becomes_its_reference():
    torch.manual_seed(0)
    fast = with_feedback(
        EncapNet(groups=2, depths=(1, 1, 1, 1), skip='both'), through_plan=True
    ).double()
    plain = as_reference(copy.deepcopy(fast))
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    (scores, divergence), (same, equal) = fast(x), plain(x)
    assert torch.allclose(scores, same, atol=1e-10) and torch.allclose(
        divergence, equal, atol=1e-10
    )
    slopes = torch.autograd.grad(
        equal, list(plain.network.parameters()), create_graph=True, allow_unused=True
    )
    penalty = sum(slope.square().sum() for slope in slopes if slope is not None)
    penalty.backward()
    assert all(
        parameter.grad.isfinite().all()
        for parameter in plain.network.parameters()
        if parameter.grad is not None
    )
    slopes = torch.autograd.grad(
        fast(x)[1], list(fast.network.parameters()), create_graph=True, allow_unused=True
    )
    with pytest.raises(RuntimeError, match='as_reference'):
        sum(slope.square().sum() for slope in slopes if slope is not None).backward()


EXPORTED = """
import torch
from encapnet.nn.capconv import CapConv
from encapnet.nn.capfc import CapFC
from encapnet.nn.capnet import CapNet
from encapnet.nn.encapnets import EncapNet
from encapnet.nn.routed import RoutedCapsules
torch.manual_seed(0)
network = {network}.eval()
x = torch.rand(3, {shape})
program = torch.export.export(network, (x,), dynamic_shapes=(({{0: torch.export.Dim("batch", min=2, max=64)}},)))
other = torch.rand(5, {shape})
found, usual = program.module()(other), network(other)
for one, same in zip(*((part if isinstance(part, tuple) else (part,)) for part in (found, usual))):
    assert torch.allclose(one, same, atol=1e-5), (one - same).abs().max()
"""


@pytest.mark.parametrize(
    'network, shape',
    [
        ('RoutedCapsules(2, 16, 4, 6, 5)', '2, 16, 4'),
        ('CapConv(3, 2, 2)', '6, 8, 8'),
        ("EncapNet(groups=2, depths=(1, 1, 1, 1), skip='both')", '3, 32, 32'),
        ('CapNet(groups=1)', '3, 32, 32'),
    ],
    ids=['routed', 'capConv', 'EncapNet', 'CapNet'],
)
def test_export_with_a_dynamic_batch_and_gradients_on(network, shape):
    "In a process without run-time checks of shapes, which no exporter sees through."
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, '-c', EXPORTED.format(network=network, shape=shape)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('network', [EncapNet, ResNet])
def test_feedback_on_the_meta_device(network):
    with torch.device('meta'):
        model = with_feedback(network(groups=2))
        scores, divergence = model(torch.rand(2, 3, 32, 32))
    assert scores.shape == (2, 10) and divergence.shape == () and divergence.is_meta
    assert sinkhorn_plan(torch.rand(3, 4, 5, device='meta')).shape == (3, 4, 5)


@pytest.mark.parametrize('dtype, least', [(torch.float32, '9.5e-07'), (torch.float64, '1.8e-15')])
def test_an_eps_that_no_digit_is_left_for_is_refused(dtype, least):
    x, y = BATCH.to(dtype), OTHER.to(dtype)
    for solve in (sinkhorn_divergence, lambda x, y, eps: sinkhorn_plan(x @ y.mT, eps)):
        with pytest.raises(
            ValueError, match=f'eps must be at least {least} in {str(dtype)[6:]}, got 1e-16'
        ):
            solve(x, y, eps=1e-16)
    smallest = 8 * torch.finfo(dtype).eps
    assert sinkhorn_divergence(x, y, smallest, 100).isfinite()


@pytest.mark.parametrize('kind', [CapConv, CapDeconv])
def test_an_unknown_backend_is_refused(kind):
    with pytest.raises(
        ValueError, match="backend must be one of 'compact', 'reference', got 'chunked'"
    ):
        kind(3, 2, 2, backend='chunked')
    with pytest.raises(ValueError, match="backend must be 'compact' or 'reference', got 'chunked'"):
        sinkhorn_plan(torch.rand(3, 3), backend='chunked')


def test_capfc_is_differentiable_twice():
    layer = CapFC(3, 4, 2).double()
    assert gradgradcheck(layer, normal(2, 4, 3).requires_grad_(), fast_mode=True)
