"""Every operation in plain PyTorch: the definition that the fast versions are tested against. Runs anywhere.

FP8 (report section 3.3, official `inference/kernel.py`)
  weights      128x128 blocks, scale_inv = amax / 448, value = q * scale_inv (a multiplier despite its name)
  activations  1x128 tiles, same rule; amax is clamped at 1e-4 so that zeros do not divide by zero
  ue8m0        the scale is rounded UP to a power of two (V3.1), so that nothing overflows
  edge blocks  zero-padded to a whole block, scaled, cropped: 576 rows give 5 scale rows

Shapes: T tokens, K experts per token, E experts, D hidden, I expert width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
AMAX_FLOOR = 1e-4


def scales_from_amax(amax: Tensor, scale_fmt: str | None) -> Tensor:
    """Scale per block from the largest magnitude per block, FP32."""
    scale = amax.float().clamp(min=AMAX_FLOOR) / FP8_MAX
    if scale_fmt == "ue8m0":
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
        scale = torch.ldexp(torch.ones_like(scale), exponent)
    return scale


def _as_blocks(w: Tensor, block: tuple[int, int]) -> Tensor:
    """[out, in] -> [out_blocks, block0, in_blocks, block1], zero-padded."""
    rows, columns = w.shape
    padded = F.pad(w, (0, -columns % block[1], 0, -rows % block[0]))
    return padded.view(padded.shape[0] // block[0], block[0], padded.shape[1] // block[1], block[1])


def quantize_blocks(
    w: Tensor, block: tuple[int, int] = (128, 128), scale_fmt: str | None = None
) -> tuple[Tensor, Tensor]:
    """[out, in] -> (E4M3 [out, in], FP32 scale_inv [ceil(out/b0), ceil(in/b1)])."""
    blocks = _as_blocks(w.float(), block)
    scale = scales_from_amax(blocks.abs().amax(dim=(1, 3)), scale_fmt)
    q = (blocks / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    q = q.view(blocks.shape[0] * block[0], -1)[: w.shape[0], : w.shape[1]]
    return q.contiguous(), scale


def dequantize_blocks(
    q: Tensor, scale_inv: Tensor, block: tuple[int, int] = (128, 128), dtype: torch.dtype = torch.float32
) -> Tensor:
    """The inverse: multiply each block by its scale in FP32, then round to `dtype`."""
    blocks = _as_blocks(q.float(), block) * scale_inv[:, None, :, None]
    return blocks.view(blocks.shape[0] * block[0], -1)[: q.shape[0], : q.shape[1]].to(dtype).contiguous()


def quantize_tiles(x: Tensor, tile: int = 128, scale_fmt: str | None = None) -> tuple[Tensor, Tensor]:
    """Activations [..., n] -> (E4M3 [..., n], FP32 scale [..., n/tile]); n must be a multiple of `tile`."""
    tiles = x.float().unflatten(-1, (-1, tile))
    scale = scales_from_amax(tiles.abs().amax(-1), scale_fmt)
    return (tiles / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8).flatten(-2), scale


def routed_experts(x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """sum_k weights[t,k] * down_e(silu(gate_e x) * up_e x), e = indices[t,k]; gate_up [E, 2I, D], down [E, D, I]."""
    out = torch.zeros_like(x_TD)
    for e in range(gate_up.shape[0]):
        token, slot = torch.where(indices_TK == e)
        gate, up = F.linear(x_TD[token], gate_up[e]).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down[e])
        out = out.index_add(0, token, (y * weights_TK[token, slot, None]).to(out.dtype))
    return out


def linear_cross_entropy(h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(h W^T)[label] in FP32; label -100 is ignored."""
    return F.cross_entropy((h_TD @ weight_VD.T).float(), labels_T, reduction="sum")


REST = 1e-6  # least probability of the lump, of teacher and student alike: FP32 knows no less beside a sum near 1


def linear_distillation(
    h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, ids_TK: Tensor, log_probs_TK: Tensor, *,
    temperature: float = 1.0, reverse: bool = False, text_weight: float = 0.0,
) -> Tensor:  # fmt: skip
    """Sum over tokens with a label (not -100) of (1 - a) t^2 KL + a CE; see kernels/distillation.py."""
    logits = h_TD @ weight_VD.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    student = _with_lump(F.log_softmax(logits / temperature, dim=-1).gather(-1, ids_TK))
    teacher = _with_lump(log_probs_TK.to(logits.dtype))
    p, q = (student, teacher) if reverse else (teacher, student)
    kl_T = (p.exp() * (p - q)).sum(-1)
    ce_T = F.cross_entropy(logits, labels_T.clamp(min=0), reduction="none")
    loss_T = (1 - text_weight) * temperature**2 * kl_T + text_weight * ce_T
    return loss_T.masked_fill(labels_T < 0, 0.0).sum()


def _with_lump(log_probs_TK: Tensor) -> Tensor:
    """[T, K] -> [T, K + 1]: the rest of the vocabulary as one more outcome."""
    rest = (1 - log_probs_TK.exp().sum(-1, keepdim=True)).clamp(min=REST)
    return torch.cat((log_probs_TK, rest.log()), dim=-1)
