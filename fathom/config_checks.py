"""Checks on the values of a config: what was given, and what it must be."""

from __future__ import annotations

from fathom.runtime import UserError


def check(ok: bool, name: str, value: object, limit: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value!r}, it must be {limit}")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    check(value in allowed, name, value, "one of " + ", ".join(map(repr, allowed)))


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
