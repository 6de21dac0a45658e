"""The base architectures: embedding, the bare sublayers F_k, the base norm, the head. No residual connection here.

`values` is a function that attention applies to its values, layer by layer (value residual); usually the identity.
"""

import math

import torch
import torch.nn.functional as F

from parameters import Parameter


def wide(x):
    """In float32 at least: what is not a matrix product is computed so when weights are bf16 or fp16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product(x, w):
    """x w in the precision of the weights, given back in that of x."""
    return (x.to(w.dtype) @ w).to(x.dtype)


def attend(q, k, v):
    """Causal attention over (B, heads, T, head size)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(diagonal=1)
    return torch.softmax(scores.masked_fill(future, -math.inf), dim=-1) @ v


def plain_maps(layer, which, x, weights, biases):
    """x w + b for the maps of one input; weights are [in, out], biases may be None."""
    products = [product(x, w) for w in weights]
    return products if biases is None else [y + b for y, b in zip(products, biases, strict=True)]


class Architecture:
    """`maps` names the linear maps of a layer in four groups, each of one input: into attention, out of it, into the
    MLP, out of it. `multiply` computes a group; fp8.py puts another in its place."""

    multiply = staticmethod(plain_maps)

    def linear(self, p, layer, which, x):
        """The outputs of group `which` (0..3)."""
        return self.multiply(layer, which, x, *self.group(p, layer, which))

    def layer(self, k):
        """One-based layer of sublayer k."""
        return (k + 1) // 2

    def layer_prefix(self, k):
        return self.prefix(self.layer(k))

    def sublayer(self, p, k, z, values):
        """F_k, k = 1..2L: odd is the attention, even the MLP of layer ceil(k/2)."""
        return self.attention(p, self.layer(k), z, values) if k % 2 else self.mlp(p, self.layer(k), z)

    def first_norm(self, k):
        return self.layer_prefix(k) + self.first_norms[1 - k % 2]

    def second_norm(self, k):
        return self.layer_prefix(k) + self.second_norms[1 - k % 2]


class Gpt2(Architecture):
    """GPT-2: LayerNorm, learned positions, fused qkv; linear maps are stored [in, out]."""

    maps = (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))
    first_norms, second_norms = ("ln_1", "ln_2"), ("ln_1_out", "ln_2_out")
    embedding_norm, final_norm = "ln_emb", "ln_f"

    def __init__(self, config):
        self.vocab, self.positions = config["vocab_size"], config["n_positions"]
        self.layers, self.heads, self.channels = config["n_layer"], config["n_head"], config["n_embd"]
        self.ffn = config.get("n_inner") or 4 * self.channels
        self.eps = config["layer_norm_epsilon"]
        self.tied = config.get("tie_word_embeddings", True)
        self.bias = config.get("bias", True)
        activation = config.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu"):
            raise SystemExit(f"unknown activation_function '{activation}'")
        self.approximate = "tanh" if activation == "gelu_new" else "none"

    def prefix(self, layer):
        return f"h.{layer - 1}."

    def parameters(self):
        """All but the norms, which the scheme has."""
        C, maps = self.channels, []
        for l in range(1, self.layers + 1):
            for name, rows, cols in [("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C),
                                     ("mlp.c_fc", C, self.ffn), ("mlp.c_proj", self.ffn, C)]:  # fmt: skip
                maps.append(Parameter(f"{self.prefix(l)}{name}.weight", (rows, cols)))
                if self.bias:
                    maps.append(Parameter(f"{self.prefix(l)}{name}.bias", (cols,), 0, "bias"))
        head = [] if self.tied else [Parameter("lm_head.weight", (self.vocab, C), cls="head")]
        return [Parameter("wte.weight", (self.vocab, C), cls="embed"),
                Parameter("wpe.weight", (self.positions, C), cls="embed"), *maps, *head]  # fmt: skip

    def norm_parameters(self, name, gain=1.0):
        bias = [Parameter(name + ".bias", (self.channels,), 0, "norm")] if self.bias else []
        return [Parameter(name + ".weight", (self.channels,), gain, "norm"), *bias]

    def embed(self, p, tokens):
        return wide(p["wte.weight"][tokens]) + p["wpe.weight"][: tokens.shape[1]]

    def norm(self, p, name, x):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        y = p[name + ".weight"] * ((x - mean) / torch.sqrt(variance + self.eps))
        return y + p[name + ".bias"] if self.bias else y

    def group(self, p, layer, which):
        """Weights [in, out] of a group of maps, and biases or None."""
        names = [self.prefix(layer) + name for name in self.maps[which]]
        return [p[name + ".weight"] for name in names], [p[name + ".bias"] for name in names] if self.bias else None

    def attention(self, p, layer, z, values):
        B, T, C = z.shape
        q, k, v = self.linear(p, layer, 0, z)[0].split(C, dim=-1)
        v = values(layer, v)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (q, k, v))
        out = attend(q, k, v).transpose(1, 2).reshape(B, T, C)
        return self.linear(p, layer, 1, out)[0]

    def mlp(self, p, layer, z):
        hidden = self.linear(p, layer, 2, z)[0]
        return self.linear(p, layer, 3, F.gelu(hidden, approximate=self.approximate))[0]

    def head(self, p, x):
        return product(x, (p["wte.weight"] if self.tied else p["lm_head.weight"]).T)


class Llama(Architecture):
    """LLaMA: RMSNorm, rotate-half RoPE, SwiGLU, grouped key/value heads, no biases; maps are stored [out, in]."""

    maps = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))  # fmt: skip
    first_norms = ("input_layernorm", "post_attention_layernorm")
    second_norms = ("attn_out_layernorm", "mlp_out_layernorm")
    embedding_norm, final_norm = "model.embed_layernorm", "model.norm"

    def __init__(self, config):
        self.vocab, self.layers = config["vocab_size"], config["num_hidden_layers"]
        self.channels, self.ffn = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_size = self.channels // self.heads
        self.eps = config["rms_norm_eps"]
        self.theta = config.get("rope_theta", 10000.0)
        self.tied = config.get("tie_word_embeddings", False)

    def prefix(self, layer):
        return f"model.layers.{layer - 1}."

    def parameters(self):
        C, kv, maps = self.channels, self.kv_heads * self.head_size, []
        for l in range(1, self.layers + 1):
            for name, rows, cols in [
                ("self_attn.q_proj", C, C), ("self_attn.k_proj", kv, C), ("self_attn.v_proj", kv, C),
                ("self_attn.o_proj", C, C), ("mlp.gate_proj", self.ffn, C), ("mlp.up_proj", self.ffn, C),
                ("mlp.down_proj", C, self.ffn),
            ]:  # fmt: skip
                maps.append(Parameter(f"{self.prefix(l)}{name}.weight", (rows, cols)))
        head = [] if self.tied else [Parameter("lm_head.weight", (self.vocab, C), cls="head")]
        return [Parameter("model.embed_tokens.weight", (self.vocab, C), cls="embed"), *maps, *head]

    def norm_parameters(self, name, gain=1.0):
        return [Parameter(name + ".weight", (self.channels,), gain, "norm")]

    def embed(self, p, tokens):
        return wide(p["model.embed_tokens.weight"][tokens])

    def norm(self, p, name, x):
        return p[name + ".weight"] * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))

    def group(self, p, layer, which):
        """Weights [in, out] of a group of maps; there are no biases."""
        return [p[f"{self.prefix(layer)}{name}.weight"].T for name in self.maps[which]], None

    def rotate(self, x):
        """(a,b) -> (a cos w - b sin w, b cos w + a sin w), channel i of a head paired with i + hd/2."""
        half, T = self.head_size // 2, x.shape[-2]
        frequency = self.theta ** (-2 * torch.arange(half, dtype=x.dtype, device=x.device) / self.head_size)
        w = torch.arange(T, dtype=x.dtype, device=x.device)[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * torch.cos(w) - b * torch.sin(w), b * torch.cos(w) + a * torch.sin(w)], dim=-1)

    def attention(self, p, layer, z, values):
        B, T, C = z.shape
        q, k, v = self.linear(p, layer, 0, z)
        v = values(layer, v)
        q, k, v = (part.view(B, T, -1, self.head_size).transpose(1, 2) for part in (q, k, v))
        kv_head = torch.arange(self.heads) * self.kv_heads // self.heads  # which one query head h reads
        out = attend(self.rotate(q), self.rotate(k)[:, kv_head], v[:, kv_head])
        return self.linear(p, layer, 1, out.transpose(1, 2).reshape(B, T, C))[0]

    def mlp(self, p, layer, z):
        gate, up = self.linear(p, layer, 2, z)
        return self.linear(p, layer, 3, F.silu(gate) * up)[0]

    def head(self, p, x):
        return product(x, p["model.embed_tokens.weight" if self.tied else "lm_head.weight"].T)


ARCHITECTURES = {"gpt2": Gpt2, "llama": Llama}


def architecture(config):
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise SystemExit(f"the oracle has no architecture '{kind}' (it has: {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[kind](config)
