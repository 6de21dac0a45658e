"""Norm schemes: where the norms stand. A scheme chooses N_in (with its factor c), N_out, N_post and the skip factor a.

    u = N_out( F( c * N_in(z) ) );    x <- N_post( a*x + u )        (the add is the rule's)

A further scheme is a subclass that overrides what differs, and one line in SCHEMES.
"""


class Pre:
    """x <- x + F(N(x)): GPT-2 as it is."""

    def __init__(self, arch, options):
        self.arch = arch
        self.final = options.flag("final_norm", 1)

    # Parameters: (name, initial gain) of every norm.

    def sublayer_norms(self, k):
        return [(self.arch.first_norm(k), 1.0)]

    def norms(self):
        names = [norm for k in range(1, 2 * self.arch.layers + 1) for norm in self.sublayer_norms(k)]
        return names + ([(self.arch.final_norm, 1.0)] if self.final else [])

    def parameters(self):
        return [q for name, gain in self.norms() for q in self.arch.norm_parameters(name, gain)]

    # Forward.

    def embedding(self, p, x):
        return x

    def norm_in(self, p, k, z):
        return self.arch.norm(p, self.arch.first_norm(k), z)

    def norm_out(self, p, k, u):
        return u

    def is_post(self, k):
        """Whether a norm follows the add of sublayer k."""
        return False

    def norm_post(self, p, k, x):
        return x

    def skip(self, k):
        """The factor a."""
        return 1.0

    def norm_final(self, p, x):
        return self.arch.norm(p, self.arch.final_norm, x) if self.final else x


class Sandwich(Pre):
    """x <- x + N_out(F(N_in(x)))."""

    def sublayer_norms(self, k):
        return [(self.arch.first_norm(k), 1.0), (self.arch.second_norm(k), 1.0)]

    def norm_out(self, p, k, u):
        return self.arch.norm(p, self.arch.second_norm(k), u)


class Peri(Sandwich):
    """Sandwich, and a norm on the embedding output."""

    def norms(self):
        return [(self.arch.embedding_norm, 1.0), *super().norms()]

    def embedding(self, p, x):
        return self.arch.norm(p, self.arch.embedding_norm, x)


class OutNorm(Pre):
    """x <- x + N(F(x)): the order of OLMo 2."""

    def sublayer_norms(self, k):
        return [(self.arch.second_norm(k), 1.0)]

    def norm_in(self, p, k, z):
        return z

    def norm_out(self, p, k, u):
        return self.arch.norm(p, self.arch.second_norm(k), u)


class Lns(Pre):
    """x <- x + F(N(x)/sqrt(l)): the factor a constant (lns=forward) or the gains' initial value (lns=gaininit)."""

    def __init__(self, arch, options):
        super().__init__(arch, options)
        self.forward = options.choice("lns", ["forward", "gaininit"], "forward") == "forward"

    def factor(self, k):
        return self.arch.layer(k) ** -0.5

    def sublayer_norms(self, k):
        return [(self.arch.first_norm(k), 1.0 if self.forward else self.factor(k))]

    def norm_in(self, p, k, z):
        n = self.arch.norm(p, self.arch.first_norm(k), z)
        return self.factor(k) * n if self.forward else n


class Post(Pre):
    """x <- N(x + F(x))."""

    def norm_in(self, p, k, z):
        return z

    def is_post(self, k):
        return True

    def norm_post(self, p, k, x):
        return self.arch.norm(p, self.arch.first_norm(k), x)


class DeepNorm(Post):
    """x <- N(alpha_dn*x + F(x)), alpha_dn = (2L)^(1/4)."""

    def __init__(self, arch, options):
        super().__init__(arch, options)
        options.flag("deepnorm_init", 1)  # of the weights a run starts from; nothing to do here

    def skip(self, k):
        return (2 * self.arch.layers) ** 0.25


class Keel(Pre):
    """x <- N_post(alpha_k*x + F(N_in(x))), alpha_k = 2L."""

    def sublayer_norms(self, k):
        return [(self.arch.first_norm(k), 1.0), (self.arch.second_norm(k), 1.0)]

    def is_post(self, k):
        return True

    def norm_post(self, p, k, x):
        return self.arch.norm(p, self.arch.second_norm(k), x)

    def skip(self, k):
        return 2.0 * self.arch.layers


class Mix(Pre):
    """Post for the layers l <= floor(L/4), pre above."""

    def is_post(self, k):
        return self.arch.layer(k) <= self.arch.layers // 4

    def norm_in(self, p, k, z):
        return z if self.is_post(k) else super().norm_in(p, k, z)

    def norm_post(self, p, k, x):
        return self.arch.norm(p, self.arch.first_norm(k), x) if self.is_post(k) else x


SCHEMES = {"pre": Pre, "post": Post, "sandwich": Sandwich, "peri": Peri, "deepnorm": DeepNorm, "mix": Mix, "lns": Lns,
           "keel": Keel, "outnorm": OutNorm}  # fmt: skip


def scheme_named(name, arch, options):
    if name not in SCHEMES:
        raise SystemExit(f"the oracle has no norm scheme '{name}' (it has: {', '.join(SCHEMES)})")
    return SCHEMES[name](arch, options)
