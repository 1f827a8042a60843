"""What an upcycle did, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fathom.model.cost import cache_bytes_per_token, parameters
from fathom.upcycle.latent import One
from fathom.upcycle.measure import Comparison
from fathom.upcycle.options import Options, Plan
from fathom.upcycle.sparse import Quality


@dataclass(frozen=True)
class Report:
    """Dimensions, costs, and what was measured. Errors and shares are means over layers, the worst one is the worst."""

    values: str
    rope_width: int
    nope_width: int
    latent_width: int
    rotated_share: float  # of the pairs of a key head
    ffn: str
    parameters: int
    activated: int
    cache_bytes: int  # per token, BF16
    original_cache_bytes: int
    comparison: Comparison | None
    constant_error: float | None
    constant_worst: float | None
    right_experts: float | None
    energy_kept: float | None
    seconds: float

    @classmethod
    def of(
        cls,
        plan: Plan,
        options: Options,
        ones: list[One],
        qualities: list[Quality],
        comparison: Comparison | None,
        seconds: float,
    ) -> Report:
        """Gather what the parts of an upcycle found."""
        c, source = plan.config, plan.source
        counts = parameters(c)
        return cls(
            values=plan.values,
            rope_width=c.qk_rope_head_dim,
            nope_width=c.qk_nope_head_dim,
            latent_width=c.kv_lora_rank,
            rotated_share=plan.keys.rotated / plan.keys.pairs,
            ffn=options.ffn,
            parameters=counts.total,
            activated=counts.activated,
            cache_bytes=cache_bytes_per_token(c, 2),
            original_cache_bytes=2 * source.num_hidden_layers * 2 * source.num_key_value_heads * source.head_dim,
            comparison=comparison,
            constant_error=_mean([one.mean_error for one in ones]),
            constant_worst=max((one.worst_error for one in ones), default=None),
            right_experts=_mean([q.right_experts for q in qualities]),
            energy_kept=_mean([q.energy_kept for q in qualities]),
            seconds=seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
