"""FLOPs, pipeline bubbles and hours (report section 1, Table 1; section 3.2.1, Table 2).

    FLOPs per token    model/cost.py: 3 x forward, main model and MTP, attention over half a row
    bubble             1F1B (P - 1)(F + B)    ZB1P (P - 1)(F + B - 2 W)    DualPipe(V) (P/2 - 1)(F&B + B - 3 W)
                       P: stages of one direction. A V of R ranks has P = 2 R
    hours              FLOPs / (devices x peak x share of peak)

Share of peak (MFU) is always of the BF16 peak, also for FP8, so that shares of different precisions can be compared;
it includes the bubble and everything else that is not a matmul.

What the report's hours say: 2,664K H800 hours for 14.8T tokens. Main model alone that is 250 GFLOPs per token and
39 % of 989 TFLOP/s; with MTP, as counted here, 260 and 40.7 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fathom.config import ModelConfig
from fathom.model.cost import training_flops_per_token
from fathom.plan.job import Job
from fathom.runtime import UserError

REPORT_TOKENS = 14.8e12  # section 1
REPORT_HOURS = 2664e3  # H800 hours of pre-training, Table 1


@dataclass(frozen=True)
class Device:
    """What one device can do. FLOP/s are dense."""

    name: str
    flops: dict[str, float]  # by GEMM precision
    memory: float  # bytes as the driver reports them; 0: not known
    per_node: int = 8
    nvlink: float = 0.0  # bytes/s to devices of the same node; 0: not known
    network: float = 0.0  # bytes/s to other nodes
    source: str = ""


_HOPPER = {"fp32": 67e12, "bf16": 989e12, "fp8": 1979e12}
_SHEET = "vendor's data sheet, without sparsity; NVLink in one direction, network as in the vendor's 8-device servers"
DEVICES = {
    "h800": Device(
        "H800", _HOPPER, 81_559 * 2**20, 8, 160e9, 50e9,
        "report 3.2.2: NVLink 160 GB/s, InfiniBand 50 GB/s; FLOP/s of the H100 data sheet, without sparsity",
    ),
    "h100": Device("H100 SXM", _HOPPER, 81_559 * 2**20, 8, 450e9, 50e9, _SHEET),
    "h200": Device("H200 SXM", _HOPPER, 143_771 * 2**20, 8, 450e9, 50e9, _SHEET),
    "a100": Device("A100 SXM", {"fp32": 19.5e12, "bf16": 312e12}, 81_920 * 2**20, 8, 300e9, 25e9, _SHEET),
}  # fmt: skip


def device(name: str) -> Device:
    """A device by name."""
    if name not in DEVICES:
        raise UserError(f"device {name!r} is not in the planner's table; use one of {', '.join(DEVICES)}")
    return DEVICES[name]


def this_machine(flops: dict[str, float]) -> Device:
    """The machine at hand with its measured matmul FLOP/s, and the memory that Linux says it has."""
    memory = 0.0
    info = Path("/proc/meminfo")
    if info.exists():
        memory = 1024.0 * int(info.read_text(encoding="ascii").split("MemTotal:")[1].split()[0])
    return Device("this machine", flops, memory, 1, source="matmul measured at start")


def bubble(job: Job) -> float:
    """Idle share of a step, with B = 2 F, W = F and a pair costing F + B (nothing hidden): Table 2's formulas."""
    forward, backward, weight, pair = 1.0, 2.0, 1.0, 3.0
    ranks = job.pipeline
    idle = {
        "gpipe": (ranks - 1) * (forward + backward),
        "1f1b": (ranks - 1) * (forward + backward),
        "zb1p": (ranks - 1) * (forward + backward - 2 * weight),
        "dualpipev": (ranks - 1) * (pair + backward - 3 * weight),  # P / 2 = ranks
    }[job.schedule]
    work = job.micro_batches * (job.stages / ranks) * (forward + backward)
    return idle / (idle + work)


def implied_share(flops: float, hours: float, peak: float) -> float:
    """Share of `peak` FLOP/s that doing `flops` in that many device hours means."""
    return flops / (hours * 3600 * peak)


def report_share() -> float:
    """The share of an H800's BF16 peak that the report's hours imply, MTP included."""
    per_token = training_flops_per_token(ModelConfig.preset("v3-671b"), 4096)
    return implied_share(per_token * REPORT_TOKENS, REPORT_HOURS, DEVICES["h800"].flops["bf16"])


def expected_share(job: Job, share: float) -> float:
    """A share of peak that was reached elsewhere, in this job: blocks computed twice are a third more work that does
    not count, and nobody works in the bubble."""
    return min(share * (0.75 if job.recompute == "block" else 1.0), 1.0 - bubble(job))


def reference_peak(job: Job, on: Device) -> float:
    """FLOP/s that shares refer to: BF16's, or FP32's where the run or the device has no other."""
    name = "fp32" if job.gemm == "fp32" or "bf16" not in on.flops else "bf16"
    return on.flops[name]
