"""The table of operations: name -> implementation. Models take an `Ops` and never ask what stands behind it.

A faster implementation (C++ on CPUs, Triton on GPUs) is one more row here; `reference` stays the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fathom.kernels import distillation, reference, torch_ops
from fathom.runtime import UserError


@dataclass(frozen=True)
class Ops:
    """One implementation of every operation a model calls."""

    name: str
    routed_experts: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear_distillation: Callable[..., Tensor]


IMPLEMENTATIONS = {
    "torch": Ops("torch", torch_ops.routed_experts, torch_ops.linear_cross_entropy, distillation.linear_distillation),
    "reference": Ops(
        "reference", reference.routed_experts, reference.linear_cross_entropy, reference.linear_distillation
    ),
}


def pick(name: str = "auto") -> Ops:
    """The implementation by name; `auto` is the fastest that runs everywhere."""
    name = "torch" if name == "auto" else name
    if name not in IMPLEMENTATIONS:
        raise UserError(f"implementation {name!r} is not known; use auto, {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]
