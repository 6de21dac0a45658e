"""Training as the specification has it: data order, accumulation, clipping, schedule, AdamW. Float64 by default."""

import argparse
import math

import numpy as np
import torch

from model import Network


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


def learning_rate(s, t):
    """Learning rate of update t = 0, 1, ...; the first one already moves."""
    if t < s.warmup:
        return s.lr * (t + 1) / s.warmup
    if s.schedule == "constant":
        return s.lr
    x = min(1.0, (t - s.warmup) / (s.steps - s.warmup))
    f = s.final_lr_ratio
    return s.lr * (f + (1 - f) * 0.5 * (1 + math.cos(math.pi * x)))


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
    def __init__(self, parameters):
        self.m = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.n = 0

    def update(self, parameters, grads, kappa, lr, s, decaying):
        self.n += 1
        correct_m, correct_v = 1 - s.beta1**self.n, 1 - s.beta2**self.n
        for name, p in parameters.items():
            g = kappa * grads[name]
            m, v = self.m[name], self.v[name]
            m.copy_(s.beta1 * m + (1 - s.beta1) * g)
            v.copy_(s.beta2 * v + (1 - s.beta2) * g * g)
            step = (m / correct_m) / (torch.sqrt(v / correct_v) + s.eps)
            if name in decaying:
                step = step + s.weight_decay * p
            p.copy_(p - lr * step)


def train(config, args, start, shards, dtype=torch.float64):
    """Runs a case. Returns losses, norms and rates of every update, the first gradients, and the final parameters."""
    s = parse_args(args)
    network = Network(config)
    parameters = {name: torch.tensor(np.asarray(values), dtype=dtype) for name, values in start.items()}
    decaying = {name for name in parameters if decays(network.arch.parameter_class(name), s.decay)}
    optimizer = AdamW(parameters)
    batches = micro_batches(shards, s.batch, s.seq)
    micro_steps = s.total_batch // (s.batch * s.seq)
    out = {"loss": [], "grad_norm": [], "lr": []}
    for t in range(s.steps):
        for p in parameters.values():
            p.requires_grad_(True)
            p.grad = None
        loss = 0.0
        for _ in range(micro_steps):
            part = network.loss(parameters, *next(batches), t) / micro_steps
            part.backward()
            loss += part.item()
        grads = {}
        for name, p in parameters.items():
            grads[name] = torch.zeros_like(p) if p.grad is None else p.grad
            p.requires_grad_(False)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values()))
        if t == 0:
            out["grads"] = {name: g.numpy().copy() for name, g in grads.items()}
        kappa = min(1.0, s.grad_clip / (norm + 1e-6)) if s.grad_clip > 0 else 1.0
        lr = learning_rate(s, t)
        optimizer.update(parameters, grads, kappa, lr, s, decaying)
        out["loss"].append(loss)
        out["grad_norm"].append(norm)
        out["lr"].append(lr)
    out["final"] = {name: p.numpy().copy() for name, p in parameters.items()}
    out["settings"] = s
    return out
