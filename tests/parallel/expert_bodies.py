"""What the ranks do in tests of expert parallelism, and the same on one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from parallel.training_bodies import joined
from small_models import V3, make_model, random_tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.config import ModelConfig
from fathom.kernels.adamw import AdamW
from fathom.kernels.mixed import Arithmetic
from fathom.kernels.reference import quantize_tiles
from fathom.model.moe import Experts, MoE, Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.expert import expert_blocks, expert_parallel, expert_ranges, is_routed, traffic
from fathom.parallel.expert_reference import gather_experts
from fathom.parallel.mesh import Layout, Mesh
from fathom.parallel.zero import Zero1
from fathom.train.precision import prepare

ROWS, LENGTH = 4, 9
V2 = V3.replace(
    model_type="deepseek_v2", num_nextn_predict_layers=0, scoring_func="softmax", topk_method="greedy",
    n_group=1, topk_group=1, norm_topk_prob=False, n_shared_experts=0,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model on some ranks."""

    layout: Layout
    config: ModelConfig = V3
    crowded: bool = False  # all tokens choose experts of the first rank
    recompute: bool = False
    by_hand: bool = False  # layers that add their weight gradients themselves, through a queue

    def model(self) -> DeepseekV3:
        model = make_model(self.config)
        for block in expert_blocks(model) if self.crowded else []:
            bias = block.mlp.gate.e_score_correction_bias
            bias += torch.arange(len(bias)) < len(bias) // self.layout.expert  # scores are below 1
        return prepare(model, Arithmetic()) if self.by_hand else model


def loss_of(model: DeepseekV3, tokens: Tensor, recompute: bool = False) -> Tensor:
    """Sum over these rows, over the number of tokens of all rows: main loss and MTP."""
    if recompute:
        for block in expert_blocks(model):
            forward = type(block).forward
            block.forward = lambda *args, _b=block, _f=forward, **options: checkpoint(  # type: ignore[method-assign]
                _f, _b, *args, use_reentrant=False, **options
            )
    cross_entropy, head = model.ops.linear_cross_entropy, model.lm_head.weight
    h = model.hidden(tokens)
    total = cross_entropy(h[:, :-1].flatten(0, 1), head, tokens[:, 1:].flatten())
    for depth in range(len(model.mtp)):
        h = model.mtp_hidden(h, tokens, depth)
        total = total + 0.3 * cross_entropy(h[:, :-1].flatten(0, 1), head, tokens[:, 2 + depth :].flatten())
    return total / (ROWS * (LENGTH - 1))


def whole_run(case: Case) -> dict[str, Any]:
    """One process, all rows."""
    model, tokens = case.model(), random_tokens(case.config, ROWS, LENGTH)
    loss = loss_of(model, tokens)
    loss.backward()
    with torch.no_grad():
        logits = model(tokens)
    return {
        "loss": float(loss.detach()),
        "logits": logits,
        "gradients": {n: p.grad for n, p in model.named_parameters()},
    }


def rank_run(case: Case, mesh: Mesh, slow: bool = False) -> dict[str, Any]:
    """This rank's rows; gradients summed over the ranks that hold the same weights."""
    model = expert_parallel(case.model(), mesh, dispatch="fp32")
    if slow:
        gather_experts(model, mesh)
    tokens = random_tokens(case.config, ROWS, LENGTH)[mesh.data.rank :: mesh.data.size]
    loss = loss_of(model, tokens, case.recompute)
    loss.backward()
    gradients, silent = {}, 0
    for name, p in model.named_parameters():
        group = mesh.expert_data if is_routed(name) else mesh.data
        silent += p.grad is None
        gradients[name] = group.sum((torch.zeros_like(p) if p.grad is None else p.grad).clone())
    with torch.no_grad():
        logits = model(tokens)
    return {
        "loss": float(mesh.data.sum(loss.detach())), "logits": logits, "gradients": gradients,
        "ranges": expert_ranges(model, mesh), "silent": silent,
    }  # fmt: skip


def expert_runs(cases: list[Case]) -> list[list[dict[str, Any]]]:
    """Every case once; the first one again, and in the slow form."""
    with joined(cases[0].layout) as mesh:
        first = [rank_run(cases[0], mesh), rank_run(cases[0], mesh), rank_run(cases[0], mesh, slow=True)]
        return [first, *([rank_run(case, mesh)] for case in cases[1:])]


# ---- one layer in FP8 ----------------------------------------------------------------------------------------------

WIDE = V3.replace(hidden_size=160, moe_intermediate_size=32)  # a whole tile and a part of one
TOKENS = 24


def make_layer() -> MoE:
    mlp = expert_blocks(make_model(WIDE))[0].mlp
    assert isinstance(mlp, MoE)
    return mlp


def layer_inputs() -> tuple[Tensor, Tensor]:
    """Hidden states and the gradient of the output, [1, TOKENS, D], with channels of very different sizes."""
    generator = torch.Generator().manual_seed(5)
    spread = torch.randn(2, 1, 1, WIDE.hidden_size, generator=generator).exp()
    x, grad = torch.randn(2, 1, TOKENS, WIDE.hidden_size, generator=generator) * spread
    return x, grad * 1e-3


def run_layer(mlp: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    record: list[Routing] = []
    y = mlp(x, record)
    y.backward(grad)
    gradients = {n: p.grad for n, p in mlp.named_parameters()}
    return {"y": y.detach(), "x": x.grad, "gradients": gradients, "indices": record[0].indices}


class Journey(torch.autograd.Function):
    """What happens to values on the wire, without a wire: "fp8" or "bf16" there, the other for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: str, back: str) -> Tensor:
        ctx.back = back
        return rounded(x, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return rounded(grads[0], ctx.back), None, None


def rounded(x: Tensor, wire: str) -> Tensor:
    if wire == "bf16":
        return x.bfloat16().float()
    values, scale = quantize_tiles(F.pad(x, (0, -x.shape[-1] % 128)), scale_fmt="ue8m0")
    return (values.float().unflatten(-1, (-1, 128)) * scale[..., None]).flatten(-2)[..., : x.shape[-1]]


class PretendedRanks(nn.Module):
    """Routed experts on one process with the roundings of a dispatch to `ranks` ranks and the combine."""

    def __init__(self, experts: Experts, ranks: int) -> None:
        super().__init__()
        self.gate_up, self.down, self.whole, self.ranks = experts.gate_up, experts.down, [experts], ranks

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        rank_of = indices // (len(self.gate_up) // self.ranks)
        y = torch.zeros_like(x)
        for rank in range(self.ranks):
            there = Journey.apply(x, "fp8", "bf16")
            y = y + Journey.apply(self.whole[0](there, indices, weights * (rank_of == rank)), "bf16", "fp8")
        return y


def run_split(mlp: nn.Module, inputs: tuple[Tensor, Tensor], mesh: Mesh) -> dict[str, Any]:
    """This rank's tokens through a transformed layer, gradients summed."""
    x, grad = (t[:, mesh.rank :: mesh.world.size] for t in inputs)
    out = run_layer(mlp, x, grad)
    for name, gradient in out["gradients"].items():
        group = mesh.expert_data if name.startswith("experts.") else mesh.data
        out["gradients"][name] = group.sum(gradient.clone())
    return out


def fp8_layer(layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """FP8 dispatch with FP32 products, and with FP8 products."""
    with joined(layout) as mesh:
        model = expert_parallel(make_model(WIDE), mesh, dispatch="fp8")
        assert len(traffic(model)) == 4, "two main layers, two MTP modules"
        out = run_split(expert_blocks(model)[0].mlp, layer_inputs(), mesh)
        out["traffic"] = traffic(model)[0]
        model = expert_parallel(prepare(make_model(WIDE), Arithmetic("fp8")), mesh, dispatch="fp8")
        return out, run_split(expert_blocks(model)[0].mlp, bf16_inputs(), mesh)


def bf16_inputs() -> tuple[Tensor, Tensor]:
    """What layers in mixed precision pass on: BF16 values."""
    x, grad = layer_inputs()
    return x.bfloat16().float(), grad.bfloat16().float()


def fp8_layer_alone() -> dict[str, Any]:
    mlp = expert_blocks(prepare(make_model(WIDE), Arithmetic("fp8")))[0].mlp
    return run_layer(mlp, *bf16_inputs())


# ---- with ZeRO -----------------------------------------------------------------------------------------------------


def norm_and_pieces(mesh: Mesh) -> dict[str, Any]:
    """Squared gradient norm of one step of expert parallelism with ZeRO, and where the pieces lie."""
    model = expert_parallel(make_model(V3), mesh, dispatch="fp32")
    ranges, parameters = expert_ranges(model, mesh), dict(model.named_parameters())
    zero = Zero1(parameters, mesh, AdamW(), routed=is_routed, shapes=ranges)
    loss_of(model, random_tokens(V3, ROWS, LENGTH)[mesh.data.rank :: mesh.data.size]).backward()
    zero.reduce()
    square = float(mesh.world.sum(zero.square_sum()))
    pieces = [(p.name, p.whole, p.start, p.data.clone()) for p in zero.pieces() if p.name.startswith("model.")]
    zero.step(lr=0.0)
    return {"square": square, "pieces": pieces}


def with_zero(layout: Layout) -> dict[str, Any]:
    with joined(layout) as mesh:
        return norm_and_pieces(mesh)
