"""Training as the specification has it: data order, accumulation, clipping, schedule, AdamW. Float64 by default."""

import argparse
import math

import numpy as np
import torch

from model import Clock, Network


def parse_args(args):
    """The options of train_gpt2 that change what is computed; an option not listed here is refused."""
    parser = argparse.ArgumentParser(prog="args", allow_abbrev=False)
    for name, kind, default in [
        ("batch", int, None), ("seq", int, None), ("total-batch", int, 0), ("steps", int, None), ("lr", float, 3e-4),
        ("beta1", float, 0.9), ("beta2", float, 0.95), ("eps", float, 1e-8), ("weight-decay", float, 0.1),
        ("grad-clip", float, 1.0), ("warmup", int, -1), ("final-lr-ratio", float, 0.1),
    ]:  # fmt: skip
        parser.add_argument("--" + name, type=kind, default=default, required=default is None)
    parser.add_argument("--optimizer", choices=["adamw"], default="adamw")
    parser.add_argument("--schedule", choices=["cosine", "constant"], default="cosine")
    parser.add_argument("--decay", choices=["2d", "matrix", "all", "none"], default="2d")
    parser.add_argument("--no-shuffle", action="store_true", required=True)
    settings = parser.parse_args(args)
    settings.total_batch = settings.total_batch or settings.batch * settings.seq
    if settings.total_batch % (settings.batch * settings.seq):
        parser.error("--total-batch is no multiple of batch * seq")
    if settings.warmup < 0:
        settings.warmup = int(min(max(settings.steps / 100, 100), settings.steps / 10))
    return settings


def schedule(s, t):
    """Share of its peak that a learning rate has in update t = 0, 1, ...; the first one already moves."""
    if t < s.warmup:
        return (t + 1) / s.warmup
    if s.schedule == "constant":
        return 1.0
    x = min(1.0, (t - s.warmup) / (s.steps - s.warmup))
    f = s.final_lr_ratio
    return f + (1 - f) * 0.5 * (1 + math.cos(math.pi * x))


def decays(cls, mode):
    """Whether a tensor of class `cls` decays under --decay `mode`."""
    matrices = {"matrix", "auxmat"}
    return {"2d": cls in matrices | {"embed", "head"}, "matrix": cls in matrices, "all": True, "none": False}[mode]


def micro_batches(shards, B, T):
    """Endless (inputs, targets), shards in order; a rest too short for a micro-batch and its last target is left."""
    shard, pos = 0, 0
    while True:
        if len(shards[shard]) - pos < B * T + 1:
            shard, pos = (shard + 1) % len(shards), 0
            if len(shards[shard]) < B * T + 1:
                raise SystemExit("a shard is too short for one micro-batch")
        window = torch.from_numpy(np.ascontiguousarray(shards[shard][pos : pos + B * T + 1]))
        yield window[:-1].view(B, T), window[1:].view(B, T)
        pos += B * T


class AdamW:
    """Every tensor with its own rate, betas and decay: `about` holds its Parameter."""

    def __init__(self, parameters, about, settings):
        self.about, self.settings = about, settings
        self.m = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.n = 0

    def weight_decay(self, q):
        if q.weight_decay is not None:
            return q.weight_decay
        return self.settings.weight_decay if decays(q.cls, self.settings.decay) else 0.0

    def update(self, parameters, grads, kappa, shape):
        """kappa: factor of every tensor's gradient; shape: of every learning rate."""
        self.n += 1
        s = self.settings
        for name, p in parameters.items():
            q = self.about[name]
            if q.frozen:
                continue
            beta1, beta2 = q.betas or (s.beta1, s.beta2)
            lr = (q.lr if q.lr is not None else s.lr * q.lr_times) * shape
            g, m, v = kappa[name] * grads[name], self.m[name], self.v[name]
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * g * g)
            step = (m / (1 - beta1**self.n)) / (torch.sqrt(v / (1 - beta2**self.n)) + s.eps)
            p.copy_(p - lr * (step + self.weight_decay(q) * p))


def norm(grads, names):
    return math.sqrt(sum(float((grads[name].double() ** 2).sum()) for name in names))


def clip(network, about, grads, s):
    """Global norm before clipping, and the factor of every tensor: the global clip, then that of the GPAS gates."""
    trained = [name for name in grads if not about[name].frozen]
    total = norm(grads, trained)
    kappa = min(1.0, s.grad_clip / (total + 1e-6)) if s.grad_clip > 0 else 1.0
    factors = dict.fromkeys(grads, kappa)
    gate_clip = getattr(network.rule, "gate_clip", 0)
    if gate_clip > 0:
        gates = [name for name in trained if name.endswith(".gpas_gate")]
        factor = min(1.0, gate_clip / (kappa * norm(grads, gates) + 1e-6))
        factors.update(dict.fromkeys(gates, kappa * factor))
    return total, factors


def match(start, about):
    """Refuses a checkpoint whose tensors are not exactly the network's."""
    for name in sorted(set(start) | set(about)):
        if name not in start or name not in about:
            raise SystemExit(f"tensor {name}: {'missing' if name in about else 'unknown'}")
        if tuple(np.shape(start[name])) != tuple(about[name].shape):
            raise SystemExit(f"tensor {name}: shape {np.shape(start[name])}, expected {about[name].shape}")


def train(config, args, start, shards, dtype=torch.float64, network=None):
    """Runs a case. Returns losses, norms and rates of every update, the first gradients, and the final parameters."""
    s = parse_args(args)
    network = network or Network(config)
    about = network.parameters()
    match(start, about)
    parameters = {name: torch.tensor(np.asarray(values), dtype=dtype) for name, values in start.items()}
    optimizer = AdamW(parameters, about, s)
    batches = micro_batches(shards, s.batch, s.seq)
    micro_steps = s.total_batch // (s.batch * s.seq)
    begin = config.get("residual_step", 0)  # updates already completed, for the rules' schedules
    out = {"loss": [], "grad_norm": [], "lr": []}
    network.weights_changed(parameters)
    for t in range(s.steps):
        for p in parameters.values():
            p.requires_grad_(True)
            p.grad = None
        loss = 0.0
        for micro in range(micro_steps):
            clock = Clock(updates=begin + t, passes=(begin + t) * micro_steps + micro + 1)
            part = network.loss(parameters, *next(batches), clock) / micro_steps
            part.backward()
            loss += part.item()
        grads = {}
        for name, p in parameters.items():
            grads[name] = torch.zeros_like(p) if p.grad is None else p.grad
            p.requires_grad_(False)
        if t == 0:
            out["grads"] = {name: g.numpy().copy() for name, g in grads.items()}
        total, kappa = clip(network, about, grads, s)
        shape = schedule(s, t)
        optimizer.update(parameters, grads, kappa, shape)
        network.weights_changed(parameters)
        out["loss"].append(loss)
        out["grad_norm"].append(total)
        out["lr"].append(s.lr * shape)
    out["final"] = {name: p.numpy().copy() for name, p in parameters.items()}
    out["settings"] = s
    return out
