"""Dynamic routing's inner loop fused: for narrow capsules (F about 9) the products are too thin for a matrix library."""
import numpy as np
import torch
from lanes_fast import Index, Sizes, exp, totals, unrolled
from numba import njit

LANES = 16
# sizes: tuples of F components and of strips of 16 positions. Per block of P = 16 * strips positions, capsules as columns:
# columns (F, P). keys, z (J, F); e, h (J, P)


def _linear(numbers, columns, p, stride):
    "sum_f number_f * column_f at 16 positions."
    return sum(n * columns.load(p + f * stride, LANES) for f, n in enumerate(numbers))


@unrolled
def _logits(sizes: Sizes, keys, k, columns, p0, peak, e, i):
    F, strips = sizes
    y, P = keys.numbers(k, F), LANES * strips
    found = [_linear(y, columns, p0 + s * LANES, P) for s in range(strips)]
    peaks = [peak.load(p0 + s * LANES, LANES).maximum(l) for s, l in enumerate(found)]
    for s in range(strips):
        e.store(i + s * LANES, found[s])
        peak.store(p0 + s * LANES, peaks[s])


@unrolled
def _exponentials(sizes: Sizes, p0, peak, total, e, i):
    F, strips = sizes
    for s in range(strips):
        p = p0 + s * LANES
        x = exp(e.load(i + s * LANES, LANES) - peak.load(p, LANES))
        e.store(i + s * LANES, x)
        total.store(p, total.load(p, LANES) + x)


@unrolled
def _weigh(sizes: Sizes, z, k, columns, p0, peak, total, inner, e, i, h):
    F, strips = sizes
    numbers, P, out = z.numbers(k, F), LANES * strips, []
    for s in range(strips):
        p = p0 + s * LANES
        x = exp(e.load(i + s * LANES, LANES) - peak.load(p, LANES))
        slope = _linear(numbers, columns, p, P)
        out.append((x, slope, total.load(p, LANES) + x, inner.load(p, LANES) + x * slope))
    for s, values in enumerate(out):
        for place, at, value in zip((e, h, total, inner), [i + s * LANES] * 2 + [p0 + s * LANES] * 2, values):
            place.store(at, value)


def _store_totals(out, at, vectors):
    "As many numbers as there are vectors."
    zero = vectors[0].constant(0.0)
    for k in range(0, len(vectors), LANES):
        some = vectors[k : k + LANES]
        if len(some) < 3:
            for n, vector in enumerate(some):
                out.store(at + k + n, vector.total())
        else:
            out.store(at + k, totals(some + [zero] * (LANES - len(some))))


@unrolled
def _gather(sizes: Sizes, scaled, p0, e, i, z, k):
    F, strips = sizes
    P, sums = LANES * strips, [0] * F
    for s in range(strips):
        x = e.load(i + s * LANES, LANES)
        sums = [sum_ + x * scaled.load(p0 + f * P + s * LANES, LANES) for f, sum_ in enumerate(sums)]
    _store_totals(z, k, sums)


@unrolled
def _spread(sizes: Sizes, keys, z, k, scaled, p0, inner, to_columns, e, i, h, found, o):
    "found: from o on, the gradients by the key, then z again, 2 F numbers."
    F, strips = sizes
    P, y, g = LANES * strips, keys.numbers(k, F), z.numbers(k, F)
    by_key, again, by_columns = [0] * F, [0] * F, []
    for s in range(strips):
        p = p0 + s * LANES
        x = e.load(i + s * LANES, LANES)
        v = x * (h.load(i + s * LANES, LANES) - inner.load(p, LANES))
        for f in range(F):
            u = scaled.load(p + f * P, LANES)
            by_key[f], again[f] = by_key[f] + v * u, again[f] + x * u
            by_columns.append((p + f * P, to_columns.load(p + f * P, LANES) + v * y[f] + x * g[f]))
    for at, value in by_columns:
        to_columns.store(at, value)
    _store_totals(found, o, by_key)
    _store_totals(found, o + F, again)


@njit(nogil=True, cache=True)
def _collect(sizes, u, keys, z, e, columns, peak, total):
    "u (n, P, F), keys (n, J, F) -> z (n, J, F) + 16 numbers to spare"
    n, P, F = u.shape
    J = keys.shape[1]
    for k in range(n):
        for f in range(F):
            for p in range(P):
                columns[f, p] = u[k, p, f]
        peak[:] = -np.inf
        total[:] = 0
        for j in range(J):
            _logits(sizes, keys, (k * J + j) * F, columns, 0, peak, e, j * P)
        for j in range(J):
            _exponentials(sizes, 0, peak, total, e, j * P)
        for f in range(F):
            for p in range(P):
                columns[f, p] /= total[p]
        for j in range(J):
            _gather(sizes, columns, 0, e, j * P, z, (k * J + j) * F)


@njit(nogil=True, cache=True)
def _collect_backward(sizes, u, keys, z, to_u, found, e, h, columns, to_columns, peak, total, inner):
    "found (n, J, 2 F) + 16 numbers to spare"
    n, P, F = u.shape
    J = keys.shape[1]
    for k in range(n):
        for f in range(F):
            for p in range(P):
                columns[f, p] = u[k, p, f]
        peak[:] = -np.inf
        total[:] = 0
        inner[:] = 0
        to_columns[:] = 0
        for j in range(J):
            _logits(sizes, keys, (k * J + j) * F, columns, 0, peak, e, j * P)
        for j in range(J):
            _weigh(sizes, z, (k * J + j) * F, columns, 0, peak, total, inner, e, j * P, h)
        for p in range(P):
            inner[p] /= total[p]
        for f in range(F):
            for p in range(P):
                columns[f, p] /= total[p]
        for j in range(J):
            _spread(sizes, keys, z, (k * J + j) * F, columns, 0, inner, to_columns, e, j * P, h, found, (k * J + j) * 2 * F)
        for f in range(F):
            for p in range(P):
                to_u[k, p, f] = to_columns[f, p] / total[p]


def collect(u, keys):
    n, P, F = u.shape
    J, a = keys.shape[1], u.numpy()
    empty = lambda *s: np.empty(s, a.dtype)
    z = empty(n * J * F + LANES)
    _collect(((0,) * F, (0,) * (P // LANES)), a, keys.numpy(), z, empty(J, P), empty(F, P), empty(P), empty(P))
    return torch.from_numpy(z[: n * J * F].reshape(n, J, F))


def collect_backward(u, keys, z):
    n, P, F = u.shape
    J, a = keys.shape[1], u.numpy()
    empty = lambda *s: np.empty(s, a.dtype)
    found, to_u = empty(n * J * 2 * F + LANES), empty(n, P, F)
    _collect_backward(((0,) * F, (0,) * (P // LANES)), a, keys.numpy(), z.numpy(), to_u, found, empty(J, P), empty(J, P), empty(F, P), empty(F, P), empty(P), empty(P), empty(P))
    found = torch.from_numpy(found[: n * J * 2 * F].reshape(n, J, 2, F))
    return torch.from_numpy(to_u), found[:, :, 0], found[:, :, 1]
