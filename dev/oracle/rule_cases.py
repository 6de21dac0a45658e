"""The lists of cases for residual rules: small ones for every pair of rule and norm scheme and every value of every option
(rule_cases); and every rule again at two widths that do not divide evenly into a kernel's threads (size_cases)."""

from rules import ALL, PRE_TYPE, RULES

# Schedules that move within three updates, and a start at which every branch already carries gradient.
PRORES = {"residual_step": 1, "T": 1}

FILES = {"prores_mls": "prores"}


def gpt2(**changes):
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 11, "n_positions": 6, "n_ctx": 6,
            "n_embd": 8, "n_layer": 4, "n_head": 2, "n_inner": None, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
            "tie_word_embeddings": True, **changes}  # fmt: skip


def llama(**changes):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11,
            "max_position_embeddings": 6, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
            **changes}  # fmt: skip


class Cases:
    def __init__(self):
        self.all = {}

    def add(self, arch, scheme, residual, what="", tag="", full=False, final=False, model=(), residual_step=0,
            **options):  # fmt: skip
        """full: every gradient is stored, and not those at the seams alone; final: final residual parameters too."""
        if "prores" in residual.replace("prores_mls", "") and not options and not residual_step:
            residual_step, options = PRORES["residual_step"], {"T": PRORES["T"]}
        config = {"gpt2": gpt2, "llama": llama}[arch](**dict(model))
        config |= {"norm_scheme": scheme, "residual": residual, "residual_options": options}
        if residual_step:
            config["residual_step"] = residual_step
        name = "_".join(filter(None, [arch, scheme, residual, tag]))
        if name in self.all:
            raise ValueError(f"two cases {name}")
        base, *companions = residual.split("+")
        if base == "vanilla" and companions:
            base = companions[-1]
        file = FILES.get(base, base) + ".safetensors"
        default = f"{residual} with {scheme}"
        self.all[name] = {"name": name, "file": file, "config": config, "what": what or default, "full": full,
                          "final": final or full}  # fmt: skip


def pairs(cases):
    """Every rule with every norm scheme it goes with, on gpt2; on llama the main ones."""
    for rule, (_, schemes) in RULES.items():
        for scheme in schemes:
            options = {"residual_step": 900} if rule == "prores_mls" else {}
            if rule == "mhc" and scheme != "pre":
                options = {"n": 2}  # the default's gradients are large
            full = rule == "vanilla" or scheme == "pre"
            cases.add("gpt2", scheme, rule, full=full, **options)
            if rule == "hc":
                cases.add("gpt2", scheme, rule, "static", "static", dynamic=0, full=scheme == "pre")
            if rule == "review" and scheme in PRE_TYPE:
                cases.add("gpt2", scheme, rule, "(1-r)*x + r*u", "convex", form="convex", full=scheme == "pre")
            wanted = scheme in ("pre", "sandwich") or rule == "vanilla"
            if wanted or rule in ("gpas", "lscale_sub") and scheme in ("post", "deepnorm", "mix", "keel"):
                heads = [("num_key_value_heads", 2)] if scheme == "sandwich" else []
                full = rule == "vanilla" or scheme == "pre" and rule == "gpas"
                cases.add("llama", scheme, rule, full=full, model=heads, **options)
    for scheme in ALL:
        cases.add("gpt2", scheme, "prores", full=scheme == "pre")
        cases.add("gpt2", scheme, "vanilla+value", full=scheme == "pre")
        if scheme in ("pre", "sandwich", "post", "deepnorm", "mix", "keel"):
            cases.add("llama", scheme, "prores", full=scheme == "pre")
        if scheme in ("pre", "sandwich", "post", "mix"):
            heads = [("num_key_value_heads", 2)] if scheme == "sandwich" else []
            cases.add("llama", scheme, "vanilla+value", model=heads, full=scheme == "pre")


def companions(cases):
    for rule in RULES:
        if rule not in ("vanilla", "prores_mls"):
            n = {"n": 2} if rule == "mhc" else {}
            cases.add("gpt2", "pre", rule + "+prores", **PRORES, **n)
    for scheme, rule in [("deepnorm", "gpas"), ("mix", "gpas"), ("post", "lscale_sub"), ("keel", "rezero"),
                         ("post", "review"), ("sandwich", "attnres_block"), ("lns", "lscale_block")]:  # fmt: skip
        cases.add("gpt2", scheme, rule + "+prores")
    cases.add("gpt2", "pre", "review+prores", "the gate sees the unscaled u", "convex", form="convex", **PRORES)
    cases.add("llama", "sandwich", "gpas+prores")
    cases.add("llama", "pre", "hc+prores")
    cases.add("llama", "pre", "attnres+prores")
    for rule in ("lscale_block", "gpas", "hc", "mhc", "attnres", "review", "dwa", "prores_mls"):
        n = {"n": 2} if rule == "mhc" else {}
        cases.add("gpt2", "pre", rule + "+value", residual_step=900 if rule == "prores_mls" else 0, **n)
    cases.add("gpt2", "pre", "prores+value")
    cases.add("gpt2", "pre", "gpas+prores+value")
    cases.add("gpt2", "post", "gpas+value")
    cases.add("gpt2", "mix", "lscale_sub+value")
    cases.add("llama", "sandwich", "gpas+value")
    cases.add("llama", "pre", "mhc+value", n=2)
    cases.add("llama", "mix", "gpas+prores+value")


def bases(cases):
    exact = {"activation_function": "gelu", "bias": False}.items()
    cases.add("gpt2", "pre", "vanilla", "exact GELU, no biases in maps and norms", "gelu_nobias", model=exact)
    cases.add("gpt2", "lns", "vanilla", "exact GELU, no biases; factor 1/sqrt(l)", "gelu_nobias", model=exact)
    cases.add("gpt2", "keel", "rezero", "exact GELU, no biases", "gelu_nobias", model=exact)
    cases.add("gpt2", "sandwich", "gpas", "exact GELU, no biases", "gelu_nobias", model=exact)
    cases.add("gpt2", "pre", "vanilla", "untied head", "untied", model=[("tie_word_embeddings", False)])
    cases.add("gpt2", "mix", "vanilla", "three layers: floor(L/4) = 0, all pre", "three", model=[("n_layer", 3)])
    cases.add("gpt2", "mix", "vanilla", "eight layers: two are post", "eight", model=[("n_layer", 8)])
    cases.add("llama", "pre", "vanilla", "tied head", "tied", model=[("tie_word_embeddings", True)])
    cases.add("llama", "pre", "vanilla", "as many kv heads as heads", "mha", model=[("num_key_value_heads", 2)])
    cases.add("llama", "lns", "vanilla", "gains carry 1/sqrt(l)", "gaininit", lns="gaininit")
    cases.add("gpt2", "lns", "vanilla", "gains carry 1/sqrt(l), biases do not", "gaininit", lns="gaininit")
    cases.add("gpt2", "lns", "gpas", "gains carry 1/sqrt(l)", "gaininit", lns="gaininit")
    for scheme in ("post", "deepnorm", "pre"):
        cases.add("gpt2", scheme, "vanilla", "no norm before the head", "nofinal", final_norm=0)
    cases.add("llama", "post", "gpas", "no norm before the head", "nofinal", final_norm=0)
    cases.add("gpt2", "pre", "attnres", "no norm before the head", "nofinal", final_norm=0)
    cases.add("gpt2", "deepnorm", "vanilla", "deepnorm_init changes initial weights only", "noinit", deepnorm_init=0)


def coefficients(cases):
    for rule, freezes in [("lscale_block", ("lambda", "mu")), ("lscale_input", ("lambda", "mu")),
                          ("lscale_sub", ("rho", "pi"))]:  # fmt: skip
        for name in freezes:
            cases.add("gpt2", "pre", rule, f"{name} frozen", f"freeze_{name}", freeze=name, final=True)
    add = lambda scheme, rule, what, tag, **options: cases.add("gpt2", scheme, rule, what, tag, final=True, **options)
    add("pre", "lscale_input", "x_0 not normalised", "x0raw", x0_norm=0)
    add("pre", "lscale_input", "lr 0.02 for both", "modded", preset="modded")
    add("pre", "lscale_input", "lambda lr 0.005, mu lr 0.5 from 0.1", "nanochat", preset="nanochat")
    add("pre", "lscale_input", "own starts, rates, betas, decay", "nanochat2", preset="nanochat2")
    add("sandwich", "lscale_input", "a preset whose x_0 is raw, lambda frozen", "nanochat2_freeze", preset="nanochat2",
        x0_norm=0, freeze="lambda")  # fmt: skip
    add("pre", "lscale_sub", "x_0 term", "x0", x0=1)
    add("pre", "lscale_sub", "x_0 term, normalised", "x0norm", x0=1, x0_norm=1)
    add("post", "lscale_sub", "x_0 term inside the norm", "x0", x0=1)
    add("deepnorm", "lscale_sub", "x_0 term, normalised", "x0norm", x0=1, x0_norm=1)
    add("mix", "lscale_sub", "x_0 term", "x0", x0=1)
    add("peri", "lscale_sub", "x_0 is the normalised embedding", "x0", x0=1)
    add("pre", "lscale_sub", "mu frozen", "x0_freeze_mu", x0=1, freeze="mu")
    add("pre", "lscale_sub", "rho from sqrt(1.1), lr x5", "modded", preset="modded")
    add("keel", "lscale_sub", "rho from sqrt(1.1), lr x5; x_0 term", "modded_x0", preset="modded", x0=1)


def gates(cases):
    for act in ("identity", "relu", "leaky_relu", "tanh", "silu_8"):
        cases.add("gpt2", "pre", "gpas", f"g = {act}(alpha)", act, act=act)
    cases.add("gpt2", "deepnorm", "gpas", "skip placement, g = tanh(alpha)", "tanh", act="tanh")
    for place in ("before_sublayer", "after_norm", "branch_output"):
        for scheme in PRE_TYPE:
            if (scheme, place) != ("outnorm", "after_norm"):
                cases.add("gpt2", scheme, "gpas", f"placement {place}", place, place=place)
        cases.add("gpt2", "pre", "gpas", f"placement {place}, no stop-gradient", place + "_sg0", place=place, sg=0)
    for scheme in ("pre", "post", "deepnorm", "sandwich"):
        cases.add("gpt2", scheme, "gpas", "no stop-gradient", "sg0", sg=0)
    cases.add("gpt2", "pre", "gpas", "gates clipped together", "clip", gate_clip=0.01, final=True)
    cases.add("gpt2", "pre", "gpas", "gates clipped to Adam's epsilon", "clip_small", gate_clip=1e-4, final=True)
    cases.add("gpt2", "deepnorm", "gpas", "gates clipped together", "clip_small", gate_clip=1e-4, final=True)
    cases.add("gpt2", "pre", "gpas", "gates frozen", "freeze", freeze="gate", final=True)
    for scheme in ("pre", "post"):
        cases.add("gpt2", scheme, "review", "no bias", "nobias", bias=0)
    cases.add("gpt2", "pre", "review", "convex, no bias", "convex_nobias", bias=0, form="convex")
    for scheme in PRE_TYPE:
        cases.add("gpt2", scheme, "highway", "(1-g)*x + g*u", "convex", form="convex")


def schedules(cases):
    for schedule in ("linear_sqrt", "linear_square", "equal", "reverse", "stagewise_0", "stagewise_L",
                     "stagewise_sqrtL", "stagewise_sqrtl"):  # fmt: skip
        T = 2 if schedule != "equal" else 4
        cases.add("gpt2", "pre", "prores", f"schedule {schedule}", schedule, schedule=schedule, T=T, residual_step=1)
    for schedule in ("fix_L", "fix_sqrtL", "fix_sqrtl"):
        cases.add("gpt2", "pre", "prores", f"schedule {schedule}: constant", schedule, schedule=schedule)
    cases.add("gpt2", "pre", "prores", "from update 0: alpha 0, all branches without gradient", "zero", T=1)
    cases.add("gpt2", "post", "prores", "from update 0: alpha 0", "zero", T=2)
    cases.add("gpt2", "pre", "attnres+prores", "from update 0: sources that are zero", "zero", T=1)
    cases.add("gpt2", "pre", "review+prores", "from update 0: nothing is added", "zero", T=1)
    cases.add("gpt2", "pre", "prores", "all schedules finished", "done", T=1, residual_step=50)
    cases.add("gpt2", "pre", "prores", "evaluation at 1 does not touch training", "evalone", T=1, residual_step=1,
              prores_eval_one=1)  # fmt: skip
    cases.add("gpt2", "pre", "prores_mls", "from pass 1: alpha 0.001 and less", "zero")


def streams(cases):
    cases.add("gpt2", "pre", "hc", "no tanh", "notanh", tanh=0)
    for n in (1, 2, 3):
        cases.add("gpt2", "pre", "hc", f"{n} streams", f"n{n}", n=n)
        cases.add("gpt2", "pre", "hc", f"{n} streams, static", f"static_n{n}", n=n, dynamic=0)
    cases.add("gpt2", "pre", "hc", "mean read-out", "mean", readout="mean")
    cases.add("gpt2", "pre", "hc", "mean read-out, static, 3 streams", "static_mean_n3", readout="mean", dynamic=0, n=3)
    cases.add("gpt2", "pre", "hc", "stream 0 is x_0 and the read-out, the others start at 0", "e0", preset="hc_e0")
    cases.add("gpt2", "sandwich", "hc", "hc_e0, 2 streams", "e0_n2", preset="hc_e0", n=2)
    cases.add("gpt2", "pre", "hc", "hc_out_init changes initial weights only", "outinit", hc_out_init="rsqrt_n")
    for n in (1, 2, 3):
        cases.add("gpt2", "pre", "mhc", f"{n} streams", f"n{n}", n=n)
    cases.add("gpt2", "pre", "mhc", "learned read-out", "head", readout="head")
    cases.add("llama", "sandwich", "mhc", "learned read-out, 3 streams", "head_n3", readout="head", n=3)


def depths(cases):
    for size in (1, 3, 5, 16):
        cases.add("gpt2", "pre", "attnres_block", f"blocks of {size} sublayers", f"size{size}", block_size=size)
    for blocks in (1, 2, 3):
        cases.add("gpt2", "pre", "attnres_block", f"{blocks} blocks", f"blocks{blocks}", blocks=blocks)
    cases.add("llama", "pre", "attnres_block", "3 blocks", "blocks3", blocks=3)
    for size in (1, 2, 3):
        cases.add("gpt2", "pre", "attnres_mls", f"blocks of {size} layers", f"size{size}", block_size=size)
    for blocks in (2, 3):
        cases.add("gpt2", "pre", "attnres_mls", f"{blocks} blocks asked for", f"blocks{blocks}", blocks=blocks)
    for scheme in ("sandwich", "lns"):
        cases.add("gpt2", scheme, "attnres_mls", "blocks of 1 layer", "size1", block_size=1)
    cases.add("llama", "pre", "attnres_mls", "blocks of 2 layers", "size2", block_size=2)
    cases.add("gpt2", "pre", "attnres_mls+prores", "blocks of 2 layers", "size2", block_size=2, T=1, residual_step=1)
    for dilation, period in [(2, 1), (3, 1), (1, 2), (1, 3), (2, 2)]:
        cases.add("gpt2", "pre", "dwa", f"dilation {dilation}, period {period}", f"d{dilation}p{period}", final=True,
                  dilation=dilation, period=period)  # fmt: skip
    cases.add("gpt2", "pre", "dwa", "alpha decays", "decay", decay_alpha=1, final=True)


def rule_cases():
    cases = Cases()
    for group in (pairs, companions, bases, coefficients, gates, schedules, streams, depths):
        group(cases)
    return list(cases.all.values())


# Width, heads, key/value heads of llama. 264 = 66 packs of 16 bytes in fp32 and 33 in bf16: several per thread where 32
# threads share a row, the last ones without work. 104 = 26 and 13 packs: fewer than the threads.
SIZES = [(264, 3, 1), (104, 13, 13)]
FAMILY = ("sandwich", "peri", "outnorm", "lns", "post", "deepnorm", "mix", "keel")


def size_cases():
    cases = Cases()
    for channels, heads, kv_heads in SIZES:
        base = {"vocab_size": 57, "n_layer": 3, "n_positions": 40, "n_ctx": 40, "n_embd": channels, "n_head": heads,
                "n_inner": 211}  # fmt: skip
        other = {"vocab_size": 57, "num_hidden_layers": 3, "max_position_embeddings": 40, "hidden_size": channels,
                 "intermediate_size": 211, "num_attention_heads": heads, "num_key_value_heads": kv_heads}  # fmt: skip

        def add(scheme, residual, tag="", arch="gpt2", models={"gpt2": base, "llama": other}, width=channels, **options):
            model = dict(models[arch])
            if scheme == "mix":  # floor(L/4) layers are post: one needs four
                model["n_layer"] = 4
            cases.add(arch, scheme, residual, tag="_".join(filter(None, [tag, str(width)])), model=model.items(), **options)

        for rule in RULES:
            add("pre", rule, **({"residual_step": 900} if rule == "prores_mls" else {}))
        for rule in ("prores", "vanilla+value"):
            add("pre", rule)
        add("pre", "hc", "static", dynamic=0)
        add("pre", "mhc", "head", readout="head")
        add("pre", "review", "convex", form="convex")
        add("pre", "highway", "convex", form="convex")
        add("pre", "lscale_sub", "x0norm", x0=1, x0_norm=1)
        add("pre", "attnres_block", "size4", block_size=4)
        add("pre", "attnres_mls", "size1", block_size=1)
        for place in ("before_sublayer", "after_norm", "branch_output"):
            add("pre", "gpas", place, place=place)
        for rule in ("vanilla", "gpas", "lscale_sub", "layerscale", "review"):
            for scheme in FAMILY:
                if scheme in RULES[rule][1] and (channels == 264 or scheme in ("sandwich", "post")):
                    add(scheme, rule)
        for rule in ("vanilla", "gpas", "hc", "attnres"):
            for scheme in ("pre", "sandwich"):
                add(scheme, rule, arch="llama")
        add("pre", "gpas+prores+value", arch="llama")
    return [{**case, "file": "sizes.safetensors"} for case in cases.all.values()]
