"""The paged model on a CPU with the compiled step: all blocks in one call, weights read as they are held.

Activations are FP32 whatever the weights are, and so are the pages unless `cache` says otherwise: with FP8 or BF16
weights the logits are those of the FP32 model with the same weights. What is left to PyTorch: the embedding lookup.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.engine.paged import PagedModel, Step, zeros
from fathom.engine.weights import block_weights, matrix
from fathom.kernels import cpu
from fathom.model.layers import RMSNorm
from fathom.model.transformer import DeepseekV3


class CpuPagedModel(PagedModel):
    """See PagedModel; hidden states are FP32."""

    kernels = "cpu"
    cache_dtype = torch.float32

    def __init__(self, model: DeepseekV3, *, pages: int, page_size: int, mtp: bool, cache: str = "auto") -> None:
        super().__init__(model, pages=pages, page_size=page_size, mtp=mtp, cache=cache)
        self._blocks = cpu.CpuBlocks([block_weights(layer) for layer in model.layers])  # type: ignore[arg-type]
        self._head = cpu.CpuLinear(matrix(model.lm_head))
        self._norm = _norm(model.norm)
        if mtp:
            module = model.mtp[0]
            self._mtp_block = cpu.CpuBlocks([block_weights(module.block)])  # type: ignore[arg-type]
            self._eh_proj = cpu.CpuLinear(matrix(module.eh_proj))  # type: ignore[arg-type]
            self._enorm, self._hnorm, self._mtp_norm = (_norm(n) for n in (module.enorm, module.hnorm, module.norm))
            self.page_hidden = zeros((pages, self.config.hidden_size), torch.float32, self.device)

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, step: Step, record: list[Tensor] | None = None) -> Tensor:
        """See PagedModel.hidden."""
        x, chosen = self._blocks(self._embed(tokens), step.batch, self.pools)
        if record is not None:
            record += [experts for experts in chosen if experts is not None]
        return self._norm(x)

    @torch.inference_mode()
    def draft_hidden(self, h: Tensor, tokens: Tensor, step: Step) -> Tensor:
        """See PagedModel.draft_hidden."""
        assert self.mtp_pool is not None
        x, _ = self._mtp_block(self._mtp_input(h, tokens), step.batch, [self.mtp_pool])
        return self._mtp_norm(x)

    @torch.inference_mode()
    def fill_mtp(self, h: Tensor, tokens: Tensor, step: Step) -> None:
        """See PagedModel.fill_mtp."""
        assert self.mtp_pool is not None
        self._mtp_block.write_latents(self._mtp_input(h, tokens), step.batch, [self.mtp_pool])

    def _mtp_input(self, h: Tensor, tokens: Tensor) -> Tensor:
        joined = (self._enorm(self._embed(tokens)), self._hnorm(h))
        out: Tensor = self._eh_proj(torch.cat(joined, dim=-1))
        return out

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed_tokens.weight.data[tokens].float()

    @torch.inference_mode()
    def logits(self, h: Tensor) -> Tensor:
        """See PagedModel.logits."""
        out: Tensor = self._head(h.flatten(0, -2)).unflatten(0, h.shape[:-1])
        return out


def _norm(norm: nn.Module | Tensor) -> cpu.CpuNorm:
    assert isinstance(norm, RMSNorm)
    return cpu.CpuNorm(norm.weight, norm.eps)
