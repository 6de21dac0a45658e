"""Any checkpoint of residual.cu as a transformers model: GPT-2 or LLaMA, any norm scheme, any residual rule.

The network is that of dev/oracle (oracle_model.py here): plain functions of a dictionary of parameters under their
names in the checkpoint. This file holds the parameters, and does what transformers asks of a model: masks, losses,
generation.

There is no cache of keys and values: generate() runs the whole sequence for every token.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_residual import ResidualConfig
from .oracle_architectures import wide
from .oracle_model import Clock, Network

# Computed in the precision of the weights; the other parameters are few, and widened to float32.
PRODUCTS = ("embed", "head", "matrix")


class ResidualForCausalLM(GenerationMixin, PreTrainedModel):
    config_class = ResidualConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.network = Network(config.checkpoint)
        self.about = self.network.parameters()
        for name, about in self.about.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            # A model made without a checkpoint starts with normal weights of 0.02; the engine's --init says more.
            start = torch.randn(about.shape) * 0.02 if about.init is None else torch.tensor(about.initial())
            module.register_parameter(leaf, nn.Parameter(start.to(torch.get_default_dtype())))
        self.post_init()

    def _init_weights(self, module):
        """Nothing: __init__ has done it, and every checkpoint holds every parameter."""

    def forward(self, input_ids, attention_mask=None, labels=None, return_dict=None, **ignored):
        """logits (B,T,V). attention_mask (B,T), 0: the token is not there, on whichever side the padding is."""
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(f"{input_ids.shape[1]} tokens are more than the context of "
                             f"{self.config.max_position_embeddings}")  # fmt: skip
        parameters = dict(self.named_parameters())
        parameters = {name: parameters[name] if about.cls in PRODUCTS else wide(parameters[name])
                      for name, about in self.about.items()}  # fmt: skip
        updates = self.config.checkpoint.get("residual_step", 0)
        clock = Clock(updates, passes=updates + 1, evaluation=not self.training)
        # The tokens that are there move to the front, in order: causality keeps what stands behind from them, and they
        # have the positions of a row without padding.
        order = None
        if attention_mask is not None and not attention_mask.bool().all():
            order = torch.argsort(attention_mask == 0, dim=1, stable=True)
            input_ids = input_ids.gather(1, order)
        logits = self.network.logits(parameters, input_ids, clock)
        if order is not None:
            back = torch.argsort(order, dim=1)
            logits = logits.gather(1, back[..., None].expand_as(logits))
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **ignored):
        return {"input_ids": input_ids, "attention_mask": attention_mask}
