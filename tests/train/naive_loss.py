"""The whole model and its training loss once more, in float64, written out from the report's formulas: slow, plain,
differentiable. It shares no code with fathom/model and fathom/train: tensors come by their names, nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.text.dataset import IGNORE, Batch


class NaiveModel:
    """A copy of a model's parameters in float64 (`weights`, which get gradients) and the forward pass in words."""

    def __init__(self, model: DeepseekV3) -> None:
        self.config: ModelConfig = model.config
        self.weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
        self.biases = {n: b.double() for n, b in model.named_buffers()}
        self.scores: list[Tensor] = []  # [B, T, E] per MoE layer, in order of the pass

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """d loss / d weight by name."""
        found = torch.autograd.grad(loss, list(self.weights.values()))
        return dict(zip(self.weights, found, strict=True))

    # ---- layers

    def times(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def normed(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.weights[f"{name}.weight"]

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        gate, up = self.times(x, f"{name}.gate_proj"), self.times(x, f"{name}.up_proj")
        return self.times(gate / (1 + (-gate).exp()) * up, f"{name}.down_proj")

    def turned(self, x: Tensor) -> Tensor:
        """RoPE on [T, R]: the pair (x0, x1), (x2, x3), ... number p of token t turns by t * theta^(-2p/R)."""
        out = []
        for t in range(x.shape[0]):
            for p in range(x.shape[1] // 2):
                angle = t * self.config.rope_theta ** (-2 * p / x.shape[1])
                a, b = x[t, 2 * p], x[t, 2 * p + 1]
                out += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
        return torch.stack(out).view_as(x)

    def attention(self, x: Tensor, name: str, segments: list[int] | None) -> Tensor:
        """One row [T, D]: head by head."""
        c, length = self.config, x.shape[0]
        nope, rope, value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        q = self.times(self.normed(self.times(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm"), f"{name}.q_b_proj")
        both = self.times(x, f"{name}.kv_a_proj_with_mqa")
        latent = self.normed(both[:, : c.kv_lora_rank], f"{name}.kv_a_layernorm")
        k_rope = self.turned(both[:, c.kv_lora_rank :])
        kv = self.times(latent, f"{name}.kv_b_proj")
        heads = []
        for h in range(c.num_attention_heads):
            q_h = q[:, h * (nope + rope) : (h + 1) * (nope + rope)]
            kv_h = kv[:, h * (nope + value) : (h + 1) * (nope + value)]
            logits = q_h[:, :nope] @ kv_h[:, :nope].T + self.turned(q_h[:, nope:]) @ k_rope.T
            rows = []
            for t in range(length):
                seen = [s for s in range(t + 1) if segments is None or segments[s] == segments[t]]
                share = (logits[t, seen] / math.sqrt(nope + rope)).softmax(0)
                rows.append(share @ kv_h[seen, nope:])
            heads.append(torch.stack(rows))
        return self.times(torch.cat(heads, dim=1), f"{name}.o_proj")

    def chosen(self, s: list[float], bias: list[float]) -> list[int]:
        """Experts of one token: the best groups by the sum of their two best, then the best experts in those."""
        c = self.config
        value = [a + b for a, b in zip(s, bias, strict=True)]
        size = len(s) // c.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]
        groups.sort(key=lambda g: -sum(sorted((value[e] for e in g), reverse=True)[:2]))
        left = [e for g in groups[: c.topk_group] for e in g]
        return sorted(left, key=lambda e: -value[e])[: c.num_experts_per_tok]

    def mixture(self, x_BTD: Tensor, name: str) -> Tensor:
        """Token by token, expert by expert."""
        c = self.config
        gate_up, down = self.weights[f"{name}.experts.gate_up"], self.weights[f"{name}.experts.down"]
        s_BTE = 1 / (1 + (-self.times(x_BTD, f"{name}.gate")).exp())
        self.scores.append(s_BTE)
        bias = self.biases[f"{name}.gate.e_score_correction_bias"].tolist()
        rows = []
        for x, s in zip(x_BTD.flatten(0, 1), s_BTE.flatten(0, 1), strict=True):
            experts = self.chosen(s.tolist(), bias)
            y = torch.zeros_like(x)
            for e in experts:
                gate, up = (gate_up[e] @ x).chunk(2)
                y = y + s[e] / s[experts].sum() * (down[e] @ (gate / (1 + (-gate).exp()) * up))
            rows.append(c.routed_scaling_factor * y)
        return torch.stack(rows).view_as(x_BTD) + self.feed_forward(x_BTD, f"{name}.shared_experts")

    def block(self, x: Tensor, name: str, segments: Tensor | None) -> Tensor:
        h = self.normed(x, f"{name}.input_layernorm", self.config.rms_norm_eps)
        rows = [None] * len(x) if segments is None else segments.tolist()
        x = x + torch.stack([self.attention(row, f"{name}.self_attn", s) for row, s in zip(h, rows, strict=True)])
        h = self.normed(x, f"{name}.post_attention_layernorm", self.config.rms_norm_eps)
        dense = f"{name}.mlp.gate_proj.weight" in self.weights
        return x + (self.feed_forward(h, f"{name}.mlp") if dense else self.mixture(h, f"{name}.mlp"))

    # ---- the model

    def hidden(self, batch: Batch) -> Tensor:
        """[B, T, D] after the final norm."""
        x = self.weights["embed_tokens.weight"][batch.tokens]
        for i in range(self.config.num_hidden_layers):
            x = self.block(x, f"layers.{i}", batch.segments)
        return self.normed(x, "norm", self.config.rms_norm_eps)

    def deeper(self, h: Tensor, batch: Batch, depth: int) -> Tensor:
        """One MTP module: position i joins h_i with the embedding of token i+1+depth."""
        length, eps, name = batch.tokens.shape[1] - 1 - depth, self.config.rms_norm_eps, f"mtp.{depth}"
        embedded = self.weights["embed_tokens.weight"][batch.tokens[:, 1 + depth :]]
        both = (self.normed(embedded, f"{name}.enorm", eps), self.normed(h[:, :length], f"{name}.hnorm", eps))
        segments = None if batch.segments is None else batch.segments[:, :length]
        x = self.block(self.times(torch.cat(both, dim=-1), f"{name}.eh_proj"), f"{name}.block", segments)
        return self.normed(x, f"{name}.norm", eps)

    def logits(self, h: Tensor) -> Tensor:
        return self.times(h, "lm_head")


# ---- losses


def sequence_balance(scores_BTE: Tensor, top_k: int) -> Tensor:
    """Eq. 17-20 without alpha, mean over sequences."""
    batch, tokens, experts = scores_BTE.shape
    total = torch.zeros((), dtype=scores_BTE.dtype)
    for row in scores_BTE:
        best = [s.topk(top_k).indices.tolist() for s in row]
        for i in range(experts):
            chosen = sum(i in indices for indices in best)
            share = torch.stack([s[i] / s.sum() for s in row]).sum()
            total = total + experts / (top_k * tokens) * chosen * share / tokens
    return total / batch


def unpadded(scores_BTE: Tensor, batch: Batch) -> list[Tensor]:
    """[1, real tokens, E] of each row."""
    if batch.segments is None:
        return list(scores_BTE.split(1))
    positions = [[t for t in range(scores_BTE.shape[1]) if int(s[t]) >= 0] for s in batch.segments]
    return [row[None, own] for row, own in zip(scores_BTE, positions, strict=True)]


def mtp_target(batch: Batch, row: int, i: int, depth: int) -> int:
    """What depth `depth` must predict at position i: token i+2+depth, if it is trained and of the same sample."""
    last = i + 2 + depth  # labels[t] is token t+1, so the label at last-1 is token `last`
    if last - 1 >= batch.tokens.shape[1]:
        return IGNORE
    if batch.segments is not None and len({int(s) for s in batch.segments[row, i:last]}) > 1:
        return IGNORE
    return int(batch.labels[row, last - 1])


def total_loss(model: NaiveModel, batch: Batch, mtp_lambda: float, alpha: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(total, main, per depth); MTP divides by the main loss's token count (Eq. 24)."""
    rows, length = batch.tokens.shape
    trained = sum(int(label) != IGNORE for label in batch.labels.flatten())
    depths_of_model = model.config.num_nextn_predict_layers

    def loss(logits: Tensor, targets: list[list[int]]) -> Tensor:
        out = torch.zeros((), dtype=torch.float64)
        for r, row in enumerate(targets):
            for i, target in enumerate(row):
                if target != IGNORE:
                    out = out - logits[r, i].log_softmax(-1)[target]
        return out / trained

    h = model.hidden(batch)
    main = loss(model.logits(h), batch.labels.tolist())
    depths = []
    for depth in range(depths_of_model):
        h = model.deeper(h, batch, depth)
        targets = [[mtp_target(batch, r, i, depth) for i in range(length - 1 - depth)] for r in range(rows)]
        depths.append(loss(model.logits(h), targets))
    top_k = model.config.num_experts_per_tok
    balance = torch.stack([sequence_balance(s, top_k) for layer in model.scores for s in unpadded(layer, batch)]).sum()
    balance = balance / rows
    total = main + mtp_lambda / depths_of_model * torch.stack(depths).sum() + alpha * balance
    return total, main, depths
