"""The fused kernels against the textbook: interpreted on the CPU, compiled for CUDA, and compiled
and run where there is a device."""

import inspect
import warnings

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from encapnet.nn import fused
from encapnet.nn.kernels import assign_reference

pytest.importorskip('triton', reason='Triton comes with torch on Linux only')

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
AXES = pytest.mark.parametrize('groups', [0, 3], ids=['higher', 'lower'])
ULP = torch.finfo(torch.float32).eps


@pytest.fixture(scope='module', params=DEVICES)
def device(request):
    "The CPU interprets, CUDA compiles."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRITON_INTERPRET', '1' if request.param == 'cpu' else '0')
        yield request.param


def draw(n, p, j, f, e, device, dtype=torch.float32, scale=1.0, seed=0):
    "Queries, keys, values and a gradient, all normally distributed."
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, p, f), (n, f, j), (n, p, e), (n, e, j)]
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)
        for shape in shapes
    ]


def run(tensors, groups, **options):
    "`out` and the gradients of queries, keys and values."
    *inputs, gradient = tensors
    out, normalizer = fused.collect(*inputs, groups, **options)
    return [out, *fused.collect_backward(gradient, *inputs, out, normalizer, groups, **options)[:3]]


def textbook(tensors, groups, dtype=torch.float64):
    "The same by the definition, in this precision."
    *inputs, gradient = (x.to(dtype).unflatten(0, (-1, groups or 1)) for x in tensors)
    leaves = [x.detach().requires_grad_() for x in (inputs[0], inputs[1].mT, inputs[2])]
    out = assign_reference(*leaves, normalize='lower' if groups else 'higher')
    to_queries, to_keys, to_values = torch.autograd.grad(out, leaves, gradient.mT)
    return [x.detach().flatten(0, 1) for x in (out.mT, to_queries, to_keys.mT, to_values)]


def terms(tensors, groups):
    """For each result the largest sum of the magnitudes of what is added up in it: what rounding
    errors are relative to."""
    q, k, v, g = (x.double() for x in tensors)
    logits = q @ k
    c = (
        logits.softmax(-1)
        if not groups
        else logits.unflatten(0, (-1, groups)).flatten(1, 2).softmax(1).view_as(logits)
    )
    slope = 2 * c * (v.abs() @ g.abs())
    sums = c.mT @ v.abs(), slope @ k.abs().mT, q.abs().mT @ slope, c @ g.abs().mT
    return [x.max().item() for x in sums]


def errors(results, exact):
    return [(a.double() - b).abs().max().item() for a, b in zip(results, exact, strict=True)]


def assert_as_exact_as_the_textbook(tensors, groups):
    """Against float64: at most twice the error of the plain definition in float32, which may be
    lucky: plus two units in the last place of the terms."""
    exact = textbook(tensors, groups)
    ours, plain = (
        errors(run(tensors, groups), exact),
        errors(textbook(tensors, groups, torch.float32), exact),
    )
    for name, error, allowed, size in zip(
        ('out', 'queries', 'keys', 'values'), ours, plain, terms(tensors, groups), strict=True
    ):
        assert error <= 2 * allowed + 2 * ULP * size, (name, error, allowed, size)


# Values and gradients


@pytest.mark.parametrize('groups', [0, 1, 3], ids=['higher', 'lower, one group', 'lower'])
@pytest.mark.parametrize(
    ('p', 'j', 'f', 'e'),
    [
        (5, 7, 3, 4),
        (1, 40, 9, 9),
        (40, 1, 9, 9),
        (1, 1, 1, 1),
        (33, 65, 9, 17),
        (64, 32, 16, 16),
        (20, 35, 45, 45),
        (17, 18, 70, 2),
        (4, 9, 0, 3),
    ],
)
def test_algebra(p, j, f, e, groups, device):
    "In float64 nothing is left but the formulas."
    tensors = draw(3, p, j, f, e, device, torch.float64)
    for ours, exact in zip(run(tensors, groups), textbook(tensors, groups), strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-12)


sizes = {
    'p': st.integers(1, 70),
    'j': st.integers(1, 150),
    'f': st.integers(1, 45),
    'e': st.integers(1, 45),
}


# to shrink takes minutes where programs run one by one
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    **sizes,
    groups=st.sampled_from([0, 1, 2]),
    scale=st.sampled_from([0.3, 1.0, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_single_precision_is_as_exact_as_the_textbook(device, p, j, f, e, groups, scale, seed):
    assert_as_exact_as_the_textbook(draw(2, p, j, f, e, device, scale=scale, seed=seed), groups)


@AXES
def test_a_row_of_table1(groups, device):
    """32 groups of 8 x 8 positions and 2048 higher capsules, dynamic routing; less of each where
    programs run one by one."""
    samples, rows, j = (1, 6, 70) if device == 'cpu' else (16, 32, 2048)
    assert_as_exact_as_the_textbook(
        draw(samples * rows, 64, j, 9, 9, device), rows if groups else 0
    )


@AXES
def test_huge_logits_stay_finite(groups, device):
    tensors = draw(3, 20, 40, 9, 9, device, scale=60.0)
    assert (tensors[0] @ tensors[1]).abs().max() > 1e4
    assert all(result.isfinite().all() for result in run(tensors, groups))


@AXES
def test_beyond_the_edge_is_nothing(groups, device):
    "Where all logits lie far below zero, the zeros that stand in for what is not there would win."
    q, k, v, g = draw(3, 5, 7, 3, 4, device, torch.float64)
    tensors = [q.abs() + 20, -k.abs() - 20, v, g]
    assert (tensors[0] @ tensors[1]).max() < -1000
    for ours, exact in zip(run(tensors, groups), textbook(tensors, groups), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)


def test_all_that_is_given_arrives(device):
    q, k, v, _ = draw(2, 33, 50, 9, 9, device, scale=60.0)
    torch.testing.assert_close(fused.collect(q, k, v)[0].sum(2), v.sum(1), rtol=1e-5, atol=1e-3)


@AXES
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_only_rounded(dtype, groups, device):
    """Inputs count as they are, sums are float32's, and gradients are rounded once, to the last
    place or (interpreted) the one before."""
    tensors = draw(3, 20, 40, 9, 9, device, dtype)
    out, *gradients = run(tensors, groups)
    exact, *slopes = run([x.float() for x in tensors], groups)
    assert out.dtype == torch.float32 and torch.equal(out, exact)
    for ours, slope in zip(gradients, slopes, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours.float(),
            slope,
            rtol=torch.finfo(dtype).eps,
            atol=torch.finfo(dtype).smallest_normal,
        )


# Corners


@AXES
@pytest.mark.parametrize('empty', ['n', 'p', 'j', 'e'])
def test_empty(empty, groups, device):
    tensors = draw(**{'n': 3, 'p': 4, 'j': 5, 'f': 2, 'e': 3, empty: 0}, device=device)
    out, normalizer = fused.collect(*tensors[:3], groups)
    n, p, j = len(tensors[0]), tensors[0].shape[1], tensors[1].shape[2]
    assert normalizer.shape == ((2, n // groups, j) if groups else (2, n, p))
    for ours, like in zip(run(tensors, groups), [tensors[3], *tensors[:3]], strict=True):
        assert ours.shape == like.shape and not ours.any()


@AXES
def test_the_same_bits_every_time(groups, device):
    tensors = draw(3, 33, 40, 9, 9, device)
    assert all(map(torch.equal, run(tensors, groups), run(tensors, groups)))


@AXES
def test_strides_do_not_matter(groups, device):
    plain = draw(3, 10, 20, 4, 5, device)
    q, k, v, g = plain
    strided = [
        q.mT.contiguous().mT,
        k.repeat_interleave(2, 2)[:, :, ::2],
        v.mT.contiguous().mT,
        g.transpose(0, 2).contiguous().transpose(0, 2),
    ]
    assert not any(x.is_contiguous() for x in strided)
    assert all(map(torch.equal, run(strided, groups), run(plain, groups)))
    ones = [q, k, v, torch.ones((), device=device).expand_as(g)]
    assert all(map(torch.equal, run(ones, groups), run([q, k, v, torch.ones_like(g)], groups)))


# Refusals and choices


def test_a_cpu_without_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    q, k, v, g = draw(2, 3, 4, 5, 6, 'cpu')
    with pytest.raises(RuntimeError, match="backend 'chunked'.*TRITON_INTERPRET=1"):
        fused.collect(q, k, v)
    with pytest.raises(RuntimeError, match='Triton and tensors on a CUDA device'):
        fused.collect_backward(g, q, k, v, g, torch.zeros(2, 2, 3))


def test_without_triton_nothing_is_available(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert fused.available('cpu') and fused.available(torch.device('cuda', 1))
    monkeypatch.setattr(fused, 'find_spec', lambda name: None)
    assert not fused.available('cpu') and not fused.available('cuda')


def test_what_does_not_fit_is_refused(device):
    q, k, v, g = draw(4, 3, 4, 5, 6, device)
    with pytest.raises(ValueError, match='groups must divide the 4 rows, or be 0, got 3'):
        fused.collect(q, k, v, 3)
    with pytest.raises(ValueError, match="'ieee', 'tf32x3', 'tf32'.*got 'half'"):
        fused.collect(q, k, v, precision='half')
    with pytest.raises(ValueError, match='one floating type on one device'):
        fused.collect(q, k.double(), v)
    out, normalizer = fused.collect(q, k, v)
    for wrong in ((g.mT, out, normalizer), (g, out[:, :1], normalizer), (g, out, normalizer[:1])):
        # TypeError: shapes are checked at run time in tests
        with pytest.raises((ValueError, TypeError)):
            fused.collect_backward(wrong[0], q, k, v, *wrong[1:])
    wide = torch.zeros(1, device=device).expand(1, 1, 2**31)
    with pytest.raises(ValueError, match='fewer than 2\\*\\*31'):
        fused.collect(wide[:, :, :1], wide, wide[:, :, :1])


@given(p=st.integers(0, 5000), j=st.integers(0, 9000), f=st.integers(0, 300), e=st.integers(0, 300))
def test_blocks_are_powers_of_two_that_cover(p, j, f, e):
    tile = fused.blocks(p, j, f, e)
    assert all(tile[side] >= 16 and tile[side].bit_count() == 1 for side in 'PJFE')
    assert tile['F'] >= f and tile['E'] >= e and tile['P'] <= 32 and tile['J'] <= 32
    assert tile['num_warps'] in (4, 8)


# What only a compiler finds


def compiled(name, tile, element, lower, precision):
    "Kernel `name` as machine code of compute capability 9.0."
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = fused._kernels(False)
    kernel = getattr(kernels, name)
    known = dict(
        tile,
        LOWER=lower,
        EXACT=kernels.exact[torch.float64 if element == 'fp64' else torch.float32],
        PRECISION=precision,
    )
    exact = '*fp64' if element == 'fp64' else '*fp32'
    signature, constants = {}, {}
    for index, parameter in enumerate(inspect.signature(kernel.fn).parameters):
        if parameter in known:
            signature[parameter], constants[(index,)] = 'constexpr', known[parameter]
        elif parameter in ('p', 'j', 'f', 'e', 'groups', 'count'):
            signature[parameter] = 'i32'
        else:
            signature[parameter] = (
                exact
                if parameter in ('peaks', 'rests', 'inner', 'out', 'gradient')
                else f'*{element}'
            )
    options = {'num_warps': tile['num_warps'], 'enable_fp_fusion': True}
    return triton.compile(
        ASTSource(kernel, signature, constants), target=GPUTarget('cuda', 90, 32), options=options
    ).asm['cubin']


@pytest.mark.parametrize(
    'name', ['normalize_higher', 'normalize_lower', 'collect', 'to_lower', 'to_keys']
)
@pytest.mark.parametrize(
    ('element', 'precision', 'lower'), [('fp32', 'ieee', False), ('bf16', 'tf32x3', True)]
)
def test_compiles_for_cuda(name, element, precision, lower, tmp_path, monkeypatch):
    """A device is needed to run a kernel, not to compile it: this finds what the interpreter lets
    pass."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # Triton's own, of Python's syntax tree
        assert compiled(name, fused.blocks(16, 16, 9, 9), element, lower, precision).startswith(
            b'\x7fELF'
        )
