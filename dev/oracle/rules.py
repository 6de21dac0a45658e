"""Residual rules: what the stream is and how a sublayer's output gets into it.

`state` is whatever a rule needs to carry between sublayers: one tensor here, several streams or a list of earlier
outputs elsewhere. A further rule is a class and one line in RULES.
"""


class Vanilla:
    """READ: x.  WRITE: x <- N_post(a*x + u).  READOUT: x."""

    def __init__(self, options, arch):
        if options:
            raise SystemExit(f"vanilla reads no residual option, got {', '.join(options)}")

    def start(self, p, x0):
        return x0

    def read(self, p, k, x, t):
        return x

    def write(self, p, k, x, u, scheme, t):
        return scheme.norm_post(p, k, scheme.skip(k) * x + u)

    def readout(self, p, x):
        return x


RULES = {"vanilla": Vanilla}


def rule_named(name, options, arch):
    if name not in RULES:
        raise SystemExit(f"the oracle has no residual rule '{name}' (it has: {', '.join(RULES)})")
    return RULES[name](options, arch)
