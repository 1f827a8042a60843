"""The part of a model that one pipeline stage computes (report section 3.2).

    stage 0      tokens -> embedding -> its blocks -> hidden states
    inner        hidden states -> its blocks -> hidden states
    last         hidden states -> its blocks -> final norm; and it owns the head and the MTP modules

A Stage refers to the model's own submodules, so it works on a model in any state (on the meta device, with experts or
precision already transformed), and parameters keep the names that they have in the whole model: checkpoints, optimizer
and ZeRO never learn about stages. What no Stage of a process refers to is freed with the model.

MTP reads the embedding of tokens further on. If first and last stage are on different ranks, the last one keeps a copy
of the embedding whose gradient pipeline.tie() adds to the first one's; under dualpipev both stages are on rank 0 and
the embedding is one tensor (report section 3.2.3).

Balance: layers are spread as evenly as possible; norm, head and MTP together count as one layer on the last stage. (V3:
the head costs about 1.3 of its MoE layers in FLOPs per token, the MTP module one more layer and the head again. A
finer weighing would not pay while whole layers are the unit.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.moe import Routing
from fathom.model.rope import rotation
from fathom.model.transformer import DeepseekV3, attention_mask
from fathom.runtime import UserError

LAST_STAGE_EXTRA = 1  # in layers: what norm, head and MTP count for


def layers_per_stage(layers: int, stages: int) -> list[range]:
    """Which layers each stage computes. Earlier stages get the remainder."""
    units = layers + (LAST_STAGE_EXTRA if stages > 1 else 0)
    if units < stages:
        raise UserError(
            f"a model of {layers} layers cannot be cut into {stages} pipeline stages, at most into "
            f"{layers + LAST_STAGE_EXTRA} (head and MTP count as one layer); use fewer pipeline ranks"
        )
    counts = [units // stages + (stage < units % stages) for stage in range(stages)]
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return [range(start, min(start + count, layers)) for start, count in zip(starts, counts, strict=True)]


class Stage(nn.Module):
    """Stage `index` of `stages`. `layers` keep their numbers; what the stage does not have is None or empty.

    The last stage answers to `mtp_hidden`, `ops`, `lm_head`, `mtp` and `config` like the whole model: a loss function
    that starts from hidden states runs on either.
    """

    def __init__(self, model: DeepseekV3, index: int, stages: int) -> None:
        super().__init__()
        self.index, self.stages = index, stages
        self.config: ModelConfig = model.config
        self.ops = model.ops
        first, last = index == 0, index == stages - 1
        reused = len(model.mtp) > 0 or model.config.tie_word_embeddings
        # registered in the model's order, so that a tied head keeps the name of the embedding
        self.embed_tokens = model.embed_tokens if first or (last and reused) else None
        self.layers = nn.ModuleDict(
            {str(i): model.layers[i] for i in layers_per_stage(len(model.layers), stages)[index]}
        )
        self.norm = model.norm if last else None
        self.lm_head = model.lm_head if last else None
        self.mtp = model.mtp if last else nn.ModuleList()
        self.shares_embedding = stages > 1 and reused and (first or last)

    def forward(
        self, x_BTD: Tensor | None, tokens: Tensor, segments: Tensor | None = None, record: list[Routing] | None = None
    ) -> Tensor:
        """Hidden states [B, T, D] for those of the stage before (None on stage 0); the last stage's are normed.

        tokens [B, T] and segments [B, T] are the micro-batch's, on every stage. record receives one Routing per MoE
        layer of this stage.
        """
        assert (x_BTD is None) == (self.index == 0), "stage 0 starts from tokens, all others from hidden states"
        rope = rotation(self.config, torch.arange(tokens.shape[1], device=tokens.device))
        mask = attention_mask(tokens.shape[1], 0, segments, tokens.device)
        if x_BTD is None:
            assert self.embed_tokens is not None
            x_BTD = self.embed_tokens(tokens)
        for layer in self.layers.values():
            x_BTD = layer(x_BTD, rope, mask, record=record)
        out: Tensor = x_BTD if self.norm is None else self.norm(x_BTD)
        return out

    def mtp_hidden(
        self,
        h_BTD: Tensor,
        tokens: Tensor,
        depth: int = 0,
        *,
        segments: Tensor | None = None,
        record: list[Routing] | None = None,
    ) -> Tensor:
        """DeepseekV3.mtp_hidden, on the last stage: it has every part which that function uses."""
        assert self.index == self.stages - 1, "MTP modules are on the last stage"
        return DeepseekV3.mtp_hidden(cast(DeepseekV3, self), h_BTD, tokens, depth, segments=segments, record=record)

    def logits(self, h: Tensor) -> Tensor:
        """The head, on the last stage: hidden states [..., D] -> FP32 logits [..., V]."""
        assert self.lm_head is not None, "the head is on the last stage"
        out: Tensor = self.lm_head(h)
        return out.float()


def split(model: DeepseekV3, stage: int, stages: int) -> Stage:
    """Stage number `stage` of `stages`."""
    assert 0 <= stage < stages
    return Stage(model, stage, stages)


def named_parameters(stages: Mapping[int, Stage]) -> dict[str, nn.Parameter]:
    """All parameters of one rank's stages under their names in the whole model; what stages share counts once."""
    return {name: parameter for stage in stages.values() for name, parameter in stage.named_parameters()}
