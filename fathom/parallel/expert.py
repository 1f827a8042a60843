"""Expert parallelism (report section 3.2.2): the ranks of mesh.expert hold one copy of all routed experts between them.

    gate -> dispatch ------------> own experts -> combine ------> sum of the rows that came back
               \\-- shared experts --/                              (all-to-all both times, ragged)

    dispatch   a token goes to every rank that holds one of its experts, ONCE, with the local numbers of those experts
               and their weights. FP8: 1x128 tiles, power-of-two scales (section 3.3.3)
    experts    one row per (token, own expert), weighted and summed per token: one row per token and rank goes back
    combine    BF16; the origin adds up at most K rows per token, in FP32
    backward   the combine's gradient is dispatched (FP8 likewise), the dispatch's gradient is combined (BF16), and with
               it comes the gradient of the weights: each rank knows y_e, hence dL/dg = <dL/dy, y_e>

Experts that compute in FP8 would quantise the same rows in the same tiles: an FP8 dispatch costs them nothing more, but
that the weight gradient of their down-projection sees the gradient as it travelled.

With wire "fp32" both directions are plain FP32: for exact tests. "bf16" is BF16 both ways.

Node-limited routing: the gate keeps topk_group of n_group groups of experts. When the groups are the nodes, at most
topk_group nodes get a token. `Traffic` counts what really travels.

Deviations
 1. A token travels once per rank, not once per node and then on inside it: torch.distributed has no such two-hop
    exchange. Traffic.nodes says how often it would cross the network with two hops.
 2. Shared experts overlap with the dispatch, forward and backward; micro-batches do not overlap with each other here.

A rank that nobody sends to takes part with zero rows. Collectives are in the same order on all ranks, for the graphs
differ in the number of rows only.

Shapes: T own tokens, D hidden, K experts per token, E all experts, R ranks, S rows sent, N rows received, P pairs
(row received, own expert).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fathom.model.block import Block
from fathom.model.moe import MoE, Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.all_to_all import WIRES, Message, collect, receive, send, spread
from fathom.parallel.group import Group
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError

KINDS = ("dispatch", "combine", "gradient_dispatch", "gradient_combine")  # the last two: the backward pass


@dataclass
class Traffic:
    """What one rank has sent since `clear`. bytes[kind][r]: to rank r of the group; to itself nothing is sent."""

    rank: int
    bytes: dict[str, list[int]] = field(default_factory=dict)
    tokens: int = 0  # routed here
    rows: int = 0  # (token, rank) pairs, the own rank included
    nodes: int = 0  # (token, group of experts) pairs

    def add(self, kind: str, rows: Sequence[int], row_bytes: int) -> None:
        """One message."""
        so_far = self.bytes.setdefault(kind, [0] * len(rows))
        self.bytes[kind] = [
            old + (0 if to == self.rank else n * row_bytes)
            for to, (old, n) in enumerate(zip(so_far, rows, strict=True))
        ]

    def total(self, kind: str) -> int:
        """Bytes of one of KINDS to all other ranks."""
        return sum(self.bytes.get(kind, []))

    def clear(self) -> None:
        """Count from zero."""
        self.bytes, self.tokens, self.rows, self.nodes = {}, 0, 0, 0


@dataclass(frozen=True)
class Plan:
    """Which token goes where. Rows are in order of (target rank, token)."""

    token_S: Tensor
    ids_SK: Tensor  # int16: the expert's number on the target rank, -1 where slot k went elsewhere
    sent: list[int]
    received: list[int]

    @classmethod
    def make(cls, indices_TK: Tensor, experts_per_rank: int, group: Group) -> Plan:
        """One small all-to-all tells every rank how many rows will come."""
        rank_TK = indices_TK // experts_per_rank
        chosen_RT = torch.zeros(group.size, indices_TK.shape[0], dtype=torch.bool, device=indices_TK.device)
        chosen_RT.scatter_(0, rank_TK.T, True)
        target_S, token_S = chosen_RT.nonzero(as_tuple=True)
        there_SK = rank_TK[token_S] == target_S[:, None]
        ids_SK = torch.where(there_SK, indices_TK[token_S] % experts_per_rank, -1).to(torch.int16)
        counts = chosen_RT.sum(1)
        coming = torch.empty_like(counts)
        group.all_to_all(coming, counts, [1] * group.size, [1] * group.size).wait()
        sent, received = torch.stack((counts, coming)).tolist()
        return cls(token_S, ids_SK, sent, received)


class ExpertParallelMoE(MoE):
    """A finished MoE layer whose experts are spread over `group`; names and signature stay."""

    def __init__(self, whole: MoE, group: Group, wire: str) -> None:
        nn.Module.__init__(self)  # the parts exist already
        self.gate, self.experts, self.shared_experts = whole.gate, whole.experts, whole.shared_experts
        self.group, self.traffic = group, Traffic(group.rank)
        self.wires = (wire, "fp32" if wire == "fp32" else "bf16")
        self.experts_per_rank = whole.experts.gate_up.shape[0] // group.size
        for name in ("gate_up", "down"):
            stack = getattr(whole.experts, name)
            own = stack.detach().narrow(0, group.rank * self.experts_per_rank, self.experts_per_rank)
            part = nn.Parameter(own.clone(memory_format=torch.contiguous_format), requires_grad=stack.requires_grad)
            setattr(self.experts, name, part)  # memory of its own, so that the whole can be freed

    def forward(self, x_BTD: Tensor, record: list[Routing] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; a collective: all ranks of the group must call it, with any number of tokens."""
        routing: Routing = self.gate(x_BTD)
        if record is not None:
            record.append(routing)
        x, indices, weights = x_BTD.flatten(0, 1), routing.indices.flatten(0, 1), routing.weights.flatten(0, 1)
        plan = Plan.make(indices, self.experts_per_rank, self.group)
        self._count(plan, indices)
        weights_SK = spread(weights, plan.token_S, plan.sent).masked_fill(plan.ids_SK < 0, 0.0)
        dispatch = self._message(plan.sent, plan.received, ("dispatch", "gradient_combine"))
        ticket = send(spread(x, plan.token_S, plan.sent), weights_SK, plan.ids_SK, dispatch)
        shared = None if self.shared_experts is None else self.shared_experts(x_BTD)
        rows_ND, weights_NK, ids_NK = receive(ticket, dispatch, x.shape[1], weights.shape[1], x.dtype)
        y_ND = self._own_experts(rows_ND, weights_NK, ids_NK)
        combine = self._message(plan.received, plan.sent, ("combine", "gradient_dispatch"))
        ticket = send(y_ND, y_ND.new_empty(len(y_ND), 0), ids_NK[:, :0], combine)
        y_SD, _, _ = receive(ticket, combine, x.shape[1], 0, torch.float32)
        y = collect(y_SD, plan.token_S, plan.sent, x.shape[0]).to(x.dtype).view_as(x_BTD)
        return y if shared is None else y + shared

    def _own_experts(self, x_ND: Tensor, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
        """[N, D] FP32: per row the weighted sum over its experts here. The experts weigh: so the gradient that reaches
        their down-projection is the one that travelled, not rounded to FP8 a second time."""
        here_KN = (ids_NK >= 0).T
        slot_P, row_P = here_KN.nonzero(as_tuple=True)
        chunks = here_KN.sum(1).tolist()
        y_PD = spread(x_ND, row_P, chunks)
        if len(row_P):
            y_PD = self.experts(y_PD, ids_NK[row_P, slot_P, None].long(), weights_NK[row_P, slot_P, None])
        return collect(y_PD.float(), row_P, chunks, len(x_ND))

    def _message(self, sent: list[int], received: list[int], kinds: tuple[str, str]) -> Message:
        """A dispatch has the dispatch's precision, its gradient the combine's; a combine the other way round."""
        wires = self.wires if kinds[0] == "dispatch" else self.wires[::-1]
        return Message(
            self.group, sent, received, wires, lambda back, rows, size: self.traffic.add(kinds[back], rows, size)
        )

    @torch.no_grad()
    def _count(self, plan: Plan, indices_TK: Tensor) -> None:
        config, traffic = self.gate.config, self.traffic
        group_TK = indices_TK // (config.n_routed_experts // config.n_group)
        visited = torch.zeros(len(indices_TK), config.n_group, dtype=torch.bool, device=indices_TK.device)
        traffic.tokens += len(indices_TK)
        traffic.rows += sum(plan.sent)
        traffic.nodes += int(visited.scatter_(1, group_TK, True).sum())


def expert_parallel(model: DeepseekV3, mesh: Mesh, *, dispatch: str) -> DeepseekV3:
    """Keep this rank's experts in place: gate_up and down become [E / ranks, ...] under the same names.

    dispatch: what travels there, "fp8", "bf16" or "fp32" (see above). On one rank nothing travels and nothing changes.
    UserError, before any change, when the experts do not divide.
    """
    if dispatch not in WIRES:
        raise UserError(f"dispatch {dispatch!r} is not known; use one of {', '.join(WIRES)}")
    experts, ranks = model.config.n_routed_experts, mesh.expert.size
    if ranks == 1:
        return model
    if not experts or experts % ranks:
        raise UserError(
            f"parallel.expert is {ranks}, which does not divide the model's n_routed_experts {experts}; "
            "choose one of its divisors"
        )
    for block in expert_blocks(model):
        assert isinstance(block.mlp, MoE)
        block.mlp = ExpertParallelMoE(block.mlp, mesh.expert, dispatch)
    return model


def expert_blocks(model: DeepseekV3) -> list[Block]:
    """All blocks with routed experts: main layers, then MTP modules."""
    blocks = [*model.layers, *(module.block for module in model.mtp)]
    return [block for block in blocks if isinstance(block.mlp, MoE)]


def is_routed(name: str) -> bool:
    """Whether a parameter's name is one of routed experts: these differ between the ranks of mesh.expert."""
    return ".mlp.experts." in name


def expert_ranges(model: nn.Module, mesh: Mesh) -> dict[str, tuple[torch.Size, int]]:
    """Per routed tensor of a transformed model (or a part of one): shape of the whole stack, first element of the own
    range of it; for zero.py and checkpoints."""
    size, rank = mesh.expert.size, mesh.expert.rank
    return {
        name: (torch.Size((p.shape[0] * size, *p.shape[1:])), rank * p.numel())
        for name, p in model.named_parameters()
        if is_routed(name)
    }


def first_experts(model: nn.Module, mesh: Mesh) -> dict[str, int]:
    """Per routed tensor of a transformed model: the number of the first expert that this rank holds."""
    return {n: mesh.expert.rank * p.shape[0] for n, p in model.named_parameters() if is_routed(n)}


def traffic(model: nn.Module) -> list[Traffic]:
    """The counters of all transformed layers, in order; empty without expert parallelism."""
    return [m.traffic for m in model.modules() if isinstance(m, ExpertParallelMoE)]
