"""A longer context for a finished model: its weights stay, its config changes.

YaRN (report section 4.3) as the report sets it: the low frequencies of the `qk_rope_head_dim` part are slowed by
`factor`, alpha = beta_slow = 1, beta = beta_fast = 32, and sqrt(t) = 0.1 ln(factor) + 1 stands in the softmax scale
alone: mscale = mscale_all_dim = 1, so cos and sin are multiplied by 1. `original_max_position_embeddings` is the
context the model was trained with; V3's 4,096 x 40 gives its max_position_embeddings of 163,840.
"""

from __future__ import annotations

from torch import nn

from fathom.config import ModelConfig, RopeScaling
from fathom.runtime import UserError


def extended(config: ModelConfig, factor: float) -> ModelConfig:
    """The same model with `factor` times its context; a UserError if it was extended before."""
    trained = config.max_position_embeddings
    if config.rope_scaling is not None:
        raise UserError(
            f"the model has YaRN with factor {config.rope_scaling.factor:g} already; extend the model before that, "
            "once and to the whole length"
        )
    if not factor > 1:
        raise UserError(f"the factor is {factor}, it must be above 1: the new context in multiples of {trained}")
    scaling = RopeScaling(
        factor=float(factor), original_max_position_embeddings=trained, beta_fast=32.0, beta_slow=1.0, mscale=1.0,
        mscale_all_dim=1.0,
    )  # fmt: skip
    return config.replace(rope_scaling=scaling, max_position_embeddings=int(trained * factor))


def set_config(model: nn.Module, config: ModelConfig) -> None:
    """Give every module of a model, or of a part of one, this config: another RoPE and context, the same weights."""
    old = vars(model)["config"]
    for module in model.modules():
        if vars(module).get("config") is old:
            vars(module)["config"] = config
