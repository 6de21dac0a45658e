#!/usr/bin/env python3
"""Checks that the oracle has the properties which the specification says every implementation must have.

    python3 dev/oracle/invariants.py        one line each; exit code 1 when one does not hold

Numbers are those of the specification's list. Float64, small models with every shared parameter away from its start.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

import recipe
from model import Clock, Network
from rule import rms0
from rules_streams import sinkhorn

LAYERS, CHANNELS, VOCAB, T = 4, 8, 11, 5
DONE = Clock(updates=10**9, passes=10**9)
failures = []


def config(residual="vanilla", scheme="pre", **options):
    return {"model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 6, "n_embd": CHANNELS, "n_layer": LAYERS,
            "n_head": 2, "layer_norm_epsilon": 1e-5, "norm_scheme": scheme, "residual": residual,
            "residual_options": options}  # fmt: skip


class Run:
    """A network with recipe weights, forward and backward on one batch. `set`: {end of a name: value}."""

    def __init__(self, settings, set={}, clock=Clock(), micro=1, initial=()):
        self.network = Network(settings)
        self.p = {}
        for name, q in self.network.parameters().items():
            value = recipe.weight(q).astype("f8")
            if name.rpartition(".")[2] in initial:
                value = q.initial()
            for end, fixed in set.items():
                if name.endswith(end):
                    value = np.broadcast_to(np.asarray(fixed, "f8"), q.shape)
            self.p[name] = torch.tensor(np.array(value), requires_grad=True)
        stream = torch.from_numpy(recipe.tokens(4 * T + 1, VOCAB))
        self.tokens, self.targets = stream[:-1].view(4, T), stream[1:].view(4, T)
        self.states, self.ends = [], []
        self.network.observe = lambda k, state: self.states.append(state)
        self.logits = self.network.logits(self.p, self.tokens, clock)
        for x, y in zip(self.tokens.chunk(micro), self.targets.chunk(micro), strict=True):
            (self.network.loss(self.p, x, y, clock) / micro).backward()
        self.states = self.states[: 2 * LAYERS]

    def grad(self, name):
        g = self.p[name].grad
        return torch.zeros_like(self.p[name]) if g is None else g


def difference(a, b):
    """Largest difference of logits and of the gradients of all shared parameters."""
    out = (a.logits - b.logits).abs().max().item()
    for name in set(a.p) & set(b.p):
        out = max(out, (a.grad(name) - b.grad(name)).abs().max().item())
    return out


def report(number, what, value, bound, above=False):
    holds = value > bound if above else value <= bound
    print(f"{number:3} {what:88} {value:8.1e} {'>' if above else '<='} {bound:.0e}{'' if holds else '  FAILED'}")
    if not holds:
        failures.append(what)


def same_as_vanilla():
    cases = [
        ("prores, alpha 1", "prores", {}, {}),
        ("gpas, alpha 0", "gpas", {}, {"gpas_gate": 0}),
        ("rezero, 1", "rezero", {}, {"res_weight": 1}),
        ("skipinit, 1", "skipinit", {}, {"skip_alpha": 1}),
        ("layerscale, 1", "layerscale", {}, {"ls_gamma": 1}),
        ("lscale_block, (1,0)", "lscale_block", {}, {"resid_lambda": 1, "x0_lambda": 0}),
        ("lscale_input, (1,0), x0_norm 0", "lscale_input", {"x0_norm": 0}, {"resid_lambda": 1, "x0_lambda": 0}),
        ("lscale_sub, (1,1,0)", "lscale_sub", {"x0": 1}, {"resid_lambda": 1, "post_lambda": 1, "x0_lambda": 0}),
        ("value residual, (0,1)", "vanilla+value", {}, {"vr_lambda": [0, 1]}),
        ("prores_mls, alpha 1", "prores_mls", {}, {}),
    ]
    for what, rule, options, values in cases:
        worst = 0.0
        schemes = ["pre", "sandwich", "lns", "peri", "outnorm", "post", "deepnorm", "mix", "keel"]
        if rule == "prores_mls":
            schemes = schemes[:1]
        elif rule in ("lscale_block", "lscale_input"):
            schemes = schemes[:5]
        elif rule == "gpas":
            schemes = schemes[:8]
        for scheme in schemes:
            vanilla = Run(config(scheme=scheme))
            worst = max(worst, difference(vanilla, Run(config(rule, scheme, **options), values, DONE)))
        report(1, f"{what} = vanilla ({len(schemes)} schemes): logits, shared gradients", worst, 1e-14)
    worst = max(difference(Run(config(scheme=s)), Run(config("dwa", s), initial=["dwa_alpha"]))
                for s in ("pre", "sandwich", "lns"))  # fmt: skip
    report(1, "dwa at its start = vanilla (3 schemes): logits, shared gradients", worst, 1e-14)


def gpas_gate_gradient():
    run = Run(config("gpas"), {"gpas_gate": 0})
    for state in run.states:
        state.retain_grad()
    F.cross_entropy(run.logits.flatten(0, 1), run.targets.flatten()).backward()
    worst = 0.0
    for l in range(1, LAYERS + 1):
        attention, mlp = run.states[2 * l - 2], run.states[2 * l - 1]  # x_new, which is x' here
        want = -0.5 * ((attention.grad * attention).sum() + (mlp.grad * mlp).sum()).item()
        worst = max(worst, abs(run.grad(f"h.{l - 1}.residual.gpas_gate").item() / 2 - want))
    report(2, "gpas, alpha 0: dalpha = -0.5 * (<<dx_new, x'>> of both sublayers)", worst, 1e-14)


def prores_zero():
    worst, branch = 0.0, 0.0
    for scheme in ("pre", "sandwich", "lns"):
        run = Run(config("prores", scheme), clock=Clock(updates=0))
        network, p = run.network, run.p
        alone = network.arch.head(p, network.scheme.norm_final(p, network.arch.embed(p, run.tokens)))
        worst = max(worst, (run.logits - alone).abs().max().item())
        branch = max([branch] + [run.grad(n).abs().max().item() for n in p if n.startswith("h.")])
    report(3, "prores, alpha 0: logits = head(N_f(x_0))", worst, 0.0)
    report(3, "prores, alpha 0: every gradient in the blocks is exactly zero", branch, 0.0)


def hc_start():
    vanilla = Run(config())
    start = ["hc_alpha", "hc_beta", "hc_wa", "hc_wb", "hc_sa", "hc_sb", "hc_norm"]
    for what, options in [("dynamic", {}), ("static", {"dynamic": 0})]:
        mean = Run(config("hc", readout="mean", **options), initial=start)
        streams = max((H[..., i, :] - x).abs().max().item()
                      for (H, _, _), x in zip(mean.states, vanilla.states, strict=True) for i in range(4))  # fmt: skip
        report(4, f"hc {what} at its start: every stream is the vanilla stream", streams, 1e-14)
        report(4, f"hc {what} at its start, mean read-out: logits", (mean.logits - vanilla.logits).abs().max().item(),
               1e-13)  # fmt: skip
        total = Run(config("hc", **options), initial=start)
        report(4, f"hc {what} at its start, sum read-out: logits up to the final norm's epsilon",
               (total.logits - vanilla.logits).abs().max().item(), 1e-3)  # fmt: skip
    one = Run(config("hc", n=1, dynamic=0), {"hc_alpha": 1, "hc_beta": 1})
    report(4, "hc static, n 1, ones = vanilla: logits, shared gradients", difference(vanilla, one), 1e-14)
    e0 = Run(config("hc", preset="hc_e0"), initial=start)
    report(4, "hc preset hc_e0 at its start = vanilla: logits, shared gradients", difference(vanilla, e0), 1e-13)


def mhc_mixing():
    generator = torch.Generator().manual_seed(1)
    unit = torch.randn(1000, 4, 4, generator=generator, dtype=torch.float64)
    for std in (1, 4):
        M = sinkhorn(std * unit, 1e-6)
        report(5, f"sinkhorn, logits of deviation {std}: smallest entry", M.min().item(), 0.0, above=True)
        report(5, f"sinkhorn, logits of deviation {std}: row sums", (M.sum(-1) - 1).abs().max().item(), 2e-6)
        if std == 1:
            report(5, "sinkhorn, logits of deviation 1: column sums", (M.sum(-2) - 1).abs().max().item(), 1e-3)
    start = ["mhc_phi", "mhc_a", "mhc_b"]
    run, vanilla = Run(config("mhc"), initial=start), Run(config())
    H = run.states[0][0]
    M = run.network.rule.weights(run.p, 1, H)[2]
    diagonal = torch.eye(4, dtype=torch.bool)
    report(5, "mhc at its start: diagonal 0.99899", (M[..., diagonal] - 0.99899).abs().max().item(), 5e-6)
    report(5, "mhc at its start: off-diagonal 3.36e-4", (M[..., ~diagonal] - 3.36e-4).abs().max().item(), 5e-7)
    streams = max((H[..., i, :] - x).abs().max().item()
                  for (H, _), x in zip(run.states, vanilla.states, strict=True) for i in range(4))  # fmt: skip
    scale = max(x.abs().max().item() for x in vanilla.states)
    # N_in removes the read weights (here up to 1.5, all streams together) only up to its epsilon
    report(5, "mhc at its start: streams against vanilla's, of their size", streams / scale, 1e-3)
    exact = dict(layer_norm_epsilon=1e-14)
    run = Run({**config("mhc"), **exact}, initial=start)
    vanilla = Run({**config(), **exact})
    streams = max((H[..., i, :] - x).abs().max().item()
                  for (H, _), x in zip(run.states, vanilla.states, strict=True) for i in range(4))  # fmt: skip
    report(5, "  the same with a tiny norm epsilon: 1e-6 per sublayer", streams / scale, 2e-6 * 2 * LAYERS)
    for what, b_pre, apart in [("equal b_pre", [0.3] * 4, False), ("one-hot b_pre", [1, -1, -1, -1], True)]:
        spread = mhc_spread(b_pre)
        if apart:
            report(5, f"mhc, {what}: streams drift apart in a few updates", spread, 1e-5, above=True)
        else:
            report(5, f"mhc, {what}: streams stay equal over a few updates", spread, 1e-12)


def mhc_spread(b_pre, updates=4):
    """Largest distance between streams after a few steps of gradient descent from the start."""
    b = np.concatenate([b_pre, np.zeros(4), np.where(np.eye(4) == 1, 0.0, -8.0).ravel()])
    run = Run(config("mhc"), {"mhc_b": b}, initial=["mhc_phi", "mhc_a"])
    for _ in range(updates):
        for value in run.p.values():
            value.grad = None
        run.network.loss(run.p, run.tokens, run.targets).backward()
        with torch.no_grad():
            for value in run.p.values():
                value -= 0.05 * value.grad
    states = []
    run.network.observe = lambda k, state: states.append(state[0])
    run.network.logits(run.p, run.tokens)
    return max((H - H[..., :1, :]).abs().max().item() for H in states)


def attnres_sources():
    uniform = Run(config("attnres"), {"ar_query": 0})
    network, p = uniform.network, uniform.p
    sources = uniform.states[-1]
    worst = max((network.rule.read(p, k, sources[:k]) - sum(sources[:k]) / k).abs().max().item()
                for k in range(1, 2 * LAYERS + 1))  # fmt: skip
    report(6, "attnres, queries 0: z is the mean of the sources", worst, 1e-14)
    run = Run(config("attnres"))
    first = run.network.rule.read(run.p, 1, run.states[0][:1])
    report(6, "attnres: z_1 = x_0", (first - run.states[0][0]).abs().max().item(), 0.0)
    ends = ("h.0.residual_attn.ar_query", "h.0.residual_attn.ar_gain")
    report(6, "attnres: no gradient for the first query and gain",
           max(run.grad(name).abs().max().item() for name in ends), 1e-15)  # fmt: skip
    block = Run(config("attnres_block", block_size=1))
    report(6, "attnres_block, S 1 = attnres: logits, all gradients", difference(run, block), 1e-14)
    v = torch.stack(run.states[-1])
    name = "residual.final_ar_"
    q, gain = run.p[name + "query"], run.p[name + "gain"]
    for factor in (1.0, 3.0):
        logits = (rms0(v, 1e-6) * q * gain).sum(-1) * factor
        want = (torch.softmax(logits, 0)[..., None] * v).sum(0)
        got = run.network.rule.readout({name + "query": factor * q, name + "gain": gain}, list(v))
        report(6, f"attnres: query times {factor:.0f} scales the logits and nothing else",
               (got - want).abs().max().item(), 1e-14)  # fmt: skip


def review_limits():
    for scheme in ("pre", "sandwich", "post", "mix"):
        vanilla = Run(config(scheme=scheme))
        full = Run(config("review", scheme), {"rv_w": 0, "rv_b": 40})
        report(8, f"review, W 0, b 40 = vanilla ({scheme}): logits, shared gradients", difference(vanilla, full), 1e-14)
        half = Run(config("review", scheme), {"rv_w": 0, "rv_b": 0})
        fixed = Run(config("skipinit", scheme), {"skip_alpha": 0.5})
        report(8, f"review, W 0, b 0 = x + u/2 ({scheme}): logits, shared gradients", difference(fixed, half), 1e-14)
    smallest = min(g.abs().max().item() for g in (half.grad(n) for n in half.p if n.endswith("rv_w")))
    report(8, "review at its start: every gradient of W is there", smallest, 1e-8, above=True)


def attnres_mls_means():
    for size in (1, 2, 3):
        run = Run(config("attnres_mls", block_size=size), {"attnres_queries": 0, "attnres_query_out": 0})
        network, p, sources = run.network, run.p, run.states[-1][1]
        starts = [network.rule.before(p, 2 * size * b + 1, (None if b else sources[0], sources[: b + 1]))[0]
                  for b in range(network.rule.count)]  # fmt: skip
        worst = max((z - sum(sources[: b + 1]) / (b + 1)).abs().max().item() for b, z in enumerate(starts))
        report(9, f"attnres_mls, q 0, blocks of {size}: inputs are means of the sources", worst, 1e-14)
        report(9, f"attnres_mls, blocks of {size}: the first block reads x_0",
               (starts[0] - network.arch.embed(p, run.tokens)).abs().max().item(), 0.0)  # fmt: skip


def micro_batches():
    rules = ["vanilla", "rezero", "layerscale", "lscale_block", "lscale_input", "lscale_sub", "prores", "gpas", "hc",
             "mhc", "attnres", "attnres_block", "attnres_mls", "review", "highway", "dwa", "vanilla+value",
             "hc+prores+value"]  # fmt: skip
    worst = 0.0
    for rule in rules:
        clock = Clock(updates=700)
        whole = Run(config(rule), clock=clock)
        for micro in (2, 4):
            worst = max(worst, difference(whole, Run(config(rule), clock=clock, micro=micro)))
    report(10, f"G micro-batches give the gradients of one batch ({len(rules)} rules)", worst, 1e-14)


def main():
    torch.set_num_threads(1)
    same_as_vanilla()
    gpas_gate_gradient()
    prores_zero()
    hc_start()
    mhc_mixing()
    attnres_sources()
    review_limits()
    attnres_mls_means()
    micro_batches()
    if failures:
        print(f"{len(failures)} invariants do not hold", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
