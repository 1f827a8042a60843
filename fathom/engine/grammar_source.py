"""What a person asks for as a grammar, checked and written in the library's words (see grammar.py).

The library bounds its own work in all cases but one: `multipleOf` compiles to an automaton with as many states as its
value, and `allOf` to the least common multiple. So that is bounded here, as are the sizes of the texts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from llguidance import LLMatcher

from fathom.runtime import UserError

Kind = Literal["json_schema", "json_object", "regex", "lark"]
MAX_BYTES: dict[str, int] = {"json_schema": 64 * 1024, "json_object": 0, "regex": 8 * 1024, "lark": 64 * 1024}
"""Largest text of each kind, as UTF-8."""
MAX_MULTIPLE_OF = 100_000
"""Largest `multipleOf` of a schema, after scaling to whole numbers (0.6 s and 100 MB to compile)."""
JSON_SPACE = r"\n {0,32}| {1,2}"
JSON_OPTIONS: dict[str, Any] = {"whitespace_flexible": False, "whitespace_pattern": JSON_SPACE}
_NAMES = {"json_schema": "JSON schema", "json_object": "JSON object", "regex": "regular expression", "lark": "grammar"}


@dataclass(frozen=True)
class Grammar:
    kind: Kind
    text: str = ""
    """The schema as JSON text, the pattern, or the Lark text; "" for json_object."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"grammar kind {self.kind!r} is not known; use one of {', '.join(get_args(Kind))}")
        if not isinstance(self.text, str):
            raise UserError(f"the {self.name} is a {type(self.text).__name__}; it must be a text")
        if self.kind == "json_object" and self.text:
            raise UserError("a json_object grammar takes no text; for a schema use the kind json_schema")
        size, limit = len(self.text.encode("utf-8", "surrogatepass")), MAX_BYTES[self.kind]
        if size > limit:
            raise UserError(f"the {self.name} has {size} bytes, the limit is {limit}; use a smaller one")

    @property
    def name(self) -> str:
        """The kind in words, for messages."""
        return _NAMES[self.kind]


def library_text(grammar: Grammar) -> str:
    """The grammar as the library reads it."""
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        _check_multiples(_inline_schemas(grammar.text))
        return LLMatcher.grammar_from_lark(grammar.text)
    text = '{"type": "object"}' if grammar.kind == "json_object" else grammar.text
    check_schema(text)
    return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]


def check_schema(text: str) -> dict[str, Any]:
    """The schema of a JSON text, with the checks that the library leaves to us."""
    try:
        schema = json.loads(text)
        _check_multiples(schema)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"the JSON schema is not valid JSON ({reason}); correct it") from None
    if not isinstance(schema, dict):
        raise UserError(f"the JSON schema is a {type(schema).__name__}; it must be a JSON object")
    if "x-guidance" in schema:
        raise UserError("the JSON schema has the key 'x-guidance', which would change how it is enforced; remove it")
    return schema


def _inline_schemas(lark: str) -> list[Any]:
    """The schemas after each %json of a Lark text."""
    schemas = []
    for found in re.finditer(r"%json\s*", lark):
        try:
            schemas.append(json.JSONDecoder().raw_decode(lark, found.end())[0])
        except (ValueError, RecursionError) as error:
            line = lark.count("\n", 0, found.end()) + 1
            raise UserError(
                f"the grammar cannot be used: line {line}: a JSON schema must follow %json directly ({str(error)[:80]})"
            ) from None
    return schemas


def _check_multiples(schemas: Any) -> None:
    """Bound the least common multiple of all `multipleOf`, scaled to whole numbers: allOf may join any of them."""
    multiples = {Fraction(str(value)) for value in _multiples(schemas)}
    scale = math.lcm(*(m.denominator for m in multiples))
    common = math.lcm(*(int(m * scale) for m in multiples))
    if common > MAX_MULTIPLE_OF:
        said = str(common) if common < 10**20 else f"{str(common)[:9]}..."
        raise UserError(
            f"the JSON schema asks for multiples of {said} (all multipleOf together, scaled to whole numbers); "
            f"the limit is {MAX_MULTIPLE_OF}"
        )


def _multiples(value: Any) -> Iterator[int | float]:
    """Every number that stands under the key multipleOf."""
    if isinstance(value, dict):
        found = value.get("multipleOf")
        endless = isinstance(found, float) and not math.isfinite(found)
        if isinstance(found, int | float) and not isinstance(found, bool) and not endless and found > 0:
            yield found
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _multiples(child)


def refused(grammar: Grammar, why: str) -> UserError:
    reason = reason_of(why)
    if grammar.kind == "regex":  # the place is that in the Lark rule around it
        reason = re.sub(r"^line 1, column \d+: ", "", reason)
    return UserError(f"the {grammar.name} cannot be used: {reason}")


_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")


def reason_of(error: str) -> str:
    """The library's message in one line: it prints the source, points into it, and says the cause last."""
    first = _PLACE.sub(r"line \1, column \2: ", error.strip().split("\n")[0].split("; following special tokens")[0])
    cause = re.search(r"^error: (.*)", error, re.MULTILINE)
    if cause:
        first = re.sub(r'invalid regex ".*" \(in regex\): |regex parse error:', "", first) + cause[1]
    if "coerce_one_of" in error:
        first = "oneOf whose branches may hold together is not supported; use anyOf"
    return first[:300] or "unknown reason"
