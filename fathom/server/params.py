"""Sampling fields of a request as SamplingParams; shared by chat and completions."""

from __future__ import annotations

from typing import Any

from fathom.engine.grammar import Grammar
from fathom.engine.params import SamplingParams
from fathom.server.errors import ApiError
from fathom.server.schemas.common import SamplingFields

_SAME_NAME = (
    "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p",
    "repetition_penalty", "ignore_eos",
)  # fmt: skip


def sampling_params(request: SamplingFields, default: SamplingParams, **more: Any) -> SamplingParams:
    """What both requests have in common, over what the checkpoint recommends; `more` is what they do not."""
    given: dict[str, Any] = {
        "stop": tuple(request.stop or ()),
        "logit_bias": {int(token): bias for token, bias in (request.logit_bias or {}).items()},
        "grammar": constraint(request),
        **{name: value for name, value in more.items() if value is not None},
    }
    given |= {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if default.temperature == 0 and given.get("n", 1) > 1:
        given = {"temperature": 1.0} | given  # greedy is only the checkpoint's advice, and several answers are wanted
    return default.replace(**given)


def constraint(request: SamplingFields) -> Grammar | None:
    """Our own fields regex and lark."""
    if request.regex is not None and request.lark is not None:
        raise ApiError(400, "regex and lark both constrain the answer; give one of them", param="lark")
    if request.regex is not None:
        return Grammar("regex", request.regex)
    return None if request.lark is None else Grammar("lark", request.lark)
