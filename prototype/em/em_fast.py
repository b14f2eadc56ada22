"""EM routing without votes: transforms and softmax in numba, the products of all lower with all higher capsules in torch.
Equations: EQUATIONS.md.

Letters: group g of lower capsules that share a transform, sample b, position p, cluster j; D, E components of a lower and a
higher capsule, R = D or D + 1 (bias) rows of the transform, Q = D (D + 1) / 2, F = Q + D + 1 filled up to a multiple of 16."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lanes_fast import Sizes, exp, totals, unrolled
from numba import njit

VARIANCE_FLOOR, MASS_FLOOR = 1e-4, 1e-8
LANES = 16  # positions at a time
GROUPS = 16  # whose transforms are taken out of memory at a time, where they lie side by side
SAMPLES = 4  # whose keys are made at a time


# ---- formulas of one cluster, one group, one sample: vectors over E -----------------------------------------------------


def _width(dim: int) -> int:
    "F."
    return -(-(dim * (dim + 1) // 2 + dim + 1) // LANES) * LANES


def _pairs(D: int) -> dict[tuple[int, int], int]:
    "Where the product of two components stands among all."
    once = {pair: k for k, pair in enumerate((m, n) for m in range(D) for n in range(m, D))}
    return once | {(n, m): k for (m, n), k in once.items()}


def _offset(rows, centre):
    "o, the group's mean vote."
    return sum(c * row for c, row in zip(centre, rows))


def _by_feature(w, second, first, constant):
    "Vectors whose lanes sum to sum_e second (w.x)^2 + first (w.x) + constant, as numbers for each feature of x."
    once, twice = [row * second for row in w], [row * (second * 2.0) for row in w]
    D = range(len(w))
    return (
        [(once if m == n else twice)[m] * w[n] for m in D for n in D if m <= n] + [first * row for row in w] + [constant]
    )


def _store_totals(out, at, vectors, F):
    E, zero, done = vectors[0].size, vectors[0].constant(0.0), len(vectors)
    if E & (E - 1):
        for k, vector in enumerate(vectors):
            out.store(at + k, vector.total())
    else:
        vectors = vectors + [zero] * (-done % E)
        done = len(vectors)
        for k in range(0, done, E):
            out.store(at + k, totals(vectors[k : k + E]))
    for k in range(done, F):
        out.store(at + k, zero.constant(0.0, 0))


@unrolled
def _keys(sizes: Sizes, T, t, centre, c, mean, precision, constant, x, y, out, at):
    "Equation 1."
    D, E, R = sizes
    rows, pi = T.rows(t, R, E), precision.load(x, E)
    delta = _offset(rows, centre.numbers(c, R)) - mean.load(x, E)
    pulled = delta * pi
    # the constant is dealt out over the lanes
    last = constant.load(y) * (1 / E) - delta * pulled * 0.5
    _store_totals(out, at, _by_feature(rows[:D], pi * -0.5, -pulled, last), _width(D))


def _moment_gradient(sizes, T, t, centre, c, mean, spread, total, mass, x, y):
    "Equation 8."
    D, E, R = sizes
    rows, s, t_ = T.rows(t, R, E), spread.load(x, E), total.load(x, E)
    delta = _offset(rows, centre.numbers(c, R)) - mean.load(x, E)
    ds = delta * s
    return _by_feature(rows[:D], s, t_ + ds * 2.0, delta * (t_ + ds) + mass.load(y) * (1 / E))


@unrolled
def _moment_gradients(sizes: Sizes, T, t, centre, c, mean, spread, total, mass, x, y, out, at):
    vectors = _moment_gradient(sizes, T, t, centre, c, mean, spread, total, mass, x, y)
    _store_totals(out, at, vectors, _width(sizes[0]))


@unrolled
def _gather(sizes: Sizes, T, t, centre, c, moments, i, mass, mean, squares, x, y):
    "Equations 3 and 4."
    D, E, R = sizes
    Q, at, rows, tiny = D * (D + 1) // 2, _pairs(D), T.rows(t, R, E), 2e-38  # the least normal float32, about
    m, w = moments.numbers(i, Q + D + 1), rows[:D]
    weight = m[Q + D]
    inner = sum(m[Q + k] * w[k] for k in range(D))
    second = 0
    for k in range(D):
        mixed = sum(m[at[k, n]] * w[n] for n in range(k + 1, D))
        second = second + w[k] * (m[at[k, k]] * w[k] + mixed * 2.0)
    off = inner / weight.maximum(tiny)
    before, all_mean, all_squares = mass.load(y), mean.load(x, E), squares.load(x, E)
    together = before + weight
    share = weight / together.maximum(tiny)
    apart = _offset(rows, centre.numbers(c, R)) + off - all_mean
    mass.store(y, together)
    mean.store(x, all_mean + apart * share)
    squares.store(x, all_squares + second - inner * off + apart * apart * (share * before))


def _transform_gradient(sizes, rows, offset, m, mean, spread, total, x):
    "Equation 11, the part of the moments: vectors by w, by o; and a function for what is added to the former."
    D, E, R = sizes
    Q, at, w = D * (D + 1) // 2, _pairs(D), rows[:D]
    delta, s2, t_ = offset - mean.load(x, E), spread.load(x, E) * 2.0, total.load(x, E)
    inner = sum(m[Q + n] * w[n] for n in range(D))
    to_offset = s2 * (inner + delta * m[Q + D]) + t_ * m[Q + D]
    first = s2 * delta + t_
    return to_offset, lambda n: s2 * sum(m[at[n, k]] * w[k] for k in range(D)) + first * m[Q + n]


def _add_transform_gradient(sizes, rows, centre, to_rows, to_offset, to_T, t, to_centre, tc):
    "Equations 11 and 12: stores."
    D, E, R = sizes
    by_row = []
    for n in range(R):
        row = to_T.load(t + n * E, E) + to_offset * centre[n]
        by_row.append(row + to_rows[n] if n < D else row)
    by_centre = [to_centre.load(tc + n * E, E) + rows[n] * to_offset for n in range(R)]
    for n in range(R):
        to_T.store(t + n * E, by_row[n])
        to_centre.store(tc + n * E, by_centre[n])


@unrolled
def _weights(sizes: Sizes, T, t, to_T, centre, c, to_centre, tc, found, k, i, mean, spread, total,
             mean0, precision0, to_mean0, to_precision0, to_log0, x, y):
    "Equations 10 to 12. found: gradients by keys at k, moments at i."
    D, E, R = sizes
    Q, at, rows, centre_ = D * (D + 1) // 2, _pairs(D), T.rows(t, R, E), centre.numbers(c, R)
    m, g = (found.numbers(place, Q + D + 1) for place in (i, k))
    w, offset = rows[:D], _offset(rows, centre_)
    delta0, pi0 = offset - mean0.load(x, E), precision0.load(x, E)
    along = sum(g[Q + n] * w[n] for n in range(D))
    pulled = pi0 * (along + delta0 * g[Q + D])
    quadratic = (along * 2.0 + delta0 * g[Q + D]) * delta0
    to_offset, by_row = _transform_gradient(sizes, rows, offset, m, mean, spread, total, x)
    first0, to_rows = pi0 * delta0, []
    for n in range(D):
        forms = sum(g[at[n, j]] * w[j] for j in range(D))
        quadratic = quadratic + w[n] * forms
        to_rows.append(by_row(n) - pi0 * forms - first0 * g[Q + n])
    before = to_mean0.load(x, E) + pulled, to_precision0.load(x, E) - quadratic * 0.5, to_log0.load(y) + g[Q + D]
    # stores come last: whatever were loaded after one might have been changed by it, for all that the compiler knows
    _add_transform_gradient(sizes, rows, centre_, to_rows, to_offset - pulled, to_T, t, to_centre, tc)
    for place, at_, value in zip((to_mean0, to_precision0, to_log0), (x, x, y), before):
        place.store(at_, value)


@unrolled
def _first_weights(sizes: Sizes, T, t, to_T, centre, c, to_centre, tc, moments, i, mean, spread, total, mass, x, y, out, at):
    "Equations 8, summed over clusters with lanes apart, 11 and 12, of the first iteration, before which there are no keys."
    D, E, R = sizes
    rows, centre_ = T.rows(t, R, E), centre.numbers(c, R)
    to_offset, by_row = _transform_gradient(
        sizes, rows, _offset(rows, centre_), moments.numbers(i, D * (D + 1) // 2 + D + 1), mean, spread, total, x
    )
    to_rows = [by_row(n) for n in range(D)]
    _add_transform_gradient(sizes, rows, centre_, to_rows, to_offset, to_T, t, to_centre, tc)
    for k, v in enumerate(_moment_gradient(sizes, T, t, centre, c, mean, spread, total, mass, x, y)):
        out.store(at + k * E, out.load(at + k * E, E) + v)


# ---- the same for all clusters of a group and some samples --------------------------------------------------------------
# T (J, R, E) of group g; centre (G, B, R); mean, spread.. (J, n, E) and mass.. (J, n) of samples b0 .. b0 + n, which lie
# side by side: with those of all B samples in one array, memory would be walked in strides


@njit(nogil=True, cache=True)
def keys(sizes, T, g, centre, mean, precision, constant, b0, n, out, stride):
    "out: keys of sample b from b * stride on, (J, F)."
    (J, R, E), B, F = T.shape, centre.shape[1], out.shape[-1]
    for j in range(J):
        for b in range(n):
            y, c, at = j * n + b, (g * B + b0 + b) * R, b * stride + j * F
            _keys(sizes, T, j * R * E, centre, c, mean, precision, constant, y * E, y, out, at)


@njit(nogil=True, cache=True)
def moment_gradients(sizes, T, g, centre, mean, spread, total, mass, b0, n, out, stride, shift):
    (J, R, E), B, F = T.shape, centre.shape[1], out.shape[-1]
    for j in range(J):
        for b in range(n):
            y, c, at = j * n + b, (g * B + b0 + b) * R, b * stride + shift + j * F
            _moment_gradients(sizes, T, j * R * E, centre, c, mean, spread, total, mass, y * E, y, out, at)


@njit(nogil=True, cache=True)
def gather(sizes, T, g, centre, moments, stride, step, b0, n, mass, mean, squares):
    "moments: of sample b and cluster j from b * stride + j * step on."
    (J, R, E), B = T.shape, centre.shape[1]
    for j in range(J):
        for b in range(n):
            y, c, i = j * n + b, (g * B + b0 + b) * R, b * stride + j * step
            _gather(sizes, T, j * R * E, centre, c, moments, i, mass, mean, squares, y * E, y)


@njit(nogil=True, cache=True)
def weights(sizes, T, to_T, g, centre, to_centre, found, mean, spread, total, mean0, precision0, b0, n,
            to_mean0, to_precision0, to_log0):  # fmt: skip
    "found (n, 2, J, F): gradients by keys, then moments."
    (J, R, E), B, F = T.shape, centre.shape[1], found.shape[-1]
    for j in range(J):
        for b in range(n):
            y, c, k = j * n + b, (g * B + b0 + b) * R, (2 * b * J + j) * F
            _weights(sizes, T, j * R * E, to_T, centre, c, to_centre, c * E, found, k, k + J * F, mean, spread, total,
                     mean0, precision0, to_mean0, to_precision0, to_log0, y * E, y)  # fmt: skip


@njit(nogil=True, cache=True)
def first_weights(sizes, T, to_T, g, centre, to_centre, moments, mean, spread, total, mass, b0, n, out):
    "moments (G, B, F), the same for all clusters; out (G, B, F, E): the loss's gradients by them."
    (J, R, E), B, F = T.shape, centre.shape[1], moments.shape[-1]
    for j in range(J):
        for b in range(n):
            y, i = j * n + b, g * B + b0 + b
            _first_weights(sizes, T, j * R * E, to_T, centre, i * R, to_centre, i * R * E, moments, i * F,
                           mean, spread, total, mass, y * E, y, out, i * F * E)  # fmt: skip


@njit(nogil=True, cache=True)
def take(T, g0, out):
    "Transforms (J, G, R, E) of some groups, from the g0th on, to (n, J, R, E)."
    for j in range(T.shape[0]):
        for g in range(min(out.shape[0], T.shape[1] - g0)):
            for r in range(T.shape[2]):
                for e in range(T.shape[3]):
                    out[g, j, r, e] = T[j, g0 + g, r, e]


@njit(nogil=True, cache=True)
def give(T, g0, some):
    "The way back: adds, and leaves zeros."
    for j in range(T.shape[0]):
        for g in range(min(some.shape[0], T.shape[1] - g0)):
            for r in range(T.shape[2]):
                for e in range(T.shape[3]):
                    T[j, g0 + g, r, e] += some[g, j, r, e]
                    some[g, j, r, e] = 0


# ---- softmax over clusters: vectors over positions ----------------------------------------------------------------------


@unrolled
def _raise_peak(logits, i, peak, p):
    peak.store(p, peak.load(p, LANES).maximum(logits.load(i, LANES)))


@unrolled
def _exponentiate(logits, i, peak, total, p):
    e = exp(logits.load(i, LANES) - peak.load(p, LANES))
    logits.store(i, e)
    total.store(p, total.load(p, LANES) + e)


@unrolled
def _exponentiate_and_weigh(both, i, h, peak, total, inner, p):
    e = exp(both.load(i, LANES) - peak.load(p, LANES))
    both.store(i, e)
    total.store(p, total.load(p, LANES) + e)
    inner.store(p, inner.load(p, LANES) + e * both.load(h, LANES))


@unrolled
def _couple(both, i, h, inner, p):
    e = both.load(i, LANES)
    v = e * (both.load(h, LANES) - inner.load(p, LANES))
    both.store(h, e)
    both.store(i, v)


@njit(nogil=True, cache=True)
def _peaks(logits, J, P, peak):
    peak[:] = -np.inf
    for j in range(J):
        for p in range(0, P, LANES):
            _raise_peak(logits, j * P + p, peak, p)


@njit(nogil=True, cache=True)
def _scaled(phi, active, i, total, out):
    "Active features over the softmax's sums, (P, F)."
    for p in range(out.shape[0]):
        weight = active[i + p] / total[p]
        for f in range(out.shape[1]):
            out[p, f] = weight * phi[i + p, f]


@njit(nogil=True, cache=True)
def soften(logits, total, peak, phi, active, i, scaled):
    "Equation 2. logits (J, P) become e^(l - peak), scaled the features that belong to them; phi (.., F), from row i on."
    J, P = logits.shape
    total[:] = 0
    _peaks(logits, J, P, peak)
    for j in range(J):
        for p in range(0, P, LANES):
            _exponentiate(logits, j * P + p, peak, total, p)
    _scaled(phi, active, i, total, scaled)


@njit(nogil=True, cache=True)
def soften_backward(both, totals, inners, peak, phi, active, i, scaled):
    "Equation 9. both (2, J, P): logits and h, become e (h - inner) and e, but for 1 / total."
    _, J, P = both.shape
    total, inner = totals[i : i + P], inners[i : i + P]
    total[:] = 0
    inner[:] = 0
    _peaks(both, J, P, peak)
    for j in range(J):
        for p in range(0, P, LANES):
            _exponentiate_and_weigh(both, j * P + p, (J + j) * P + p, peak, total, inner, p)
    for p in range(P):
        inner[p] /= total[p]
    for j in range(J):
        for p in range(0, P, LANES):
            _couple(both, j * P + p, (J + j) * P + p, inner, p)
    _scaled(phi, active, i, total, scaled)


# ---- the whole ----------------------------------------------------------------------------------------------------------


def features(x: Tensor) -> Tensor:
    "phi (.., F) of x (.., D)."
    d = x.shape[-1]
    parts = [x[..., m : m + 1] * x[..., m:] for m in range(d)] + [x, torch.ones_like(x[..., :1])]
    return functional.pad(torch.cat(parts, -1), (0, _width(d) - d * (d + 1) // 2 - d - 1))


def features_backward(to: Tensor, x: Tensor) -> Tensor:
    "By x (.., D), from that by phi (.., F)."
    d, i = x.shape[-1], 0
    out = to[..., d * (d + 1) // 2 :][..., :d].clone()
    for m in range(d):
        part = to[..., i : i + d - m]
        out[..., m] += (part * x[..., m:]).sum(-1)
        out[..., m:] += part * x[..., m : m + 1]
        i += d - m
    return out


class Lower:
    "The lower capsules of some samples, groups first; positions are filled up with inactive ones."

    def __init__(self, u: Tensor, activation: Tensor, rows: int):
        u, activation = u.transpose(0, 1), activation.transpose(0, 1)
        self.positions, dim = u.shape[2:]
        more = -self.positions % LANES
        centre = u.mean(2, keepdim=True)
        self.x = u - centre  # (g, b, p, d)
        self.phi = functional.pad(features(self.x), (0, 0, 0, more))  # (g, b, P, F)
        self.active = functional.pad(activation, (0, more)).contiguous()  # (g, b, P)
        self.first = torch.matmul(self.active[:, :, None], self.phi)[:, :, 0]  # (g, b, F)
        centre = centre[:, :, 0]
        centre = torch.cat([centre, torch.ones_like(centre[..., :1])], -1) if rows > dim else centre
        self.centre = centre.contiguous()  # (g, b, R)


def _arrays(*tensors):
    return [x.contiguous().numpy() for x in tensors]


def _sizes(lower, T):
    "What numba shall know when it compiles, as lengths of tuples."
    return (0,) * lower.x.shape[3], (0,) * T.shape[3], (0,) * T.shape[2]


class Block(NamedTuple):
    "What is kept of a few samples: for each iteration what the M-step found."

    first: int  # of the samples, in their party
    samples: int
    mean: Float[Tensor, 'r j n e']
    variance: Float[Tensor, 'r j n e']
    mass: Float[Tensor, 'r j n']
    log_active: Float[Tensor, 'r j n']

    def fit(self, step: int) -> list[Tensor]:
        return [x[step] for x in self[2:]]

    def before(self, step: int):
        "What an E-step wants to know."
        mean, variance, _, log_active = self.fit(step - 1)
        return _arrays(mean, 1 / variance, log_active - 0.5 * variance.log().sum(-1))


def _blocks(like: Tensor, samples: int, iterations: int, higher: int, size: int) -> list[Block]:
    blocks = []
    for first in range(0, samples, SAMPLES):
        n = min(SAMPLES, samples - first)
        state = like.new_empty(2, iterations, higher, n, size), like.new_empty(2, iterations, higher, n)
        blocks.append(Block(first, n, *state[0], *state[1]))
    return blocks


def _m_step(mean, variance, mass, log_active, beta_u, beta_a, share, inverse_temperature):
    "Equations 5 and 6, in place; the variance comes in as the sum of squares."
    whole = mass[..., None] + MASS_FLOOR
    lost = mean * (MASS_FLOOR / whole)
    variance.addcmul_(lost.square(), mass[..., None]).div_(whole).clamp_(min=0).add_(VARIANCE_FLOOR)
    mean.sub_(lost)
    cost = (beta_u[:, None] * mean.shape[-1] + 0.5 * variance.log().sum(-1)) * mass / share
    log_active.copy_(functional.logsigmoid(inverse_temperature * (beta_a[:, None] - cost)))


def em_forward(blocks: list[Block], lower: Lower, T, beta_u, beta_a, schedule) -> None:
    "Fills in the blocks of a party."
    (J, G, R, E), (_, B, P, F), sizes = T.shape, lower.phi.shape, _sizes(lower, T)
    share, most = G * lower.positions / J, min(SAMPLES, B)
    theta, found, logits, scaled = T.new_empty(most, J, F), T.new_empty(most, J, F), T.new_empty(J, P), T.new_empty(P, F)
    T_, own, phi, active, centre, first, theta_, found_, logits_, scaled_, peak, total = _arrays(
        T, T.new_empty(min(GROUPS, G), J, R, E), lower.phi.view(-1, F), lower.active.view(-1), lower.centre,
        lower.first / J, theta, found, logits, scaled, T.new_empty(P), T.new_empty(P))  # fmt: skip
    turned, thetas, founds = [[x.t() for x in part] for part in lower.phi], theta.unbind(), found.unbind()
    for step, inverse_temperature in enumerate(schedule):
        work = []
        for block in blocks:
            mean, squares, mass, _ = block.fit(step)
            sums = [x.zero_().numpy() for x in (mass, mean, squares)]
            work.append((block.first, block.samples, sums, block.before(step) if step else None))
        for g in range(G):
            if g % GROUPS == 0:
                take(T_, g, own)
            t = own[g % GROUPS]
            for b0, n, sums, before in work:
                if step == 0:
                    gather(sizes, t, g, centre, first[g, b0:], F, 0, b0, n, *sums)
                    continue
                keys(sizes, t, g, centre, *before, b0, n, theta_, J * F)
                for b in range(n):
                    torch.mm(thetas[b], turned[g][b0 + b], out=logits)
                    soften(logits_, total, peak, phi, active, (g * B + b0 + b) * P, scaled_)
                    torch.mm(logits, scaled, out=founds[b])
                gather(sizes, t, g, centre, found_, J * F, F, b0, n, *sums)
        for block in blocks:
            _m_step(*block.fit(step), beta_u, beta_a, share, inverse_temperature)


def _slopes(to_mean, to_variance, to_log, fit, beta_u, share, inverse_temperature, to_beta_u, to_beta_a):
    "Equation 7: the loss's gradients by the sums of an M-step."
    mean, variance, mass, log_active = fit
    to_score = -torch.expm1(log_active) * to_log * inverse_temperature
    to_cost = -to_score * mass / share
    to_beta_a.add_(to_score.sum(1))
    to_beta_u.add_(to_cost.sum(1), alpha=variance.shape[-1])
    cost = beta_u[:, None] * variance.shape[-1] + 0.5 * variance.log().sum(-1)
    to_variance = to_variance + 0.5 * to_cost[..., None] / variance
    whole, above = (mass + MASS_FLOOR)[..., None], variance - VARIANCE_FLOOR
    spread = torch.where(above > 0, to_variance, 0) / whole
    total = (to_mean - 2 * MASS_FLOOR * mean * spread) / whole
    return _arrays(mean, spread, total), *_arrays(-to_score * cost / share - (spread * above).sum(-1))


def em_backward(to_mean, to_log, blocks, lower: Lower, T, beta_u, beta_a, schedule, to_T, to_beta_u, to_beta_a):
    "The loss's gradients by the capsules (b, g, p, d) and their activations (b, g, p); those by weights are added."
    (J, G, R, E), (_, B, P, F), sizes = T.shape, lower.phi.shape, _sizes(lower, T)
    share, most = G * lower.positions / J, min(SAMPLES, B)
    both, found, pair, scaled = T.new_empty(most, 2, J, F), T.new_empty(most, 2, J, F), T.new_empty(2, J, P), T.new_empty(P, F)
    totals_, inners, by_pairs = T.new_empty(G, B, P), T.new_empty(G, B, P), T.new_empty(G, B, P, F)
    to_phi, to_active, to_centre = torch.zeros_like(lower.phi), torch.zeros_like(lower.active), T.new_zeros(G, B, R, E)
    some = min(GROUPS, G), J, R, E
    T_, to_T_, own, to_own, phi, active, centre, to_centre_, first, both_, found_, pair_, scaled_, sums, inner, peak = _arrays(
        T, to_T, T.new_empty(some), T.new_zeros(some), lower.phi.view(-1, F), lower.active.view(-1), lower.centre, to_centre,
        lower.first / J, both, found, pair, scaled, totals_.view(-1), inners.view(-1), T.new_empty(P))  # fmt: skip
    turned, flat, places = [[x.t() for x in part] for part in lower.phi], pair.view(2 * J, P), [list(x) for x in by_pairs]
    stacked, unstacked = both.flatten(1, 2).unbind(), found.flatten(1, 2).unbind()
    arriving = []
    for block in blocks:
        by_mean = to_mean[:, block.first : block.first + block.samples]
        arriving.append((by_mean, torch.zeros_like(by_mean), to_log[:, block.first : block.first + block.samples]))
    for step in reversed(range(len(schedule))):
        by_moments, work = T.new_zeros(0 if step else G, B, F, E), []
        for block, gradients in zip(blocks, arriving):
            slopes = _slopes(*gradients, block.fit(step), beta_u, share, schedule[step], to_beta_u, to_beta_a)
            back = [torch.zeros_like(x) for x in (block.mean[0], block.mean[0], block.mass[0])]
            before = block.before(step) if step else None
            work.append((block.first, block.samples, *slopes, before, back, _arrays(*back)))
        for g in range(G):
            if g % GROUPS == 0:
                take(T_, g, own)
            t, to_t = own[g % GROUPS], to_own[g % GROUPS]
            for b0, n, slopes, to_mass, before, _, back in work:
                if step == 0:
                    first_weights(sizes, t, to_t, g, centre, to_centre_, first, *slopes, to_mass, b0, n, by_moments.numpy())
                    continue
                keys(sizes, t, g, centre, *before, b0, n, both_, 2 * J * F)
                moment_gradients(sizes, t, g, centre, *slopes, to_mass, b0, n, both_, 2 * J * F, J * F)
                for b in range(n):
                    torch.mm(stacked[b], turned[g][b0 + b], out=flat)
                    soften_backward(pair_, sums, inner, peak, phi, active, (g * B + b0 + b) * P, scaled_)
                    torch.mm(flat, scaled, out=unstacked[b])
                    torch.mm(flat.t(), stacked[b], out=places[g][b0 + b])
                weights(sizes, t, to_t, g, centre, to_centre_, found_, *slopes, *before[:2], b0, n, *back)
            if g % GROUPS == GROUPS - 1 or g == G - 1:
                give(to_T_, g // GROUPS * GROUPS, to_own)
        if step:
            to_phi.addcmul_(by_pairs, (lower.active / totals_)[..., None])
            to_active += inners
            arriving = []
            for block, (*_, (by_mean, by_precision, by_log), _) in zip(blocks, work):
                precision = 1 / block.variance[step - 1]
                by_variance = -precision * (precision * by_precision + 0.5 * by_log[..., None])
                arriving.append((by_mean, by_variance, by_log))
        else:
            by_moments = (by_moments.sum(3) / J)[:, :, None]  # (g, b, 1, F)
            to_phi.addcmul_(lower.active[..., None], by_moments)
            to_active += (lower.phi * by_moments).sum(3)
    # Equation 12
    to_u = features_backward(to_phi[:, :, : lower.positions], lower.x)
    to_middle = to_centre.sum(3)[:, :, None, : lower.x.shape[3]] - to_u.sum(2, keepdim=True)
    return (to_u + to_middle / lower.positions).transpose(0, 1), to_active[:, :, : lower.positions].transpose(0, 1)


class EM(torch.autograd.Function):
    "From u (b g p d), activation (b g p), T (j g r e) to means (j b e) and log a (j b)."

    @staticmethod
    def forward(ctx, u, activation, T, beta_u, beta_a, schedule, party):
        (J, _, R, E), B = T.shape, len(u)
        parties, known = [slice(b, min(b + party, B)) for b in range(0, B, party)], []
        for some in parties:
            known.append(_blocks(u, some.stop - some.start, len(schedule), J, E))
            em_forward(known[-1], Lower(u[some], activation[some], R), T, beta_u, beta_a, schedule)
        ctx.save_for_backward(u, activation, T, beta_u, beta_a)
        ctx.options = schedule, parties, known
        blocks = [block for part in known for block in part]
        return torch.cat([x.mean[-1] for x in blocks], 1), torch.cat([x.log_active[-1] for x in blocks], 1)

    @staticmethod
    def backward(ctx, to_mean, to_log):
        u, activation, T, beta_u, beta_a = ctx.saved_tensors
        schedule, parties, known = ctx.options
        to_u, to_activation = torch.empty_like(u), torch.empty_like(activation)
        to_weights = [torch.zeros_like(x) for x in (T, beta_u, beta_a)]
        for some, blocks in zip(parties, known):
            lower = Lower(u[some], activation[some], T.shape[2])
            to_u[some], to_activation[some] = em_backward(
                to_mean[:, some], to_log[:, some], blocks, lower, T, beta_u, beta_a, schedule, *to_weights
            )
        return to_u, to_activation, *to_weights, None, None


def em_routing(u, activation, transform, beta_u, beta_a, iterations=3, temperature=1.0, party=32):
    "As `encapnet.nn.routing.em_routing`."
    schedule = [temperature * (1 - 0.95 ** (step + 1)) for step in range(iterations)]
    T = transform.transpose(0, 1).contiguous()
    mean, log_active = EM.apply(u, activation, T, beta_u, beta_a, schedule, party)
    return mean.transpose(0, 1), log_active.exp().t()
