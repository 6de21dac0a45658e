"""The network with the layers' linear maps in 8 bits: inputs and weights in e4m3, output gradients in e5m2, one
power-of-two scale per tensor, taken from what earlier updates saw (kernels/fp8.cuh, README.md on --fp8).

A tensor is rounded to float32 and then onto the grid of its format, to nearest, ties to even, the largest number where
it is beyond; everything else is arithmetic in the network's own precision. The backward pass is written out:

    y = s (x8 w8 + b)      dx = s dy8 w8^T      dw = s x8^T dy8      db = s sum dy      ds = <x8^T dy8, w> + <b, sum dy>

x8, w8, dy8 are rounded values, dy the gradient without s; s is the scalar that a residual rule puts on a branch (only
on maps that end one: 1 elsewhere). A product of 8-bit operands never contains s, and the gradient of s is what follows
from the weight's (residual/branch_scale.cuh), so that it has the weight itself where exact calculus has w8.
"""

from collections import namedtuple

import numpy as np
import torch

from model import Network
from rules_coefficient import BranchCoefficient, LayerScale, Vanilla

HISTORY = 16

Format = namedtuple("Format", ["name", "mantissa", "least_exponent", "largest"])
E4M3 = Format("e4m3", 3, -6, 448.0)
E5M2 = Format("e5m2", 2, -14, 57344.0)


def spacing(x, form):
    """Distance of neighbouring numbers of a format around x; below the smallest normal number it stays the same."""
    _, exponent = torch.frexp(x)  # |x| = f 2^exponent, f in [0.5, 1)
    exponent = torch.clamp(exponent - 1, min=form.least_exponent) - form.mantissa
    return torch.ldexp(torch.ones_like(x), exponent)


def to_grid(x, form):
    """float64 rounded to a number of the format."""
    step = spacing(x, form)
    return torch.clamp(torch.round(x / step) * step, -form.largest, form.largest)


def margin(x, form):
    """The smallest distance of a number from the middle between two neighbours, where roundings part, in 2^-24 of the
    root mean square of its row. Not counted: saturated numbers, and small ones, whose neighbours are 1/200 of that
    apart or less."""
    rms = (x**2).mean(-1, keepdim=True).sqrt() + 1e-300
    step = spacing(x, form)
    place = (x / step).abs()
    distance = (place - place.floor() - 0.5).abs() * step / rms
    counts = (x.abs() < form.largest) & (step > rms / 200)
    return float(distance[counts].min()) * 2.0**24 if counts.any() else np.inf


def power_of_two_scale(amax, largest):
    """The largest power of two with amax times it at most `largest`, no more than 2^126."""
    _, exponent = np.frexp(np.float32(largest) / np.float32(amax))
    return 2.0 ** min(int(exponent) - 1, 126)


class Slot:
    """One tensor's scaling."""

    def __init__(self, form):
        self.form, self.scale, self.amax, self.history = form, 0.0, 0.0, [0.0] * HISTORY
        self.values = self.saturated = 0
        self.margin = np.inf  # the smallest of all

    def set_scale(self, amax):
        if amax > 0:
            self.scale = power_of_two_scale(amax, self.form.largest)
        elif self.scale == 0:
            self.scale = 1.0

    def calibrate(self, x):
        self.set_scale(float(x.detach().float().abs().max()))

    def quantize(self, x):
        """What 8 bits hold of x, as numbers of x's size."""
        narrow = x.detach().float().double()
        self.amax = max(self.amax, float(narrow.abs().max()))
        scaled = narrow * self.scale
        self.watch(scaled)
        return (to_grid(scaled, self.form) / self.scale).to(x.dtype)

    def update(self):
        self.history = [self.amax, *self.history[:-1]]
        self.amax = 0.0
        self.set_scale(max(self.history))

    def watch(self, scaled):
        self.values += scaled.numel()
        self.saturated += int((scaled.abs() > self.form.largest).sum())
        self.margin = min(self.margin, margin(scaled, self.form))


class Untouched(Slot):
    """For checks: 8 bits that hold everything."""

    def quantize(self, x):
        return x.detach()


class Map(torch.autograd.Function):
    """s (x w + b) with x and w in 8 bits. `rounded`: w in 8 bits; slots: of x and of the output's gradient."""

    @staticmethod
    def forward(ctx, x, w, b, s, rounded, slots, calibrating):
        inp, ctx.slot = slots
        ctx.calibrating = calibrating
        if calibrating:
            inp.calibrate(x)
        x8 = inp.quantize(x)
        ctx.save_for_backward(x8, rounded, w, b, s)
        y = x8 @ rounded
        return s * (y if b is None else y + b)

    @staticmethod
    def backward(ctx, dy):
        x8, w8, w, b, s = ctx.saved_tensors
        if ctx.calibrating:
            ctx.slot.calibrate(dy)
        dy8 = ctx.slot.quantize(dy)
        dw = x8.flatten(0, 1).T @ dy8.flatten(0, 1)
        ds = (dw * w).sum()
        db = None
        if b is not None:
            db = dy.flatten(0, 1).sum(0)
            ds = ds + (db * b).sum()
            db = s * db
        return s * (dy8 @ w8.T), s * dw, db, ds, None, None, None


class Fp8Network(Network):
    """Slots of layer l = 0.., map i = 0..3: 4l+i its input, 4L+4l+i its weight, 8L+4l+i its output's gradient."""

    def __init__(self, config, quantizes=True):
        super().__init__(config)
        rule = self.rule
        if config.get("norm_scheme", "pre") != "pre" or isinstance(rule, LayerScale) or \
                not isinstance(rule, (Vanilla, BranchCoefficient)):  # fmt: skip
            raise SystemExit("in 8 bits the oracle knows norm scheme pre with vanilla, rezero, skipinit, and ProRes")
        kind, L = Slot if quantizes else Untouched, self.arch.layers
        self.slots = [kind(E4M3) for _ in range(8 * L)] + [kind(E5M2) for _ in range(4 * L)]
        self.passes = 0
        self.weights8, self.scalar = [None] * (4 * L), None
        self.states = []  # behind every update: scales, histories
        self.arch.multiply = self.multiply

    def multiply(self, layer, which, x, weights, biases):
        """Maps of one input are one map, with their outputs side by side."""
        L, i = self.arch.layers, 4 * (layer - 1) + which
        w = torch.cat(weights, dim=1)
        b = torch.cat(biases) if biases else None
        ends_branch = which % 2 == 1
        s = self.scalar if ends_branch else torch.ones((), dtype=x.dtype)
        y = Map.apply(x, w, b, s, self.weights8[i], (self.slots[i], self.slots[8 * L + i]), self.passes == 1)
        return y.split([part.shape[1] for part in weights], dim=-1)

    def branch(self, p, k, state, z, values, alpha):
        """The map that ends the branch has the rule's scalar inside, so that the rule adds what comes out of it."""
        scalar = torch.full((), alpha, dtype=z.dtype)
        if isinstance(self.rule, BranchCoefficient):
            scalar = scalar * self.rule.coefficient(p, k).reshape(())
        self.scalar = scalar
        return Vanilla.write(self.rule, p, k, state, self.arch.sublayer(p, k, z, values), 1.0)

    def loss(self, p, tokens, targets, clock):
        self.passes += 1  # the first one calibrates
        return super().loss(p, tokens, targets, clock)

    def weights_changed(self, p):
        """Scales from the histories, then the weights anew. At the start only weights have been seen."""
        L = self.arch.layers
        weights = [torch.cat(self.arch.group(p, l, which)[0], dim=1).detach()
                   for l in range(1, L + 1) for which in range(4)]  # fmt: skip
        if self.passes == 0:
            for slot, w in zip(self.slots[4 * L : 8 * L], weights, strict=True):
                slot.amax = float(w.float().abs().max())
                slot.update()
        else:
            for slot in self.slots:
                slot.update()
            self.states.append([(slot.scale, list(slot.history)) for slot in self.slots])
        # Rows of a weight are its outputs.
        self.weights8 = [slot.quantize(w.T).T for slot, w in zip(self.slots[4 * L : 8 * L], weights, strict=True)]
        if self.passes == 0:  # float32 has the same numbers
            for slot in self.slots:
                slot.margin = np.inf
