"""CogVLM2's visual expert inside nano: every linear layer of its LLM gets a second set of weights for image tokens.

The layers are those of transformers; `cogvlm.py` has the rule that says which token uses which weights. The mask comes
with the embeddings, as one more number of each token, so training, packing and generation stay as they are. Tokens that
come without it, those of an answer, are language. As in CogVLM the expert begins as a copy; its biases are left out.
S samples, T tokens, D width of the LLM.
"""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import nn
from transformers import LlamaForCausalLM

from ..inputs.checks import check_number
from .cogvlm import by_expert


class ExpertLinear(nn.Linear):
    """A linear layer and, as `vision`, a copy for the tokens that `route.mask` marks (S, T); None: there are none."""

    def __init__(self, linear: nn.Linear, route: SimpleNamespace):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.vision, self.route = linear.weight, linear.bias, deepcopy(linear), route

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = self.route.mask
        return super().forward(x) if mask is None else by_expert(x, mask, self.vision, super().forward)


class ExpertLlama(LlamaForCausalLM):
    """A Llama with a visual expert in all linear layers but the head. Its other tensors keep their names.

    Args:
        llm: its parts are taken over.
    """

    def __init__(self, llm: LlamaForCausalLM):
        super().__init__(llm.config)
        self.model, self.lm_head, self.route = llm.model, llm.lm_head, SimpleNamespace(mask=None)
        for layer in self.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(part, name, ExpertLinear(child, self.route))

    def forward(self, *args, inputs_embeds: torch.Tensor | None = None, **options):
        """As without an expert; the last number of `inputs_embeds` (S, T, D + 1) is 1 where the expert is used."""
        width = self.config.hidden_size
        if inputs_embeds is not None and inputs_embeds.shape[-1] > width:
            self.route.mask = inputs_embeds[..., width] > 0
            inputs_embeds = inputs_embeds[..., :width]
        try:
            return super().forward(*args, inputs_embeds=inputs_embeds, **options)
        finally:
            self.route.mask = None


def expert_optimizer(model, rate: float, connector_rate: float) -> torch.optim.AdamW:
    """Make the optimizer of an expert and its connector, for `train(..., optimizer=...)`; ViT and LLM stay as they are.

    Args:
        model: a PeerModel with an expert; all of its other weights are frozen in place.
        rate, connector_rate: the highest learning rates.

    Returns:
        An AdamW.

    Raises:
        TypeError, ValueError: a model without an expert; a rate below 0.

    Example:
        >>> from minicpmv_ref import MiniCPMV, Processor
        >>> from minicpmv_ref.peers import swap
        >>> nano = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> model, _ = swap(*nano, "shuffle", "square", expert=True)
        >>> sum(p.numel() for p in expert_optimizer(model, 1e-3, 3e-3).param_groups[0]["params"])
        2359296
    """
    rates = [check_number("rate", rate, least=0), check_number("connector_rate", connector_rate, least=0)]
    if not isinstance(getattr(model, "llm", None), ExpertLlama):
        raise ValueError("model must have a visual expert: swap(..., expert=True) makes one")
    experts = [p for name, p in model.llm.named_parameters() if ".vision." in name]
    parts = [experts, list(model.resampler.parameters())]
    model.requires_grad_(False)
    for parameter in [p for part in parts for p in part]:
        parameter.requires_grad_(True)
    groups = [{"params": part, "lr": own} for part, own in zip(parts, rates)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, foreach=True)
