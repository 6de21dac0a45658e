#!/usr/bin/env python3
"""GPT-2 in PyTorch, as fast as plain PyTorch goes: what the engine's speed is compared with.

As a module: the network, its optimizer and one timed update. As a program: tokens per second of training on synthetic
tokens, as JSON.

    python3 dev/bench/torch_gpt2.py --model gpt2-medium --batch 32 --seq 1024 --dtype bf16 --compile
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

PRESETS = {  # layers, heads, channels, context, vocabulary
    "gpt2-nano": (4, 4, 128, 128, 256),
    "gpt2": (12, 12, 768, 1024, 50257),
    "gpt2-medium": (24, 16, 1024, 1024, 50257),
    "gpt2-large": (36, 20, 1280, 1024, 50257),
    "gpt2-xl": (48, 25, 1600, 1024, 50257),
}


class Block(nn.Module):
    def __init__(self, channels, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels, bias=bias)
        self.c_attn = nn.Linear(channels, 3 * channels, bias=bias)
        self.attn_proj = nn.Linear(channels, channels, bias=bias)
        self.ln_2 = nn.LayerNorm(channels, bias=bias)
        self.c_fc = nn.Linear(channels, 4 * channels, bias=bias)
        self.mlp_proj = nn.Linear(4 * channels, channels, bias=bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """Pre-LN, learned positions, tied head, no dropout."""

    def __init__(self, layers, heads, channels, context, vocab, bias=True, scaled_init=True):
        super().__init__()
        self.shape = (layers, heads, channels, context, vocab)
        self.wte = nn.Embedding(vocab, channels)
        self.wpe = nn.Embedding(context, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, bias) for _ in range(layers))
        self.ln_f = nn.LayerNorm(channels, bias=bias)
        self.head = nn.Linear(channels, vocab, bias=False)
        self.head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = scaled_init and "_proj" in name  # the projections that write into the stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))

    def flops_per_token(self, T):
        """6 per parameter of a matrix product, and causal attention at half of the full square."""
        layers, _, channels, _, vocab = self.shape
        return 6 * (layers * 12 * channels**2 + vocab * channels) + 6 * layers * channels * T


def make_optimizer(model, lr, betas, weight_decay, kind="fused"):
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, **{kind: True})


def update(forward, parameters, optimizer, batch, clip=1.0, autocast=None):
    """One training update: forward, backward, clipping, AdamW. Returns the loss and the norm as tensors."""
    optimizer.zero_grad(set_to_none=True)
    if autocast is None:
        loss = forward(*batch)
    else:
        with torch.autocast(autocast, dtype=torch.bfloat16):
            loss = forward(*batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return loss, norm


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure(options):
    device = options.device
    torch.manual_seed(1337)
    layers, heads, channels, context, vocab = PRESETS[options.model]
    vocab = options.vocab or vocab
    model = Gpt2(layers, heads, channels, max(context, options.seq), vocab, scaled_init=options.init != "normal02")
    model.to(device)
    forward = torch.compile(model) if options.compile else model
    optimizer = make_optimizer(model, 3e-4, (0.9, 0.95), 0.1, options.adamw)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    high = min(vocab, PRESETS[options.model][4])
    autocast = device if options.dtype == "bf16" else None
    times = []
    for step in range(options.warmup + options.steps):
        tokens = torch.randint(high, (options.batch, options.seq + 1), generator=generator).to(device)
        synchronise(device)
        begin = time.perf_counter()
        loss, _ = update(forward, parameters, optimizer, (tokens[:, :-1], tokens[:, 1:]), autocast=autocast)
        loss = loss.item()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - begin))
    times = times[options.warmup :]
    ms = statistics.median(times)
    result = {
        "model": options.model, "batch": options.batch, "seq": options.seq, "dtype": options.dtype, "vocab": vocab,
        "compiled": options.compile, "adamw": options.adamw, "torch": torch.__version__, "ms": ms, "ms_min": min(times),
        "ms_all": [round(t, 2) for t in times], "tokens_per_s": 1e3 * options.batch * options.seq / ms,
        "flops_per_token": model.flops_per_token(options.seq), "loss": loss,
    }  # fmt: skip
    if device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        result["device"] = torch.cuda.get_device_name()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=PRESETS, default="gpt2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=0, help="another vocabulary, e.g. 50304, which GPUs multiply faster")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--init", choices=["gpt2_scaled", "normal02"], default="gpt2_scaled")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--adamw", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", help="write the result here as well")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
