"""Not a contender: what this machine can do at most, measured between the others with the same number of threads.

    bandwidth   bytes per second that matrix times vector reads, for the number of bytes that is asked for (a small
                model lies in the last level cache, and then that is what bounds it)
    matmul      FP32 operations per second of a large matrix product

Both are the best of many tries in one call. Options: threads.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

import protocol
import torch

WIDTH = 1024
TRY_SECONDS = 0.6


class Machine:
    """Speaks the contenders' protocol: `new` bytes for bandwidth, `new` rows for the matrix product."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self.name = cpu_name()
        self.variants = ["bandwidth", "matmul"]
        self.buffers: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
        if variant == "bandwidth":
            rows = max(new // (4 * WIDTH), 64)
            if rows not in self.buffers:
                self.buffers[rows] = torch.rand(rows, WIDTH)
            matrix, vector, out = self.buffers[rows], torch.rand(WIDTH), torch.empty(rows)
            work = float(rows * WIDTH * 4)
            seconds = best(lambda: torch.mv(matrix, vector, out=out))
        else:
            matrix, out = torch.rand(new, new), torch.empty(new, new)
            work = 2.0 * new**3
            seconds = best(lambda: torch.mm(matrix, matrix, out=out))
        return {"seconds": seconds, "tokens": work, "answers": []}

    def prefill(self, variant: str, prompt: list[int]) -> float:
        raise ValueError("a machine has no prompts")


def best(work: Any) -> float:
    """Seconds of the fastest call."""
    work()
    end, fastest = perf_counter() + TRY_SECONDS, float("inf")
    while perf_counter() < end:
        start = perf_counter()
        work()
        fastest = min(fastest, perf_counter() - start)
    return fastest


def cpu_name() -> str:
    """As the kernel calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown CPU"
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    protocol.answer(Machine)
