"""Rules with several residual streams: Hyper-Connections and their manifold-constrained form. H is (B, T, n, C)."""

import numpy as np
import torch

from rule import Rule, rms0


class HyperConnections(Rule):
    """Per sublayer a matrix A [n, n+1] (column 0 reads, the rest mixes streams) and write weights Bv [n]:

        z = SUM_i A[i,0]*H_i;   H_j <- SUM_i A[i,j]*H_i + Bv_j*u            read-out: sum or mean of the streams

    static: both are parameters.  dynamic: A = s_a*phi(Hn Wa) + As, Bv = s_b*phi(Hn wb) + Bs, Hn = RMS(H) per stream.
    Preset hc_e0 (static): stream 0 starts as x_0 and is read out, the others start as 0.  State: H, and A, Bv of the
    sublayer at hand.
    """

    def setup(self, options):
        self.n = options.integer("n", 4)
        self.e0 = options.choice("preset", ["none", "hc_e0"], "none") == "hc_e0"
        self.dynamic = options.flag("dynamic", 0 if self.e0 else 1)
        if self.e0 and self.dynamic:
            raise SystemExit("preset=hc_e0 is static: dynamic=1 does not go with it")
        self.tanh = self.dynamic and options.flag("tanh", 1)
        self.mean = not self.e0 and options.choice("readout", ["sum", "mean"], "sum") == "mean"
        options.choice("hc_out_init", ["1", "rsqrt_n", "sqrt_n"], "1")  # of the weights a run starts from

    def parameters(self):
        n, C, out = self.n, self.arch.channels, []
        for k in self.sublayers():
            read = np.eye(n)[0 if self.e0 else (k - 1) % n]
            out.append(self.parameter(self.sub_name(k, "hc_alpha"), (n, n + 1), np.column_stack([read, np.eye(n)])))
            out.append(self.parameter(self.sub_name(k, "hc_beta"), (n,), np.eye(n)[0] if self.e0 else 1.0))
            if self.dynamic:
                out.append(self.parameter(self.sub_name(k, "hc_wa"), (C, n + 1), 0.0, decays=True))
                out.append(self.parameter(self.sub_name(k, "hc_wb"), (C,), 0.0, decays=True))
                out.append(self.parameter(self.sub_name(k, "hc_sa"), (1,), 0.01))
                out.append(self.parameter(self.sub_name(k, "hc_sb"), (1,), 0.01))
                out.append(self.parameter(self.sub_name(k, "hc_norm"), (C,), 1.0))
        return out

    def start(self, p, x0, clock):
        rest = torch.zeros_like(x0) if self.e0 else x0
        return torch.stack([x0] + [rest] * (self.n - 1), dim=-2), None, None

    def before(self, p, k, state):
        H = state[0]
        A, Bv = p[self.sub_name(k, "hc_alpha")], p[self.sub_name(k, "hc_beta")]
        if self.dynamic:
            Hn = p[self.sub_name(k, "hc_norm")] * rms0(H, self.arch.eps)
            ta, tb = Hn @ p[self.sub_name(k, "hc_wa")], Hn @ p[self.sub_name(k, "hc_wb")]
            if self.tanh:
                ta, tb = torch.tanh(ta), torch.tanh(tb)
            A = p[self.sub_name(k, "hc_sa")] * ta + A
            Bv = p[self.sub_name(k, "hc_sb")] * tb + Bv
        return H, A.expand(*H.shape[:2], self.n, self.n + 1), Bv.expand(*H.shape[:2], self.n)

    def read(self, p, k, state):
        H, A, _ = state
        return torch.einsum("bti,btic->btc", A[..., 0], H)

    def write(self, p, k, state, u, alpha):
        H, A, Bv = state
        return torch.einsum("btij,btic->btjc", A[..., 1:], H) + torch.einsum("btj,btc->btjc", Bv, alpha * u), None, None

    def readout(self, p, state):
        H = state[0]
        if self.e0:
            return H[..., 0, :]
        return H.mean(-2) if self.mean else H.sum(-2)


def sinkhorn(logits, eps, rounds=20):
    """Rounds of column and row normalisation of exp(logits); [.., k, j]: a row sums over j, a column over k."""
    M = torch.softmax(logits, dim=-2) + eps
    M = M / (M.sum(-1, keepdim=True) + eps)
    for _ in range(rounds - 1):
        M = M / (M.sum(-2, keepdim=True) + eps)
        M = M / (M.sum(-1, keepdim=True) + eps)
    return M


class ManifoldHyperConnections(Rule):
    """All weights from all streams together, the mixing matrix doubly stochastic (Sinkhorn):

        X = vec(H);  m = Phi X / rms(X);  Z = a*m + b  in groups pre [n], post [n], res [n^2]
        z = SUM_j H_pre[j]*H_j;   H_k <- SUM_j H_res[k,j]*H_j + H_post[k]*u

    Read-out: the sum of the streams, or a learned head.  State: H, and the weights of the sublayer at hand.
    """

    EPS_NORM = EPS_PRE = EPS_SINKHORN = 1e-6

    def setup(self, options):
        self.n = options.integer("n", 4)
        self.head = options.choice("readout", ["sum", "head"], "sum") == "head"

    def parameters(self):
        n, C, out = self.n, self.arch.channels, []
        for k in self.sublayers():
            pre = np.where(np.arange(n) == (k - 1) % n, 1.0, -1.0)
            res = np.where(np.eye(n) == 1, 0.0, -8.0)
            out.append(self.parameter(self.sub_name(k, "mhc_phi"), (n * n + 2 * n, n * C), 0.0, decays=True))
            out.append(self.parameter(self.sub_name(k, "mhc_a"), (3,), 0.01))
            b = np.concatenate([pre, np.zeros(n), res.ravel()])
            out.append(self.parameter(self.sub_name(k, "mhc_b"), (n * n + 2 * n,), b))
        if self.head:
            out.append(self.parameter("residual.mhc_head_phi", (n, n * C), 0.0, decays=True))
            out.append(self.parameter("residual.mhc_head_a", (1,), 0.01))
            out.append(self.parameter("residual.mhc_head_b", (n,), 0.0))
        return out

    def products(self, H, phi):
        """m = Phi X / rms(X), X = vec(H) stream by stream."""
        return rms0(H.flatten(-2), self.EPS_NORM) @ phi.T

    def start(self, p, x0, clock):
        return torch.stack([x0] * self.n, dim=-2), None

    def weights(self, p, k, H):
        """H_pre [.., n], H_post [.., n], H_res [.., n, n]."""
        n, a = self.n, p[self.sub_name(k, "mhc_a")]
        a = torch.cat([a[0].expand(n), a[1].expand(n), a[2].expand(n * n)])
        Z = a * self.products(H, p[self.sub_name(k, "mhc_phi")]) + p[self.sub_name(k, "mhc_b")]
        pre = torch.sigmoid(Z[..., :n]) + self.EPS_PRE
        post = 2 * torch.sigmoid(Z[..., n : 2 * n])
        by_input = Z[..., 2 * n :].unflatten(-1, (n, n))  # [.., j, k]: entry n*j + k, from stream j into stream k
        return pre, post, sinkhorn(by_input.transpose(-1, -2), self.EPS_SINKHORN)

    def before(self, p, k, state):
        H = state[0]
        return H, self.weights(p, k, H)

    def read(self, p, k, state):
        H, (pre, _, _) = state
        return torch.einsum("btj,btjc->btc", pre, H)

    def write(self, p, k, state, u, alpha):
        H, (_, post, res) = state
        return torch.einsum("btkj,btjc->btkc", res, H) + torch.einsum("btk,btc->btkc", post, alpha * u), None

    def readout(self, p, state):
        H = state[0]
        if not self.head:
            return H.sum(-2)
        m = self.products(H, p["residual.mhc_head_phi"])
        w = torch.sigmoid(p["residual.mhc_head_a"] * m + p["residual.mhc_head_b"]) + self.EPS_PRE
        return torch.einsum("btj,btjc->btc", w, H)
