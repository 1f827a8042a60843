"""From a finished model to this rank's part of a training run: the transformations, in their order.

    model -> recompute -> precision -> expert parallel -> pipeline stages -> weights -> ZeRO-1 (or FSDP2)

A model comes on the meta device, so that a rank has memory for its own part alone. No transformation knows the
others, and the model knows none. What the loop needs of them is here: how to run a step's micro-batches forward and
backward, and what to evaluate with.
"""

from __future__ import annotations

from collections import UserList
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fathom.checkpoint.reader import fill_part
from fathom.kernels.adamw import AdamW
from fathom.kernels.deferred import WeightGradients
from fathom.kernels.mixed import Arithmetic
from fathom.kernels.muon import Muon, fast_products
from fathom.model.initialise import initialise, materialise
from fathom.model.moe import Gate, Routing
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve
from fathom.parallel.expert import expert_parallel, expert_ranges, first_experts, is_routed
from fathom.parallel.fsdp import Fsdp2, check_fsdp2
from fathom.parallel.mesh import Layout, Mesh
from fathom.parallel.pipeline import Report, StageFunction, copied, run, tie
from fathom.parallel.schedules import Action, Schedule, schedule
from fathom.parallel.stage import Stage, named_parameters, split
from fathom.parallel.zero import Zero1
from fathom.runtime import UserError
from fathom.text.dataset import Batch
from fathom.train.balance import expert_load
from fathom.train.config import TrainConfig
from fathom.train.lora import add_adapters, initialise_adapters
from fathom.train.objective import Objective, Weights, balance_loss, head_loss, real, whole_loss
from fathom.train.precision import arithmetic, prepare
from fathom.train.qk_clip import QKClip
from fathom.train.recompute import recompute
from fathom.train.selection import freeze, part_of, trains


def layout_of(config: TrainConfig, world: int) -> Layout:
    """The layout for `world` processes; UserError when they do not fit it."""
    p = config.parallel
    if world % p.pipeline:
        raise UserError(f"parallel.pipeline {p.pipeline} does not divide the {world} processes; start a multiple of it")
    data = p.data or world // p.pipeline
    if p.pipeline * data != world:
        raise UserError(
            f"parallel.pipeline {p.pipeline} x parallel.data {data} needs {p.pipeline * data} processes, {world} were "
            "started; leave parallel.data at 0 to take them all"
        )
    return Layout(p.pipeline, data, p.expert)


def check_rows(config: TrainConfig, rows: int, data_ranks: int) -> None:
    """UserError unless a step of `rows` rows divides over the data ranks and its micro-batches fill the pipeline."""
    if rows % data_ranks:
        raise UserError(f"{rows} rows of a step do not divide over {data_ranks} data ranks; start another number")
    if (ranks := config.parallel.pipeline) > 1:
        schedule(config.parallel.schedule, ranks, -(-rows // data_ranks // config.data.micro_rows))


class Record(UserList[Routing]):
    """What gates decided. Among a module's arguments fully_shard copies lists; this is none, and is passed on."""

    @classmethod
    def new(cls) -> list[Routing]:
        """Typed as what the model expects; it only ever appends."""
        return cast("list[Routing]", cls())


@dataclass
class Totals:
    """Sums over this rank's micro-batches. loads: [all gates, experts], zero for gates of other ranks."""

    main: Tensor
    mtp: Tensor
    loads: Tensor
    report: Report | None = None


class Parts:
    """One rank's part."""

    def __init__(self, config: TrainConfig, model: DeepseekV3, mesh: Mesh, objective: Objective = whole_loss) -> None:
        p, device = config.precision, mesh.world.device
        self.config, self.mesh, self.model, self.objective = config, mesh, model, objective
        self.how: Arithmetic = arithmetic(p.gemm, device, scale=p.scale, gradients=p.gradients)
        names = [name for name, module in model.named_modules() if isinstance(module, Gate)]
        recompute(model, p.recompute)
        prepare(model, self.how)
        wire = self.how.gemm if config.parallel.dispatch == "auto" else config.parallel.dispatch
        expert_parallel(model, mesh, dispatch=wire)
        add_adapters(model, config.lora)
        self.stages: dict[int, Stage] = {}
        if mesh.pipeline.size > 1:
            ranks = mesh.pipeline.size
            # who holds which stage does not depend on the number of micro-batches
            self.schedule = schedule(config.parallel.schedule, ranks, 2 * ranks)
            self.stages = {s: split(model, s, self.schedule.stages) for s in self.schedule.held(mesh.pipeline.rank)}
        self._fill_own()
        self.trained = self._freeze()
        self.gates = self._own_gates(model, names)
        self.balanced = {i: g for i, g in self.gates.items() if trains(f"{names[i]}.weight", config.run.train)}
        self.gate_count = len(names)
        self.zero = self._zero()
        tau = config.optim.qk_clip
        self.clip = QKClip(model, self._own(), tau, mesh.data) if tau else None

    @property
    def queue(self) -> WeightGradients:
        """Where layers hand in weight gradients."""
        assert self.how.queue is not None
        return self.how.queue

    def _own(self) -> dict[str, nn.Parameter]:
        return named_parameters(self.stages) if self.stages else dict(self.model.named_parameters())

    def _fill_own(self) -> None:
        """Weights for a model that came without memory, fresh ones or run.init_from's: of this rank's part only."""
        if not any(p.is_meta for p in self._own().values()):
            return
        made: dict[int, nn.Parameter] = {}
        parts: list[nn.Module] = [*self.stages.values()] or [self.model]
        for part in parts:
            materialise(part, self.mesh.world.device, made)
        own, run, first = self._own(), self.config.run, first_experts(self.model, self.mesh)
        fresh = own
        if run.init_from:
            biases = {name: bias for part in parts for name, bias in part.named_buffers()}
            absent = fill_part(resolve(run.init_from), own | biases, first)
            fresh = {name: p for name, p in own.items() if name in absent}  # adapters, MTP of a model that had none
        adapters = {name: p for name, p in fresh.items() if part_of(name) == "lora"}
        others = {name: p for name, p in fresh.items() if name not in adapters}
        initialise(others, self.model.config.initializer_range, run.seed, first)
        initialise_adapters(adapters, run.seed, first)

    def _freeze(self) -> dict[str, nn.Parameter]:
        """What trains of this rank's part."""
        parts = self.config.run.train
        trained = freeze(self._own(), parts)
        if absent := [part for part in parts if part != "all" and part not in {part_of(name) for name in trained}]:
            raise UserError(f"run.train names {absent[0]!r}, of which this model has nothing")
        return trained

    def _own_gates(self, model: DeepseekV3, names: list[str]) -> dict[int, Gate]:
        """Number in the whole model -> gate, of what this rank computes."""
        gates = {i: model.get_submodule(name) for i, name in enumerate(names)}
        if self.stages:
            own = {id(m) for stage in self.stages.values() for m in stage.modules()}
            gates = {i: gate for i, gate in gates.items() if id(gate) in own}
        return {i: gate for i, gate in gates.items() if isinstance(gate, Gate)}

    def _zero(self) -> Zero1 | Fsdp2:
        o, stages = self.config.optim, self.stages
        parameters = self.trained
        moments = torch.bfloat16 if o.moments == "bf16" else torch.float32
        rule = AdamW(o.beta1, o.beta2, o.eps, o.weight_decay, moments)
        muon = self._muon(moments) if o.kind == "muon" else None
        if self.config.parallel.sharding == "fsdp2":
            check_fsdp2(self.mesh.layout)
            return Fsdp2(self.model, self.mesh, rule, ema=o.ema_decay or None, muon=muon)
        ranges = {n: r for n, r in expert_ranges(self.model, self.mesh).items() if n in parameters}
        tied: set[str] = set()
        if stages and self.schedule.home(0) != self.schedule.home(self.schedule.stages - 1):
            tied = {"embed_tokens.weight"} if any(s.shares_embedding for s in stages.values()) else set()
        elsewhere = copied(self.schedule, self.mesh.pipeline.rank, stages) if stages else set()
        return Zero1(
            parameters, self.mesh, rule, routed=is_routed, shapes=ranges, shared=tied, shared_elsewhere=elsewhere,
            ema=o.ema_decay, muon=muon,
        )  # fmt: skip

    def _muon(self, moment: torch.dtype) -> Muon:
        o = self.config.optim
        products = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(o.newton_schulz)
        return Muon(o.momentum, o.weight_decay, moment, products or fast_products(self.mesh.world.device))

    # ---- one step --------------------------------------------------------------------------------------------------

    def forward_backward(self, batch: Batch, w: Weights) -> Totals:
        """All of this rank's micro-batches of the step's whole `batch`; gradients are added to the parameters'."""
        micro_rows, own = self.config.data.micro_rows, self.mesh.data
        rows, left = divmod(batch.tokens.shape[0], own.size)
        assert not left, f"{batch.tokens.shape[0]} rows do not divide over {own.size} data ranks"
        mine = batch.rows(own.rank * rows, (own.rank + 1) * rows).to(own.device)
        parts = [mine.rows(start, start + micro_rows) for start in range(0, rows, micro_rows)]
        depths = self.model.config.num_nextn_predict_layers
        zero = torch.zeros((), device=own.device)
        loads = torch.zeros(self.gate_count, self.model.config.n_routed_experts, dtype=torch.int64, device=own.device)
        if self.clip:
            self.clip.start()
        totals = Totals(zero.clone(), torch.zeros(depths, device=own.device), loads)
        if self.stages:
            self._pipelined(parts, w, totals)
        else:
            for part in parts:
                record = Record.new()
                with self._fast_bf16():
                    loss = self.objective(self.model, part, w, record)
                loss.total.backward()
                self._add(totals, loss.main, loss.mtp)
                self._count(totals, list(self.gates)[loss.first_gate :], record, part)
        return totals

    def _pipelined(self, parts: list[Batch], w: Weights, totals: Totals) -> None:
        plan = schedule(self.config.parallel.schedule, self.mesh.pipeline.size, len(parts))
        top_k = self.model.config.num_experts_per_tok

        def stage_function(stage: Stage) -> StageFunction:
            numbers = [i for i, gate in self.gates.items() if any(gate is m for m in stage.modules())]

            def compute(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
                record = Record.new()
                part = parts[micro]
                last = stage.index == plan.stages - 1
                with self._fast_bf16():
                    h = stage(x, part.tokens, part.segments, record)
                    head = head_loss(stage, h, part, w, record) if last else None
                balance = balance_loss(record, top_k, w, real(part))
                self._count(totals, numbers, record, part)
                if head is None:
                    return h, balance
                self._add(totals, head.main, head.mtp)
                return None, head.total if balance is None else head.total + balance

            return compute

        width = self.model.config.hidden_size
        shapes = [(*part.tokens.shape, width) for part in parts]
        functions = {i: stage_function(stage) for i, stage in self.stages.items()}
        totals.report = run(plan, functions, self.mesh.pipeline, shapes, self.queue)
        tie(plan, self.stages, self.mesh.pipeline)

    def _fast_bf16(self) -> torch.autocast:
        """Where BF16 matmuls are fast, the head and attention's core run in it too; where it is carried, in FP32."""
        on = self.how.gemm != "fp32" and not self.how.carry_bf16
        return torch.autocast(self.mesh.world.device.type, dtype=torch.bfloat16, enabled=on)

    def _add(self, totals: Totals, main: Tensor, mtp: tuple[Tensor, ...]) -> None:
        totals.main += main
        for depth, loss in enumerate(mtp):
            totals.mtp[depth] += loss

    def _count(self, totals: Totals, numbers: list[int], record: list[Routing], part: Batch) -> None:
        keep = real(part)
        for number, routing in zip(numbers, record, strict=False):  # MTP may be off: its gates saw nothing
            totals.loads[number] += expert_load(routing, keep)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def nats(self, batch: Batch) -> float:
        """Sum of -log p over the batch's labels; every rank must call it and every rank gets it."""
        batch = batch.to(self.mesh.world.device)
        if not self.stages:
            h = self.model.hidden(batch.tokens, segments=batch.segments)
            return _nats(self.model, h, batch)
        found = torch.zeros((), dtype=torch.float64, device=self.mesh.world.device)

        def stage_function(stage: Stage) -> StageFunction:
            def compute(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
                h = stage(x, batch.tokens, batch.segments)
                if stage.index < plan.stages - 1:
                    return h, None
                found.fill_(_nats(stage, h, batch))
                return None, found.float()

            return compute

        plan = forward_only(self.schedule)
        functions = {i: stage_function(stage) for i, stage in self.stages.items()}
        shape = (*batch.tokens.shape, self.model.config.hidden_size)
        run(plan, functions, self.mesh.pipeline, [shape], self.queue)
        return float(self.mesh.pipeline.sum(found))


def forward_only(plan: Schedule) -> Schedule:
    """One micro-batch through all stages of `plan`, wherever they are."""
    steps = tuple(tuple(Action("F", stage, 0) for stage in plan.held(rank)) for rank in range(plan.ranks))
    return Schedule("forward", plan.ranks, 1, plan.stages, steps)


def _nats(model: DeepseekV3 | Stage, h: Tensor, batch: Batch) -> float:
    assert model.lm_head is not None
    weight = model.lm_head.weight.float()
    return float(model.ops.linear_cross_entropy(h.flatten(0, 1).float(), weight, batch.labels.flatten()))
