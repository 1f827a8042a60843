"""What the APIs beside OpenAI's chat share: errors that name their own fields, and limits on tools and schemas.

prepare.py speaks of a request in the words of /v1/chat/completions; `names` translates them ({"messages": "input"}).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fathom.engine.grammar import Grammar
from fathom.runtime import UserError
from fathom.server.errors import ApiError, api_error
from fathom.server.limits import MAX_SCHEMA_CHARS, MAX_TOOLS_CHARS


def renamed(error: ApiError | UserError, names: Mapping[str, str]) -> ApiError:
    """The error with the field named as the caller's API has it."""
    known = api_error(error)
    if known.param is None or known.param not in names:
        return known
    old, new = known.param, names[known.param]
    message = new + known.message.removeprefix(old) if known.message.startswith(old) else known.message
    return ApiError(known.status_code, message, param=new, code=known.code, headers=known.headers)


def schema_grammar(schema: Mapping[str, Any], param: str) -> Grammar:
    """The grammar of a JSON schema that came in the field `param`."""
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ApiError(400, f"{param} holds a number that is too large for JSON; correct it", param=param) from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise ApiError(400, f"{param} has {len(text)} characters, the limit is {MAX_SCHEMA_CHARS}", param=param)
    return Grammar("json_schema", text)


def function_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None, strict: bool) -> Any:
    """A tool as the chat template and the grammar of calls take it."""
    function: dict[str, Any] = {"name": name}
    function |= {} if description is None else {"description": description}
    function |= {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def check_tools_size(tools: list[Any]) -> list[Any]:
    """The tools, unless they are too many characters."""
    try:
        size = len(json.dumps(tools, allow_nan=False))
    except ValueError:
        raise ApiError(400, "tools hold a number that is too large for JSON; correct it", param="tools") from None
    if size > MAX_TOOLS_CHARS:
        raise ApiError(400, f"tools have {size} characters, the limit is {MAX_TOOLS_CHARS}; send fewer", param="tools")
    return tools
