"""Rules with gates: GPAS, Review Residuals, highway, and the benchmark's form of ProRes."""

import torch
import torch.nn.functional as F

from rule import Rule, rms0


class Gpas(Rule):
    """Gradient-preserving activation scaling: g = Act(gate of the layer), sg the stop-gradient.

        pre-type sublayers:   x' = x + u;          x <- x' - g*sg(x')
        post-type sublayers:  x' = x - g*sg(x);    x <- N_post(a*x' + u), the sublayer reading the unscaled x

    `place` moves the scaling elsewhere (pre-type schemes only), sg=0 drops the stop-gradient.
    """

    PLACES = ("after_sublayer", "before_sublayer", "after_norm", "branch_output")
    ACTS = {
        "silu": F.silu,
        "identity": lambda a: a,
        "relu": F.relu,
        "leaky_relu": lambda a: F.leaky_relu(a, 0.01),
        "tanh": torch.tanh,
        "silu_8": lambda a: a * torch.sigmoid(8 * a),
    }

    def setup(self, options):
        self.act = self.ACTS[options.choice("act", list(self.ACTS), "silu")]
        self.stop = options.flag("sg", 1)
        self.place = options.choice("place", self.PLACES, "after_sublayer")
        self.gate_clip = options.number("gate_clip", 0)  # training.py clips: it is about gradients
        self.frozen = options.choice("freeze", ["none", "gate"], "none") == "gate"

    def gate_name(self, k):
        return self.layer_name(self.arch.layer(k), "gpas_gate")

    def parameters(self):
        return [self.parameter(self.gate_name(2 * l), (1,), 0.0, frozen=self.frozen) for l in self.layers()]

    def scaled(self, p, k, x):
        return x - self.act(p[self.gate_name(k)]) * (x.detach() if self.stop else x)

    def before(self, p, k, x):
        return self.scaled(p, k, x) if self.place == "before_sublayer" else x

    def after_norm(self, p, k, z):
        return self.scaled(p, k, z) if self.place == "after_norm" else z

    def write(self, p, k, x, u, alpha):
        u = alpha * u
        if self.place == "branch_output":
            return x + self.scaled(p, k, u)
        if self.place != "after_sublayer":
            return x + u
        if self.scheme.is_post(k):
            return self.scheme.norm_post(p, k, self.scheme.skip(k) * self.scaled(p, k, x) + u)
        return self.scaled(p, k, x + u)


class Review(Rule):
    """r = sigma(RMS0(x) Wh^T + RMS0(u) Wu^T + b), W = [Wh | Wu];  x <- N_post(x + r*u)  or  (1-r)*x + r*u (convex)."""

    EPS = 1e-5

    def setup(self, options):
        self.convex = options.choice("form", ["additive", "convex"], "additive") == "convex"
        self.bias = options.flag("bias", 1)

    def parameters(self):
        C, out = self.arch.channels, []
        for k in self.sublayers():
            out.append(self.parameter(self.sub_name(k, "rv_w"), (C, 2 * C), 0.0, decays=True))
            if self.bias:
                out.append(self.parameter(self.sub_name(k, "rv_b"), (C,), 0.0))
        return out

    def write(self, p, k, x, u, alpha):
        both = torch.cat([rms0(x, self.EPS), rms0(u, self.EPS)], dim=-1)  # the gate sees the unscaled u
        zeta = both @ p[self.sub_name(k, "rv_w")].T
        r = torch.sigmoid(zeta + p[self.sub_name(k, "rv_b")] if self.bias else zeta)
        if self.convex:
            return (1 - r) * x + r * (alpha * u)
        return self.scheme.norm_post(p, k, x + r * (alpha * u))


class Highway(Rule):
    """g = sigma(x W^T + b);  x <- x + g*u  or  (1-g)*x + g*u (convex)."""

    def setup(self, options):
        self.convex = options.choice("form", ["additive", "convex"], "additive") == "convex"

    def parameters(self):
        C, out = self.arch.channels, []
        for k in self.sublayers():
            out.append(self.parameter(self.sub_name(k, "hw_w"), (C, C), None, decays=True))
            out.append(self.parameter(self.sub_name(k, "hw_b"), (C,), -2.0 if self.convex else 0.0))
        return out

    def write(self, p, k, x, u, alpha):
        g = torch.sigmoid(x @ p[self.sub_name(k, "hw_w")].T + p[self.sub_name(k, "hw_b")])
        return ((1 - g) * x if self.convex else x) + g * (alpha * u)


class ProResMls(Rule):
    """The benchmark's form: x <- x + alpha*(Block(x) - x), alpha = min(s/(1000*l), 1), s the forward pass from 1 on.

    An evaluation has alpha = 1. State: the stream inside the block (its first add is not scaled), x at the layer's
    start, s.
    """

    PASSES = 1000

    def start(self, p, x0, clock):
        return x0, x0, float("inf") if clock.evaluation else clock.passes

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        stream, x, s = state
        stream = stream + u
        if k % 2:
            return stream, x, s
        x_l = x + min(s / (self.PASSES * self.arch.layer(k)), 1.0) * (stream - x)
        return x_l, x_l, s

    def readout(self, p, state):
        return state[0]
