"""The configuration of an exported checkpoint: the checkpoint's own config.json inside one of transformers'."""

from transformers import PretrainedConfig


class ResidualConfig(PretrainedConfig):
    """`checkpoint`: config.json of the checkpoint, GPT-2's or LLaMA's field names and norm_scheme, residual, ..."""

    model_type = "residual"

    def __init__(self, checkpoint=None, **kwargs):
        self.checkpoint = checkpoint or {}
        find = lambda *names: next((self.checkpoint[name] for name in names if name in self.checkpoint), None)
        # What generate() and the evaluation harness ask a configuration for.
        self.vocab_size = find("vocab_size")
        self.max_position_embeddings = find("n_positions", "max_position_embeddings")
        self.hidden_size = find("n_embd", "hidden_size")
        self.num_hidden_layers = find("n_layer", "num_hidden_layers")
        self.num_attention_heads = find("n_head", "num_attention_heads")
        kwargs.setdefault("use_cache", False)
        kwargs["tie_word_embeddings"] = False  # a tied head is not a tensor here: the network reads the embedding twice
        derived = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
        super().__init__(**{name: value for name, value in kwargs.items() if name not in derived})
