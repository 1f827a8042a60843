"""How a run is watched while it goes on: a progress line, log.jsonl, and TensorBoard if asked for. Rank 0 only.

log.jsonl is the truth: one JSON object per logged step, appended and flushed, so that `fathom train report` can draw a
run that is still going or that was killed. On resume it is cut to the checkpoint's step: the steps after it will be
done again, and each step stands in the log once.

Share of the machine's matmul peak:   (FLOPs of a step / seconds of the step) / (ranks * matmul FLOP/s of one rank)
The peak is not a data sheet's but measured once at start, with square matmuls in the dtype that the run computes in; it
says how much of what the library can do here the step turns into training.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

from fathom.runtime import UserError, atomic_write

Record = dict[str, Any]


def cut_log(path: Path, step: int) -> int:
    """Drop the records after `step` and a half-written last line; returns how many records stay."""
    if not path.exists():
        return 0
    old = path.read_bytes()
    kept = []
    for line in old.splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step and line.endswith(b"\n"):
                kept.append(line)
    new = b"".join(kept)
    if new != old:
        with atomic_write(path) as temporary:
            temporary.write_bytes(new)
    return len(kept)


def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int = 0, seconds: float = 0.3) -> float:
    """FLOP/s of a [size, size] matmul on one device: the best of the calls that fit in about `seconds`."""
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out = a @ b  # the first call pays for choosing a kernel
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        _wait(device)
        started = time.perf_counter()
        torch.matmul(a, b, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Watch:
    """Everything that a person sees of a run. On ranks other than 0 (`writes` false) it does nothing."""

    def __init__(
        self, out: Path, steps: int, *, total_tokens: int, unit: str = "bits/byte", tensorboard: bool = False,
        writes: bool = True, stream: IO[str] | None = None,
    ) -> None:  # fmt: skip
        """`unit`: of the held-out figures. `total_tokens`: of the whole run, for the time that is left."""
        self.log, self.folder, self.steps, self.total_tokens, self.unit = (
            out / "log.jsonl",
            out,
            steps,
            total_tokens,
            unit,
        )
        self.writes, self.stream = writes, stream or sys.stderr
        self._rates: deque[float] = deque(maxlen=21)
        self._in_place = False  # whether the cursor stands at the end of a line that may be written over
        self._board: Any = None
        self._wants_board = tensorboard and writes
        if self._wants_board:
            require_tensorboard()

    def resume(self, step: int) -> None:
        """Before the first step, also of a fresh run (step 0): forget what was logged after `step`."""
        if not self.writes:
            return
        cut_log(self.log, step)
        if self._wants_board:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Log one step and show it."""
        if not self.writes:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in scalars(record).items():
                self._board.add_scalar(name, value, global_step=record["step"])
        self._rates.append(record["tokens_per_second"])
        self._show(progress_line(record, self.steps, self.total_tokens, median(self._rates), self.unit), record)

    def note(self, text: str) -> None:
        """A line that stays, such as why a step was skipped."""
        if self.writes:
            print(("\n" if self._in_place else "") + text, file=self.stream, flush=True)
            self._in_place = False

    def close(self) -> None:
        """Finish the line and the TensorBoard file."""
        if self._in_place:
            print(file=self.stream, flush=True)
            self._in_place = False
        if self._board is not None:
            self._board.close()
            self._board = None

    def _show(self, line: str, record: Record) -> None:
        stays = "heldout" in record or record.get("skipped") or record["step"] >= self.steps
        start, end = ("\r\033[K" if self._in_place else ""), "\n"
        self._in_place = self.stream.isatty() and not stays
        if self._in_place:
            end = ""
        print(start + line, end=end, file=self.stream, flush=True)


def progress_line(record: Record, steps: int, total_tokens: int, tokens_per_second: float, unit: str) -> str:
    """One step for a person."""
    load, held, share = record.get("load_max_over_mean"), record.get("heldout"), record.get("flops_share")
    left = max(total_tokens - record["tokens"], 0) / max(tokens_per_second, 1e-9)
    parts = [
        f"step {record['step']:>6}/{steps}",
        f"loss {record['loss']:.4f}",
        *(f"mtp {x:.4f}" for x in record.get("mtp_loss", [])),
        f"|g| {record['grad_norm']:.2f}",
        f"lr {record['lr']:.2e}",
        f"load {max(load):.2f}x" if load else "",
        f"{tokens_per_second:,.0f} tok/s",
        f"{100 * share:.0f}% of peak" if share else "",
        f"left {duration(left)}",
        f"held-out {held['mean']:.4f} {unit}" if held else "",
        "SKIPPED" if record.get("skipped") else "",
    ]
    return "  ".join(p for p in parts if p)


def duration(seconds: float) -> str:
    """The two largest units: 40 s, 12 min, 3 h 05 min, 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


def scalars(record: Record) -> dict[str, float]:
    """A record's numbers under TensorBoard's names, one chart group per prefix."""
    groups = {
        "loss": "train/loss", "grad_norm": "train/grad_norm", "lr": "schedule/lr", "gamma": "schedule/gamma",
        "mtp_lambda": "schedule/mtp_lambda", "rows": "schedule/rows", "tokens": "train/tokens",
        "tokens_per_second": "speed/tokens_per_second", "flops_share": "speed/share_of_matmul_peak",
    }  # fmt: skip
    out = {groups[k]: float(v) for k, v in record.items() if k in groups and v is not None}
    out |= {f"train/mtp_loss_{i}": float(x) for i, x in enumerate(record.get("mtp_loss", []), 1)}
    out |= {f"load/max_over_mean_{i}": float(x) for i, x in enumerate(record.get("load_max_over_mean", []))}
    out |= {f"load/dead_experts_{i}": float(x) for i, x in enumerate(record.get("dead_experts", []))}
    out |= {f"heldout/{name}": float(x) for name, x in record.get("heldout", {}).items()}
    out["train/skipped"] = float(bool(record.get("skipped")))
    return out


def require_tensorboard() -> None:
    """Refuse run.tensorboard where the package is missing, before the run starts."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "run.tensorboard is true but the package tensorboard is not installed; "
            "run `pip install tensorboard` or set run.tensorboard to false"
        ) from None
