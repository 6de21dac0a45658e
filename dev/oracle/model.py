"""The network in float64 PyTorch: one frame, into which architectures, norm schemes and residual rules are put.

    z_k = READ_k(state)
    u_k = BRANCH_k(z_k) = N_out( F_k( c_k * N_in(z_k) ) )
    state = WRITE_k(state, u_k)            and N_post where the scheme has one
    logits = head( N_f( READOUT(state) ) )

Everything is a plain function of a dictionary of parameters under their names in the checkpoint, so that gradients
come from automatic differentiation and nothing here has to know a backward formula.
"""

import math

import torch
import torch.nn.functional as F

from schemes import scheme_named
from rules import rule_named


class Gpt2:
    """GPT-2: LayerNorm, learned positions, fused qkv; linear maps are stored [in, out]."""

    def __init__(self, config):
        self.layers = config["n_layer"]
        self.heads = config["n_head"]
        self.eps = config["layer_norm_epsilon"]
        self.tied = config.get("tie_word_embeddings", True)
        activation = config.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu"):
            raise SystemExit(f"unknown activation_function '{activation}'")
        self.approximate = "tanh" if activation == "gelu_new" else "none"

    def prefix(self, layer):
        return f"h.{layer}."

    def embed(self, p, tokens):
        return p["wte.weight"][tokens] + p["wpe.weight"][: tokens.shape[1]]

    def norm(self, p, name, x):
        gain, bias = p[name + ".weight"], p.get(name + ".bias")
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        y = gain * ((x - mean) / torch.sqrt(variance + self.eps))
        return y if bias is None else y + bias

    def linear(self, p, name, x):
        y = x @ p[name + ".weight"]
        bias = p.get(name + ".bias")
        return y if bias is None else y + bias

    def attention(self, p, layer, z):
        B, T, C = z.shape
        qkv = self.linear(p, self.prefix(layer) + "attn.c_attn", z)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in qkv.split(C, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(C // self.heads)
        future = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), dim=-1)
        out = (weights @ v).transpose(1, 2).reshape(B, T, C)
        return self.linear(p, self.prefix(layer) + "attn.c_proj", out)

    def mlp(self, p, layer, z):
        hidden = self.linear(p, self.prefix(layer) + "mlp.c_fc", z)
        return self.linear(p, self.prefix(layer) + "mlp.c_proj", F.gelu(hidden, approximate=self.approximate))

    def sublayer(self, p, k, z):
        """F_k, k = 1..2L: odd is the attention, even the MLP of layer ceil(k/2)."""
        layer = (k - 1) // 2
        return self.attention(p, layer, z) if k % 2 else self.mlp(p, layer, z)

    def first_norm(self, k):
        return self.prefix((k - 1) // 2) + ("ln_1" if k % 2 else "ln_2")

    def final_norm(self):
        return "ln_f"

    def head(self, p, x):
        return x @ (p["wte.weight"] if self.tied else p["lm_head.weight"]).T

    def parameter_class(self, name):
        if name in ("wte.weight", "wpe.weight"):
            return "embed"
        if name == "lm_head.weight":
            return "head"
        if ".residual" in name or name.startswith("residual."):
            raise SystemExit(f"no class is known for '{name}'")
        if name.split(".")[-2].startswith("ln_"):
            return "norm"
        return "bias" if name.endswith(".bias") else "matrix"


ARCHITECTURES = {"gpt2": Gpt2}


class Network:
    def __init__(self, config):
        kind = config["model_type"]
        if kind not in ARCHITECTURES:
            raise SystemExit(f"the oracle has no architecture '{kind}' (it has: {', '.join(ARCHITECTURES)})")
        self.arch = ARCHITECTURES[kind](config)
        self.scheme = scheme_named(config.get("norm_scheme", "pre"), self.arch)
        self.rule = rule_named(config.get("residual", "vanilla"), config.get("residual_options", {}), self.arch)

    def logits(self, p, tokens, t=0):
        """(B,T,V) logits; t counts completed updates, for rules that follow a schedule."""
        arch, scheme, rule = self.arch, self.scheme, self.rule
        state = rule.start(p, scheme.embedding(p, arch.embed(p, tokens)))
        for k in range(1, 2 * arch.layers + 1):
            z = rule.read(p, k, state, t)
            u = scheme.norm_out(p, k, arch.sublayer(p, k, scheme.norm_in(p, k, z)))
            state = rule.write(p, k, state, u, scheme, t)
        return arch.head(p, arch.norm(p, arch.final_norm(), rule.readout(p, state)))

    def loss(self, p, tokens, targets, t=0):
        logits = self.logits(p, tokens, t)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
