"""Routing with a transform for each lower capsule, votes by blocks, against routing by the book:
any shape, any budget, any scale."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encapnet.nn.dynamic import dynamic_routing
from encapnet.nn.em import em_routing
from encapnet.nn.gradients import as_reference
from encapnet.nn.untied import UntiedCapsules
from encapnet.nn.untied import dynamic_routing_untied, em_routing_untied

sizes = st.integers(1, 6)
SHAPES = dict(
    b=st.integers(0, 70),
    i=st.integers(1, 40),
    d=sizes,
    j=st.integers(1, 8),
    e=sizes,
    bias=st.booleans(),
    iterations=st.integers(1, 4),
    budget=st.sampled_from([1, 5000, 50_000, None]),
    seed=st.integers(0, 99),
)


def problem(b, i, d, j, e, bias, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, i, d), (i, j, d + bias, e)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def em_problem(seed, **shape):
    u, transform = problem(seed=seed, **shape)
    generator = torch.Generator().manual_seed(seed + 1)
    activation = torch.rand(u.shape[:2], generator=generator, dtype=u.dtype).requires_grad_()
    betas = [
        torch.randn(transform.shape[1], generator=generator, dtype=u.dtype).requires_grad_()
        for _ in range(2)
    ]
    return [u, activation, transform, *betas]


def outcome(route, leaves):
    "Results, coefficients and the gradients by all inputs."
    *results, c = route(*leaves)
    total = sum(
        (part * torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view(part.shape)).sum()
        for part in results
    )
    return [*results, c, *torch.autograd.grad(total, leaves)]


def compare(ours, book, leaves, eps, degenerate=None):
    """Both agree to `eps` of the largest entry.

    The gradient of a cluster of one or two votes divides by next to no variance: where the book
    itself moves by a hundredth of that when its inputs change in their last digit, the bound is a
    hundred such moves, and never more than `degenerate`."""
    generator = torch.Generator().manual_seed(1)
    nudged = [
        leaf * (1 + 1e-15 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype))
        for leaf in leaves
    ]
    moved = (
        outcome(book, [leaf.detach().requires_grad_() for leaf in nudged])
        if degenerate
        else outcome(book, leaves)
    )
    for found, expected, nearby in zip(outcome(ours, leaves), outcome(book, leaves), moved):
        assert found.shape == expected.shape
        if not expected.numel():
            continue
        scale = max(1.0, expected.abs().max().item())
        resolution = (nearby - expected).abs().max().item()
        assert (found - expected).abs().max().item() <= max(
            eps * scale, min(100 * resolution, (degenerate or eps) * scale)
        )


@settings(max_examples=40, deadline=None)
@given(normalize=st.sampled_from(['higher', 'lower']), **SHAPES)
def test_dynamic(normalize, iterations, budget, **shape):
    def ours(u, transform):
        return dynamic_routing_untied(
            u, transform, iterations, normalize, coefficients=[0], budget=budget
        )

    def book(u, transform):
        v, c = dynamic_routing(
            u[:, :, None], transform, iterations, normalize, backend='reference', coefficients=[0]
        )
        return v, c[:, :, 0]

    compare(ours, book, problem(**shape), 1e-12)


@settings(max_examples=40, deadline=None)
@given(temperature=st.sampled_from([0.5, 1.0, 5.0]), **SHAPES)
def test_em(temperature, iterations, budget, **shape):
    options = dict(iterations=iterations, temperature=temperature, coefficients=[0])

    def ours(*inputs):
        return em_routing_untied(*inputs, budget=budget, **options)

    def book(u, activation, *weights):
        mean, active, r = em_routing(
            u[:, :, None], activation[:, :, None], *weights, backend='reference', **options
        )
        return mean, active, r[:, :, 0]

    compare(ours, book, em_problem(**shape), 1e-10, degenerate=1e-7)


def layer_and_input(kind, **more):
    torch.manual_seed(0)
    # its votes take 6 MB
    layer, u = UntiedCapsules(300, 8, 10, 16, routing=kind, **more), torch.randn(32, 300, 8)
    return layer, (u, torch.rand(32, 300)) if kind == 'em' else (u,)


def step(layer, inputs):
    layer.zero_grad()
    v, active = layer(*inputs)
    (v.square().sum() + active.sum()).backward()
    return [
        v.detach(),
        active.detach(),
        *(parameter.grad.clone() for parameter in layer.parameters()),
    ]


@pytest.mark.parametrize('scale', [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize(
    ('kind', 'more'), [('dynamic', {}), ('dynamic', dict(normalize='lower')), ('em', {})]
)
def test_finite_at_every_scale_of_votes(kind, more, scale):
    layer, (u, *activation) = layer_and_input(kind, **more)
    u = (scale * u).requires_grad_()
    for part in [*step(layer, (u, *activation)), u.grad]:
        assert part.isfinite().all()


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_float32_is_as_exact_as_the_book(kind):
    "The error against float64 is at most twice that of the votes, all formed in float32."
    layer, inputs = layer_and_input(kind)
    exact = step(
        as_reference(layer_and_input(kind)[0]).double(), [part.double() for part in inputs]
    )
    book = step(as_reference(layer_and_input(kind)[0]), inputs)
    for found, plain, expected in zip(step(layer, inputs), book, exact):
        assert (found - expected).norm() <= 2 * (plain - expected).norm() + 1e-6 * expected.norm()


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_autocast_keeps_float32(kind):
    layer, inputs = layer_and_input(kind)
    expected = step(layer, inputs)
    layer.forward = torch.autocast('cpu', dtype=torch.bfloat16)(layer.forward)
    for ours, plain in zip(step(layer, inputs), expected):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_gradients_of_each_sample(kind):
    "torch.func is led to the definition by itself."
    layer, inputs = layer_and_input(kind)
    layer, inputs = layer.double(), [part[:3].double() for part in inputs]
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(weights, *sample):
        v, active = torch.func.functional_call(layer, weights, tuple(part[None] for part in sample))
        return v.square().sum() + active.sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, *(0 for _ in inputs)))(weights, *inputs)
    layer.options['budget'] = 1
    step(layer, inputs)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_a_second_derivative_names_the_way_out(kind):
    layer, (u, *activation) = layer_and_input(kind)
    u.requires_grad_()
    [slope] = torch.autograd.grad(layer(u, *activation)[0].sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="with backend='reference'"):
        slope.square().sum().backward()
    [slope] = torch.autograd.grad(
        as_reference(layer)(u[:2], *(part[:2] for part in activation))[0].sum(),
        u,
        create_graph=True,
    )
    slope.square().sum().backward()
    assert u.grad[:2].abs().sum() > 0


@pytest.mark.parametrize(('kind', 'limit'), [('dynamic', 0.25), ('em', 0.25)])
def test_a_step_takes_a_fraction_of_the_votes(kind, limit):
    """Forward and backward of DigitCaps, above inputs, weights and their gradients, peak below a
    quarter of one vote tensor."""
    from encapnet.bench.account import LiveBytes

    layer, u, activation = (
        UntiedCapsules(1152, 8, 10, 16, routing=kind),
        torch.rand(128, 1152, 8, requires_grad=True),
        torch.rand(128, 1152),
    )
    with LiveBytes() as live:
        layer(*((u, activation) if kind == 'em' else (u,)))[0].sum().backward()
    known = 4 * (
        2 * u.numel()
        + activation.numel()
        + 2 * sum(parameter.numel() for parameter in layer.parameters())
    )
    assert live.peak - known < limit * 4 * 128 * 1152 * 10 * 16


COMPILED = """
import torch
from encapnet.nn.local import LocalCapsules
from encapnet.nn.untied import UntiedCapsules
layers = [
    ("dynamic", lambda kind: UntiedCapsules(30, 8, 10, 16, routing=kind), torch.randn(64, 30, 8), None),
    ("em", lambda kind: LocalCapsules(3, 4, 5, 4, rows=4, padding=1, routing=kind), torch.randn(9, 48, 7, 7),
     torch.rand(9, 3, 7, 7)),
]
for kind, make, x, activation in layers:
    torch.manual_seed(0)
    layer, inputs = make(kind), (x,) if activation is None else (x, activation)
    layer.options["budget"] = 100_000
    results = []
    for route in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        v, active = route(*inputs)
        (v.square().sum() + active.sum()).backward()
        results.append([v, active, *(parameter.grad for parameter in layer.parameters())])
    for plain, compiled in zip(*results): torch.testing.assert_close(compiled, plain)
    batch = torch.export.Dim("batch", min=2, max=256)
    program = torch.export.export(layer.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    other = [torch.cat([part, part]) for part in inputs]
    torch.testing.assert_close(program.module()(*other), layer(*other), rtol=1e-4, atol=1e-4)
"""


def test_compiled_and_exported():
    "In a process of its own: neither sees through the shape checks of the tests."
    done = subprocess.run([sys.executable, '-c', COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_meta_device():
    with torch.device('meta'):
        layer, u = UntiedCapsules(3872, 8, 196, 16), torch.rand(128, 3872, 8)
        v, active = layer(u)
    v.sum().backward()
    assert (
        v.shape == (128, 196, 16)
        and active.is_meta
        and layer.transform.grad.shape == layer.transform.shape
    )
