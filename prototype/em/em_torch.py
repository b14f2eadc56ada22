"""The same algorithm as em_numba in torch alone: group by group, both right-hand sides in one product."""
import os, torch
from torch.nn import functional as F_

VARIANCE_FLOOR, MASS_FLOOR = 1e-4, 1e-8


def log_activation(mass, log_variance, beta_u, beta_a, share, inverse):
    return F_.logsigmoid(inverse * (beta_a - (beta_u * log_variance.shape[-1] + 0.5 * log_variance.sum(-1)) * mass / share))


def products(x, dim):
    d = x.shape[dim]
    return torch.cat([x.narrow(dim, m, 1) * x.narrow(dim, m, d - m) for m in range(d)], dim)


def features(x):
    return torch.cat([products(x, -1), x, torch.ones_like(x[..., :1])], -1)


def features_backward(to, x):
    d, i = x.shape[-1], 0
    out = to[..., d * (d + 1) // 2 :][..., :d].clone()
    for m in range(d):
        t = to[..., i : i + d - m]
        out[..., m] += (t * x[..., m:]).sum(-1)
        out[..., m:] += t * x[..., m : m + 1]
        i += d - m
    return out


def products_backward(to, w):
    "By w (j d e), from that by its products (j q e)."
    d, i = w.shape[1], 0
    out = torch.zeros_like(w)
    for m in range(d):
        t = to[:, i : i + d - m]
        out[:, m] += (t * w[:, m:]).sum(1)
        out[:, m:] += t * w[:, m : m + 1]
        i += d - m
    return out


class Lower:
    def __init__(self, u, activation, rows):
        u, self.activation = u.transpose(0, 1), activation.transpose(0, 1).contiguous()
        centre = u.mean(2, keepdim=True)
        self.x = u - centre
        self.phi = features(self.x)
        centre = centre[:, :, 0]
        self.centre = (torch.cat([centre, torch.ones_like(centre[..., :1])], -1) if rows > u.shape[3] else centre).contiguous()
        self.first = torch.matmul(self.activation[:, :, None], self.phi)[:, :, 0]


class Group:
    "One group's transform (j r e), weight (j d e), squares (j q e), and mean votes (j b e)."

    def __init__(self, T, g, lower):
        d = lower.x.shape[3]
        self.T = T[:, g].contiguous()
        self.w = self.T[:, :d]
        twice = torch.cat([2 - (torch.arange(d - m) == 0).to(T.dtype) for m in range(d)])
        self.s = products(self.w, 1).mul_(twice[:, None])
        self.o = lower.centre[g] @ self.T
        self.twice = twice

    def keys(self, mean, precision, constant, out):  # out (b, j, F)
        q, d = self.s.shape[1], self.w.shape[1]
        delta = self.o - mean
        pulled = delta * precision
        out[..., :q] = torch.bmm(precision * -0.5, self.s.mT).transpose(0, 1)
        out[..., q : q + d] = torch.bmm(pulled, self.w.mT).transpose(0, 1).neg_()
        out[..., -1] = (constant - 0.5 * (delta * pulled).sum(-1)).t()

    def moment_gradients(self, mean, spread, total, mass, out):
        q, d = self.s.shape[1], self.w.shape[1]
        delta = self.o - mean
        ds = delta * spread
        out[..., :q] = torch.bmm(spread, self.s.mT).transpose(0, 1)
        out[..., q : q + d] = torch.bmm(torch.add(total, ds, alpha=2), self.w.mT).transpose(0, 1)
        out[..., -1] = ((delta * (total + ds)).sum(-1) + mass).t()

    def gather(self, moments, mass, mean, squares):  # moments (j, b, F)
        q, d = self.s.shape[1], self.w.shape[1]
        second, first, weight = moments[..., :q], moments[..., q : q + d], moments[..., -1:]
        inner = torch.bmm(first, self.w)
        off = inner / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        here = torch.bmm(second, self.s).sub_(inner.mul_(off))
        together = mass[..., None] + weight
        share = weight / together.clamp(min=torch.finfo(weight.dtype).tiny)
        apart = off.add_(self.o).sub_(mean)
        squares.add_(here).addcmul_(apart.square(), share * mass[..., None])
        mean.addcmul_(apart, share)
        mass.copy_(together[..., 0])

    def weights(self, moments, to_keys, mean, spread, total, mean0, precision0, back):
        "Gradients by the group's transform and centre; adds those by the fit before."
        q, d = self.s.shape[1], self.w.shape[1]
        second, first, weight = moments[..., :q], moments[..., q : q + d], moments[..., -1:]
        delta = self.o - mean
        s2 = spread * 2
        inner = torch.bmm(first, self.w)
        to_o = inner.addcmul_(weight, delta).mul_(s2).addcmul_(weight, total)
        to_s = torch.bmm(second.mT, spread)
        to_w = torch.bmm(first.mT, torch.addcmul(total, s2, delta))
        if to_keys is not None:
            to_mean0, to_precision0, to_log0 = back
            second, first, constant = to_keys[..., :q], to_keys[..., q : q + d], to_keys[..., -1:]
            delta0 = self.o - mean0
            along = torch.bmm(first, self.w)
            half = constant * delta0
            to_precision0.sub_(torch.bmm(second, self.s).mul_(0.5).addcmul_(torch.add(along, half, alpha=0.5), delta0))
            pulled = along.add_(half).mul_(precision0)
            to_mean0 += pulled
            to_log0 += constant[..., 0]
            to_o -= pulled
            to_s.baddbmm_(second.mT, precision0, alpha=-0.5)
            to_w.baddbmm_(first.mT, delta0.mul_(precision0), alpha=-1)
        to_w += products_backward(to_s.mul_(self.twice[:, None]), self.w)
        return to_o, to_w


def em_forward(lower, T, beta_u, beta_a, schedule, fits):
    J, G, rows, E = T.shape
    (_, B, P, F) = lower.phi.shape
    share = G * P / J
    theta, moments, logits = T.new_empty(B, J, F), T.new_empty(J, B, F), T.new_empty(J, P)
    for step, inverse in enumerate(schedule):
        mean, variance, mass, log_active = (x[step] for x in fits)
        squares = torch.zeros_like(mean)
        mean.zero_(), mass.zero_()
        if step:
            m0, v0, _, a0 = (x[step - 1] for x in fits)
            before = m0, 1 / v0, a0 - 0.5 * v0.log().sum(-1)
        for g in range(G):
            group = Group(T, g, lower)
            if step == 0:
                group.gather((lower.first[g] / J).expand(J, -1, -1), mass, mean, squares)
                continue
            group.keys(*before, theta)
            for b in range(B):
                torch.mm(theta[b], lower.phi[g, b].t(), out=logits)
                torch.softmax(logits, 0, out=logits)
                torch.mm(logits, lower.activation[g, b][:, None] * lower.phi[g, b], out=theta[b])
            moments.copy_(theta.transpose(0, 1))
            group.gather(moments, mass, mean, squares)
        total = mass[..., None] + MASS_FLOOR
        lost = mean * (MASS_FLOOR / total)
        variance.copy_((torch.addcmul(squares, lost.square(), mass[..., None]) / total).clamp_(min=0) + VARIANCE_FLOOR)
        mean.sub_(lost)
        log_active.copy_(log_activation(mass, variance.log(), beta_u[:, None], beta_a[:, None], share, inverse))


def em_backward(to_mean, to_log, lower, T, beta_u, beta_a, schedule, fits, to_T, to_betas):
    J, G, rows, E = T.shape
    (_, B, P, F), dim = lower.phi.shape, lower.x.shape[3]
    share = G * P / J
    both, pair = T.new_empty(B, 2, J, F), T.new_empty(2, J, P)
    found, turned = T.new_empty(2 * J, F), T.new_empty(2, J, B, F)
    to_phi, to_a, to_centre = torch.zeros_like(lower.phi), torch.zeros_like(lower.activation), torch.zeros_like(lower.centre)
    to_variance = torch.zeros_like(to_mean)
    for step in reversed(range(len(schedule))):
        mean, variance, mass, log_active = (x[step] for x in fits)
        to_score = -torch.expm1(log_active) * to_log * schedule[step]
        to_cost = -to_score * mass / share
        to_betas[1].add_(to_score.sum(1))
        to_betas[0].add_(to_cost.sum(1), alpha=E)
        cost = beta_u[:, None] * E + 0.5 * variance.log().sum(-1)
        to_variance = to_variance + 0.5 * to_cost[..., None] / variance
        all_mass, above = (mass + MASS_FLOOR)[..., None], variance - VARIANCE_FLOOR
        spread = torch.where(above > 0, to_variance, 0) / all_mass
        to_mass = -to_score * cost / share - (spread * above).sum(-1)
        slopes = mean, spread, (to_mean - 2 * MASS_FLOOR * mean * spread) / all_mass
        back = None
        if step:
            m0, v0, _, a0 = (x[step - 1] for x in fits)
            precision = 1 / v0
            before = m0, precision, a0 - 0.5 * v0.log().sum(-1)
            back = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(mass)
        for g in range(G):
            group = Group(T, g, lower)
            group.moment_gradients(*slopes, to_mass, both[:, 1])
            if step:
                group.keys(*before, both[:, 0])
                for b in range(B):
                    phi, stacked, flat = lower.phi[g, b], both[b].view(2 * J, F), pair.view(2 * J, P)
                    torch.mm(stacked, phi.t(), out=flat)
                    r, h = pair
                    torch.softmax(r, 0, out=r)
                    inner = torch.linalg.vecdot(r, h, dim=0)
                    h.sub_(inner).mul_(r)
                    active = lower.activation[g, b][:, None]
                    torch.mm(flat, active * phi, out=found)
                    # the pair is (r, r (h - inner)): what goes with r is the moments' gradient
                    back_ = torch.mm(h.t(), both[b, 0]).addmm_(r.t(), both[b, 1])
                    to_phi[g, b].addcmul_(back_, active)
                    to_a[g, b] += inner
                    both[b].copy_(found.view(2, J, F))
                turned.copy_(both.permute(1, 2, 0, 3))
                to_o, to_w = group.weights(turned[0], turned[1], *slopes, *before[:2], back)
            else:
                to_m = (both[:, 1].sum(1) / J)[:, None]
                to_phi[g].addcmul_(lower.activation[g][..., None], to_m)
                to_a[g] += (lower.phi[g] * to_m).sum(2)
                to_o, to_w = group.weights((lower.first[g] / J).expand(J, -1, -1), None, *slopes, None, None, None)
            to_own = lower.centre[g].t() @ to_o
            to_own[:, :dim] += to_w
            to_T[:, g] += to_own
            to_centre[g] += torch.bmm(to_o, group.T.mT).sum(0)
        if step:
            to_mean, to_precision, to_log = back
            to_variance = -precision * precision * to_precision - 0.5 * precision * to_log[..., None]
    to_u = features_backward(to_phi, lower.x)
    to_middle = to_centre[:, :, None, :dim] - to_u.sum(2, keepdim=True)
    return (to_u + to_middle / P).transpose(0, 1), to_a.transpose(0, 1)


class EM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, activation, T, beta_u, beta_a, schedule, party):
        (J, _, rows, E), B, R = T.shape, len(u), len(schedule)
        parts = [slice(b, min(b + party, B)) for b in range(0, B, party)]
        known = []
        for some in parts:
            n = some.stop - some.start
            fits = [*u.new_empty(2, R, J, n, E), *u.new_empty(2, R, J, n)]
            em_forward(Lower(u[some], activation[some], rows), T, beta_u, beta_a, schedule, fits)
            known.append(fits)
        ctx.save_for_backward(u, activation, T, beta_u, beta_a, *(x for fits in known for x in fits))
        ctx.options = schedule, parts
        return torch.cat([f[0][-1] for f in known], 1), torch.cat([f[3][-1] for f in known], 1)

    @staticmethod
    def backward(ctx, to_mean, to_log):
        u, activation, T, beta_u, beta_a, *known = ctx.saved_tensors
        schedule, parts = ctx.options
        to_u, to_a, to_T = torch.empty_like(u), torch.empty_like(activation), torch.zeros_like(T)
        to_betas = torch.zeros_like(beta_u), torch.zeros_like(beta_a)
        for k, some in enumerate(parts):
            to_u[some], to_a[some] = em_backward(
                to_mean[:, some].contiguous(), to_log[:, some], Lower(u[some], activation[some], T.shape[2]),
                T, beta_u, beta_a, schedule, known[4 * k : 4 * k + 4], to_T, to_betas)
        return to_u, to_a, to_T, *to_betas, None, None


def em_routing(u, activation, transform, beta_u, beta_a, iterations=3, temperature=1.0, party=8):
    schedule = [temperature * (1 - 0.95 ** (t + 1)) for t in range(iterations)]
    T = transform.transpose(0, 1).contiguous()
    mean, log_active = EM.apply(u, activation, T, beta_u, beta_a, schedule, party)
    return mean.transpose(0, 1), log_active.exp().t()
