"""What the ranks do in tests of fsdp.py: the same steps under either sharding."""

from __future__ import annotations

from typing import Any

import torch
from parallel.expert_bodies import LENGTH, ROWS, loss_of
from parallel.training_bodies import joined
from small_models import V3, make_model, random_tokens

from fathom.config import ModelConfig
from fathom.kernels.adamw import AdamW
from fathom.kernels.mixed import Arithmetic
from fathom.model.transformer import DeepseekV3
from fathom.parallel.expert import is_routed
from fathom.parallel.fsdp import Fsdp2
from fathom.parallel.mesh import Layout, Mesh
from fathom.parallel.zero import Zero1
from fathom.train.precision import prepare

TIED = V3.replace(tie_word_embeddings=True, num_nextn_predict_layers=1)
STEPS = 2


def make(config: ModelConfig, by_hand: bool) -> DeepseekV3:
    """With `by_hand`, linear layers and experts add their weight gradients themselves."""
    model = make_model(config)
    return prepare(model, Arithmetic()) if by_hand else model


def steps(sharding: str, mesh: Mesh, config: ModelConfig, by_hand: bool, micro: int) -> dict[str, Any]:
    """Some steps of micro-batches of `micro` rows, evaluation in between; final pieces and what was measured."""
    model = make(config, by_hand)
    zero: Fsdp2 | Zero1
    if sharding == "fsdp2":
        zero = Fsdp2(model, mesh, AdamW(), ema=0.5)
    else:
        zero = Zero1(dict(model.named_parameters()), mesh, AdamW(), routed=is_routed, ema=0.5)
    squares, losses = [], []
    for step in range(STEPS):
        tokens = random_tokens(config, ROWS, LENGTH, seed=step)[mesh.data.rank :: mesh.data.size]
        total = 0.0
        for rows in tokens.split(micro):
            loss = loss_of(model, rows, recompute=not by_hand)
            loss.backward()
            total += float(loss.detach())
        zero.reduce()
        squares.append(float(mesh.world.sum(zero.square_sum())))
        losses.append(float(mesh.data.sum(torch.tensor(total))))
        with torch.no_grad():
            loss_of(model, tokens)  # leaves gathered weights behind
        zero.step(lr=0.01, scale=0.5)
    tokens = random_tokens(config, ROWS, LENGTH)[mesh.data.rank :: mesh.data.size]
    with torch.no_grad():
        now = float(loss_of(model, tokens))
        with zero.ema_weights():
            averaged = float(loss_of(model, tokens))
        assert float(loss_of(model, tokens)) == now
    pieces = [(p.name, p.whole, p.start, p.data.clone()) for p in zero.pieces()]
    for piece in zero.pieces(loading=True):
        if piece.name.startswith("model."):
            piece.data.zero_()
    zero.gather()
    with torch.no_grad():
        empty = float(loss_of(model, tokens))
    return {
        "pieces": pieces, "squares": squares, "losses": losses, "now": now, "averaged": averaged, "empty": empty,
    }  # fmt: skip


CASES = [(V3, False, ROWS), (V3, True, 1), (TIED, True, ROWS)]


def both(size: int) -> list[dict[str, Any]]:
    with joined(Layout(data=size)) as mesh:
        return [{name: steps(name, mesh, *case) for name in ("zero1", "fsdp2")} for case in CASES]
