"""The arguments of a function call as chat templates want them: V3's as JSON text, most others as an object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex


class Arguments(str):
    """JSON text that a template may also treat as the mapping it says: `arguments | tojson`, `.items()`, `["city"]`.

    A text that is no JSON (an answer that was cut off in the middle of a call) is only a text.
    """

    parsed: Any

    def __new__(cls, text: str, parsed: Any = None) -> Arguments:
        self = super().__new__(cls, text)
        if parsed is None:
            try:
                parsed = json.loads(text)
                json.dumps(parsed, ensure_ascii=False).encode()  # an escape may spell half a character
            except (ValueError, RecursionError):
                parsed = text
        self.parsed = parsed
        return self

    def __repr__(self) -> str:
        return f"Arguments({super().__repr__()}, {self.parsed!r})"

    def mapped(self, change: Callable[[Any], Any]) -> Arguments:
        """Both sides changed by the same function."""
        return Arguments(change(str(self)), change(self.parsed))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parsed)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice | SupportsIndex):
            return super().__getitem__(key)
        return self._mapping()[key]

    def keys(self) -> Any:
        return self._mapping().keys()

    def values(self) -> Any:
        return self._mapping().values()

    def items(self) -> Any:
        return self._mapping().items()

    def get(self, key: str, default: Any = None) -> Any:
        return self._mapping().get(key, default)

    def _mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.parsed, Mapping):
            raise TypeError("the arguments of a call are not valid JSON, and the template needs an object")
        return self.parsed


def plain(value: Any) -> Any:
    """`value` with the objects instead of the texts, however deep they lie: what `tojson` writes."""
    if isinstance(value, Arguments):
        return value.parsed
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
