"""The numbers of a recipe that decide what a run takes, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fathom.config import ModelConfig
from fathom.runtime import UserError

SCHEDULES = ("gpipe", "1f1b", "zb1p", "dualpipev")


@dataclass(frozen=True)
class Job:
    """One training run."""

    model: ModelConfig
    tokens: int  # of the whole run
    batch_rows: int  # per step, once it has its full size
    micro_rows: int = 1  # per forward pass
    length: int = 4096
    gemm: str = "bf16"  # fp32 | bf16 | fp8
    recompute: str = "none"  # none | report | block
    moment_bytes: int = 4  # of one moment
    muon: bool = False  # trains hidden matrices with one moment; AdamW has two
    ema: bool = False
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    schedule: str = "1f1b"
    sharding: str = "zero1"  # zero1 | fsdp2
    dispatch: str = "bf16"  # fp32 | bf16 | fp8: what the all-to-all carries

    def __post_init__(self) -> None:
        for name in ("pipeline", "data", "expert"):
            if getattr(self, name) < 1:
                raise UserError(f"parallel.{name} is {getattr(self, name)}, it must be at least 1")
        if self.schedule not in SCHEDULES:
            raise UserError(f"parallel.schedule is {self.schedule!r}, it must be one of {', '.join(SCHEDULES)}")
        experts = self.model.n_routed_experts
        if self.data % self.expert or (experts and experts % self.expert):
            raise UserError(
                f"parallel.expert {self.expert} must divide parallel.data {self.data} and the {experts} routed experts"
            )
        if self.batch_rows % (self.data * self.micro_rows):
            raise UserError(
                f"data.batch_rows {self.batch_rows} is no multiple of parallel.data {self.data} x data.micro_rows "
                f"{self.micro_rows}; change one of them"
            )

    @property
    def world(self) -> int:
        """Devices."""
        return self.pipeline * self.data

    @property
    def micro_batches(self) -> int:
        """Per step and data rank."""
        return self.batch_rows // (self.data * self.micro_rows)

    @property
    def micro_tokens(self) -> int:
        """Tokens of one micro-batch on one data rank."""
        return self.micro_rows * self.length

    @property
    def step_tokens(self) -> int:
        """Tokens of a full step."""
        return self.batch_rows * self.length

    @property
    def stages(self) -> int:
        """Parts that the model is cut into: two per rank where the pipeline is folded to a V."""
        return self.pipeline * (2 if self.schedule == "dualpipev" and self.pipeline > 1 else 1)

    @property
    def expert_copies(self) -> int:
        """Ranks of a pipeline stage that hold the same experts."""
        return self.data // self.expert

    @classmethod
    def from_recipe(
        cls, model: ModelConfig, recipe: dict[str, Any], *, tokens: int, world: int = 1, fast_bf16: bool = True
    ) -> Job:
        """From TrainConfig.to_dict(). `world`, the number of processes, decides what parallel.data = 0 means, and
        `fast_bf16` what precision.gemm = "auto" means.
        """
        data, optim, parallel, precision = (recipe[k] for k in ("data", "optim", "parallel", "precision"))
        if parallel["data"] == 0 and world % parallel["pipeline"]:
            raise UserError(f"{world} processes cannot be shared among parallel.pipeline {parallel['pipeline']} stages")
        gemm = precision["gemm"] if precision["gemm"] != "auto" else ("bf16" if fast_bf16 else "fp32")
        return cls(
            model, tokens, data["batch_rows"], data["micro_rows"], data["sequence_length"], gemm,
            precision["recompute"], 2 if optim["moments"] == "bf16" else 4, optim["kind"] == "muon",
            optim["ema_decay"] > 0,
            parallel["pipeline"], parallel["data"] or max(world // parallel["pipeline"], 1), parallel["expert"],
            parallel["schedule"], parallel["sharding"],
            parallel["dispatch"] if parallel["dispatch"] != "auto" else gemm,
        )  # fmt: skip
