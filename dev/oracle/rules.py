"""Residual rules by name, what goes with what, and the two companions: ProRes and value residual, on any rule."""

import math

from rule import Rule
from rules_coefficient import LayerScale, LscaleBlock, LscaleInput, LscaleSub, ReZero, SkipInit, Vanilla
from rules_depth import AttnRes, AttnResBlock, AttnResMls, Dwa
from rules_gate import Gpas, Highway, ProResMls, Review
from rules_streams import HyperConnections, ManifoldHyperConnections

PRE_TYPE = ("pre", "sandwich", "peri", "outnorm", "lns")
ALL = (*PRE_TYPE, "post", "deepnorm", "mix", "keel")

# name: class, norm schemes it goes with
RULES = {
    "vanilla": (Vanilla, ALL),
    "rezero": (ReZero, ALL),
    "skipinit": (SkipInit, ALL),
    "layerscale": (LayerScale, ALL),
    "lscale_block": (LscaleBlock, PRE_TYPE),
    "lscale_input": (LscaleInput, PRE_TYPE),
    "lscale_sub": (LscaleSub, ALL),
    "prores_mls": (ProResMls, ("pre",)),
    "gpas": (Gpas, (*PRE_TYPE, "post", "deepnorm", "mix")),
    "hc": (HyperConnections, PRE_TYPE),
    "mhc": (ManifoldHyperConnections, PRE_TYPE),
    "attnres": (AttnRes, PRE_TYPE),
    "attnres_block": (AttnResBlock, PRE_TYPE),
    "attnres_mls": (AttnResMls, PRE_TYPE),
    "review": (Review, (*PRE_TYPE, "post", "mix")),
    "highway": (Highway, PRE_TYPE),
    "dwa": (Dwa, PRE_TYPE),
}


class ProRes:
    """alpha(l,t), the factor of every branch of layer l after t completed updates. No parameters."""

    FIXED = ("fix_L", "fix_sqrtL", "fix_sqrtl")
    STAGED = ("stagewise_0", "stagewise_L", "stagewise_sqrtL", "stagewise_sqrtl")
    GROWING = ("linear", "linear_sqrt", "linear_square", "equal", "reverse")

    def __init__(self, arch, options):
        self.L = arch.layers
        self.schedule = options.choice("schedule", [*self.GROWING, *self.STAGED, *self.FIXED], "linear")
        self.T = None if self.schedule in self.FIXED else options.integer("T", 1000)
        self.eval_one = options.flag("prores_eval_one", 0)

    def factor(self, l, clock):
        return 1.0 if clock.evaluation and self.eval_one else self.alpha(l, clock.updates)

    def alpha(self, l, t):
        L, T, name = self.L, self.T, self.schedule
        if name in self.FIXED:
            return {"fix_L": 1 / L, "fix_sqrtL": 1 / math.sqrt(L), "fix_sqrtl": 1 / math.sqrt(l)}[name]
        if name in self.STAGED:
            floor = {"stagewise_0": 0.0, "stagewise_L": 1 / L, "stagewise_sqrtL": 1 / math.sqrt(L),
                     "stagewise_sqrtl": 1 / math.sqrt(l)}[name]  # fmt: skip
            return floor + (1 - floor) * min(max((t - T * (l - 1)) / T, 0.0), 1.0)
        return min({
            "linear": t / (T * l),
            "linear_sqrt": math.sqrt(t / (T * l)),
            "linear_square": (t / (T * l)) ** 2,
            "equal": t / T,
            "reverse": t / (T * (L - l + 1)),
        }[name], 1.0)  # fmt: skip


class ValueResidual(Rule):
    """Inside the attention of layers l >= 2: v_l <- l1*v_1 + l2*v_l, with (l1, l2) one parameter per layer."""

    def parameters(self):
        return [self.parameter(self.layer_name(l, "vr_lambda"), (2,), 0.5) for l in self.layers() if l > 1]

    def mixer(self, p):
        """A fresh function (layer, v) -> v for one forward pass; it remembers v_1."""
        first = []

        def mix(l, v):
            if l == 1:
                first.append(v)
                return v
            weights = p[self.layer_name(l, "vr_lambda")]
            return weights[0] * first[0] + weights[1] * v

        return mix


def parse_name(name):
    """(rule, with ProRes?, with value residual?) of RULE[+prores][+value]; prores alone is vanilla+prores."""
    base, *companions = name.split("+")
    if base == "prores":
        base, companions = "vanilla", ["prores", *companions]
    if base not in RULES:
        raise SystemExit(f"the oracle has no residual rule '{base}' (it has: prores, {', '.join(RULES)})")
    if companions not in ([], ["prores"], ["value"], ["prores", "value"]):
        raise SystemExit(f"residual '{name}': only +prores and then +value may follow a rule")
    if base == "prores_mls" and "prores" in companions:
        raise SystemExit("prores does not go with prores_mls")
    return base, "prores" in companions, "value" in companions


def rules_named(name, scheme_name, scheme, arch, options):
    """The rule, and its companions or None."""
    base, prores, value = parse_name(name)
    kind, schemes = RULES[base]
    rule = kind(arch, scheme, options)
    if base == "review" and rule.convex or base == "gpas" and rule.place != "after_sublayer":
        schemes = PRE_TYPE
    if scheme_name not in schemes or (base == "gpas" and rule.place == "after_norm" and scheme_name == "outnorm"):
        raise SystemExit(f"residual rule {base} does not go with norm scheme {scheme_name}")
    companions = ProRes(arch, options) if prores else None, ValueResidual(arch, scheme, options) if value else None
    options.refuse_unread(f"{name} with {scheme_name}")
    return rule, *companions
