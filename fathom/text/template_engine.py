"""Run a chat template that came with a checkpoint, without trusting it.

A template is a program from the internet. It runs in jinja2's immutable sandbox (no attributes that lead out of the
template, no changes to what it is given) with the names Hugging Face promises: `raise_exception`, `strftime_now`,
`tojson`, loop controls, trim_blocks and lstrip_blocks. The sandbox does not bound work, so this does: the size of the
template, of the text it renders, of texts it builds with + and *, and the number of steps that `range` hands out. A
template bent on wasting time can still find a way; it cannot reach anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.filters import do_items
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fathom.runtime import UserError
from fathom.text.call_arguments import Arguments, plain

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_RENDERED_CHARS = 64 * 2**20
MAX_REPEATED = 2**20  # length of `'ab' * n`
MAX_RANGE_STEPS = 10**6  # over one rendering


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)) if operator == "*" else ():
            if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > MAX_REPEATED:
                raise TemplateError(f"a repetition of more than {MAX_REPEATED} items is not allowed")
        if operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            if len(left) + len(right) > MAX_RENDERED_CHARS:
                raise TemplateError(f"a text of more than {MAX_RENDERED_CHARS} characters is not allowed")
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise TemplateError("a power above 64 is not allowed")
        return super().call_binop(context, operator, left, right)


def compile_template(source: str, name: str = "chat template") -> Template:
    """Compile, or say in one line what is wrong with the template."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise UserError(
            f"{name} has {len(source)} characters, the limit is {MAX_TEMPLATE_CHARS}; use a smaller template"
        )
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = _tojson
    sandbox.filters["items"] = lambda value: do_items(value.parsed if isinstance(value, Arguments) else value)
    sandbox.tests["mapping"] = lambda value: isinstance(plain(value), Mapping)
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return sandbox.from_string(source)
    except TemplateSyntaxError as error:
        raise UserError(f"{name} is not valid Jinja (line {error.lineno}: {_one_line(error)}); correct it") from None
    except Exception as error:  # too deeply nested, for one
        raise UserError(f"{name} cannot be compiled ({_one_line(error)}); correct it") from None


def render_template(template: Template, values: dict[str, Any], name: str = "chat template") -> str:
    """Render; whatever goes wrong inside is one line."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(**values, range=_bounded_range()):
            length += len(piece)
            if length > MAX_RENDERED_CHARS:
                raise TemplateError(f"the result is longer than {MAX_RENDERED_CHARS} characters")
            pieces.append(piece)
    except Exception as error:  # a template can fail in any way a program can
        raise UserError(
            f"{name} does not render ({_one_line(error)}); check the messages or correct the template"
        ) from None
    return "".join(pieces)


def _bounded_range() -> Any:
    left = MAX_RANGE_STEPS

    def bounded(*bounds: int) -> Iterator[int]:
        nonlocal left
        numbers = range(*bounds)
        left -= len(numbers)
        if left < 0:
            raise TemplateError(f"more than {MAX_RANGE_STEPS} steps of range are not allowed")
        return iter(numbers)

    return bounded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes <, > and & for HTML, which models never saw."""
    return json.dumps(
        plain(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
