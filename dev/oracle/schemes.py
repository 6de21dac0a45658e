"""Norm schemes: where the norms stand. A scheme chooses N_in (with its factor c), N_out, N_post and the skip factor a.

A further scheme is a subclass that overrides what differs, and one line in SCHEMES.
"""


class Pre:
    """x <- x + F(N(x)): GPT-2 as it is."""

    def __init__(self, arch):
        self.arch = arch

    def embedding(self, p, x):
        return x

    def norm_in(self, p, k, z):
        return self.arch.norm(p, self.arch.first_norm(k), z)

    def norm_out(self, p, k, u):
        return u

    def norm_post(self, p, k, x):
        return x

    def skip(self, k):
        return 1.0


SCHEMES = {"pre": Pre}


def scheme_named(name, arch):
    if name not in SCHEMES:
        raise SystemExit(f"the oracle has no norm scheme '{name}' (it has: {', '.join(SCHEMES)})")
    return SCHEMES[name](arch)
