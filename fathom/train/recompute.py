"""Compute twice instead of keeping (report section 3.2.3): activations that are cheap to make again.

    report   RMSNorms, MLA up-projections and SwiGLU. What stays: their inputs, and the results of attention's core
             (but those of the C++ core on CPUs, which is no operator that a policy could name: it runs again).
             kernels/mixed.py recomputes the SwiGLU of routed experts in every setting
    block    whole blocks: only their inputs stay. The least memory, a third more compute

A transformation of a finished model: forward functions are wrapped, parameters and names stay. Routing is recorded in
the first pass alone, so loads count once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fathom.model.block import Block
from fathom.model.layers import RMSNorm, SwiGLU
from fathom.model.mla import AttentionForm, LayerCache, MultiHeadLatentAttention
from fathom.model.moe import Routing
from fathom.model.transformer import DeepseekV3

_CORE = ("scaled_dot_product", "flash_attention", "efficient_attention")


class RecomputedBlock(Block):
    """A block that keeps its input only."""

    def __init__(self, whole: Block) -> None:
        nn.Module.__init__(self)  # the parts exist already
        for name, part in whole.named_children():
            self.add_module(name, part)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
        form: AttentionForm = "naive",
        record: list[Routing] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        if cache is not None or not torch.is_grad_enabled():
            return super().forward(x_BTD, rope, mask, cache, start, form, record)
        first: list[Routing] = []

        def run(x: Tensor) -> Tensor:
            routing: list[Routing] = []
            y = super(RecomputedBlock, self).forward(x, rope, mask, None, start, form, routing)
            if not first:
                first.extend(routing)
            return y

        out: Tensor = checkpoint(run, x_BTD, use_reentrant=False, preserve_rng_state=False)
        if record is not None:
            record.extend(first)
        return out


def _keep_core(ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    core = any(name in str(op) for name in _CORE)
    return CheckpointPolicy.MUST_SAVE if core else CheckpointPolicy.PREFER_RECOMPUTE


def _again(module: nn.Module, keep_core: bool = False) -> None:
    """Wrap a module's forward: its inputs are kept, what it makes inside is made again."""
    forward = module.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if keep_core:
        options["context_fn"] = lambda: create_selective_checkpoint_contexts(_keep_core)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    module.forward = run


def recompute(model: DeepseekV3, what: str) -> DeepseekV3:
    """`what` is "none", "report" or "block"."""
    if what == "block":
        for name, module in list(model.named_modules()):
            if isinstance(module, Block):
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, RecomputedBlock(module))
    elif what == "report":
        for module in list(model.modules()):
            if isinstance(module, RMSNorm | SwiGLU):
                _again(module)
            elif isinstance(module, MultiHeadLatentAttention):
                _again(module, keep_core=True)
    return model
