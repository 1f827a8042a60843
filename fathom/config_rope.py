"""YaRN as a config says it: `rope_scaling` of released files, `rope_parameters` of newer ones."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fathom.config_checks import check, is_number, one_of


@dataclass(frozen=True)
class RopeScaling:
    """YaRN (report section 4.3): only the `qk_rope_head_dim` part is rescaled."""

    factor: float = 40.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        check(self.factor >= 1, "rope_scaling.factor", self.factor, "at least 1")
        check(self.original_max_position_embeddings >= 1, "rope_scaling.original_max_position_embeddings",
               self.original_max_position_embeddings, "at least 1")  # fmt: skip
        fast, slow = self.beta_fast, self.beta_slow  # Kimi-K2 has 1 and 1
        check(fast >= slow > 0, "rope_scaling.beta_fast", fast, f"at least beta_slow {slow}, and that above 0")

    @property
    def rope_amplitude(self) -> float:
        """Factor on cos and sin: mscale(factor, mscale) / mscale(factor, mscale_all_dim); 1.0 for every release.

        Where one of the two is 0 (absent from a file) it is mscale(factor, 1), as transformers has it.
        """
        if self.mscale and self.mscale_all_dim:
            return _yarn_mscale(self.factor, self.mscale) / _yarn_mscale(self.factor, self.mscale_all_dim)
        return _yarn_mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """Factor on the whole attention logit, the part without RoPE included: mscale(factor, mscale_all_dim)^2."""
        return _yarn_mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_ROPE_FIELDS = tuple(f.name for f in dataclasses.fields(RopeScaling))


def read_rope(
    data: dict[str, Any], default_theta: float, default_context: int
) -> tuple[float | None, RopeScaling | None]:
    """(rope_theta or None, YaRN or None) from `rope_scaling` or the newer `rope_parameters`, as transformers 5 reads
    them: where both are there, `rope_scaling` counts."""
    both = [name for name in ("rope_scaling", "rope_parameters") if data.get(name)]
    for name in both:
        check(isinstance(data[name], dict), name, data[name], "null or an object")
    if not both:
        return None, None
    name, scaling = both[0], data[both[0]]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    one_of(f"{name}.type", kind, ("default", "yarn"))
    # The default is what transformers takes even where the other dict says something else.
    theta = scaling.get("rope_theta") or data.get("rope_theta") or default_theta
    for other in (data.get("rope_theta"), *(data[other].get("rope_theta") for other in both[1:])):
        check(other in (None, theta), f"{name}.rope_theta", scaling.get("rope_theta"), f"{other!r} as in the same file")
    if kind == "default":
        return theta, None
    for key in _ROPE_FIELDS:
        value = scaling.get(key)
        check(value is None or is_number(value), f"{name}.{key}", value, "a number")
    for key, only in (("attention_factor", None), ("truncate", True)):
        check(scaling.get(key) in (None, only), f"{name}.{key}", scaling.get(key), f"absent or {only!r}")
    check(is_number(scaling.get("factor")), f"{name}.factor", scaling.get("factor"), "a number")
    values = {"mscale": 0.0} | {key: scaling[key] for key in _ROPE_FIELDS if scaling.get(key) is not None}
    if "original_max_position_embeddings" not in values:
        values["original_max_position_embeddings"] = data.get("max_position_embeddings", default_context)
    return theta, RopeScaling(**values)
