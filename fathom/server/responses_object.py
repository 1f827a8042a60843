"""The response object: what was asked, as it was understood, and what came of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from fathom.server.errors import ApiError
from fathom.server.responses_job import temperature_of, top_p_of
from fathom.server.schemas.responses_request import ResponsesRequest
from fathom.server.served import Served
from fathom.server.usage import UsageCount

Object = dict[str, Any]


@dataclass(frozen=True)
class ResponseObject:
    """One response in each of its states. `output`: its items, which grow."""

    body: ResponsesRequest
    served: Served
    output: list[Object]
    usage: UsageCount
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))

    def begun(self) -> Object:
        return self._object("in_progress")

    def done(self, finish: str | None) -> Object:
        """Completed, or cut by a limit."""
        if finish == "length":
            return self._object("incomplete", usage=self._usage(), incomplete_details={"reason": "max_output_tokens"})
        return self._object("completed", usage=self._usage(), completed_at=int(time.time()))

    def failed(self, error: ApiError) -> Object:
        code = "server_error" if error.status_code >= 500 else "invalid_prompt"
        return self._object("failed", error={"code": code, "message": error.message})

    def _object(self, status: str, **more: Any) -> Object:
        body = self.body
        return {
            "id": self.id, "object": "response", "created_at": self.created_at, "status": status, "background": False,
            "completed_at": None, "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "max_tool_calls": None, "model": body.model,
            "output": list(self.output), "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None, "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "safety_identifier": body.safety_identifier, "service_tier": "default", "store": False,
            "temperature": temperature_of(body, self.served), "text": _text(body),
            "tool_choice": _choice(body), "tools": [_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0, "top_p": top_p_of(body, self.served), "truncation": "disabled",
            "usage": None, "user": body.user, "metadata": body.metadata or {}, **more,
        }  # fmt: skip

    def _usage(self) -> Object:
        usage = self.usage.as_dict()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
            "total_tokens": usage["total_tokens"],
            "fathom": usage["fathom"],
        }


def _text(body: ResponsesRequest) -> Object:
    wanted = None if body.text is None else body.text.format
    format = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
    return {"format": format, "verbosity": "medium"}


def _choice(body: ResponsesRequest) -> Any:
    choice = body.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump()


def _tool(tool: Any) -> Object:
    return {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            "strict": bool(tool.strict)}  # fmt: skip
