"""A random model that mostly follows a chain token -> successor: its MTP module often drafts what it then says."""

from __future__ import annotations

import torch
from tiny import tiny_config

from fathom.model.transformer import DeepseekV3


@torch.no_grad()
def chain_model(seed: int = 0, noise: float = 0.05, **changes: object) -> DeepseekV3:
    """`noise`: std of all other weights; at 0 every draft is right, at 0.3 few are."""
    generator = torch.Generator().manual_seed(seed)
    model = DeepseekV3(tiny_config(**{"initializer_range": noise or 1e-9, **changes}), dtype=torch.float32)
    model.init_weights(generator)
    vocab, hidden = model.embed_tokens.weight.shape
    model.embed_tokens.weight.normal_(generator=generator)
    successor = torch.randperm(vocab, generator=generator)
    model.lm_head.weight[successor] = model.embed_tokens.weight * 0.5
    for module in model.mtp:
        module.eh_proj.weight[:, :hidden] += torch.eye(hidden)
    return model.eval()
