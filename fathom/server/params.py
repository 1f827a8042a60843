"""Sampling fields of a request as SamplingParams; shared by chat and completions."""

from __future__ import annotations

from typing import Any

from fathom.engine.grammar import Grammar
from fathom.engine.params import SamplingParams
from fathom.server.errors import ApiError
from fathom.server.schemas.common import SamplingFields
from fathom.server.settings import Sampling

_SAME_NAME = (
    "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty", "ignore_eos"
)  # fmt: skip


def sampling_params(request: SamplingFields, default: Sampling, **more: Any) -> SamplingParams:
    """What both requests have in common; `more` is what they do not."""
    given: dict[str, Any] = {
        "temperature": default.temperature if request.temperature is None else request.temperature,
        "top_p": default.top_p if request.top_p is None else request.top_p,
        "stop": tuple(request.stop or ()),
        "logit_bias": {int(token): bias for token, bias in (request.logit_bias or {}).items()},
        "grammar": constraint(request),
        **more,
    }
    given |= {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if given["temperature"] == 0 and given.get("n", 1) > 1 and request.temperature is None:
        given["temperature"] = 1.0  # greedy was only the checkpoint's advice, and several answers are asked for
    return SamplingParams(**given)


def constraint(request: SamplingFields) -> Grammar | None:
    """Our own fields regex and lark."""
    if request.regex is not None and request.lark is not None:
        raise ApiError(400, "regex and lark both constrain the answer; give one of them", param="lark")
    if request.regex is not None:
        return Grammar("regex", request.regex)
    return None if request.lark is None else Grammar("lark", request.lark)
