"""Rules that look back at earlier depths: Attention Residuals (full, block, the benchmark's), DenseFormer's DWA."""

import numpy as np

from rule import Rule, depth_attention


class AttnRes(Rule):
    """Attention over all earlier outputs: v_0 = x_0, v_k = u_k, z_k = DA(w_k, gain_k; v_0..v_{k-1}).

    No stream besides them; the read-out is a further DA over all. State: the list of sources.
    """

    EPS = 1e-6

    def parameters(self):
        C = self.arch.channels
        names = [self.sub_name(k, "ar_") for k in self.sublayers()] + ["residual.final_ar_"]
        return [q for name in names for q in (self.parameter(name + "query", (C,), 0.0),
                                              self.parameter(name + "gain", (C,), 1.0))]  # fmt: skip

    def attend(self, p, name, sources):
        return depth_attention(p[name + "query"], p[name + "gain"], sources, self.EPS)

    def start(self, p, x0, clock):
        return [x0]

    def read(self, p, k, sources):
        return self.attend(p, self.sub_name(k, "ar_"), sources)

    def write(self, p, k, sources, u, alpha):
        return [*sources, alpha * u]

    def readout(self, p, sources):
        return self.attend(p, "residual.final_ar_", sources)


class AttnResBlock(AttnRes):
    """Sources are x_0 and the summed outputs of finished blocks of S sublayers, and the sum so far of the present one.

    State: finished sources, and that sum (None at a block's start).
    """

    def setup(self, options):
        sublayers = 2 * self.arch.layers
        if options.has("block_size") and options.has("blocks"):
            raise SystemExit("attnres_block takes blocks or block_size, not both")
        if options.has("block_size"):
            self.size = options.integer("block_size", None)
        else:
            self.size = -(-sublayers // options.integer("blocks", 8))

    def start(self, p, x0, clock):
        return [x0], None

    def read(self, p, k, state):
        blocks, partial = state
        return super().read(p, k, blocks if partial is None else [*blocks, partial])

    def write(self, p, k, state, u, alpha):
        blocks, partial = state
        partial = alpha * u if partial is None else partial + alpha * u
        if k % self.size == 0 or k == 2 * self.arch.layers:
            return [*blocks, partial], None
        return blocks, partial

    def readout(self, p, state):
        return super().readout(p, state[0])


class AttnResMls(Rule):
    """The benchmark's form: ordinary layers in blocks; sources are x_0 and the whole stream after every block.

    Blocks 2, 3, .. start from DA over all sources so far, the read-out is a further DA. State: the stream, the sources.
    """

    EPS = 2.0**-23  # fp32's machine epsilon, in every precision

    def setup(self, options):
        L = self.arch.layers
        if options.has("blocks") and options.has("block_size"):
            raise SystemExit("attnres_mls takes blocks or block_size, not both")
        self.size = -(-L // options.integer("blocks", 1)) if options.has("blocks") else options.integer("block_size", 4)
        self.count = -(-L // self.size)

    def parameters(self):
        C, out = self.arch.channels, []
        if self.count > 1:
            out.append(self.parameter("residual.attnres_queries", (self.count - 1, C), 0.0))
        return [*out, self.parameter("residual.attnres_query_out", (C,), 0.0)]

    def start(self, p, x0, clock):
        return x0, [x0]

    def before(self, p, k, state):
        x, sources = state
        block, layer_in_block = divmod(self.arch.layer(k) - 1, self.size)
        if k % 2 and layer_in_block == 0 and block > 0:
            x = depth_attention(p["residual.attnres_queries"][block - 1], 1.0, sources, self.EPS)
        return x, sources

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        x, sources = state
        x = x + alpha * u
        l = self.arch.layer(k)
        block_ends = k % 2 == 0 and (l % self.size == 0 or l == self.arch.layers)
        return x, [*sources, x] if block_ends else sources

    def readout(self, p, state):
        return depth_attention(p["residual.attnres_query_out"], 1.0, state[1], self.EPS)


class Dwa(Rule):
    """DenseFormer: X_i = Block_i(Y_{i-1});  Y_i = SUM_j alpha_{i,j}*X_j, j = i, i-D, ..; every `period`-th layer only.

    State: the stream, X_0..X_i.
    """

    def setup(self, options):
        self.dilation, self.period = options.integer("dilation", 1), options.integer("period", 1)
        self.decays = options.flag("decay_alpha", 0)

    def parameters(self):
        return [self.parameter(self.layer_name(i, "dwa_alpha"), (i + 1,), np.eye(i + 1)[i], decays=self.decays)
                for i in self.layers() if i % self.period == 0]  # fmt: skip

    def start(self, p, x0, clock):
        return x0, [x0]

    def read(self, p, k, state):
        return state[0]

    def write(self, p, k, state, u, alpha):
        y, X = state
        y = y + alpha * u
        if k % 2:
            return y, X
        i, X = k // 2, [*X, y]
        if i % self.period:
            return y, X
        weights = p[self.layer_name(i, "dwa_alpha")]
        return sum(weights[j] * X[j] for j in range(i + 1) if (i - j) % self.dilation == 0), X

    def readout(self, p, state):
        return state[0]
