"""Routing without votes against routing by the book: any shape, any chunking, every way PyTorch
has of running a layer."""

import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encapnet.nn import dynamic, em
from encapnet.nn.routed import RoutedCapsules
from encapnet.nn.votes import votes as all_votes

sizes = st.integers(1, 6)
SHAPES = dict(
    b=st.integers(0, 5),
    g=sizes,
    p=st.integers(1, 40),
    d=st.integers(1, 5),
    j=st.integers(1, 30),
    e=sizes,
    bias=st.booleans(),
    iterations=st.integers(1, 4),
    cache=st.sampled_from([1, 500, 2000, 2**20]),
    seed=st.integers(0, 99),
)


def problem(b, g, p, d, j, e, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, g, p, d), (g, j, d + bias, e)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def compare(route, leaves, degenerate=1e-12, backend='chunked', exact=1e-12):
    """Values, coefficients and gradients by both ways agree to 1e-12 of the largest entry, or to
    what is `exact`.

    A cluster of one or two votes has next to no variance, and its gradient divides by it: where
    the textbook itself moves by a hundredth of that or more when its inputs change in their last
    digit, the bound is a hundred such moves, and never more than `degenerate`."""

    def outcome(leaves, backend):
        *results, c = route(*leaves, backend=backend, coefficients=[0])
        total = sum(
            (part * torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view(part.shape)).sum()
            for part in results
        )
        return [*results, c, *torch.autograd.grad(total, leaves)]

    generator = torch.Generator().manual_seed(1)
    nudged = [
        leaf * (1 + 1e-15 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype))
        for leaf in leaves
    ]
    moved = outcome([leaf.detach().requires_grad_() for leaf in nudged], 'reference')
    for ours, oracle, nearby in zip(outcome(leaves, backend), outcome(leaves, 'reference'), moved):
        assert ours.shape == oracle.shape
        if not oracle.numel():
            continue
        scale, resolution = (
            max(1.0, oracle.abs().max().item()),
            (nearby - oracle).abs().max().item(),
        )
        assert (ours - oracle).abs().max().item() <= max(
            exact * scale, min(100 * resolution, degenerate * scale)
        )


@settings(max_examples=60)
@given(normalize=st.sampled_from(['higher', 'lower']), **SHAPES)
def test_dynamic(normalize, iterations, cache, **shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, 'cache_size', lambda device: cache)
        compare(
            lambda *x, **more: dynamic.dynamic_routing(*x, iterations, normalize, **more),
            problem(**shape),
        )


@settings(max_examples=60)
# from 43 on votes are never formed
@given(**{**SHAPES, 'p': st.integers(1, 20) | st.integers(43, 56)})
def test_em(iterations, cache, seed, **shape):
    u, transform = problem(**shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    activation = torch.rand(u.shape[:3], generator=generator, dtype=u.dtype).requires_grad_()
    betas = [
        torch.randn(transform.shape[1], generator=generator, dtype=u.dtype).requires_grad_()
        for _ in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, 'cache_size', lambda device: cache)
        compare(
            lambda *x, **more: em.em_routing(*x, iterations=iterations, **more),
            [u, activation, transform, *betas],
            degenerate=1e-9,
        )


@contextmanager
def of_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


# machine code is made for each triple of sizes, and that takes seconds
@settings(max_examples=60)
@given(
    **{key: SHAPES[key] for key in ('b', 'g', 'p', 'j', 'iterations', 'seed')},
    sizes=st.sampled_from([(1, 1, True), (2, 4, True), (3, 6, False)]),
    party=st.integers(1, 5),
    threads=st.integers(1, 3),
)
def test_em_by_numba(iterations, party, threads, seed, sizes, **shape):
    em_compiled = pytest.importorskip('encapnet.nn.em_compiled', exc_type=ImportError)
    d, e, bias = sizes
    u, transform = problem(**shape, d=d, e=e, bias=bias, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    activation = torch.rand(u.shape[:3], generator=generator, dtype=u.dtype).requires_grad_()
    betas = [
        torch.randn(transform.shape[1], generator=generator, dtype=u.dtype).requires_grad_()
        for _ in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch, of_threads(threads):
        patch.setattr(em_compiled, '_PARTY', party)
        compare(
            lambda *x, **more: em.em_routing(*x, iterations=iterations, **more),
            [u, activation, transform, *betas],
            degenerate=1e-9,
            backend='numba',
            exact=1e-10,
        )


@settings(max_examples=60)
@given(
    normalize=st.sampled_from(['higher', 'higher', 'lower']),
    **{key: SHAPES[key] for key in ('b', 'g', 'p', 'j', 'iterations', 'seed')},
    sizes=st.sampled_from([(1, 1, True), (2, 4, True), (3, 6, False)]),
    threads=st.integers(1, 3),
)
def test_dynamic_by_numba(normalize, iterations, threads, seed, sizes, **shape):
    pytest.importorskip('numba')
    d, e, bias = sizes
    with of_threads(threads):
        compare(
            lambda *x, **more: dynamic.dynamic_routing(*x, iterations, normalize, **more),
            problem(**shape, d=d, e=e, bias=bias, seed=seed),
            backend='numba',
        )


@pytest.mark.parametrize('backend', ['chunked', 'numba'])
@pytest.mark.parametrize('routing', ['dynamic', 'em'])
@pytest.mark.parametrize('scale', [1e-4, 1e-2, 1.0, 1e2, 1e4])
def test_routing_is_finite_at_every_scale_of_votes(scale, routing, backend):
    if backend == 'numba':
        pytest.importorskip('numba')
    layer = RoutedCapsules(8, 64, 8, 40, 16, routing=routing, backend=backend)
    generator = torch.Generator().manual_seed(0)
    u = (scale * torch.randn(2, 8, 64, 8, generator=generator)).requires_grad_()
    higher, active = layer(u, torch.rand(2, 8, 64, generator=generator))
    (higher.sum() / scale + active.sum()).backward()
    for found in (higher, active, u.grad, *(parameter.grad for parameter in layer.parameters())):
        assert found.isfinite().all()


def layer_and_input(kind, **more):
    torch.manual_seed(0)
    layer, u = RoutedCapsules(3, 16, 4, 7, 5, routing=kind, **more), torch.randn(2, 3, 16, 4)
    return layer, (u, torch.rand(2, 3, 16)) if kind == 'em' else (u,)


def outcome(layer, inputs):
    layer.zero_grad()
    v, active = layer(*inputs)
    (v.square().sum() + active.sum()).backward()
    return [
        v.detach(),
        active.detach(),
        *(parameter.grad.clone() for parameter in layer.parameters()),
    ]


COMPILED = """
import torch
from encapnet.nn.routed import RoutedCapsules
for kind in ("dynamic", "em"):
    torch.manual_seed(0)
    layer, inputs = RoutedCapsules(3, 16, 4, 7, 5, routing=kind), (torch.randn(2, 3, 16, 4), torch.rand(2, 3, 16))
    found = []
    for one in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        v, active = one(*inputs)
        (v.square().sum() + active.sum()).backward()
        found.append([v, active, *(parameter.grad for parameter in layer.parameters())])
    for plain, compiled in zip(*found): torch.testing.assert_close(compiled, plain)
"""


def test_compiled():
    "In a process of its own: the compiler cannot look through the shape checks of the tests."
    done = subprocess.run([sys.executable, '-c', COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_autocast_keeps_float32(kind):
    layer, inputs = layer_and_input(kind)
    expected = outcome(layer, inputs)
    layer.forward = torch.autocast('cpu', dtype=torch.bfloat16)(layer.forward)
    for ours, plain in zip(outcome(layer, inputs), expected):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_distributed_data_parallel(kind, tmp_path):
    layer, inputs = layer_and_input(kind)
    expected = outcome(layer, inputs)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    try:
        for ours, plain in zip(
            outcome(torch.nn.parallel.DistributedDataParallel(layer), inputs), expected
        ):
            torch.testing.assert_close(ours, plain)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_one_transform_for_each_lower_capsule(kind):
    "p = 1, as in DigitCaps: the same call, the same result as from the definition."
    torch.manual_seed(0)
    layer, u = (
        RoutedCapsules(50, 1, 8, 10, 16, routing=kind).double(),
        torch.randn(3, 50, 1, 8, dtype=torch.float64),
    )
    votes = torch.einsum('bid,ijde->bije', u[:, :, 0], layer.weight) + layer.bias
    torch.testing.assert_close(all_votes(u, layer.transform.transpose(0, 1))[:, :, 0], votes)
    if kind == 'dynamic':
        logits = torch.zeros(3, 50, 10, dtype=torch.float64)
        for _ in range(3):
            s = (logits.softmax(2)[..., None] * votes).sum(1)
            length = s.norm(dim=-1, keepdim=True)
            v = s * length / (1 + length**2)
            logits = logits + (votes * v[:, None]).sum(-1)
        torch.testing.assert_close(layer(u)[0], v)
    else:
        active = torch.rand(3, 50, 1, dtype=torch.float64)
        mean = (active[..., None] * votes).sum(1) / active.sum(1)[..., None]
        layer.options['iterations'] = 1
        torch.testing.assert_close(layer(u, active)[0], mean)


def test_a_step_takes_a_fraction_of_the_votes():
    """Forward and backward, above the weights and their gradients, peak below a fifth of one vote
    tensor."""
    from encapnet.bench.account import LiveBytes

    layer = RoutedCapsules(32, 64, 8, 512, 16)
    u = torch.rand(2, 32, 64, 8)
    with LiveBytes() as live:
        layer(u)[0].sum().backward()
    weights = sum(4 * parameter.numel() for parameter in layer.parameters())
    assert live.peak - 2 * weights < 0.2 * 4 * 2 * 2048 * 512 * 16


@pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed')
@pytest.mark.parametrize(
    ('kind', 'more'), [('dynamic', {}), ('dynamic', dict(normalize='lower')), ('em', {})]
)
def test_fused_kernels_route_alike(kind, more, monkeypatch):
    "The whole of both routings through the fused kernels, interpreted."
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    layer, inputs = layer_and_input(kind, **more)
    expected = outcome(layer, inputs)
    layer.options['backend'] = 'triton'
    for ours, plain in zip(outcome(layer, inputs), expected):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_fused_kernels_need_a_device(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    layer, inputs = layer_and_input('dynamic', backend='triton')
    with pytest.raises(RuntimeError, match="use the backend 'chunked'"):
        layer(*inputs)
