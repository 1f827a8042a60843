"""The fused serving step for CPUs; see step.py for the interface and block.cpp for the phases."""

from __future__ import annotations

from fathom.kernels.cpu.step import CpuBlock, CpuBlocks, CpuLinear, CpuNorm, available, linear, write_latents

__all__ = ["CpuBlock", "CpuBlocks", "CpuLinear", "CpuNorm", "available", "linear", "write_latents"]
