"""Rules with coefficients on the branch, the skip and x_0: vanilla, ReZero, SkipInit, LayerScale, learned scaling."""

import math

from rule import Rule, rms0


class Vanilla(Rule):
    """x <- N_post(a*x + u)."""

    def write(self, p, k, x, u, alpha):
        return self.scheme.norm_post(p, k, self.scheme.skip(k) * x + alpha * u)


class BranchCoefficient(Rule):
    """x <- N_post(a*x + s*u); a subclass says what s is."""

    def write(self, p, k, x, u, alpha):
        return self.scheme.norm_post(p, k, self.scheme.skip(k) * x + self.coefficient(p, k) * (alpha * u))


class ReZero(BranchCoefficient):
    """s: a scalar per layer, shared by its two sublayers."""

    def parameters(self):
        return [self.parameter(self.layer_name(l, "res_weight"), (1,), 0.0) for l in self.layers()]

    def coefficient(self, p, k):
        return p[self.layer_name(self.arch.layer(k), "res_weight")]


class SkipInit(BranchCoefficient):
    """s: a scalar per sublayer."""

    def parameters(self):
        return [self.parameter(self.sub_name(k, "skip_alpha"), (1,), 0.0) for k in self.sublayers()]

    def coefficient(self, p, k):
        return p[self.sub_name(k, "skip_alpha")]


class LayerScale(BranchCoefficient):
    """s: a vector [C] per sublayer, starting the smaller the deeper the network."""

    def parameters(self):
        L = self.arch.layers
        init = 0.1 if L <= 18 else 1e-5 if L <= 24 else 1e-6
        return [self.parameter(self.sub_name(k, "ls_gamma"), (self.arch.channels,), init) for k in self.sublayers()]

    def coefficient(self, p, k):
        return p[self.sub_name(k, "ls_gamma")]


class LscaleBlock(Rule):
    """Learned scaling per layer, the layer reading the unscaled x:

        m = x + u_att(x);  v = u_mlp(m);  x_l = m + v + (lambda-1)*x + mu*x_0

    State: the stream, x at the layer's start, x_0.
    """

    def setup(self, options):
        self.freeze = options.choice("freeze", ["none", "lambda", "mu"], "none")

    def parameters(self):
        out = []
        for l in self.layers():
            out.append(self.parameter(self.layer_name(l, "resid_lambda"), (1,), 1.0, frozen=self.freeze == "lambda"))
            out.append(self.parameter(self.layer_name(l, "x0_lambda"), (1,), 0.0, frozen=self.freeze == "mu"))
        return out

    def start(self, p, x0, clock):
        return x0, x0, x0

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        stream, x, x0 = state
        stream = stream + alpha * u
        if k % 2:
            return stream, x, x0
        lam = p[self.layer_name(k // 2, "resid_lambda")]
        mu = p[self.layer_name(k // 2, "x0_lambda")]
        x_l = stream + (lam - 1) * x + mu * x0
        return x_l, x_l, x0

    def readout(self, p, state):
        return state[0]


class LscaleInput(Rule):
    """Learned scaling per layer, the layer reading the scaled stream; state: the stream, x_0.

        z = lambda*x + mu*x_0;  x_l = z + u_att(z), then + u_mlp        x_0 = RMS0(embedding), the stream's start too
    """

    EPS = 1e-6

    def setup(self, options):
        self.freeze = options.choice("freeze", ["none", "lambda", "mu"], "none")
        self.x0_norm = options.flag("x0_norm", 1)
        self.preset = options.choice("preset", ["none", "modded", "nanochat", "nanochat2"], "none")

    def parameters(self):
        out = []
        for l in self.layers():
            depth = (l - 1) / max(self.arch.layers - 1, 1)
            lam, mu, lam_how, mu_how = {
                "none": (1.0, 0.0, {}, {}),
                "modded": (1.0, 0.0, {"lr": 0.02}, {"lr": 0.02}),
                "nanochat": (1.0, 0.1, {"lr": 0.005}, {"lr": 0.5}),
                "nanochat2": (1.15 - 0.10 * depth, 0.20 - 0.15 * depth,
                              {"lr": 0.005, "betas": (0.8, 0.95), "weight_decay": 0.05},
                              {"lr": 0.5, "betas": (0.96, 0.95)}),
            }[self.preset]  # fmt: skip
            frozen_lam, frozen_mu = self.freeze == "lambda", self.freeze == "mu"
            out.append(self.parameter(self.layer_name(l, "resid_lambda"), (1,), lam, frozen=frozen_lam, **lam_how))
            out.append(self.parameter(self.layer_name(l, "x0_lambda"), (1,), mu, frozen=frozen_mu, **mu_how))
        return out

    def start(self, p, x0, clock):
        x0 = rms0(x0, self.EPS) if self.x0_norm else x0
        return x0, x0

    def before(self, p, k, state):
        x, x0 = state
        if k % 2 == 0:
            return x, x0
        l = self.arch.layer(k)
        return p[self.layer_name(l, "resid_lambda")] * x + p[self.layer_name(l, "x0_lambda")] * x0, x0

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        x, x0 = state
        return x + alpha * u, x0

    def readout(self, p, state):
        return state[0]


class LscaleSub(Rule):
    """x <- N_post(a*rho*x + pi*u + mu*x_0), the last term in attention sublayers with x0=1 only; state: x, x_0."""

    EPS = 1e-6

    def setup(self, options):
        self.x0 = options.flag("x0", 0)
        self.x0_norm = self.x0 and options.flag("x0_norm", 0)
        self.freeze = options.choice("freeze", ["none", "rho", "pi"] + ["mu"] * self.x0, "none")
        self.modded = options.choice("preset", ["none", "modded"], "none") == "modded"

    def parameters(self):
        rho = {"init": math.sqrt(1.1), "lr_times": 5.0, "betas": (0.9, 0.95)} if self.modded else {"init": 1.0}
        pi = {"init": 1.0, "betas": (0.9, 0.95)} if self.modded else {"init": 1.0}
        out = []
        for k in self.sublayers():
            if k % 2 and self.x0:
                name = self.layer_name(self.arch.layer(k), "x0_lambda")
                out.append(self.parameter(name, (1,), 0.0, frozen=self.freeze == "mu"))
            out.append(self.parameter(self.sub_name(k, "resid_lambda"), (1,), frozen=self.freeze == "rho", **rho))
            out.append(self.parameter(self.sub_name(k, "post_lambda"), (1,), frozen=self.freeze == "pi", **pi))
        return out

    def start(self, p, x0, clock):
        x0 = rms0(x0, self.EPS) if self.x0_norm else x0
        return x0, x0

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        x, x0 = state
        rho, pi = p[self.sub_name(k, "resid_lambda")], p[self.sub_name(k, "post_lambda")]
        y = self.scheme.skip(k) * rho * x + pi * (alpha * u)
        if k % 2 and self.x0:
            y = y + p[self.layer_name(self.arch.layer(k), "x0_lambda")] * x0
        return self.scheme.norm_post(p, k, y), x0

    def readout(self, p, state):
        return state[0]
