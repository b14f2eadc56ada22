"""Sinkhorn's iterations against two other libraries, at any shape and blur, and in every way
PyTorch has of running them."""

import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encapnet.nn.transport import (
    ground_cost,
    marginal_error,
    sinkhorn_divergence,
    sinkhorn_plan,
    transport_loss,
)

COSTS = pytest.mark.parametrize('cost', ['cosine', 'l2'])
needs_pot = pytest.mark.skipif(
    find_spec('ot') is None, reason='NOT RUN: POT is not installed; pip install encapnet[bench]'
)
needs_geomloss = pytest.mark.skipif(
    find_spec('geomloss') is None,
    reason='NOT RUN: geomloss is not installed; pip install encapnet[bench]',
)


def batches(n=24, d=6, m=None, dtype=torch.float64, shift=0.5):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, d, generator=generator, dtype=dtype) + at).requires_grad_()
        for size, at in ((n, 0), (m or n, shift))
    ]


def gradients(loss, leaves):
    return torch.cat(torch.autograd.grad(loss, leaves))


def by_log_sum_exp(costs, eps, iterations):
    "The definition, with autograd through every step."
    (*_, n, m), kernel = costs.shape, -costs / eps
    f = torch.zeros_like(kernel[..., :1])
    for _ in range(iterations):
        g = -torch.logsumexp(kernel + f, -2, keepdim=True) - math.log(m)
        f = -torch.logsumexp(kernel + g, -1, keepdim=True) - math.log(n)
    return (kernel + f + g).exp()


# POT: <P, Q>, like the paper; its divergence is W - W/2 - W/2, half of Eqn 11, and cut off at 0.


def pot_plan(costs, eps, iterations):
    import ot

    with torch.no_grad():
        return ot.sinkhorn(
            [], [], costs, eps, method='sinkhorn_log', numItermax=iterations, stopThr=0, warn=False
        )


@needs_pot
@COSTS
@pytest.mark.parametrize('eps', [1.0, 0.05, 1e-3])
@pytest.mark.parametrize('iterations', [1, 2, 10, 100])
def test_plan_is_that_of_pot(cost, eps, iterations):
    "After every number of iterations, converged or not: POT updates in the same order."
    costs = ground_cost(*batches(m=17), cost).detach()
    torch.testing.assert_close(
        sinkhorn_plan(costs, eps, iterations),
        pot_plan(costs, eps, iterations),
        rtol=1e-8,
        atol=1e-14,
    )


@needs_pot
@COSTS
@pytest.mark.parametrize('eps', [1.0, 0.5])
def test_values_are_those_of_pot(cost, eps):
    import ot

    x, y = (part.detach() for part in batches())
    plain = [
        ot.sinkhorn2([], [], ground_cost(*pair, cost), eps, numItermax=20000, stopThr=1e-13).item()
        for pair in ((x, y), (x, x), (y, y))
    ]
    assert transport_loss(x, y, eps, 2000, cost).item() == pytest.approx(plain[0], abs=1e-6)
    assert sinkhorn_divergence(x, y, eps, 2000, cost).item() == pytest.approx(
        2 * plain[0] - plain[1] - plain[2], abs=1e-6
    )
    if cost == 'l2':
        half = ot.bregman.empirical_sinkhorn_divergence(
            x.numpy(), y.numpy(), eps, metric='euclidean', numIterMax=20000, stopThr=1e-13
        )
        assert sinkhorn_divergence(x, y, eps, 2000, cost).item() == pytest.approx(
            2 * half, abs=1e-6
        )


@needs_pot
@COSTS
def test_little_blur_finds_the_exact_optimum(cost):
    import ot

    costs = ground_cost(*batches(), cost).detach()
    exact = ot.emd2([], [], costs).item()
    plan = sinkhorn_plan(costs, 1e-3, 20000)
    assert marginal_error(plan) < 1e-2
    assert (plan * costs).sum().item() == pytest.approx(exact, rel=5e-3)


# geomloss: the blurred objective (its dual), with OT - OT/2 - OT/2; blur ** p is our eps.


def geomloss_loss(eps, iterations, cost, debias=True):
    "With so many iterations, all but at one blur: the schedule has to start above its end."
    import geomloss

    start = 1.0001 * eps
    schedule = dict(p=1, blur=eps, diameter=start, scaling=(eps / start) ** (1 / (iterations - 2)))
    return geomloss.SamplesLoss(
        'sinkhorn',
        cost=lambda x, y: ground_cost(x, y, cost),
        debias=debias,
        backend='tensorized',
        **schedule,
    )


@needs_geomloss
@COSTS
@pytest.mark.parametrize('eps', [1.0, 0.5])
def test_gradients_are_those_of_geomloss(cost, eps):
    "Detached, as by default: at convergence the gradient of the blurred objective."
    leaves = batches()
    ours = gradients(sinkhorn_divergence(*leaves, eps, 500, cost), leaves)
    theirs = gradients(2 * geomloss_loss(eps, 500, cost)(*leaves), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    ours = gradients(transport_loss(*leaves, eps, 500, cost), leaves)
    theirs = gradients(geomloss_loss(eps, 500, cost, debias=False)(*leaves), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    through = gradients(sinkhorn_divergence(*leaves, eps, 500, cost, through_plan=True), leaves)
    assert (through - 2 * ours).norm() > 0.05 * through.norm()


# The definition


@settings(max_examples=80)
@given(
    s=st.integers(1, 3),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    iterations=st.integers(1, 60),
    seed=st.integers(0, 99),
    eps=st.sampled_from([1e-3, 0.01, 0.1, 1.0, 30.0]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_plan_and_its_gradient(s, n, m, iterations, seed, eps, scale):
    generator = torch.Generator().manual_seed(seed)
    costs, weight = (
        torch.rand(s, n, m, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    costs = (scale * costs).requires_grad_()
    found = []
    for solve in (sinkhorn_plan, by_log_sum_exp):
        plan = solve(costs, eps, iterations)
        found.append((plan.detach(), torch.autograd.grad((plan * weight).sum(), costs)[0] * eps))
    for ours, oracle in zip(*found):
        torch.testing.assert_close(ours, oracle, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(found[0][0].sum(-1), torch.full((s, n), 1 / n, dtype=torch.float64))


@COSTS
@pytest.mark.parametrize('through_plan', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_finite_on_raw_features(cost, through_plan, dtype):
    """A blur of a thousandth, flattened maps of scale 100, some of them zero or equal (Table 3,
    d3 and d5 at their worst)."""
    leaves = [(100 * part).to(dtype).detach() for part in batches(64, 2048, dtype=torch.float32)]
    leaves[0][:3], leaves[1][5] = 0, leaves[0][7]
    for leaf in leaves:
        leaf.requires_grad_()
    divergence = sinkhorn_divergence(*leaves, 1e-3, 10, cost, through_plan=through_plan)
    divergence.backward()
    assert divergence.isfinite() and divergence.dtype == torch.float32
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_float32_follows_float64():
    for eps, iterations in ((1.0, 100), (0.1, 100), (0.01, 30)):
        x, y = batches(64)
        exact = sinkhorn_divergence(x, y, eps, iterations)
        assert sinkhorn_divergence(x.float(), y.float(), eps, iterations).item() == pytest.approx(
            exact.item(), rel=1e-4
        )


def test_through_the_plan_keeps_vectors_only():
    "A hundred iterations by autograd keep hundreds of matrices; here the potentials."
    from encapnet.bench.account import LiveBytes

    costs = torch.rand(3, 128, 128).requires_grad_()
    with LiveBytes() as live:
        sinkhorn_plan(costs, 0.1, 100).sum().backward()
    assert live.peak < 10 * 4 * costs.numel() + 2 * 100 * 4 * 3 * 256


# PyTorch's ways


def test_autocast_keeps_float32():
    x, y = (part.detach() for part in batches(dtype=torch.float32))
    expected = sinkhorn_divergence(x, y)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(sinkhorn_divergence(x, y), expected)


COMPILED = """
import torch
from encapnet.nn.transport import sinkhorn_divergence
x, y = torch.randn(2, 16, 5).requires_grad_()
def loss(x, y): return sinkhorn_divergence(x, y, 0.1) + sinkhorn_divergence(x, y, 0.1, through_plan=True)
fast = torch.compile(loss, backend="aot_eager")
found = [(value, *torch.autograd.grad(value, (x, y))) for value in (loss(x, y), fast(x, y))]
for plain, compiled in zip(*found): torch.testing.assert_close(compiled, plain)
"""


@pytest.mark.slow
def test_compiled():
    "In a process of its own: the compiler cannot look through the shape checks of the tests."
    done = subprocess.run([sys.executable, '-c', COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
