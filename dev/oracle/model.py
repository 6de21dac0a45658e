"""The network in float64 PyTorch: one frame, into which architectures, norm schemes and residual rules are put.

    z_k = READ_k(state)
    u_k = BRANCH_k(z_k) = N_out( F_k( c_k * N_in(z_k) ) )
    state = WRITE_k(state, u_k)            and N_post where the scheme has one
    logits = head( N_f( READOUT(state) ) )

Everything is a plain function of a dictionary of parameters under their names in the checkpoint, so that gradients
come from automatic differentiation and nothing here has to know a backward formula.
"""

from collections import namedtuple

import torch.nn.functional as F

from architectures import architecture
from parameters import Options
from rules import rules_named
from schemes import scheme_named

# What schedules count: completed updates; and forward passes of training, the present one included. Some look at
# whether this is an evaluation.
Clock = namedtuple("Clock", ["updates", "passes", "evaluation"], defaults=[0, 1, False])


class Network:
    def __init__(self, config):
        self.arch = architecture(config)
        options, name = Options(config.get("residual_options", {})), config.get("norm_scheme", "pre")
        self.scheme = scheme_named(name, self.arch, options)
        self.rule, self.prores, self.value = rules_named(
            config.get("residual", "vanilla"), name, self.scheme, self.arch, options
        )

    def parameters(self):
        """{name: Parameter} of everything in the checkpoint."""
        parts = [self.arch, self.scheme, self.rule, *([self.value] if self.value else [])]
        return {q.name: q for part in parts for q in part.parameters()}

    def readout(self, p, tokens, clock=Clock()):
        """What the final norm sees."""
        arch, scheme, rule = self.arch, self.scheme, self.rule
        values = self.value.mixer(p) if self.value else lambda layer, v: v
        state = rule.start(p, scheme.embedding(p, arch.embed(p, tokens)), clock)
        for k in range(1, 2 * arch.layers + 1):
            alpha = self.prores.factor(arch.layer(k), clock) if self.prores else 1.0
            state = rule.before(p, k, state)
            z = rule.after_norm(p, k, scheme.norm_in(p, k, rule.read(p, k, state)))
            state = self.branch(p, k, state, z, values, alpha)
            self.observe(k, state)
        return rule.readout(p, state)

    def branch(self, p, k, state, z, values, alpha):
        u = self.scheme.norm_out(p, k, self.arch.sublayer(p, k, z, values))
        return self.rule.write(p, k, state, u, alpha)

    def weights_changed(self, p):
        """What follows from weights that are new: before the first pass, and behind every update."""

    def observe(self, k, state):
        """For checks: sees the state after every sublayer."""

    def logits(self, p, tokens, clock=Clock()):
        return self.arch.head(p, self.scheme.norm_final(p, self.readout(p, tokens, clock)))

    def loss(self, p, tokens, targets, clock=Clock()):
        logits = self.logits(p, tokens, clock)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
