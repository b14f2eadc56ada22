"""Routing in windows, votes by blocks, against the definition window by window: any geometry,
pose, competition and budget."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_untied import compare

from encapnet.nn.local import LocalCapsules
from encapnet.nn.local import dynamic_routing_local, em_routing_local
from encapnet.nn.moments import MASS_FLOOR, VARIANCE_FLOOR
from encapnet.nn.windows import Windows

SHAPES = dict(
    b=st.integers(1, 3),
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    d=st.integers(1, 3),
    j=st.integers(1, 4),
    e=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    iterations=st.integers(1, 3),
    budget=st.sampled_from([1, 5000, 50_000, None]),
    seed=st.integers(0, 99),
)


def fits(height, width, kernel, padding):
    return padding < kernel <= min(height, width) + 2 * padding


def problem(b, groups, rows, d, j, e, height, width, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, groups * rows * d, height, width), (kernel**2 * groups, j, d, e)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


class Book:
    """Local routing by the book: a list of votes, each of a lower capsule that exists for a
    cluster, and sums over whoever competes.

    Nothing of it is shared with the package but the two floors: windows are found by loops,
    softmaxes by masks."""

    def __init__(self, x, transform, kernel, stride, padding, groups):
        _, channels, height, width = x.shape
        self.rows, (_, self.higher, dim, self.size) = (
            channels // groups // transform.shape[2],
            transform.shape,
        )
        pose = x.view(len(x), groups, self.rows, dim, height, width)
        self.shape = (
            (height + 2 * padding - kernel) // stride + 1,
            (width + 2 * padding - kernel) // stride + 1,
        )
        self.windows, self.lower, self.where, votes = [], [], [], []
        for y in range(self.shape[0]):
            for x_ in range(self.shape[1]):
                for k in range(kernel):
                    for m in range(kernel):
                        row, column = y * stride + k - padding, x_ * stride + m - padding
                        if not (0 <= row < height and 0 <= column < width):
                            continue
                        for g in range(groups):
                            self.windows.append(y * self.shape[1] + x_)
                            self.lower.append((g * height + row) * width + column)
                            self.where.append((g, row, column))
                            weight = transform[(k * kernel + m) * groups + g]
                            votes.append(
                                torch.einsum(
                                    'brd,jde->bjre', pose[:, g, :, :, row, column], weight
                                ).flatten(2)
                            )
        self.votes = torch.stack(votes, 1)  # b, entry, j, e
        same = lambda number: (torch.tensor(number)[:, None] == torch.tensor(number)).to(x.dtype)
        self.same_window, self.same_lower = same(self.windows), same(self.lower)

    def softmax(self, logits, normalize):  # b, entry, j
        "Over j; over the entries of a window; over j and all entries of a lower capsule."
        if normalize == 'higher':
            return logits.softmax(2)
        groups, axes = (
            (self.same_window, (2,)) if normalize == 'lower' else (self.same_lower, (2, 3))
        )
        total = (logits[:, None] + groups.log()[..., None]).logsumexp(axes, keepdim=True)[:, :, 0]
        return (logits - total).exp()

    def sums(self, x):  # over the entries of each window
        windows = torch.zeros(len(x), self.shape[0] * self.shape[1], *x.shape[2:], dtype=x.dtype)
        return windows.index_add(1, torch.tensor(self.windows), x)

    def of_window(self, x):
        return x[:, self.windows]

    def as_map(self, v):  # b, window, j, (r e)
        return v.flatten(2).mT.unflatten(2, self.shape)

    def dynamic(self, iterations, normalize):
        logits = torch.zeros_like(self.votes[..., 0])
        for _ in range(iterations):
            s = self.sums(self.softmax(logits, normalize)[..., None] * self.votes)
            length = s.norm(dim=3, keepdim=True)
            v = s * length / (1 + length**2)
            logits = logits + (self.votes * self.of_window(v)).sum(3)
        return (self.as_map(v),)

    def em(self, activation, beta_u, beta_a, iterations, normalize):
        active = torch.stack([activation[:, g, row, column] for g, row, column in self.where], 1)[
            ..., None
        ]
        r = self.softmax(torch.zeros_like(self.votes[..., 0]), normalize)
        share = self.sums(r)[:, :, :1]
        for step in range(iterations):
            mass = self.sums(r * active) + MASS_FLOOR
            mean = self.sums((r * active)[..., None] * self.votes) / mass[..., None]
            variance = (
                self.sums((r * active)[..., None] * (self.votes - self.of_window(mean)) ** 2)
                / mass[..., None]
                + VARIANCE_FLOOR
            )
            cost = (
                (beta_u * variance.shape[3] + 0.5 * variance.log().sum(3))
                * (mass - MASS_FLOOR)
                / share
            )
            log_active = torch.nn.functional.logsigmoid((1 - 0.95 ** (step + 1)) * (beta_a - cost))
            misfit = ((self.votes - self.of_window(mean)) ** 2 / self.of_window(variance)).sum(
                3
            ) + self.of_window(variance.log().sum(3))
            r = self.softmax(self.of_window(log_active) - 0.5 * misfit, normalize)
        return self.as_map(mean), self.as_map(log_active.exp())


@settings(max_examples=40, deadline=None)
@given(normalize=st.sampled_from(['higher', 'lower', 'everywhere']), **SHAPES)
def test_dynamic(normalize, iterations, budget, stride, padding, **shape):
    assume(fits(shape['height'], shape['width'], shape['kernel'], padding))
    geometry = shape['kernel'], stride, padding

    def ours(x, transform):
        return dynamic_routing_local(
            x, transform, *geometry, iterations, normalize, budget=budget
        ), torch.zeros(())

    def book(x, transform):
        return *Book(x, transform, *geometry, shape['groups']).dynamic(
            iterations, normalize
        ), torch.zeros(())

    compare(ours, book, problem(**shape), 1e-12)


@settings(max_examples=40, deadline=None)
@given(normalize=st.sampled_from(['higher', 'everywhere']), **SHAPES)
def test_em(normalize, iterations, budget, stride, padding, seed, **shape):
    assume(fits(shape['height'], shape['width'], shape['kernel'], padding))
    geometry = shape['kernel'], stride, padding
    x, transform = problem(**shape, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    activation = torch.rand(
        len(x), shape['groups'], *x.shape[2:], generator=generator, dtype=x.dtype
    ).requires_grad_()
    betas = [
        torch.randn(shape['j'], generator=generator, dtype=x.dtype).requires_grad_()
        for _ in range(2)
    ]

    def ours(x, activation, transform, *betas):
        found = em_routing_local(
            x,
            activation,
            transform,
            *betas,
            *geometry,
            iterations,
            normalize=normalize,
            budget=budget,
        )
        return *found, torch.zeros(())

    def book(x, activation, transform, *betas):
        return *Book(x, transform, *geometry, shape['groups']).em(
            activation, *betas, iterations, normalize
        ), torch.zeros(())

    compare(ours, book, [x, activation, transform, *betas], 1e-10, degenerate=1e-7)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('normalize', ['higher', 'everywhere'])
@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_parts_of_a_map_and_a_batch_do_not_mix(kind, normalize, padding):
    """A sample's result does not depend on its company, nor a window's on what no window shares
    with it."""
    torch.manual_seed(0)
    layer = LocalCapsules(
        2, 3, 4, 3, kernel=2, padding=padding, rows=2, routing=kind, normalize=normalize
    ).double()
    layer.options['budget'] = 1
    x, activation = (
        torch.randn(3, 12, 5, 9, dtype=torch.float64),
        torch.rand(3, 2, 5, 9, dtype=torch.float64),
    )
    route = lambda x, activation: layer(x, activation)[0] if kind == 'em' else layer(x)[0]
    v = route(x, activation)
    torch.testing.assert_close(route(x[1:2], activation[1:2]), v[1:2], rtol=1e-9, atol=1e-9)
    x[..., 8] += 1
    changed = (route(x, activation) - v).abs().amax((0, 1, 2)) > 1e-9
    reach = changed.long().argmax().item()  # the first column of windows that notices
    assert changed[-1] and (reach == 7 + padding if normalize == 'higher' else reach < 7 + padding)


@pytest.mark.parametrize('kind', ['dynamic', 'em'])
def test_a_step_takes_a_fraction_of_the_votes(kind):
    """32 types of 4 x 4 poses on 14 x 14: above inputs, weights and their gradients, a step peaks
    below a sixth of one vote tensor."""
    from encapnet.bench.account import LiveBytes

    layer = LocalCapsules(32, 4, 32, 4, rows=4, routing=kind)
    x, activation = torch.rand(1, 32 * 16, 14, 14, requires_grad=True), torch.rand(1, 32, 14, 14)
    with LiveBytes() as live:
        layer(*((x, activation) if kind == 'em' else (x,)))[0].sum().backward()
    known = 4 * (
        2 * x.numel()
        + activation.numel()
        + 2 * sum(parameter.numel() for parameter in layer.parameters())
    )
    assert live.peak - known < 4 * 144 * 288 * 32 * 16 / 6


def test_meta_device():
    with torch.device('meta'):
        layer = LocalCapsules(32, 4, 32, 4, rows=4, routing='em', normalize='everywhere')
        pose, activation = layer(torch.rand(2, 32 * 16, 14, 14), torch.rand(2, 32, 14, 14))
    pose.sum().backward()
    assert pose.shape == (2, 32 * 16, 12, 12) and activation.shape == (2, 32, 12, 12)


@pytest.mark.parametrize(
    ('size', 'options', 'message'),
    [
        (
            (2, 7),
            dict(kernel=3),
            'a window of 3 by 3 does not fit a map of 2 by 7 with a padding of 0',
        ),
        ((4, 4), dict(stride=0), 'stride must be at least 1, got 0'),
        ((4, 4), dict(stride=-1), 'stride must be at least 1, got -1'),
        ((4, 4), dict(kernel=0), 'kernel must be at least 1, got 0'),
        ((4, 4), dict(padding=-1), 'padding must be at least 0, got -1'),
        ((4, 4), dict(padding=3), 'a padding of 3 leaves windows of 3 by 3 on padding alone'),
        (
            (4, 4),
            dict(normalize='all'),
            "normalize must be 'higher' or 'lower' or 'everywhere', got 'all'",
        ),
        ((4, 4), dict(backend='triton'), "backend must be 'chunked' or 'reference', got 'triton'"),
        ((4, 4), dict(iterations=0), 'at least 1 iteration, got 0'),
    ],
)
def test_bad_input(size, options, message):
    x, transform = torch.zeros(1, 4, *size), torch.zeros(9 * 2, 3, 2, 2)
    with pytest.raises(ValueError, match=message):
        dynamic_routing_local(x, transform, **dict(kernel=3) | options)


def test_windows_count_what_a_convolution_counts():
    for height, width, kernel, stride, padding in [
        (7, 5, 3, 2, 1),
        (4, 4, 4, 1, 3),
        (9, 2, 2, 3, 0),
        (1, 1, 1, 1, 0),
    ]:
        windows = Windows(height, width, kernel, stride, padding)
        convolved = torch.nn.functional.conv2d(
            torch.zeros(1, 1, height, width),
            torch.zeros(1, 1, kernel, kernel),
            None,
            stride,
            padding,
        )
        assert (windows.rows, windows.columns) == convolved.shape[2:]
